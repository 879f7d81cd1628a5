"""What explains texts token by token: the options, one text's explanation, and the same word by word."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcore.attribution.input_checks import Score
from jaxcore.attribution.method_names import find_method
from jaxcore.attribution.scores import log_probability, logit, margin, probability
from jaxcore.attribution.token_aggregation import word_ids_from_offsets
from jaxcore.evaluation.input_checks import positive_integer

ScoreName = Literal["logit", "probability", "log_probability", "margin"]
CLASS_SCORES: dict[str, Callable[..., Score]] = {
    "logit": logit,
    "probability": probability,
    "log_probability": log_probability,
    "margin": margin,
}


@dataclasses.dataclass(frozen=True)
class AttributionOptions:
    """What decides the scores, and beside rounding only the speed (`batch_tokens`, `memory_budget`)."""

    methods: tuple[str, ...]
    """Names in `TOKEN_METHODS`."""
    score: ScoreName = "logit"
    """Of the target class; not for a contrast or a similarity."""
    target: int | None = None
    """The class that is explained; None = each text's predicted class."""
    versus: int | None = None
    """A class to contrast the target with: the difference of their logits is explained."""
    num_steps: int | None = None
    """Points on a path; None = each method's own number."""
    num_samples: int | None = None
    """Draws of sampling methods; None = each method's own number."""
    seed: int = 0
    truncate: bool = False
    """Cut texts that are longer than the model reads; otherwise they are an error."""
    batch_tokens: int | None = None
    """Tokens of a batch on each device, padding counted; None = 1024 on CPU, 16384 elsewhere."""
    memory_budget: int | None = None
    """Bytes of temporary memory that methods may take; None = by device."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods must name at least one attribution method")
        for name in self.methods:
            find_method(name)
        if self.score not in CLASS_SCORES:
            raise ValueError(f"score must be one of {', '.join(CLASS_SCORES)}, got {self.score!r}")
        if self.versus is not None and (self.target is None or self.target == self.versus or self.score != "logit"):
            raise ValueError("versus needs a target, another class than itself, and score='logit'")
        for name in ("num_steps", "num_samples", "batch_tokens", "memory_budget"):
            if getattr(self, name) is not None:
                positive_integer(name, getattr(self, name))


@dataclasses.dataclass(frozen=True, eq=False)
class MethodScores:
    """One score per token by one method, and how far their sum is from what it should be (None: undefined)."""

    scores: Float[np.ndarray, " tokens"]
    completeness_error: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class TextExplanation:
    """A text as the methods explain it.

    Attributes:
        number: of the text, counted through all of them.
        text, tokens: the text, and its tokens as the tokenizer writes them, special ones included.
        offsets: characters [start, end) of each token in the text; empty at special tokens.
        special: which tokens the tokenizer added.
        truncated: whether the text was cut.
        predicted, target: classes; None for a similarity.
        probability: of the target class; None for a similarity, or a model with one class.
        score: what is explained: of the text, and of the baseline (`baseline_score`).
        methods: by name.
        text_pair: the second text of a pair, which is explained together with `text`; None for a single text.
        second_start: of a pair, the first token of the second text, whose offsets are in `text_pair`.
    """

    number: int
    text: str
    tokens: tuple[str, ...]
    offsets: Int[np.ndarray, "tokens 2"]
    special: Bool[np.ndarray, " tokens"]
    truncated: bool
    predicted: int | None
    target: int | None
    probability: float | None
    score: float
    baseline_score: float | None
    methods: dict[str, MethodScores]
    text_pair: str | None = None
    second_start: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ExplainedWindow:
    """The explanations of a window of texts, in order, and the padded widths in use."""

    explanations: list[TextExplanation]
    widths: tuple[int, ...]


def by_word(explanation: TextExplanation) -> TextExplanation:
    """The same with words for tokens: what whitespace separates in the text, scored by the sum of its tokens' scores.

    Special tokens stay as they are, and no word reaches from one text of a pair into the other. Sums over the text,
    hence completeness errors, do not change.
    """
    special, split = explanation.special, explanation.second_start
    words = _word_ids(explanation)
    is_first = np.ones(len(words), bool)
    is_first[1:] = (words[1:] != words[:-1]) | special[1:] | special[:-1]
    if split is not None:
        is_first[split] = True
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], len(words)) - 1
    offsets = np.stack([explanation.offsets[starts, 0], explanation.offsets[ends, 1]], axis=1)

    def token(start: int, left: int, right: int) -> str:
        if special[start]:
            return explanation.tokens[start]
        is_second = split is not None and start >= split
        return str(explanation.text_pair if is_second else explanation.text)[left:right].strip()

    methods = {
        name: MethodScores(np.add.reduceat(found.scores, starts), found.completeness_error)
        for name, found in explanation.methods.items()
    }
    return dataclasses.replace(
        explanation,
        tokens=tuple(token(start, *place) for start, place in zip(starts.tolist(), offsets.tolist(), strict=True)),
        offsets=offsets,
        special=special[starts],
        methods=methods,
        second_start=None if split is None else int(np.searchsorted(starts, split)),
    )


def _word_ids(explanation: TextExplanation) -> Int[np.ndarray, " tokens"]:
    """The word of each token, counted in its own text; -1 at special tokens."""
    if explanation.second_start is None or explanation.text_pair is None:
        return word_ids_from_offsets(explanation.offsets[None], [explanation.text])[0]
    parts = np.split(explanation.offsets, [explanation.second_start])
    texts = (explanation.text, explanation.text_pair)
    return np.concatenate(
        [word_ids_from_offsets(part[None], [text])[0] for part, text in zip(parts, texts, strict=True)]
    )
