"""Symmetric InfoNCE, value and gradients: time against the matrix products it needs, and against peers in one run.

    python tests/benchmarks/contrastive_speed.py [--rows 8192 16384] [--dim 512] [--rounds 5] [--dtype float32]

Floor: 8 N^2 d FLOPs (one product forward; recomputing it and two more backward) at the rate of plain products of
blocks, [1024, d] x [d, 1024] and its result x [1024, d], measured in the same round. Where the loss keeps similarities
instead of recomputing them it can be below that; the textbook form recomputes nothing (6 N^2 d). Peers: the textbook
form in JAX (`jnp`, jitted), the textbook form in torch (open_clip's loss: cross-entropy of logits and of their
transpose), and `optax.losses.ntxent` at the largest N that it survives, against
`jaxcore.losses.supervised_contrastive`. Rounds interleave all of them; medians are printed.
A third form, with the memory of `jax.checkpoint`, is not faster than the textbook one and is left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcore.losses import supervised_contrastive, symmetric_info_nce

TEMPERATURE = 0.05
BLOCK, REPEATS = 1024, 64


def unit_batch(seed: int, rows: int, dim: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ours(queries: jax.Array, keys: jax.Array) -> jax.Array:
    return symmetric_info_nce(queries, keys, temperature=TEMPERATURE, normalize=False)


def textbook(queries: jax.Array, keys: jax.Array) -> jax.Array:
    logits = queries @ keys.T / TEMPERATURE
    diagonal = jnp.diagonal(logits)
    forward = jax.nn.logsumexp(logits, axis=1) - diagonal
    return jnp.mean(forward + jax.nn.logsumexp(logits, axis=0) - diagonal) / 2


@jax.jit
def block_products(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """`REPEATS` times the two plain products of a block: 4 `BLOCK`^2 d FLOPs each time."""

    def products(_: jax.Array, total: jax.Array) -> jax.Array:
        left = queries + 0 * total[0, 0].astype(queries.dtype)  # or the product would be lifted out of the loop
        similarity = jnp.matmul(left, keys.T, preferred_element_type=jnp.float32)
        return jnp.matmul(similarity.astype(keys.dtype), keys, preferred_element_type=jnp.float32)

    return jax.lax.fori_loop(0, REPEATS, products, jnp.zeros(keys.shape, jnp.float32)).astype(keys.dtype)


def torch_call(queries: np.ndarray, keys: np.ndarray) -> Callable[[], float] | None:
    """One forward and backward pass of open_clip's formula; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    q, k = (torch.tensor(x, requires_grad=True) for x in (queries, keys))
    labels = torch.arange(len(queries))

    def call() -> float:
        q.grad = k.grad = None
        logits = q @ k.T / TEMPERATURE
        entropy = torch.nn.functional.cross_entropy
        loss = (entropy(logits, labels) + entropy(logits.T, labels)) / 2
        loss.backward()
        return float(loss.detach())

    return call


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def compare(rows: int, dim: int, rounds: int, dtype: str) -> None:
    """Print the ratios for one batch size."""
    host = unit_batch(0, rows, dim), unit_batch(1, rows, dim)
    queries, keys = (jnp.asarray(x, dtype) for x in host)
    step = jax.jit(jax.value_and_grad(ours, (0, 1)))
    compiled = step.lower(queries, keys).compile()
    calls: dict[str, Callable[[], object]] = {"ours": lambda: compiled(queries, keys)}
    dense = jax.jit(jax.value_and_grad(textbook, (0, 1)))
    calls["jax textbook"] = lambda: dense(queries, keys)
    if (in_torch := torch_call(*host)) is not None and dtype == "float32":
        calls["torch textbook"] = in_torch
    calls["product"] = lambda: block_products(queries[:BLOCK], keys[:BLOCK])
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(seconds(call))
    median = {name: statistics.median(times) for name, times in taken.items()}
    rate = REPEATS * 4 * BLOCK * BLOCK * dim / median["product"]
    floor = 8 * rows * rows * dim / rate
    memory = compiled.memory_analysis()
    print(f"N {rows}, d {dim}, {dtype}: product {rate / 1e9:.0f} GFLOP/s, floor {floor:.2f} s")
    print(f"  ours {median['ours']:.2f} s = {median['ours'] / floor:.2f} x floor", end="")
    print(f", extra memory {(memory.temp_size_in_bytes) / 2**20:.0f} MiB")
    for name in ("jax textbook", "torch textbook"):
        if name in median:
            print(f"  {name} {median[name]:.2f} s: ours is {median[name] / median['ours']:.2f} x as fast")


def optax_seconds(rows: int, dim: int) -> None:
    """In a process of its own: seconds of optax's ntxent, or death by memory."""
    import resource

    import optax

    limit = 20 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    embeddings = jnp.asarray(unit_batch(0, rows, dim))
    labels = jnp.arange(rows) // 2
    step = jax.jit(jax.value_and_grad(lambda e: optax.losses.ntxent(e, labels, TEMPERATURE)))
    jax.block_until_ready(step(embeddings))
    print(json.dumps(statistics.median(seconds(lambda: step(embeddings)) for _ in range(3))))


def compare_with_optax(dim: int) -> None:
    """Print the ratio at the largest N that optax survives."""
    survived = None
    for rows in (512, 1024, 2048, 4096):
        command = [sys.executable, os.path.abspath(__file__), "--optax", str(rows), "--dim", str(dim)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"optax.losses.ntxent does not survive N {rows} (exit {done.returncode})")
            break
        survived = rows, float(done.stdout.strip().splitlines()[-1])
    if survived is None:
        return
    rows, theirs = survived
    embeddings, labels = jnp.asarray(unit_batch(0, rows, dim)), jnp.arange(rows) // 2
    step = jax.jit(
        jax.value_and_grad(lambda e: supervised_contrastive(e, labels, temperature=TEMPERATURE, normalize=False))
    )
    jax.block_until_ready(step(embeddings))
    own = statistics.median(seconds(lambda: step(embeddings)) for _ in range(5))
    print(f"optax.losses.ntxent at N {rows}: {theirs:.2f} s, ours {own:.3f} s: {theirs / own:.0f} x as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[8192, 16384])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--optax", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.optax:
        optax_seconds(options.optax, options.dim)
        return
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} cores")
    for rows in options.rows:
        compare(rows, options.dim, options.rounds, options.dtype)
    compare_with_optax(options.dim)


if __name__ == "__main__":
    main()
