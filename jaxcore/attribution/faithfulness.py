"""Does an explanation say what the model does? Measures that remove or keep the tokens it ranks highest.

All take `inputs` [batch, time, ...] (embeddings), token scores [batch, time] and a mask: tokens leave or
enter in the order of their scores, highest first (ties by position), replaced by a baseline. Padding is never counted,
and never touched; an example of padding alone is an error, for nothing can be taken from it. Attributions of a method
that satisfies completeness have `completeness_error` besides.

Inputs of several arrays (the two texts of a pair; token and segment embeddings) are a pytree of arrays [batch, time,
...], each of its own time; token scores and mask are then pytrees of the same structure. An entry of any leaf is a
token: those of all leaves stand in one order (ties by leaf, then by position), share the bins and are counted together,
and each is replaced by the baseline of its own leaf. Parts that should leave together belong in one leaf, side by side
in the last axis.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcore.attribution.chunking import chunked_map
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    broadcast_baseline,
    check_features_left,
    check_positive,
    check_score,
    checked_finite,
    checked_mask,
    is_known,
)

PerToken: TypeAlias = Any
"""[batch, time], or a pytree of such arrays, one for each leaf [batch, time, ...] of the inputs."""

ERASER_FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""The bins of DeYoung et al. 2020: shares of tokens over which comprehensiveness and sufficiency are averaged."""


class PerturbationCurve(NamedTuple):
    """The score as tokens leave (or enter): scores [batch, points] at the shares of tokens changed [batch, points]."""

    fractions: Float[Array, "batch points"]
    scores: Float[Array, "batch points"]


def comprehensiveness(
    score: Score,
    inputs: Inputs,
    token_scores: PerToken,
    *,
    mask: PerToken | None = None,
    baseline: Baseline = 0.0,
    fractions: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " batch"]:
    """How much the score falls without the tokens called important: ``mean_q score(x) - score(x without top q)``.

    High is faithful. A bin is a share of the text's tokens, ``ceil(q n)`` of them, or a number of tokens. The mean is
    over the bins given, by default the five of `ERASER_FRACTIONS`, as in ERASER's released code. The paper's formula
    divides by ``|B| + 1``, its sum beginning at an empty bin k = 0: that is ``fractions=(0.0, *ERASER_FRACTIONS)``. For
    comprehensiveness the empty bin adds nothing, and the paper's number is 5/6 of the default; for sufficiency it adds
    ``score(x) - score(baseline)``.

    Args:
        score: maps inputs to [batch], usually a probability.
        inputs: [batch, time, ...], one vector per token; or a pytree of such arrays.
        token_scores: importance, [batch, time] for each leaf of the inputs; for methods whose sign means nothing,
            magnitudes.
        mask: True at tokens, of the structure and shapes of the token scores; all by default.
        baseline: what replaces a token, broadcast against `inputs`; for a pytree, a number or such a pytree.
        fractions: the bins q in [0, 1]; `ERASER_FRACTIONS` by default.
        counts: instead, bins as numbers of tokens (a single one: the measure at k).
        chunk_size: bins evaluated together; by default as many as fit `memory_budget`, see
            `jaxcore.attribution.chunking`.
        memory_budget: bytes of temporary memory a chunk may take.

    Returns:
        [batch], in the unit of the score.

    Raises:
        ValueError: inputs, score or baseline as for every method; token scores or mask that are not [batch, time] for
            each leaf of the inputs, scores at tokens that are not finite; an example without tokens (under `jax.jit`
            it is not seen and gets 0); no bins, bins out of range or not whole numbers of tokens, or both kinds; a
            chunk_size or memory_budget that is not a whole number of at least 1.

    Source: DeYoung et al. 2020 (ERASER), section 4.2, the mean over bins (AOPC).
    """
    order, length = ranked_tokens(token_scores, mask)
    bins = _bin_counts(length, fractions, counts)
    scores = _scores_at(score, inputs, order, bins, baseline, _removed, chunk_size, memory_budget)
    return checked_finite(score(inputs) - jnp.mean(scores, axis=1), "comprehensiveness")


def sufficiency(
    score: Score,
    inputs: Inputs,
    token_scores: PerToken,
    *,
    mask: PerToken | None = None,
    baseline: Baseline = 0.0,
    fractions: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " batch"]:
    """How far the score falls with only the tokens called important: ``mean_q score(x) - score(top q of x)``.

    Low is faithful. Args, bins, errors and source as in `comprehensiveness`.
    """
    order, length = ranked_tokens(token_scores, mask)
    bins = _bin_counts(length, fractions, counts)
    scores = _scores_at(score, inputs, order, bins, baseline, _kept, chunk_size, memory_budget)
    return checked_finite(score(inputs) - jnp.mean(scores, axis=1), "sufficiency")


def deletion_curve(
    score: Score,
    inputs: Inputs,
    token_scores: PerToken,
    *,
    mask: PerToken | None = None,
    baseline: Baseline = 0.0,
    num_steps: int = 20,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> PerturbationCurve:
    """The score as tokens are replaced by the baseline, most important first, from none to all.

    Point s of 0..num_steps has ``round(s n / num_steps)`` of the text's n tokens removed, so that with num_steps >= n
    every token is a point. A low `area_under_curve` is faithful.

    Args, errors: as in `comprehensiveness`; num_steps is a whole number of at least 1.

    Source: Petsiuk et al. 2018 (RISE); Samek et al. 2017.
    """
    return _curve(score, inputs, token_scores, mask, baseline, num_steps, _removed, chunk_size, memory_budget)


def insertion_curve(
    score: Score,
    inputs: Inputs,
    token_scores: PerToken,
    *,
    mask: PerToken | None = None,
    baseline: Baseline = 0.0,
    num_steps: int = 20,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> PerturbationCurve:
    """The score as tokens are put into the baseline, most important first. A high area is faithful.

    Args, errors and source as in `deletion_curve`.
    """
    return _curve(score, inputs, token_scores, mask, baseline, num_steps, _kept, chunk_size, memory_budget)


def area_under_curve(curve: PerturbationCurve) -> Float[Array, " batch"]:
    """Area under a curve over the share of tokens, by the trapezoid rule; in the unit of the score."""
    return jnp.trapezoid(curve.scores, curve.fractions, axis=1)


def removal_order(token_scores: PerToken, mask: PerToken | None = None) -> PerToken:
    """Each token's place by decreasing score, 0 for the highest (ties by leaf, then position).

    Returns:
        Integers of the structure and shapes of the token scores. Padding has the place `time` (the sum of the leaves'
        times), behind every token; an example without tokens has no other.

    Raises:
        ValueError: scores or mask that are not [batch, time], a mask of another structure, scores at tokens that are
            not finite.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(token_scores)]
    if any(len(shape) != 2 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"token scores must be [batch, time]: got {', '.join(str(list(shape)) for shape in shapes) or 'no array'} "
            "(reduce embedding dimensions first, with sum_over_dims say)"
        )
    tokens = joined_mask(mask, token_scores)
    scores = jnp.concatenate([jnp.asarray(leaf) for leaf in jax.tree.leaves(token_scores)], axis=1)
    scores = checked_finite(jnp.where(tokens, scores, 0), "token_scores")
    places = jnp.argsort(jnp.argsort(jnp.where(tokens, -scores, jnp.inf), axis=1, stable=True), axis=1)
    return split_tokens(jnp.where(tokens, places, scores.shape[1]), token_scores)


def ranked_tokens(token_scores: PerToken, mask: PerToken | None = None) -> tuple[PerToken, Int[Array, " batch"]]:
    """`removal_order`, and how many tokens each example has; ValueError if an example has none (unseen under jit)."""
    order = removal_order(token_scores, mask)
    length = num_tokens(order)
    if is_known(length):
        check_features_left(np.asarray(length))
    return order, length


def num_tokens(order: PerToken) -> Int[Array, " batch"]:
    """How many tokens of each example have a place in the order (see `removal_order`)."""
    end = _place_of_padding(order)
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda places: jnp.sum(places < end, axis=1), order))


def replace_top_tokens(inputs: Any, order: PerToken, counts: Int[Array, " batch"], *, baseline: Baseline = 0.0) -> Any:
    """The inputs with each text's `counts` highest tokens (by `removal_order`) replaced by the baseline.

    Inputs [batch, time, ...], or a pytree of them, may be embeddings or token ids (with the mask token's id as the
    baseline).

    Raises:
        ValueError: inputs whose texts and tokens are not those of the order, a baseline that does not broadcast.
    """
    check_scored_tokens(inputs, order)
    return _removed(inputs, broadcast_baseline(baseline, inputs), order, counts)


def check_scored_tokens(inputs: Any, order: PerToken) -> None:
    """ValueError unless every leaf of the inputs is [batch, time, ...] as its token scores (or their order) are."""
    given, expected = (
        (jax.tree.structure(tree), [jnp.shape(leaf)[:2] for leaf in jax.tree.leaves(tree)]) for tree in (inputs, order)
    )
    if given != expected:
        shapes = [jax.tree.map(lambda leaf: list(jnp.shape(leaf)), tree) for tree in (order, inputs)]
        raise ValueError(f"inputs must be [batch, time, ...] like their token scores, {shapes[0]}: got {shapes[1]}")


def joined_mask(mask: PerToken | None, like: Any) -> Bool[Array, "batch tokens"]:
    """A mask's leaves side by side, all True for None; ValueError unless each is [batch, time] as that of `like`."""
    leaves: list[Any] = jax.tree.leaves(like)
    structure: Any = jax.tree.structure(like)
    try:
        masks = [None] * len(leaves) if mask is None else structure.flatten_up_to(mask)
    except ValueError as error:
        raise ValueError(
            f"mask must have the structure of the inputs, {structure}: got {jax.tree.structure(mask)}"
        ) from error
    parts = [checked_mask(part, jnp.shape(leaf)[:2]) for part, leaf in zip(masks, leaves, strict=True)]
    return jnp.concatenate(parts, axis=1)


def split_tokens(joined: Shaped[Array, "batch tokens"], like: Any) -> PerToken:
    """Values of all leaves side by side, as a pytree [batch, time] for each leaf [batch, time, ...] of `like`."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([jnp.shape(leaf)[1] for leaf in leaves]).tolist()
    return jax.tree.unflatten(structure, jnp.split(joined, ends[:-1], axis=1))


def over_tokens(tokens: Array, inputs: Array) -> Array:
    """[batch, time] with axes of length one for the others of the inputs."""
    return tokens.reshape(*tokens.shape, *(1,) * (inputs.ndim - 2))


def _removed(inputs: Any, baseline: Any, order: PerToken, counts: Array) -> Any:
    return _with_baseline(inputs, baseline, order, lambda places: places < counts[:, None])


def _kept(inputs: Any, baseline: Any, order: PerToken, counts: Array) -> Any:
    return _with_baseline(inputs, baseline, order, lambda places: places >= counts[:, None])


def _with_baseline(inputs: Any, baseline: Any, order: PerToken, chosen: Callable[[Array], Array]) -> Any:
    """The baseline at tokens whose places are chosen; counts may be larger than a text, so padding is left out."""
    end = _place_of_padding(order)

    def of_leaf(x: Array, base: Array, places: Array) -> Array:
        return jnp.where(over_tokens((places < end) & chosen(places), x), base, x)

    return jax.tree.map(of_leaf, inputs, baseline, order)


def _place_of_padding(order: PerToken) -> int:
    return sum(places.shape[1] for places in jax.tree.leaves(order))


def _scores_at(
    score: Score,
    inputs: Inputs,
    order: PerToken,
    bins: Array,
    baseline: Baseline,
    change: Callable[..., Inputs],
    chunk_size: int | None,
    memory_budget: int | None,
) -> Array:
    """The scores [batch, bins] of the inputs changed by each of the counts `bins` [bins, batch]."""
    check_score(score, inputs)
    check_scored_tokens(inputs, order)
    check_positive(chunk_size=chunk_size, memory_budget=memory_budget)
    base = broadcast_baseline(baseline, inputs)
    scores = chunked_map(
        lambda counts: score(change(inputs, base, order, counts)),
        bins,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
    )
    return scores.T


def _curve(
    score: Score,
    inputs: Inputs,
    token_scores: PerToken,
    mask: PerToken | None,
    baseline: Baseline,
    num_steps: int,
    change: Callable[..., Inputs],
    chunk_size: int | None,
    memory_budget: int | None,
) -> PerturbationCurve:
    check_positive(num_steps=num_steps)
    order, length = ranked_tokens(token_scores, mask)
    steps = jnp.arange(num_steps + 1)[:, None]
    bins = (2 * steps * length + num_steps) // (2 * num_steps)  # rounded, in whole numbers
    scores = _scores_at(score, inputs, order, bins, baseline, change, chunk_size, memory_budget)
    fractions = (bins / jnp.maximum(length, 1)).T.astype(scores.dtype)
    return PerturbationCurve(fractions, checked_finite(scores, "perturbation curve"))


def _bin_counts(length: Array, fractions: Sequence[float] | None, counts: Sequence[int] | None) -> Array:
    """How many tokens each bin takes of each text, [bins, batch]."""
    if fractions is not None and counts is not None:
        raise ValueError("give either fractions or counts, not both")
    if counts is not None:
        numbers = np.asarray(counts)
        if not numbers.size or not np.issubdtype(numbers.dtype, np.integer) or numbers.min() < 0:
            raise ValueError(f"counts must be one or more whole numbers of tokens, none negative: got {list(counts)}")
        return jnp.minimum(jnp.asarray(numbers, jnp.int32)[:, None], length)
    shares = np.asarray(ERASER_FRACTIONS if fractions is None else fractions, np.float32)
    if not shares.size or not np.all((shares >= 0) & (shares <= 1)):
        raise ValueError(f"fractions must be one or more shares in [0, 1]: got {shares.tolist()}")
    return jnp.ceil(shares[:, None] * length - 1e-4).astype(jnp.int32)  # 1e-4: 0.1 * 30 is 3 in any dtype
