"""Scorers against their equations, one pair at a time in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.losses import scorers

RNG = np.random.default_rng(0)
B, C, D, DC = 4, 5, 6, 3
INPUTS = RNG.standard_normal((B, D)).astype(np.float32)
SAME = RNG.standard_normal((C, D)).astype(np.float32)
OTHER = RNG.standard_normal((C, DC)).astype(np.float32)


def relu(x):
    return np.maximum(x, 0)


def one_by_one(score, inputs, candidates):
    own = candidates.ndim == 3
    return np.array(
        [[score(u, candidates[b, c] if own else candidates[c]) for c in range(C)] for b, u in enumerate(inputs)]
    )


def in_float64(weights):
    return {name: np.asarray(value, np.float64) for name, value in weights.items()}


def mlp(weights, u, v):
    w = in_float64(weights)
    x = relu(np.concatenate([v, u]) @ np.concatenate([w["candidate_kernel"], w["input_kernel"]]) + w["bias_0"])
    x = relu(x @ w["kernel_1"] + w["bias_1"])
    return (x @ w["kernel_2"] + w["bias_2"])[0]


def joint(weights, u, v):
    w = in_float64(weights)
    left = np.tanh(w["input_kernel"].T @ u + w["input_bias"])
    right = np.tanh(w["candidate_kernel"].T @ v + w["candidate_bias"])
    return w["output_kernel"] @ (left * right) + w["bias"]


def shifted(weights):
    """Weights whose biases are not all zero."""
    leaves, tree = jax.tree.flatten(weights)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


BILINEAR = scorers.init_bilinear(jax.random.key(0), input_size=D, candidate_size=DC, num_relations=3)
JOINT = shifted(scorers.init_joint(jax.random.key(1), input_size=D, candidate_size=DC, joint_size=7))
MLP = shifted(scorers.init_concat_mlp(jax.random.key(2), input_size=D, candidate_size=DC, hidden_sizes=(8, 6)))
KERNEL = np.asarray(BILINEAR["kernel"], np.float64)

CASES = {
    "dot": (scorers.dot_scores, lambda u, v: u @ v, SAME),
    "cosine": (
        lambda u, v: scorers.cosine_scores(u, v, temperature=0.2),
        lambda u, v: u @ v / np.linalg.norm(u) / np.linalg.norm(v) / 0.2,
        SAME,
    ),
    "mean_product": (scorers.mean_product_scores, lambda u, v: np.mean(u * v), SAME),
    "bilinear": (
        lambda u, v: scorers.bilinear_scores(BILINEAR, u, v, relation=2),
        lambda u, v: u @ KERNEL[2] @ v,
        OTHER,
    ),
    "joint": (lambda u, v: scorers.joint_scores(JOINT, u, v), lambda u, v: joint(JOINT, u, v), OTHER),
    "concat_mlp": (lambda u, v: scorers.concat_mlp_scores(MLP, u, v), lambda u, v: mlp(MLP, u, v), OTHER),
}


@pytest.mark.parametrize("name", CASES)
def test_shared_candidates(name):
    scorer, score, candidates = CASES[name]
    expected = one_by_one(score, INPUTS.astype(np.float64), candidates.astype(np.float64))
    np.testing.assert_allclose(scorer(INPUTS, candidates), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_candidates_of_each_input(name):
    scorer, score, candidates = CASES[name]
    own = RNG.standard_normal((B, *candidates.shape)).astype(np.float32)
    expected = one_by_one(score, INPUTS.astype(np.float64), own.astype(np.float64))
    np.testing.assert_allclose(scorer(INPUTS, own), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_vectors_are_scored_in_float32(name):
    scorer, score, candidates = CASES[name]
    rounded = jnp.asarray(INPUTS, jnp.bfloat16), jnp.asarray(candidates, jnp.bfloat16)
    scores = scorer(*rounded)
    assert scores.dtype == jnp.float32
    expected = one_by_one(score, *(np.asarray(x, np.float64) for x in rounded))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_each_input_may_have_its_own_relation():
    relations = np.array([2, 0, 1, 2])
    scores = scorers.bilinear_scores(BILINEAR, INPUTS, OTHER, relation=jnp.asarray(relations))
    expected = np.stack([INPUTS[b] @ KERNEL[r] @ OTHER.T for b, r in enumerate(relations)])
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_a_zero_vector_scores_zero_and_has_a_gradient():
    def total(u):
        return jnp.sum(scorers.cosine_scores(u, SAME))

    value, gradient = jax.value_and_grad(total)(jnp.zeros((2, D)))
    assert value == 0 and np.isfinite(gradient).all()


def test_fresh_scores_have_unit_scale():
    """Otherwise a sigmoid on them starts saturated. Standard normal inputs, hundreds of wide pairs."""
    u, v = RNG.standard_normal((64, 256)), RNG.standard_normal((64, 128))
    weights = scorers.init_concat_mlp(jax.random.key(3), input_size=256, candidate_size=128, hidden_sizes=(128, 128))
    assert 0.5 < np.std(scorers.concat_mlp_scores(weights, jnp.asarray(u), jnp.asarray(v))) < 2.5
    weights = scorers.init_joint(jax.random.key(3), input_size=256, candidate_size=128, joint_size=64)
    assert 0.1 < np.std(scorers.joint_scores(weights, jnp.asarray(u), jnp.asarray(v))) < 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scorers.dot_scores(jnp.zeros((2, 3)), jnp.zeros((5, 4))), r"one width: got inputs \(2, 3\)"),
        (lambda: scorers.dot_scores(jnp.zeros(3), jnp.zeros((5, 3))), r"expected inputs \[batch, dim\]"),
        (lambda: scorers.dot_scores(jnp.zeros((2, 3)), jnp.zeros((5, 1, 3))), "one row per input"),
        (lambda: scorers.cosine_scores(jnp.zeros((2, 3)), jnp.zeros((5, 3)), temperature=0.0), "temperature"),
        (lambda: scorers.bilinear_scores(BILINEAR, jnp.zeros((2, D)), jnp.zeros((5, D))), f"candidates of width {DC}"),
        (lambda: scorers.concat_mlp_scores(MLP, jnp.zeros((2, 2)), OTHER), f"inputs of width {D}"),
        (lambda: scorers.joint_scores(JOINT, jnp.zeros((2, 2)), OTHER), f"inputs of width {D}"),
        (
            lambda: scorers.init_concat_mlp(jax.random.key(0), input_size=2, candidate_size=2, hidden_sizes=()),
            "hidden_sizes must name",
        ),
        (lambda: scorers.init_bilinear(jax.random.key(0), input_size=0, candidate_size=2), "input_size"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
