"""A highlighted span of a text rewritten as a claim that stands by itself, and what else of the text it then rests on.

Source: LAQuer, step A (laquer.md), which takes the rewriting prompt of Molecular Facts (Gunjal & Durrett 2024); the
wording here is our own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxcore.attribution.answer_attempts import AnswerPrompts, ask_until_read
from jaxcore.attribution.lexical_alignment import is_content, lexical_align, strip_ending
from jaxcore.attribution.text_spans import Offsets, merge_offsets, text_of

MARKER = "##DECONTEXTUALIZED CLAIM##:"
"""What precedes the claim in an answer; the explanation stands before it."""

_INSTRUCTION = f"""Rewrite the CLAIM so that it can be understood and checked without the CONTEXT it was taken from.
- Replace pronouns and partial names by the names that the CONTEXT gives.
- If the subject could still be mistaken for another one, add the most important detail that tells it apart, but only if
  the CONTEXT has it.
- Keep everything the claim says, add nothing else, change as little as possible.
First explain in a sentence or two what is unclear and how the CONTEXT resolves it. Then write {MARKER}
and the claim."""

_EXAMPLES = (
    (
        "she moved to Lisbon in 1931 .",
        "Maria Ferreira grew up in Porto, where her father built ships. After the yard closed she moved to Lisbon in "
        "1931 and opened a school.",
        '"She" is Maria Ferreira, whom the context names in full.',
        "Maria Ferreira moved to Lisbon in 1931.",
    ),
    (
        "Miller scored twice",
        "Two players named Miller met in the final. Miller scored twice for Ostrava before half-time; his namesake was "
        "sent off.",
        '"Miller" could be either player; the context says that this one plays for Ostrava.',
        "Miller, who plays for Ostrava, scored twice.",
    ),
    (
        "The dam was finished in 1968",
        "Work on the Aldeadávila project began in 1956. The dam was finished in 1968, two years late.",
        '"The dam" is that of the Aldeadávila project.',
        "The dam of the Aldeadávila project was finished in 1968.",
    ),
)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A highlight that stands by itself."""

    text: str
    spans: tuple[Offsets, ...]
    """Of the output: the highlight, and what else the claim says of it (where a name was taken from)."""
    explanation: str = ""
    rewritten: bool = True
    """False where no usable answer came and the highlight's own words were kept."""


def decontextualisation_prompt(claim: str, context: str) -> str:
    """The prompt for a claim; line breaks of the context become spaces."""
    parts = [_INSTRUCTION]
    for example, around, explanation, answer in _EXAMPLES:
        parts.append(f"##CONTEXT##: {around}\n##CLAIM##: {example}\n{explanation}\n{MARKER} {answer}")
    parts.append(f"##CONTEXT##: {' '.join(context.split())}\n##CLAIM##: {claim}\n")
    return "\n\n".join(parts)


def parse_claim(answer: str) -> tuple[str, str]:
    """Explanation and claim of an answer.

    Raises:
        ValueError: an answer without the marker, or with nothing behind it.
    """
    explanation, marker, claim = answer.partition(MARKER)
    lines = [line.strip() for line in claim.splitlines() if line.strip()]
    if not marker or not lines:
        raise ValueError(f"an answer must have {MARKER!r} and a claim behind it: got {answer[:80]!r}")
    return explanation.strip(), lines[0]


def supporting_spans(
    claim: str,
    highlight: Sequence[Offsets],
    sentence: Offsets,
    output: str,
    *,
    normalise: Callable[[str], str] = strip_ending,
) -> list[Offsets]:
    """The highlight, and the parts of the output that the claim's words come from.

    Words are looked for in the highlight's sentence first; content words that it does not have, in the whole output. A
    final period is left out: it would be found at the sentence's end.

    Args:
        claim: the rewritten highlight.
        highlight, sentence: places in the output.
        normalise: see `lexical_align`.
    """
    words = claim.strip().removesuffix(".")
    near = lexical_align(words, output[slice(*sentence)], normalise=normalise)
    far = lexical_align(words, output, normalise=normalise)
    found: list[Offsets] = list(highlight)
    for word, place, other in zip(near.words, near.places, far.places, strict=True):
        if place is not None:
            found.append((sentence[0] + place[0], sentence[0] + place[1]))
        elif other is not None and is_content(word):
            found.append(other)
    return merge_offsets(found, gap=1)


class Highlighted(NamedTuple):
    """A highlight to be rewritten."""

    spans: Sequence[Offsets]
    """Of the output, within one sentence."""
    sentence: Offsets
    """That sentence."""
    output: str


def decontextualise(
    highlights: Sequence[Highlighted], generate: AnswerPrompts, *, seed: int = 0, attempts: int = 5
) -> list[Claim]:
    """The claim of each highlight; its own words where no attempt gives a usable answer.

    Args:
        generate, seed, attempts: see `ask_until_read`.

    Raises:
        ValueError: fewer than one attempt.
    """
    words = [text_of(highlight.spans, highlight.output) for highlight in highlights]
    prompts = [decontextualisation_prompt(*pair) for pair in zip(words, (h.output for h in highlights), strict=True)]
    answered = ask_until_read(prompts, lambda _, answer: parse_claim(answer), generate, seed=seed, attempts=attempts)
    claims = []
    for highlight, own, found in zip(highlights, words, answered, strict=True):
        if found.value is None:
            claims.append(Claim(own, tuple(highlight.spans), rewritten=False))
        else:
            explanation, claim = found.value
            claims.append(Claim(claim, tuple(supporting_spans(claim, *highlight)), explanation))
    return claims
