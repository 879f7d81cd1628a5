"""Step A: the prompt, what is read from an answer, and the parts of the output that a claim rests on."""

import pytest

from jaxcore.attribution.decontextualisation import (
    MARKER,
    Highlighted,
    decontextualisation_prompt,
    decontextualise,
    parse_claim,
    supporting_spans,
)

OUTPUT = "Ada Lovelace wrote the first program. In 1843\nshe published it as a note."
SENTENCE = (38, len(OUTPUT))
HIGHLIGHT = [(46, 62)]


def test_the_prompt_ends_with_the_context_on_one_line_and_the_claim():
    prompt = decontextualisation_prompt("she published it", OUTPUT)
    flat = OUTPUT.replace("\n", " ")
    assert prompt.endswith(f"##CONTEXT##: {flat}\n##CLAIM##: she published it\n")
    assert prompt.count(MARKER) == 4  # the instruction and three examples


def test_answers_without_a_claim_are_refused():
    assert parse_claim(f"She is Ada.\n{MARKER} Ada published it.\nMore") == ("She is Ada.", "Ada published it.")
    for answer in ("Ada published it.", f"{MARKER}  \n"):
        with pytest.raises(ValueError, match="must have"):
            parse_claim(answer)


def test_a_claim_s_spans_are_the_highlight_and_where_the_name_came_from():
    spans = supporting_spans("Ada Lovelace published the program.", HIGHLIGHT, SENTENCE, OUTPUT)
    assert [OUTPUT[slice(*span)] for span in spans] == ["Ada Lovelace", "program", "she published it"]


def test_words_of_the_sentence_are_taken_there_and_function_words_nowhere_else():
    spans = supporting_spans("She published it as a note in 1843 the.", HIGHLIGHT, SENTENCE, OUTPUT)
    assert [OUTPUT[slice(*span)] for span in spans] == ["In 1843\nshe published it as a note"]


def test_highlights_are_rewritten_together_and_those_without_an_answer_keep_their_words():
    asked = []

    def generate(prompts, seed):
        asked.append((len(prompts), seed))
        return [
            f"{MARKER} Ada Lovelace published the program" if prompt.endswith("##CLAIM##: she published it\n") else "no"
            for prompt in prompts
        ]

    first, second = (Highlighted(spans, SENTENCE, OUTPUT) for spans in (HIGHLIGHT, [(63, 72)]))
    claim, kept = decontextualise([first, second], generate, seed=7, attempts=3)
    assert asked == [(2, 7), (1, 8), (1, 9)]
    assert claim.rewritten and claim.text == "Ada Lovelace published the program"
    assert list(claim.spans) == supporting_spans(claim.text, *first)
    assert (kept.text, kept.spans, kept.rewritten) == (OUTPUT[63:72], ((63, 72),), False)
