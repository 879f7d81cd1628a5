"""Embedded prose: which paragraphs count, documents without repeats, whole documents on one side of a split."""

import re

import pytest

from jaxcore.data.embedded_prose import (
    ProseDocument,
    docstrings,
    embedded_prose,
    prose_paragraphs,
    split_documents,
)

TEXT = """Fit a thing
***********

The ``fit`` method of :class:`~pkg.Thing` returns *self* [1]_, so that calls can be
chained one after the other , as in `the guide <https://x.y>`_.

Parameters
----------
x : array of shape (n, m), and quite a few more words so that it would be long enough here

    >>> the example of code that is as long as any paragraph has to be to count here today.

- A list item that is as long as any paragraph has to be to count here, which it is not.

This one is a sentence of many words that never comes to its end because it has none

Short sentence.

no capital letter begins this sentence although it has more than enough words to be one.

It has = too + many (signs) / and [brackets] - to; be: prose, does it {not} % & $ # @ ! ?.
"""


def test_only_sentences_count_and_their_markup_goes():
    assert prose_paragraphs(TEXT) == [
        "The fit method of pkg.Thing returns self, so that calls can be chained one after the other, as in the guide."
    ]


def test_docstrings_are_those_at_the_beginning_of_a_line():
    source = '\n'.join([
        '"""Module text."""', 'QUERY = """', 'not this', '"""', 'def f(x="""no"""):', '    r"""Of f.', '',
        '    More of f.', '    """', '    return """nor this"""',
    ])  # fmt: skip
    assert docstrings(source) == ["Module text.", "Of f.\n\nMore of f."]


@pytest.fixture(scope="module")
def documents():
    return embedded_prose(("python", "datasets"))


def test_documents_are_real_prose_each_paragraph_once(documents):
    words = sum(document.num_words for document in documents)
    assert len(documents) > 30 and words > 15_000
    paragraphs = [re.sub(r"\W+", " ", p.lower()) for document in documents for p in document.paragraphs]
    assert len(set(paragraphs)) == len(paragraphs)
    assert len({document.name for document in documents}) == len(documents)
    assert all(document.num_words >= 60 for document in documents)
    assert all("\n" not in p and p[0].isupper() and p[-1] in ".:!?" for d in documents for p in d.paragraphs)
    everything = " ".join(document.text for document in documents).lower().split()
    assert everything.count("the") / len(everything) > 0.03  # as in English, not as in code
    assert embedded_prose(("python", "datasets")) == documents


def test_a_split_is_of_whole_documents_by_share_of_words(documents):
    split = split_documents(documents, validation=0.1, test=0.2, seed=3)
    assert sorted(d.name for part in split for d in part) == sorted(d.name for d in documents)
    sizes = [sum(d.num_words for d in part) for part in split]
    assert sizes[2] / sum(sizes) == pytest.approx(0.2, abs=0.08) and min(sizes) > 0
    assert split_documents(documents, validation=0.1, test=0.2, seed=3) == split
    assert split_documents(documents, validation=0.1, test=0.2, seed=4) != split


def test_small_splits_have_no_empty_part():
    few = [ProseDocument(str(n), ("a b c " * size,)) for n, size in enumerate((1, 100, 1, 1))]
    for seed in range(8):
        assert all(split_documents(few, validation=0.4, test=0.4, seed=seed))


def test_bad_input_is_refused(documents):
    for sources in ((), ("python", "nothing")):
        with pytest.raises(ValueError, match="sources must be some of"):
            embedded_prose(sources)
    with pytest.raises(ValueError, match="together below 1"):
        split_documents(documents, validation=0.5, test=0.5)
    with pytest.raises(ValueError, match="three documents"):
        split_documents(documents[:2])
