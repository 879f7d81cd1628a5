"""Directions in a decoder's activations that lead from one kind of response to another.

GrAInS: the tokens that speak most for the preferred response, and those that speak most against it, are masked in
turn; the direction of a layer is what the first masking takes away less what the second does.

    D+-_{n,r} = h(x_n, y_r)[-1] - h(mask_{I+-}(x_n), y_r)[-1],     v = direction({D+}) - direction({D-})

Beside it what it is compared with: the mean difference of the two responses' states (CAA), their first principal
component over all layers (ICV), shifts of single attention heads (ITI), random directions.
`jaxcore.generation.steering` adds directions to activations.

Source: Nguyen et al. 2025, the released code's `compute_steering_vector`; its principal components have arbitrary
signs, which are settled here by the mean of the rows.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxcore.attribution.preference_score import ResponsePairs, response_states

Aggregate = Literal["pca", "pca_uncentered", "mean"]
Sides = Literal["both", "positive"]


class MaskingEffects(NamedTuple):
    """What masking tokens takes away from the last token's states, one row per example and response."""

    positive: Float[Array, "rows layers hidden"]
    """D+: of the tokens that speak for the preferred response."""
    negative: Float[Array, "rows layers hidden"]
    """D-: of those that speak against it."""


def top_k_tokens(
    scores: Float[Array, "batch time"], eligible: Bool[Array, "batch time"], k: int
) -> tuple[Bool[Array, "batch time"], Bool[Array, "batch time"]]:
    """Masks of the k largest and of the k smallest scores of each row, among the eligible tokens.

    The sign of a score plays no part. A row with n < 2 k eligible tokens has n // 2 marked on either side: no token
    speaks both for and against (with it in both masks the two effects would cancel). Of equal scores the earlier token
    counts first.

    Raises:
        ValueError: k < 1, or shapes that differ.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1: got {k}")
    if jnp.shape(scores) != jnp.shape(eligible):
        raise ValueError(f"scores {jnp.shape(scores)} and eligible {jnp.shape(eligible)} must have one shape")
    eligible = eligible.astype(bool)
    count = jnp.minimum(k, eligible.sum(axis=1, keepdims=True) // 2)

    def largest(values: Array, among: Array) -> Array:
        order = jnp.argsort(-jnp.where(among, values, -jnp.inf), axis=1, stable=True)
        return (jnp.argsort(order, axis=1) < count) & among

    positive = largest(scores, eligible)
    return positive, largest(-scores, eligible & ~positive)


def mask_tokens(
    values: Float[Array, "batch time hidden"], mask: Bool[Array, "batch time"], fill: Float[Array, "*hidden"]
) -> Float[Array, "batch time hidden"]:
    """Vectors with those of masked positions replaced by `fill`: the mask token's vector, or zeros for image patches.

    Length, positions and attention stay as they are.
    """
    return jnp.where(mask[..., None], jnp.asarray(fill, values.dtype), values)


def masking_effects(
    model: Any,
    params: Any,
    prompt: Float[Array, "batch width hidden"],
    pairs: ResponsePairs,
    positive: Bool[Array, "batch width"],
    negative: Bool[Array, "batch width"],
    *,
    fill: Float[Array, "*hidden"],
) -> MaskingEffects:
    """D+ and D- of every example and both its responses, chosen and rejected in turn (rows 2 n and 2 n + 1)."""

    def states(prompt: Array) -> Array:
        found = response_states(model, params, prompt, pairs)
        return found.reshape(-1, *found.shape[2:])

    whole = states(prompt)
    return MaskingEffects(*(whole - states(mask_tokens(prompt, tokens, fill)) for tokens in (positive, negative)))


def direction(
    rows: Float[Array, "rows layers hidden"], *, aggregate: Aggregate = "pca"
) -> Float[Array, "layers hidden"]:
    """One direction per layer that stands for all rows.

    Args:
        aggregate: "pca" is the first principal component of the centred rows, "pca_uncentered" the first right singular
            vector of the rows as they are, both of length 1 and turned so that their product with the mean row is not
            negative; "mean" is the mean row, with its own length.

    Raises:
        ValueError: an unknown aggregate, an array of another rank.
    """
    if rows.ndim != 3:
        raise ValueError(f"rows must be [rows, layers, hidden]: got {rows.shape}")
    mean = jnp.mean(rows, axis=0)
    if aggregate == "mean":
        return mean
    if aggregate not in ("pca", "pca_uncentered"):
        raise ValueError(f"aggregate must be pca, pca_uncentered or mean: got {aggregate!r}")
    centred = rows - mean if aggregate == "pca" else rows
    return jax.vmap(_first_component, in_axes=(1, 0))(centred, mean)


def grains_direction(
    effects: MaskingEffects, *, aggregate: Aggregate = "pca", sides: Sides = "both"
) -> Float[Array, "layers hidden"]:
    """``direction(D+) - direction(D-)``, or the first alone for `sides` "positive"."""
    if sides not in ("both", "positive"):
        raise ValueError(f"sides must be both or positive: got {sides!r}")
    positive = direction(effects.positive, aggregate=aggregate)
    return positive if sides == "positive" else positive - direction(effects.negative, aggregate=aggregate)


def mean_difference(states: Float[Array, "batch 2 layers hidden"]) -> Float[Array, "layers hidden"]:
    """Mean over examples of the chosen response's state less the rejected one's (Rimsky et al. 2024, CAA).

    Args:
        states: from `response_states`.
    """
    return jnp.mean(states[:, 0] - states[:, 1], axis=0)


def in_context_vector(states: Float[Array, "batch 2 layers hidden"]) -> Float[Array, "layers hidden"]:
    """First principal component of the differences of all layers together (Liu et al. 2024, ICV).

    One unit vector over (layers x hidden) of the centred differences, turned towards their mean.
    """
    differences = states[:, 0] - states[:, 1]
    flat = differences.reshape(differences.shape[0], -1)
    mean = jnp.mean(flat, axis=0)
    return _first_component(flat - mean, mean).reshape(differences.shape[1:])


def head_shifts(
    states: Float[Array, "batch 2 layers heads size"], *, num_heads: int, validation_fraction: float = 0.2
) -> Float[Array, "layers heads size"]:
    """Shifts of the attention heads that tell the responses apart best, zero for all others (Li et al. 2023, ITI).

        shift_h = sigma_h theta_h,   theta_h = the unit vector of (mean chosen - mean rejected)

    sigma is the standard deviation of all states along theta. Heads are ranked by the accuracy, on the last examples,
    of a linear probe fitted on the first ones (least squares on labels +1 and -1, with an intercept).

    Args:
        states: of ``response_states(..., name="attention_heads")``.
        num_heads: heads shifted, over all layers.
        validation_fraction: of the examples, for ranking.

    Raises:
        ValueError: more heads than there are, too few examples to hold some out.
    """
    batch, _, layers, heads, size = states.shape
    held_out = round(validation_fraction * batch)
    if not 1 <= num_heads <= layers * heads:
        raise ValueError(f"num_heads must be 1 to {layers * heads}: got {num_heads}")
    if not 1 <= held_out < batch:
        raise ValueError(f"validation_fraction {validation_fraction} of {batch} examples leaves none on one side")
    by_head = states.reshape(batch, 2, layers * heads, size).transpose(2, 0, 1, 3)
    accuracy = jax.vmap(lambda own: _probe_accuracy(own[:-held_out], own[-held_out:]))(by_head)
    theta = _unit(jnp.mean(by_head[:, :, 0] - by_head[:, :, 1], axis=1))
    sigma = jnp.std(jnp.einsum("hnrd,hd->hnr", by_head, theta), axis=(1, 2))
    ranks = jnp.argsort(jnp.argsort(-accuracy, stable=True))
    shifts = jnp.where((ranks < num_heads)[:, None], sigma[:, None] * theta, 0)
    return shifts.reshape(layers, heads, size)


def random_direction(key: Key[Array, ""], like: Float[Array, "layers ..."]) -> Float[Array, "layers ..."]:
    """A Gaussian direction per layer with the length of that layer's direction in `like`."""
    drawn = jax.random.normal(key, like.shape, jnp.float32)
    return with_lengths(drawn, jnp.linalg.norm(like.reshape(like.shape[0], -1), axis=1))


def with_lengths(
    directions: Float[Array, "layers ..."], lengths: Float[Array, " layers"]
) -> Float[Array, "layers ..."]:
    """The directions, each layer's stretched to its length; a zero direction stays zero."""
    flat = directions.reshape(directions.shape[0], -1)
    return (_unit(flat) * lengths[:, None]).reshape(directions.shape)


def class_difference(
    states: Float[Array, "batch layers hidden"], signs: Int[Array, " batch"]
) -> Float[Array, "layers hidden"]:
    """Mean state of the examples of sign +1 less that of sign -1: the direction where the classes are known."""

    def mean(sign: int) -> Array:
        weights = (signs == sign).astype(states.dtype)
        return jnp.einsum("n,nld->ld", weights, states) / jnp.maximum(jnp.sum(weights), 1)

    return mean(1) - mean(-1)


def cosine(first: Float[Array, "*layers hidden"], second: Float[Array, "*layers hidden"]) -> Float[Array, "*layers"]:
    """Cosine of two directions per layer; 0 where one is zero."""
    return jnp.sum(_unit(first) * _unit(second), axis=-1)


def _first_component(rows: Float[Array, "rows dim"], mean: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """The first right singular vector, turned towards the mean; zero for rows that are all zero.

    From the Gram matrix of the rows: there are far fewer rows than dimensions.
    """
    rows = rows.astype(jnp.float32)
    scale = jnp.max(jnp.abs(rows))
    rows = rows / jnp.where(scale > 0, scale, 1)
    _, vectors = jnp.linalg.eigh(jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST))
    component = _unit(jnp.matmul(vectors[:, -1], rows, precision=jax.lax.Precision.HIGHEST))
    return jnp.where(component @ mean < 0, -component, component)


def _probe_accuracy(fitted: Float[Array, "n 2 size"], judged: Float[Array, "m 2 size"]) -> Float[Array, ""]:
    """Accuracy on `judged` of the least-squares probe of `fitted`."""

    def design(states: Array) -> tuple[Array, Array]:
        labels = jnp.tile(jnp.asarray([1.0, -1.0]), states.shape[0])
        return states.reshape(-1, states.shape[-1]), labels

    features, labels = design(fitted)
    centre, spread = jnp.mean(features, axis=0), jnp.std(features) + 1e-12
    normal = (features - centre) / spread
    ridge = 1e-3 * normal.shape[0] * jnp.eye(normal.shape[1])
    weights = jnp.linalg.solve(normal.T @ normal + ridge, normal.T @ labels)
    unseen, truth = design(judged)
    return jnp.mean(jnp.sign((unseen - centre) / spread @ weights) == truth)


def _unit(vectors: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(norms > 0, norms, 1)
