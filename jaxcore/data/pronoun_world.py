"""A generated test of rewriting highlights: a pronoun whose meaning only the sentence around the highlight knows.

Sources: sentences "entity filler filler relation filler object filler filler .". Several entities share the relation
and object that the query asks about. The output says "e0 R1 O1 and she R2 O2 ."; highlighted is "she R2 O2", and only
the sentence of e0 with R2 and O2 supports it. Without knowing who "she" is, one can but guess among the sharing
entities.
"""

import dataclasses
import re

import numpy as np

from jaxcore.attribution.decontextualisation import MARKER
from jaxcore.attribution.text_spans import Offsets, Span
from jaxcore.data.grounded_texts import GroundedText, SourceDocument
from jaxcore.data.highlight_queries import HighlightQuery

PRONOUN = "she"

_ENTITIES = (
    "Alma", "Bettina", "Clara", "Dorothea", "Edith", "Frida", "Greta", "Hedwig", "Ingrid", "Johanna", "Klara", "Lotte",
    "Mathilde", "Nora", "Ottilie", "Paula", "Rosina", "Sabine", "Therese", "Ursula", "Viola", "Wilma", "Yvonne", "Zita",
)  # fmt: skip
_RELATIONS = (
    "painted", "repaired", "inherited", "photographed", "sold", "restored", "borrowed", "described", "measured",
    "guarded", "donated", "studied",
)  # fmt: skip
_OBJECTS = (
    "bridges", "clocks", "engines", "orchards", "lanterns", "manuscripts", "violins", "windmills", "telescopes",
    "carpets", "statues", "harbours",
)  # fmt: skip
_FILLERS = (
    "quietly", "yesterday", "often", "again", "carefully", "elsewhere", "later", "alone", "gladly", "twice", "abroad",
    "early", "somehow", "indeed", "nearby", "upstairs", "outdoors", "seldom", "meanwhile", "proudly",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PronounWorldConfig:
    """Sizes of the world."""

    num_texts: int = 200
    """Outputs, one query each."""
    num_sharing: int = 3
    """Entities of which the queried relation and object hold; chance is one of them."""
    num_others: int = 3
    """Further sentences, about other entities, relations and objects."""
    num_documents: int = 3
    """The sentences of a text are dealt out to so many documents."""

    def __post_init__(self) -> None:
        if self.num_texts < 1 or self.num_sharing < 2 or self.num_others < 0 or self.num_documents < 1:
            raise ValueError(
                "the world needs num_texts, num_documents >= 1, num_sharing >= 2, num_others >= 0: got "
                f"{self.num_texts}, {self.num_documents}, {self.num_sharing}, {self.num_others}"
            )
        if self.num_sharing + self.num_others > len(_ENTITIES) or self.num_others > len(_RELATIONS) - 2:
            raise ValueError(
                f"there are {len(_ENTITIES)} entities and {len(_RELATIONS)} relations: too few for num_sharing "
                f"{self.num_sharing} and num_others {self.num_others}"
            )


def pronoun_world(config: PronounWorldConfig, *, seed: int) -> list[HighlightQuery]:
    """One query per text; candidates are all source sentences (a generator that cites nothing), gold is one of them."""
    rng = np.random.default_rng([seed, 811])
    return [_text(config, rng, f"text {number}") for number in range(config.num_texts)]


def _text(config: PronounWorldConfig, rng: np.random.Generator, name: str) -> HighlightQuery:
    def draw(words: tuple[str, ...], count: int) -> list[str]:
        return [words[index] for index in rng.choice(len(words), count, replace=False)]

    def sentence(entity: str, relation: str, thing: str) -> str:
        a, b, c, d, e = draw(_FILLERS, 5)
        return f"{entity} {a} {b} {relation} {c} {thing} {d} {e} ."

    entities = draw(_ENTITIES, config.num_sharing + config.num_others)
    relations = draw(_RELATIONS, 2 + config.num_others)
    things = draw(_OBJECTS, 2 + config.num_others)
    target = sentence(entities[0], relations[1], things[1])
    sentences = [target, sentence(entities[0], relations[0], things[0])]
    sentences += [sentence(entity, relations[1], things[1]) for entity in entities[1 : config.num_sharing]]
    rest = zip(entities[config.num_sharing :], relations[2:], things[2:], strict=True)
    sentences += [sentence(*words) for words in rest]
    shuffled = [sentences[index] for index in rng.permutation(len(sentences))]
    documents = []
    gold: Span | None = None
    for number in range(config.num_documents):
        mine = shuffled[number :: config.num_documents]
        if not mine:
            continue
        places: list[Offsets] = []
        begin = 0
        for words in mine:
            places.append((begin, begin + len(words)))
            if words == target:
                gold = Span(f"{number}.txt", *places[-1])
            begin += len(words) + 1
        documents.append(SourceDocument(f"{number}.txt", " ".join(mine), tuple(places)))
    assert gold is not None
    highlighted = f"{PRONOUN} {relations[1]} {things[1]}"
    output = f"{entities[0]} {relations[0]} {things[0]} and {highlighted} ."
    begin = output.index(highlighted)
    whole = (0, len(output))
    text = GroundedText(name, tuple(documents), output, (whole,))
    highlight = ((begin, begin + len(highlighted)),)
    return HighlightQuery(text, highlight, whole, tuple(text.sentences()), (gold,))


def rewrite_pronoun(prompt: str, seed: int) -> str:
    """Answers a decontextualisation prompt of this world by rule: the pronoun is the context's first word.

    Raises:
        ValueError: a prompt without context and claim.
    """
    found = re.findall(r"##CONTEXT##: (.*)\n##CLAIM##: (.*)", prompt)
    if not found:
        raise ValueError(f"the prompt has no context and claim: got {prompt[-80:]!r}")
    context, claim = found[-1]
    subject = context.split()[0]
    words = [subject if word == PRONOUN else word for word in claim.split()]
    return f"The claim speaks of {subject}.\n\n{MARKER} {' '.join(words)}"


def quote_most_shared(prompt: str, seed: int) -> str:
    """Answers a quotation prompt by rule: the source sentence that has most words of the output, the first of several.

    Raises:
        ValueError: a prompt without sources and output.
    """
    case = prompt.rpartition("Input:")[2]
    output = re.search(r"^Output: (.*)$", case, re.MULTILINE)
    sources = re.findall(r"^Source \d+: (.*)$", case, re.MULTILINE)
    if output is None or not sources:
        raise ValueError(f"the prompt has no sources and output: got {prompt[-80:]!r}")
    wanted = set(output.group(1).lower().split()) - {"."}
    sentences = [words.strip() for source in sources for words in re.findall(r"[^.]+\.", source)]
    return max(sentences, key=lambda words: len(wanted & set(words.lower().split())))
