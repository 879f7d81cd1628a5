"""Batches for contrastive authorship: authors x views, drawn from corpora or from the generated world.

Batch k is a pure function of (seed, k). Process h of n takes rows [h B/n, (h+1) B/n) of the global batch of B
rows, so the union over processes is the same batch bit for bit whatever n is, and the whole iterator state is
one integer, the next step, which any process of any later run can restore (PODS.md section 5).
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import grain
import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxcore.data.author_world import AuthorWorld
from jaxcore.data.authors import AuthorCorpus
from jaxcore.data.evaluation_batches import check_process

Batch = dict[str, Shaped[np.ndarray, "rows ..."]]

# What a random stream is for: part of its key, so that no two uses share numbers.
_AUTHOR_ORDER, _VIEWS, _LABELS, _TOPICS, _DOCUMENTS = range(5)

_BLOCK_ROWS = 512  # world documents are generated in blocks of this many rows, whatever the number of processes
_ENDLESS = 2**62


@dataclasses.dataclass(frozen=True)
class AuthorBatchConfig:
    """Shape of a batch and how views are chosen. star.md: 1024 authors x 16 views on a pod, 64 x 8 here."""

    authors_per_batch: int = 64
    views_per_author: int = 8
    cross_work: bool = True
    """Take an author's views from as many of their works as possible: chunks of one book alone make its topic
    the label (star.md, traps). False: any chunks. In the world every document's topic is its own draw."""
    same_topic_views: bool = False
    """Ablation: all views of an author in a batch from one topic (world) or one work (corpus)."""
    shuffled_labels: bool = False
    """Control: labels permuted over the rows of every batch."""

    def __post_init__(self) -> None:
        if self.authors_per_batch < 2:
            raise ValueError(f"authors_per_batch is {self.authors_per_batch}; a contrast needs at least 2 authors")
        if self.views_per_author < 2:
            raise ValueError(f"views_per_author is {self.views_per_author}; a positive pair needs at least 2 views")

    @property
    def num_rows(self) -> int:
        """Rows of the global batch."""
        return self.authors_per_batch * self.views_per_author


class BatchSampler(Protocol):
    """A pure function from a step to any rows of its global batch."""

    num_rows: int

    def rows(self, step: int, start: int, stop: int) -> Batch: ...


class EpochOrder:
    """`per_step` of `num_items` items for every step: without replacement inside an epoch, reshuffled by
    (seed, epoch). The num_items mod per_step left over at an epoch's end are others in every epoch."""

    def __init__(self, num_items: int, *, per_step: int, seed: int, stream: int = 0) -> None:
        self._num_items, self._per_step = num_items, per_step
        self._key = (seed, _AUTHOR_ORDER, stream)
        self.steps_per_epoch = num_items // per_step
        self._permutation = functools.lru_cache(maxsize=4)(self._shuffle)

    def _shuffle(self, epoch: int) -> Int[np.ndarray, "items"]:
        return np.random.default_rng([*self._key, epoch]).permutation(self._num_items)

    def at(self, step: int) -> Int[np.ndarray, "per_step"]:
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._permutation(epoch)[position * self._per_step : (position + 1) * self._per_step]


class CorpusSampler:
    """Authors x views from one corpus, or from several with an equal number of authors from each in every
    batch.

    Authors of different corpora are different labels: a corpus's labels follow those of the corpora before
    it, and so do its `example_ids` (chunk numbers). A corpus that runs out is reshuffled; the others go on.
    """

    def __init__(self, corpora: Sequence[AuthorCorpus], config: AuthorBatchConfig, seed: int) -> None:
        _check_corpora(corpora, config)
        self._corpora, self._config, self._seed = tuple(corpora), config, seed
        self._per_corpus = config.authors_per_batch // len(corpora)
        self._orders = [
            EpochOrder(corpus.num_authors, per_step=self._per_corpus, seed=seed, stream=number)
            for number, corpus in enumerate(corpora)
        ]
        self._first_label = np.cumsum([0, *(corpus.num_authors for corpus in corpora)])
        self._first_chunk = np.cumsum([0, *(corpus.num_chunks for corpus in corpora)])
        self.num_rows = config.num_rows

    def rows(self, step: int, start: int, stop: int) -> Batch:
        corpus_of_row, chunk_of_row = self._draw(step)
        labels = np.empty(self.num_rows, np.int32)
        for number, corpus in enumerate(self._corpora):
            mine = corpus_of_row == number
            labels[mine] = self._first_label[number] + corpus.author_index[chunk_of_row[mine]]
        if self._config.shuffled_labels:
            labels = np.random.default_rng([self._seed, _LABELS, step]).permutation(labels)
        source, chunks = corpus_of_row[start:stop], chunk_of_row[start:stop]
        width = self._corpora[0].max_length
        input_ids = np.empty((stop - start, width), np.int32)
        attention_mask = np.empty((stop - start, width), np.int32)
        for number, corpus in enumerate(self._corpora):
            mine = source == number
            input_ids[mine] = corpus.input_ids[chunks[mine]]
            attention_mask[mine] = corpus.attention_mask(chunks[mine])
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels[start:stop],
            "example_ids": (self._first_chunk[source] + chunks).astype(np.int32),
        }

    def _draw(self, step: int) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "rows"]]:
        """The corpus and chunk of every row of the global batch; corpora take turns, author by author."""
        drawn = []
        for number, (corpus, order) in enumerate(zip(self._corpora, self._orders, strict=True)):
            rng = np.random.default_rng([self._seed, _VIEWS, number, step])
            drawn.append(_draw_views(corpus, order.at(step), self._config, rng))
        chunks = np.stack(drawn, axis=1).reshape(-1)  # authors, corpora, views
        corpora = np.repeat(np.tile(np.arange(len(self._corpora)), self._per_corpus), self._config.views_per_author)
        return corpora, chunks


def _check_corpora(corpora: Sequence[AuthorCorpus], config: AuthorBatchConfig) -> None:
    if not corpora:
        raise ValueError("no corpus to draw batches from; give at least one")
    if config.authors_per_batch % len(corpora):
        raise ValueError(
            f"{config.authors_per_batch} authors per batch do not divide over {len(corpora)} corpora; use a multiple"
        )
    layouts = {(corpus.max_length, corpus.pad_id, corpus.vocab_size) for corpus in corpora}
    if len(layouts) > 1:
        raise ValueError(f"corpora differ in (max_length, pad_id, vocab_size): {sorted(layouts)}; build them alike")
    wanted = config.authors_per_batch // len(corpora)
    for corpus in corpora:
        if corpus.num_authors < 2:
            raise ValueError(f"the corpus has one author only ({corpus.author_names[0]!r}); a contrast needs two")
        if corpus.num_authors < wanted:
            raise ValueError(
                f"the corpus has {corpus.num_authors} authors, fewer than the {wanted} a batch takes; "
                "lower authors_per_batch or add authors"
            )
        few = np.flatnonzero(corpus.chunks_per_author < config.views_per_author)
        if len(few):
            raise ValueError(
                f"{len(few)} of {corpus.num_authors} authors have fewer documents than the "
                f"{config.views_per_author} views of a batch (e.g. {corpus.author_names[few[0]]!r} has "
                f"{corpus.chunks_per_author[few[0]]}); lower views_per_author, or drop them with "
                f"with_chunks_per_author({config.views_per_author})"
            )


def _draw_views(
    corpus: AuthorCorpus, authors: Int[np.ndarray, "n"], config: AuthorBatchConfig, rng: np.random.Generator
) -> Int[np.ndarray, "n views"]:
    """For each author `views_per_author` different chunks, in random order.

    Every candidate chunk gets a rank; the lowest ranks win, ties by lot. Across works the rank is the chunk's
    place in a random order of its work: every work gives one chunk before any gives two. For views of one
    work, the chunks of a random work (large enough where there is one) rank first.
    """
    candidates = np.concatenate([corpus.chunks_by_author[author] for author in authors])
    counts = corpus.chunks_per_author[authors]
    owners = np.repeat(np.arange(len(authors)), counts)
    works = corpus.author_works[candidates]
    if config.same_topic_views:
        ranks = _outside_one_work(owners, works, config.views_per_author, rng)
    elif config.cross_work:
        ranks = _place_in_work(works, rng)
    else:
        ranks = np.zeros(len(candidates), np.int64)
    # One sort of (owner, rank, lot) packed into a float: three times as fast as np.lexsort of the three.
    order = np.argsort(owners * float(ranks.max() + 1) + ranks + _lots(rng, len(candidates)))
    first = np.cumsum(counts) - counts
    views = candidates[order[first[:, None] + np.arange(config.views_per_author)]]
    return rng.permuted(views, axis=1)


def _lots(rng: np.random.Generator, count: int) -> Float[np.ndarray, "count"]:
    """Random numbers in [0, 0.999): added to integers they break ties and never round up to the next."""
    return 0.999 * rng.random(count)


def _place_in_work(works: Int[np.ndarray, "m"], rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """Place 0, 1, ... of each chunk in a random order of the chunks of the same work."""
    order = np.argsort(works + _lots(rng, len(works)))
    ordered = works[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    places = np.empty(len(works), np.int64)
    places[order] = np.arange(len(works)) - np.repeat(starts, np.diff(np.r_[starts, len(works)]))
    return places


def _outside_one_work(
    owners: Int[np.ndarray, "m"], works: Int[np.ndarray, "m"], num_views: int, rng: np.random.Generator
) -> Int[np.ndarray, "m"]:
    """0 for the chunks of one work per owner, drawn among those with `num_views` chunks or the
    largest there is; 1 for all others."""
    numbers, first, inverse, sizes = np.unique(works, return_index=True, return_inverse=True, return_counts=True)
    owner_of_work = owners[first]
    order = np.lexsort((rng.random(len(numbers)), -np.minimum(sizes, num_views), owner_of_work))
    ordered = owner_of_work[order]
    chosen = np.zeros(len(numbers), bool)
    chosen[order[np.r_[True, ordered[1:] != ordered[:-1]]]] = True
    return np.where(chosen[inverse], 0, 1)


class WorldSampler:
    """Authors x fresh documents of the generated world: no corpus, no document twice."""

    def __init__(
        self,
        world: AuthorWorld,
        config: AuthorBatchConfig,
        seed: int,
        *,
        authors: Int[np.ndarray, "authors"] | None = None,
        topics: Int[np.ndarray, "topics"] | None = None,
        start_token: bool = False,
    ) -> None:
        self._world, self._config, self._seed = world, config, seed
        self._authors = world.training_authors if authors is None else np.asarray(authors)
        self._topics, self._start_token = topics, start_token
        if len(self._authors) < config.authors_per_batch:
            raise ValueError(
                f"the world has {len(self._authors)} authors to draw from, fewer than the "
                f"{config.authors_per_batch} of a batch; lower authors_per_batch"
            )
        self._order = EpochOrder(len(self._authors), per_step=config.authors_per_batch, seed=seed)
        self.num_rows = config.num_rows

    def rows(self, step: int, start: int, stop: int) -> Batch:
        authors, topics = self._draw(step)
        labels = authors.astype(np.int32)
        if self._config.shuffled_labels:
            labels = np.random.default_rng([self._seed, _LABELS, step]).permutation(labels)
        first, last = start // _BLOCK_ROWS, -(-stop // _BLOCK_ROWS)
        words = np.concatenate([self._block(step, block, authors, topics) for block in range(first, last)])
        words = words[start - first * _BLOCK_ROWS : stop - first * _BLOCK_ROWS]
        input_ids = self._world.input_ids(words, start_token=self._start_token)
        return {
            "input_ids": input_ids,
            "attention_mask": np.ones_like(input_ids),
            "labels": labels[start:stop],
            "example_ids": ((step * self.num_rows + np.arange(start, stop)) % 2**31).astype(np.int32),
        }

    def _draw(self, step: int) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "rows"]]:
        """The author and topic of every row of the global batch."""
        rng = np.random.default_rng([self._seed, _TOPICS, step])
        authors = self._authors[self._order.at(step)]
        views = self._config.views_per_author
        if self._config.same_topic_views:
            topics = np.repeat(self._world.sample_topics(authors, rng, topics=self._topics), views)
            return np.repeat(authors, views), topics
        authors = np.repeat(authors, views)
        return authors, self._world.sample_topics(authors, rng, topics=self._topics)

    def _block(self, step: int, block: int, authors: np.ndarray, topics: np.ndarray) -> np.ndarray:
        rows = slice(block * _BLOCK_ROWS, (block + 1) * _BLOCK_ROWS)
        rng = np.random.default_rng([self._seed, _DOCUMENTS, step, block])
        return self._world.sample_documents(authors[rows], topics[rows], rng)


class AuthorBatches(Iterator[Batch]):
    """The endless or finite sequence of this process's batches, prefetched by grain, restorable at any step.

    `get_state` counts batches handed out, not batches prefetched: restoring neither loses nor repeats one.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        *,
        num_steps: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
        start_step: int = 0,
        prefetch: int = 2,
    ) -> None:
        check_process(sampler.num_rows, process_index, process_count)
        if prefetch < 0:
            raise ValueError(f"prefetch is {prefetch}; it is a number of batches, at least 0")
        self._sampler, self._prefetch = sampler, prefetch
        self._stop = _ENDLESS if num_steps is None else num_steps
        self._local = sampler.num_rows // process_count
        self._start = process_index * self._local
        self._iterator: grain.DatasetIterator | None = None
        self.set_state({"step": start_step})

    def __iter__(self) -> "AuthorBatches":
        return self

    def __next__(self) -> Batch:
        if self._step >= self._stop:
            raise StopIteration
        if self._iterator is None:
            steps = grain.MapDataset.range(self._step, self._stop)
            reading = grain.ReadOptions(num_threads=min(self._prefetch, 2), prefetch_buffer_size=self._prefetch)
            self._iterator = iter(steps.map(self.local_batch).to_iter_dataset(reading))
        batch = next(self._iterator)
        self._step += 1
        return batch

    def local_batch(self, step: int) -> Batch:
        """This process's rows of batch `step`."""
        return self._sampler.rows(int(step), self._start, self._start + self._local)

    def global_batch(self, step: int) -> Batch:
        """All rows of batch `step`: to look again at a step that went wrong."""
        return self._sampler.rows(int(step), 0, self._sampler.num_rows)

    def get_state(self) -> dict[str, int]:
        """{"step": the next batch}: valid for any process and any number of processes."""
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue with batch `state["step"]`.

        Raises:
            ValueError: No such step.
        """
        step = state.get("step", -1)
        if not isinstance(step, (int, np.integer)) or not 0 <= step <= self._stop:
            raise ValueError(f"iterator state {state} is not {{'step': k}} with k in 0..{self._stop}; check num_steps")
        self.close()
        self._step = int(step)

    def close(self) -> None:
        """Stop prefetching. The next batch starts it again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def author_batches(
    corpus: AuthorCorpus | Sequence[AuthorCorpus],
    *,
    num_authors: int,
    num_views: int,
    seed: int,
    cross_work: bool = True,
    same_topic_views: bool = False,
    shuffled_labels: bool = False,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    prefetch: int = 2,
) -> AuthorBatches:
    """Batches of `num_authors` x `num_views` chunks; several corpora give an equal number of authors each.

    Authors come without replacement inside an epoch, views without replacement from the author's chunks
    (star.md 2.1.5-6).

    Args:
        corpus: One corpus or several, built alike.
        num_authors: Authors in the global batch.
        num_views: Chunks of each.
        seed: Decides every batch, with its step.
        cross_work: Spread an author's views over their works.
        same_topic_views: Ablation: take them from one work.
        shuffled_labels: Control: permute labels over the rows.
        num_steps: Batches in all, counted from step 0 even when `start_step` is later; None: endless.
        process_index: This process.
        process_count: Number of processes.
        start_step: First batch.
        prefetch: Batches made ahead in threads; 0: on demand.

    Returns:
        An iterator of dicts with n = num_authors num_views / process_count rows, author by author:
        `input_ids` [n, T], `attention_mask` [n, T], `labels` [n], `example_ids` [n], all int32.

    Raises:
        ValueError: One author only, fewer authors than a batch takes, fewer documents than views, a batch
            that the processes do not divide, corpora that do not fit together.
    """
    config = AuthorBatchConfig(num_authors, num_views, cross_work, same_topic_views, shuffled_labels)
    corpora = [corpus] if isinstance(corpus, AuthorCorpus) else list(corpus)
    return AuthorBatches(
        CorpusSampler(corpora, config, seed),
        num_steps=num_steps,
        process_index=process_index,
        process_count=process_count,
        start_step=start_step,
        prefetch=prefetch,
    )


def world_author_batches(
    world: AuthorWorld,
    *,
    num_authors: int,
    num_views: int,
    seed: int,
    authors: Int[np.ndarray, "authors"] | None = None,
    topics: Int[np.ndarray, "topics"] | None = None,
    start_token: bool = False,
    same_topic_views: bool = False,
    shuffled_labels: bool = False,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    prefetch: int = 2,
) -> AuthorBatches:
    """Batches of fresh documents of the generated world, with the interface of `author_batches`.

    Args:
        world: The world; labels are its author numbers.
        authors: Authors to draw from, the training authors by default.
        topics: Topics to draw from uniformly; by default all, or the authors' favourites as the world is set.
        start_token: Put [CLS] in front of every document (rows are then one id longer).
        same_topic_views: Ablation: all views of an author in a batch share a topic.

    The other arguments, the batches and the errors are those of `author_batches`. No row has padding.
    """
    config = AuthorBatchConfig(
        num_authors, num_views, same_topic_views=same_topic_views, shuffled_labels=shuffled_labels
    )
    return AuthorBatches(
        WorldSampler(world, config, seed, authors=authors, topics=topics, start_token=start_token),
        num_steps=num_steps,
        process_index=process_index,
        process_count=process_count,
        start_step=start_step,
        prefetch=prefetch,
    )
