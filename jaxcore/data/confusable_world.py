"""A generated world of confusable classes: groups of classes share keywords, and one word in a text tells them apart.

A text of class y holds one or two keywords of y's group, exactly one word of y's own, and neutral words. So which word
decides is known, and so is which words a class shares with those it is confused with (cap.md, experiment A).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

NEUTRAL, GROUP, CLASS = 0, 1, 2
"""Roles of words."""


@dataclasses.dataclass(frozen=True)
class ConfusableWorldConfig:
    """Sizes of the world; the defaults are those of cap.md, experiment A, except where they are marked as ours."""

    num_groups: int = 4
    classes_per_group: int = 3
    length: int = 12
    """Words in a text."""
    group_keywords: int = 5
    class_keywords: int = 5
    """Distinct words of each group and of each class."""
    num_neutral: int = 150
    max_group_words: int = 2
    """A text holds 1 to so many keywords of its group."""
    smoothing: float = 0.001
    """Added to each word's probability in what the teacher believes (ours: cap.md says
    only that they are smoothed; this value gives the prior masses it reports)."""
    offset: float = 2.0
    """Subtracted from the log-likelihood ratio before the sigmoid of the affinity."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"world.{field.name} must be positive: got {getattr(self, field.name)}")
        if self.num_groups < 2 or self.classes_per_group < 2:
            raise ValueError(
                "world.num_groups and world.classes_per_group must be at least 2, to be confused and told apart: got "
                f"{self.num_groups} and {self.classes_per_group}"
            )
        if self.max_group_words + 1 >= self.length or self.group_keywords < 2:
            raise ValueError(
                "world.length must exceed world.max_group_words + 1, and world.group_keywords be at least 2: got "
                f"{self.length}, {self.max_group_words} and {self.group_keywords}"
            )

    @property
    def num_classes(self) -> int:
        return self.num_groups * self.classes_per_group

    @property
    def num_words(self) -> int:
        """Distinct words."""
        return self.num_groups * self.group_keywords + self.num_classes * self.class_keywords + self.num_neutral


@dataclasses.dataclass(frozen=True)
class WorldTexts:
    """Texts as word numbers [texts, length]."""

    words: Int[np.ndarray, "texts length"]
    labels: Int[np.ndarray, "texts"]


class ConfusableWorld:
    """The words of each group and class, texts of them, and the teacher that knows how they are made.

    Word numbers: group keywords, then class words, then neutral words. The world itself is fixed by its sizes; chance
    is in the texts alone.
    """

    def __init__(self, config: ConfusableWorldConfig | None = None) -> None:
        self.config = config = config or ConfusableWorldConfig()
        groups = config.num_groups * config.group_keywords
        owned = config.num_classes * config.class_keywords
        self.group_words = np.arange(groups).reshape(config.num_groups, -1)
        self.class_words = groups + np.arange(owned).reshape(config.num_classes, -1)
        self.neutral_words = groups + owned + np.arange(config.num_neutral)
        self.roles = np.repeat([GROUP, CLASS, NEUTRAL], [groups, owned, config.num_neutral])
        self.vocabulary: tuple[str, ...] = (
            *(f"topic{g}{chr(97 + w)}" for g in range(config.num_groups) for w in range(config.group_keywords)),
            *(f"intent{c}{chr(97 + w)}" for c in range(config.num_classes) for w in range(config.class_keywords)),
            *(f"neutral{w}" for w in range(config.num_neutral)),
        )
        self.index = {word: number for number, word in enumerate(self.vocabulary)}

    def group_of(self, labels: Int[np.ndarray, "texts"]) -> Int[np.ndarray, "texts"]:
        """The group of each class."""
        return np.asarray(labels) // self.config.classes_per_group

    def sample(self, per_class: int, rng: np.random.Generator) -> WorldTexts:
        """`per_class` texts of every class, class by class, words in random order."""
        config = self.config
        labels = np.repeat(np.arange(config.num_classes), per_class)
        count, shape = len(labels), (len(labels), config.length)
        words = rng.choice(self.neutral_words, shape)
        how_many = rng.integers(1, config.max_group_words + 1, count)
        keywords = self.group_words[self.group_of(labels)[:, None], rng.integers(0, config.group_keywords, shape)]
        words = np.where(np.arange(config.length) < how_many[:, None], keywords, words)
        words[:, -1] = self.class_words[labels, rng.integers(0, config.class_keywords, count)]
        return WorldTexts(rng.permuted(words, axis=1), labels)

    def attacked(self, texts: WorldTexts, rng: np.random.Generator, *, num_inserted: int = 2) -> WorldTexts:
        """Own group keywords replaced by neutral words, and keywords of another group inserted at random places."""
        words = np.where(
            self.roles[texts.words] == GROUP, rng.choice(self.neutral_words, texts.words.shape), texts.words
        )
        groups = self.config.num_groups
        other = (self.group_of(texts.labels) + rng.integers(1, groups, len(texts.labels))) % groups
        longer = []
        for row, group in zip(words, other, strict=True):
            places = rng.integers(0, len(row) + 1, num_inserted)
            longer.append(np.insert(row, places, rng.choice(self.group_words[group], num_inserted, replace=False)))
        return WorldTexts(np.stack(longer), texts.labels)

    def render(self, words: Int[np.ndarray, "texts length"]) -> list[list[str]]:
        """The words themselves."""
        return [[self.vocabulary[word] for word in row] for row in words]

    def word_probabilities(self) -> Float[np.ndarray, "classes words"]:
        """p(w|y) of a word at a random place of a text of class y."""
        config = self.config
        group_share = (1 + config.max_group_words) / 2 / config.length
        table = np.zeros((config.num_classes, config.num_words))
        table[:, self.neutral_words] = (1 - group_share - 1 / config.length) / config.num_neutral
        for label in range(config.num_classes):
            table[label, self.group_words[label // config.classes_per_group]] = group_share / config.group_keywords
            table[label, self.class_words[label]] = 1 / config.length / config.class_keywords
        return table


class WorldTeacher:
    """A `jaxcore.data.label_teachers.LabelTeacher` that judges by the world's own, smoothed word probabilities.

    confidence  log softmax_y(sum_w log p(w|y))
    affinity    log sigmoid(sum_w log p(w|y) / p(w) - offset)
    """

    def __init__(self, world: ConfusableWorld) -> None:
        self._world = world
        smoothed = world.word_probabilities() + world.config.smoothing
        smoothed /= smoothed.sum(axis=1, keepdims=True)
        self._log_probabilities = np.log(smoothed)
        self._log_background = np.log(smoothed.mean(axis=0))

    def label_confidence(self, texts: Sequence[str]) -> Float[np.ndarray, "texts labels"]:
        """Log-probabilities, normalised over the classes."""
        scores = self._sums(texts, self._log_probabilities)
        return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)

    def label_affinity(self, texts: Sequence[str]) -> Float[np.ndarray, "texts labels"]:
        """Log-probabilities of each class by itself, against the background."""
        ratio = self._sums(texts, self._log_probabilities - self._log_background)
        return -np.logaddexp(0, self._world.config.offset - ratio)

    def _sums(self, texts: Sequence[str], table: np.ndarray) -> np.ndarray:
        known = [[self._world.index[word] for word in text.split(" ") if word in self._world.index] for text in texts]
        return np.stack([table[:, words].sum(axis=1) for words in known])
