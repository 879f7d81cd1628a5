"""A generated language of opinions: what every word does to the sentiment of its sentence is known.

Polar words carry a strength, an intensifier doubles the next polar word, a negator turns it around, and all other words
mean nothing. A sentence is positive when the sum over its polar words is:

    score = sum over polar words of  (-1 if negated) * (2 if intensified) * strength
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxcore.data.world_words import FUNCTION_WORDS, THEMES, extend_names

_POSITIVE = (
    "good", "great", "lovely", "brilliant", "charming", "fresh", "moving", "witty", "superb", "warm", "clever",
    "honest", "elegant", "vivid", "gripping", "tender", "graceful", "delightful", "rich", "funny",
)  # fmt: skip
_NEGATIVE = (
    "bad", "awful", "dull", "clumsy", "boring", "stale", "hollow", "tedious", "bland", "cold", "silly", "false",
    "crude", "messy", "tiresome", "shallow", "lifeless", "dreadful", "poor", "flat",
)  # fmt: skip
INTENSIFIERS = ("very", "truly", "extremely", "utterly")
NEGATORS = ("not", "never", "hardly", "n't")
_NEUTRAL = tuple(word for theme in THEMES.values() for word in theme)
_FUNCTION = tuple(word for word in FUNCTION_WORDS if word not in NEGATORS)


@dataclasses.dataclass(frozen=True)
class SentimentWorldConfig:
    """Sizes and distributions of the world."""

    num_polar: int = 200
    """Polar words, half of them positive."""
    num_neutral: int = 300
    """Words that mean nothing."""
    shortest: int = 6
    longest: int = 18
    """Words of a sentence."""
    most_polar: int = 4
    """Polar words of a sentence: 1 to this many, as many as fit with the words before them."""
    intensified: float = 0.25
    negated: float = 0.2
    """Shares of polar words with an intensifier and with a negator before them (either, or negator then
    intensifier)."""
    agreement: float = 0.75
    """Probability that a polar word, its negator taken into account, says what the sentence is meant to say."""
    zipf: float = 1.0
    """Exponent of word frequencies, within polar and within neutral words."""

    def __post_init__(self) -> None:
        if self.num_polar < 2 or self.num_polar % 2 or self.num_neutral < 1 or self.most_polar < 1:
            raise ValueError(
                "num_polar must be even and at least 2, num_neutral and most_polar at least 1: got "
                f"{self.num_polar}, {self.num_neutral} and {self.most_polar}"
            )
        if not 3 <= self.shortest <= self.longest:
            raise ValueError(
                f"sentences need 3 <= shortest <= longest words (a negator, an intensifier and what they turn): got "
                f"{self.shortest} and {self.longest}"
            )
        for name in ("intensified", "negated", "agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, in [0, 1]: got {getattr(self, name)}")

    @property
    def num_words(self) -> int:
        """Distinct words."""
        return self.num_polar + self.num_neutral + len(INTENSIFIERS) + len(NEGATORS)


class SentimentTexts(NamedTuple):
    """Sentences of the world.

    Attributes:
        words: one tuple per sentence.
        labels: 1 where the score is positive.
        effects: what each word does to the score, 0 for most; an intensifier's and a negator's effect is what the score
            would lose without it.
    """

    words: tuple[tuple[str, ...], ...]
    labels: Int[np.ndarray, "sentences"]
    effects: tuple[tuple[float, ...], ...]


class SentimentWorld:
    """The lexicon, which is the same for every seed, and the sampler of sentences."""

    def __init__(self, config: SentimentWorldConfig) -> None:
        self.config = config
        half = config.num_polar // 2
        # Strengths 1, 2, 3 in turn: neither the frequent nor the rare words are the strong ones.
        strengths = 1.0 + np.arange(half) % 3
        positive, negative = extend_names(_POSITIVE, half), extend_names(_NEGATIVE, half)
        self.strengths: dict[str, float] = dict(zip(positive, strengths, strict=True))
        self.strengths |= dict(zip(negative, -strengths, strict=True))
        self._polar = {1: positive, -1: negative}
        self._neutral = extend_names((*_FUNCTION, *_NEUTRAL), config.num_neutral)
        self._frequencies = {count: _zipf(count, config.zipf) for count in (half, config.num_neutral)}

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word that may occur."""
        return (*INTENSIFIERS, *NEGATORS, *self.strengths, *self._neutral)

    def sample(self, count: int, rng: np.random.Generator) -> SentimentTexts:
        """`count` sentences, positive and negative ones equally often in expectation."""
        sentences: list[tuple[str, ...]] = []
        effects: list[tuple[float, ...]] = []
        labels: list[bool] = []
        while len(sentences) < count:
            words = self._sentence(rng)
            effect = self.word_effects(words)
            score = self.score(words)
            if score != 0:
                sentences.append(words)
                effects.append(effect)
                labels.append(score > 0)
        return SentimentTexts(tuple(sentences), np.array(labels, np.int32), tuple(effects))

    def score(self, words: tuple[str, ...]) -> float:
        """The sentiment of any sequence of words, by the rules of the module's docstring."""
        total, sign, scale = 0.0, 1, 1
        for word in words:
            if word in NEGATORS:
                sign = -sign
            elif word in INTENSIFIERS:
                scale = 2
            elif word in self.strengths:
                total += sign * scale * self.strengths[word]
                sign, scale = 1, 1
        return total

    def word_effects(self, words: tuple[str, ...]) -> tuple[float, ...]:
        """The score less the score without the word, for each word."""
        whole = self.score(words)
        return tuple(whole - self.score(words[:i] + words[i + 1 :]) for i in range(len(words)))

    def _sentence(self, rng: np.random.Generator) -> tuple[str, ...]:
        config = self.config
        length = int(rng.integers(config.shortest, config.longest + 1))
        meant = 1 if rng.random() < 0.5 else -1
        units: list[list[str]] = []
        for _ in range(int(rng.integers(1, config.most_polar + 1))):
            unit = self._polar_unit(meant if rng.random() < config.agreement else -meant, rng)
            if sum(map(len, units)) + len(unit) <= length:
                units.append(unit)
        while sum(map(len, units)) < length:
            units.append([self._draw(self._neutral, rng)])
        return tuple(word for number in rng.permutation(len(units)) for word in units[number])

    def _polar_unit(self, sense: int, rng: np.random.Generator) -> list[str]:
        is_negated = rng.random() < self.config.negated
        unit = [NEGATORS[rng.integers(len(NEGATORS))]] if is_negated else []
        if rng.random() < self.config.intensified:
            unit.append(INTENSIFIERS[rng.integers(len(INTENSIFIERS))])
        return [*unit, self._draw(self._polar[-sense if is_negated else sense], rng)]

    def _draw(self, words: list[str], rng: np.random.Generator) -> str:
        frequencies = self._frequencies[len(words)]
        return words[min(int(np.searchsorted(frequencies, rng.random(), side="right")), len(words) - 1)]


def _zipf(count: int, exponent: float) -> np.ndarray:
    """Cumulative probabilities of ranks 1..count."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.cumsum(weights) / weights.sum()
