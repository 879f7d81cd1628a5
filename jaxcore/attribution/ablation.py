"""Leaving one thing out: a feature, a window, a span, or a feature's link to its own example."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcore.attribution.chunking import chunked_map, chunked_sum
from jaxcore.attribution.compiled_programs import run_compiled
from jaxcore.attribution.feature_groups import (
    FeatureGroups,
    Groups,
    MaskedScore,
    masked_score,
)
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    accumulation_dtype,
    broadcast_baseline,
    check_positive,
    check_score,
    checked_finite,
)


def feature_ablation(
    score: Score,
    inputs: Inputs,
    *,
    baseline: Baseline = 0.0,
    groups: Groups = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """How much the score falls when one feature is replaced by its baseline, for each feature.

        a_f(x) = score(x) - score(x with feature f at x')

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].
        baseline: x', broadcast against `inputs`.
        groups: the features, see `jaxcore.attribution.feature_groups`; by default every coordinate by itself.
        chunk_size: features left out together; by default as many as fit `memory_budget`.
        memory_budget: bytes of temporary memory a chunk may take.

    Returns:
        Attributions of the inputs' structure and shapes (every coordinate carries its feature's value), in float32
        (float64 for float64 inputs); 0 where there is no feature.

    Raises:
        ValueError: bad inputs, baseline, groups or score, values that are not finite.

    Source: Zeiler & Fergus 2014, section 4.2; Li et al. 2016 (representation erasure), without its division.
    """
    check_positive(chunk_size=chunk_size)
    game = masked_score(score, inputs, baseline, groups)
    features = jnp.arange(game.groups.count)

    def without(feature: Array) -> Array:
        return game((features != feature)[None])

    left_out = chunked_map(without, features, chunk_size=chunk_size, memory_budget=memory_budget)
    return game.attributions(run_compiled(game.whole)[:, None] - left_out.T, "feature_ablation")


def occlusion(
    score: Score,
    inputs: Inputs,
    *,
    windows: Any,
    strides: Any = 1,
    baseline: Baseline = 0.0,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """How much the score falls when a sliding window is replaced by the baseline, averaged over windows per coordinate.

        a_i(x) = mean over windows W that cover i of [score(x) - score(x with W at x')]

    A window starts at every multiple of the stride until the end of the axis is covered; a last window that would
    reach beyond it is cut. Several leaves are occluded one after the other.

    Args:
        windows: the window's size on each axis but the batch's, ``(3, 5, 5)`` for inputs [batch, 3, height, width];
            for a pytree of inputs, the same pytree of such tuples.
        strides: steps between windows, one number or one per axis; for a pytree, one number or such a pytree.
        score, inputs, baseline, chunk_size, memory_budget: as in `feature_ablation`; a chunk counts windows.

    Returns:
        Attributions of the inputs' structure and shapes, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: a window that does not match its leaf's axes or is larger than them, a stride larger than its
            window (coordinates would be missed), bad inputs, baseline or score, values that are not finite.

    Source: Zeiler & Fergus 2014, section 4.2; conventions of Captum's Occlusion.
    """
    check_score(score, inputs)
    check_positive(chunk_size=chunk_size)
    baseline = broadcast_baseline(baseline, inputs)
    leaves, structure = jax.tree.flatten(inputs)
    baselines = jax.tree.leaves(baseline)
    plans = _sliding_plans(windows, strides, leaves, structure)
    whole = run_compiled(score, inputs)

    def of_leaf(number: int) -> Array:
        leaf, (window, stride, shifts) = leaves[number], plans[number]
        dtype = accumulation_dtype(leaf)

        def fall(index: Array) -> Array:
            covered = _window(index, leaf.shape[1:], window, stride, shifts)
            occluded = [*leaves[:number], jnp.where(covered, baselines[number], leaf), *leaves[number + 1 :]]
            change = (whole - score(jax.tree.unflatten(structure, occluded))).astype(dtype)
            return change.reshape(-1, *[1] * covered.ndim) * covered

        total = chunked_sum(fall, jnp.arange(math.prod(shifts)), chunk_size=chunk_size, memory_budget=memory_budget)
        return total / jnp.asarray(_coverage(leaf.shape[1:], window, stride, shifts), dtype)

    return checked_finite(jax.tree.unflatten(structure, [of_leaf(i) for i in range(len(leaves))]), "occlusion")


def feature_permutation(
    score: Score,
    inputs: Inputs,
    key: Array,
    *,
    groups: Groups = None,
    num_permutations: int = 1,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """How much the score falls when a feature takes its value from another example of the batch.

        a_f(x_b) = mean over p of [score(x_b) - score(x_b with feature f of x_p(b))]

    ``p`` is a random cyclic permutation of the examples that have the feature: nobody keeps its own value. An example
    that alone has a feature gets 0 for it. The mean over the batch is the permutation importance of the feature.

    Args:
        key: a `jax.random.key`.
        groups: the features; values are exchanged at the same position, so a position must belong to the same feature
            in every example, or to none (padding).
        num_permutations: permutations p to average over.
        score, inputs, chunk_size, memory_budget: as in `feature_ablation`; a chunk counts (permutation, feature).

    Raises:
        ValueError: a batch of one, groups that give a position different features, and as in `feature_ablation`.

    Source: Breiman 2001, section 10; Fisher et al. 2019, section 3.
    """
    check_positive(num_permutations=num_permutations, chunk_size=chunk_size)
    game = masked_score(score, inputs, 0.0, groups)
    if game.present.shape[0] < 2:
        raise ValueError("feature_permutation exchanges values between examples: give a batch of at least 2")
    _check_positions(game.groups)
    count, whole = game.groups.count, run_compiled(game.whole)

    def fall(index: Array) -> Array:
        feature = index % count
        donors = _cyclic_permutation(jax.random.fold_in(key, index), game.present[:, feature])
        exchanged = jax.tree.map(lambda x, ids: _exchanged(x, ids, donors, feature), inputs, game.groups.ids)
        return whole - score(exchanged).astype(game.dtype)

    falls = chunked_map(fall, jnp.arange(num_permutations * count), chunk_size=chunk_size, memory_budget=memory_budget)
    return game.attributions(jnp.mean(falls.reshape(num_permutations, count, -1), axis=0).T, "feature_permutation")


def leave_one_span_out(
    score: Score,
    inputs: Inputs,
    spans: Int[Array, "#batch spans 2"] | Int[Array, "spans 2"],
    *,
    groups: Groups,
    baseline: Baseline = 0.0,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "batch spans"]:
    """How much the score falls when a span of consecutive features is replaced by the baseline, for each span.

        a_s(x) = score(x) - score(x with features start_s <= f < stop_s at x')

    Args:
        spans: [start, stop) in numbers of features (of tokens for `token_groups`, of words for groups of words),
            shared by the batch or one list per example; they may overlap (`sliding_spans`). Empty spans fill up lists
            of different lengths.
        groups: the features that spans count in.
        score, inputs, baseline, chunk_size, memory_budget: as in `feature_ablation`; a chunk counts spans.

    Returns:
        One value per span; 0 for a span that holds no feature of its example.

    Raises:
        ValueError: spans of another shape or not integers, and as in `feature_ablation`.
    """
    check_positive(chunk_size=chunk_size)
    game = masked_score(score, inputs, baseline, groups)
    per_span = _spans_first(spans, game)
    features = jnp.arange(game.groups.count)
    whole = run_compiled(game.whole)

    def fall(span: Int[Array, "#batch 2"]) -> Array:
        inside = (features >= span[:, :1]) & (features < span[:, 1:])
        return jnp.where(jnp.any(inside & game.present, axis=1), whole - game(~inside), 0)

    falls = chunked_map(fall, per_span, chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(falls.T, "leave_one_span_out")


def sliding_spans(num_features: int, *, width: int, stride: int = 1) -> Int[Array, "spans 2"]:
    """Spans [start, start + width) at every `stride` features until all `num_features` are covered; the last is cut."""
    check_positive(num_features=num_features, width=width, stride=stride)
    if stride > width:
        raise ValueError(f"stride must not exceed the width, or features are missed: got {stride} > {width}")
    starts = np.arange(0, max(num_features - width, 0) + stride, stride)
    return jnp.asarray(np.stack([starts, np.minimum(starts + width, num_features)], axis=1), jnp.int32)


def _sliding_plans(windows: Any, strides: Any, leaves: list[Array], structure: Any) -> list[tuple]:
    """For each leaf its window, strides and numbers of shifts per axis."""
    try:
        window_list = structure.flatten_up_to(windows)
        stride_list = [strides] * len(leaves) if isinstance(strides, int) else structure.flatten_up_to(strides)
    except ValueError as error:
        raise ValueError(
            f"windows and strides must have the structure of the inputs, {structure}, with a tuple of sizes per array"
        ) from error
    plans = []
    for leaf, window, stride in zip(leaves, window_list, stride_list, strict=True):
        axes = leaf.shape[1:]
        stride = (stride,) * len(axes) if isinstance(stride, int) else stride
        sized = isinstance(window, tuple | list) and isinstance(stride, tuple | list)
        if not sized or len(window) != len(axes) or len(stride) != len(axes):
            raise ValueError(f"a window and strides need one size for each axis of {axes}: got {window}, {stride}")
        if any(not 1 <= size <= axis for size, axis in zip(window, axes, strict=True)):
            raise ValueError(f"each size of a window must be 1 to that of its axis, {axes}: got {tuple(window)}")
        shifts = tuple(
            -(-(axis - size) // max(step, 1)) + 1 for axis, size, step in zip(axes, window, stride, strict=True)
        )
        missed = [step > size and n > 1 for size, step, n in zip(window, stride, shifts, strict=True)]
        if min(stride, default=1) < 1 or any(missed):
            raise ValueError(f"strides must be 1 to the window's size, {tuple(window)}: got {tuple(stride)}")
        plans.append((tuple(window), tuple(stride), shifts))
    return plans


def _window(index: Array, axes: tuple[int, ...], window: tuple, stride: tuple, shifts: tuple) -> Array:
    """The coordinates that the window of this number covers, boolean of shape `axes`."""
    covered = jnp.ones(axes, bool)
    for axis, place in enumerate(jnp.unravel_index(index, shifts) if axes else ()):
        offset = jax.lax.broadcasted_iota(jnp.int32, axes, axis) - place * stride[axis]
        covered &= (offset >= 0) & (offset < window[axis])
    return covered


def _coverage(axes: tuple[int, ...], window: tuple, stride: tuple, shifts: tuple) -> np.ndarray:
    """How many windows cover each coordinate."""
    total = np.ones(axes)
    for axis, size in enumerate(axes):
        starts = np.arange(shifts[axis]) * stride[axis]
        offset = np.arange(size)[:, None] - starts
        covering = np.sum((offset >= 0) & (offset < window[axis]), axis=1)
        total = total * covering.reshape([-1 if other == axis else 1 for other in range(len(axes))])
    return total


def _check_positions(groups: FeatureGroups) -> None:
    for ids in jax.tree.leaves(groups.ids):
        if isinstance(ids, np.ndarray) and np.any((ids >= 0) & (ids != ids.max(axis=0))):
            raise ValueError(
                "feature_permutation exchanges values at the same position of two examples: groups must give a "
                "position one feature, or -1, in every example"
            )


def _cyclic_permutation(key: Array, eligible: Array) -> Int[Array, " batch"]:
    """For each row the row it takes from: a random cycle through the eligible rows; the others keep themselves."""
    batch = eligible.shape[0]
    order = jnp.argsort(jnp.where(eligible, jax.random.uniform(key, (batch,), jnp.float32), jnp.inf))
    size = jnp.maximum(jnp.sum(eligible), 1)
    places = jnp.arange(batch)
    following = jnp.where(places < size, (places + 1) % size, places)
    return jnp.zeros(batch, order.dtype).at[order].set(order[following])


def _exchanged(x: Array, ids: Array, donors: Array, feature: Array) -> Array:
    theirs = ids if ids.shape[0] == 1 else jnp.asarray(ids)[donors]
    return jnp.where((ids == feature) & (theirs == feature), x[donors], x)


def _spans_first(spans: Any, game: MaskedScore) -> Int[Array, "spans #batch 2"]:
    batch = game.present.shape[0]
    shape, dtype = jnp.shape(spans), jnp.result_type(spans)
    fits = len(shape) in (2, 3) and shape[-1] == 2 and shape[-2] > 0 and (len(shape) == 2 or shape[0] in (1, batch))
    if not fits or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"spans must be integers [spans, 2] or [{batch}, spans, 2]: got {dtype}{list(shape)}")
    spans = jnp.asarray(spans)
    return jnp.moveaxis(spans if spans.ndim == 3 else spans[None], 1, 0)
