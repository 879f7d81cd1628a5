"""Speed of decoding with a large decoder on one device, beside the memory bandwidth measured in the same run.

    python tests/benchmarks/large_decoder_speed.py --shape llama-3.1-8b [--new-tokens 128] [--rounds 3]
    python tests/benchmarks/large_decoder_speed.py --shape tiny        # seconds on a CPU

Random weights, made on the device in the form that decodes fastest; prompts of random tokens, of one length; every
contender generates exactly `--new-tokens` tokens greedily, prompt included in its time. Medians over rounds that time
all contenders in turn.

Bandwidth is the better of a copy (an array read and another one written) and a sum (an array read), each the best of
several. The bound of a token is the time in which weights and caches are read once at that bandwidth: all weights but
the word table, of which a token takes one row (it is read whole where it serves as head), and the keys and values of
the mean number of tokens before it, in every row. The share of the bound is that of `--new-tokens` tokens in the
measured time.

transformers' `generate` runs the same shape, with random weights of its own, where torch sees the same kind of device
as JAX; otherwise the table says why it does not.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from generation_speed import interleave

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "vocab_size": 128_256, "num_layers": 32, "hidden_size": 4096, "num_heads": 32, "num_key_value_heads": 8,
        "head_size": 128, "intermediate_size": 14_336, "max_positions": 131_072, "dtype": "bfloat16",
    },
    "tiny": {
        "vocab_size": 512, "num_layers": 2, "hidden_size": 128, "num_heads": 4, "num_key_value_heads": 2,
        "head_size": 32, "intermediate_size": 256, "max_positions": 1024, "dtype": "float32",
    },
}  # fmt: skip
BANDWIDTH_SHARE = 1 / 16
"""Of the device's memory, the array that bandwidth is measured on; at most `MOST_BANDWIDTH_BYTES`."""
MOST_BANDWIDTH_BYTES = 2**32


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True, help="sizes and dtype of the model")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens generated")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64], help="prompts at a time")
    parser.add_argument("--rounds", type=int, default=3, help="times each contender is run")
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs its part of the memory
    ours = Ours.build(options.shape)
    theirs, reason = transformers_model(options.shape)
    bandwidth = read_bandwidth()
    print(f"{options.shape}: {ours.describe()}; memory moves {bandwidth / 1e9:,.1f} GB/s")
    if theirs is not None and sum(parameter.numel() for parameter in theirs.parameters()) != ours.num_parameters:
        raise ValueError("the model in torch has another number of parameters")
    rows = [row for batch in options.batches for row in measure(ours, theirs, batch, bandwidth, options)]
    print_table(rows)
    if reason:
        print(f"transformers skipped: {reason}")


@dataclasses.dataclass(frozen=True)
class Ours:
    """The model with its parameters, unstacked, on the default device."""

    model: Any
    params: Any

    @classmethod
    def build(cls, shape: str) -> "Ours":
        """A Llama of this shape; no stacked array is ever made."""
        import flax.linen as nn
        import jax
        import jax.numpy as jnp

        from jaxcore.models import DECODER_FAMILIES, Decoder, DecoderConfig, unstack_layers

        sizes = {**DECODER_FAMILIES["llama"], **SHAPES[shape]}
        model = Decoder(DecoderConfig(architecture="llama", norm_epsilon=1e-5, rope_theta=5e5, **sizes))

        def initial() -> Any:
            variables = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
            return unstack_layers(nn.meta.unbox(variables["params"]))

        draw: Any = jax.jit(
            lambda key, shape: (0.02 * jax.random.normal(key, shape)).astype(model.config.dtype), static_argnums=1
        )
        leaves, tree = jax.tree.flatten(jax.eval_shape(initial))
        keys = jax.random.split(jax.random.key(0), len(leaves))
        drawn = [
            draw(key, leaf.shape) if leaf.ndim > 1 else jnp.ones(leaf.shape, model.config.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return cls(model, jax.block_until_ready(jax.tree.unflatten(tree, drawn)))

    @property
    def num_parameters(self) -> int:
        from jaxcore.models import count_parameters

        return count_parameters(self.params)

    def describe(self) -> str:
        """Size and place."""
        import jax

        size = self.num_parameters * jax.numpy.dtype(self.model.config.dtype).itemsize
        return f"{size / 1e9:,.3f} GB of {self.model.config.dtype} weights on {jax.devices()[0].device_kind}"

    def token_bytes(self, batch: int, length: float) -> float:
        """What one step of `batch` rows must read: weights, and the cache of `length` tokens in each row."""
        import jax

        config = self.model.config
        size = jax.numpy.dtype(config.dtype).itemsize
        table = 0 if config.tied_head else self.params["embeddings"]["word"].size
        cached = 2 * config.num_layers * config.num_key_value_heads * config.head_size * length * batch
        return (self.num_parameters - table + cached) * size

    def run(self, prompts: Any, new_tokens: int) -> Callable[[], Any]:
        """A function that generates and waits."""
        import jax

        from jaxcore.generation import generate

        return lambda: jax.block_until_ready(
            generate(self.model, self.params, prompts, max_new_tokens=new_tokens).tokens
        )


def transformers_model(shape: str) -> tuple[Any, str]:
    """The same shape in torch on the same kind of device; or None and the reason why not."""
    import jax

    try:
        import torch
        import transformers
    except ImportError:
        return None, "torch and transformers are not installed"
    platform = jax.default_backend()
    if platform not in ("cpu", "gpu") or (platform == "gpu" and not torch.cuda.is_available()):
        return None, f"torch sees no {platform}"
    sizes = SHAPES[shape]
    config = transformers.LlamaConfig(
        vocab_size=sizes["vocab_size"], hidden_size=sizes["hidden_size"], num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"], num_key_value_heads=sizes["num_key_value_heads"],
        head_dim=sizes["head_size"], intermediate_size=sizes["intermediate_size"],
        max_position_embeddings=sizes["max_positions"], tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None, dtype=sizes["dtype"],
    )  # fmt: skip
    with torch.device("cuda" if platform == "gpu" else "cpu"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, sizes["dtype"]))
    return model.eval(), ""


def transformers_run(model: Any, prompts: Any, new_tokens: int) -> Callable[[], Any]:
    """A function that generates with transformers, and waits."""
    import torch

    ids = torch.tensor(prompts, device=model.device)
    mask = torch.ones_like(ids)

    def run() -> Any:
        with torch.inference_mode():
            whole = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
        return whole.cpu()

    return run


def read_bandwidth() -> float:
    """Bytes per second that the default device moves."""
    import jax
    import jax.numpy as jnp

    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 2**32)
    size = int(min(MOST_BANDWIDTH_BYTES, BANDWIDTH_SHARE * memory))
    array = jnp.ones(size // 4, jnp.float32)
    copy: Any = jax.jit(lambda array: -array)
    total: Any = jax.jit(jnp.sum)
    rates = [moved / _fastest(lambda call=call: call(array)) for call, moved in ((copy, 2 * size), (total, size))]
    return max(rates)


def _fastest(call: Callable[[], Any], repeats: int = 7) -> float:
    import jax

    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def measure(
    ours: Ours, theirs: Any, batch: int, bandwidth: float, options: argparse.Namespace
) -> list[tuple[str, ...]]:
    """A line of the table for each contender."""
    import numpy as np

    prompts = np.random.default_rng(0).integers(0, ours.model.config.vocab_size, (batch, options.prompt))
    contenders = {"jaxcore": ours.run(prompts, options.new_tokens)}
    if theirs is not None:
        contenders["transformers"] = transformers_run(theirs, prompts, options.new_tokens)
    for call in contenders.values():  # compiled, and warm
        shape = call().shape
        if options.new_tokens not in (shape[-1], shape[-1] - options.prompt):
            raise ValueError(f"{options.new_tokens} new tokens were asked for, got an array of shape {shape}")
    seconds = {name: wall for name, (wall, _) in interleave(contenders, rounds=options.rounds).items()}
    bound = ours.token_bytes(batch, options.prompt + options.new_tokens / 2) / bandwidth
    return [
        (
            str(batch),
            name,
            f"{wall:.3f}",
            f"{batch * options.new_tokens / wall:,.1f}",
            f"{options.new_tokens * bound / wall:.0%}",
            f"{seconds.get('transformers', float('nan')) / wall:.2f}",
        )
        for name, wall in seconds.items()
    ]


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns of equal width."""
    table = [("batch", "contender", "seconds", "tokens/s", "of the bound", "over transformers"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


if __name__ == "__main__":
    main()
