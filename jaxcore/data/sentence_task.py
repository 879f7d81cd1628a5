"""A sentence-embedding task: unlabelled sentences to train on, and graded pairs to be judged by.

Both come alike from the generated world and from a folder of STS files. No training sentence is one of the sentences
that are scored, up to case and white space.
"""

import dataclasses
import gzip
import hashlib
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxcore.data.author_world import SPECIAL_TOKENS
from jaxcore.data.graded_pairs import GradedPairs, normalized, read_sts_folder
from jaxcore.data.records import Field, RecordScan, decode_text
from jaxcore.data.sentence_world import SentenceWorld, SentenceWorldConfig
from jaxcore.data.sources import open_source
from jaxcore.data.tokenization import load_tokenizer, tokenize_texts, train_tokenizer, word_tokenizer
from jaxcore.data.word_vectors import WordVectorOptions, ppmi_svd_vectors
from jaxcore.distributed import default_cache_dir


@dataclasses.dataclass(frozen=True)
class SentenceDataConfig:
    """Where sentences and graded pairs come from."""

    path: str = ""
    """Folder of STS files (see jaxcore.data.graded_pairs). Empty: the generated world."""
    corpus: str = ""
    """Training sentences: .txt (a sentence per line), .jsonl, .csv, .parquet (each also .gz), or tfds:NAME/SPLIT.
    Empty: the sentences of the STS folder that no scored pair holds."""
    text_field: str = "text"
    """Column of the corpus."""
    tokenizer: str = ""
    """Folder or hub id of a tokenizer. Empty: whole words, those of the training sentences."""
    vocab_size: int = 30522
    """Most ids; the world has its own number."""
    min_count: int = 3
    """Rarer words get no word vector."""
    max_length: int = 32
    """Ids of a sentence; longer ones are cut."""
    max_malformed_rate: float = 0.01
    """Share of malformed corpus records above which the run stops."""
    cache_dir: str = ""
    """Folder for tokenised corpora and word vectors, kept by content hash; empty: data/ in the user's cache
    (JAXCORE_CACHE_DIR)."""
    world: SentenceWorldConfig = dataclasses.field(default_factory=SentenceWorldConfig)
    """The generated world, used without a path."""

    def __post_init__(self) -> None:
        if self.corpus and not self.path:
            raise ValueError("data.corpus needs data.path: the folder of STS files that the encoder is judged by")
        if self.tokenizer and not self.path:
            raise ValueError("data.tokenizer needs data.path: the generated world has a vocabulary of its own")
        if self.max_length < 4 or self.vocab_size < 64 or self.min_count < 1:
            raise ValueError(
                "data.max_length must be at least 4, data.vocab_size 64 and data.min_count 1: got "
                f"{self.max_length}, {self.vocab_size} and {self.min_count}"
            )


def sentence_vocab_size(config: SentenceDataConfig) -> int:
    """Token ids that may occur, special tokens included: known from the configuration alone."""
    return config.vocab_size if config.path else config.world.num_words + len(SPECIAL_TOKENS)


@dataclasses.dataclass(frozen=True, eq=False)
class SentenceTask:
    """See the module's docstring.

    Attributes:
        texts: N training sentences, all distinct.
        input_ids, attention_mask: [N, T] int32, the same sentences; the first token is [CLS].
        pairs: name -> graded pairs that are scored.
        development: the name of the pairs that choose between models; no other may.
        test: the name of the pairs that headline numbers are of.
        training_pairs: labelled pairs that may be trained on, where there are any.
        vocab_size: ids that may occur, special tokens included.
        tokenizer: what made the ids.
        description: two or three sentences for the report.
    """

    texts: Sequence[str]
    input_ids: Int[np.ndarray, "sentences length"]
    attention_mask: Int[np.ndarray, "sentences length"]
    pairs: Mapping[str, GradedPairs]
    development: str
    test: str
    training_pairs: GradedPairs | None
    vocab_size: int
    tokenizer: Any
    description: str
    word_options: WordVectorOptions
    cache_dir: pathlib.Path | None
    word_numbers: Mapping[str, int]
    table_rows: int
    """`sentence_vocab_size`: rows of a model's table, at least `vocab_size`."""

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def rows(self) -> dict[str, np.ndarray]:
        """What an encoder reads of the training sentences."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What an encoder reads of these sentences."""
        tokenized = tokenize_texts(texts, self.tokenizer, max_length=self.input_ids.shape[1])
        return {"input_ids": tokenized.input_ids, "attention_mask": tokenized.attention_mask}

    def word_ids(self, texts: Sequence[str]) -> Int[np.ndarray, "n length"]:
        """Whole words in lower case as positive ids, 0 after them: what surface similarity compares.

        Punctuation and special tokens do not count. Words of the training sentences have the lowest ids, frequent
        ones first; any other word has a large id that depends on the word alone.
        """
        ids = np.zeros((len(texts), self.input_ids.shape[1]), np.int32)
        first_unknown = len(self.word_numbers) + 1
        for row, text in enumerate(texts):
            words = split_words(text)[: ids.shape[1]]
            ids[row, : len(words)] = [self.word_numbers.get(w) or _unknown_number(w, first_unknown) for w in words]
        return ids

    def word_vectors(self, dim: int) -> Float[np.ndarray, "vocab dim"]:
        """`ppmi_svd_vectors` of the training sentences, [table_rows, dim]; zero rows for ids of no frequent word."""
        counted = (self.attention_mask != 0) & ~np.isin(self.input_ids, self.tokenizer.all_special_ids)
        return ppmi_svd_vectors(
            self.input_ids,
            counted,
            vocab_size=max(self.table_rows, self.vocab_size),
            dim=dim,
            options=self.word_options,
            cache_dir=self.cache_dir,
        )


def open_sentence_task(config: SentenceDataConfig, *, seed: int) -> SentenceTask:
    """The task that `config` describes.

    Args:
        seed: of the generated world; files are what they are.

    Raises:
        ValueError: no STS folder, one without STS Benchmark pairs, malformed files or corpora, fewer than two training
            sentences, a tokenizer that cannot be loaded; says how to mend it.
    """
    if not config.path:
        return _world_task(config, seed)
    folder = read_sts_folder(os.path.expanduser(config.path))
    missing = [name for name in ("stsb_dev", "stsb_test") if name not in folder.tasks]
    if missing:
        raise ValueError(
            f"{config.path} has no {' and no '.join(missing)}: models are chosen on stsb_dev.csv and judged on "
            "stsb_test.csv; add the files"
        )
    labelled = {name: pairs for name, pairs in folder.tasks.items() if name.endswith(("_train", "_trial"))}
    scored = {name: pairs for name, pairs in folder.tasks.items() if name not in labelled}
    held_out = {normalized(sentence) for pairs in scored.values() for sentence in pairs.sentences()}
    if config.corpus:
        candidates: Iterable[str] = _read_corpus(config)
    else:
        candidates = [*(s for pairs in folder.tasks.values() for s in pairs.sentences()), *folder.unlabelled]
    texts, dropped = _distinct(candidates, held_out)
    source = pathlib.PurePath(config.corpus or config.path).name
    return _task(
        config,
        texts,
        _tokenizer(config, texts),
        pairs=scored,
        names=("stsb_dev", "stsb_test"),
        training_pairs=labelled.get("stsb_train"),
        description=" ".join(
            [
                f"{len(texts):,} training sentences of {source}; {dropped:,} that a scored pair holds were left out.",
                *(f"{note}." for note in folder.notes),
            ]
        ),
    )


def _world_task(config: SentenceDataConfig, seed: int) -> SentenceTask:
    world = SentenceWorld(config.world, seed)
    return _task(
        config,
        world.texts,
        word_tokenizer([*SPECIAL_TOKENS, *world.vocabulary]),
        pairs={"dev": world.development, "test": world.test},
        names=("dev", "test"),
        training_pairs=world.training_pairs,
        description=(
            f"A generated world: {len(world.texts):,} training sentences of {config.world.num_concepts:,} concepts "
            f"with {len(world.vocabulary):,} words. Gold similarity is the weighted share of common concepts; pairs "
            "are paraphrases in other words, look-alikes with another meaning, and all between."
        ),
    )


def _task(
    config: SentenceDataConfig,
    texts: Sequence[str],
    tokenizer: Any,
    *,
    pairs: Mapping[str, GradedPairs],
    names: tuple[str, str],
    training_pairs: GradedPairs | None,
    description: str,
) -> SentenceTask:
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} training sentences are left: a contrast needs at least two; give more text")
    cache_dir = pathlib.Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir() / "data"
    tokenized = tokenize_texts(texts, tokenizer, max_length=config.max_length, cache_dir=cache_dir)
    return SentenceTask(
        texts=texts,
        input_ids=tokenized.input_ids,
        attention_mask=tokenized.attention_mask,
        pairs=pairs,
        development=names[0],
        test=names[1],
        training_pairs=training_pairs,
        vocab_size=len(tokenizer),
        tokenizer=tokenizer,
        description=description,
        word_options=WordVectorOptions(min_count=config.min_count),
        cache_dir=cache_dir,
        word_numbers=_number_words(texts),
        table_rows=sentence_vocab_size(config),
    )


def _tokenizer(config: SentenceDataConfig, texts: Sequence[str]) -> Any:
    if config.tokenizer:
        return load_tokenizer(config.tokenizer)
    return train_tokenizer(texts, vocab_size=config.vocab_size, kind="word")


def _distinct(texts: Iterable[str], held_out: set[str]) -> tuple[list[str], int]:
    """Each sentence once and none of `held_out`, compared by `normalized`; and how many distinct ones that dropped."""
    found: dict[str, str] = {}
    dropped: set[str] = set()
    for text in texts:
        key = normalized(text)
        if key in held_out:
            dropped.add(key)
        elif key:
            found.setdefault(key, text)
    return list(found.values()), len(dropped)


# ---- corpora ---------------------------------------------------------------------------------------------


def _read_corpus(config: SentenceDataConfig) -> Iterator[str]:
    path = os.path.expanduser(config.corpus)
    if re.search(r"\.txt(\.gz)?$", path):
        yield from _read_lines(pathlib.Path(path), config.max_malformed_rate)
        return
    options: dict[str, Any] = {"fields": (Field("text", config.text_field),)}
    if not path.startswith("tfds:") and not (pathlib.Path(path) / "dataset_info.json").is_file():
        options["max_malformed_rate"] = config.max_malformed_rate
    source = open_source(path, **options)
    for index in range(len(source)):
        yield source[index]["text"]


def _read_lines(path: pathlib.Path, max_malformed_rate: float) -> Iterator[str]:
    """The lines that are not blank; those that are not UTF-8 are counted and left out."""
    if not path.is_file():
        raise ValueError(f"no file at {path} (from {pathlib.Path.cwd()}); check the path")
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    scan = RecordScan(str(path), max_malformed_rate)
    with opened(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                text = decode_text(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
            except ValueError as error:
                scan.reject(path, number, error)
                continue
            scan.accept()
            yield text
    scan.finish()


# ---- words -----------------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def split_words(text: str) -> list[str]:
    """Words in lower case: runs of letters and digits, with apostrophes inside; punctuation is dropped."""
    return _WORD.findall(text.lower())


def _number_words(texts: Sequence[str]) -> dict[str, int]:
    """Word -> 1, 2, ..., frequent words first, ties by the alphabet."""
    counts = Counter(word for text in texts for word in split_words(text))
    return {word: n for n, (word, _) in enumerate(sorted(counts.items(), key=lambda item: (-item[1], item[0])), 1)}


def _unknown_number(word: str, first: int) -> int:
    digest = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return first + digest % (2**31 - 1 - first)
