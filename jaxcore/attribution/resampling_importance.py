"""Importance of a reasoning step by resampling: how the distribution of final answers changes without the step.

R_i are N rollouts that continue a trace cut before its step i, so R_i draws step i anew and R_{i+1} keeps it. Answers
are numbers 0, 1, ... (equal numbers for equal answers), -1 for a rollout that gave none; such rollouts count nowhere.
All of it is arithmetic on a few counts, in float64 on the host: the published smoothing of 1e-9 needs it.

Source: Bogdan et al. 2025 (Thought Anchors).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

PUBLISHED_SMOOTHING = 1e-9
"""Of the released code. An answer that the reference never gave then costs about 20 nats times its share: means over
steps are carried by few of them. Laplace's 1 is the robust choice."""
FEW_ROLLOUTS = 10
"""Fewer dissimilar rollouts than this make a counterfactual importance unreliable."""

Answers = Int[np.ndarray, "positions samples"]
Reference = Literal["next", "next+similar"]


def answer_counts(
    answers: Int[np.ndarray, "*shape samples"],
    num_answers: int,
    where: Bool[np.ndarray, "*shape samples"] | None = None,
) -> Float[np.ndarray, "*shape answers"]:
    """How often each answer was given, among the rollouts `where` (all by default).

    Raises:
        ValueError: an answer outside -1, ..., num_answers - 1.
    """
    answers = np.asarray(answers)
    if answers.size and (answers.min() < -1 or answers.max() >= num_answers):
        raise ValueError(
            f"answers must be numbers from -1 (none) to {num_answers - 1}: got {answers.min()} to {answers.max()}"
        )
    given = answers[..., None] == np.arange(num_answers)
    return np.asarray(np.sum(given if where is None else given & where[..., None], axis=-2, dtype=np.float64))


def answer_divergence(
    p: Float[np.ndarray, "*shape answers"],
    q: Float[np.ndarray, "*shape answers"],
    *,
    alpha: float = PUBLISHED_SMOOTHING,
) -> Float[np.ndarray, "*shape"]:
    """``D_KL(p || q)`` of two answer distributions from their counts, smoothed over the answers that either has.

        p_a = (n_a + alpha) / (n + alpha V),   D = sum_a p_a ln(p_a / q_a),   V = |answers of p or q|

    In nats. 0 where either side is empty, as published: then it is undefined.

    Raises:
        ValueError: alpha not above 0, shapes that differ.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0 (1e-9 as published, 1 for Laplace): got {alpha}")
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if p.shape != q.shape:
        raise ValueError(f"both sides must count the same answers: got {p.shape} and {q.shape}")
    either = (p > 0) | (q > 0)
    spread = alpha * either.sum(-1, keepdims=True)
    totals = p.sum(-1, keepdims=True), q.sum(-1, keepdims=True)
    is_defined = (totals[0] > 0) & (totals[1] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [(n + alpha) / (total + spread) for n, total in zip((p, q), totals, strict=True)]
        terms = np.where(either & is_defined, shares[0] * np.log(shares[0] / shares[1]), 0.0)
    return np.maximum(terms.sum(-1), 0.0)


def binary_divergence(
    p: Float[np.ndarray, "*shape 2"], q: Float[np.ndarray, "*shape 2"], *, alpha: float = PUBLISHED_SMOOTHING
) -> Float[np.ndarray, "*shape"]:
    """`answer_divergence` of right against wrong: counts (right, wrong), smoothed over both always; 0 if empty."""
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    totals = p.sum(-1, keepdims=True), q.sum(-1, keepdims=True)
    shares = [(n + alpha) / (total + 2 * alpha) for n, total in zip((p, q), totals, strict=True)]
    divergence = np.maximum((shares[0] * np.log(shares[0] / shares[1])).sum(-1), 0.0)
    return np.where((totals[0] > 0)[..., 0] & (totals[1] > 0)[..., 0], divergence, 0.0)


def resampling_importance(
    answers: Answers, num_answers: int, *, alpha: float = PUBLISHED_SMOOTHING
) -> Float[np.ndarray, " steps"]:
    """``D_KL(p(A | R_i) || p(A | R_{i+1}))`` for every step but the last position's: [positions - 1].

    With forced answers (a lead-in that ends the reasoning at each position) it is the forced-answer importance.

    Args:
        answers: of the rollouts R_0, R_1, ... of one trace, a row each.
    """
    counts = answer_counts(_two_positions(answers), num_answers)
    return answer_divergence(counts[:-1], counts[1:], alpha=alpha)


class CounterfactualImportance(NamedTuple):
    """What resampling a step to something else does to the answer, per step."""

    importance: Float[np.ndarray, " steps"]
    """In nats; 0 where it is undefined."""
    is_defined: Bool[np.ndarray, " steps"]
    """Whether dissimilar rollouts and reference both gave answers."""
    num_dissimilar: Int[np.ndarray, " steps"]
    """Rollouts with an answer behind the importance: below `FEW_ROLLOUTS` it says little."""
    different_fraction: Float[np.ndarray, " steps"]
    """Share of R_i whose step differs in meaning, with an answer or not."""


def counterfactual_importance(
    answers: Answers,
    similarities: Float[np.ndarray, "positions samples"],
    num_answers: int,
    *,
    threshold: float = 0.8,
    reference: Reference = "next+similar",
    alpha: float = PUBLISHED_SMOOTHING,
) -> CounterfactualImportance:
    """Importance of a step against rollouts that say something else in its place.

        CF_i = D_KL(p(A | R_i, T_i unlike S_i) || p(A | S_i kept)),   unlike: cos(e(T_i), e(S_i)) < threshold

    T_i is the first step of a rollout of R_i, S_i the trace's own. Without the filter, a step that the model would
    write again anyway looks unimportant; that is `resampling_importance`.

    Args:
        answers: of R_0, R_1, ... of one trace.
        similarities: cosine of each rollout's first step to the trace's own; the last row is not looked at.
        threshold: published: 0.8 with all-MiniLM-L6-v2.
        reference: rollouts that keep S_i: R_{i+1}, the definition, or with them the similar ones of R_i, the default of
            the released code.
        alpha: see `answer_divergence`.

    Raises:
        ValueError: arrays that differ in shape, fewer than two positions, an unknown reference.
    """
    answers, similarities = _two_positions(answers), np.asarray(similarities)
    if similarities.shape != answers.shape:
        raise ValueError(
            f"similarities must be of each rollout, {answers.shape} like the answers: got {similarities.shape}"
        )
    if reference not in ("next", "next+similar"):
        raise ValueError(f"reference must be 'next' or 'next+similar': got {reference!r}")
    is_different = similarities[:-1] < threshold
    dissimilar = answer_counts(answers[:-1], num_answers, is_different)
    kept = answer_counts(answers[1:], num_answers)
    if reference == "next+similar":
        # The released code adds them only where R_{i+1} has rollouts at all, which it does at every step but the last.
        kept = kept + answer_counts(answers[:-1], num_answers, ~is_different)
    counts = dissimilar.sum(-1)
    return CounterfactualImportance(
        importance=answer_divergence(dissimilar, kept, alpha=alpha),
        is_defined=(counts > 0) & (kept.sum(-1) > 0),
        num_dissimilar=counts.astype(np.int64),
        different_fraction=is_different.mean(-1),
    )


class AccuracyImportance(NamedTuple):
    """Importances as changes of accuracy, with the published signs: those of the two are opposite."""

    resampling: Float[np.ndarray, " steps"]
    """acc(R_{i+1}) - acc(R_i)."""
    counterfactual: Float[np.ndarray, " steps"]
    """acc(R_i, dissimilar) - acc(R_{i+1}); 0 where no dissimilar rollout gave an answer."""


def accuracy_importance(
    answers: Answers, similarities: Float[np.ndarray, "positions samples"], truth: int, *, threshold: float = 0.8
) -> AccuracyImportance:
    """Accuracy in place of the distribution of answers; see `counterfactual_importance`.

    Raises:
        ValueError: a position at which no rollout gave an answer.
    """
    answers = _two_positions(answers)
    accuracy = accuracies(answers, truth)
    is_different = (np.asarray(similarities)[:-1] < threshold) & (answers[:-1] >= 0)
    right = np.sum(is_different & (answers[:-1] == truth), axis=1)
    total = is_different.sum(1)
    dissimilar = np.where(total > 0, right / np.maximum(total, 1), accuracy[1:])
    return AccuracyImportance(np.diff(accuracy), dissimilar - accuracy[1:])


def accuracies(answers: Answers, truth: int) -> Float[np.ndarray, " positions"]:
    """Share of right answers among the rollouts that gave one.

    Raises:
        ValueError: a position at which none did.
    """
    given = np.sum(answers >= 0, axis=1)
    if not given.all():
        raise ValueError(f"no rollout of position {int(np.argmin(given > 0))} gave an answer")
    return np.sum(answers == truth, axis=1) / given


def overdeterminedness(steps: Sequence[str]) -> float:
    """``1 - distinct / all`` of the steps drawn at a position, as exact strings: 0 if all differ.

    Raises:
        ValueError: no step.
    """
    if not len(steps):
        raise ValueError("overdeterminedness needs at least one step that was drawn")
    return 1 - len(set(steps)) / len(steps)


def _two_positions(answers: Answers) -> Answers:
    answers = np.asarray(answers)
    if answers.ndim != 2 or len(answers) < 2 or not np.issubdtype(answers.dtype, np.integer):
        raise ValueError(
            "answers must be integers [positions, samples] of at least two positions: got "
            f"{answers.dtype}{list(answers.shape)}"
        )
    return answers
