"""What an intent classifier with attribution priors trains on and is asked about: generated, or read from files.

One shape for both: training and test texts as words, a teacher that says how well each label fits a text, the label
each test text is most easily confused with, the test texts under attack, and the role of every word (typical of the
label alone, shared with the label it is confused with, neither).
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxcore.attribution.token_aggregation import word_ids_from_offsets
from jaxcore.data.confusable_world import (
    CLASS,
    GROUP,
    NEUTRAL,
    ConfusableWorld,
    ConfusableWorldConfig,
    WorldTeacher,
    WorldTexts,
)
from jaxcore.data.intents import IntentCorpus, IntentTexts, read_intents
from jaxcore.data.keyword_lexicon import bare_word, count_words, keyword_attack, keyword_lexicon
from jaxcore.data.label_teachers import LabelTeacher, LinearTeacher
from jaxcore.data.tokenization import attention_mask, load_tokenizer, pad_rows
from jaxcore.data.word_vocabulary import frequent_words, number_words

PAD, START = 0, 1
"""Ids of the task's own vocabulary that are no words; words follow."""


@dataclasses.dataclass(frozen=True)
class IntentDataConfig:
    """Texts and their labels."""

    path: str = ""
    """Folder of intents (see `jaxcore.data.intents`); empty: the generated world."""
    shots: int = 10
    """Training texts per label; 0 takes all. With files, a published split of that size is used where there is one."""
    num_classes: int = 77
    """Labels of the files: programs are compiled for so many before any file is read."""
    tokenizer: str = ""
    """Folder or hub id of a tokenizer for the transformer; empty: one id per training word."""
    vocab_size: int = 4096
    """Most words of the files' training texts that have an id, the most frequent first (ids 0 and 1 are no words)."""
    max_words: int = 64
    """Words of a text that are read."""
    max_tokens: int = 64
    """Tokens of a text, with a tokenizer (inferred, as the paper's own value is not known)."""
    test_per_class: int = 500
    """Test texts per class of the world (ours; so many that sampling them adds less than 0.007 to an accuracy)."""
    max_test: int = 0
    """At most so many test texts of the files; 0 takes all."""
    num_attack_keywords: int = 2
    attack_pool: int = 6
    """Keywords inserted into a text under attack, and the number of a label's strongest they are drawn from."""
    lexicon_size: int = 10
    """Keywords of a label among which shared ones are looked for."""
    min_keyword_count: int = 20
    """Rarer words are no keywords."""
    world: ConfusableWorldConfig = dataclasses.field(default_factory=ConfusableWorldConfig)
    """The generated world."""

    def __post_init__(self) -> None:
        for name in ("num_classes", "max_tokens", "test_per_class", "num_attack_keywords", "lexicon_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1: got {getattr(self, name)}")
        if min(self.shots, self.max_test) < 0 or self.max_words < 2 or self.vocab_size < 3:
            raise ValueError(
                "data.shots and data.max_test must not be negative, data.max_words at least 2, data.vocab_size 3: got "
                f"{self.shots}, {self.max_test}, {self.max_words}, {self.vocab_size}"
            )
        if self.attack_pool < self.num_attack_keywords:
            raise ValueError(f"data.attack_pool {self.attack_pool} is fewer than {self.num_attack_keywords} keywords")
        if not self.path and self.tokenizer:
            raise ValueError(
                "data.tokenizer belongs to texts of files (data.path); the world's words are their own ids"
            )
        if not self.path and not self.shots:
            raise ValueError("the world has no end of texts: give data.shots, the number per class")

    @property
    def classes(self) -> int:
        """Labels, known without data."""
        return self.num_classes if self.path else self.world.num_classes

    @property
    def words(self) -> int:
        """Width of arrays of words: the inserted keywords of an attack have room."""
        return self.max_words if self.path else self.world.length + self.num_attack_keywords

    @property
    def ids(self) -> int:
        """Ids of the task's own vocabulary."""
        return self.vocab_size if self.path else self.world.num_words + 2

    @property
    def tokens(self) -> int:
        """Width of the transformer's input."""
        return self.max_tokens if self.tokenizer else self.words + 1


class LabelledWords(NamedTuple):
    """Texts as words.

    Attributes:
        words: of each text.
        labels: [texts].
        confusable: [texts], the wrong label that fits best, or that of the attack.
        roles: [texts, words] NEUTRAL (padding, too), GROUP (shared with the confusable label), CLASS (the label's own).
    """

    words: tuple[tuple[str, ...], ...]
    labels: Int[np.ndarray, "texts"]
    confusable: Int[np.ndarray, "texts"]
    roles: Int[np.ndarray, "texts words"]

    def joined(self) -> list[str]:
        """Texts with single spaces between words."""
        return [" ".join(words) for words in self.words]


@dataclasses.dataclass(frozen=True)
class IntentTask:
    """See the module's docstring.

    Attributes:
        names: of the labels.
        training, test, attacked: texts; `attacked` holds the test texts under attack, in their order.
        teacher: says how well labels fit; it saw no test text.
        vocabulary: words with ids, the first with id 2.
        description: one sentence for the report.
    """

    names: tuple[str, ...]
    training: LabelledWords
    test: LabelledWords
    attacked: LabelledWords
    teacher: LabelTeacher
    vocabulary: tuple[str, ...]
    config: IntentDataConfig
    description: str

    def rows(self, texts: LabelledWords, *, tokenizer: Any = None, start_token: bool = False) -> dict[str, np.ndarray]:
        """Arrays of a model: ``input_ids``, ``attention_mask`` and ``word_ids`` [texts, tokens], ``present`` and
        ``roles`` [texts, words], ``labels`` and ``confusable`` [texts].

        Args:
            tokenizer: for sub-words; without it, tokens are words (unknown ones are left out of the text's mask).
            start_token: begin with `START`, where there is no tokenizer.
        """
        width = self.config.words
        if tokenizer is not None:
            arrays = _sub_words(texts, tokenizer, self.config.max_tokens)
        else:
            arrays = self._word_ids(texts, width, start_token=start_token)
        known = np.zeros((len(texts.words), width), bool)
        for row, ids in zip(known, arrays["word_ids"], strict=True):
            row[ids[(ids >= 0) & (ids < width)]] = True
        return {
            **arrays,
            "present": known,
            "roles": texts.roles.astype(np.int32),
            "labels": texts.labels.astype(np.int32),
            "confusable": texts.confusable.astype(np.int32),
        }

    def _word_ids(self, texts: LabelledWords, width: int, *, start_token: bool) -> dict[str, np.ndarray]:
        numbers = number_words(texts.words, ("[PAD]", "[CLS]", *self.vocabulary), unknown=PAD)
        first = [START] if start_token else []
        ids, lengths = pad_rows([first + row for row in numbers], length=width + len(first), pad_id=PAD)
        mask = attention_mask(lengths, ids.shape[1])
        places = np.arange(ids.shape[1], dtype=np.int32) - len(first)
        return {"input_ids": ids, "attention_mask": mask, "word_ids": np.where(mask > 0, places, -1)}


def _sub_words(texts: LabelledWords, tokenizer: Any, length: int) -> dict[str, np.ndarray]:
    joined = texts.joined()
    encoded = tokenizer(
        joined,
        padding="max_length",
        truncation=True,
        max_length=length,
        return_offsets_mapping=True,
        return_tensors="np",
    )
    return {
        "input_ids": encoded["input_ids"].astype(np.int32),
        "attention_mask": encoded["attention_mask"].astype(np.int32),
        "word_ids": word_ids_from_offsets(encoded["offset_mapping"], joined),
    }


def open_intent_task(config: IntentDataConfig, *, seed: int) -> IntentTask:
    """The task of a configuration.

    Args:
        seed: of texts (the world), of the few-shot draw (files without a published split), of the attack.

    Raises:
        ValueError: files that cannot be read, a number of labels other than declared, too few texts of a label.
    """
    return _task_of_files(config, seed) if config.path else _task_of_world(config, seed)


def _task_of_world(config: IntentDataConfig, seed: int) -> IntentTask:
    world = ConfusableWorld(config.world)
    of_training, of_test, of_attack = (np.random.default_rng([seed, stream]) for stream in range(3))
    test = world.sample(config.test_per_class, of_test)
    classes = np.arange(config.world.num_classes).reshape(config.world.num_groups, -1)
    neighbour = np.roll(classes, -1, axis=1).reshape(-1)

    def labelled(texts: WorldTexts) -> LabelledWords:
        words = tuple(tuple(row) for row in world.render(texts.words))
        own = world.group_words[world.group_of(texts.labels)]
        foreign = ~np.any(texts.words[:, :, None] == own[:, None, :], axis=2)
        roles = np.where((world.roles[texts.words] == GROUP) & foreign, NEUTRAL, world.roles[texts.words])
        return LabelledWords(words, texts.labels, neighbour[texts.labels], _padded(roles, config.words))

    return IntentTask(
        names=tuple(f"intent{number}" for number in range(config.world.num_classes)),
        training=labelled(world.sample(config.shots, of_training)),
        test=labelled(test),
        attacked=labelled(world.attacked(test, of_attack, num_inserted=config.num_attack_keywords)),
        teacher=WorldTeacher(world),
        vocabulary=world.vocabulary,
        config=config,
        description=(
            f"Generated: {config.world.num_groups} groups of {config.world.classes_per_group} classes, "
            f"{config.shots} training and {config.test_per_class} test texts per class. The teacher knows the world's "
            "own word probabilities, smoothed. Attack: own group keywords replaced, two of another group inserted."
        ),
    )


def _task_of_files(config: IntentDataConfig, seed: int) -> IntentTask:
    corpus, teacher, strongest = _corpus_and_teacher(config)
    num_labels = len(corpus.names)
    lexicon = [set(words[: config.lexicon_size]) for words in strongest]
    training = _shots(corpus, config, seed)
    test = corpus.test
    if config.max_test:
        chosen = np.random.default_rng([seed, 3]).permutation(len(test.labels))[: config.max_test]
        test = IntentTexts(tuple(test.texts[i] for i in chosen), test.labels[chosen])
    clean = _labelled([_split(text, config) for text in test.texts], test.labels, teacher, lexicon, config)
    pools = [words[: config.attack_pool] for words in strongest]
    changed = keyword_attack(
        [words[: config.words - config.num_attack_keywords] for words in clean.words],
        clean.confusable, pools, np.random.default_rng([seed, 2]), num_inserted=config.num_attack_keywords,
    )  # fmt: skip
    attacked = LabelledWords(
        tuple(map(tuple, changed)), clean.labels, clean.confusable, _roles(changed, clean, lexicon, config)
    )
    shown = _labelled([_split(text, config) for text in training.texts], training.labels, teacher, lexicon, config)
    return IntentTask(
        names=tuple(name.replace("_", " ") for name in corpus.names),
        training=shown,
        test=clean,
        attacked=attacked,
        teacher=teacher,
        vocabulary=frequent_words(shown.words, most=config.vocab_size - 2),
        config=config,
        description=(
            f"{num_labels} intents from {os.path.basename(os.path.normpath(config.path))}: {len(training.labels)} "
            f"training and {len(test.labels)} test utterances. The teacher is a TF-IDF logistic regression on all "
            f"{len(corpus.training.labels)} training utterances, standing in for a language model. Attack: keywords of "
            "the teacher's best wrong label inserted."
        ),
    )


@functools.lru_cache(maxsize=1)
def _corpus_and_teacher(config: IntentDataConfig) -> tuple[IntentCorpus, LabelTeacher, list[list[str]]]:
    """The corpus, the teacher trained on all its training texts, every label's keywords: the same for every seed."""
    corpus = read_intents(config.path)
    num_labels = len(corpus.names)
    if num_labels != config.num_classes:
        raise ValueError(f"{config.path} has {num_labels} intents: set --data.num-classes {num_labels}")
    whole = [_split(text, config) for text in corpus.training.texts]
    bare = [[bare for word in words if (bare := bare_word(word))] for words in whole]
    counts = count_words(bare, corpus.training.labels, num_labels=num_labels)
    teacher = LinearTeacher([" ".join(words) for words in whole], corpus.training.labels, num_labels=num_labels)
    strongest = keyword_lexicon(
        counts, num_keywords=max(config.lexicon_size, config.attack_pool), min_count=config.min_keyword_count
    )
    return corpus, teacher, strongest


def _split(text: str, config: IntentDataConfig) -> list[str]:
    """Words of a text: white space separates them; for word ids, in lower case and without punctuation around them."""
    words = text.split()
    if not config.tokenizer:
        words = [bare for word in words if (bare := bare_word(word))] or words
    return words[: config.max_words]


def _shots(corpus: IntentCorpus, config: IntentDataConfig, seed: int) -> IntentTexts:
    """The training texts: all, a published few-shot split, or a draw of `shots` per label."""
    if not config.shots:
        return corpus.training
    if config.shots in corpus.few_shot:
        return corpus.few_shot[config.shots]
    rng = np.random.default_rng([seed, 1])
    chosen: list[int] = []
    for label, name in enumerate(corpus.names):
        of_label = np.flatnonzero(corpus.training.labels == label)
        if len(of_label) < config.shots:
            raise ValueError(
                f"intent {name!r} has {len(of_label)} training texts, fewer than data.shots {config.shots}"
            )
        chosen += rng.choice(of_label, config.shots, replace=False).tolist()
    return IntentTexts(tuple(corpus.training.texts[i] for i in chosen), corpus.training.labels[chosen])


def _labelled(
    words: Sequence[Sequence[str]],
    labels: np.ndarray,
    teacher: LabelTeacher,
    lexicon: Sequence[set[str]],
    config: IntentDataConfig,
) -> LabelledWords:
    confidence = np.array(teacher.label_confidence([" ".join(text) for text in words]))
    confidence[np.arange(len(labels)), labels] = -np.inf
    texts = LabelledWords(tuple(map(tuple, words)), labels, np.argmax(confidence, axis=1), np.zeros((0, 0)))
    return texts._replace(roles=_roles(words, texts, lexicon, config))


def _roles(
    words: Sequence[Sequence[str]], texts: LabelledWords, lexicon: Sequence[set[str]], config: IntentDataConfig
) -> np.ndarray:
    rows = []
    for text, label, other in zip(words, texts.labels, texts.confusable, strict=True):
        own, shared = lexicon[label] - lexicon[other], lexicon[label] & lexicon[other]
        bare = map(bare_word, text)
        rows.append([CLASS if word in own else GROUP if word in shared else NEUTRAL for word in bare])
    return _padded(rows, config.words)


def _padded(rows: Any, width: int) -> np.ndarray:
    padded = np.zeros((len(rows), width), np.int32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def tokenizer_of(config: IntentDataConfig) -> Any:
    """The tokenizer that a configuration names, or None."""
    return load_tokenizer(config.tokenizer) if config.tokenizer else None
