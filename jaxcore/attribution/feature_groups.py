"""Features as groups of input coordinates: what a perturbation keeps or replaces by its baseline, as one unit.

A group's number is written on every coordinate that belongs to it: a pytree of integer arrays that broadcast against
the inputs, either shared by the batch (like one example) or one per example. ``-1`` marks coordinates that are never
perturbed (padding, special tokens). A number in two leaves is one feature. Examples may have different features and
different numbers of them: whatever an example lacks is absent from its game and gets exactly 0.
"""

import dataclasses
import functools
import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    accumulation_dtype,
    broadcast_baseline,
    check_features_left,
    check_score,
    checked_finite,
    is_known,
)


@struct.dataclass
class FeatureGroups:
    """Feature numbers [1 or batch, ...] per leaf of the inputs (-1: never perturbed), and how many there are.

    `count` is static, so that shapes are known inside `jax.jit` when the numbers are not.
    """

    ids: Any
    count: int = struct.field(pytree_node=False)


Groups: TypeAlias = Any
"""`FeatureGroups`, a pytree of integer arrays that broadcast against the inputs, or None: each coordinate by itself."""


def token_groups(mask: Any) -> FeatureGroups:
    """One feature per real token of an embedding [batch, time, dim]; padding is never perturbed.

    The f-th real token of a text is feature f, wherever the padding lies. For several embeddings (a text pair) give
    the pytree of their masks: their tokens are numbered on, so that no two share a feature.

    Args:
        mask: [batch, time], nonzero at tokens that count; or a pytree of such arrays.

    Raises:
        ValueError: a mask that is not [batch, time], or one that leaves an example without tokens.
    """
    leaves, structure = jax.tree.flatten(mask)
    if not leaves or any(jnp.ndim(leaf) != 2 for leaf in leaves):
        raise ValueError(f"a token mask must be [batch, time]: got {[jnp.shape(leaf) for leaf in leaves]}")
    known = all(is_known(leaf) for leaf in leaves)
    numpy: Any = np if known else jnp
    before, ids = numpy.zeros((), np.int32), []
    for leaf in leaves:
        real = numpy.asarray(leaf) != 0
        number = numpy.cumsum(real, axis=1, dtype=np.int32) - 1 + numpy.expand_dims(before, -1)
        ids.append(numpy.where(real, number, -1)[..., None].astype(np.int32))
        before = before + numpy.sum(real, axis=1, dtype=np.int32)
    if known:
        check_features_left(before)
    count = int(before.max()) if known else sum(leaf.shape[1] for leaf in leaves)
    return FeatureGroups(jax.tree.unflatten(structure, ids), count)


def num_features(groups: FeatureGroups) -> int:
    """How many features there are: one more than the largest number that any example uses."""
    return groups.count


def feature_groups(groups: Groups, inputs: Inputs) -> FeatureGroups:
    """The groups in their checked form, each leaf with the rank of its leaf of the inputs.

    Raises:
        ValueError: groups of another structure, not integers, that do not broadcast against the inputs, below -1, or
            that leave an example without features; numbers unknown under a transformation and no count given.
    """
    if groups is None:
        return _every_coordinate(inputs)
    ids, count = (groups.ids, groups.count) if isinstance(groups, FeatureGroups) else (groups, None)
    given: Any = jax.tree.structure(ids)
    expected: Any = jax.tree.structure(inputs)
    if given != expected:
        raise ValueError(f"groups must have the structure of the inputs, {expected}: got {given}")
    ids = jax.tree.map(_aligned, ids, inputs)
    leaves = jax.tree.leaves(ids)
    if not all(is_known(leaf) for leaf in leaves):
        if count is None:
            raise ValueError(
                "the number of features is unknown inside jit when groups are its argument: "
                "give FeatureGroups(ids, count) or token_groups(mask)"
            )
        return FeatureGroups(ids, count)
    largest, smallest = max(leaf.max() for leaf in leaves), min(leaf.min() for leaf in leaves)
    count = int(largest) + 1 if count is None else count
    if smallest < -1 or largest >= count:
        raise ValueError(f"groups must number features 0 to {count - 1}, or -1: got {smallest} to {largest}")
    check_features_left(sum(np.sum(leaf.reshape(leaf.shape[0], -1) >= 0, axis=1) for leaf in leaves))
    return FeatureGroups(ids, count)


def present_features(groups: FeatureGroups, batch: int) -> Bool[Array, "batch features"]:
    """Which features each example has."""
    present = jnp.zeros((1, groups.count), bool)
    for ids in jax.tree.leaves(groups.ids):
        numbers = jnp.where(ids < 0, groups.count, ids).reshape(ids.shape[0], -1)
        marked = jax.vmap(lambda row: jnp.zeros(groups.count + 1, bool).at[row].set(True))(numbers)
        present = present | marked[:, : groups.count]
    return jnp.broadcast_to(present, (batch, groups.count))


def masked_inputs(
    inputs: Inputs, baseline: Inputs, groups: FeatureGroups, keep: Bool[Array, "#batch features"]
) -> Inputs:
    """``x`` where the coordinate's feature is kept (or it has none), ``x'`` where it is dropped."""
    return jax.tree.map(lambda x, b, ids: jnp.where(_gathered(keep, ids, True), x, b), inputs, baseline, groups.ids)


def spread_over_inputs(values: Float[Array, "batch features"], groups: FeatureGroups, inputs: Inputs) -> Inputs:
    """Per-feature values on every coordinate of the feature, in the inputs' shapes; 0 where there is no feature."""
    return jax.tree.map(
        lambda x, ids: jnp.broadcast_to(_gathered(values, ids, 0), x.shape).astype(accumulation_dtype(x)),
        inputs,
        groups.ids,
    )


def sum_per_feature(values: Inputs, groups: FeatureGroups) -> Float[Array, "batch features"]:
    """Sum of the values, a pytree of the inputs' shapes, over the coordinates of each feature."""

    def of_leaf(leaf: Array, ids: Array) -> Array:
        shared = tuple(axis for axis in range(1, leaf.ndim) if ids.shape[axis] == 1)
        sums = jnp.sum(leaf, axis=shared, keepdims=True).reshape(leaf.shape[0], -1)
        numbers = jnp.where(ids < 0, groups.count, ids).reshape(ids.shape[0], -1)
        add = lambda row, number: jnp.zeros(groups.count + 1, row.dtype).at[number].add(row)  # noqa: E731
        totals = jax.vmap(add, (0, None))(sums, numbers[0]) if len(ids) == 1 else jax.vmap(add)(sums, numbers)
        return totals[:, : groups.count]

    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(of_leaf, values, groups.ids)))


@dataclasses.dataclass(frozen=True)
class MaskedScore:
    """The game that perturbation methods play, ``v(keep) = score(x where kept, x' where dropped)``.

    `present` [batch, features] says which features an example has, `dtype` what sums over samples accumulate in.
    """

    score: Score
    inputs: Inputs
    baseline: Inputs
    groups: FeatureGroups
    present: Bool[Array, "batch features"]
    dtype: Any

    def __call__(self, keep: Bool[Array, "#batch features"]) -> Float[Array, " batch"]:
        return self.score(masked_inputs(self.inputs, self.baseline, self.groups, keep)).astype(self.dtype)

    def whole(self) -> Float[Array, " batch"]:
        """``v`` of all features: the score itself."""
        return self.score(self.inputs).astype(self.dtype)

    def empty(self) -> Float[Array, " batch"]:
        """``v`` of no features; coordinates without a feature stay as they are."""
        return self(jnp.zeros((1, self.groups.count), bool))

    def attributions(self, values: Float[Array, "batch features"], method: str) -> Inputs:
        """Per-feature values in the inputs' shapes; ValueError if any is not finite."""
        values = jnp.where(self.present, values, 0)
        return checked_finite(spread_over_inputs(values, self.groups, self.inputs), method)


def masked_score(score: Score, inputs: Inputs, baseline: Baseline, groups: Groups) -> MaskedScore:
    """The game of a score on these inputs, with everything checked; errors as in its parts."""
    batch = check_score(score, inputs)
    baseline = broadcast_baseline(baseline, inputs)
    resolved = feature_groups(groups, inputs)
    dtype = jnp.result_type(*[accumulation_dtype(leaf) for leaf in jax.tree.leaves(inputs)])
    return MaskedScore(score, inputs, baseline, resolved, present_features(resolved, batch), dtype)


def _every_coordinate(inputs: Inputs) -> FeatureGroups:
    leaves, structure = jax.tree.flatten(inputs)
    ids, count = [], 0
    for leaf in leaves:
        size = math.prod(leaf.shape[1:])
        ids.append(np.arange(count, count + size, dtype=np.int32).reshape(1, *leaf.shape[1:]))
        count += size
    return FeatureGroups(jax.tree.unflatten(structure, ids), count)


def _aligned(ids: Any, inputs: Array) -> Int[Array, "..."] | np.ndarray:
    """The feature numbers with the rank of the inputs: leading axes of 1 added."""
    if not jnp.issubdtype(jnp.result_type(ids), jnp.integer):
        raise ValueError(f"groups must be integers (feature numbers, -1 for none): got {jnp.result_type(ids)}")
    shape = (1,) * (inputs.ndim - jnp.ndim(ids)) + jnp.shape(ids)
    fits = len(shape) == inputs.ndim and all(n in (1, size) for n, size in zip(shape, inputs.shape, strict=True))
    if not fits:
        raise ValueError(
            f"groups of shape {jnp.shape(ids)} do not broadcast against inputs of shape {inputs.shape}; "
            "for one feature per token of [batch, time, dim] use token_groups(mask)"
        )
    # Known numbers stay numpy: inside jit they remain known, and the number of features with them.
    return np.asarray(ids, np.int32).reshape(shape) if is_known(ids) else jnp.asarray(ids, jnp.int32).reshape(shape)


def _gathered(values: Array, ids: Array, missing: Any) -> Array:
    """``values[b, ids[b, ...]]``, and `missing` where ids are -1; batch axes of 1 are shared."""
    numbers = jnp.maximum(ids, 0)
    if values.shape[0] == 1:
        picked = values[0][numbers]
    elif ids.shape[0] == 1:
        picked = values[:, numbers[0]]
    else:
        picked = jax.vmap(lambda row, number: row[number])(values, numbers)
    return jnp.where(ids >= 0, picked, missing)
