"""The embedded names: the counts of eavae.md section 8, every name once, enough names for bigger worlds."""

from jaxcore.data import world_words


def test_counts_and_no_word_twice():
    pairs = [word for pair in world_words.SYNONYM_PAIRS for word in pair]
    content = [word for theme in world_words.THEMES.values() for word in theme]
    words = [*world_words.FUNCTION_WORDS, *pairs, *content]
    assert (len(world_words.FUNCTION_WORDS), len(world_words.SYNONYM_PAIRS), len(content)) == (40, 24, 160)
    assert len(set(words)) == 248
    assert all(word.isalpha() and word.islower() for word in words)


def test_extended_names_stay_different():
    names = world_words.extend_names(("a", "b", "c"), 8)
    assert names == ["a", "b", "c", "a2", "b2", "c2", "a3", "b3"]
    assert world_words.extend_names(("a", "b", "c"), 2) == ["a", "b"]
