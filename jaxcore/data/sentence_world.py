"""A generated world of sentences whose meaning is known: graded pairs, and text to learn word vectors from.

A sentence says who did what to what, where, when and how: a *meaning*, one concept per role. Concepts have places in a
latent space, clustered by topic; a sentence is about a point of that space, and concepts near it are likelier (the
log-linear model of Arora et al. 2016), so co-occurrence carries meaning. A concept has several words: synonyms share
contexts, so meaning and surface come apart. Topics are written about in registers, each with favourite concepts,
synonyms and function words, some of them far more repetitive than others. Vectors learnt from such text are anisotropic
as those of natural text are: a few directions, of frequency and register, hold much of the variance of sentences and
say nothing of which of two sentences of one register mean the same.

    gold(a, b) = 5 sum_r w_r [a_r = b_r] / sum_r w_r,    r over the roles that a or b fills

Graded pairs are made so that shared words tell little of shared meaning: paraphrases in other words, look-alikes around
another agent, action or object, and all between.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcore.data.graded_pairs import GradedPairs
from jaxcore.data.world_words import FUNCTION_WORDS

ROLES = ("agent", "action", "object", "companion", "place", "time", "quality", "manner")
"""What the slots of a meaning are. Agent, action and object are always filled."""

_CORE = (True, True, True, False, False, False, False, False)
_WEIGHTS = np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25])
_FILLED = np.array([1.0, 1.0, 1.0, 0.4, 0.55, 0.4, 0.5, 0.35])
_SHARE_OF_CONCEPTS = np.array([0.22, 0.2, 0.24, 0.08, 0.08, 0.04, 0.08, 0.06])
_ORDERS = (
    (5, 6, 0, 7, 1, 2, 3, 4),  # time, quality, agent, manner, action, object, companion, place
    (6, 0, 1, 2, 3, 4, 5, 7),
    (4, 6, 0, 1, 7, 2, 3, 5),
    (6, 0, 7, 1, 2, 4, 3, 5),
)
_NONE = -1

PAIR_KINDS = ("paraphrase", "look-alike", "graded", "unrelated")
"""Same meaning in other words; mostly the same words around another agent, action or object; anything between; two
sentences of their own."""


@dataclasses.dataclass(frozen=True)
class SentenceWorldConfig:
    """Sizes and distributions of the world."""

    num_concepts: int = 3000
    """Concepts over all roles."""
    max_synonyms: int = 4
    """A concept has 2 to this many words, so that anything can be said in other words."""
    num_sentences: int = 20000
    """Training sentences."""
    related_share: float = 1.0
    """Share of the training sentences that have a related one in the corpus: text repeats itself in other words."""
    num_development_pairs: int = 1500
    num_test_pairs: int = 1400
    num_training_pairs: int = 1500
    """Graded pairs; no sentence is in two of these sets, nor among the training sentences."""
    num_topics: int = 100
    """Clusters of concepts in that space, and of the points that sentences are about; some are far more popular."""
    latent_size: int = 48
    """Dimensions of the space of concepts."""
    topic_share: float = 0.5
    """Squared length of the topic's part in a concept's place and in a sentence's point; the rest is their own."""
    topicality: float = 16.0
    """Log-odds of a concept at the sentence's point over one at right angles; 0: concepts are independent."""
    zipf_exponent: float = 0.8
    """Of the frequencies of topics, synonyms and function words."""
    narrowest: float = 1.5
    """Zipf exponents of the concepts run from 0.5, in the broadest register, to this: some say few things often."""
    num_registers: int = 3
    """Ways of writing (news, captions, forums): each has its topics, concepts, favourite synonyms, function words."""
    synonym_spread: float = 1.0
    """Standard deviation of a register's log-preferences among synonyms; 0: all registers use the same words."""
    function_spread: float = 2.5
    """The same for function words."""
    function_rate: float = 1.2
    """Function words per content word, on average."""

    def __post_init__(self) -> None:
        least = {
            "num_concepts": 50, "max_synonyms": 2, "num_sentences": 2, "num_development_pairs": 2, "num_test_pairs": 2,
            "num_training_pairs": 2, "latent_size": 1, "num_registers": 1, "num_topics": self.num_registers,
        }  # fmt: skip
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(
                    f"SentenceWorldConfig.{name} is {getattr(self, name)}; it must be at least {smallest}"
                    + (" (num_registers)" if name == "num_topics" else "")
                )
        for name in ("related_share", "topic_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"SentenceWorldConfig.{name} is {getattr(self, name)}; it must be in [0, 1]")
        if not 0 <= self.function_rate <= 2:
            raise ValueError(f"SentenceWorldConfig.function_rate is {self.function_rate}; it must be in [0, 2]")
        for name in ("topicality", "zipf_exponent", "narrowest", "synonym_spread", "function_spread"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"SentenceWorldConfig.{name} is {getattr(self, name)}; it must not be negative")

    @property
    def num_words(self) -> int:
        """Distinct words; the same for every seed, so that a model's size is known before its world is drawn."""
        return len(FUNCTION_WORDS) + int(self._synonym_counts().sum())

    def _synonym_counts(self) -> Int[np.ndarray, "concepts"]:
        """2, 3, ..., max, 2, 3, ..."""
        return np.arange(self.num_concepts) % (self.max_synonyms - 1) + 2

    def _concepts_per_role(self) -> Int[np.ndarray, "roles"]:
        counts = np.maximum(np.floor(_SHARE_OF_CONCEPTS * self.num_concepts).astype(int), 2)
        counts[0] += self.num_concepts - counts.sum()
        return counts


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """n sentences before they are spelt: concept and word of every role, order, and function words.

    Attributes:
        concepts, words: [n, roles]; -1 where a role is not filled.
        order: [n], a row of `_ORDERS`.
        functions: [n, roles, 2], function words before each slot; -1 for none.
    """

    concepts: Int[np.ndarray, "n roles"]
    words: Int[np.ndarray, "n roles"]
    order: Int[np.ndarray, "n"]
    functions: Int[np.ndarray, "n roles two"]


@dataclasses.dataclass(frozen=True)
class _Subjects:
    """What n sentences are about, and how they are written: topic [n], point [n, latent], register [n]."""

    topics: Int[np.ndarray, "n"]
    points: Float[np.ndarray, "n latent"]
    register: Int[np.ndarray, "n"]


class SentenceWorld:
    """The concepts and words drawn from `config` with `seed`; the same two give the same sentences everywhere.

    Attributes:
        vocabulary: every word, function words first.
        concept_of_word: [words], -1 for function words.
        role_of_concept: [concepts], a position in `ROLES`.
        latent: [concepts, latent_size], the concepts' places.
        texts: training sentences, all distinct.
        development, test, training_pairs: graded pairs, subset = the kind of the pair (see `PAIR_KINDS`).
    """

    def __init__(self, config: SentenceWorldConfig | None = None, seed: int = 0) -> None:
        self.config = config = config or SentenceWorldConfig()
        self.seed = seed
        places, names, *splits = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(6))
        self.role_of_concept = np.repeat(np.arange(len(ROLES)), config._concepts_per_role())
        self._centres = places.standard_normal((config.num_topics, config.latent_size))
        topics = (np.arange(config.num_topics) + 1.0) ** -config.zipf_exponent
        self._topic_cumulative = np.cumsum(topics / topics.sum())
        self.latent: Float[np.ndarray, "concepts latent"] = self._places(
            places.integers(config.num_topics, size=config.num_concepts), places
        )
        self._set_words(names)
        self._set_frequencies(places)
        used: set[str] = set()
        sizes = (config.num_development_pairs, config.num_test_pairs, config.num_training_pairs)
        self.development, self.test, self.training_pairs = (
            self._pairs(size, rng, used) for size, rng in zip(sizes, splits, strict=False)
        )
        self.texts = self._texts(splits[3], used)

    def _set_words(self, rng: np.random.Generator) -> None:
        counts = self.config._synonym_counts()
        rng.shuffle(counts)  # synonym-rich concepts are as often frequent as rare ones
        self._num_synonyms = counts
        self._first_word = len(FUNCTION_WORDS) + np.cumsum(counts) - counts
        self.concept_of_word = np.concatenate(
            [np.full(len(FUNCTION_WORDS), _NONE), np.repeat(np.arange(len(counts)), counts)]
        )
        self.vocabulary = (*FUNCTION_WORDS, *_pseudo_words(int(counts.sum()), rng))

    def _set_frequencies(self, rng: np.random.Generator) -> None:
        exponent = self.config.zipf_exponent
        self._concepts_of_role = [np.flatnonzero(self.role_of_concept == role) for role in range(len(ROLES))]
        registers = self.config.num_registers
        exponents = np.linspace(self.config.narrowest, 0.5, registers)[:, None]
        self._log_frequency = np.empty((registers, self.config.num_concepts))
        for members in self._concepts_of_role:
            ranks = rng.permuted(np.tile(np.arange(len(members)), (registers, 1)), axis=1)
            self._log_frequency[:, members] = -exponents * np.log(ranks + 2.7)  # Mandelbrot's offset
        synonyms = np.arange(self.config.max_synonyms)[None, :, None]
        taste = self.config.synonym_spread * rng.standard_normal((len(self._num_synonyms), synonyms.size, registers))
        self._log_synonym = np.where(
            synonyms < self._num_synonyms[:, None, None], taste - exponent * np.log(synonyms + 1.0), -np.inf
        )
        # Function words go with the register and with the role of the word that follows, never with its concept.
        size = len(FUNCTION_WORDS)
        of_register, of_role = rng.standard_normal((registers, 1, size)), rng.standard_normal((1, len(ROLES), size))
        taste = self.config.function_spread * (of_register + of_role) - exponent * np.log(np.arange(size) + 1.0)
        functions = np.exp(taste - taste.max(axis=-1, keepdims=True))
        self._function_cumulative = np.cumsum(functions / functions.sum(-1, keepdims=True), axis=-1)

    # ---- drawing -----------------------------------------------------------------------------------------

    def _subjects(self, topics: np.ndarray, rng: np.random.Generator) -> _Subjects:
        """Fresh points of the topics; most sentences are in the register of their topic."""
        usual = topics % self.config.num_registers
        other = rng.integers(self.config.num_registers, size=len(topics))
        register = np.where(rng.random(len(topics)) < 0.9, usual, other)
        return _Subjects(topics, self._places(topics, rng), register)

    def _topics(self, count: int, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
        drawn = np.searchsorted(self._topic_cumulative, rng.random(count))
        return np.minimum(drawn, self.config.num_topics - 1)

    def _sibling_topics(self, topics: np.ndarray, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
        """Topics of the same registers, which may be the same topics."""
        registers = self.config.num_registers
        step = registers * rng.integers(self.config.num_topics // registers, size=len(topics))
        return (topics + step) % (self.config.num_topics // registers * registers)

    def _meanings(self, points: np.ndarray, register: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Concepts [n, roles] of sentences about these points; -1 where a role is not filled."""
        concepts = np.stack([self._concepts(points, register, role, rng) for role in range(len(ROLES))], axis=1)
        return np.where(rng.random(concepts.shape) < _FILLED, concepts, _NONE)

    def _places(self, topics: np.ndarray, rng: np.random.Generator) -> Float[np.ndarray, "n latent"]:
        """Unit vectors scattered around the centres of topics."""
        own = rng.standard_normal((len(topics), self.config.latent_size))
        share = self.config.topic_share
        places = np.sqrt(share) * self._centres[topics] + np.sqrt(1 - share) * own
        return places / np.linalg.norm(places, axis=1, keepdims=True)

    def _concepts(
        self, points: np.ndarray, register: np.ndarray, role: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "n"]:
        """One concept of the role near each point: p ~ frequency exp(topicality cos(point, place))."""
        members = self._concepts_of_role[role]
        logits = (
            self.config.topicality * (points @ self.latent[members].T) + self._log_frequency[register[:, None], members]
        )
        cumulative = np.cumsum(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1)
        chances = rng.random((len(points), 1)) * cumulative[:, -1:]
        return members[np.argmax(cumulative >= chances, axis=1)]

    def _word(
        self, concepts: np.ndarray, register: np.ndarray, rng: np.random.Generator, avoid: np.ndarray | None = None
    ) -> Int[np.ndarray, "n roles"]:
        """A word of each concept, as the register prefers; never the one in `avoid`."""
        scores = self._log_synonym[concepts, :, register[:, None]]
        scores = scores + rng.gumbel(size=scores.shape)
        if avoid is not None:
            first = self._first_word[concepts][..., None]
            scores[first + np.arange(scores.shape[-1]) == avoid[..., None]] = -np.inf
        return np.where(concepts == _NONE, _NONE, self._first_word[concepts] + scores.argmax(-1))

    def _other_concept(self, concepts: Int[np.ndarray, "n roles"], rng: np.random.Generator) -> np.ndarray:
        """Any other concept of the same role, each equally likely; concepts of a role are numbered in a row."""
        first = np.array([members[0] for members in self._concepts_of_role])
        sizes = np.array([len(members) for members in self._concepts_of_role])
        step = 1 + np.floor(rng.random(concepts.shape) * (sizes - 1)).astype(np.int64)
        return first + (concepts - first + step) % sizes

    def _functions(self, register: np.ndarray, rng: np.random.Generator) -> Int[np.ndarray, "n roles two"]:
        shape = (len(register), len(ROLES), 2)
        chances, drawn = rng.random(shape), np.empty(shape, np.int64)
        for number, of_role in enumerate(self._function_cumulative):
            for role, cumulative in enumerate(of_role):
                mine = register == number
                drawn[mine, role] = np.searchsorted(cumulative, chances[mine, role])
        present = rng.random(shape) < self.config.function_rate / 2
        return np.where(present, np.minimum(drawn, len(FUNCTION_WORDS) - 1), _NONE)

    def _express(self, concepts: np.ndarray, register: np.ndarray, rng: np.random.Generator) -> _Drawn:
        order = rng.integers(len(_ORDERS), size=len(concepts))
        return _Drawn(concepts, self._word(concepts, register, rng), order, self._functions(register, rng))

    def _draw_pairs(self, rng: np.random.Generator, kinds: np.ndarray) -> tuple[_Drawn, _Drawn]:
        """First sentences, and second ones of the given kinds (positions in `PAIR_KINDS`), most in one register."""
        count = len(kinds)
        subjects = self._subjects(self._topics(count, rng), rng)
        meanings = self._meanings(subjects.points, subjects.register, rng)
        first = self._express(meanings, subjects.register, rng)
        elsewhere = self._subjects(self._sibling_topics(subjects.topics, rng), rng)
        # Replacements are about the same thing as the rest of the sentence, or about something else.
        moves = (kinds == 3) | ((kinds == 2) & (rng.random(count) < 0.5))
        points = np.where(moves[:, None], elsewhere.points, subjects.points)
        kept = _kept_roles(kinds, rng)
        share = meaning_similarity(np.where(kept, meanings, _NONE), meanings) / 5
        # The same frame (register, function words, order) is the likelier the less of the meaning is kept: else shared
        # words would tell shared meaning.
        framed = rng.random(count) < np.where(kinds == 1, 0.7, 0.45 - 0.3 * share)
        register = np.where(framed, subjects.register, elsewhere.register)
        replaced = self._meanings(points, register, rng)
        # A look-alike that drew the concept it was to replace would be a paraphrase: it takes any other of the role.
        stayed = ~kept & (replaced == meanings) & (meanings != _NONE) & (kinds == 1)[:, None]
        concepts = np.where(kept, meanings, np.where(stayed, self._other_concept(meanings, rng), replaced))
        fresh = self._express(concepts, register, rng)
        repeats = rng.random(concepts.shape) < _repetition(kinds, rng)[:, None]
        rephrased = np.where(repeats, first.words, self._word(concepts, register, rng, avoid=first.words))
        words = np.where(concepts == meanings, rephrased, fresh.words)
        order = np.where(framed, first.order, fresh.order)
        functions = np.where(framed[:, None, None], first.functions, fresh.functions)
        return first, _Drawn(concepts, words, order, functions)

    # ---- spelling ----------------------------------------------------------------------------------------

    def _spell(self, drawn: _Drawn) -> list[str]:
        orders = np.asarray(_ORDERS)[drawn.order]
        words = np.take_along_axis(drawn.words, orders, axis=1)
        functions = np.where((words == _NONE)[..., None], _NONE, drawn.functions)
        slots = np.concatenate([functions, words[..., None]], axis=2).reshape(len(words), 3 * len(ROLES))
        return [" ".join(self.vocabulary[w] for w in row if w != _NONE) for row in slots.tolist()]

    def _pairs(self, count: int, rng: np.random.Generator, used: set[str]) -> GradedPairs:
        """`count` pairs of sentences that are not in `used` yet; their sentences are added to it."""
        first, second, subset = [], [], []
        gold: list[float] = []
        mine: set[str] = set()
        while len(gold) < count:
            kinds = rng.choice(len(PAIR_KINDS), size=count, p=(0.2, 0.2, 0.45, 0.15))
            one, other = self._draw_pairs(rng, kinds)
            scores = meaning_similarity(one.concepts, other.concepts)
            for a, b, score, kind in zip(self._spell(one), self._spell(other), scores, kinds, strict=True):
                if len(gold) < count and a != b and a not in used and b not in used:
                    mine.update((a, b))
                    first.append(a)
                    second.append(b)
                    gold.append(score)
                    subset.append(PAIR_KINDS[kind])
        used |= mine
        return GradedPairs(tuple(first), tuple(second), np.asarray(gold, np.float64), tuple(subset))

    def _texts(self, rng: np.random.Generator, used: set[str]) -> tuple[str, ...]:
        """Distinct sentences outside `used`: some alone, some with a related one elsewhere in the corpus."""
        found: dict[str, None] = {}
        wanted = self.config.num_sentences
        while len(found) < wanted:
            missing = wanted - len(found)
            pairs = round(missing * self.config.related_share / 2)
            kinds = rng.choice(3, size=pairs, p=(0.25, 0.25, 0.5))
            first, second = self._draw_pairs(rng, kinds)
            subjects = self._subjects(self._topics(max(missing - 2 * pairs, 1), rng), rng)
            alone = self._express(self._meanings(subjects.points, subjects.register, rng), subjects.register, rng)
            drawn = [*self._spell(first), *self._spell(second), *self._spell(alone)]
            found.update(dict.fromkeys(text for text in drawn if text not in used))
        texts = list(found)[:wanted]
        return tuple(texts[i] for i in rng.permutation(wanted))


def meaning_similarity(first: Int[np.ndarray, "n roles"], second: Int[np.ndarray, "n roles"]) -> Float[np.ndarray, "n"]:
    """``5 sum_r w_r [a_r = b_r] / sum_r w_r`` over the roles that either meaning fills (-1 marks an empty one).

    Weights: agent, action and object 1; companion and place 0.5; time, quality and manner 0.25.
    """
    either = (first != _NONE) | (second != _NONE)
    shared = either & (first == second)
    return 5 * (shared * _WEIGHTS).sum(1) / (either * _WEIGHTS).sum(1)


def _kept_roles(kinds: Int[np.ndarray, "n"], rng: np.random.Generator) -> Bool[np.ndarray, "n roles"]:
    """Which roles of the first meaning the second keeps: all, all but one to three core ones, a random share, none."""
    count, core = len(kinds), np.asarray(_CORE)
    ranks = np.where(core, rng.random((count, len(ROLES))), np.inf).argsort(axis=1).argsort(axis=1)
    changed = ranks < rng.integers(1, 4, size=(count, 1))
    share = rng.random((count, 1))
    graded = rng.random((count, len(ROLES))) < share
    of_kind = [np.ones_like(changed), ~changed, graded, np.zeros_like(changed)]
    return np.select([(kinds == number)[:, None] for number in range(len(PAIR_KINDS))], of_kind)


def _repetition(kinds: Int[np.ndarray, "n"], rng: np.random.Generator) -> Float[np.ndarray, "n"]:
    """Probability that a kept concept keeps its word: low for paraphrases, high for look-alikes, else anything."""
    draw = rng.random(len(kinds))
    return np.select([kinds == 0, kinds == 1], [0.6 * draw, 0.7 + 0.3 * draw], draw)


def _pseudo_words(count: int, rng: np.random.Generator) -> list[str]:
    """Distinct pronounceable words of two or three syllables, none of them a function word."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    taken = set(FUNCTION_WORDS)
    words: list[str] = []
    while len(words) < count:
        for draw, length in zip(rng.integers(len(syllables), size=(count, 3)), rng.integers(2, 4, count), strict=True):
            word = "".join(syllables[i] for i in draw[:length])
            if word not in taken and len(words) < count:
                taken.add(word)
                words.append(word)
    return words
