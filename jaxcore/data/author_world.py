"""A generated world of authors: texts whose style and topic are known exactly (eavae.md section 8, star.md
8.A).

A document has a *content* (how many function words, which concepts, which content words) chosen by its topic,
and a *rendering* of that content chosen by its author (which function words, which word of each synonym
pair). So the same content can be rendered by any author, and the words that give an author away are known.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcore.data import world_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Ids below the words', in this order: the tokenizer of the world and the arrays sampled here agree on them.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclasses.dataclass(frozen=True)
class AuthorWorldConfig:
    """Sizes and distributions of the world; the defaults are the numbers of eavae.md section 8."""

    num_function_words: int = 40
    num_content_words: int = 160
    num_synonym_pairs: int = 24
    num_topics: int = 20
    document_length: int = 128
    """Words in a document, L."""
    num_training_authors: int = 400
    num_test_authors: int = 200
    """Unseen authors: they follow the training authors in the numbering."""
    function_share: float = 0.35
    concept_share: float = 0.15
    """Shares of function words and concepts (synonym slots) in a document; the rest is content words."""
    function_spread: float = 0.6
    """Standard deviation of an author's function-word logits around the population's."""
    synonym_concentration: float = 0.4
    """Both parameters of the Beta distribution of an author's preference inside a synonym pair."""
    content_concentration: float = 0.05
    concept_concentration: float = 0.3
    num_favourite_topics: int = 2
    favourite_probability: float = 0.0
    """Probability that a document is about one of its author's favourites. 0: topics independent of authors
    (STAR); EAVAE entangles them with 0.9."""
    marker_ratio: float = 1.5
    """A word marks an author (or a topic) when it is this many times likelier than in the population."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.startswith(("num_", "document")) and value < 1:
                raise ValueError(f"AuthorWorldConfig.{field.name} is {value}; it must be at least 1")
            if field.name.endswith("_concentration") and value <= 0:
                raise ValueError(f"AuthorWorldConfig.{field.name} is {value}; it must be positive")
        if min(self.function_share, self.concept_share) < 0 or self.function_share + self.concept_share > 1:
            raise ValueError(
                f"function_share {self.function_share} and concept_share {self.concept_share} must be "
                "non-negative and add up to at most 1; the rest of a document is content words"
            )
        if not 0 <= self.favourite_probability <= 1:
            raise ValueError(f"favourite_probability is {self.favourite_probability}; it must be in [0, 1]")
        if self.marker_ratio <= 1:
            raise ValueError(f"marker_ratio is {self.marker_ratio}; it must exceed 1 (1.5 is the default)")
        if self.num_favourite_topics > self.num_topics:
            raise ValueError(
                f"num_favourite_topics {self.num_favourite_topics} exceeds num_topics {self.num_topics}; lower it"
            )

    @property
    def num_words(self) -> int:
        """Distinct words, F + 2 K + C (248 by default)."""
        return self.num_function_words + 2 * self.num_synonym_pairs + self.num_content_words

    @property
    def num_authors(self) -> int:
        return self.num_training_authors + self.num_test_authors


@dataclasses.dataclass(frozen=True)
class DocumentContents:
    """What n documents say, free of any author: counts per slot. Rows add up to the document length."""

    function_counts: Int[np.ndarray, "n"]
    concept_counts: Int[np.ndarray, "n pairs"]
    content_counts: Int[np.ndarray, "n content"]


class AuthorWorld:
    """The authors and topics drawn from `config` with `seed`; the same pair gives the same world everywhere.

    Word indices: function words [0, F), then the two words of every synonym pair [F, F + 2K), then content
    words. Token ids, as in `input_ids` and the world's tokenizer, are word indices shifted by
    `len(SPECIAL_TOKENS)`. Authors are numbered 0 .. num_authors - 1, training authors first.
    """

    def __init__(self, config: AuthorWorldConfig | None = None, seed: int = 0) -> None:
        self.config = config = config or AuthorWorldConfig()
        self.seed = seed
        # One stream per family, so that a bigger world keeps the authors or topics it shares with a smaller
        # one.
        base, authors, synonyms, topics, concepts, favourites = (
            np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(6)
        )
        spread = authors.standard_normal((config.num_authors, config.num_function_words))
        logits = base.standard_normal(config.num_function_words) + config.function_spread * spread
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        self.function_probabilities: Float[np.ndarray, "authors function"] = weights / weights.sum(-1, keepdims=True)
        self.synonym_preferences: Float[np.ndarray, "authors pairs"] = synonyms.beta(
            config.synonym_concentration,
            config.synonym_concentration,
            (config.num_authors, config.num_synonym_pairs),
        )
        self.content_probabilities: Float[np.ndarray, "topics content"] = topics.dirichlet(
            np.full(config.num_content_words, config.content_concentration), config.num_topics
        )
        self.concept_probabilities: Float[np.ndarray, "topics pairs"] = concepts.dirichlet(
            np.full(config.num_synonym_pairs, config.concept_concentration), config.num_topics
        )
        ranks = favourites.random((config.num_authors, config.num_topics)).argsort(axis=-1)
        self.favourite_topics: Int[np.ndarray, "authors favourites"] = ranks[:, : config.num_favourite_topics]

    # ---- names ---------------------------------------------------------------------------------------------

    @property
    def training_authors(self) -> Int[np.ndarray, "authors"]:
        return np.arange(self.config.num_training_authors)

    @property
    def test_authors(self) -> Int[np.ndarray, "authors"]:
        """Authors that no training batch contains."""
        return np.arange(self.config.num_training_authors, self.config.num_authors)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        return self.config.num_words + len(SPECIAL_TOKENS)

    @functools.cached_property
    def topic_names(self) -> tuple[str, ...]:
        return tuple(world_words.extend_names(tuple(world_words.THEMES), self.config.num_topics))

    @functools.cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The word of every word index.

        Content words are named so that a topic's likeliest words come from one theme where they can: naming
        changes no distribution, and lets a reader see the topic in a heatmap.
        """
        config = self.config
        functions = world_words.extend_names(world_words.FUNCTION_WORDS, config.num_function_words)
        firsts, seconds = zip(*world_words.SYNONYM_PAIRS, strict=True)
        pairs = zip(
            world_words.extend_names(firsts, config.num_synonym_pairs),
            world_words.extend_names(seconds, config.num_synonym_pairs),
            strict=True,
        )
        return (*functions, *(word for pair in pairs for word in pair), *self._content_names())

    def _content_names(self) -> list[str]:
        """Content word names: round by round, every topic names its likeliest word that is still unnamed."""
        config = self.config
        all_names = world_words.extend_names(
            tuple(word for theme in world_words.THEMES.values() for word in theme), config.num_content_words
        )
        pools = [[] for _ in range(config.num_topics)]  # type: list[list[str]]
        for position, name in enumerate(all_names):
            pools[position // 8 % config.num_topics].append(name)
        names: list[str] = [""] * config.num_content_words
        order = np.argsort(-self.content_probabilities, axis=-1, kind="stable")
        while any(pools):
            for topic, pool in enumerate(pools):
                if pool:
                    free = next(index for index in order[topic] if not names[index])
                    names[free] = pool.pop(0)
        return names

    # ---- sampling ------------------------------------------------------------------------------------------

    def sample_topics(
        self,
        authors: Int[np.ndarray, "n"],
        rng: np.random.Generator,
        *,
        topics: Int[np.ndarray, "k"] | None = None,
    ) -> Int[np.ndarray, "n"]:
        """A topic for each document: uniform over `topics` (all by default), or, with
        `favourite_probability`, one of the author's favourites. Restricting `topics` asks for independence:
        favourites are ignored."""
        authors = self._check_authors(authors)
        if topics is not None:
            return self._check_topics(topics)[rng.integers(len(topics), size=len(authors))]
        uniform = rng.integers(self.config.num_topics, size=len(authors))
        if self.config.favourite_probability == 0:
            return uniform
        picked = rng.integers(self.config.num_favourite_topics, size=len(authors))
        favourite = rng.random(len(authors)) < self.config.favourite_probability
        return np.where(favourite, self.favourite_topics[authors, picked], uniform)

    def sample_contents(self, topics: Int[np.ndarray, "n"], rng: np.random.Generator) -> DocumentContents:
        """(nf, nk, nc) ~ Multinomial(L; .35, .15, .5), then concepts and content words by the topic."""
        topics = self._check_topics(topics)
        config = self.config
        shares = (
            config.function_share,
            config.concept_share,
            1 - config.function_share - config.concept_share,
        )
        slots = rng.multinomial(config.document_length, shares, size=len(topics))
        return DocumentContents(
            function_counts=slots[:, 0],
            concept_counts=rng.multinomial(slots[:, 1], self.concept_probabilities[topics]),
            content_counts=rng.multinomial(slots[:, 2], self.content_probabilities[topics]),
        )

    def render_contents(
        self, contents: DocumentContents, authors: Int[np.ndarray, "n"], rng: np.random.Generator
    ) -> Int[np.ndarray, "n words"]:
        """Word counts of `contents` as written by `authors`; other authors give counterfactuals."""
        authors = self._check_authors(authors)
        if len(authors) != len(contents.function_counts):
            raise ValueError(f"{len(authors)} authors for {len(contents.function_counts)} documents; give one each")
        functions = rng.multinomial(contents.function_counts, self.function_probabilities[authors])
        first = rng.binomial(contents.concept_counts, self.synonym_preferences[authors])
        synonyms = np.stack([first, contents.concept_counts - first], axis=-1).reshape(len(authors), -1)
        return np.concatenate([functions, synonyms, contents.content_counts], axis=-1)

    def shuffle_counts(
        self, counts: Int[np.ndarray, "n words"], rng: np.random.Generator
    ) -> Int[np.ndarray, "n length"]:
        """Documents with these counts, their words in uniformly random order."""
        words = np.tile(np.arange(counts.shape[1], dtype=np.int32), len(counts))
        ordered = np.repeat(words, counts.ravel()).reshape(len(counts), -1)
        return rng.permuted(ordered, axis=1, out=ordered)

    def sample_documents(
        self, authors: Int[np.ndarray, "n"], topics: Int[np.ndarray, "n"], rng: np.random.Generator
    ) -> Int[np.ndarray, "n length"]:
        """Word indices [n, L] of one new document for each (author, topic)."""
        counts = self.render_contents(self.sample_contents(topics, rng), authors, rng)
        return self.shuffle_counts(counts, rng)

    # ---- views of a document -------------------------------------------------------------------------------

    def counts(self, words: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n words"]:
        """How often each word index occurs in each document."""
        rows = np.arange(len(words))[:, None] * self.config.num_words
        flat = np.bincount((rows + words).ravel(), minlength=len(words) * self.config.num_words)
        return flat.reshape(len(words), self.config.num_words)

    def contents_of(self, counts: Int[np.ndarray, "n words"]) -> DocumentContents:
        """What documents with these word counts say, whoever wrote them: the inverse of `render_contents`."""
        first, last = self.config.num_function_words, self.config.num_words - self.config.num_content_words
        return DocumentContents(
            function_counts=counts[:, :first].sum(axis=-1),
            concept_counts=counts[:, first:last].reshape(len(counts), -1, 2).sum(axis=-1),
            content_counts=counts[:, last:],
        )

    def input_ids(self, words: Int[np.ndarray, "n length"], *, start_token: bool = False) -> Int[np.ndarray, "n ids"]:
        """Token ids (int32) of word indices; with `start_token`, a [CLS] in front (for encoders that pool it)."""
        ids = words.astype(np.int32) + np.int32(len(SPECIAL_TOKENS))
        start = np.full((len(ids), 1), SPECIAL_TOKENS.index("[CLS]"), np.int32)
        return np.concatenate([start, ids], axis=1) if start_token else ids

    def render(self, words: Int[np.ndarray, "length"]) -> str:
        """The readable text of one document's word indices."""
        return " ".join(self.vocabulary[word] for word in words)

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The word-level tokenizer under which a rendered document has the ids of
        `input_ids(start_token=True)`."""
        from jaxcore.data.tokenization import word_tokenizer  # here: transformers takes a second to import

        return word_tokenizer([*SPECIAL_TOKENS, *self.vocabulary])

    # ---- ground truth --------------------------------------------------------------------------------------

    def word_probabilities(self, author: int, topic: int) -> Float[np.ndarray, "words"]:
        """p(word | author, topic): a document is L independent draws from this mixture, in any order."""
        config = self.config
        preferences = self.synonym_preferences[author]
        pairs = np.stack([preferences, 1 - preferences], axis=-1) * self.concept_probabilities[topic][:, None]
        content_share = 1 - config.function_share - config.concept_share
        return np.concatenate(
            [
                config.function_share * self.function_probabilities[author],
                config.concept_share * pairs.ravel(),
                content_share * self.content_probabilities[topic],
            ]
        )

    def style_log_odds(self, author: int) -> Float[np.ndarray, "words"]:
        """What one occurrence of each word adds to the log-odds that `author`, not the population, wrote it.

        log p_a(w | content) - log mean_b p_b(w | content), natural log, over all authors b of the world: the
        content fixes how many function words there are and which concepts, so p is the author's function-word
        distribution or the preference inside the pair. 0 for content words: they say nothing about the
        author.
        """
        author = int(self._check_authors(np.asarray([author]))[0])
        tiny = np.finfo(np.float64).tiny
        functions = self.function_probabilities
        pairs = np.stack([self.synonym_preferences, 1 - self.synonym_preferences], axis=-1)
        pairs = pairs.reshape(self.config.num_authors, -1)
        own = np.concatenate([functions[author], pairs[author]])
        population = np.concatenate([functions.mean(axis=0), pairs.mean(axis=0)])
        odds = np.log(np.maximum(own, tiny)) - np.log(population)
        return np.concatenate([odds, np.zeros(self.config.num_content_words)])

    def style_markers(self, author: int) -> Bool[np.ndarray, "words"]:
        """The words that give `author` away: log-odds above log(marker_ratio), at least 1.5 times the
        population's rate by default. Words an author avoids are not markers: an occurrence speaks against the
        author."""
        return self.style_log_odds(author) > np.log(self.config.marker_ratio)

    def topic_words(self, topic: int) -> Bool[np.ndarray, "words"]:
        """The content words at least `marker_ratio` times as likely under `topic` as over all topics: the
        distractors that an attribution to authorship should leave alone."""
        topic = int(self._check_topics(np.asarray([topic]))[0])
        probabilities = self.content_probabilities
        content = probabilities[topic] > self.config.marker_ratio * probabilities.mean(axis=0)
        return np.concatenate([np.zeros(self.config.num_words - len(content), bool), content])

    def at_tokens(
        self,
        per_word: Bool[np.ndarray, "words"] | Float[np.ndarray, "words"],
        input_ids: Int[np.ndarray, "..."],
    ) -> np.ndarray:
        """`per_word[...]` (markers, log-odds) read at every token id; special tokens read False or 0."""
        table = np.concatenate([np.zeros(len(SPECIAL_TOKENS), per_word.dtype), per_word])
        return table[input_ids]

    def _check_authors(self, authors: np.ndarray) -> np.ndarray:
        return _check_indices(authors, self.config.num_authors, "author")

    def _check_topics(self, topics: np.ndarray) -> np.ndarray:
        return _check_indices(topics, self.config.num_topics, "topic")


def _check_indices(indices: np.ndarray, count: int, what: str) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.size == 0:
        return indices.astype(np.int64)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"{what}s must be a vector of integers, got {indices.dtype} of shape {indices.shape}")
    if indices.min() < 0 or indices.max() >= count:
        raise ValueError(f"{what}s run from {indices.min()} to {indices.max()}; the world has {what}s 0..{count - 1}")
    return indices
