"""Step B by prompting: places of quotations at each level, retries, fall-back."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcore.attribution.quoted_sources import (
    QuotationRequest,
    attribute_by_quotation,
    candidate_texts,
    locate_quotation,
    nearest_starts,
    parse_quotations,
    quotation_prompt,
)
from jaxcore.attribution.text_spans import Span

DOCUMENTS = {
    "a": "The bridge opened in 1859; its designer was ill. Trains cross it slowly.",
    "b": "A storm closed the bridge. It reopened in May.",
}
CANDIDATES = candidate_texts([Span("a", 49, 72), Span("b", 0, 26), Span("a", 0, 26), Span("a", 0, 26)], DOCUMENTS)


def quoted(spans):
    return [DOCUMENTS[span.document][span.start : span.end] for span in spans]


def test_candidates_are_joined_by_document_each_span_once():
    assert [source.text for source in CANDIDATES] == [
        "The bridge opened in 1859; Trains cross it slowly.",
        "A storm closed the bridge.",
    ]


@pytest.mark.parametrize(
    ("quotation", "found"),
    [
        ("the BRIDGE", "The bridge"),  # case, and the first source
        ("A storm - closed", "A storm closed"),  # letters alone
        ("bridge opened in May 1859", "bridge opened in 1859"),  # nearest words, to the quotation's last one
        ("opened in 1859; Trains", "opened in 1859;|Trains"),  # over a joint
    ],
)
def test_quotations_are_found_exactly_by_letters_or_by_words(quotation, found):
    assert "|".join(quoted(parse_quotations(quotation, CANDIDATES))) == found


def test_a_semicolon_of_the_source_does_not_cut_a_quotation():
    spans = parse_quotations("opened in 1859; its designer was ill ; a storm", candidate_texts(
        [Span("a", 0, 48), Span("b", 0, 26)], DOCUMENTS
    ))  # fmt: skip
    assert quoted(spans) == ["opened in 1859; its designer was ill", "A storm"]


def test_a_character_that_grows_in_lower_case_shifts_no_offset():
    text = "\u0130\u0130 is here; the END"
    start, end = locate_quotation("the end", text)
    assert text[start:end] == "the END"


@pytest.mark.parametrize("answer", ["", " ; ; ", "zebras eat grass at night"])
def test_answers_that_quote_nothing_are_refused(answer):
    with pytest.raises(ValueError, match="quotation"):
        parse_quotations(answer, CANDIDATES)


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.lists(st.sampled_from("abc"), min_size=1, max_size=7)
)
def test_nearest_starts_are_the_least_edit_distances_of_what_begins_there(wanted, there):
    def distance(first, second):
        @functools.cache
        def cost(i, j):
            if not i or not j:
                return i + j
            change = first[i - 1] != second[j - 1]
            return min(cost(i - 1, j) + 1, cost(i, j - 1) + 1, cost(i - 1, j - 1) + change)

        return cost(len(first), len(second))

    expected = [
        min(distance(wanted, there[start:end]) for end in range(start, len(there) + 1)) for start in range(len(there))
    ]
    assert nearest_starts(wanted, there).tolist() == expected


def test_prompts_number_the_sources_and_end_where_the_answer_begins():
    prompt = quotation_prompt("It opened.", [source.text for source in CANDIDATES], question="When?")
    assert prompt.endswith("Source 2: A storm closed the bridge.\nQuestion: When?\nOutput: It opened.\nAttribution: ")


def test_answers_are_asked_for_again_and_then_everything_is_taken():
    answers = {0: "no such words anywhere here", 1: "A storm closed"}
    request = QuotationRequest("c", CANDIDATES)
    [found] = attribute_by_quotation([request], lambda prompts, seed: [answers[seed]], attempts=5)
    assert quoted(found.spans) == ["A storm closed"] and (found.attempts, found.fell_back) == (2, False)
    [lost] = attribute_by_quotation([request], lambda prompts, seed: [answers[0]], attempts=3)
    assert lost.fell_back and lost.attempts == 3
    assert quoted(lost.spans) == ["The bridge opened in 1859;", "Trains cross it slowly.", "A storm closed the bridge."]


def test_a_claim_without_candidates_is_not_asked_about_and_the_others_keep_their_places():
    def generate(prompts, seed):
        assert len(prompts) == 2
        return ["A storm closed", "Trains cross it"]

    requests = [QuotationRequest("a", CANDIDATES), QuotationRequest("b", []), QuotationRequest("c", CANDIDATES)]
    found = attribute_by_quotation(requests, generate)
    assert [quoted(one.spans) for one in found] == [["A storm closed"], [], ["Trains cross it"]]
    assert [one.attempts for one in found] == [1, 0, 1] and not any(one.fell_back for one in found)
