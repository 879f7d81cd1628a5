"""Verification pairs: half by one author, always one support and one query text."""

import numpy as np
import pytest

from jaxcore.evaluation import sample_author_pairs


def pool(num_authors=5, texts=6):
    authors = np.repeat(np.arange(num_authors), texts)
    return authors, np.tile(np.arange(texts) % 2 == 1, num_authors)


def test_labels_are_true_and_balanced_and_sides_never_mix():
    authors, is_query = pool()
    left, right, same = sample_author_pairs(authors, is_query, num_pairs=200, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(authors[left] == authors[right], same)
    assert same.sum() == 100
    assert not is_query[left].any() and is_query[right].all()
    assert len(set(zip(left.tolist(), right.tolist(), strict=True))) > 50


def test_an_author_without_query_texts_is_left_out():
    authors, is_query = pool()
    is_query[authors == 2] = False
    left, right, _ = sample_author_pairs(authors, is_query, num_pairs=200, rng=np.random.default_rng(0))
    assert 2 not in authors[left] and 2 not in authors[right]


def test_too_few_authors_are_named():
    with pytest.raises(ValueError, match="two authors with support and query texts: there are 1"):
        sample_author_pairs(np.zeros(4, int), np.arange(4) % 2 == 0, num_pairs=4, rng=np.random.default_rng(0))
