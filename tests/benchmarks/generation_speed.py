"""Speed of decoding on CPU against transformers' generate and SimCTG's contrastive search; GPT-2's shape, float32.

    python tests/benchmarks/generation_speed.py [--layers 12] [--new-tokens 64] [--rounds 5] [--only greedy]

Random weights, the same in both libraries; prompts of random tokens, of one length; every contender generates exactly
`--new-tokens` tokens, prompt included in its time. Medians over rounds that time all contenders of a task in turn.

Tasks
    greedy             batch 1 and 16, against `generate`
    contrastive_search k = 4, alpha = 0.6, batch 1 and 16, against the algorithm of yxuansu/SimCTG in torch: in every
                       step the cache is copied k times, the k candidates are run, all context states are normalised
                       anew, the chosen candidate's cache is selected; one example after the other
    rollouts           100 samples of one prompt (temperature 1), against `generate` with num_return_sequences

Greedy and contrastive tokens must agree (the share is printed: sums in other orders break ties). The bound of batch 1
is the time that reading all weights once per token takes at the measured bandwidth.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from jaxcore.commands.console import keep_freed_memory

TASKS = ("greedy", "contrastive_search", "rollouts")


def main() -> None:
    """Parse the command line, run the tasks, print medians, ratios and shares of the bound."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--layers", type=int, default=12, help="blocks of the model (12 is GPT-2)")
    parser.add_argument("--vocabulary", type=int, default=50257, help="tokens of the model")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens generated")
    parser.add_argument("--batch", type=int, default=16, help="prompts of the larger batch")
    parser.add_argument("--samples", type=int, default=100, help="samples of one prompt")
    parser.add_argument("--rounds", type=int, default=5, help="times each contender is run")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="cores to use")
    parser.add_argument("--only", choices=TASKS, help="one task")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # before either library counts them
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    pair = Pair.build(options)
    bandwidth = read_bandwidth()
    size = sum(parameter.numel() for parameter in pair.torch_model.parameters()) * 4
    bound = size / bandwidth
    print(
        f"{options.layers} layers, {size / 1e6:.0f} MB of weights, {len(os.sched_getaffinity(0))} cores; reads at "
        f"{bandwidth / 1e9:.1f} GB/s: {1e3 * bound:.1f} ms per token at least\n"
    )
    for task in (options.only,) if options.only else TASKS:
        for batch in (options.samples,) if task == "rollouts" else (1, options.batch):
            run_task(task, batch, pair, options, bound)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same model in both libraries."""

    torch_model: Any
    model: Any
    params: Any

    @classmethod
    def build(cls, options: argparse.Namespace) -> "Pair":
        """GPT-2 with random weights, written by transformers and read by jaxcore."""
        try:
            import torch
            import transformers
        except ImportError:
            sys.exit("skipped: torch and transformers are not installed")
        from jaxcore.models import load_pretrained, unstack_layers

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=options.vocabulary, n_layer=options.layers, bos_token_id=None, eos_token_id=None
        )
        torch_model: Any = transformers.GPT2LMHeadModel(config).eval()
        with tempfile.TemporaryDirectory() as folder:
            torch_model.save_pretrained(folder)
            model, params = load_pretrained(folder)
        return cls(torch_model, model, unstack_layers(params))


def read_bandwidth(megabytes: int = 512) -> float:
    """Bytes per second that all cores read from memory: the best of several sums over an array."""
    import torch

    array = torch.ones(megabytes * 2**20 // 4)
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        array.sum()
        seconds.append(time.perf_counter() - began)
    return array.numel() * 4 / min(seconds)


def run_task(task: str, batch: int, pair: Pair, options: argparse.Namespace, bound: float) -> None:
    """Time both contenders of a task and print what came out."""
    import numpy as np

    rows = 1 if task == "rollouts" else batch
    prompts = np.random.default_rng(0).integers(0, options.vocabulary, (rows, options.prompt))
    ours, theirs = CONTENDERS[task](pair, prompts, options)
    first = ours(), theirs()  # compiled, and warm
    agreement = "" if task == "rollouts" else compare(*first)
    medians = interleave({"jaxcore": ours, "reference": theirs}, rounds=options.rounds)
    print(f"{task}, batch {batch}{agreement}")
    tokens = batch * options.new_tokens
    for name, (wall, cpu) in medians.items():
        share = f", {options.new_tokens * bound / wall:.0%} of the bandwidth bound" if batch == 1 else ""
        print(f"  {name:10}{wall:8.2f} s wall{cpu:8.2f} s CPU{tokens / wall:9.1f} tokens/s{share}")
    (wall, cpu), (other_wall, other_cpu) = medians["jaxcore"], medians["reference"]
    print(
        f"  speed over the reference: {other_wall / wall:.2f} by wall time, {other_cpu / cpu:.2f} by CPU\n", flush=True
    )


def compare(ours: Any, theirs: Any) -> str:
    """The share of rows with the same tokens."""
    same = (ours == theirs).all(1)
    return f": {same.sum()} of {len(same)} rows of tokens agree"


def interleave(contenders: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each, timed in turn in each round."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            samples[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (statistics.median(wall for wall, _ in some), statistics.median(cpu for _, cpu in some))
        for name, some in samples.items()
    }


def jaxcore_run(pair: Pair, prompts: Any, options: argparse.Namespace, **settings: Any) -> Callable[[], Any]:
    """A function that generates and returns the tokens, a row per sample."""
    import numpy as np

    from jaxcore.generation import generate

    def run() -> Any:
        generated = generate(pair.model, pair.params, prompts, max_new_tokens=options.new_tokens, **settings)
        return np.asarray(generated.tokens).reshape(-1, options.new_tokens)

    return run


def transformers_run(pair: Pair, prompts: Any, options: argparse.Namespace, **settings: Any) -> Callable[[], Any]:
    """The same with `generate` of transformers."""
    import torch

    ids = torch.tensor(prompts)

    def run() -> Any:
        with torch.inference_mode():
            whole = pair.torch_model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=options.new_tokens, pad_token_id=0, **settings
            )
        return whole[:, ids.shape[1] :].numpy()

    return run


def greedy(pair: Pair, prompts: Any, options: argparse.Namespace) -> tuple[Callable[[], Any], Callable[[], Any]]:
    return jaxcore_run(pair, prompts, options), transformers_run(pair, prompts, options, do_sample=False)


def rollouts(pair: Pair, prompts: Any, options: argparse.Namespace) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import jax

    from jaxcore.generation import Sampling

    count = options.samples
    ours = jaxcore_run(pair, prompts, options, strategy=Sampling(), num_samples=count, key=jax.random.key(0))
    return ours, transformers_run(pair, prompts, options, do_sample=True, top_k=0, num_return_sequences=count)


def contrastive(pair: Pair, prompts: Any, options: argparse.Namespace) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import numpy as np
    import torch

    from jaxcore.generation import ContrastiveSearch

    def theirs() -> Any:
        with torch.inference_mode():
            rows = [
                torch_contrastive_search(pair.torch_model, row, k=4, alpha=0.6, count=options.new_tokens)
                for row in torch.tensor(prompts)
            ]
        return np.stack(rows)

    return jaxcore_run(pair, prompts, options, strategy=ContrastiveSearch(k=4, alpha=0.6)), theirs


def torch_contrastive_search(model: Any, prompt: Any, *, k: int, alpha: float, count: int) -> Any:
    """The published algorithm, step by step, for one prompt."""
    import torch

    output = model(prompt[None], use_cache=True, output_hidden_states=True)
    cache, states, logits = output.past_key_values, output.hidden_states[-1][0], output.logits[0, -1]
    tokens = []
    for _ in range(count):
        candidates = torch.topk(logits, k).indices
        probabilities = torch.softmax(logits, -1)[candidates]
        cache.batch_repeat_interleave(k)
        output = model(candidates[:, None], past_key_values=cache, use_cache=True, output_hidden_states=True)
        cache, new = output.past_key_values, output.hidden_states[-1][:, 0]
        context = (states / states.norm(dim=1, keepdim=True)).expand(k, -1, -1).reshape(k, len(states), -1)
        directions = new / new.norm(dim=1, keepdim=True)
        penalty = torch.matmul(context, directions[:, :, None])[:, :, 0].max(1).values
        chosen = int(((1 - alpha) * probabilities - alpha * penalty).argmax())
        tokens.append(int(candidates[chosen]))
        states, logits = torch.cat([states, new[chosen][None]]), output.logits[chosen, -1]
        cache.batch_select_indices(torch.tensor([chosen]))
    return tokens


CONTENDERS = {"greedy": greedy, "contrastive_search": contrastive, "rollouts": rollouts}


if __name__ == "__main__":
    keep_freed_memory()
    main()
