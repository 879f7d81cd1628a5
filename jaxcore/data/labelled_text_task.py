"""A text classification task of any labelled file or dataset, or of generated opinions: two splits as rows of ids.

The named tasks with their published splits and layouts for pairs are in `classification_task`; this one takes what it
is given, keeps every text, and cuts long ones.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxcore.data.author_world import SPECIAL_TOKENS
from jaxcore.data.labelled_texts import LabelledTexts, read_labelled_records, read_tree_sentences
from jaxcore.data.sentiment_world import SentimentWorld, SentimentWorldConfig
from jaxcore.data.tokenization import attention_mask, load_tokenizer, pad_rows, tokenize_texts
from jaxcore.data.word_vocabulary import Text, frequent_words, number_words, string_of, words_of
from jaxcore.distributed import default_cache_dir

_SPECIAL = _PAD, _UNKNOWN, _START, _END = SPECIAL_TOKENS[:4]


@dataclasses.dataclass(frozen=True)
class LabelledTextConfig:
    """Where classified texts come from and how they are read."""

    path: str = ""
    """Training texts: .txt (trees of SST: 0, 1 against 3, 4), .csv, .jsonl, .parquet or tfds:NAME/SPLIT. Empty: the
    generated opinions."""
    test_path: str = ""
    """Texts that are held out; empty: `test_share` of the training texts."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a CSV without header."""
    text_fields: tuple[str, ...] = ("text",)
    """Columns of the text, joined by a blank."""
    label_field: str = "label"
    """Column of the label, an integer; sorted, they are the classes of `label_names`."""
    label_names: tuple[str, ...] = ("negative", "positive")
    """What prompts and reports call the classes."""
    test_share: float = 0.2
    """Share that is held out where there is no test_path."""
    tokenizer: str = ""
    """Folder or hub id of a tokenizer; empty: whole words and punctuation marks of the training texts, lower case."""
    vocab_size: int = 20_000
    """Most ids of the words; with a tokenizer, its size."""
    max_length: int = 64
    """Ids of a text, longer ones are cut."""
    cache_dir: str = ""
    """Folder for tokenised texts; empty: data/ in the user's cache (JAXCORE_CACHE_DIR)."""
    num_training: int = 7000
    num_test: int = 800
    """Generated sentences to train on, and those that are held out."""
    world: SentimentWorldConfig = dataclasses.field(default_factory=SentimentWorldConfig)
    """The generated language of opinions."""

    def __post_init__(self) -> None:
        if len(set(self.label_names)) < 2 or len(set(self.label_names)) < len(self.label_names):
            raise ValueError(f"data.label_names must be two or more different names: got {self.label_names}")
        if self.max_length < 8 or self.vocab_size < 16 or not 0 < self.test_share < 1 or not self.text_fields:
            raise ValueError(
                "data.max_length must be >= 8, data.vocab_size >= 16, data.test_share in (0, 1), data.text_fields not "
                f"empty: got {self.max_length}, {self.vocab_size}, {self.test_share}, {self.text_fields}"
            )
        if self.num_training < 4 or self.num_test < 2:
            raise ValueError(
                f"data.num_training must be >= 4, data.num_test >= 2: got {self.num_training}, {self.num_test}"
            )
        if self.tokenizer and not self.path:
            raise ValueError("data.tokenizer needs data.path: generated sentences are whole words")
        if self.test_path and not self.path:
            raise ValueError("data.test_path needs data.path: the texts to train on")


class TextRows(NamedTuple):
    """Texts as rows: ids [n, T], their mask, which of them are words of the text (not special), labels, and tokens."""

    input_ids: Int[np.ndarray, "n length"]
    attention_mask: Int[np.ndarray, "n length"]
    content: Int[np.ndarray, "n length"]
    labels: Int[np.ndarray, " n"]
    tokens: list[list[str]]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "TextRows":
        tokens = [self.tokens[row] for row in rows]
        return TextRows(self.input_ids[rows], self.attention_mask[rows], self.content[rows], self.labels[rows], tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTextTask:
    """See the module's docstring.

    Attributes:
        train, test: rows; no text is in both unless the files say so.
        source: what the texts are, for the report.
        num_ids: ids that the vocabulary or the tokenizer has.
        tokenizer: of a model, or None: whole words.
    """

    train: TextRows
    test: TextRows
    source: str
    num_ids: int
    tokenizer: Any


def open_labelled_text_task(
    config: LabelledTextConfig, *, seed: int, pad_id: int = 0, end_tokens: bool = False
) -> LabelledTextTask:
    """The texts of a configuration; training texts come in random order.

    Args:
        seed: of the generated sentences, of what is held out, and of the order.
        pad_id: id of padding after whole words.
        end_tokens: put [CLS] before and [SEP] after whole words; a tokenizer puts its own.

    Raises:
        ValueError: files that cannot be read; labels that are not as many as `label_names`; too few texts; a tokenizer
            with more ids than `vocab_size`.
    """
    rng = np.random.default_rng([seed, 31])
    train, test = _read_splits(config, rng)
    classes = np.unique(train.labels).tolist()
    if len(classes) != len(config.label_names):
        raise ValueError(f"the texts have the labels {classes[:8]}, but data.label_names names {config.label_names}")
    order = rng.permutation(len(train))
    if test is None:
        held_out = max(2, round(config.test_share * len(order)))
        test, order = train.take(order[:held_out]), order[held_out:]
    elif unknown := set(test.labels.tolist()) - set(classes):
        raise ValueError(f"{config.test_path} has the labels {sorted(unknown)[:8]}, which no training text has")
    if len(order) < 4 or len(test) < 2:
        raise ValueError(f"{len(order)} training and {len(test)} test texts: expected at least 4 and 2")
    train = train.take(order)
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
    if tokenizer is None:
        frequent = frequent_words(map(words_of, train.first), most=config.vocab_size - len(_SPECIAL))
        vocabulary = (*_SPECIAL, *frequent)
        encode = functools.partial(_whole_words, config, vocabulary, pad_id, end_tokens)
    elif len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} ids, the model {config.vocab_size}: set --data.vocab-size"
        )
    else:
        encode = functools.partial(_sub_words, config, tokenizer)
    rows = [encode(texts.first, np.searchsorted(classes, texts.labels).astype(np.int32)) for texts in (train, test)]
    return LabelledTextTask(
        train=rows[0],
        test=rows[1],
        source=pathlib.Path(config.path).name if config.path else "generated opinions",
        num_ids=len(vocabulary) if tokenizer is None else len(tokenizer),
        tokenizer=tokenizer,
    )


def _read_splits(config: LabelledTextConfig, rng: np.random.Generator) -> tuple[LabelledTexts, LabelledTexts | None]:
    if config.path:
        return _read(config, config.path), _read(config, config.test_path) if config.test_path else None
    world = SentimentWorld(config.world)
    made = [world.sample(count, rng) for count in (config.num_training, config.num_test)]
    train, test = (LabelledTexts(texts.words, None, texts.labels) for texts in made)
    return train, test


def _read(config: LabelledTextConfig, path: str) -> LabelledTexts:
    if path.endswith(".txt") and not path.startswith("tfds:"):
        texts = read_tree_sentences(path)
        return dataclasses.replace(texts, first=[[word.lower() for word in words] for words in texts.first])
    return read_labelled_records(
        path, text_fields=config.text_fields, label_field=config.label_field, columns=config.columns
    )


def _whole_words(
    config: LabelledTextConfig,
    vocabulary: Sequence[str],
    pad_id: int,
    end_tokens: bool,
    texts: Sequence[Text],
    labels: Int[np.ndarray, " n"],
) -> TextRows:
    """One id per word; tokens are the words as they were read, known or not."""
    tokens = [words_of(text)[: config.max_length - 2 * end_tokens] for text in texts]
    if end_tokens:
        tokens = [[_START, *words, _END] for words in tokens]
    ids, lengths = pad_rows(
        number_words(tokens, vocabulary, unknown=_SPECIAL.index(_UNKNOWN)), length=config.max_length, pad_id=pad_id
    )
    mask = attention_mask(lengths, ids.shape[1])
    content = mask * ~np.isin(ids, [_SPECIAL.index(_START), _SPECIAL.index(_END)])
    return TextRows(ids, mask, content.astype(np.int32), labels, tokens)


def _sub_words(
    config: LabelledTextConfig, tokenizer: Any, texts: Sequence[Text], labels: Int[np.ndarray, " n"]
) -> TextRows:
    folder = pathlib.Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir() / "data"
    encoded = tokenize_texts(
        [string_of(text) for text in texts], tokenizer, max_length=config.max_length, cache_dir=folder
    )
    ids, mask = np.asarray(encoded.input_ids), encoded.attention_mask
    content = mask * ~np.isin(ids, [id for id in tokenizer.all_special_ids if id != tokenizer.unk_token_id])
    tokens = [
        tokenizer.convert_ids_to_tokens(row[:length].tolist()) for row, length in zip(ids, encoded.lengths, strict=True)
    ]
    return TextRows(ids, mask, content.astype(np.int32), labels, tokens)
