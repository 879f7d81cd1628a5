"""Exact nearest neighbours and ranks of targets: time against the matrix product they need, and against peers.

    python tests/benchmarks/retrieval_speed.py [--rows 16384] [--dim 512] [--k 10] [--rounds 5] [--dtype float32]

Floor: 2 n^2 d FLOPs at the rate of a product [2048, d] x [d, n] measured in the same round. Peers, each on all rows or
on as many queries as its score matrix fits into 2 GiB, time scaled up: a full NumPy product with `argpartition`, a full
torch product with `topk`, and scikit-learn's brute-force `NearestNeighbors` (which works in chunks itself). Rounds
interleave all of them; medians are printed. Peers that are not installed are left out. On an accelerator the peers that
run on the host are left out, and the dense JAX form (product, then `jax.lax.top_k`) is the comparison.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcore.evaluation.similarity_search import target_ranks, top_k

SCORE_BYTES = 2 << 30


def unit_rows(seed: int, rows: int, dim: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def numpy_search(queries: np.ndarray, keys: np.ndarray, k: int) -> np.ndarray:
    scores = queries @ keys.T
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1), axis=1)


def torch_search(queries: np.ndarray, keys: np.ndarray, k: int) -> Callable[[], np.ndarray] | None:
    try:
        import torch
    except ImportError:
        return None
    q, c = torch.tensor(queries), torch.tensor(keys)
    return lambda: torch.topk(q @ c.T, k, dim=1).indices.numpy()


def sklearn_search(queries: np.ndarray, keys: np.ndarray, k: int) -> Callable[[], np.ndarray]:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(keys)
    return lambda: index.kneighbors(queries, return_distance=False)


@jax.jit
def product(queries: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.einsum("id,jd->ij", queries, keys, precision="highest", preferred_element_type=jnp.float32)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def compare(rows: int, dim: int, k: int, rounds: int, dtype: str) -> None:
    """Print the ratios for one size."""
    host = unit_rows(0, rows, dim), unit_rows(1, rows, dim)
    queries, keys = (jnp.asarray(x, dtype) for x in host)
    fits = min(rows, SCORE_BYTES // (4 * rows))
    search = jax.jit(lambda q, c: top_k(q, c, k=k)).lower(queries, keys).compile()
    ranks = jax.jit(lambda q, c, t: target_ranks(q, c, t))
    targets = jnp.arange(rows)
    side = min(2048, rows)
    dense = jax.jit(lambda q, c: jax.lax.top_k(product(q, c), k)[1])
    calls: dict[str, tuple[Callable[[], object], float]] = {
        "product": (lambda: product(queries[:side], keys), rows / side),
        "top_k": (lambda: search(queries, keys), 1.0),
        "target_ranks": (lambda: ranks(queries, keys, targets), 1.0),
        "dense jax": (lambda: dense(queries[:fits], keys), rows / fits),
    }
    if jax.default_backend() == "cpu" and dtype == "float32":
        part = host[0][:fits]
        calls["numpy argpartition"] = (lambda: numpy_search(part, host[1], k), rows / fits)
        calls["scikit-learn brute"] = (sklearn_search(host[0], host[1], k), 1.0)
        if (in_torch := torch_search(part, host[1], k)) is not None:
            calls["torch topk"] = (in_torch, rows / fits)
    agreement = {name: call() for name, (call, _) in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, scale) in calls.items():
            taken[name].append(scale * seconds(call))
    report(rows, dim, k, dtype, {name: statistics.median(times) for name, times in taken.items()})
    memory: Any = search.memory_analysis()
    print(f"  extra memory of top_k {memory.temp_size_in_bytes / 2**20:.0f} MiB", end="")
    print(f"; the score matrix is {4 * rows * rows / 2**20:.0f} MiB")
    found = np.asarray(search(queries, keys).indices)
    for name, indices in agreement.items():
        if name not in ("product", "top_k", "target_ranks"):
            same = float(np.mean(np.asarray(indices) == found[: len(np.asarray(indices))]))
            print(f"  {name} returns the same key at {100 * same:.3f} % of places")


def report(rows: int, dim: int, k: int, dtype: str, median: dict[str, float]) -> None:
    floor = median["product"]
    rate = 2 * rows * rows * dim / floor
    print(f"n = m = {rows}, d {dim}, k {k}, {dtype}: product {rate / 1e9:.0f} GFLOP/s, floor {floor:.2f} s")
    for name in ("top_k", "target_ranks"):
        print(f"  {name} {median[name]:.2f} s = {median[name] / floor:.2f} x floor")
    for name in median.keys() - {"product", "top_k", "target_ranks"}:
        print(f"  {name} {median[name]:.2f} s: top_k is {median[name] / median['top_k']:.2f} x as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[16384])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, nargs="+", default=[10])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    for rows in arguments.rows:
        for k in arguments.k:
            compare(rows, arguments.dim, k, arguments.rounds, arguments.dtype)


if __name__ == "__main__":
    main()
