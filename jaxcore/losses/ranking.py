"""Learning to rank from given scores: pairs, margins, and whole lists."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcore.losses.input_checks import check_temperature

Link = Literal["logistic", "hinge"]


def pairwise_ranking(
    higher: Float[Array, "*shape"],
    lower: Float[Array, "*shape"],
    *,
    link: Link = "logistic",
    margin: float = 1.0,
    mask: Bool[Array, "*shape"] | None = None,
) -> Float[Array, ""]:
    """What should score higher, against what should score lower, pair by pair.

        logistic:  l = log(1 + exp(s_lower - s_higher))        hinge:  l = max(0, m - (s_higher - s_lower))

    Args:
        higher, lower: scores of the pairs, any one shape.
        link: "logistic" is Bradley-Terry, RankNet with certain targets.
        margin: m of the hinge, >= 0; the logistic link has none.
        mask: False leaves a pair out. The loss is the mean over the others, 0 where there is none.

    Raises:
        ValueError: shapes that differ, an unknown link, a negative margin.

    Source: Burges et al. 2005 (RankNet), eq. 3; Herbrich et al. 2000 (hinge).
    """
    if jnp.shape(higher) != jnp.shape(lower):
        raise ValueError(f"higher and lower must have one shape: got {jnp.shape(higher)} and {jnp.shape(lower)}")
    mask = _check_mask(mask, higher)
    gap = jnp.where(mask, _wide(higher) - _wide(lower), 0)
    return _mean(_link_loss(gap, link, margin), mask)


def ranknet(
    scores: Float[Array, "batch candidates"],
    relevance: Float[Array, "batch candidates"],
    *,
    link: Link = "logistic",
    margin: float = 1.0,
    mask: Bool[Array, "batch candidates"] | None = None,
) -> Float[Array, ""]:
    """`pairwise_ranking` over all pairs of a list in which one candidate is more relevant than the other.

        L = (1/|Q|) sum_{(b,i,j) in Q} l(s_bi, s_bj),   Q = {(b, i, j): r_bi > r_bj}

    Ties in relevance make no pair; lists without a pair have no term; 0 where no list has one.

    Args:
        scores, relevance: [B, C]; relevance is graded, higher is better.
        link, margin: as for `pairwise_ranking`.
        mask: False leaves a candidate out.

    Raises:
        ValueError: as for `pairwise_ranking`.

    Source: Burges et al. 2005, section 3.
    """
    _check_lists(scores, relevance)
    mask = _check_mask(mask, scores)
    scores = jnp.where(mask, _wide(scores), 0)
    pairs = (relevance[:, :, None] > relevance[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    return _mean(_link_loss(scores[:, :, None] - scores[:, None, :], link, margin), pairs)


def margin_ranking(
    positive: Float[Array, "batch p"],
    negative: Float[Array, "batch k"],
    *,
    margin: float,
    negatives: Literal["sum", "hardest"] = "sum",
    positive_mask: Bool[Array, "batch p"] | None = None,
    negative_mask: Bool[Array, "batch k"] | None = None,
) -> Float[Array, ""]:
    """Every positive must beat the negatives of its row by a margin.

        sum:      l(b, p) = sum_k max(0, m - s(b, a_p) + s(b, a_k))
        hardest:  l(b, p) = max_k max(0, m - s(b, a_p) + s(b, a_k))

    The loss is the mean of l over positives; 0 where there is none.

    Args:
        positive, negative: [B, P] and [B, K] scores.
        margin: m >= 0.
        negatives: all of them, or the one that scores highest.
        positive_mask, negative_mask: False leaves a candidate out.

    Raises:
        ValueError: shapes that do not fit, a negative margin, an unknown choice.

    Source: Collobert et al. 2011 (sum); Faghri et al. 2018 (VSE++, hardest).
    """
    if jnp.ndim(positive) != 2 or jnp.ndim(negative) != 2 or positive.shape[0] != negative.shape[0]:
        raise ValueError(
            f"positive and negative scores must be [batch, p] and [batch, k]: got {jnp.shape(positive)} and "
            f"{jnp.shape(negative)}"
        )
    if negatives not in ("sum", "hardest"):
        raise ValueError(f'negatives must be "sum" or "hardest": got {negatives!r}')
    positive_mask, negative_mask = _check_mask(positive_mask, positive), _check_mask(negative_mask, negative)
    positive = jnp.where(positive_mask, _wide(positive), 0)[:, :, None]
    negative = jnp.where(negative_mask, _wide(negative), 0)[:, None, :]
    hinges = _link_loss(positive - negative, "hinge", margin)
    against = negative_mask[:, None, :]
    if negatives == "sum":
        losses = jnp.sum(hinges, axis=2, where=against)
    else:
        losses = jnp.max(hinges, axis=2, where=against, initial=0)
    return _mean(losses, positive_mask)


def listwise_cross_entropy(
    scores: Float[Array, "batch candidates"],
    relevance: Float[Array, "batch candidates"],
    *,
    target: Literal["proportional", "list_net"] = "proportional",
    temperature: float | Float[Array, ""] = 1.0,
    mask: Bool[Array, "batch candidates"] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy between the relevance of a list and the softmax of its scores, for rerankers.

        L = mean over lists of -sum_c t_c log softmax(s / tau)_c
        proportional:  t_c = r_c / sum r    (one relevant candidate: the usual softmax loss)
        list_net:      t = softmax(r)       (top-one probabilities)

    "proportional" leaves out lists without any relevance, "list_net" lists without candidates; 0 where none is left.

    Args:
        scores, relevance: [B, C]; relevance >= 0, graded.
        target: what the softmax should be.
        temperature: tau > 0 divides the scores.
        mask: False leaves a candidate out.

    Raises:
        ValueError: shapes that differ, an unknown target, a temperature that is not positive.

    Source: Cao et al. 2007 (ListNet), eq. 5; Bruch et al. 2019 (softmax cross-entropy).
    """
    _check_lists(scores, relevance)
    if target not in ("proportional", "list_net"):
        raise ValueError(f'target must be "proportional" or "list_net": got {target!r}')
    check_temperature(temperature)
    mask = _check_mask(mask, scores)
    log_probabilities = jax.nn.log_softmax(jnp.where(mask, _wide(scores) / temperature, _MASKED), axis=1)
    relevance = jnp.where(mask, _wide(relevance), 0)
    if target == "list_net":
        targets = jax.nn.softmax(jnp.where(mask, relevance, _MASKED), axis=1)
        counted = jnp.any(mask, axis=1)
    else:
        total = jnp.sum(relevance, axis=1, keepdims=True)
        counted = total[:, 0] > 0
        targets = relevance / jnp.where(total > 0, total, 1)
    return _mean(-jnp.sum(targets * log_probabilities, axis=1, where=mask), counted)


_MASKED = -1e30  # finite: a list with nothing left gives a uniform softmax, not NaN, and is not counted


def _link_loss(gap: Array, link: Link, margin: float) -> Array:
    if link == "logistic":
        return jax.nn.softplus(-gap)
    if link != "hinge":
        raise ValueError(f'link must be "logistic" or "hinge": got {link!r}')
    if margin < 0:
        raise ValueError(f"margin must be >= 0: got {margin}")
    return jnp.maximum(margin - gap, 0)


def _check_lists(scores: Array, relevance: Array) -> None:
    if jnp.ndim(scores) != 2 or jnp.shape(relevance) != jnp.shape(scores):
        raise ValueError(
            f"scores and relevance must both be [batch, candidates]: got {jnp.shape(scores)} and {jnp.shape(relevance)}"
        )


def _check_mask(mask: Array | None, scores: Array) -> Array:
    if mask is None:
        return jnp.ones(jnp.shape(scores), bool)
    if jnp.shape(mask) != jnp.shape(scores):
        raise ValueError(f"a mask must have the shape of its scores {jnp.shape(scores)}: got {jnp.shape(mask)}")
    return mask.astype(bool)


def _wide(scores: Array) -> Array:
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


def _mean(losses: Array, counted: Array) -> Array:
    return jnp.sum(losses, where=counted) / jnp.maximum(jnp.sum(counted), 1)
