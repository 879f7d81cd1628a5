"""Agreement with human rationales against scikit-learn and span counts written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

from jaxcore.attribution.plausibility import (
    iou_f1,
    rationale_auprc,
    simulatability,
    simulation_accuracy,
    span_matches,
    token_f1,
    top_tokens,
)

TEXTS, TIME = 20, 8


def texts(seed, levels=None):
    rng = np.random.default_rng(seed)
    mask = rng.permuted(np.arange(TIME) < rng.integers(0, TIME + 1, (TEXTS, 1)), axis=1)
    scores = rng.integers(0, levels, (TEXTS, TIME)) if levels else rng.normal(size=(TEXTS, TIME))
    rationales = rng.random((TEXTS, TIME)) < 0.4
    return np.where(mask, scores, np.nan).astype(np.float32), rationales, mask


def runs(tokens):
    """[start, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.r_[0, tokens.astype(int), 0]))
    return list(zip(edges[::2], edges[1::2], strict=True))


def span_f1(predicted, human, threshold):
    def iou(a, b):
        first, second = set(range(*a)), set(range(*b))
        return len(first & second) / len(first | second)

    spans, truth = runs(predicted), runs(human)
    if not truth:
        return np.nan
    matches = sum(max(iou(span, true) for true in truth) >= threshold for span in spans)
    precision, recall = matches / max(len(spans), 1), matches / len(truth)
    return 2 * precision * recall / (precision + recall) if matches else 0


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([None, 3]))
def test_auprc_equals_scikit_learn(seed, levels):
    scores, rationales, mask = texts(seed, levels)
    expected = [
        average_precision_score(r[m], s[m]) if (r & m).any() else np.nan
        for s, r, m in zip(scores, rationales, mask, strict=True)
    ]
    assert np.isnan(expected).any()
    np.testing.assert_allclose(rationale_auprc(scores, rationales, mask), expected, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.sampled_from([None, 3]))
def test_token_f1_equals_scikit_learn(seed, k):
    scores, rationales, mask = texts(seed)
    size = (rationales & mask).sum(axis=1)
    predicted = np.asarray(top_tokens(scores, size if k is None else k, mask))
    assert not np.any(predicted & ~mask)
    expected = [
        f1_score(r[m], p[m]) if (r & m).any() else np.nan for p, r, m in zip(predicted, rationales, mask, strict=True)
    ]
    np.testing.assert_allclose(token_f1(scores, rationales, mask, k=k), expected, atol=1e-6)


def test_token_f1_of_ties_is_the_mean_over_choices():
    """One of three tied tokens is right: a random one is so in a third of cases."""
    scores, rationales = np.array([[1.0, 1.0, 1.0, 0.0]], np.float32), np.array([[True, False, False, False]])
    assert token_f1(scores, rationales)[0] == pytest.approx(1 / 3)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([1 / 3, 0.5, 1.0]))
def test_iou_f1_equals_counting_spans(seed, threshold):
    rng = np.random.default_rng(seed)
    predicted, human = rng.random((2, TEXTS, TIME)) < rng.choice([0.1, 0.5, 0.9], (2, TEXTS, 1))
    expected = [span_f1(p, h, threshold) for p, h in zip(predicted, human, strict=True)]
    np.testing.assert_allclose(iou_f1(predicted, human, threshold=threshold), expected, atol=1e-6)
    matches = span_matches(predicted, human, threshold=threshold)
    assert [len(runs(p)) for p in predicted] == matches.predicted.tolist()
    assert [len(runs(h)) for h in human] == matches.human.tolist()


def test_spans_at_every_place_of_the_shortest_and_fullest_texts():
    alternating = np.array([[True, False, True, False, True]])
    assert iou_f1(alternating, alternating)[0] == 1 and iou_f1(alternating, ~alternating)[0] == 0
    assert iou_f1(np.array([[True]]), np.array([[True]]))[0] == 1
    assert iou_f1(np.array([[False]]), np.array([[True]]))[0] == 0
    assert np.isnan(iou_f1(np.array([[True]]), np.array([[False]]))[0])


def test_simulation():
    predictions = np.array([0, 1, 2, 1])
    assert simulation_accuracy([0, 1, 0, 1], predictions) == 0.75
    assert simulatability([0, 1, 0, 1], [0, 0, 0, 0], predictions) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: rationale_auprc(s, s[:, :1] > 0), "rationales must have the shape"),
        (lambda s: token_f1(s, s > 0, s[:1] > 0), r"mask must be \["),
        (lambda s: rationale_auprc(s * np.nan, s > 0), "must be finite"),
        (lambda s: iou_f1(s[0] > 0, s[0] > 0), r"\[texts, time\]"),
        (lambda s: iou_f1(s > 0, s > 0, threshold=0.0), "threshold"),
        (lambda s: simulation_accuracy([1, 0], [1]), "one class per text"),
        (lambda s: simulation_accuracy([], []), "one class per text"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((2, 3), np.float32))


def test_f1_of_no_token_is_refused():
    with pytest.raises(ValueError, match="k must be at least 1: got 0"):
        token_f1(np.ones((1, 2)), np.ones((1, 2), bool), k=0)
