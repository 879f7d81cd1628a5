"""Word alignment against an independent edit distance, and the highlights it gives on sentences worked by hand."""

import functools

from hypothesis import given
from hypothesis import strategies as st

from jaxcore.attribution.lexical_alignment import (
    is_content,
    lexical_align,
    strip_ending,
    word_edit_align,
    words_with_offsets,
)

words = st.lists(st.sampled_from("abcd"), max_size=6)


@given(words, words)
def test_pairs_lie_on_a_cheapest_path(source, target):
    """With m matches on a path of r replacements, the cost is |s| + |t| - 2 m - r; all pairs match, in order."""

    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(
            distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (source[i - 1] != target[j - 1])
        )

    pairs = word_edit_align(source, target)
    assert all(source[i] == target[j] for i, j in pairs)
    cost, last = 0, (0, 0)
    for i, j in [*pairs, (len(source), len(target))]:
        cost += max(i - last[0], j - last[1])
        last = (i + 1, j + 1)
    assert pairs == sorted(pairs) and cost == distance(len(source), len(target))


def test_ties_leave_out_the_fact_s_word_first():
    assert word_edit_align(["a"], ["a", "a"]) == [(0, 0)]
    assert word_edit_align(["a", "a"], ["a"]) == [(0, 0)]
    assert word_edit_align(["a", "b"], ["b", "a"]) == [(0, 1)]


def test_words_are_cut_at_punctuation_and_contractions():
    text = "Kavanaugh's same-sex ruling didn't cost $1,000 in the U.S."
    assert [word for word, *_ in words_with_offsets(text)] == [
        "Kavanaugh", "'s", "same-sex", "ruling", "did", "n't", "cost", "$", "1,000", "in", "the", "U.S."
    ]  # fmt: skip
    assert all(text[start:end] == word for word, start, end in words_with_offsets(text))


def test_forms_of_a_word_are_equal_and_other_words_are_not():
    for forms in (("focus", "focused", "focuses"), ("study", "studies", "studied"), ("house", "houses", "housing")):
        assert len(set(map(strip_ending, forms))) == 1, forms
    assert strip_ending("is") == strip_ending("Were") == "be" and strip_ending("class") != strip_ending("clan")


def test_a_fact_is_found_in_its_sentence_with_reordered_words():
    sentence = "Judge Kavanaugh faced scrutiny, with a focus on his views about presidential powers."
    found = lexical_align("The scrutiny focused on Kavanaugh's views about presidential powers.", sentence)
    assert [sentence[slice(*span)] for span in found.spans()] == [
        "Kavanaugh", "scrutiny", "focus on", "views about presidential powers."
    ]  # fmt: skip
    assert found.missing_content() == []


def test_content_words_that_a_text_lacks_are_named():
    found = lexical_align("The zebra bit the judge", "The judge was calm.")
    assert found.missing_content() == ["zebra", "bit"]
    assert not is_content("The") and not is_content("...") and is_content("judge")
