"""Attribution by asking a language model to quote: the prompt, and the places of the quotations in the sources.

Source: LAQuer, the prompting method (laquer.md); the wording of the prompt is our own.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxcore.attribution.answer_attempts import AnswerPrompts, ask_until_read
from jaxcore.attribution.lexical_alignment import words_with_offsets
from jaxcore.attribution.text_spans import Offsets, Span, map_local_to_document, merge_offsets, merge_spans, text_of

_INSTRUCTION = (
    "You are given sources and an output sentence that was written from them. Copy from the sources, word for word, "
    "the parts that support the sentence, separated by semicolons. Choose as few and as short parts as possible, but "
    "make sure that together they cover every detail of the sentence. Write the parts only."
)

MAX_EDITS = 0.5
"""Words that may differ between a quotation and its place, as a share of the quotation's words."""


@dataclasses.dataclass(frozen=True)
class CandidateText:
    """A piece of a source that may be quoted: a document, or spans of one joined by spaces."""

    document: str
    pieces: tuple[Offsets, ...]
    text: str


@dataclasses.dataclass(frozen=True)
class QuotedExample:
    """A worked example of the prompt."""

    sources: tuple[str, ...]
    output: str
    quotations: tuple[str, ...]


EXAMPLES = (
    QuotedExample(
        (
            "The bridge over the Tamar opened in 1859. Its designer, Isambard Kingdom Brunel, was too ill to attend "
            "and saw it only once, lying on an open wagon.",
            "Trains cross the bridge at walking pace.",
        ),
        "Brunel designed the Tamar bridge.",
        ("The bridge over the Tamar opened", "Its designer, Isambard Kingdom Brunel"),
    ),
    QuotedExample(
        (
            "Honey keeps for years because it holds little water and is acidic, so that few microbes survive in it.",
            "Beekeepers collect honey in late summer.",
        ),
        "Few microbes survive in honey because of its acidity.",
        ("Honey", "is acidic, so that few microbes survive in it"),
    ),
    QuotedExample(
        ("The council voted on Monday to close two libraries. Residents had collected 4,000 signatures against it.",),
        "4,000 people signed against the closing of the libraries.",
        ("to close two libraries", "Residents had collected 4,000 signatures against it"),
    ),
)


@dataclasses.dataclass(frozen=True)
class QuotedAttribution:
    """What a model's quotations point to."""

    spans: tuple[Span, ...]
    attempts: int
    """Answers that were asked for."""
    fell_back: bool
    """No answer could be placed: the spans are all the candidates."""
    answer: str = ""
    """The answer that was used."""


def candidate_texts(candidates: Iterable[Span], documents: Mapping[str, str]) -> list[CandidateText]:
    """Candidate spans as texts to quote from: one per document, in the order in which documents first occur.

    A span that occurs twice is there once: doubled text would shift what stands behind it.
    """
    order: dict[str, list[Offsets]] = {}
    for document, start, end in candidates:
        order.setdefault(document, []).append((start, end))
    texts = []
    for document, spans in order.items():
        pieces = merge_offsets(spans)
        texts.append(CandidateText(document, tuple(pieces), text_of(pieces, documents[document])))
    return texts


def quotation_prompt(
    claim: str, sources: Sequence[str], *, question: str = "", examples: Sequence[QuotedExample] = EXAMPLES
) -> str:
    """The prompt: instruction, worked examples, sources, the sentence."""
    parts = [_INSTRUCTION]
    for example in examples:
        quoted = " ; ".join(example.quotations)
        parts.append(_case(example.output, example.sources) + quoted)
    parts.append(_case(claim, sources, question))
    return "\n\n".join(parts)


def _case(claim: str, sources: Sequence[str], question: str = "") -> str:
    lines = [f"Source {number}: {text}" for number, text in enumerate(sources, 1)]
    if question:
        lines.append(f"Question: {question}")
    return "\n".join(["Input:", *lines, f"Output: {claim}", "Attribution: "])


def locate_quotation(quotation: str, text: str, *, fuzzy: bool = True) -> Offsets | None:
    """Where a quotation stands in a text; None where it does not.

    Three levels: the same characters but for case, first occurrence; the same letters and digits, whatever stands
    between them; with `fuzzy`, the words of least edit distance, if that is at most `MAX_EDITS` of the quotation's.
    """
    wanted = quotation.strip()
    if not wanted:
        return None
    start = _lower(text).find(_lower(wanted))
    if start >= 0:
        return start, start + len(wanted)
    return _locate_letters(wanted, text) or (_locate_words(wanted, text) if fuzzy else None)


def _lower(text: str) -> str:
    """Lower case of the same length: a few characters have none of their own length."""
    low = text.lower()
    if len(low) == len(text):
        return low
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def _locate_letters(quotation: str, text: str) -> Offsets | None:
    letters, places = _letters(text)
    wanted, _ = _letters(quotation)
    start = letters.find(wanted) if wanted else -1
    return None if start < 0 else (places[start], places[start + len(wanted) - 1] + 1)


@functools.lru_cache(maxsize=256)
def _letters(text: str) -> tuple[str, list[int]]:
    """Letters and digits in lower case, and where each stands."""
    low = _lower(text)
    places = [index for index, character in enumerate(low) if character.isalnum()]
    return "".join(low[index] for index in places), places


def _locate_words(quotation: str, text: str) -> Offsets | None:
    """Start: of the nearest words; end: the quotation's last word if it follows, else as many words."""
    wanted = [word.lower() for word, *_ in words_with_offsets(quotation)]
    there = words_with_offsets(text)
    if not wanted or not there:
        return None
    distances = nearest_starts(wanted, [word.lower() for word, *_ in there])
    first = int(np.argmin(distances))
    if distances[first] > MAX_EDITS * len(wanted):
        return None
    window = there[first : first + 2 * len(wanted)]
    last = next((end for word, _, end in window if word.lower() == wanted[-1]), None)
    return there[first][1], last if last is not None else window[: len(wanted)][-1][2]


def nearest_starts(wanted: Sequence[str], there: Sequence[str]) -> np.ndarray:
    """For each word of `there`, the least edit distance of `wanted` to the words that begin with it.

    The dynamic programme of approximate search (Sellers 1980) over words, from the back.
    """
    backwards = np.asarray([*there[::-1]], dtype=object)
    steps = np.arange(len(backwards) + 1)
    row = np.zeros(len(backwards) + 1, int)
    for count, word in enumerate(reversed(wanted), 1):
        replaced = row[:-1] + (backwards != word)
        best = np.minimum(np.concatenate([[count], replaced]), row + 1)
        row = np.minimum.accumulate(best - steps) + steps
    return row[1:][::-1]


def parse_quotations(answer: str, candidates: Sequence[CandidateText]) -> list[Span]:
    """Places in the documents of an answer's quotations.

    Parts between semicolons are looked for in the candidates in their order; neighbouring parts that stand in a source
    with the semicolon between them are one quotation.

    Raises:
        ValueError: an answer without a quotation, or a quotation that no candidate has.
    """
    parts = [part.strip() for part in answer.split(";")]
    spans: list[Span] = []
    begin = 0
    while begin < len(parts):
        if not parts[begin]:
            begin += 1
            continue
        end, source, place = _longest(parts, begin, candidates)
        if source is None or place is None:
            raise ValueError(f"no source has the quotation {parts[begin][:80]!r}")
        spans += [Span(source.document, *piece) for piece in map_local_to_document(place, source.pieces)]
        begin = end
    if not spans:
        raise ValueError(f"the answer holds no quotation: got {answer[:80]!r}")
    return merge_spans(spans)


def _longest(
    parts: Sequence[str], begin: int, candidates: Sequence[CandidateText]
) -> tuple[int, CandidateText | None, Offsets | None]:
    """The longest quotation from `begin` on that stands verbatim in a candidate, else the part alone, roughly."""
    for end in range(len(parts), begin, -1):
        joined = "; ".join(parts[begin:end])
        for source in candidates:
            if end > begin + 1 and ";" not in source.text:
                continue
            place = locate_quotation(joined, source.text, fuzzy=False)
            if place and (end == begin + 1 or ";" in source.text[slice(*place)]):
                return end, source, place
    for source in candidates:
        if place := locate_quotation(parts[begin], source.text):
            return begin + 1, source, place
    return begin + 1, None, None


class QuotationRequest(NamedTuple):
    """A claim to be attributed."""

    claim: str
    candidates: Sequence[CandidateText]
    question: str = ""


def attribute_by_quotation(
    requests: Sequence[QuotationRequest],
    generate: AnswerPrompts,
    *,
    examples: Sequence[QuotedExample] = EXAMPLES,
    seed: int = 0,
    attempts: int = 5,
) -> list[QuotedAttribution]:
    """The source spans that a model quotes for each claim; all candidates where no answer can be placed.

    A claim without candidates is not asked about and gets no span.

    Args:
        generate, seed, attempts: see `ask_until_read`.

    Raises:
        ValueError: fewer than one attempt.
    """
    asked = [request for request in requests if request.candidates]
    prompts = [
        quotation_prompt(request.claim, [source.text for source in request.candidates], question=request.question,
                         examples=examples)
        for request in asked
    ]  # fmt: skip
    answered = iter(
        ask_until_read(
            prompts, lambda number, answer: tuple(parse_quotations(answer, asked[number].candidates)), generate,
            seed=seed, attempts=attempts,
        )
    )  # fmt: skip
    attributions = []
    for request in requests:
        if not request.candidates:
            attributions.append(QuotedAttribution((), 0, False))
            continue
        found = next(answered)
        if found.value is None:
            everything = [Span(source.document, *piece) for source in request.candidates for piece in source.pieces]
            attributions.append(QuotedAttribution(tuple(merge_spans(everything)), found.attempts, True))
        else:
            attributions.append(QuotedAttribution(found.value, found.attempts, False, found.answer))
    return attributions
