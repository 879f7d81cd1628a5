"""The pair engine: what every pairwise contrastive loss needs to know about each row of the similarity matrix.

A loss never sees an N x N mask. Each side of the matrix is a `Side`: vectors, with one label and one id per
vector. Row i and column j are a *positive* pair when their labels agree and their ids differ; column j is a
*candidate* of row i when their ids differ (so a vector is never contrasted with itself). A negative id equals no
other id. `row_statistics` reduces each row to the three numbers that SupCon, InfoNCE and NT-Xent are made of.

On a mesh the rows stay where they are and the columns are gathered, one mesh axis at a time; the gradient of the
gathered columns is summed in float32 and scattered back axis by axis, because one reduce-scatter over several
axes compiles to a full all-reduce on TPU.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxcore.distributed import BATCH_AXES


@struct.dataclass
class Side:
    """One side of a similarity matrix.

    Attributes:
        vectors: [n, dim]; already normalised when the similarity is a cosine.
        labels: [n]; equal labels make a positive pair.
        ids: [n]; equal non-negative ids are the same item and are excluded from the row altogether.
    """

    vectors: Float[Array, "n dim"]
    labels: Int[Array, " n"]
    ids: Int[Array, " n"]


class RowStatistics(NamedTuple):
    """Per row i: ``log sum_{j in candidates} exp(l_ij)``, ``sum_{j in positives} l_ij``, ``|positives|``."""

    log_normalizer: Float[Array, " n"]
    positive_sum: Float[Array, " n"]
    positive_count: Float[Array, " n"]


def row_statistics(
    rows: Side, columns: Side, *, temperature: float | Float[Array, ""], mesh: Mesh | None = None
) -> RowStatistics:
    """Reduce each row of ``l_ij = <r_i, c_j> / temperature`` to its `RowStatistics`.

    Args:
        rows, columns: the two sides, global arrays. With `mesh`, both are (re)sharded over its batch axes.
        temperature: positive scalar, may be a traced parameter.
        mesh: where given, the work is spread by `jax.shard_map`; the result equals the one without to rounding.
    """
    if mesh is None or mesh.size == 1:
        return _block_statistics(rows, columns, jnp.asarray(temperature, jnp.float32))
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    split = PartitionSpec(axes)
    side = Side(split, split, split)  # type: ignore[arg-type]

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(side, side, PartitionSpec()),
        out_specs=RowStatistics(split, split, split),  # type: ignore[arg-type]
        check_vma=False,
    )
    def on_each_device(rows: Side, columns: Side, temperature: Array) -> RowStatistics:
        gathered = Side(
            gather_vectors(columns.vectors, axes),
            _all_gather(columns.labels, axes),
            _all_gather(columns.ids, axes),
        )
        return _block_statistics(rows, gathered, temperature)

    return on_each_device(rows, columns, jnp.asarray(temperature, jnp.float32))


def _block_statistics(rows: Side, columns: Side, temperature: Float[Array, ""]) -> RowStatistics:
    logits = jnp.einsum("id,jd->ij", rows.vectors, columns.vectors, preferred_element_type=jnp.float32) / temperature
    same_item = (rows.ids[:, None] == columns.ids[None, :]) & (rows.ids[:, None] >= 0)
    positive = (rows.labels[:, None] == columns.labels[None, :]) & ~same_item
    return RowStatistics(
        log_normalizer=jax.nn.logsumexp(logits, axis=1, where=~same_item),
        positive_sum=jnp.sum(logits, axis=1, where=positive),
        positive_count=jnp.sum(positive, axis=1, dtype=jnp.float32),
    )


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_vectors(vectors: Float[Array, "n dim"], axes: tuple[str, ...]) -> Float[Array, "total dim"]:
    """All devices' vectors in mesh order (under `shard_map`); the gradient is reduced in float32, axis by axis."""
    return _all_gather(vectors, axes)


def _gather_forward(vectors: Array, axes: tuple[str, ...]) -> tuple[Array, Array]:
    # The empty array carries the primal dtype to the backward pass: residuals must be arrays.
    return _all_gather(vectors, axes), jnp.zeros((0,), vectors.dtype)


def _gather_backward(axes: tuple[str, ...], primal: Array, cotangent: Array) -> tuple[Array]:
    gradient = cotangent.astype(jnp.float32)
    for axis in axes:
        gradient = jax.lax.psum_scatter(gradient, axis, scatter_dimension=0, tiled=True)
    return (gradient.astype(primal.dtype),)


gather_vectors.defvjp(_gather_forward, _gather_backward)


def _all_gather(array: Array, axes: tuple[str, ...]) -> Array:
    for axis in reversed(axes):  # innermost first, so that blocks come out in mesh order
        array = jax.lax.all_gather(array, axis, tiled=True)
    return array
