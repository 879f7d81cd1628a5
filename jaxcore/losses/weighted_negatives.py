"""Relatives of InfoNCE that treat negatives, or the positive beside them, differently."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcore.losses.info_nce import Contrast, Temperature, contrast_rows, two_view_parts
from jaxcore.losses.input_checks import check_length, check_positive
from jaxcore.losses.similarity import paired_similarity, similarity_vectors


def weighted_info_nce(
    queries: Float[Array, "n dim"],
    keys: Float[Array, "n dim"],
    *,
    temperature: Temperature,
    negative_log_weights: Float[Array, " n"] | None = None,
    query_weights: Float[Array, " n"] | None = None,
    **options: Any,
) -> Float[Array, ""]:
    """InfoNCE with importance weights on negatives and on queries.

        L = -sum_i u_i log [ exp(l_ii) / (exp(l_ii) + sum_{j != i} w_j exp(l_ij)) ] / sum_i u_i

    With ``log w_j = -log(propensity of j)`` this is inverse-propensity weighting; with ``-log p_N(j)`` it corrects for
    negatives that were not drawn uniformly.

    Args:
        negative_log_weights: [n], log w_j of key j where it is a negative; -inf makes it none.
        query_weights: [n], u_i >= 0.
        options: as for `info_nce`.

    Raises:
        ValueError: as for `info_nce`; lengths that do not fit.

    Source: Ma and Collins 2018 (noise correction); Zhou et al. 2022 (DCLR, instance weighting).
    """
    check_length("negative_log_weights", negative_log_weights, keys.shape[0])
    check_length("query_weights", query_weights, queries.shape[0])
    contrast = contrast_rows(queries, keys, temperature=temperature, key_log_weights=negative_log_weights, **options)
    losses = jax.nn.softplus(contrast.log_negatives - contrast.positive)
    if query_weights is None:
        return jnp.mean(losses)
    return jnp.sum(query_weights * losses) / jnp.maximum(jnp.sum(query_weights), jnp.finfo(losses.dtype).tiny)


def decoupled_contrastive(
    first: Float[Array, "n dim"],
    second: Float[Array, "n dim"],
    *,
    temperature: Temperature,
    positive_weight_scale: float | None = None,
    **options: Any,
) -> Float[Array, ""]:
    """Decoupled contrastive loss: NT-Xent without the positive in the denominator.

        L = (1/2n) sum_a [ -w_a s_a,a+ / tau + log sum_{b not in {a, a+}} exp(s_ab / tau) ]

    Args:
        first, second: [n, dim], two views of the same items, n >= 2 (one item has no negative).
        positive_weight_scale: sigma of DCLW, ``w_a = 2 - exp(s_a,a+ / sigma) / mean_b exp(s_b,b+ / sigma)`` (no
            gradient through it); None for w = 1.
        options: ``normalize``, ``mesh``, ``exchange`` as for `info_nce`.

    Raises:
        ValueError: as for `info_nce`; fewer than two items.

    Source: Yeh et al. 2022, eq. 6 and 7.
    """
    _check_several(first)
    parts = two_view_parts(first, second, temperature=temperature, **options)
    weight: float | Array = 1.0
    if positive_weight_scale is not None:
        check_positive("positive_weight_scale", positive_weight_scale)
        similarity = jax.lax.stop_gradient(parts.positive * temperature)
        scores = similarity / positive_weight_scale
        weight = 2 - jax.nn.softmax(scores) * scores.shape[0]
    return jnp.mean(sum(parts.log_negatives) / 2 - weight * parts.positive)


def debiased_contrastive(
    first: Float[Array, "n dim"],
    second: Float[Array, "n dim"],
    *,
    temperature: Temperature,
    positive_prior: float = 0.1,
    concentration: float = 0.0,
    **options: Any,
) -> Float[Array, ""]:
    """NT-Xent whose negatives are corrected for the positives among them, and hardened if asked.

        L = (1/2n) sum_a -log [ e^{l_a,a+} / (e^{l_a,a+} + G_a) ]
        G_a = max( (N E_a - tau_+ N e^{l_a,a+}) / (1 - tau_+),  N e^{-1/tau} ),   N = 2n - 2
        E_a = sum_b e^{(1 + beta) l_ab} / sum_b e^{beta l_ab}   over the N negatives b of a (their mean for beta = 0)

    Args:
        first, second: [n, dim], two views of the same items, n >= 2.
        positive_prior: tau_+ in [0, 1), the chance that a "negative" is of the anchor's class.
        concentration: beta >= 0; how much harder negatives count for more.
        options: ``normalize``, ``mesh``, ``exchange`` as for `info_nce`.

    Raises:
        ValueError: as for `info_nce`; fewer than two items; a prior or concentration out of range.

    Source: Chuang et al. 2020, eq. 7-8; hardness: Robinson et al. 2021, eq. 4.
    """
    _check_several(first)
    if not 0 <= positive_prior < 1:
        raise ValueError(f"positive_prior must be in [0, 1): got {positive_prior}")
    if concentration < 0:
        raise ValueError(f"concentration must be >= 0: got {concentration}")
    count = 2 * first.shape[0] - 2
    parts = two_view_parts(first, second, temperature=temperature / (1 + concentration), **options)
    positive = parts.positive / (1 + concentration)
    log_means = [log_sum - jnp.log(count) for log_sum in parts.log_negatives]
    if concentration:
        weights = two_view_parts(first, second, temperature=temperature / concentration, **options)
        log_means = [a - b for a, b in zip(parts.log_negatives, weights.log_negatives, strict=True)]
    floor = jnp.log(count) - 1 / temperature
    losses = [
        jax.nn.softplus(_debiased(log_mean, positive, positive_prior, count, floor) - positive)
        for log_mean in log_means
    ]
    return jnp.mean(losses[0] + losses[1]) / 2


def _debiased(log_mean: Array, positive: Array, prior: float, count: int, floor: Array) -> Array:
    """``log max((N E - tau_+ N e^l+) / (1 - tau_+), floor)`` without leaving the log domain."""
    share = prior * jnp.exp(jnp.minimum(positive - log_mean, 80.0))
    remains = share < 1
    log_rest = jnp.log1p(-jnp.where(remains, share, 0.0))
    debiased = jnp.log(count) + log_mean + log_rest - jnp.log1p(-prior)
    return jnp.where(remains, jnp.maximum(debiased, floor), floor)


def angular_margin_info_nce(
    queries: Float[Array, "n dim"],
    keys: Float[Array, "n dim"],
    *,
    temperature: Temperature,
    margin: float,
    **options: Any,
) -> Float[Array, ""]:
    """InfoNCE in which the positive pair must win by an angle.

        L = -(1/n) sum_i log [ p_i / (p_i + sum_{j != i} e^{cos(theta_ij) / tau}) ],   p_i = e^{cos(theta_ii + m) / tau}

    Beyond pi - m, where the cosine would turn up again, the angle is held at pi: ``cos(theta + m)`` is then -1 and
    continues with slope 1 in the cosine, as in ArcFace.

    Args:
        margin: m in [0, pi), radians.
        options: as for `info_nce`, without ``normalize``: angles are those of cosines.

    Raises:
        ValueError: as for `info_nce`; a margin out of range.

    Source: Zhang et al. 2022 (ArcCSE), eq. 3; Deng et al. 2019 (ArcFace).
    """
    if not 0 <= margin < jnp.pi:
        raise ValueError(f"margin must be in [0, pi) radians: got {margin}")
    contrast: Contrast = contrast_rows(queries, keys, temperature=temperature, **options)
    cosine = paired_similarity(*(similarity_vectors(x, normalize=True) for x in (queries, keys[: queries.shape[0]])))
    sine = jnp.sqrt(jnp.maximum(1 - cosine * cosine, 1e-12))
    turned = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
    limit = -jnp.cos(margin)  # cos(pi - m)
    turned = jnp.where(cosine > limit, turned, cosine - limit - 1)
    return jnp.mean(jax.nn.softplus(contrast.log_negatives - turned / temperature))


def _check_several(first: Array) -> None:
    if first.ndim == 2 and first.shape[0] < 2:
        raise ValueError(f"negatives need at least two items: got {first.shape[0]}")
