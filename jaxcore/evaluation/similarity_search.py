"""Exact search over similarities that are never stored: the k nearest keys, and the ranks of known targets.

Queries and keys meet in tiles of `query_block` x `key_block` float32 scores; what is kept per query is k candidates or
a few counts. Memory beyond inputs and results is a few tiles, so a million queries against a million keys is a matter
of time only. On a mesh both sides stay sharded: a block of queries from every device visits every shard of the keys.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, ArrayLike, Float, Int

from jaxcore.distributed import BATCH_AXES
from jaxcore.evaluation.input_checks import positive_integer
from jaxcore.losses.pair_reductions import scatter_sum
from jaxcore.losses.similarity import similarity_vectors

QUERY_BLOCK, KEY_BLOCK = 2048, 16384  # one tile: 128 MiB of float32, large enough to hide selection behind the product
_COUNTED_AT_ONCE = (1 << 15) - 1  # keys of a tile whose two counts fit into one int32


class TopK(NamedTuple):
    """The best keys of every query, best first.

    Attributes:
        scores: [n, k] float32.
        indices: [n, k] rows of `keys`; of equal scores the lower index comes first.
    """

    scores: Float[Array, "n k"]
    indices: Int[Array, "n k"]


class RankCounts(NamedTuple):
    """Where targets stand among all keys; from it follows the rank under any treatment of ties.

    Attributes:
        above: [n, p] keys that score higher than the target; -1 where the target is padding.
        equal: [n, p] other keys that score the same, 0 at padding.
    """

    above: Int[Array, "n p"]
    equal: Int[Array, "n p"]


def top_k(
    queries: Float[ArrayLike, "n dim"],
    keys: Float[ArrayLike, "m dim"],
    *,
    k: int,
    excluded: Int[ArrayLike, "n"] | None = None,
    normalize: bool = True,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
    mesh: Mesh | None = None,
) -> TopK:
    """The k keys of largest ``s_ij = <q_i, k_j>`` for every query, exactly.

    Scores accumulate in float32 whatever the inputs. A tile is cut into groups of neighbouring keys; the k groups of
    largest maximum hold its k best keys, so selection reads the tile once and sorts a small part of it. Scores that
    agree up to the rounding of a float32 product may change places between block sizes or devices; equal ones do not.

    Args:
        queries, keys: any float dtype. bfloat16 operands are multiplied as they are, float32 in full precision.
        k: 1 <= k <= m (m - 1 with `excluded`).
        excluded: [n] the one key that a query must not find (itself, when a corpus is searched with itself).
        normalize: cosines (a zero vector has cosine 0 with anything); False for inner products of the vectors as given.
        query_block, key_block: shape of a tile; they bound memory, 4 bytes x query_block x key_block.
        mesh: shard queries and keys over its batch axes; any n and m (padded where they do not divide). The result is
            sharded like the queries.
    Raises:
        ValueError: shapes that do not fit, no rows, not floating, NaN or infinity, k or a block out of range,
            `excluded` not [n] or outside 0..m-1.
    """
    queries, keys = _checked_sides(queries, keys)
    most = keys.shape[0] - (excluded is not None)
    if positive_integer("k", k) > most:
        raise ValueError(f"k must be at most {most} for {keys.shape[0]} keys, got {k}; ask for fewer")
    plan = _Plan(
        positive_integer("query_block", query_block), positive_integer("key_block", key_block), normalize, mesh
    )
    if excluded is None:
        return _top_k(plan, k, queries, keys)
    excluded = _checked_indices("excluded", excluded, queries.shape[:1], keys.shape[0], lowest=0)
    return _without(_top_k(plan, k + 1, queries, keys), excluded)


def target_ranks(
    queries: Float[ArrayLike, "n dim"],
    keys: Float[ArrayLike, "m dim"],
    targets: Int[ArrayLike, "n"] | Int[ArrayLike, "n p"],
    *,
    normalize: bool = True,
    tie_tolerance: float = 1e-6,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
    mesh: Mesh | None = None,
) -> RankCounts:
    """How many keys score above each target of each query, and how many equally; nothing is sorted.

    ``above = #{j != t : s_ij > s_it + e}``, ``equal = #{j != t : |s_ij - s_it| <= e}`` with
    ``e = tie_tolerance |q_i| |k_t|``: one float32 product rounds differently in different places of a tile, and a copy
    of the target must count as equal wherever it lies. The work is one product of all queries with all keys, plus one
    pass over the scores per target.

    Args:
        queries, keys, normalize, query_block, key_block, mesh: as in `top_k`.
        targets: [n], or [n, p] padded with -1: rows of `keys`.
        tie_tolerance: relative to the largest score that the two norms allow; 0 compares the rounded scores.
    Raises:
        ValueError: as `top_k`; targets of another length, outside -1..m-1, repeated for one query, or all padding for
            a query; a negative tolerance.
    """
    queries, keys = _checked_sides(queries, keys)
    if jnp.ndim(targets) not in (1, 2):
        raise ValueError(f"targets must be [n] or [n, p], got shape {jnp.shape(targets)}")
    columns = jnp.reshape(jnp.asarray(targets), (jnp.shape(targets)[0], -1))
    columns = _checked_indices("targets", columns, (queries.shape[0], columns.shape[1]), keys.shape[0], lowest=-1)
    _check_targets(columns)
    if not tie_tolerance >= 0:
        raise ValueError(f"tie_tolerance must be >= 0, got {tie_tolerance!r}")
    key_block = min(positive_integer("key_block", key_block), _COUNTED_AT_ONCE)
    plan = _Plan(positive_integer("query_block", query_block), key_block, normalize, mesh)
    return _target_ranks(plan, queries, keys, columns, jnp.float32(tie_tolerance))


# ---- checks ------------------------------------------------------------------------------------------------


def _checked_sides(queries: Any, keys: Any) -> tuple[Array, Array]:
    sides = []
    for name, side in (("queries", queries), ("keys", keys)):
        vectors = jnp.asarray(side)
        if vectors.ndim != 2 or 0 in vectors.shape or not jnp.issubdtype(vectors.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating and [rows, dim], got {vectors.dtype} {vectors.shape}")
        if _at_hand(vectors) and (bad := int(jnp.sum(~jnp.isfinite(vectors).all(axis=1)))):
            raise ValueError(f"{name} has {bad} rows with NaN or infinity of {len(vectors)}; drop or repair them")
        sides.append(vectors)
    if sides[0].shape[1] != sides[1].shape[1]:
        raise ValueError(f"queries {sides[0].shape} and keys {sides[1].shape} differ in width; embed both alike")
    return sides[0], sides[1]


def _checked_indices(name: str, values: Any, shape: tuple[int, ...], num_keys: int, *, lowest: int) -> Array:
    indices = jnp.asarray(values)
    if indices.shape != shape or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers of shape {shape}, got {indices.dtype} {indices.shape}")
    if _at_hand(indices) and (int(indices.min()) < lowest or int(indices.max()) >= num_keys):
        raise ValueError(
            f"{name} must lie in {lowest}..{num_keys - 1} for {num_keys} keys, "
            f"got {int(indices.min())}..{int(indices.max())}"
        )
    return indices.astype(jnp.int32)


def _check_targets(targets: Int[Array, "n p"]) -> None:
    if not _at_hand(targets):
        return
    rows = np.sort(np.asarray(targets), axis=1)
    empty = np.flatnonzero(rows[:, -1] < 0)
    if empty.size:
        raise ValueError(f"{empty.size} queries have no target (all -1), first query {empty[0]}; drop those queries")
    repeated = np.flatnonzero(((rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)).any(axis=1))
    if repeated.size:
        raise ValueError(f"{repeated.size} queries name a target twice, first query {repeated[0]}; list each key once")


def _at_hand(values: Array) -> bool:
    """Whether the values can be read now, on this process."""
    return not isinstance(values, jax.core.Tracer) and values.is_fully_addressable


# ---- walking over tiles --------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """What is fixed at compilation."""

    query_block: int
    key_block: int
    normalize: bool
    mesh: Mesh | None

    @property
    def axes(self) -> tuple[str, ...]:
        mesh = self.mesh
        return () if mesh is None else tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)

    @property
    def rows_counted(self) -> int:
        """Rows of a tile counted at once: the CPU stores the integers that it sums, accelerators never do."""
        platform = jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform
        return 64 if platform == "cpu" else self.query_block

    def rows_per_device(self, shard: "_Keys") -> int:
        """Rows that each device adds to a block of queries; more where a shard is too short to fill a tile."""
        widening = min(8, max(1, self.key_block // shard.vectors.shape[0]))
        return max(1, widening * self.query_block // self.num_devices)

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in self.axes) if self.mesh is not None else 1


class _Keys(NamedTuple):
    """The keys that a device holds: rows first .. first + len(vectors) of all keys, of which those < total exist."""

    vectors: Float[Array, "m dim"]
    first: Int[Array, ""] | int
    total: int
    padded: bool


def _over_keys(plan: _Plan, queries: Array, keys: _Keys, step: Callable[[Any, Array, Array], Any], carry: Any) -> Any:
    """``carry = step(carry, scores [b, c], columns [c])`` over the keys in order; columns are rows of all keys.

    Scores of padding are -inf.
    """
    size = min(plan.key_block, keys.vectors.shape[0])
    whole = keys.vectors.shape[0] // size

    def tile(carry: Any, start: Any, block: Array) -> Any:
        scores = _scores(queries, similarity_vectors(block, normalize=plan.normalize))
        columns = keys.first + start + jnp.arange(block.shape[0], dtype=jnp.int32)
        return step(carry, jnp.where(columns < keys.total, scores, -jnp.inf) if keys.padded else scores, columns)

    def scanned(carry: Any, start: Array) -> tuple[Any, None]:
        return tile(carry, start, jax.lax.dynamic_slice_in_dim(keys.vectors, start, size)), None

    carry, _ = jax.lax.scan(scanned, carry, size * jnp.arange(whole, dtype=jnp.int32))
    rest = keys.vectors[whole * size :]
    return tile(carry, whole * size, rest) if rest.shape[0] else carry


def _over_queries(function: Callable[..., Any], rows: tuple[Array, ...], size: int) -> Any:
    """``function(*rows)`` on `size` rows at a time; copies no rows but the block at work."""
    num_rows = rows[0].shape[0]
    size = min(size, num_rows)
    whole = num_rows // size

    def block(start: Array) -> Any:
        return function(*(jax.lax.dynamic_slice_in_dim(array, start, size) for array in rows))

    results = jax.lax.map(block, size * jnp.arange(whole, dtype=jnp.int32))
    results = jax.tree.map(lambda array: array.reshape(whole * size, *array.shape[2:]), results)
    if whole * size == num_rows:
        return results
    rest = function(*(array[whole * size :] for array in rows))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), results, rest)


def _on_mesh(plan: _Plan, function: Callable[..., Any], rows: tuple[Array, ...], keys: Array) -> Any:
    """``function(*local rows, local keys)`` on every device; padding added before, and taken off the results after."""
    num_rows, num_keys, devices = rows[0].shape[0], keys.shape[0], plan.num_devices

    def padded(array: Array) -> Array:
        return jnp.pad(array, ((0, -array.shape[0] % devices), *((0, 0),) * (array.ndim - 1)))

    def local(*arrays: Array) -> Any:
        shard = arrays[-1]
        first = jax.lax.axis_index(plan.axes) * shard.shape[0]
        return function(*arrays[:-1], _Keys(shard, first, num_keys, bool(num_keys % devices)))

    split = PartitionSpec(plan.axes)
    results = jax.shard_map(local, mesh=plan.mesh, in_specs=split, out_specs=split, check_vma=False)(
        *map(padded, (*rows, keys))
    )
    return jax.tree.map(lambda array: array[:num_rows], results)


def _gather(plan: _Plan, array: Array) -> Array:
    for axis in reversed(plan.axes):  # one gather over several axes compiles to a full all-reduce on TPU
        array = jax.lax.all_gather(array, axis, tiled=True)
    return array


def _scores(queries: Float[Array, "b dim"], keys: Float[Array, "c dim"]) -> Float[Array, "b c"]:
    """Float32 products in full precision, bfloat16 ones with float32 sums."""
    if queries.dtype != keys.dtype:
        dtype = jnp.promote_types(queries.dtype, keys.dtype)
        queries, keys = queries.astype(dtype), keys.astype(dtype)
    return jnp.einsum(
        "id,jd->ij",
        queries,
        keys,
        precision=jax.lax.Precision.DEFAULT if queries.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


# ---- the k best keys -------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 1))
def _top_k(plan: _Plan, k: int, queries: Array, keys: Array) -> TopK:
    if not plan.axes:
        everything = _Keys(keys, 0, keys.shape[0], False)
        return _over_queries(lambda rows: _nearest(plan, k, rows, everything), (queries,), plan.query_block)

    def on_device(local_queries: Array, shard: _Keys) -> TopK:
        def block(rows: Array) -> TopK:
            found = _nearest(plan, k, _gather(plan, rows), shard)
            # Every device now has candidates for the rows of all devices: each gets back those of its own rows, in
            # the order of the shards, which is the order of the keys.
            exchanged = jax.tree.map(lambda array: _exchange(plan, array), found)
            return _best(exchanged.scores, exchanged.indices, k)

        return _over_queries(block, (local_queries,), plan.rows_per_device(shard))

    return _on_mesh(plan, on_device, (queries,), keys)


def _exchange(plan: _Plan, found: Array) -> Array:
    """[devices * b, k], keys here for the rows of all devices -> [b, devices * k], all keys for the rows here."""
    of_device = found.reshape(plan.num_devices, -1, found.shape[1])
    received = jax.lax.all_to_all(of_device, plan.axes, split_axis=0, concat_axis=0)
    return jnp.moveaxis(received, 0, 1).reshape(received.shape[1], -1)


def _nearest(plan: _Plan, k: int, queries: Array, keys: _Keys) -> TopK:
    """Running best of the key blocks for one block of queries."""

    def step(running: TopK, scores: Array, columns: Array) -> TopK:
        found, places = _tile_best(scores, min(k, scores.shape[1]))
        return _best(
            jnp.concatenate([running.scores, found], axis=1),
            jnp.concatenate([running.indices, columns[0] + places], axis=1),
            k,
        )

    queries = similarity_vectors(queries, normalize=plan.normalize)
    shape = (queries.shape[0], k)
    nothing = TopK(jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32))
    return _over_keys(plan, queries, keys, step, nothing)


def _best(scores: Float[Array, "b c"], indices: Int[Array, "b c"], k: int) -> TopK:
    best, places = jax.lax.top_k(scores, k)  # of equal scores the first, which is the lower index here
    return TopK(best, jnp.take_along_axis(indices, places, axis=1))


def _tile_best(scores: Float[Array, "b c"], k: int) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """`jax.lax.top_k` of a wide tile, through the maxima of groups of neighbours.

    An entry outside the k groups of largest maximum (first ones on ties) has k entries, one per chosen group, that are
    larger or equal and earlier: it is not among the k best. Read in their order, the chosen groups keep ties stable.
    """
    width = scores.shape[1]
    size = 1 << max(0, round(math.log2(max(1.0, width / k)) / 2))  # balances width / size maxima with k * size entries
    groups = -(-width // size)
    if size < 4 or groups < 2 * k:
        best, places = jax.lax.top_k(scores, k)
        return best, places
    filled = jnp.pad(scores, ((0, 0), (0, groups * size - width)), constant_values=-jnp.inf)
    grouped = filled.reshape(-1, groups, size)
    _, chosen = jax.lax.top_k(grouped.max(axis=2), k)
    chosen = jnp.sort(chosen, axis=1)
    candidates = jnp.take_along_axis(grouped, chosen[:, :, None], axis=1).reshape(-1, k * size)
    best, places = jax.lax.top_k(candidates, k)
    return best, jnp.take_along_axis(chosen, places // size, axis=1) * size + places % size


@jax.jit
def _without(found: TopK, excluded: Int[Array, "n"]) -> TopK:
    """k + 1 found keys less the excluded one, or less the last where it was not found."""
    k = found.indices.shape[1] - 1
    kept = jnp.argsort(found.indices == excluded[:, None], axis=1, stable=True)[:, :k]
    return TopK(*(jnp.take_along_axis(array, kept, axis=1) for array in found))


# ---- the ranks of targets --------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(0,))
def _target_ranks(
    plan: _Plan, queries: Array, keys: Array, targets: Int[Array, "n p"], tolerance: Float[Array, ""]
) -> RankCounts:
    if not plan.axes:
        everything = _Keys(keys, 0, keys.shape[0], False)

        def block(rows: Array, of_rows: Array) -> RankCounts:
            unit = similarity_vectors(rows, normalize=plan.normalize)
            return _counts(plan, unit, everything, of_rows, *_target_band(plan, unit, everything, of_rows, tolerance))

        return _over_queries(block, (queries, targets), plan.query_block)

    def on_device(local_queries: Array, local_targets: Array, shard: _Keys) -> RankCounts:
        def block(rows: Array, of_rows: Array) -> RankCounts:
            unit = similarity_vectors(_gather(plan, rows), normalize=plan.normalize)
            everyones = _gather(plan, of_rows)
            low, high = jax.lax.psum(_target_band(plan, unit, shard, everyones, tolerance), plan.axes)
            counts = _counts(plan, unit, shard, everyones, low, high)
            # Padding is -1 on every device: summed as 0 and restored, else it would become -devices.
            counts = jax.tree.map(lambda c: scatter_sum(jnp.maximum(c, 0), plan.axes), counts)
            return counts._replace(above=jnp.where(of_rows < 0, -1, counts.above))

        return _over_queries(block, (local_queries, local_targets), plan.rows_per_device(shard))

    return _on_mesh(plan, on_device, (queries, targets), keys)


def _target_band(
    plan: _Plan, queries: Array, keys: _Keys, targets: Int[Array, "b p"], tolerance: Float[Array, ""]
) -> tuple[Float[Array, "b p"], Float[Array, "b p"]]:
    """Scores that count as equal to each target's, from and to; zero where the target is not among these keys."""
    size = keys.vectors.shape[0]
    query_norms = jnp.linalg.norm(queries.astype(jnp.float32), axis=1)

    def of_one(target: Int[Array, "b"]) -> tuple[Array, Array]:
        place = target - keys.first
        vectors = similarity_vectors(keys.vectors[jnp.clip(place, 0, size - 1)], normalize=plan.normalize)
        vectors = vectors.astype(jnp.float32)
        score = jnp.einsum("bd,bd->b", queries.astype(jnp.float32), vectors, precision=jax.lax.Precision.HIGHEST)
        slack = tolerance * query_norms * jnp.linalg.norm(vectors, axis=1)
        here = (place >= 0) & (place < size) & (target >= 0)
        return jnp.where(here, score - slack, 0.0), jnp.where(here, score + slack, 0.0)

    low, high = jax.lax.map(of_one, targets.T)  # one at a time: p rows of keys per query could outgrow a tile
    return low.T, high.T


def _counts(
    plan: _Plan, queries: Array, keys: _Keys, targets: Int[Array, "b p"], low: Array, high: Array
) -> RankCounts:
    def step(counts: RankCounts, scores: Array, columns: Array) -> RankCounts:
        def of_rows(scores: Array, *of_targets: Array) -> Array:
            return jax.lax.map(lambda one: _packed_counts(scores, columns, *one), tuple(x.T for x in of_targets)).T

        packed = _over_queries(of_rows, (scores, targets, low, high), plan.rows_counted)
        above, reached = packed >> 16, packed & 0xFFFF
        return RankCounts(counts.above + above, counts.equal + reached - above)

    none = jnp.zeros(targets.shape, jnp.int32)
    counts = _over_keys(plan, queries, keys, step, RankCounts(none, none))
    return RankCounts(jnp.where(targets < 0, -1, counts.above), jnp.where(targets < 0, 0, counts.equal))


def _packed_counts(scores: Array, columns: Array, target: Array, low: Array, high: Array) -> Int[Array, "b"]:
    """Keys above in the upper, keys above or equal in the lower 16 bits: one pass over the scores counts both."""
    count = jnp.where(scores > high[:, None], 1 + (1 << 16), (scores >= low[:, None]).astype(jnp.int32))
    return jnp.sum(jnp.where(columns[None, :] != target[:, None], count, 0), axis=1, dtype=jnp.int32)
