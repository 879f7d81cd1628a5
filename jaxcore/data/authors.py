"""Corpora of texts by author as arrays: building them from a source, selecting, splitting by author or by
work."""

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from jaxcore.data.array_cache import cached_arrays, content_hash
from jaxcore.data.chunking import Chunker, TokenChunker
from jaxcore.data.sources import Source
from jaxcore.data.tokenization import attention_mask, pad_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

_CHARACTERS_PER_CALL = 8_000_000  # texts are tokenised in groups of about this size: parallel, and bounded memory


@dataclasses.dataclass(frozen=True)
class AuthorCorpus:
    """Tokenised chunks of texts by author. Arrays may be read-only memory maps."""

    input_ids: Int[np.ndarray, "chunks length"]
    lengths: Int[np.ndarray, "chunks"]
    """Tokens in each chunk; the rest of its row is `pad_id`."""
    author_index: Int[np.ndarray, "chunks"]
    """Position of the chunk's author in `author_names`: the label of contrastive batches."""
    work_index: Int[np.ndarray, "chunks"]
    """Position in `work_names` of the work (book, thread, topic) the chunk comes from; authors may share works."""
    author_names: tuple[str, ...]
    work_names: tuple[str, ...]
    pad_id: int = 0
    vocab_size: int = 0
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """What building left out: duplicate chunks, authors with a single chunk, texts without tokens."""

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("lengths", "author_index", "work_index")}
        if self.input_ids.ndim != 2 or any(shape != self.input_ids.shape[:1] for shape in shapes.values()):
            raise ValueError(
                f"input_ids {self.input_ids.shape} and {shapes} do not fit; give [M, T] and three times [M]"
            )
        for index, names in ((self.author_index, self.author_names), (self.work_index, self.work_names)):
            if len(index) and not 0 <= index.min() <= index.max() < len(names):
                raise ValueError(f"an index runs from {index.min()} to {index.max()} over {len(names)} names")
        if len(np.unique(self.author_index)) != len(self.author_names):
            raise ValueError("an author in author_names has no chunk; name only authors that have one")

    @property
    def num_chunks(self) -> int:
        return len(self.input_ids)

    @property
    def num_authors(self) -> int:
        return len(self.author_names)

    @property
    def max_length(self) -> int:
        return self.input_ids.shape[1]

    @functools.cached_property
    def chunks_per_author(self) -> Int[np.ndarray, "authors"]:
        return np.bincount(self.author_index, minlength=self.num_authors)

    @functools.cached_property
    def chunks_by_author(self) -> tuple[Int[np.ndarray, "author_chunks"], ...]:
        """The chunks of every author, in corpus order."""
        order = np.argsort(self.author_index, kind="stable")
        return tuple(np.split(order, np.cumsum(self.chunks_per_author)[:-1]))

    @functools.cached_property
    def author_works(self) -> Int[np.ndarray, "chunks"]:
        """A number for each (author, work) pair, ascending with the author: who wrote the chunk and where."""
        pairs = self.author_index.astype(np.int64) * len(self.work_names) + self.work_index
        return np.unique(pairs, return_inverse=True)[1]

    def attention_mask(self, chunks: Int[np.ndarray, "n"] | slice = slice(None)) -> Int[np.ndarray, "n length"]:
        """1 at tokens, 0 at padding, of the given chunks (all by default)."""
        return attention_mask(self.lengths[chunks], self.max_length)

    def works_of(self, author: int) -> Int[np.ndarray, "works"]:
        """Indices of the works of one author, ascending (that is, in order of their names)."""
        return np.unique(self.work_index[self.chunks_by_author[author]])

    def take(self, chunks: Int[np.ndarray, "n"]) -> "AuthorCorpus":
        """The corpus of these chunks, in this order; authors and works left without chunks disappear, the
        others keep their order and are renumbered.

        Raises:
            ValueError: No chunks.
        """
        chunks = np.asarray(chunks)
        if not len(chunks):
            raise ValueError("no chunks are left of the corpus; select authors and works that have some")
        authors, author_index = np.unique(self.author_index[chunks], return_inverse=True)
        works, work_index = np.unique(self.work_index[chunks], return_inverse=True)
        return dataclasses.replace(
            self,
            input_ids=self.input_ids[chunks],
            lengths=np.asarray(self.lengths[chunks]),
            author_index=author_index.astype(np.int32),
            work_index=work_index.astype(np.int32),
            author_names=tuple(self.author_names[author] for author in authors),
            work_names=tuple(self.work_names[work] for work in works),
        )

    def select(
        self, *, authors: Iterable[int | str] | None = None, works: Iterable[int | str] | None = None
    ) -> "AuthorCorpus":
        """The chunks of these authors and, of them, these works, each given by name or index.

        Raises:
            ValueError: An unknown name or index, or nothing left.
        """
        keep = np.ones(self.num_chunks, bool)
        if authors is not None:
            keep &= np.isin(self.author_index, _positions(authors, self.author_names, "author"))
        if works is not None:
            keep &= np.isin(self.work_index, _positions(works, self.work_names, "work"))
        return self.take(np.flatnonzero(keep))

    def with_chunks_per_author(self, minimum: int) -> "AuthorCorpus":
        """Only authors with at least `minimum` chunks: what a sampler of that many views needs (star.md
        2.1.5).

        Raises:
            ValueError: No author has that many.
        """
        authors = np.flatnonzero(self.chunks_per_author >= minimum)
        if not len(authors):
            raise ValueError(
                f"no author has {minimum} chunks (the most is {self.chunks_per_author.max()}); ask for fewer"
            )
        return self.select(authors=authors.tolist())


def _positions(wanted: Iterable[int | str], names: Sequence[str], what: str) -> list[int]:
    by_name = {name: position for position, name in enumerate(names)}
    positions = []
    for item in wanted:
        if isinstance(item, str):
            if item not in by_name:
                raise ValueError(f"no {what} {item!r} among {len(names)} (e.g. {', '.join(map(repr, names[:3]))})")
            positions.append(by_name[item])
        elif 0 <= item < len(names):
            positions.append(int(item))
        else:
            raise ValueError(f"no {what} {item}; the corpus has {what}s 0..{len(names) - 1}")
    return positions


def build_author_corpus(
    source: Source,
    tokenizer: "PreTrainedTokenizerFast | Chunker",
    *,
    max_length: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    drop_duplicates: bool = True,
) -> AuthorCorpus:
    """The corpus of a source's records (`text`, `author`, optional `work`): every text cut into chunks.

    As star.md 2.1: chunks that occur more than once anywhere are removed, all copies of them (boilerplate and
    reposts say nothing about authorship); then authors with a single chunk, who have no pair. A record
    without `work` is a work of its own. Tokens are held in memory while building (4 bytes each) and, with
    `cache_dir`, written once and memory-mapped from then on; the cache key covers the source, the tokenizer
    and the settings.

    Args:
        source: Where the texts come from.
        tokenizer: A fast tokenizer, which cuts into chunks of `max_length` ids, or a `Chunker`.
        max_length: Ids in a chunk, special tokens included; only with a tokenizer.
        cache_dir: Folder of the disk cache; None: nothing is kept.
        drop_duplicates: Remove repeated chunks.

    Raises:
        ValueError: `max_length` missing or too short, no author with two chunks, unwritable cache.
    """
    chunker = _as_chunker(tokenizer, max_length)

    def compute() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return _chunk_source(source, chunker, drop_duplicates)

    key = ""
    if cache_dir is not None:
        key = content_hash("author corpus", source.fingerprint(), chunker.fingerprint(), str(drop_duplicates))
    arrays, metadata = cached_arrays(cache_dir, key, compute)
    return AuthorCorpus(
        **arrays,
        author_names=tuple(metadata["author_names"]),
        work_names=tuple(metadata["work_names"]),
        pad_id=chunker.pad_id,
        vocab_size=chunker.vocab_size,
        dropped=metadata["dropped"],
    )


def _as_chunker(tokenizer: Any, max_length: int | None) -> Chunker:
    if hasattr(tokenizer, "fingerprint"):
        if max_length not in (None, tokenizer.max_length):
            raise ValueError(f"max_length {max_length} against the chunker's {tokenizer.max_length}; leave it out")
        return tokenizer
    if max_length is None:
        raise ValueError("max_length is missing; give the ids in a chunk, e.g. max_length=512")
    return TokenChunker(tokenizer, max_length=max_length)


def _groups(source: Source) -> Iterator[list[tuple[str, str, str]]]:
    """(text, author, work) of every record, in groups that are tokenised together."""
    group: list[tuple[str, str, str]] = []
    characters = 0
    for index in range(len(source)):
        record = source[index]
        group.append((record["text"], str(record["author"]), str(record.get("work", f"record{index:09d}"))))
        characters += len(record["text"])
        if characters >= _CHARACTERS_PER_CALL:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _chunk_source(
    source: Source, chunker: Chunker, drop_duplicates: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    blocks, lengths, hashes = [], [], []
    authors: list[str] = []
    works: list[str] = []
    without_tokens = 0
    for group in _groups(source):
        rows = []
        for (_, author, work), chunks in zip(group, chunker([text for text, _, _ in group]), strict=True):
            without_tokens += not chunks
            rows += chunks
            authors += [author] * len(chunks)
            works += [work] * len(chunks)
        padded, block_lengths = pad_rows(rows, length=chunker.max_length, pad_id=chunker.pad_id)
        blocks.append(padded)
        lengths.append(block_lengths)
        hashes += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
    keep, dropped = _kept(authors, hashes, drop_duplicates)
    author_names, author_index = np.unique(np.asarray(authors)[keep], return_inverse=True)
    work_names, work_index = np.unique(np.asarray(works)[keep], return_inverse=True)
    dropped["texts_without_tokens"] = without_tokens
    if any(dropped.values()):
        logger.info("author corpus: %s left out", ", ".join(f"{count} {what}" for what, count in dropped.items()))
    arrays = {
        "input_ids": np.concatenate(blocks)[keep],
        "lengths": np.concatenate(lengths)[keep],
        "author_index": author_index.astype(np.int32),
        "work_index": work_index.astype(np.int32),
    }
    names = {"author_names": author_names.tolist(), "work_names": work_names.tolist()}
    return arrays, {**names, "dropped": dropped}


def _kept(
    authors: Sequence[str], hashes: Sequence[bytes], drop_duplicates: bool
) -> tuple[Int[np.ndarray, "kept"], dict[str, int]]:
    """Indices of the chunks that stay: those occurring once, of authors who still have two or more."""
    if not len(authors):
        raise ValueError("no text of the source has a token; give texts of at least a few words")
    keep = np.ones(len(authors), bool)
    if drop_duplicates:
        _, inverse, counts = np.unique(np.frombuffer(b"".join(hashes), "V16"), return_inverse=True, return_counts=True)
        keep = counts[inverse] == 1
    _, owners = np.unique(np.asarray(authors), return_inverse=True)
    chunks = np.bincount(owners, weights=keep)
    dropped = {
        "duplicate_chunks": int((~keep).sum()),
        "authors_with_one_chunk_or_none": int((chunks < 2).sum()),
    }
    keep &= chunks[owners] >= 2
    if not keep.any():
        raise ValueError(
            f"none of {len(chunks)} authors has two different chunks, so no pair of texts by one author; "
            "give longer or more texts, or lower max_length"
        )
    return np.flatnonzero(keep), dropped


def author_disjoint_split(
    corpus: AuthorCorpus, *, test_fraction: float, seed: int
) -> tuple[AuthorCorpus, AuthorCorpus]:
    """(training, test) corpora without a common author; `test_fraction` of the authors, at least one, are
    test.

    Raises:
        ValueError: Fewer than two authors, or a fraction outside (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}; it must be between 0 and 1, e.g. 0.1")
    if corpus.num_authors < 2:
        raise ValueError("the corpus has one author only; a split by author needs at least two")
    count = min(max(round(test_fraction * corpus.num_authors), 1), corpus.num_authors - 1)
    order = np.random.default_rng(seed).permutation(corpus.num_authors)
    return corpus.select(authors=order[count:].tolist()), corpus.select(authors=order[:count].tolist())


def work_disjoint_split(corpus: AuthorCorpus, *, works_per_author: int = 1) -> tuple[AuthorCorpus, AuthorCorpus]:
    """(training, test) corpora without a common work of the same author: of each author the last
    `works_per_author` works, by name, are test. An author with no more works than that stays in training.

    Raises:
        ValueError: No author has enough works.
    """
    held_out = np.zeros(corpus.num_chunks, bool)
    for author, chunks in enumerate(corpus.chunks_by_author):
        works = corpus.works_of(author)
        if len(works) > works_per_author:
            held_out[chunks] = np.isin(corpus.work_index[chunks], works[-works_per_author:])
    if works_per_author < 1 or not held_out.any():
        raise ValueError(f"no author has more than {works_per_author} works to hold out; split by author instead")
    return corpus.take(np.flatnonzero(~held_out)), corpus.take(np.flatnonzero(held_out))
