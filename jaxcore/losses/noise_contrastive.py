"""Objectives that tell data from noise by given scores, and the bounds on mutual information that go with them.

Scores come from `jaxcore.losses.scorers` or a model: of the positives [B, P] and of the noise [B, K] of each row.
The two families estimate different things and are kept apart: binary NCE asks of every score alone whether it is data,
and needs a score that carries its own normaliser; ranking NCE asks which of the candidates is the datum, and any
constant per row cancels. The noise correction ``sbar(x, a) = s(x, a) - log p_N(a | x)`` decides whether the optimum is
log p(a | x) (with it) or the log-ratio log p(a | x) / p_N(a | x) (without).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Scores = Float[Array, "batch n"]


def binary_nce(
    positive: Scores,
    negative: Scores,
    *,
    noise_correction: bool,
    log_noise_positive: Scores | None = None,
    log_noise_negative: Scores | None = None,
    log_partition: float | Float[Array, ""] | Float[Array, " batch"] | None = None,
    positive_mask: Bool[Array, "batch p"] | None = None,
    negative_mask: Bool[Array, "batch k"] | None = None,
) -> Float[Array, ""]:
    """Binary noise-contrastive estimation: is this candidate data or noise?

        L = mean over rows of (1/P) [ sum_p -log sigma(z(a_p)) + sum_k -log(1 - sigma(z(a_k))) ]
        z(a) = s(a) - log p_N(a) - gamma - log(K / P)     with the correction
        z(a) = s(a) - gamma                               without: negative sampling, BCE matching

    P and K count what the masks leave in a row; for one positive this is the form of the source. Rows without a
    positive have no term. The optimum with the correction is s = log p + (log Z - gamma): one gamma for all rows is
    biased where Z depends on the row and the score cannot absorb it.

    Args:
        positive, negative: [B, P] and [B, K] scores.
        noise_correction: subtract log p_N and log(K / P).
        log_noise_positive, log_noise_negative: log p_N of the same candidates, [B, P] and [B, K].
        log_partition: gamma, a guess of or parameter for log Z: none, one, or one per row [B].
        positive_mask, negative_mask: False leaves a candidate out (padding, false negatives), whatever its score.

    Raises:
        ValueError: shapes that do not fit, a correction without both log-noises.

    Source: Gutmann and Hyvarinen 2010; conditional form Ma and Collins 2018, eq. 3 (B); CLESS, GILE (uncorrected).
    """
    kept = _check_scores(positive, negative, positive_mask, negative_mask)
    positive, negative = _corrected(positive, negative, noise_correction, log_noise_positive, log_noise_negative)
    num_positive, num_negative = (jnp.sum(mask, axis=1, keepdims=True).astype(positive.dtype) for mask in kept)
    shift = jnp.zeros(())
    if noise_correction:
        shift = jnp.log(jnp.maximum(num_negative, 1)) - jnp.log(jnp.maximum(num_positive, 1))
    if log_partition is not None:
        shift = shift + _per_row(log_partition, positive.shape[0])
    data = jax.nn.softplus(-_kept(positive - shift, kept[0]))
    noise = jax.nn.softplus(_kept(negative - shift, kept[1]))
    rows = jnp.sum(data, axis=1, where=kept[0]) + jnp.sum(noise, axis=1, where=kept[1])
    return _mean_over_rows(rows / jnp.maximum(num_positive[:, 0], 1), num_positive[:, 0] > 0)


def ranking_nce(
    positive: Scores,
    negative: Scores,
    *,
    noise_correction: bool,
    log_noise_positive: Scores | None = None,
    log_noise_negative: Scores | None = None,
    reduction: Literal["out", "in"] = "out",
    positive_mask: Bool[Array, "batch p"] | None = None,
    negative_mask: Bool[Array, "batch k"] | None = None,
) -> Float[Array, ""]:
    """Ranking noise-contrastive estimation: which of the candidates is the datum?

        out:  L = mean over rows of (1/P) sum_p -log [ e^sbar(a_p) / (e^sbar(a_p) + sum_k e^sbar(a_k)) ]
        in:   L = mean over rows of -log [ sum_p e^sbar(a_p) / (sum_p e^sbar(a_p) + sum_k e^sbar(a_k)) ]

    Without the correction sbar = s and this is InfoNCE on explicit candidates. "out" asks every positive to win against
    the noise; "in" is content when one does. Rows without a positive have no term.

    Args:
        positive, negative: [B, P] and [B, K] scores.
        noise_correction: subtract log p_N from every score.
        log_noise_positive, log_noise_negative: log p_N of the same candidates, [B, P] and [B, K].
        reduction: where the mean over positives stands.
        positive_mask, negative_mask: False leaves a candidate out, whatever its score.

    Raises:
        ValueError: shapes that do not fit, a correction without both log-noises.

    Source: Ma and Collins 2018, eq. 4 (R); Jozefowicz et al. 2016.
    """
    kept = _check_scores(positive, negative, positive_mask, negative_mask)
    if reduction not in ("out", "in"):
        raise ValueError(f'reduction must be "out" or "in": got {reduction!r}')
    positive, negative = _corrected(positive, negative, noise_correction, log_noise_positive, log_noise_negative)
    log_noise = _log_sum(negative, kept[1])
    count = jnp.sum(kept[0], axis=1)
    if reduction == "in":
        log_data = jnp.where(count > 0, _log_sum(positive, kept[0]), 0)
        return _mean_over_rows(jax.nn.softplus(log_noise - log_data), count > 0)
    losses = jax.nn.softplus(log_noise[:, None] - _kept(positive, kept[0]))
    return _mean_over_rows(jnp.sum(losses, axis=1, where=kept[0]) / jnp.maximum(count, 1), count > 0)


def donsker_varadhan_bound(joint: Float[Array, " n"], marginal: Float[Array, " m"]) -> Float[Array, ""]:
    """``I >= E_joint s - log E_marginal e^s``, a lower bound on the mutual information, in nats.

    Args:
        joint: scores of pairs that belong together, [n].
        marginal: scores of pairs drawn independently, [m].

    Raises:
        ValueError: not two non-empty vectors.

    Source: Donsker and Varadhan 1983; Belghazi et al. 2018 (MINE), eq. 5.
    """
    joint, marginal = _check_samples(joint, marginal)
    return jnp.mean(joint) - (jax.nn.logsumexp(marginal) - jnp.log(marginal.shape[0]))


def jensen_shannon_bound(joint: Float[Array, " n"], marginal: Float[Array, " m"]) -> Float[Array, ""]:
    """``E_joint [-softplus(-s)] - E_marginal [softplus(s)]``, at most 0.

    Its optimum ``s = log p(x, a) / p(x) p(a)`` is the pointwise mutual information and its maximum
    ``2 JS(joint, marginal) - 2 log 2``; it ranks critics like a bound on the mutual information without being one.

    Args:
        joint, marginal: as for `donsker_varadhan_bound`.

    Raises:
        ValueError: not two non-empty vectors.

    Source: Nowozin et al. 2016; Hjelm et al. 2019 (Deep InfoMax), eq. 4.
    """
    joint, marginal = _check_samples(joint, marginal)
    return -jnp.mean(jax.nn.softplus(-joint)) - jnp.mean(jax.nn.softplus(marginal))


def info_nce_bound(positive: Float[Array, " batch"], negative: Scores) -> Float[Array, ""]:
    """``I >= log(K + 1) - L``, with L the uncorrected ranking loss on one positive and K independent negatives.

    Args:
        positive: [B] scores of the pairs that belong together.
        negative: [B, K] scores of each row with candidates drawn from the marginal.

    Returns:
        The bound in nats; never more than log(K + 1), however large the mutual information is.

    Raises:
        ValueError: shapes that do not fit.

    Source: van den Oord et al. 2018, section 2.3 and appendix A.1.
    """
    if jnp.ndim(positive) != 1:
        raise ValueError(f"positive must be [batch], one score per row: got {jnp.shape(positive)}")
    return jnp.log(jnp.shape(negative)[-1] + 1) - ranking_nce(positive[:, None], negative, noise_correction=False)


def _check_scores(
    positive: Array, negative: Array, positive_mask: Array | None, negative_mask: Array | None
) -> tuple[Array, Array]:
    """The masks, all True where none is given; ValueError unless everything has the shape of its scores."""
    shapes = f"{jnp.shape(positive)} and {jnp.shape(negative)}"
    if jnp.ndim(positive) != 2 or jnp.ndim(negative) != 2 or positive.shape[0] != negative.shape[0]:
        raise ValueError(f"positive and negative scores must be [batch, p] and [batch, k]: got {shapes}")
    if 0 in positive.shape or 0 in negative.shape:
        raise ValueError(f"every row needs a positive and a negative: got scores of {shapes}")
    masks = []
    for name, scores, mask in (("positive", positive, positive_mask), ("negative", negative, negative_mask)):
        if mask is not None and jnp.shape(mask) != scores.shape:
            raise ValueError(f"{name}_mask must have the shape of the scores {scores.shape}: got {jnp.shape(mask)}")
        masks.append(jnp.ones(scores.shape, bool) if mask is None else mask.astype(bool))
    return masks[0], masks[1]


def _corrected(
    positive: Array,
    negative: Array,
    noise_correction: bool,
    log_noise_positive: Array | None,
    log_noise_negative: Array | None,
) -> tuple[Array, Array]:
    sides = []
    for name, scores, log_noise in (
        ("log_noise_positive", positive, log_noise_positive),
        ("log_noise_negative", negative, log_noise_negative),
    ):
        if log_noise is not None and jnp.shape(log_noise) != scores.shape:
            raise ValueError(f"{name} must have the shape of its scores {scores.shape}: got {jnp.shape(log_noise)}")
        wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        if noise_correction:
            if log_noise is None:
                raise ValueError(
                    f"noise_correction needs {name}, the log-probability of these candidates under the noise: give it, "
                    "or pass noise_correction=False and estimate a log-ratio to the noise instead"
                )
            wide = wide - log_noise
        sides.append(wide)
    return sides[0], sides[1]


def _per_row(log_partition: float | Array, num_rows: int) -> Array:
    if jnp.shape(log_partition) not in ((), (num_rows,)):
        raise ValueError(
            f"log_partition must be a number or one for each of {num_rows} rows: got {jnp.shape(log_partition)}"
        )
    return jnp.reshape(jnp.asarray(log_partition), (-1, 1))


def _kept(scores: Array, mask: Array) -> Array:
    """Scores with 0 where masked: neither an infinity nor a NaN there reaches value or gradient."""
    return jnp.where(mask, scores, 0)


_MASKED = -1e30  # finite: a row with nothing left has a finite log-sum, and a gradient of 0 instead of NaN


def _log_sum(scores: Array, mask: Array) -> Array:
    return jax.nn.logsumexp(jnp.where(mask, scores, _MASKED), axis=1)


def _mean_over_rows(rows: Array, counted: Array) -> Array:
    return jnp.sum(rows, where=counted) / jnp.maximum(jnp.sum(counted), 1)


def _check_samples(joint: Array, marginal: Array) -> tuple[Array, Array]:
    if jnp.ndim(joint) != 1 or jnp.ndim(marginal) != 1 or 0 in (*joint.shape, *marginal.shape):
        raise ValueError(
            f"joint and marginal scores must be non-empty vectors: got {jnp.shape(joint)} and {jnp.shape(marginal)}"
        )
    wide = jnp.promote_types(jnp.promote_types(joint.dtype, marginal.dtype), jnp.float32)
    return joint.astype(wide), marginal.astype(wide)
