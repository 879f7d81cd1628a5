"""Filters against sorting in numpy, and against transformers' logits warpers."""

import numpy as np
import pytest
import torch
from transformers.generation import logits_process

from jaxcore.generation import keep_min_p, keep_top_k, keep_top_p, keep_typical

SCORES = np.random.default_rng(0).normal(size=(7, 50)).astype(np.float32) * 2


def probabilities(scores):
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def fewest_to_mass(order, probs, mass):
    """The first entries of `order` whose probabilities reach the mass."""
    count = int(np.searchsorted(np.cumsum(probs[order]), mass)) + 1
    kept = np.zeros(len(order), bool)
    kept[order[:count]] = True
    return kept


def brute_top_p(row, p):
    probs = probabilities(row.astype(np.float64))
    return fewest_to_mass(np.argsort(-probs), probs, p)


def brute_typical(row, p):
    probs = probabilities(row.astype(np.float64))
    information = -np.log(probs)
    return fewest_to_mass(np.argsort(np.abs(information - (probs * information).sum())), probs, p)


def brute_min_p(row, p):
    probs = probabilities(row.astype(np.float64))
    return probs >= p * probs.max()


def brute_top_k(row, k):
    return np.isin(np.arange(len(row)), np.argsort(-row)[:k])


CASES = {
    "top_k": (keep_top_k, brute_top_k, logits_process.TopKLogitsWarper, (1, 7, 50)),
    "top_p": (keep_top_p, brute_top_p, logits_process.TopPLogitsWarper, (0.02, 0.3, 0.7, 0.95)),
    "min_p": (keep_min_p, brute_min_p, logits_process.MinPLogitsWarper, (0.01, 0.1, 1.0)),
    "typical": (keep_typical, brute_typical, logits_process.TypicalLogitsWarper, (0.05, 0.5, 0.9)),
}


@pytest.mark.parametrize("name", CASES)
def test_kept_tokens_are_those_of_brute_force_and_of_transformers(name):
    keep, brute, warper, options = CASES[name]
    sizes = set()
    for option in options:
        got = np.asarray(keep(SCORES, option))
        kept = got > -np.inf
        np.testing.assert_array_equal(kept, [brute(row, option) for row in SCORES])
        np.testing.assert_array_equal(got[kept], SCORES[kept])
        theirs = warper(option)(None, torch.tensor(SCORES)).numpy() > -np.inf
        np.testing.assert_array_equal(kept, theirs)
        sizes.add(int(kept.sum()))
    assert len(sizes) == len(options)


def test_filters_see_what_others_have_left():
    """A token of score -inf is never let in again, and the rest counts as the whole."""
    few = np.asarray(keep_top_k(SCORES, 6))
    for keep, brute in ((keep_top_p, brute_top_p), (keep_typical, brute_typical)):
        got = np.asarray(keep(few, 0.6)) > -np.inf
        for row, kept, before in zip(SCORES, got, few > -np.inf, strict=True):
            places = np.flatnonzero(before)
            np.testing.assert_array_equal(kept[places], brute(row[places], 0.6))
            assert not kept[~before].any()


@pytest.mark.parametrize("keep", (keep_top_p, keep_typical), ids=lambda f: f.__name__)
def test_all_the_probability_keeps_all_the_tokens(keep):
    np.testing.assert_array_equal(keep(SCORES, 1.0), SCORES)


def test_tokens_that_tie_stay_together():
    row = np.log(np.array([[0.4, 0.2, 0.2, 0.2]], np.float32))
    assert (np.asarray(keep_top_p(row, 0.5)) > -np.inf).all() and (np.asarray(keep_top_k(row, 2)) > -np.inf).all()
    np.testing.assert_array_equal(np.asarray(keep_top_p(row, 0.35)) > -np.inf, [[True, False, False, False]])
