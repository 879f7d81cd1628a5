"""Speed of the Encoder on CPU against transformers + torch and the matmul rate, interleaved in one run.

    python tests/benchmarks/encoder_speed.py [--rounds 7] [--batch 32] [--length 128] [--dropout 0] [--bfloat16]

MiniLM shape (6 layers, width 384, 12 heads, feed-forward 1536), float32; forward pass, and training step
(forward, backward, AdamW on donated state). torch runs its own BertModel with SDPA attention and its own
AdamW. Medians over rounds that time every contender in turn, as wall time and as CPU time (which stands up to
a busy machine). The floor is what the matrix products alone would take at the rate that XLA's own 2-D
products of the same shapes reach in the same rounds.

Measured on 2 cores of an AMD EPYC (Zen 4), jax 0.10.2, torch 2.13; seconds of wall time, torch's time over
ours, floor over ours (matmul rate 197 GFLOP/s):
                        dropout 0                    dropout 0.1
    forward     0.541 s   1.05 of torch   0.86
    step        1.763 s   1.02 of torch   0.79       1.871 s   1.12 of torch   0.75
    torch       0.569 s, 1.797 s; 0.82, 0.78         2.091 s; 0.67
    bfloat16    0.578 s, 1.819 s (this CPU's bfloat16 products win nothing through XLA)
At a measured rate of 184 GFLOP/s the step stood at 0.88 of the floor: the rate moves more than the step does.
The first version here (linen layers on three axes, einsum attention, scanned) took 0.79 s and 2.4 s of CPU time
per core, forward and gradient, where torch took 0.64 and 1.65.

What won, by CPU time per core
- Rows: flattening (batch, time) before each weight product. On three axes the gradient of a weight first
  writes out the transposed cotangent, up to 12 ms per product. With the next two: gradient 2.0 s -> 1.6 s.
- Bias and norm-scale gradients as products with ones: 0.55 ms instead of 8.4 for 4096 x 1536 outside YNNPACK.
- q, k, v as one product, split by `lax.split`, whose transpose is one concatenation (indexing pads and adds),
  with heads as the outermost axis of the columns.
- Heads before time in attention, per layer: 22 ms instead of 28 forward, 46 instead of 61 with backward.
- Unrolled layers (`scan_layers=False`): step 0.88 of the scanned one, which stacks and slices residuals.
- `erf` rather than `erfc` for GELU: about half the time.
- Forward pass without YNNPACK products (`xla_cpu_experimental_ynn_fusion_type=""`): 0.93. The same flag makes
  the step 1.2 times slower with dropout and no faster without, so the step keeps the default.
- `xla_cpu_enable_fast_min_max`: 2 ms per layer in the softmax's row maximum; NaN still spreads through exp.
- Keeping freed memory in the process and in huge pages (GLIBC_TUNABLES below): the step's gigabyte of
  temporaries otherwise costs 300,000 page faults, 0.3 s. torch has them too; its smaller blocks need them less.
- Dropout by integer comparison of 16-bit draws instead of `bernoulli`: step 2.05 s -> 1.84 to 1.93 s.

What did not
- `xla_cpu_use_onednn`, `xla_cpu_prefer_vector_width=512`, `xla_cpu_enable_fast_math`, the concurrency-optimised
  scheduler: all within the noise of 2 %.
- Keys stored transposed, weights with sources first, deferred normalisation, softmax sums as products: noise.
- Rematerialising pointwise parts alone: up to half of the temporaries saved, no time gained in the unrolled
  step (3 % in the scanned one).
- `jax.nn.dot_product_attention` on CPU, per layer: 26 ms forward against 22, 60 against 46 with backward.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

TUNABLES = ":".join(
    (
        "glibc.malloc.hugetlb=1",
        "glibc.malloc.arena_max=1",
        "glibc.malloc.mmap_threshold=4000000000",
        "glibc.malloc.trim_threshold=100000000000",
    )
)
# Products outside YNNPACK run 7 % faster in a forward pass; in a training step its column sums are worth
# keeping.
FORWARD_OPTIONS = {"xla_cpu_enable_fast_min_max": True, "xla_cpu_experimental_ynn_fusion_type": ""}
STEP_OPTIONS = {"xla_cpu_enable_fast_min_max": True}


@dataclasses.dataclass(frozen=True)
class Timing:
    """Wall and CPU seconds of one call."""

    wall: float
    cpu: float


def main() -> None:
    """Parse the command line, time all contenders in turn, print medians and ratios."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="times each contender is run")
    parser.add_argument("--batch", type=int, default=32, help="texts per batch")
    parser.add_argument("--length", type=int, default=128, help="tokens per text")
    parser.add_argument("--dropout", type=float, default=0.0, help="rate of all dropouts in the training step")
    parser.add_argument("--bfloat16", action="store_true", help="time our bfloat16 too")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    contenders = {**matmul_contenders(options), **jax_contenders(options), **torch_contenders(options)}
    timings = interleave(contenders, rounds=options.rounds)
    report(timings, options)


def interleave(contenders: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, Timing]:
    """Median timing of each contender over rounds that run all of them in turn.

    A contender runs twice in each round and the second run counts: caches then hold its own data, not its
    rival's.
    """
    samples: dict[str, list[Timing]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            call()
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            samples[name].append(Timing(time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Timing(statistics.median(s.wall for s in some), statistics.median(s.cpu for s in some))
        for name, some in samples.items()
    }


def encoder_config(options: argparse.Namespace, **changes: Any) -> Any:
    """The MiniLM shape."""
    from jaxcore.models import EncoderConfig

    sizes = {
        "num_layers": 6,
        "hidden_size": 384,
        "num_heads": 12,
        "intermediate_size": 1536,
        "pooler": "none",
    }
    dropouts = {"dropout": options.dropout, "attention_dropout": options.dropout}
    return EncoderConfig(**{**sizes, **dropouts, "scan_layers": False, **changes})


def token_ids(options: argparse.Namespace) -> Any:
    """One batch of random ids, the same for both libraries."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 30522, (options.batch, options.length)).astype(np.int32)


def forward_flops(options: argparse.Namespace) -> float:
    """Multiply-adds, counted as two, of all matrix products of one forward pass."""
    config = encoder_config(options)
    tokens, hidden = options.batch * options.length, config.hidden_size
    weights = 4 * hidden * hidden + 2 * hidden * config.intermediate_size
    return 2.0 * config.num_layers * tokens * (weights + 2 * options.length * hidden)


def matmul_contenders(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """All products of one layer with weights, forward and backward, each compiled by itself."""
    import jax
    import jax.numpy as jnp

    config, rows = encoder_config(options), options.batch * options.length
    hidden, wide = config.hidden_size, config.intermediate_size
    calls = []
    for inputs, outputs in ((hidden, 3 * hidden), (hidden, hidden), (hidden, wide), (wide, hidden)):
        x, w, g = jnp.ones((rows, inputs)), jnp.ones((inputs, outputs)), jnp.ones((rows, outputs))
        for product, left, right in (
            (lambda a, b: a @ b, x, w),
            (lambda a, b: a @ b.T, g, w),
            (lambda a, b: a.T @ b, x, g),
        ):
            calls.append((jax.jit(product, compiler_options=FORWARD_OPTIONS), left, right))

    def run() -> None:
        for _ in range(2):
            for product, left, right in calls:
                product(left, right).block_until_ready()

    return {"matmul": run}


def matmul_flops(options: argparse.Namespace) -> float:
    """What one call of the "matmul" contender computes: two layers' weight products, forward and backward."""
    config = encoder_config(options)
    weights = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    return 2 * 3 * 2.0 * options.batch * options.length * weights


def jax_contenders(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Our forward pass and training step as they should be run, and with what is worth comparing changed."""
    variants = {
        "": (encoder_config(options), (FORWARD_OPTIONS, STEP_OPTIONS)),
        " (scan)": (encoder_config(options, scan_layers=True), (FORWARD_OPTIONS, STEP_OPTIONS)),
        " (default flags)": (encoder_config(options), ({}, {})),
    }
    if options.bfloat16:
        variants[" (bfloat16)"] = (encoder_config(options, dtype="bfloat16"), (FORWARD_OPTIONS, STEP_OPTIONS))
    contenders: dict[str, Callable[[], Any]] = {}
    for suffix, (config, flags) in variants.items():
        forward, step = jax_functions(config, token_ids(options), flags)
        contenders |= {f"jaxcore forward{suffix}": forward, f"jaxcore step{suffix}": step}
    return contenders


def jax_functions(
    config: Any, ids: Any, flags: tuple[dict[str, Any], dict[str, Any]]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward pass and training step over state of their own, each compiled with its flags."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from jaxcore.models import Encoder

    model: Any = Encoder(config)
    mask = jnp.ones(ids.shape, jnp.int32)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), ids)["params"])
    optimizer = optax.adamw(1e-5, weight_decay=0.01)
    state = {"params": params, "optimizer": jax.jit(optimizer.init)(params), "key": jax.random.key(1)}

    def forward(params: Any, ids: Any, mask: Any) -> Any:
        return model.apply({"params": params}, ids, mask).last_hidden_state

    def step(state: Any, ids: Any, mask: Any) -> Any:
        key, dropout_key = jax.random.split(state["key"])

        def loss(params: Any) -> Any:
            rngs, train = {"dropout": dropout_key}, config.dropout > 0
            output = model.apply({"params": params}, ids, mask, deterministic=not train, rngs=rngs)
            return jnp.square(output.last_hidden_state.astype(jnp.float32)).mean()

        gradients = jax.grad(loss)(state["params"])
        updates, moments = optimizer.update(gradients, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimizer": moments, "key": key}

    compiled_forward = jax.jit(forward, compiler_options=flags[0])
    compiled_step = jax.jit(step, donate_argnums=0, compiler_options=flags[1])
    frozen = jax.tree.map(jnp.copy, params)

    def run_step() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled_step(state, ids, mask))

    return lambda: compiled_forward(frozen, ids, mask).block_until_ready(), run_step


def torch_contenders(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The same network, loss and optimizer in transformers and torch."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = encoder_config(options)
    model = transformers.BertModel(
        transformers.BertConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            hidden_dropout_prob=options.dropout,
            attention_probs_dropout_prob=options.dropout,
        ),
        add_pooling_layer=False,
    )
    if model.config._attn_implementation != "sdpa":
        raise RuntimeError(f"expected transformers to choose SDPA, got {model.config._attn_implementation}")
    ids = torch.tensor(token_ids(options)).long()
    mask = torch.ones_like(ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            model(ids, attention_mask=mask)

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        model(ids, attention_mask=mask).last_hidden_state.square().mean().backward()
        optimizer.step()

    return {"torch forward": forward, "torch step": step}


def report(timings: dict[str, Timing], options: argparse.Namespace) -> None:
    """Print medians and the ratios that the project promises."""
    cores = len(os.sched_getaffinity(0))
    share = matmul_flops(options) / forward_flops(options)
    floors = {}
    for kind, factor in (("forward", 1), ("step", 3)):
        floors[kind] = Timing(*(factor / share * part for part in dataclasses.astuple(timings["matmul"])))
    rate = matmul_flops(options) / timings["matmul"].wall / 1e9
    shape = f"batch {options.batch} x {options.length}, dropout {options.dropout}"
    print(f"{shape}, {options.rounds} rounds, {cores} cores")
    print(f"matmul rate {rate:.0f} GFLOP/s by wall time\n")
    print(f"{'':36}{'wall s':>8}{'cpu s':>8}  torch/this wall, cpu   floor/this wall, cpu")
    for name, timing in timings.items():
        if name == "matmul":
            continue
        kind = name.split()[1]
        torch, floor = timings[f"torch {kind}"], floors[kind]
        print(
            f"{name:36}{timing.wall:8.3f}{timing.cpu:8.3f}"
            f"  {torch.wall / timing.wall:10.2f} {torch.cpu / timing.cpu:6.2f}"
            f"  {floor.wall / timing.wall:14.2f} {floor.cpu / timing.cpu:6.2f}"
        )


if __name__ == "__main__":
    if (
        "GLIBC_TUNABLES" not in os.environ
    ):  # read by the C library at process start, so start once more; torch gets it too
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": TUNABLES})
    main()
