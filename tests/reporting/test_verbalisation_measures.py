"""What verbalisations show and cite, and that a wrong percentage is noticed."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.reporting import saliency_search
from jaxcore.reporting.saliency_search import Snippet
from jaxcore.reporting.verbalisation import verbalise
from jaxcore.reporting.verbalisation_measures import (
    adjacent_runs,
    all_citations,
    cited_mask,
    exact_percentages,
    snippet_mask,
)

TOKENS = ["a", "fine", "film", ".", "dull", "ending"]


def test_percentages_are_exact_and_the_released_slice_breaks_them(monkeypatch):
    """The released code sums ``S[first:last]``: the last token is lost, a single word covers nothing."""
    scores = np.array([0.5, 3.0, 1.0, 0.25, -2.0, 0.25])

    def right():
        runs = saliency_search.summarise_runs(jnp.asarray(scores[None]))[0]
        return exact_percentages(runs, TOKENS, scores)

    assert right() and all(right())

    def released(evidence, indices):
        mass = np.maximum(evidence, 0).sum()
        return float(max(evidence[indices[0] : indices[-1]].sum() / mass, 0))

    monkeypatch.setattr(saliency_search, "_share", released)
    assert not all(right())
    monkeypatch.undo()
    assert exact_percentages([Snippet((1,), 1.0, 0.6)], TOKENS, scores) == [True]
    assert exact_percentages([Snippet((1,), 1.0, 0.61)], TOKENS, scores) == [False]


def test_runs_are_the_stretches_of_shown_tokens():
    shown = np.array([True, True, False, True, False, False])
    assert [run.indices for run in adjacent_runs(shown)] == [(0, 1), (3,)]
    assert adjacent_runs(np.zeros(6, bool)) == []
    np.testing.assert_array_equal(snippet_mask([adjacent_runs(shown)], (1, 6))[0], shown)
    np.testing.assert_array_equal(snippet_mask([[], [Snippet((4,), 1.0, 1.0)]], (2, 6)), [[0] * 6, [0, 0, 0, 0, 1, 0]])


def test_what_a_template_names_is_what_it_cites():
    shown = np.array([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]], bool)
    texts = [verbalise(adjacent_runs(row), TOKENS) for row in shown]
    np.testing.assert_array_equal(cited_mask(texts, [TOKENS] * 2, np.ones((2, 6), bool)), shown)
    hidden = np.array([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool)
    np.testing.assert_array_equal(cited_mask(texts, [TOKENS] * 2, hidden), shown & hidden)
    with pytest.raises(ValueError, match="one of each per text"):
        cited_mask(texts, [TOKENS], np.ones((2, 6), bool))


def test_citations_are_taken_together():
    found = all_citations(['"fine" and "zebra" decide', '"dull" decides'], ["a fine film", "a dull film"])
    assert (found.total, found.absent) == (3, ("zebra",)) and found.precision == pytest.approx(2 / 3)
