"""Words of texts, the frequent ones among them, and their numbers."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcore.data.word_vocabulary import frequent_words, number_words, string_of, words_of

TEXTS = st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), min_size=1, max_size=8)


def test_a_string_splits_into_lower_case_words_and_marks_and_words_stay_as_they_are():
    assert words_of("It isn't GOOD, (really)!") == ["it", "isn't", "good", ",", "(", "really", ")", "!"]
    assert words_of(("It", "isn't")) == ["It", "isn't"]
    assert string_of(["a", "b"]) == "a b" and string_of("a  b") == "a  b"


@given(texts=TEXTS, most=st.integers(1, 6), min_count=st.integers(1, 3))
def test_no_word_that_is_left_out_is_more_frequent_than_one_that_is_kept(texts, most, min_count):
    counts = Counter(word for text in texts for word in text)
    kept = frequent_words(texts, most=most, min_count=min_count)
    keys = [(-counts[word], word) for word in kept]
    assert keys == sorted(keys) and all(counts[word] >= min_count for word in kept)
    left_out = [(-count, word) for word, count in counts.items() if count >= min_count and word not in kept]
    assert len(kept) == min(most, len(kept) + len(left_out))
    assert not left_out or max(keys) < min(left_out)


def test_words_are_numbered_by_their_place():
    assert number_words([["b", "x"], []], ("a", "b"), unknown=7) == [[1, 7], []]
    with pytest.raises(ValueError, match="most must be at least 1"):
        frequent_words([["a"]], most=0)
