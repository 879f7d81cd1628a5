"""What a row or a column of the similarity matrix is reduced to, block by block: log-sum-exp, sum, maximum.

Each kind is a monoid: an `empty` state, the state `of_block`, and `merge`; so blocks, devices and ring steps may come
in any order. `finish` turns a state into the result, `pull_back` a result's cotangent into that of the block's terms.
Excluded entries are -inf under a log-sum-exp or a maximum, and 0 under a sum.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

State = tuple[Array, ...]


class Reduction(NamedTuple):
    """Which axis is kept, and how the other one is reduced.

    Attributes:
        per: "row" reduces over columns and gives one number per row; "column" the other way round.
        kind: "log_sum_exp"; "sum"; "max" gives an `Extreme`.
    """

    per: Literal["row", "column"]
    kind: Literal["log_sum_exp", "sum", "max"]

    @property
    def axis(self) -> int:
        """The axis of a block [rows, columns] that is reduced."""
        return 1 if self.per == "row" else 0

    @property
    def excluded(self) -> float:
        """The value of an entry that does not take part."""
        return 0.0 if self.kind == "sum" else -jnp.inf


class Extreme(NamedTuple):
    """The largest term and the (first) place along the other side where it stands; -inf and -1 where all are excluded.

    The gradient of ``value`` goes to that one entry.
    """

    value: Float[Array, " n"]
    place: Int[Array, " n"]


def empty(reduction: Reduction, size: int, dtype: Any) -> State:
    """The state before any block."""
    lowest = jnp.full(size, -jnp.inf, dtype)
    if reduction.kind == "log_sum_exp":
        return lowest, jnp.zeros(size, dtype)
    if reduction.kind == "sum":
        return (jnp.zeros(size, dtype),)
    return lowest, jnp.full(size, -1, jnp.int32)


def of_block(reduction: Reduction, terms: Float[Array, "rows columns"], offset: Array | int) -> State:
    """The state of one block, whose reduced axis begins at index `offset` of the whole."""
    axis = reduction.axis
    if reduction.kind == "sum":
        return (jnp.sum(terms, axis=axis),)
    largest = jnp.max(terms, axis=axis)
    if reduction.kind == "max":
        index = jnp.argmax(terms, axis=axis).astype(jnp.int32) + offset
        return largest, jnp.where(largest == -jnp.inf, -1, index)
    shift = jnp.expand_dims(_finite(largest), axis)
    return largest, jnp.sum(jnp.exp(terms - shift), axis=axis)


def merge(reduction: Reduction, a: State, b: State) -> State:
    """The state of what `a` and `b` have seen together."""
    if reduction.kind == "sum":
        return (a[0] + b[0],)
    if reduction.kind == "max":
        take_b = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] < a[1]) & (b[1] >= 0))
        return jnp.where(take_b, b[0], a[0]), jnp.where(take_b, b[1], a[1])
    largest = jnp.maximum(a[0], b[0])
    shift = _finite(largest)
    return largest, a[1] * jnp.exp(a[0] - shift) + b[1] * jnp.exp(b[0] - shift)


def merge_over_devices(reduction: Reduction, state: State, axes: tuple[str, ...]) -> State:
    """Under `shard_map`: merge every device's state of all entries; each device keeps its own share of them."""
    if reduction.kind == "sum":
        return (scatter_sum(state[0], axes),)
    largest = jax.lax.pmax(state[0], axes)
    if reduction.kind == "max":
        index = jnp.where((state[0] == largest) & (state[1] >= 0), state[1], jnp.iinfo(jnp.int32).max)
        index = jax.lax.pmin(index, axes)
        return own_share(largest, axes), own_share(jnp.where(largest == -jnp.inf, -1, index), axes)
    total = scatter_sum(state[1] * jnp.exp(state[0] - _finite(largest)), axes)
    return own_share(largest, axes), total


def finish(reduction: Reduction, state: State) -> Array | Extreme:
    """The result of a complete state; the log-sum-exp of nothing is -inf."""
    if reduction.kind == "sum":
        return state[0]
    if reduction.kind == "max":
        return Extreme(*state)
    return state[0] + jnp.log(state[1])


def pull_back(
    reduction: Reduction,
    terms: Float[Array, "rows columns"],
    result: Array | Extreme,
    cotangent: Float[Array, " n"],
    offset: Array | int,
) -> Float[Array, "rows columns"]:
    """The cotangent of a block's terms, given the finished result and its cotangent for the entries of the block."""
    axis = reduction.axis
    spread = jnp.expand_dims(cotangent, axis)
    if isinstance(result, Extreme):
        position = jax.lax.broadcasted_iota(jnp.int32, terms.shape, axis) + offset
        return jnp.where(position == jnp.expand_dims(result.place, axis), spread, 0)
    if reduction.kind == "sum":
        return jnp.broadcast_to(spread, terms.shape)
    return spread * jnp.exp(terms - jnp.expand_dims(_finite(result), axis))


def scatter_sum(array: Array, axes: tuple[str, ...]) -> Array:
    """Sum over devices, each keeping its share of the leading axis; one mesh axis at a time.

    One reduce-scatter over several axes compiles to a full all-reduce on TPU.
    """
    for axis in axes:
        array = jax.lax.psum_scatter(array, axis, scatter_dimension=0, tiled=True)
    return array


def own_share(array: Array, axes: tuple[str, ...]) -> Array:
    """This device's share of the leading axis of an array that all devices hold."""
    share = array.shape[0] // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(axes) * share, share)


def _finite(value: Array) -> Array:
    """-inf (nothing seen yet) as 0, so that ``exp(-inf - shift)`` is 0 and never NaN."""
    return jnp.where(value == -jnp.inf, 0, value)
