"""Do explanations look right to people? Agreement with human rationales, and what a reader can guess from them.

Plausible is not faithful: a human rationale says why a person would decide so, not why the model did. Measures of
rationales give one number per text, NaN where a text has none, so that means are taken over what is defined.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxcore.attribution.agreement import per_instance
from jaxcore.attribution.faithfulness import removal_order
from jaxcore.attribution.input_checks import checked_mask
from jaxcore.attribution.top_k_agreement import top_membership


class SpanMatches(NamedTuple):
    """Per text, how many predicted spans match a human one, and how many there are of either: [texts] each. Sums over
    texts give the micro-averaged score."""

    matches: Int[Array, " texts"]
    predicted: Int[Array, " texts"]
    human: Int[Array, " texts"]


def rationale_auprc(
    token_scores: Float[Array, "texts time"],
    rationales: Bool[Array, "texts time"],
    mask: Bool[Array, "texts time"] | None = None,
    *,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " texts"]:
    """Area under the precision-recall curve of finding the rationale's tokens, per text (average precision).

        AP = 1/|R| sum_{i in R} |{j in R: s_j >= s_i}| / |{j: s_j >= s_i}|

    Args:
        token_scores: importance; scores outside `mask` are not looked at.
        rationales: True at tokens that people marked.
        mask: True at tokens; all by default.
        chunk_size, memory_budget: texts evaluated together, as in `jaxcore.attribution.agreement`.

    Returns:
        [texts] in (0, 1], NaN for a text without rationale. Chance is the share of marked tokens.

    Raises:
        ValueError: shapes that differ, scores at tokens that are not finite.

    Source: DeYoung et al. 2020 (ERASER); average precision as scikit-learn defines it, tied scores together. ERASER's
    released code calls this `average_precision`; its `auprc` is the trapezoid rule over the same curve's points, which
    joins them by straight lines and gives another number.
    """
    marked = _marked(token_scores, rationales, mask).astype(jnp.float32)
    return per_instance(_average_precision, token_scores, marked, mask, (), chunk_size, memory_budget)


def token_f1(
    token_scores: Float[Array, "texts time"],
    rationales: Bool[Array, "texts time"],
    mask: Bool[Array, "texts time"] | None = None,
    *,
    k: Int[Array, " texts"] | int | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " texts"]:
    """F1 of the k highest tokens against the rationale's, ``2 |top_k n R| / (k + |R|)``, per text.

    Tokens tied for the last places share them, so that the result is the mean over random choices among them.

    Args:
        k: how many tokens are predicted; by default as many as the rationale has (precision, recall and F1 are then
            one number).
        token_scores, rationales, mask, chunk_size, memory_budget: as in `rationale_auprc`, with its errors and
            undefined cases.

    Source: DeYoung et al. 2020 (ERASER).
    """
    if isinstance(k, int) and k < 1:
        raise ValueError(f"k must be at least 1: got {k}")
    marked = _marked(token_scores, rationales, mask)
    k = jnp.sum(marked, axis=1) if k is None else k
    marked = marked.astype(jnp.float32)
    return per_instance(_f1_at_k, token_scores, marked, mask, (k,), chunk_size, memory_budget)


def top_tokens(
    token_scores: Float[Array, "texts time"],
    k: Int[Array, " texts"] | int,
    mask: Bool[Array, "texts time"] | None = None,
) -> Bool[Array, "texts time"]:
    """True at each text's k highest tokens (ties by position): a rationale cut out of an explanation."""
    order = removal_order(token_scores, mask)
    return (order < jnp.broadcast_to(jnp.asarray(k), order.shape[:1])[:, None]) & (order < order.shape[1])


def iou_f1(
    predicted: Bool[Array, "texts time"], rationales: Bool[Array, "texts time"], *, threshold: float = 0.5
) -> Float[Array, " texts"]:
    """F1 over spans: a predicted span is right if it overlaps a human one by at least `threshold`, per text.

        IOU(p, r) = |p n r| / |p u r|;  precision = matches / |predicted spans|, recall = matches / |human spans|

    Args:
        predicted: True at predicted tokens, see `top_tokens`; neighbours form a span.
        rationales: True at tokens that people marked; neighbours form a span.
        threshold: in (0, 1]; from 0.5 on no human span is matched twice.

    Returns:
        [texts] in [0, 1]; NaN without human spans, 0 without predicted ones.

    Raises:
        ValueError: shapes that differ or are not [texts, time], a threshold outside (0, 1].

    Source: DeYoung et al. 2020 (ERASER, threshold 0.5).
    """
    matches, num_predicted, num_human = span_matches(predicted, rationales, threshold=threshold)
    f1 = 2 * matches / jnp.maximum(num_predicted + num_human, 1)
    return jnp.where(num_human > 0, f1, jnp.nan)


def span_matches(
    predicted: Bool[Array, "texts time"], rationales: Bool[Array, "texts time"], *, threshold: float = 0.5
) -> SpanMatches:
    """The counts behind `iou_f1`; its args and errors."""
    if jnp.ndim(predicted) != 2 or jnp.shape(predicted) != jnp.shape(rationales):
        raise ValueError(
            f"predicted and rationales must share one shape [texts, time]: got {list(jnp.shape(predicted))} and "
            f"{list(jnp.shape(rationales))}"
        )
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1]: got {threshold}")
    chosen, marked = (jnp.asarray(tokens).astype(bool) for tokens in (predicted, rationales))
    return jax.vmap(lambda p, r: _matched_spans(p, r, threshold))(chosen, marked)


def simulation_accuracy(guesses: Int[ArrayLike, " texts"], predictions: Int[ArrayLike, " texts"]) -> float:
    """Share of texts whose prediction by the model a reader (person or student model) guesses from the explanation.

    What is guessed is the model's prediction, right or wrong, never the gold label.

    Raises:
        ValueError: arrays that are empty or of different length.

    Source: Doshi-Velez & Kim 2017 (forward simulation).
    """
    guessed, predicted = np.asarray(guesses), np.asarray(predictions)
    if guessed.ndim != 1 or guessed.shape != predicted.shape or not guessed.size:
        raise ValueError(
            f"guesses and predictions must be one class per text: got shapes {list(guessed.shape)} and "
            f"{list(predicted.shape)}"
        )
    return float(np.mean(guessed == predicted))


def simulatability(
    guesses_with: Int[ArrayLike, " texts"],
    guesses_without: Int[ArrayLike, " texts"],
    predictions: Int[ArrayLike, " texts"],
) -> float:
    """What explanations add: simulation accuracy with them less simulation accuracy from the texts alone, in [-1, 1].

    Source: Hase & Bansal 2020.
    """
    return simulation_accuracy(guesses_with, predictions) - simulation_accuracy(guesses_without, predictions)


def _matched_spans(predicted: Array, human: Array, threshold: float) -> SpanMatches:
    width = len(predicted) // 2 + 2  # spans are separated, and number 0 takes what is in none
    spans, sizes = zip(*(_numbered_spans(tokens, width) for tokens in (predicted, human)), strict=True)
    shared = jnp.zeros((width, width)).at[spans].add(1)[1:, 1:]
    union = sizes[0][1:, None] + sizes[1][1:] - shared
    best = jnp.max(shared / jnp.maximum(union, 1), axis=1)
    # 1e-6: a third is a third in float32, too
    return SpanMatches(jnp.sum(best >= threshold - 1e-6), jnp.max(spans[0]), jnp.max(spans[1]))


def _numbered_spans(tokens: Array, width: int) -> tuple[Array, Array]:
    """Each token's span, counted from 1 (0: in none), and the spans' sizes [width]."""
    starts = tokens & ~jnp.concatenate([jnp.zeros(1, bool), tokens[:-1]])
    numbers = jnp.where(tokens, jnp.cumsum(starts), 0)
    return numbers, jnp.zeros(width).at[numbers].add(1)


def _average_precision(scores: Array, marked: Array, tokens: Array) -> Array:
    at_least = (scores >= scores[:, None]) & tokens
    precision = jnp.sum(at_least * marked, axis=1) / jnp.maximum(jnp.sum(at_least, axis=1), 1)
    return _where_marked(jnp.sum(precision * marked) / jnp.maximum(jnp.sum(marked), 1), marked)


def _f1_at_k(scores: Array, marked: Array, tokens: Array, k: Array) -> Array:
    found = jnp.sum(top_membership(scores, tokens, k) * marked)
    sizes = jnp.minimum(k, jnp.sum(tokens)) + jnp.sum(marked)
    return _where_marked(2 * found / jnp.maximum(sizes, 1), marked)


def _where_marked(value: Array, marked: Array) -> Array:
    return jnp.where(jnp.any(marked > 0), value, jnp.nan)


def _marked(token_scores: Array, rationales: Array, mask: Array | None) -> Array:
    """The tokens of the rationale; ValueError unless all shapes agree."""
    shape = jnp.shape(token_scores)
    if jnp.shape(rationales) != shape:
        raise ValueError(
            f"rationales must have the shape of the token scores, {list(shape)}: got {list(jnp.shape(rationales))}"
        )
    return jnp.asarray(rationales).astype(bool) & checked_mask(mask, shape)
