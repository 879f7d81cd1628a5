"""A reasoning trace as a model sees it: token ids, and which of them each sentence of the chain of thought has."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from jaxcore.data.reasoning_sentences import Span, sentence_spans, token_spans
from jaxcore.data.reasoning_taxonomy import checked_functions


@dataclasses.dataclass(frozen=True, eq=False)
class ReasoningTrace:
    """A prompt with its chain of thought and answer, cut into M sentences.

    Attributes:
        name: names the trace.
        problem: what was asked, for readers.
        tokens: of all of it.
        sentences: of the chain of thought, as text.
        spans: tokens of each sentence.
        functions: of each sentence, see `jaxcore.data.reasoning_taxonomy`.
        truth: the right answer.
        answer: the trace's own; "" if it gave none.
        edges: [source, target] where dependencies are known.
    """

    name: str
    problem: str
    tokens: tuple[int, ...]
    sentences: tuple[str, ...]
    spans: Int[np.ndarray, "M 2"]
    functions: tuple[str, ...]
    truth: str
    answer: str
    edges: Bool[np.ndarray, "M M"] | None = None

    def __post_init__(self) -> None:
        checked_functions(self.functions, count=len(self.sentences))
        if np.shape(self.spans) != (len(self.sentences), 2):
            raise ValueError(f"{len(self.sentences)} sentences, but spans of shape {np.shape(self.spans)}")

    def __len__(self) -> int:
        return len(self.sentences)

    def prefixes(self) -> list[list[int]]:
        """What stands before each sentence, and at last before what follows the last one: M + 1 lists of tokens."""
        ends = [*self.spans[:, 0].tolist(), int(self.spans[-1, 1])]
        return [list(self.tokens[:end]) for end in ends]


def cut_trace(
    text: str,
    tokens: Sequence[int],
    offsets: Sequence[Span],
    *,
    tail: Literal["drop", "keep"] = "drop",
) -> tuple[tuple[str, ...], Int[np.ndarray, "M 2"]]:
    """Sentences of a text and their tokens, by the characters of tokens in the whole text.

    Raises:
        ValueError: as `sentence_spans` and `token_spans`; not as many offsets as tokens.
    """
    if len(tokens) != len(offsets):
        raise ValueError(f"{len(tokens)} tokens, but {len(offsets)} offsets")
    spans = sentence_spans(text, tail=tail)
    return tuple(text[start:end] for start, end in spans), token_spans(offsets, spans)
