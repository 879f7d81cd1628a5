"""What rollouts say about the sentences of a trace: importances, a matrix between sentences, what else was written.

Source: Bogdan et al. 2025 (Thought Anchors).
"""

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxcore.attribution.resampling_importance import (
    PUBLISHED_SMOOTHING,
    CounterfactualImportance,
    Reference,
    counterfactual_importance,
    overdeterminedness,
    resampling_importance,
)
from jaxcore.attribution.sentence_matrices import Matrix, resampling_matrix
from jaxcore.data.reasoning_sentences import split_sentences
from jaxcore.data.reasoning_trace import ReasoningTrace
from jaxcore.evaluation.boxed_answers import final_answer, is_same_answer
from jaxcore.evaluation.step_similarity import Embed, best_step_similarities, first_step_similarities
from jaxcore.generation.rollouts import Rollout

SMOOTHINGS = {"published": PUBLISHED_SMOOTHING, "laplace": 1.0}
"""The published importances are dominated by answers that the reference never gave; Laplace's are not."""


class TraceResampling(NamedTuple):
    """Scores of a trace's M sentences; dictionaries are by the names in `SMOOTHINGS`."""

    counterfactual: dict[str, CounterfactualImportance]
    resampling: dict[str, Float[np.ndarray, " M"]]
    forced: dict[str, Float[np.ndarray, " M"]]
    accuracy: Float[np.ndarray, " positions"]
    """Of each position's rollouts that gave an answer; NaN where none did."""
    matrix: Matrix
    overdeterminedness: Float[np.ndarray, " M"]
    resamples: list[list[tuple[str, int]]]
    """Different sentences written most often in the place of each, and how often."""


def score_resampling(
    trace: ReasoningTrace,
    rollouts: Sequence[Sequence[Rollout]],
    forced: Sequence[Sequence[Rollout]],
    *,
    decode: Callable[[Sequence[int]], str],
    lead_in: Sequence[int],
    embed: Embed,
    threshold: float = 0.8,
    reference: Reference = "next+similar",
) -> TraceResampling:
    """All scores of a trace from its rollouts at positions 0, ..., M.

    Args:
        trace: the trace; its sentence i is drawn anew by `rollouts[i]` and kept by `rollouts[i + 1]`.
        rollouts, forced: continuations of `trace.prefixes()`, and of those with `lead_in` behind them.
        decode: token ids -> text.
        lead_in: tokens that force an answer, up to the opened box.
        embed: sentences -> unit vectors.
        threshold: cosine below which sentences differ.
        reference: see `counterfactual_importance`.

    Raises:
        ValueError: not a set of rollouts for each position.
    """
    positions = len(trace) + 1
    if len(rollouts) != positions or len(forced) != positions:
        raise ValueError(
            f"{len(trace)} sentences have {positions} positions: got {len(rollouts)} sets of rollouts, {len(forced)} "
            "of forced answers"
        )
    start = int(trace.spans[0, 0])
    before = [decode(trace.tokens[start : len(prefix)]) for prefix in trace.prefixes()]
    texts = [[decode(rollout.tokens) for rollout in samples] for samples in rollouts]
    lead = decode(lead_in)
    numbers = _AnswerNumbers()
    answers = np.array([[numbers(b + text) for text in t] for b, t in zip(before, texts, strict=True)])
    answered = np.array([[numbers(lead + decode(rollout.tokens)) for rollout in samples] for samples in forced])
    steps = [[_sentences(text) for text in samples] for samples in texts]
    firsts = [[sentences[0] if sentences else "" for sentences in samples] for samples in steps[:-1]]
    similarities = first_step_similarities(embed, trace.sentences, firsts)
    padded = np.concatenate([similarities, np.ones((1, answers.shape[1]))])  # at M all is kept
    options = {"threshold": threshold, "reference": reference}
    return TraceResampling(
        counterfactual={
            name: counterfactual_importance(answers, padded, len(numbers), alpha=alpha, **options)  # type: ignore
            for name, alpha in SMOOTHINGS.items()
        },
        resampling={n: resampling_importance(answers, len(numbers), alpha=a) for n, a in SMOOTHINGS.items()},
        forced={n: resampling_importance(answered, len(numbers), alpha=a) for n, a in SMOOTHINGS.items()},
        accuracy=_accuracy(answers, numbers, trace.truth),
        matrix=resampling_matrix(best_step_similarities(embed, trace.sentences, steps), threshold=threshold),
        overdeterminedness=np.array([overdeterminedness(samples) for samples in firsts]),
        resamples=[
            collections.Counter(
                text for text, cosine in zip(samples, row, strict=True) if text and cosine < threshold
            ).most_common(3)
            for samples, row in zip(firsts, similarities, strict=True)
        ],
    )


class _AnswerNumbers:
    """Numbers of normalised answers, in the order they are met; -1 for a text without one."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        answer = final_answer(text)
        return -1 if answer is None else self.known.setdefault(answer, len(self.known))

    def __len__(self) -> int:
        return max(len(self.known), 1)


def _sentences(text: str) -> list[str]:
    """Those of a continuation, its last one included; none if it wrote nothing."""
    try:
        return split_sentences(text, tail="keep")
    except ValueError:
        return []


def _accuracy(answers: Int[np.ndarray, "positions samples"], numbers: _AnswerNumbers, truth: str) -> np.ndarray:
    right = np.isin(answers, [number for answer, number in numbers.known.items() if is_same_answer(answer, truth)])
    given = np.sum(answers >= 0, axis=1)
    return np.where(given > 0, np.sum(right, axis=1) / np.maximum(given, 1), np.nan)
