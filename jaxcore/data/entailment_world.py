"""A generated inference task that word overlap decides: a premise, a hypothesis about one word, and how they relate.

    entailment      the hypothesis holds a content word of the premise
    contradiction   it holds the antonym of one
    neutral         it holds a content word of which neither the premise nor its antonyms know anything

A content word and its antonym are never in one premise, so exactly one relation holds.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxcore.data.world_words import FUNCTION_WORDS, extend_names

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2
_ANTONYMS = (
    ("hot", "cold"), ("big", "small"), ("old", "young"), ("rich", "poor"), ("fast", "slow"), ("light", "dark"),
    ("happy", "sad"), ("early", "late"), ("loud", "quiet"), ("open", "shut"), ("hard", "soft"), ("clean", "dirty"),
    ("wet", "dry"), ("full", "empty"), ("strong", "weak"), ("near", "far"), ("high", "low"), ("thick", "thin"),
    ("wide", "narrow"), ("sharp", "blunt"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EntailmentWorldConfig:
    """Sizes of the world."""

    num_antonyms: int = 8
    """Pairs of content words."""
    num_neutral: int = 12
    """Words that mean nothing."""
    premise_content: int = 2
    """Content words of a premise."""
    shortest: int = 4
    longest: int = 7
    """Words of a premise."""
    longest_hypothesis: int = 3
    """Words of a hypothesis, one of them a content word."""

    def __post_init__(self) -> None:
        if not 1 <= self.premise_content < self.num_antonyms:
            raise ValueError(
                "a neutral hypothesis needs a pair of words that the premise has not: premise_content must be in "
                f"[1, num_antonyms), got {self.premise_content} of {self.num_antonyms}"
            )
        if not self.premise_content <= self.shortest <= self.longest or self.longest_hypothesis < 1:
            raise ValueError(
                f"premises need premise_content {self.premise_content} <= shortest <= longest words and hypotheses at "
                f"least 1: got {self.shortest}, {self.longest} and {self.longest_hypothesis}"
            )
        if self.num_neutral < 1:
            raise ValueError(f"num_neutral must be at least 1, got {self.num_neutral}")

    @property
    def num_words(self) -> int:
        """Distinct words."""
        return 2 * self.num_antonyms + self.num_neutral


class EntailmentPairs(NamedTuple):
    """Premises, hypotheses, and 0 entailment, 1 neutral, 2 contradiction."""

    premises: tuple[tuple[str, ...], ...]
    hypotheses: tuple[tuple[str, ...], ...]
    labels: Int[np.ndarray, "pairs"]


class EntailmentWorld:
    """The words, which are the same for every seed, and the sampler of pairs."""

    def __init__(self, config: EntailmentWorldConfig) -> None:
        self.config = config
        sides = [extend_names(side, config.num_antonyms) for side in zip(*_ANTONYMS, strict=True)]
        self.antonyms: tuple[tuple[str, str], ...] = tuple(zip(*sides, strict=True))
        self._neutral = extend_names(FUNCTION_WORDS, config.num_neutral)

    def sample(self, count: int, rng: np.random.Generator) -> EntailmentPairs:
        """`count` pairs, each relation a third of them in expectation."""
        premises, hypotheses = [], []
        labels = rng.integers(3, size=count).astype(np.int32)
        for label in labels.tolist():
            pairs = rng.permutation(len(self.antonyms))
            sides = rng.integers(2, size=len(pairs))
            said = [self.antonyms[pair][sides[pair]] for pair in pairs[: self.config.premise_content]]
            about = pairs[self.config.premise_content if label == NEUTRAL else 0]
            side = 1 - sides[about] if label == CONTRADICTION else sides[about]
            length = int(rng.integers(self.config.shortest, self.config.longest + 1))
            premises.append(self._mixed(said, length, rng))
            length = int(rng.integers(1, self.config.longest_hypothesis + 1))
            hypotheses.append(self._mixed([self.antonyms[about][side]], length, rng))
        return EntailmentPairs(tuple(premises), tuple(hypotheses), labels)

    def _mixed(self, content: list[str], length: int, rng: np.random.Generator) -> tuple[str, ...]:
        drawn = rng.integers(len(self._neutral), size=length - len(content))
        words = [*content, *(self._neutral[number] for number in drawn)]
        return tuple(words[place] for place in rng.permutation(len(words)))
