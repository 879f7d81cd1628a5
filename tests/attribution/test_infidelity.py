"""Infidelity and sensitivity against captum with the same draws, and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution.infidelity import (
    gaussian_perturbation,
    infidelity,
    max_sensitivity,
    scaled_infidelity,
    subset_perturbation,
)

BATCH, TIME, DIM, SAMPLES = 3, 4, 2, 12


def score(x):
    return jnp.sum(jnp.sin(x) * x, axis=(1, 2))


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(0).normal(size=(BATCH, TIME, DIM))


def interleaved(draws):
    """[samples, batch, ...] -> example 0 with all samples, example 1, ...: captum's order."""
    return np.swapaxes(np.array(draws), 0, 1).reshape(-1, TIME, DIM)


@pytest.mark.parametrize("kind", ["gaussian", "subset"])
def test_infidelity_equals_captum(inputs, kind):
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("captum.metrics")
    with jax.enable_x64(True):
        x, key = jnp.asarray(inputs), jax.random.key(0)
        perturb = gaussian_perturbation(0.3) if kind == "gaussian" else subset_perturbation(baseline=0.2)
        gradient = jax.grad(lambda x: jnp.sum(score(x)))(x)
        draws = interleaved([perturb(k, x) for k in jax.random.split(key, SAMPLES)])
        for ours, normalize in ((infidelity, False), (scaled_infidelity, True)):
            expected = metrics.infidelity(
                lambda x: torch.sum(torch.sin(x) * x, dim=(1, 2)),
                lambda x: (torch.tensor(draws), x - torch.tensor(draws)),
                torch.tensor(inputs),
                torch.tensor(np.array(gradient)),
                n_perturb_samples=SAMPLES,
                normalize=normalize,
            )
            values = ours(score, x, gradient, key, perturb=perturb, num_samples=SAMPLES, chunk_size=5)
            np.testing.assert_allclose(values, expected.numpy(), rtol=1e-9)


def test_max_sensitivity_equals_captum(inputs):
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("captum.metrics")
    with jax.enable_x64(True):
        x, key = jnp.asarray(inputs), jax.random.key(1)
        draws = []

        def explain(x):
            return jnp.cos(x) * x

        def recorded(x):
            jax.debug.callback(lambda v: draws.append(np.array(v)), x, ordered=False)
            return explain(x)

        values = max_sensitivity(explain, x, key, radius=0.1, num_samples=SAMPLES, chunk_size=5)
        max_sensitivity(recorded, x, key, radius=0.1, num_samples=SAMPLES, chunk_size=1)
        jax.effects_barrier()
        moved = [draw.reshape(inputs.shape) for draw in draws if not np.array_equal(draw.ravel(), inputs.ravel())]
        assert len(moved) == SAMPLES and all(np.abs(draw - inputs).max() <= 0.1 for draw in moved)
        expected = metrics.sensitivity_max(
            lambda x: tuple(torch.cos(part) * part for part in (x if isinstance(x, tuple) else (x,))),
            torch.tensor(inputs),
            perturb_func=lambda x: torch.tensor(interleaved(moved)),
            n_perturb_samples=SAMPLES,
        )
        np.testing.assert_allclose(values, expected.numpy(), rtol=1e-9)


def test_the_gradient_of_a_linear_score_is_exact_and_a_multiple_is_so_up_to_scale():
    weights = jnp.arange(1.0, 1 + TIME * DIM).reshape(TIME, DIM)
    linear = lambda x: jnp.sum(x * weights, axis=(1, 2))  # noqa: E731
    x = jax.random.normal(jax.random.key(2), (BATCH, TIME, DIM))
    gradient = jnp.broadcast_to(weights, x.shape)
    options = dict(perturb=gaussian_perturbation(1.0), num_samples=400)
    np.testing.assert_allclose(infidelity(linear, x, gradient, jax.random.key(3), **options), 0, atol=1e-6)
    tripled = infidelity(linear, x, 3 * gradient, jax.random.key(3), **options)
    variance = 4 * jnp.sum(weights**2)  # E (2 I . w)^2 with unit noise; its standard error is sqrt(2 / 400) of it
    np.testing.assert_allclose(tripled, variance, rtol=4 * np.sqrt(2 / 400))
    np.testing.assert_allclose(
        scaled_infidelity(linear, x, 3 * gradient, jax.random.key(3), **options) / variance, 0, atol=1e-5
    )


def test_subsets_are_whole_tokens_never_padding_and_of_the_given_share():
    x = jnp.ones((200, TIME, DIM)) * 3
    mask = jnp.arange(TIME) < jnp.full((200, 1), 3)
    removed = subset_perturbation(baseline=1.0, probability=0.25, mask=mask)(jax.random.key(0), x)
    assert set(np.unique(removed)) == {0.0, 2.0} and np.all(removed[..., 0] == removed[..., 1])
    assert not np.any(removed[:, 3:])
    assert abs(np.mean(np.asarray(removed[:, :3, 0]) > 0) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 600)


def test_subsets_of_a_pair_choose_the_tokens_of_each_leaf_by_themselves():
    pair = {"left": jnp.ones((300, 4, 2)), "right": jnp.ones((300, 3, 5)) * 3}
    mask = {"left": np.arange(4) < np.full((300, 1), 3), "right": np.ones((300, 3), bool)}
    perturb = subset_perturbation(baseline={"left": 0.0, "right": 1.0}, probability=0.3, mask=mask)
    removed = perturb(jax.random.key(0), pair)
    assert set(np.unique(removed["left"])) == {0.0, 1.0} and set(np.unique(removed["right"])) == {0.0, 2.0}
    for leaf in removed.values():
        assert np.all(leaf == leaf[..., :1])  # whole tokens
    assert not np.any(removed["left"][:, 3])
    left, right = (np.asarray(removed[name][..., 0] > 0) for name in ("left", "right"))
    bound = 4 * np.sqrt(0.3 * 0.7 / 900)
    assert abs(left[:, :3].mean() - 0.3) < bound and abs(right.mean() - 0.3) < bound
    assert np.all(np.abs(np.corrcoef(left[:, :3].T, right.T)[:3, 3:]) < 4 / np.sqrt(300))


def test_max_sensitivity_of_a_pair_is_that_of_both_leaves_together():
    rng = np.random.default_rng(5)
    pair = {"left": rng.normal(size=(2, 3, 2)).astype(np.float32), "right": rng.normal(size=(2, 4)).astype(np.float32)}
    draws = []

    def explain(pair):
        jax.debug.callback(lambda pair: draws.append(jax.tree.map(np.array, pair)), pair, ordered=False)
        return {"left": jnp.cos(pair["left"]) * jnp.sum(pair["right"]), "right": jnp.sin(pair["right"])}

    def flat(pair):
        left = np.cos(pair["left"]) * np.sum(pair["right"])
        return np.concatenate([left.reshape(2, -1), np.sin(pair["right"])], axis=1)

    values = max_sensitivity(explain, pair, jax.random.key(1), radius=0.1, num_samples=4, chunk_size=1)
    jax.effects_barrier()
    # The explanation of the pair itself is among the draws: a change of zero, which is never the largest.
    changes = [np.linalg.norm(flat(draw) - flat(pair), axis=1) for draw in draws]
    assert len(changes) >= 5
    np.testing.assert_allclose(values, np.max(changes, axis=0) / np.linalg.norm(flat(pair), axis=1), rtol=1e-4)


def test_pytrees_give_what_their_concatenation_gives():
    x = jax.random.normal(jax.random.key(4), (BATCH, TIME, DIM))
    parts = {"a": x[:, :1], "b": x[:, 1:]}
    whole = lambda parts: jnp.concatenate([parts["a"], parts["b"]], axis=1)  # noqa: E731
    scale = lambda tree: jax.tree.map(lambda x: 0.1 * x, tree)  # noqa: E731
    options = dict(perturb=lambda key, tree: scale(tree), num_samples=2)
    split = infidelity(lambda p: score(whole(p)), parts, scale(parts), jax.random.key(0), **options)
    np.testing.assert_allclose(split, infidelity(score, x, scale(x), jax.random.key(0), **options), rtol=1e-5)
    scaled = scaled_infidelity(
        lambda p: score(whole(p)), parts, jax.tree.map(jnp.sin, parts), jax.random.key(0), **options
    )
    expected = scaled_infidelity(score, x, jnp.sin(x), jax.random.key(0), **options)
    np.testing.assert_allclose(scaled, expected, rtol=1e-3, atol=1e-6)


def test_a_constant_explanation_is_perfectly_stable():
    x = jnp.ones((2, 3))
    assert not np.any(max_sensitivity(lambda x: jnp.ones_like(x), x, jax.random.key(0)))
    # an explanation that is zero here: the change itself, at most the radius in each of three coordinates
    moved = max_sensitivity(lambda x: x - 1, x, jax.random.key(0), radius=0.5, num_samples=50)
    assert np.all((moved > 0.3) & (moved <= 0.5 * np.sqrt(3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, k, p: infidelity(score, x, x[:, :2], k, perturb=p), "shapes of the inputs"),
        (lambda x, k, p: infidelity(score, x, x, k, perturb=p, num_samples=0), "num_samples"),
        (lambda x, k, p: infidelity(jnp.sum, x, x, k, perturb=p), "one number per example"),
        (lambda x, k, p: infidelity(score, x, {"a": x}, k, perturb=p), "structure and shapes of the inputs"),
        (lambda x, k, p: infidelity(score, x, x, k, perturb=p, num_samples=2.5), "num_samples must be a whole number"),
        (lambda x, k, p: infidelity(score, x, x, k, perturb=p, chunk_size=1.5), "chunk_size must be a whole number"),
        (lambda x, k, p: max_sensitivity(jnp.sin, x, k, radius=0.0), "radius"),
        (lambda x, k, p: max_sensitivity(jnp.sin, x, k, num_samples=1.5), "num_samples must be a whole number"),
        (lambda x, k, p: subset_perturbation(probability=0.0), r"probability must be in \(0, 1\]: got 0.0"),
        (lambda x, k, p: subset_perturbation(mask=np.zeros((BATCH, TIME))), "leaves nothing .* in 3 of 3 examples"),
        (lambda x, k, p: subset_perturbation(mask=np.ones((BATCH, 2)))(k, x), r"mask must be \[3, 4\]"),
        (lambda x, k, p: subset_perturbation()(k, x[:, 0, 0]), r"inputs must be \[batch, time, ...\]"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((BATCH, TIME, DIM)), jax.random.key(0), gaussian_perturbation(0.1))
