"""A task on titled texts: held-out texts, their titles as labels, and halves of a text as positive pairs.

Three supervisions of one corpus, so that objectives can be compared on it: the halves of a text belong together
(pairs), texts stand under titles (labels, and labels with a text of their own), and a text alone has nothing but
itself. How close two halves are is graded by what they share: 3 the text, 2 the title, 1 the topic, 0 nothing.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxcore.data.author_batches import AuthorBatches, Batch, EpochOrder
from jaxcore.data.titled_texts import TitledTexts, python_reference_texts, read_titled_texts
from jaxcore.data.tokenization import attention_mask, load_tokenizer, tokenize_texts, train_tokenizer
from jaxcore.distributed import default_cache_dir


@dataclasses.dataclass(frozen=True)
class TitledDataConfig:
    """Where titled texts come from and how they are read."""

    path: str = ""
    """A .txt with title<TAB>text per line, .jsonl, .csv or .parquet, or tfds:NAME/SPLIT. Empty: Python's reference."""
    title_field: str = "title"
    text_field: str = "text"
    topic_field: str = ""
    """Columns; without a topic column the title is the topic."""
    tokenizer: str = ""
    """Folder or hub id of a tokenizer; empty: a vocabulary of whole words of the texts and titles."""
    vocab_size: int = 4096
    """Most ids of a vocabulary made from the texts; with a tokenizer, its size."""
    max_length: int = 40
    """Ids of a text, its two end tokens included."""
    title_length: int = 6
    """Ids of a title, without end tokens."""
    test_share: float = 0.2
    """Share of the texts that is held out."""
    cache_dir: str = ""
    """Folder for tokenised texts; empty: data/ in the user's cache (JAXCORE_CACHE_DIR)."""

    def __post_init__(self) -> None:
        if self.max_length < 8 or self.title_length < 1 or self.vocab_size < 64:
            raise ValueError(
                "data.max_length must be at least 8, data.title_length 1 and data.vocab_size 64: got "
                f"{self.max_length}, {self.title_length} and {self.vocab_size}"
            )
        if not 0 < self.test_share < 1:
            raise ValueError(f"data.test_share must be in (0, 1): got {self.test_share}")

    @property
    def half_length(self) -> int:
        """Ids of half a text, end tokens included."""
        return (self.max_length - 1) // 2 + 2


class TitledRows(NamedTuple):
    """Texts as rows: ids [n, T] with end tokens, their mask, and the numbers of their title and topic."""

    input_ids: Int[np.ndarray, "n length"]
    attention_mask: Int[np.ndarray, "n length"]
    titles: Int[np.ndarray, "n"]
    topics: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.titles)

    def take(self, rows: np.ndarray) -> "TitledRows":
        return TitledRows(*(column[rows] for column in self))


@dataclasses.dataclass(frozen=True)
class TitledTask:
    """See the module's docstring.

    Attributes:
        training, test: texts; no text is in both.
        title_ids, title_mask: [titles, W] the words of every title, without end tokens.
        vocab_size: ids that may occur.
        special_ids: ids that are no words (padding, unknown, ends).
        config: what it was made from.
        description: one sentence for the report.
    """

    training: TitledRows
    test: TitledRows
    title_ids: Int[np.ndarray, "titles words"]
    title_mask: Int[np.ndarray, "titles words"]
    vocab_size: int
    special_ids: tuple[int, ...]
    config: TitledDataConfig
    description: str

    def halves(self, rows: TitledRows) -> dict[str, np.ndarray]:
        """Both halves of every text: ``first_ids``, ``first_mask``, ``second_ids``, ``second_mask``."""
        return split_halves(rows.input_ids, rows.attention_mask, half_length=self.config.half_length)

    def half_batches(
        self, *, batch_size: int, seed: int, num_steps: int, process_index: int = 0, process_count: int = 1
    ) -> AuthorBatches:
        """Training batches of `HalvesSampler`, this process's part."""
        sampler = HalvesSampler(self, batch_size=batch_size, seed=seed)
        return AuthorBatches(sampler, num_steps=num_steps, process_index=process_index, process_count=process_count)


class HalvesSampler:
    """Both halves of `batch_size` different training texts, reshuffled every epoch; a pure function of the step.

    Rows hold what `TitledTask.halves` gives, ``labels`` (title numbers), ``title_ids`` and ``title_mask``, and
    ``example_ids`` (row numbers).
    """

    def __init__(self, task: TitledTask, *, batch_size: int, seed: int) -> None:
        if batch_size > len(task.training):
            raise ValueError(
                f"a batch of {batch_size} different texts needs as many: there are {len(task.training)} training "
                "texts; lower batch_size or give more texts"
            )
        self._task, self.num_rows = task, batch_size
        self._order = EpochOrder(len(task.training), per_step=batch_size, seed=seed)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        chosen = self._order.at(step)[start:stop]
        rows = self._task.training.take(chosen)
        return {
            **self._task.halves(rows),
            "labels": rows.titles.astype(np.int32),
            "title_ids": self._task.title_ids[rows.titles],
            "title_mask": self._task.title_mask[rows.titles],
            "example_ids": chosen.astype(np.int32),
        }


def split_halves(
    input_ids: Int[np.ndarray, "n length"], mask: Int[np.ndarray, "n length"], *, half_length: int
) -> dict[str, np.ndarray]:
    """The words between the two end tokens of each row, cut in the middle; each half with both end tokens.

    Where the number of words is odd the first half has one more.

    Raises:
        ValueError: a half that does not fit `half_length`.
    """
    lengths = np.asarray(mask).sum(axis=1)
    words = np.maximum(lengths - 2, 0)
    first_size = (words + 1) // 2
    if len(words) and first_size.max() + 2 > half_length:
        raise ValueError(f"half of {words.max()} words and two ends do not fit half_length {half_length}: raise it")
    rows = np.arange(len(input_ids))[:, None]
    places = np.arange(half_length)[None, :]
    last = input_ids[rows[:, 0], np.maximum(lengths - 1, 0)]
    halves = {}
    for name, start, size in (("first", 0 * words, first_size), ("second", first_size, words - first_size)):
        source = np.clip(start[:, None] + places, 0, input_ids.shape[1] - 1)
        ids = np.where(places == 0, input_ids[:, :1], np.asarray(input_ids)[rows, source])
        ids = np.where(places == size[:, None] + 1, last[:, None], ids)
        real = places < size[:, None] + 2
        halves[f"{name}_ids"] = np.where(real, ids, 0).astype(np.int32)
        halves[f"{name}_mask"] = real.astype(np.int32)
    return halves


class GradedHalves(NamedTuple):
    """Pairs (first half of text i, second half of text j) and how close they are: 0, 1, 2 or 3."""

    first: Int[np.ndarray, "pairs"]
    second: Int[np.ndarray, "pairs"]
    grades: Int[np.ndarray, "pairs"]


def graded_halves(rows: TitledRows, rng: np.random.Generator, *, per_grade: int) -> GradedHalves:
    """At most `per_grade` pairs of each grade, without replacement: 3 one text, 2 one title, 1 one topic, 0 none."""
    same_text = np.eye(len(rows), dtype=bool)
    same_title = rows.titles[:, None] == rows.titles[None, :]
    same_topic = rows.topics[:, None] == rows.topics[None, :]
    grades = np.select([same_text, same_title, same_topic], [3, 2, 1], 0)
    chosen = []
    for grade in range(4):
        pairs = np.argwhere(grades == grade)
        chosen.append(pairs[rng.permutation(len(pairs))[:per_grade]])
    pairs = np.concatenate(chosen)
    return GradedHalves(pairs[:, 0], pairs[:, 1], grades[pairs[:, 0], pairs[:, 1]])


def open_titled_task(config: TitledDataConfig, *, seed: int) -> TitledTask:
    """The task that `config` describes; `seed` decides which texts are held out.

    Raises:
        ValueError: nothing at the path, fewer than ten texts, a tokenizer without two end tokens.
    """
    corpus = _read(config)
    if len(corpus.texts) < 10 or len(set(corpus.titles)) < 2:
        raise ValueError(
            f"{config.path or 'the reference'} has {len(corpus.texts)} texts under {len(set(corpus.titles))} titles: "
            "expected at least ten texts and two titles"
        )
    tokenizer = _tokenizer(config, corpus)
    if tokenizer.num_special_tokens_to_add(pair=False) != 2:
        raise ValueError(f"{config.tokenizer}: halves need a tokenizer with a start and an end token (BERT, RoBERTa)")
    cache = pathlib.Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir() / "data"
    texts = tokenize_texts(corpus.texts, tokenizer, max_length=config.max_length, cache_dir=cache)
    names, titles = np.unique(np.asarray(corpus.titles), return_inverse=True)
    _, topics = np.unique(np.asarray(corpus.topics), return_inverse=True)
    titled = tokenize_texts(names.tolist(), tokenizer, max_length=config.title_length + 2, cache_dir=cache)
    rows = TitledRows(texts.input_ids, texts.attention_mask, titles.astype(np.int32), topics.astype(np.int32))
    order = np.random.default_rng([seed, len(titles)]).permutation(len(titles))
    num_test = max(round(config.test_share * len(titles)), 1)
    title_mask = attention_mask(titled.lengths - 2, config.title_length)
    where = pathlib.Path(config.path).name if config.path else "Python's language reference (pydoc_data)"
    return TitledTask(
        training=rows.take(np.sort(order[num_test:])),
        test=rows.take(np.sort(order[:num_test])),
        title_ids=titled.input_ids[:, 1 : config.title_length + 1] * title_mask,
        title_mask=title_mask,
        vocab_size=max(len(tokenizer), config.vocab_size),
        special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
        config=config,
        description=(
            f"{where}: {len(titles):,} texts under {len(names):,} titles in {int(topics.max()) + 1:,} topics, "
            f"{num_test:,} texts held out; {len(tokenizer):,} token ids."
        ),
    )


def _read(config: TitledDataConfig) -> TitledTexts:
    if not config.path:
        return python_reference_texts()
    fields: dict[str, Any] = {name: getattr(config, name) for name in ("title_field", "text_field", "topic_field")}
    return read_titled_texts(config.path, **fields)


def _tokenizer(config: TitledDataConfig, corpus: TitledTexts) -> Any:
    if config.tokenizer:
        return load_tokenizer(config.tokenizer)
    texts = [*corpus.texts, *sorted(set(corpus.titles))]
    return train_tokenizer(texts, vocab_size=config.vocab_size, kind="word")
