"""Text classification tasks, of one text or of a pair: where they come from, and as ids for two kinds of model.

Generated tasks need nothing; the published ones come from a folder of files or from TFDS. The same texts are given out
in two layouts: "texts", each text's words by themselves (recurrent models), and "sequence", one row
``[CLS] first [SEP] (second [SEP])`` (transformers), whose ids are those of the same words or of a tokenizer.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxcore.data.author_batches import AuthorBatches
from jaxcore.data.author_world import SPECIAL_TOKENS
from jaxcore.data.entailment_world import EntailmentWorld, EntailmentWorldConfig
from jaxcore.data.labelled_texts import LabelledTexts, read_text_label_lines, read_tree_sentences
from jaxcore.data.records import Field
from jaxcore.data.row_batches import RowSampler, row_batches
from jaxcore.data.sentiment_world import SentimentWorld, SentimentWorldConfig
from jaxcore.data.sources import open_source
from jaxcore.data.tokenization import attention_mask, load_tokenizer, pad_rows, word_tokenizer
from jaxcore.data.word_vocabulary import Text, frequent_words, number_words, string_of, words_of

Layout = Literal["texts", "sequence"]
PAD, UNKNOWN, START, END = 0, 1, 2, 3
SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class PublishedTask:
    """A data set by its TFDS name and by the names and columns of its files.

    Attributes:
        classes: names of the labels 0, 1, ... as files may spell them.
        tfds: NAME/SPLIT of train, dev and test.
        columns: TFDS features of the text, the second text ("" for none) and the label.
        file_columns: the same in the published files.
        longest: white-space words of a text or of a pair together beyond which it is left out; 0: no limit but
            `ClassificationDataConfig.max_length`.
    """

    classes: tuple[str, ...]
    tfds: tuple[str, str, str]
    columns: tuple[str, str, str]
    file_columns: tuple[str, str, str] = ("text", "", "label")
    longest: int = 0


_INFERENCE = ("entailment", "neutral", "contradiction")
_PREMISE, _SENTENCES = ("premise", "hypothesis", "label"), ("sentence1", "sentence2", "gold_label")
PUBLISHED: Mapping[str, PublishedTask] = {
    # GLUE's test labels are secret: dev is a part of train, test is GLUE's validation. TFDS has phrases, too, in
    # train; the sentence-level set is what the tree files hold.
    "sst2": PublishedTask(
        ("negative", "positive"), ("glue/sst2/train[:95%]", "glue/sst2/train[95%:]", "glue/sst2/validation"),
        ("sentence", "", "label"),
    ),
    "imdb": PublishedTask(
        ("negative", "positive"), ("imdb_reviews/train[:80%]", "imdb_reviews/train[80%:]", "imdb_reviews/test"),
        ("text", "", "label"), longest=240,
    ),
    # The paper's test set is English XNLI; TFDS's second validation set stands in for it [inferred].
    "mnli": PublishedTask(
        _INFERENCE, ("multi_nli/train", "multi_nli/validation_matched", "multi_nli/validation_mismatched"),
        _PREMISE, _SENTENCES,
    ),
    "snli": PublishedTask(_INFERENCE, ("snli/train", "snli/validation", "snli/test"), _PREMISE, _SENTENCES),
    "qqp": PublishedTask(
        ("different", "duplicate"), ("glue/qqp/train[:90%]", "glue/qqp/train[90%:]", "glue/qqp/validation"),
        ("question1", "question2", "label"), ("question1", "question2", "is_duplicate"), longest=200,
    ),
}  # fmt: skip

TASK_NAMES = ("sentiment", "overlap", *PUBLISHED)
"""``sentiment``: the generated opinions, or the tree files of `ClassificationDataConfig.path`; ``overlap``: generated
pairs, always."""


@dataclasses.dataclass(frozen=True)
class ClassificationDataConfig:
    """Where the texts of a task come from and how they are read."""

    path: str = ""
    """Folder of files: *sst*SPLIT*.txt (trees; for sentiment and sst2), imdb*SPLIT*.csv (text,label without header),
    NAME*SPLIT* with a header for pairs (.csv, .tsv, .jsonl, .parquet; each also .gz). Empty: generated, or TFDS."""
    data_dir: str = ""
    """Where TFDS keeps its data; empty: its own default."""
    tokenizer: str = ""
    """Folder or hub id of the transformer's tokenizer; empty: words. Recurrent models read words in any case."""
    vocab_size: int = 8192
    """Most words (and rows of the transformer's table) of data that are not generated."""
    min_count: int = 2
    """Rarer words of the training texts are unknown."""
    max_length: int = 19
    """Words of a text; longer texts are left out. The pilot took sentences of fewer than 20 tokens."""
    max_pieces: int = 512
    """Ids of a row of the transformer with a tokenizer of its own; longer rows are cut."""
    num_train: int = 4000
    num_dev: int = 500
    num_test: int = 500
    """Generated texts."""
    most: int = 0
    """Of other data, the most texts that are kept of each split; 0: all."""
    sentiment: SentimentWorldConfig = dataclasses.field(default_factory=SentimentWorldConfig)
    entailment: EntailmentWorldConfig = dataclasses.field(default_factory=EntailmentWorldConfig)

    def __post_init__(self) -> None:
        if self.max_length < 2 or self.vocab_size < 64 or self.min_count < 1 or self.max_pieces < 4:
            raise ValueError(
                "data.max_length must be at least 2, data.vocab_size 64, data.min_count 1 and data.max_pieces 4: got "
                f"{self.max_length}, {self.vocab_size}, {self.min_count} and {self.max_pieces}"
            )
        if min(self.num_train, self.num_dev, self.num_test) < 1 or self.most < 0:
            raise ValueError(
                "data.num_train, data.num_dev and data.num_test must be at least 1 and data.most at least 0: got "
                f"{self.num_train}, {self.num_dev}, {self.num_test} and {self.most}"
            )
        longest = max(self.sentiment.longest, self.entailment.longest, self.entailment.longest_hypothesis)
        if longest > self.max_length:
            raise ValueError(f"data.max_length {self.max_length} would leave out generated texts of {longest} words")


@dataclasses.dataclass(frozen=True)
class TaskShape:
    """What a model must be made for, known without reading anything."""

    num_classes: int
    is_pair: bool
    vocab_size: int
    """Rows of a table of words."""
    sequence_vocab_size: int
    text_length: int
    """Ids of a text."""
    sequence_length: int
    """Ids of a transformer's row."""

    def inputs(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what a model reads of one text or pair, in the order of `ClassificationTask.inputs`."""
        if layout == "sequence":
            return {"input_ids": (self.sequence_length,), "attention_mask": (self.sequence_length,)}
        sides = ("first", "second") if self.is_pair else ("first",)
        return {f"{side}_{kind}": (self.text_length,) for side in sides for kind in ("ids", "mask")}


_GENERATED: Mapping[str, tuple[str, ...]] = {"sentiment": ("negative", "positive"), "overlap": _INFERENCE}


def class_names(name: str) -> tuple[str, ...]:
    """The names of a task's labels 0, 1, ...; ValueError for a task that there is not."""
    check_task(name)
    return PUBLISHED[name].classes if name in PUBLISHED else _GENERATED[name]


def check_task(name: str) -> None:
    """ValueError unless there is a task of this name."""
    if name not in TASK_NAMES:
        raise ValueError(f"unknown task {name!r}: expected one of {', '.join(TASK_NAMES)}")


def task_shape(name: str, config: ClassificationDataConfig) -> TaskShape:
    """The shape of a task's rows; ValueError for a task that there is not."""
    check_task(name)
    is_pair = name == "overlap" or (name in PUBLISHED and bool(PUBLISHED[name].columns[1]))
    is_generated = name == "overlap" or (name == "sentiment" and not config.path)
    world = config.entailment if name == "overlap" else config.sentiment
    words = world.num_words + len(SPECIAL_TOKENS) if is_generated else config.vocab_size
    has_pieces = bool(config.tokenizer) and not is_generated
    return TaskShape(
        num_classes=len(class_names(name)),
        is_pair=is_pair,
        vocab_size=words,
        sequence_vocab_size=config.vocab_size if has_pieces else words,
        text_length=config.max_length,
        sequence_length=config.max_pieces if has_pieces else (1 + is_pair) * (config.max_length + 1) + 1,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ClassificationTask:
    """A task's splits and vocabulary.

    Attributes:
        splits: train, dev and test.
        words: the vocabulary, special tokens first; id = position.
        tokenizer: the transformer's, or None: words.
        description: a sentence for the report.
    """

    name: str
    shape: TaskShape
    splits: Mapping[str, LabelledTexts]
    words: tuple[str, ...]
    tokenizer: Any
    description: str

    def inputs(self, texts: LabelledTexts, layout: Layout) -> dict[str, np.ndarray]:
        """What a model reads, int32.

        "texts": ``first_ids``, ``first_mask`` and for pairs ``second_ids``, ``second_mask``; "sequence": ``input_ids``,
        ``attention_mask``.
        """
        if layout == "sequence":
            ids, lengths = pad_rows(
                self._sequences(texts), length=self.shape.sequence_length, pad_id=self.pad_id(layout)
            )
            return {"input_ids": ids, "attention_mask": attention_mask(lengths, ids.shape[1])}
        found: dict[str, np.ndarray] = {}
        for side, words in (("first", texts.first), ("second", texts.second)):
            if words is not None:
                ids, lengths = pad_rows(self._numbers(words), length=self.shape.text_length, pad_id=PAD)
                found |= {f"{side}_ids": ids, f"{side}_mask": attention_mask(lengths, ids.shape[1])}
        return found

    def rows(self, texts: LabelledTexts, layout: Layout) -> dict[str, np.ndarray]:
        """What a model is trained on: its `inputs`, and ``labels``, int32."""
        return {**self.inputs(texts, layout), "labels": texts.labels.astype(np.int32)}

    def text_tokenizer(self, layout: Layout) -> Any:
        """The tokenizer of transformers under which a single text has the ids of its row: the task's, or of its words.

        Words are split at white space and read in lower case.
        """
        is_sequence = layout == "sequence"
        if is_sequence and self.tokenizer is not None:
            return self.tokenizer
        return word_tokenizer(self.words, start_token=is_sequence, end_token=is_sequence, lowercase=True)

    def pad_id(self, layout: Layout) -> int:
        return int(self.tokenizer.pad_token_id) if self.tokenizer is not None and layout == "sequence" else PAD

    def tokens(self, rows: Mapping[str, np.ndarray], index: int) -> list[str]:
        """The tokens of a row in either layout, padding left out, the second text's after the first's."""
        if "input_ids" in rows:
            ids = rows["input_ids"][index][rows["attention_mask"][index] > 0].tolist()
            return self.tokenizer.convert_ids_to_tokens(ids) if self.tokenizer else [self.words[i] for i in ids]
        sides = [side for side in ("first", "second") if f"{side}_ids" in rows]
        ids = np.concatenate([rows[f"{side}_ids"][index][rows[f"{side}_mask"][index] > 0] for side in sides])
        return [self.words[number] for number in ids.tolist()]

    def batches(
        self, layout: Layout, *, batch_size: int, seed: int, num_steps: int, process_index: int, process_count: int
    ) -> AuthorBatches:
        """Training batches: every text once an epoch, reshuffled; this process's part."""
        sampler = RowSampler(self.rows(self.splits["train"], layout), batch_size=batch_size, seed=seed)
        return row_batches(sampler, num_steps=num_steps, process_index=process_index, process_count=process_count)

    def _numbers(self, texts: Sequence[Text]) -> list[list[int]]:
        return number_words(_lower_case(texts), self.words, unknown=UNKNOWN)

    def _sequences(self, texts: LabelledTexts) -> list[list[int]]:
        if self.tokenizer is not None:
            sides = [[string_of(text) for text in side] for side in (texts.first, texts.second) if side is not None]
            return self.tokenizer(*sides, truncation=True, max_length=self.shape.sequence_length)["input_ids"]
        first = [[START, *ids, END] for ids in self._numbers(texts.first)]
        if texts.second is None:
            return first
        return [[*ids, *more, END] for ids, more in zip(first, self._numbers(texts.second), strict=True)]


def open_classification_task(name: str, config: ClassificationDataConfig, *, seed: int) -> ClassificationTask:
    """The task of this name; `seed` decides generated texts and which texts are kept where there are too many.

    Raises:
        ValueError: unknown name, nothing at the path or no TFDS data, files that cannot be read, a split without texts.
    """
    shape = task_shape(name, config)
    if name == "overlap":
        splits, where = _overlap_splits(config, seed), "generated pairs, word overlap decides"
    elif name == "sentiment" and not config.path:
        splits, where = _sentiment_splits(config, seed), "generated opinions"
    else:
        splits, where = _read_splits(name, config), config.path or f"TFDS {PUBLISHED[name].tfds[0].split('/')[0]}"
    longest = PUBLISHED[name].longest if name in PUBLISHED else 0
    is_generated = name == "overlap" or (name == "sentiment" and not config.path)
    limit = 0 if is_generated else config.most
    kept = {
        split: _kept(texts, config.max_length, longest, limit, np.random.default_rng([seed, number, 7]))
        for number, (split, texts) in enumerate(splits.items())
    }
    for split, texts in kept.items():
        if not len(texts):
            raise ValueError(f"{name}: no {split} text has 2 to {config.max_length} words; raise data.max_length")
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer and not is_generated else None
    if tokenizer is not None and len(tokenizer) > shape.sequence_vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} ids: set --data.vocab-size {len(tokenizer)}")
    training = [*kept["train"].first, *(kept["train"].second or ())]
    most = shape.vocab_size - len(SPECIAL_TOKENS)
    words = (*SPECIAL_TOKENS, *frequent_words(_lower_case(training), most=most, min_count=config.min_count))
    counts = ", ".join(f"{len(texts):,} {split}" for split, texts in kept.items())
    description = f"{name}: {where}; texts: {counts}; {len(words):,} words; {shape.num_classes} classes."
    return ClassificationTask(name, shape, kept, words, tokenizer, description)


def _lower_case(texts: Iterable[Text]) -> list[list[str]]:
    return [[word.lower() for word in words_of(text)] for text in texts]


def _kept(texts: LabelledTexts, max_length: int, longest: int, most: int, rng: np.random.Generator) -> LabelledTexts:
    """Texts of 2 to max_length words (and `longest` words in all, unless 0), at most `most` of them (0: all)."""
    sizes = np.array(
        [[len(side[row]) for side in (texts.first, texts.second) if side is not None] for row in range(len(texts))]
    )
    sizes = sizes.reshape(len(texts), -1)
    fits = (sizes.max(axis=1, initial=0) <= max_length) & (sizes.sum(axis=1) >= 2) & (sizes.min(axis=1, initial=1) >= 1)
    rows = np.flatnonzero(fits & (sizes.sum(axis=1) <= longest) if longest else fits)
    if 0 < most < len(rows):
        chosen = rng.permutation(len(rows))[:most]
        rows = rows[np.sort(chosen)]
    return texts.take(rows)


# ---- sources ---------------------------------------------------------------------------------------------


def _sentiment_splits(config: ClassificationDataConfig, seed: int) -> dict[str, LabelledTexts]:
    world = SentimentWorld(config.sentiment)

    def sample(count: int, rng: np.random.Generator) -> LabelledTexts:
        texts = world.sample(count, rng)
        return LabelledTexts(texts.words, None, texts.labels)

    return _sampled(sample, config, seed)


def _overlap_splits(config: ClassificationDataConfig, seed: int) -> dict[str, LabelledTexts]:
    world = EntailmentWorld(config.entailment)
    return _sampled(lambda count, rng: LabelledTexts(*world.sample(count, rng)), config, seed)


def _sampled(
    sample: Callable[[int, np.random.Generator], LabelledTexts], config: ClassificationDataConfig, seed: int
) -> dict[str, LabelledTexts]:
    sizes = {split: getattr(config, f"num_{split}") for split in SPLITS}
    return {split: sample(size, np.random.default_rng([seed, SPLITS.index(split)])) for split, size in sizes.items()}


def _read_splits(name: str, config: ClassificationDataConfig) -> dict[str, LabelledTexts]:
    if not config.path:
        read = [_read_records(name, f"tfds:{spec}", PUBLISHED[name].columns, config) for spec in PUBLISHED[name].tfds]
        return dict(zip(SPLITS, read, strict=True))
    folder = pathlib.Path(config.path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"no file or folder at {folder} (from {pathlib.Path.cwd()}): data.path is a folder of files")
    prefix = "sst" if name in ("sentiment", "sst2") else name
    files = {split: _find(folder, prefix, split) for split in SPLITS}
    missing = [split for split in ("dev", "test") if files[split] is None]
    if missing:
        raise ValueError(f"{folder}: no file {prefix}*{missing[0]}* ; {name} needs {prefix}*train*, *dev* and *test*")
    splits = {split: _read_file(name, file, config) for split, file in files.items() if file is not None}
    if "train" not in splits:  # of the published IMDb files the training part is lost: dev trains, its end is dev
        dev = splits["dev"]
        cut = len(dev) - max(len(dev) // 10, 1)
        splits["train"], splits["dev"] = dev.take(np.arange(cut)), dev.take(np.arange(cut, len(dev)))
    return {split: splits[split] for split in SPLITS}


def _find(folder: pathlib.Path, prefix: str, split: str) -> pathlib.Path | None:
    names = {"dev": ("dev", "valid")}.get(split, (split,))
    endings = (".txt",) if prefix == "sst" else (".csv", ".tsv", ".jsonl", ".parquet")
    for file in sorted(folder.iterdir()):
        lower = file.name.lower().removesuffix(".gz")
        if lower.startswith(prefix) and lower.endswith(endings) and any(name in lower[len(prefix) :] for name in names):
            return file
    return None


def _read_file(name: str, file: pathlib.Path, config: ClassificationDataConfig) -> LabelledTexts:
    if name in ("sentiment", "sst2"):
        return read_tree_sentences(file)
    if name == "imdb":
        return read_text_label_lines(file)
    return _read_records(name, str(file), PUBLISHED[name].file_columns, config)


def _read_records(
    name: str, spec: str, columns: tuple[str, str, str], config: ClassificationDataConfig
) -> LabelledTexts:
    """Records of a file or a TFDS split; those without a class (-1, "-") are left out, as the publishers advise."""
    first, second, label = columns
    is_tfds = spec.startswith("tfds:")
    fields = [Field("first", first), *([Field("second", second)] if second else [])]
    fields.append(Field("label", label, int if is_tfds else str))
    options: dict[str, Any] = {"data_dir": config.data_dir} if is_tfds and config.data_dir else {}
    source = open_source(spec, fields=tuple(fields), **options)
    numbers = {text: number for number, text in enumerate(PUBLISHED[name].classes)}
    numbers |= {str(number): number for number in range(len(numbers))}
    records = [source[index] for index in range(len(source))]
    kept = [record for record in records if str(record["label"]).lower() in numbers]
    if not kept:
        raise ValueError(f"{spec}: no record has one of the labels {', '.join(numbers)}")
    labels = np.array([numbers[str(record["label"]).lower()] for record in kept], np.int32)
    sides = [[tuple(record[side].split()) for record in kept] for side in ("first", "second") if side in kept[0]]
    return LabelledTexts(sides[0], sides[1] if len(sides) == 2 else None, labels)
