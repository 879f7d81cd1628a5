"""Speed of attribution for generation on CPU: integrated gradients of each of 64 tokens behind 512, GPT-2's shape.

    python tests/benchmarks/generation_attribution_speed.py [--context 512] [--targets 64] [--steps 50] [--layers 12]
        [--inseq-python PATH]

Random weights, the same in all libraries, float32; the score is each token's logit, the whole prefix before it moves
from the unknown token's embedding, Gauss-Legendre nodes. Contenders
    jaxcore    `explain_continuations`, compilation not in its time (it is printed)
    captum     the loop that inseq runs: `IntegratedGradients` on the prefix of one target after the other, all steps of
               a target in batches of --internal-batch
    inseq      itself, if the Python given with --inseq-python has it (its own environment, as a process)
captum and inseq may be run on fewer targets (--peer-targets, the last ones): their time is then per target, times all.

Values of all contenders must agree (the largest difference over the largest value is printed): the script fails if not.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from jaxcore.commands.console import keep_freed_memory

_INSEQ = """
import json, sys, time, warnings
import numpy as np
warnings.filterwarnings("ignore")
import torch, inseq
given = json.load(open(sys.argv[1]))
torch.set_num_threads(given["cores"])
model = inseq.load_model(given["model"], "integrated_gradients", device="cpu")
start = time.perf_counter()
found = model.attribute(
    given["prompt"], given["whole"], n_steps=given["steps"], internal_batch_size=given["internal_batch"],
    attributed_fn="logit", show_progress=False, skip_special_tokens=False,
    attr_pos_start=given["first"],
)
seconds = time.perf_counter() - start
values = found[0].target_attributions.sum(-1).numpy()   # [prefix and targets, targets]
np.save(given["values"], values)
json.dump({"seconds": seconds}, open(given["times"], "w"))
"""


def main() -> None:
    """Parse the command line, time all contenders, print seconds, ratios and differences of values."""
    options = parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # before either library counts them
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        task = Task.build(options, pathlib.Path(folder))
        print(
            f"{options.layers} layers, {options.context} tokens, {options.targets} targets, {options.steps} steps, "
            f"{options.cores} cores"
        )
        ours, values = jaxcore_seconds(task)
        print(f"jaxcore  {ours:9.2f} s")
        contenders = {"captum": captum_seconds}
        if options.inseq_python:
            contenders["inseq"] = inseq_seconds
        for name, run in contenders.items():
            seconds, theirs = run(task)
            rows = values[-theirs.shape[0] :, : theirs.shape[1]]
            difference = np.abs(rows - theirs).max() / np.abs(rows).max()
            whole = seconds * options.targets / task.peer_targets
            print(
                f"{name:8} {whole:9.2f} s, {whole / ours:5.2f} x ours ({seconds:.2f} s for {task.peer_targets} "
                f"targets); largest difference {difference:.1e} of the largest value"
            )
            if not difference < 1e-3:
                sys.exit(f"the values of jaxcore and {name} differ")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--context", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--targets", type=int, default=64, help="tokens that are explained")
    parser.add_argument("--peer-targets", type=int, default=0, help="of these, how many captum and inseq do; 0: all")
    parser.add_argument("--steps", type=int, default=50, help="points on the path")
    parser.add_argument("--layers", type=int, default=12, help="blocks of the model (12 is GPT-2)")
    parser.add_argument("--hidden", type=int, default=768, help="width of the model (768 is GPT-2)")
    parser.add_argument("--vocabulary", type=int, default=50257, help="tokens of the model")
    parser.add_argument("--internal-batch", type=int, default=10, help="steps that captum and inseq run together")
    parser.add_argument("--memory-megabytes", type=int, default=2048, help="temporary memory of jaxcore")
    parser.add_argument("--inseq-python", default="", help="a Python that has inseq")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="cores to use")
    return parser.parse_args()


class Task:
    """The same model in a folder for all, and the tokens."""

    def __init__(self, options: argparse.Namespace, folder: pathlib.Path, torch_model: Any, explained: Any) -> None:
        self.options, self.folder, self.torch_model, self.explained = options, folder, torch_model, explained
        self.peer_targets = options.peer_targets or options.targets
        rng = np.random.default_rng(0)
        ids = rng.integers(0, options.vocabulary - 1, options.context + options.targets)
        self.ids = [int(number) for number in ids]
        self.unknown = options.vocabulary - 1

    @property
    def words(self) -> list[str]:
        return [f"t{number}" for number in self.ids]

    @classmethod
    def build(cls, options: argparse.Namespace, folder: pathlib.Path) -> "Task":
        """GPT-2 with random weights, written by transformers and read by jaxcore; one word per token."""
        try:
            import torch
            import transformers
        except ImportError:
            sys.exit("skipped: torch and transformers are not installed")
        from tokenizers import Tokenizer, models, pre_tokenizers

        from jaxcore.data import load_tokenizer
        from jaxcore.evaluation.generation_attribution import LanguageModel
        from jaxcore.models import load_pretrained

        torch.set_num_threads(options.cores)
        torch.manual_seed(0)
        last = options.vocabulary - 1
        config = transformers.GPT2Config(
            vocab_size=options.vocabulary, n_layer=options.layers, n_embd=options.hidden,
            n_head=max(1, options.hidden // 64), n_positions=max(1024, options.context + options.targets),
            bos_token_id=last, eos_token_id=last,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config).eval()
        model.save_pretrained(folder)
        table = {f"t{number}": number for number in range(last)} | {"<end>": last}
        words = Tokenizer(models.WordLevel(table, unk_token="<end>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, unk_token="<end>", eos_token="<end>", bos_token="<end>", pad_token="<end>"
        )
        tokenizer.save_pretrained(str(folder))
        ours, params = load_pretrained(folder)
        return cls(options, folder, model, LanguageModel(ours, params, load_tokenizer(folder)))


def jaxcore_seconds(task: Task) -> tuple[float, np.ndarray]:
    """Seconds of the second run, and values [targets, prefix]."""
    from jaxcore.evaluation import generation_attribution as engine

    cut = task.options.context
    request = engine.given_continuation(task.explained, " ".join(task.words[:cut]), " ".join(task.words[cut:]))
    options = engine.ContinuationOptions(
        ("integrated_gradients",),
        score="logit",
        num_steps=task.options.steps,
        memory_budget=task.options.memory_megabytes * 2**20,
    )
    import jax

    mesh = engine.make_mesh(engine.MeshConfig(), jax.local_devices()[:1])
    programs = engine._Programs(task.explained, options, mesh)  # kept: what is timed is not compilation
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        found = programs.run([request], 0, lambda: None)["integrated_gradients"][0][0]
        seconds.append(time.perf_counter() - start)
    print(f"jaxcore  compiled in about {seconds[0] - seconds[1]:.1f} s")
    return seconds[1], found[: task.options.targets, : len(task.ids) - 1]


def captum_seconds(task: Task) -> tuple[float, np.ndarray]:
    """Seconds and values of the last targets, one after the other."""
    from captum.attr import IntegratedGradients

    model, options = task.torch_model, task.options
    table = model.transformer.wte.weight.detach()
    rows = np.zeros((task.peer_targets, len(task.ids) - 1), np.float32)
    start = time.perf_counter()
    for row in range(task.peer_targets):
        end = len(task.ids) - task.peer_targets + row

        def score(vectors: Any, token: int = task.ids[end]) -> Any:
            return model(inputs_embeds=vectors).logits[:, -1, token]

        vectors = table[task.ids[:end]][None]
        found = IntegratedGradients(score).attribute(
            vectors, baselines=table[task.unknown].expand_as(vectors), n_steps=options.steps,
            method="gausslegendre", internal_batch_size=options.internal_batch,
        )  # fmt: skip
        rows[row, :end] = found.sum(-1)[0].detach().numpy()
    return time.perf_counter() - start, rows


def inseq_seconds(task: Task) -> tuple[float, np.ndarray]:
    """The same by inseq, in a process of its own."""
    first = len(task.ids) - task.peer_targets
    files = {name: str(task.folder / name) for name in ("values.npy", "times", "request", "script.py")}
    given = {
        "model": str(task.folder), "prompt": " ".join(task.words[: task.options.context]),
        "whole": " ".join(task.words), "steps": task.options.steps, "internal_batch": task.options.internal_batch,
        "first": first, "values": files["values.npy"], "times": files["times"], "cores": task.options.cores,
    }  # fmt: skip
    pathlib.Path(files["request"]).write_text(json.dumps(given))
    pathlib.Path(files["script.py"]).write_text(_INSEQ)
    subprocess.run([task.options.inseq_python, files["script.py"], files["request"]], check=True)
    values = np.load(files["values.npy"])
    return json.loads(pathlib.Path(files["times"]).read_text())["seconds"], np.nan_to_num(
        values.T[:, : len(task.ids) - 1]
    )


if __name__ == "__main__":
    keep_freed_memory()
    main()
