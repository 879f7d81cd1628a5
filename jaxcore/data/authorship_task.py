"""An authorship task: what a model trains on, and the texts it is asked about, from the world or from files.

Both come out alike: batches of authors x views, a pool of training texts (to fit heads and thresholds on) and
a pool of test texts in which *support* and *query* come from different topics or works, so that topic gives
nothing away.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from jaxcore.data.author_batches import AuthorBatchConfig, AuthorBatches, CorpusSampler, WorldSampler
from jaxcore.data.author_world import SPECIAL_TOKENS, AuthorWorld, AuthorWorldConfig
from jaxcore.data.authors import AuthorCorpus, build_author_corpus
from jaxcore.data.chunking import Chunker, TokenChunker, TrigramChunker
from jaxcore.data.records import Field
from jaxcore.data.sources import Source, open_source
from jaxcore.data.tokenization import load_tokenizer, train_tokenizer
from jaxcore.distributed import default_cache_dir


@dataclasses.dataclass(frozen=True)
class AuthorshipDataConfig:
    """Where texts come from and how they are cut and held out."""

    path: str = ""
    """Real texts: a folder by author, .jsonl, .csv or .parquet with `text` and `author`, or tfds:NAME/SPLIT.
    Empty: the generated world."""
    text_field: str = "text"
    author_field: str = "author"
    work_field: str = "work"
    """Columns of the records; one without a work is a work of its own."""
    representation: Literal["tokens", "trigrams"] = "tokens"
    """tokens: subwords of a tokenizer. trigrams: hashed character trigrams, for bag-of-words encoders."""
    tokenizer: str = ""
    """Folder or hub id of a tokenizer; empty: one is trained on the texts."""
    vocab_size: int = 8192
    """Most ids of a tokenizer trained on the texts, or trigram buckets."""
    max_length: int = 128
    """Ids in a chunk."""
    words_per_chunk: int = 400
    """Words in a chunk of trigrams."""
    held_out: Literal["works", "authors"] = "works"
    """works: train on the first half of each author's works, ask about the second. authors: test authors are
    unseen; support and query are halves of their works."""
    fold: int = 0
    """Which third of the authors is unseen, with held_out=authors."""
    texts_per_author: int = 32
    """Most test and training-pool texts of an author, half support and half query."""
    max_malformed_rate: float = 0.01
    """Share of malformed records above which the run stops."""
    cache_dir: str = ""
    """Folder for tokenised corpora, kept by content hash; empty: data/ in the user's cache (JAXCORE_CACHE_DIR)."""
    world: AuthorWorldConfig = dataclasses.field(default_factory=AuthorWorldConfig)
    """The generated world, used without a path."""
    batches: AuthorBatchConfig = dataclasses.field(default_factory=AuthorBatchConfig)
    """Authors and views of a training batch."""

    def __post_init__(self) -> None:
        if not 0 <= self.fold < NUM_FOLDS:
            raise ValueError(f"data.fold must be in 0..{NUM_FOLDS - 1}: got {self.fold}")
        if self.max_length < 8 or self.texts_per_author < 4 or self.vocab_size < 256:
            raise ValueError(
                "data.max_length must be at least 8, data.texts_per_author 4 and data.vocab_size 256: got "
                f"{self.max_length}, {self.texts_per_author} and {self.vocab_size}"
            )


NUM_FOLDS = 3


@dataclasses.dataclass(frozen=True)
class TextPool:
    """Texts with their authors; each may serve as support or as query, never as both.

    Attributes:
        input_ids: [n, T], padded with 0s of `attention_mask`.
        attention_mask: [n, T].
        authors: [n] author numbers, contiguous from 0 within the pool.
        topics: [n] topic or work of each text.
        is_query: [n]; the others are support.
    """

    input_ids: Int[np.ndarray, "n length"]
    attention_mask: Int[np.ndarray, "n length"]
    authors: Int[np.ndarray, "n"]
    topics: Int[np.ndarray, "n"]
    is_query: Bool[np.ndarray, "n"]

    @property
    def num_authors(self) -> int:
        return int(self.authors.max()) + 1

    def rows(self) -> dict[str, np.ndarray]:
        """What an encoder reads."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


@dataclasses.dataclass(frozen=True)
class AuthorshipTask:
    """See the module's docstring.

    Attributes:
        sampler: of training batches, whatever the number of processes.
        training, test: pools.
        test_author_names: of the numbers in `test.authors`.
        vocab_size: ids that may occur, special tokens included.
        tokens: ids -> readable tokens.
        markers: (author number in `test`, ids) -> which tokens give that author away, where that is known.
        topic_words: (topic, ids) -> which tokens belong to the topic, where that is known.
        description: one sentence for the report.
    """

    sampler: CorpusSampler | WorldSampler
    training: TextPool
    test: TextPool
    test_author_names: Sequence[str]
    vocab_size: int
    tokens: Callable[[np.ndarray], list[str]]
    description: str
    markers: Callable[[int, np.ndarray], np.ndarray] | None = None
    topic_words: Callable[[int, np.ndarray], np.ndarray] | None = None
    tokenizer: Any = None

    def batches(self, *, num_steps: int, process_index: int = 0, process_count: int = 1) -> AuthorBatches:
        """This process's training batches."""
        return AuthorBatches(
            self.sampler, num_steps=num_steps, process_index=process_index, process_count=process_count
        )


def open_authorship_task(config: AuthorshipDataConfig, *, seed: int, start_token: bool = False) -> AuthorshipTask:
    """The task that `config` describes.

    Args:
        seed: of the world, the choice of test texts and the batches.
        start_token: the encoder pools the first token, so the world's documents need one.

    Raises:
        ValueError: nothing at the path, malformed texts, too few authors, works or chunks; says how to mend
          it.
    """
    return _corpus_task(config, seed) if config.path else _world_task(config, seed, start_token)


def world_vocab_size(config: AuthorWorldConfig) -> int:
    """Token ids of the world, special tokens included."""
    return config.num_words + len(SPECIAL_TOKENS)


def _world_task(config: AuthorshipDataConfig, seed: int, start_token: bool) -> AuthorshipTask:
    world = AuthorWorld(config.world, seed)
    first_test = config.world.num_training_authors
    names = [*SPECIAL_TOKENS, *world.vocabulary]

    def pool(authors: np.ndarray, stream: int) -> TextPool:
        return _world_pool(world, authors, config, np.random.default_rng([seed, stream]), start_token)

    return AuthorshipTask(
        sampler=WorldSampler(world, config.batches, seed, start_token=start_token),
        training=pool(world.training_authors[: config.world.num_test_authors], 1),
        test=pool(world.test_authors, 2),
        test_author_names=tuple(f"author {first_test + i}" for i in range(config.world.num_test_authors)),
        vocab_size=world.vocab_size,
        tokens=lambda ids: [names[i] for i in ids],
        description=(
            f"A generated world: {config.world.num_training_authors} training authors, "
            f"{config.world.num_test_authors} unseen test authors; support texts from one half of the "
            "topics, "
            "queries from the other, so the topic gives nothing away."
        ),
        markers=lambda author, ids: world.at_tokens(world.style_markers(first_test + author), ids),
        topic_words=lambda topic, ids: world.at_tokens(world.topic_words(topic), ids),
    )


def _world_pool(
    world: AuthorWorld,
    authors: np.ndarray,
    config: AuthorshipDataConfig,
    rng: np.random.Generator,
    start: bool,
) -> TextPool:
    per_author, half = config.texts_per_author, world.config.num_topics // 2
    rows = np.repeat(authors, per_author)
    is_query = np.tile(np.arange(per_author) >= per_author // 2, len(authors))
    topics = np.where(is_query, rng.integers(half, 2 * half, len(rows)), rng.integers(0, half, len(rows)))
    input_ids = world.input_ids(world.sample_documents(rows, topics, rng), start_token=start)
    numbers = np.repeat(np.arange(len(authors)), per_author)
    return TextPool(input_ids, np.ones_like(input_ids), numbers, topics, is_query)


def _corpus_task(config: AuthorshipDataConfig, seed: int) -> AuthorshipTask:
    source = _open_source(config)
    chunker, tokenizer = _chunker(config, source)
    corpus = build_author_corpus(source, chunker, cache_dir=_cache_dir(config))
    second_half = _second_half_of_works(corpus)
    views = config.batches.views_per_author
    if config.held_out == "works":
        training = corpus.take(np.flatnonzero(~second_half)).with_chunks_per_author(views)
        test = corpus
    else:
        unseen = _fold_of_authors(corpus.num_authors, config.fold, seed)
        training = corpus.select(authors=np.flatnonzero(~unseen).tolist()).with_chunks_per_author(views)
        kept = np.flatnonzero(unseen[corpus.author_index])
        test, second_half = corpus.take(kept), second_half[kept]
    if training.num_authors < 2:
        raise ValueError(f"one training author only ({training.author_names[0]!r}): a contrast needs two")
    # A batch cannot hold more authors than there are: small corpora get smaller batches, and the description says so.
    batches = dataclasses.replace(
        config.batches, authors_per_batch=min(config.batches.authors_per_batch, training.num_authors)
    )
    rng = np.random.default_rng([seed, 2])
    return AuthorshipTask(
        sampler=CorpusSampler([training], batches, seed),
        training=_corpus_pool(training, _second_half_of_chunks(training), config.texts_per_author, rng),
        test=_corpus_pool(test, second_half, config.texts_per_author, rng),
        test_author_names=test.author_names,
        vocab_size=corpus.vocab_size,
        tokens=(lambda ids: tokenizer.convert_ids_to_tokens(ids.tolist()))
        if tokenizer is not None
        else (lambda ids: [f"bucket {i}" for i in ids]),
        description=_describe(config, corpus, training, test, batches),
        tokenizer=tokenizer,
    )


def _open_source(config: AuthorshipDataConfig) -> Source:
    path = os.path.expanduser(config.path)
    options: dict[str, Any] = {}
    if not path.startswith("tfds:") and not (pathlib.Path(path) / "dataset_info.json").is_file():
        options["max_malformed_rate"] = config.max_malformed_rate  # TFDS checks records when it writes them
    names = (config.text_field, config.author_field, config.work_field)
    if names != ("text", "author", "work"):
        required = {"work": False}
        options["fields"] = tuple(
            Field(name, column, required=required.get(name, True))
            for name, column in zip(("text", "author", "work"), names, strict=True)
        )
    return open_source(path, **options)


def _describe(
    config: AuthorshipDataConfig,
    corpus: AuthorCorpus,
    training: AuthorCorpus,
    test: AuthorCorpus,
    batches: AuthorBatchConfig,
) -> str:
    how = (
        "trained on the first half of each author's works; support texts from it, queries from the second half"
        if config.held_out == "works"
        else "test authors are unseen in training; support and query texts from different works"
    )
    return (
        f"{pathlib.Path(config.path).name}: {corpus.num_authors} authors, {len(corpus.work_names)} works, "
        f"{corpus.num_chunks:,} chunks ({training.num_authors} training and {test.num_authors} test authors; "
        f"{how}); batches of {batches.authors_per_batch} authors x {batches.views_per_author} texts."
    )


def _chunker(config: AuthorshipDataConfig, source: Source) -> tuple[Chunker, Any]:
    if config.representation == "trigrams":
        return TrigramChunker(words_per_chunk=config.words_per_chunk, buckets=config.vocab_size), None
    if config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer)
    else:
        # The beginning of every text is enough for a vocabulary, and takes seconds instead of minutes.
        texts = (source[i]["text"][:200_000] for i in range(len(source)))
        tokenizer = train_tokenizer(texts, vocab_size=config.vocab_size)
    return TokenChunker(tokenizer, max_length=config.max_length), tokenizer


def _cache_dir(config: AuthorshipDataConfig) -> pathlib.Path:
    return pathlib.Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir() / "data"


def _fold_of_authors(num_authors: int, fold: int, seed: int) -> Bool[np.ndarray, "authors"]:
    if num_authors < 2 * NUM_FOLDS:
        raise ValueError(
            f"the corpus has {num_authors} authors: held_out=authors needs at least {2 * NUM_FOLDS}; "
            "use data.held_out works"
        )
    return np.random.default_rng(seed).permutation(num_authors) % NUM_FOLDS == fold


def _second_half_of_works(corpus: AuthorCorpus) -> Bool[np.ndarray, "chunks"]:
    """Chunks of the later half (by name) of each author's works; an author of one work has none."""
    later = np.zeros(corpus.num_chunks, bool)
    for author, chunks in enumerate(corpus.chunks_by_author):
        works = corpus.works_of(author)
        later[chunks] = np.isin(corpus.work_index[chunks], works[(len(works) + 1) // 2 :])
    if not later.any():
        raise ValueError(
            "no author has two works, so support and query cannot come from different ones: give several "
            "files per author, or a `work` field"
        )
    return later


def _second_half_of_chunks(corpus: AuthorCorpus) -> Bool[np.ndarray, "chunks"]:
    later = np.zeros(corpus.num_chunks, bool)
    for chunks in corpus.chunks_by_author:
        later[chunks[len(chunks) // 2 :]] = True
    return later


def _corpus_pool(
    corpus: AuthorCorpus, is_query: np.ndarray, texts_per_author: int, rng: np.random.Generator
) -> TextPool:
    """At most half of `texts_per_author` support and half query texts of each author that has both."""
    kept = []
    for chunks in corpus.chunks_by_author:
        halves = [rng.permutation(chunks[is_query[chunks] == side])[: texts_per_author // 2] for side in (0, 1)]
        if all(len(half) for half in halves):
            kept += halves
    if not kept:
        raise ValueError("no author has both support and query texts: give longer texts or more works")
    chunks = np.concatenate(kept)
    _, authors = np.unique(corpus.author_index[chunks], return_inverse=True)
    return TextPool(
        np.asarray(corpus.input_ids[chunks]),
        corpus.attention_mask(chunks),
        authors,
        corpus.work_index[chunks],
        is_query[chunks],
    )
