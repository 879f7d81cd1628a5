"""Attention flow against the linear programme of a maximum flow, and cases whose flow is known."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from jaxcore.attribution.attention_flow import attention_flow, maximum_flows


def capacities_of(weights):
    capacities = weights.astype(np.float64).mean(axis=1) + np.eye(weights.shape[-1])
    return capacities / capacities.sum(axis=-1, keepdims=True)


def flow_by_linear_programme(capacities, source, sink):
    """max of what leaves the source, subject to conservation at every other node but the sink."""
    layers, time, _ = capacities.shape
    edges = list(itertools.product(range(1, layers + 1), range(time), range(time)))  # (l, i) -> (l - 1, j)
    balance = np.zeros((layers + 1, time, len(edges)))
    for number, (layer, i, j) in enumerate(edges):
        balance[layer, i, number] -= 1
        balance[layer - 1, j, number] += 1
    gain = balance[0, sink]
    inner = np.ones((layers + 1, time), bool)
    inner[layers, source] = inner[0, sink] = False
    bounds = [(0, capacities[layer - 1, i, j]) for layer, i, j in edges]
    solved = linprog(-gain, A_eq=balance[inner], b_eq=np.zeros(inner.sum()), bounds=bounds, method="highs-ds")
    return -solved.fun


def softmax_weights(seed, layers, heads, time, sharpness):
    logits = np.random.default_rng(seed).normal(size=(2, layers, heads, time, time)) * sharpness
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(("layers", "time", "sharpness"), [(1, 3, 1), (2, 4, 3), (3, 5, 6), (5, 4, 6), (4, 6, 1)])
def test_is_the_maximum_flow(layers, time, sharpness):
    weights = softmax_weights(layers, layers, 2, time, sharpness)
    flows = attention_flow(weights, query=1)
    for example in range(2):
        capacities = capacities_of(weights[example])
        expected = np.array([flow_by_linear_programme(capacities, 1, sink) for sink in range(time)])
        np.testing.assert_allclose(maximum_flows(capacities, source=1), expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(flows[example], expected / expected.sum(), atol=1e-10)


def test_capacities_of_very_different_size_are_exact():
    rng = np.random.default_rng(0)
    capacities = 10.0 ** rng.uniform(-9, 0, size=(4, 4, 4))
    expected = [flow_by_linear_programme(capacities * 1e3, 0, sink) / 1e3 for sink in range(4)]
    np.testing.assert_allclose(maximum_flows(capacities, source=0), expected, rtol=1e-6, atol=1e-11)


def test_flow_needs_its_reversals():
    """Two units fit only if the first path, greedy through the shared node, is undone."""
    capacities = np.zeros((3, 3, 3))
    capacities[2, 0, :2] = 1  # the source to a, b
    capacities[1, 0, :2] = 1  # a to c, d
    capacities[1, 1, 0] = 1  # b to c only
    capacities[0, :2, 2] = 1  # c, d to the sink
    assert maximum_flows(capacities, source=0)[2] == pytest.approx(2, abs=1e-12)


def test_a_bottleneck_limits_the_flow_where_rollout_would_multiply():
    capacities = np.stack([np.array([[0.3, 0.7], [0.5, 0.5]]), np.array([[0.6, 0.4], [0.1, 0.9]])])
    # through node 0: min(0.6, 0.3); through node 1: min(0.4, 0.5)
    np.testing.assert_allclose(maximum_flows(capacities, source=0), [0.3 + 0.4, 0.6 + 0.4], atol=1e-12)


def test_padding_does_not_change_the_flow():
    weights = softmax_weights(1, 3, 2, 4, 2)[:1]
    padded = np.full((1, 3, 2, 6, 6), 1 / 6)
    padded[..., :4, :] = 0
    padded[..., :4, :4] = weights
    mask = np.array([[1, 1, 1, 1, 0, 0]], bool)
    flows = attention_flow(padded, mask)
    np.testing.assert_allclose(flows[:, :4], attention_flow(weights), atol=1e-12)
    np.testing.assert_array_equal(flows[:, 4:], 0)
    assert flows.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda w: {"weights": w[0]}, r"\[batch, layers, heads, time, time\]"),
        (lambda w: {"weights": -w}, "not negative"),
        (lambda w: {"mask": np.ones((2, 2))}, r"mask must be \[2, 3\]"),
        (lambda w: {"query": 3}, "query 3 must be a token"),
        (lambda w: {"mask": np.array([[1, 1, 0]] * 2), "query": -1}, "must be a token of every example"),
    ],
)
def test_bad_input_is_refused(changes, message):
    weights = softmax_weights(0, 2, 1, 3, 1)
    with pytest.raises(ValueError, match=message):
        attention_flow(**{"weights": weights, **changes(weights)})
