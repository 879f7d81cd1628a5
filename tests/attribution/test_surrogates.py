"""LIME, KernelSHAP and ridge against scikit-learn, captum, exact Shapley values and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from jaxcore.attribution.feature_groups import token_groups
from jaxcore.attribution.shapley import exact_shapley
from jaxcore.attribution.surrogates import kernel_shap, lime, ridge_attribution

RNG = np.random.default_rng(0)
FIRST = RNG.standard_normal((5, 3))
BATCH, BASELINE = RNG.standard_normal((2, 5)), RNG.standard_normal((2, 5))


def network(x):
    return jnp.sum(jnp.tanh(x @ jnp.asarray(FIRST, x.dtype)) ** 2, axis=1) + x[:, 0] * x[:, 1]


def in_numpy(x):
    return np.sum(np.tanh(x @ FIRST) ** 2, axis=1) + x[:, 0] * x[:, 1]


def of_masked(x, mask):
    """A score of token embeddings [batch, time, dim] that depends on real tokens only, and jointly."""
    return jnp.tanh(jnp.sum(x * mask[..., None], axis=(1, 2))) ** 2 + jnp.sum(jnp.sin(x[..., 0]) * mask, axis=1)


def test_ridge_equals_scikit_learn():
    masks, scores = RNG.random((3, 20, 6)) < 0.7, RNG.standard_normal((3, 20))
    weights, present = RNG.random((3, 20)), np.array([[1] * 6, [1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0]])
    with jax.enable_x64(True):
        for sample_weights in (None, weights):
            values = ridge_attribution(masks, scores, present=present, sample_weights=sample_weights, alpha=0.7)
            for row in range(3):
                real = present[row] == 1
                fit = Ridge(alpha=0.7).fit(
                    masks[row][:, real], scores[row], None if sample_weights is None else weights[row]
                )
                np.testing.assert_allclose(values[row, real], fit.coef_, rtol=1e-9, atol=1e-12)
                assert np.all(np.asarray(values)[row, ~real] == 0)
    single = ridge_attribution(masks, scores.astype(np.float32), present=present, sample_weights=weights, alpha=0.7)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, values, atol=1e-6)


@pytest.mark.parametrize("similarity", ["inputs", "masks"])
def test_lime_is_the_weighted_ridge_of_its_samples(similarity):
    """The samples it drew, taken from the score, and fitted by scikit-learn."""
    seen = []

    def recorded(x):
        jax.debug.callback(lambda rows: seen.append(np.array(rows)), x)
        return network(x)

    options = {"num_samples": 40, "similarity": similarity, "kernel_width": 0.4, "alpha": 0.3, "keep_probability": 0.6}
    with jax.enable_x64(True):
        values = lime(recorded, jnp.asarray(BATCH), jax.random.key(0), baseline=BASELINE, chunk_size=1, **options)
        jax.effects_barrier()
    kept = np.abs(np.stack(seen) - BATCH) < 1e-5  # callbacks see float32
    whole = np.flatnonzero(kept.all(axis=(1, 2)))[0]  # the input itself, which lime measures the samples from
    kept = np.delete(kept, whole, axis=0)
    assert len(kept) == 40 and 0.5 < kept.mean() < 0.7
    for row in range(2):
        samples = np.where(kept[:, row], BATCH[row], BASELINE[row])
        cosines = samples @ BATCH[row] / np.linalg.norm(samples, axis=1) / np.linalg.norm(BATCH[row])
        if similarity == "masks":
            cosines = np.sqrt(kept[:, row].mean(axis=1))
        weights = np.exp(-((1 - cosines) ** 2) / (2 * 0.4**2))
        fit = Ridge(alpha=0.3).fit(kept[:, row], in_numpy(samples), weights)
        np.testing.assert_allclose(values[row], fit.coef_, rtol=1e-8, atol=1e-10)


def test_lime_equals_captum_within_the_standard_error():
    captum_lime = pytest.importorskip("captum.attr._core.lime", reason="the torch extra is not installed")
    torch = pytest.importorskip("torch")
    from captum._utils.models.linear_model import SkLearnRidge

    first, groups = torch.tensor(FIRST), np.array([[0, 1, 1, 2, 3]])
    method = captum_lime.Lime(
        lambda x: torch.tanh(x @ first).pow(2).sum(1) + x[:, 0] * x[:, 1],
        interpretable_model=SkLearnRidge(alpha=1.0),
        similarity_func=captum_lime.get_exp_kernel_similarity_function("cosine", 0.5),
    )
    torch.manual_seed(0)
    inputs, baseline, mask = torch.tensor(BATCH), torch.tensor(BASELINE), torch.tensor(groups)
    options = {"baselines": baseline, "feature_mask": mask, "n_samples": 100}
    theirs = np.stack([method.attribute(inputs, **options).numpy() for _ in range(8)])
    run = jax.jit(
        jax.vmap(
            lambda key: lime(
                network,
                jnp.asarray(BATCH, jnp.float32),
                key,
                baseline=BASELINE,
                groups=groups,
                num_samples=100,
                kernel_width=0.5,
                chunk_size=100,
            )
        )
    )
    ours = np.asarray(run(jax.random.split(jax.random.key(0), 400)))
    standard_error = ours.std(axis=0) * np.sqrt(1 / 8 + 1 / 400)
    assert np.all(np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * standard_error)
    np.testing.assert_array_equal(ours[..., 1], ours[..., 2])  # one feature, one coefficient


def test_lime_of_a_linear_score_is_weight_times_difference():
    weights, baseline = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.5, 0.0, -1.0])
    inputs = jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]])
    options = {"baseline": baseline, "num_samples": 64, "alpha": 1e-5, "chunk_size": 64}
    values = lime(lambda x: x @ weights + 100.0, inputs, jax.random.key(0), **options)
    np.testing.assert_allclose(values, weights * (inputs - baseline), atol=1e-4)


def test_all_subsets_give_exact_shapley_values():
    with jax.enable_x64(True):
        inputs = jnp.asarray(BATCH)
        exact = exact_shapley(network, inputs, baseline=BASELINE, chunk_size=32)
        values = kernel_shap(network, inputs, jax.random.key(0), baseline=BASELINE, num_samples=30, chunk_size=7)
        np.testing.assert_allclose(values, exact, rtol=1e-8, atol=1e-10)
    single = kernel_shap(network, inputs.astype(jnp.float32), jax.random.key(0), baseline=BASELINE, chunk_size=32)
    np.testing.assert_allclose(single, exact, atol=1e-5)


@pytest.mark.parametrize("num_samples", [1000, 64])
def test_each_row_plays_with_its_own_features(num_samples):
    """Enumerated (all subsets of seven) and sampled: every row sums to its own change, padding gets exactly 0."""
    mask = np.array([[1] * 7, [0, 1, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1]])
    inputs, real = jnp.asarray(RNG.standard_normal((4, 7, 2)), jnp.float32), jnp.asarray(mask)
    score = lambda x: of_masked(x, real)  # noqa: E731
    values = np.asarray(
        kernel_shap(score, inputs, jax.random.key(1), groups=token_groups(mask), num_samples=num_samples, chunk_size=64)
    )
    assert np.all(values[mask == 0] == 0)
    np.testing.assert_allclose(values[..., 0].sum(axis=1), score(inputs) - score(inputs * 0), atol=1e-5)
    exact = np.asarray(exact_shapley(score, inputs, groups=token_groups(mask), chunk_size=128))
    # Two features have two proper subsets, which every pair of samples holds: exact however few are drawn.
    np.testing.assert_allclose(values[2:], exact[2:], atol=1e-5)
    np.testing.assert_allclose(values, exact, atol=1e-5 if num_samples == 1000 else 0.5)


def test_lime_of_a_padded_row_is_that_of_the_row_alone():
    """The draws, the kernel and the regression of a row see neither its padding nor the rest of the batch."""
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    inputs = jnp.asarray(RNG.standard_normal((2, 5, 2)), jnp.float32)
    options = {"num_samples": 50, "chunk_size": 50, "kernel_width": 0.3}
    key, real = jax.random.key(2), jnp.asarray(mask)
    padded = lime(lambda x: of_masked(x, real), inputs, key, groups=token_groups(mask), **options)
    alone = lime(
        lambda x: of_masked(x, real[:1, :3]), inputs[:1, :3], key, groups=token_groups(mask[:1, :3]), **options
    )
    np.testing.assert_allclose(padded[:1, :3], alone, rtol=1e-4, atol=1e-6)
    assert np.all(np.asarray(padded)[0, 3:] == 0)
    in_jit = jax.jit(lambda x, m: lime(lambda x: of_masked(x, m), x, key, groups=token_groups(m), **options))
    np.testing.assert_allclose(in_jit(inputs, real), padded, rtol=1e-4, atol=1e-6)


def test_samples_of_kernel_shap_are_within_their_standard_error():
    inputs = jnp.asarray(RNG.standard_normal((2, 8)), jnp.float32)
    mixing = jnp.asarray(RNG.standard_normal((8, 3)), jnp.float32)
    score = lambda x: jnp.sum(jnp.tanh(x @ mixing) ** 2, axis=1)  # noqa: E731
    exact = np.asarray(exact_shapley(score, inputs, chunk_size=256))
    run = jax.jit(jax.vmap(lambda key: kernel_shap(score, inputs, key, num_samples=120, chunk_size=120)))
    draws = np.asarray(run(jax.random.split(jax.random.key(0), 200)))
    error, standard_error = np.abs(draws.mean(axis=0) - exact), draws.std(axis=0) / np.sqrt(200)
    # A least-squares fit of n samples has a bias of the order of its variance, far below one draw's spread.
    assert np.all(error < 4 * standard_error + 0.02 * draws.std(axis=0))
    assert draws.std(axis=0).mean() < 0.5 * np.abs(exact).mean()


@pytest.mark.parametrize("seed", range(6))
def test_too_few_samples_give_the_fit_closest_to_equal_shares(seed):
    """One value in the set that was drawn, another outside."""
    inputs = jnp.asarray(RNG.standard_normal((1, 20)), jnp.float32)
    score = lambda x: jnp.sum(x**3, axis=1)  # noqa: E731
    values = kernel_shap(score, inputs, jax.random.key(seed), num_samples=2, chunk_size=2)
    steps = np.diff(np.sort(np.asarray(values)[0]))
    assert np.sum(steps > 1e-3) == 1 and np.sum(steps > 1e-5) == 1
    np.testing.assert_allclose(np.sum(values), score(inputs)[0], rtol=1e-4)


@pytest.mark.parametrize("method", [lime, kernel_shap])
def test_memory_does_not_grow_with_the_samples(method):
    """The designs alone of 100,000 samples would take 12 MB, their outer products 200 MB."""
    score = lambda x: jnp.sum(jnp.tanh(x), axis=(1, 2))  # noqa: E731
    groups = token_groups(np.ones((2, 16)))
    options = {"groups": groups, "num_samples": 100_000, "memory_budget": 2 * 2**20}
    run = jax.jit(lambda x: method(score, x, jax.random.key(0), **options))
    assert run.lower(jnp.ones((2, 16, 8))).compile().memory_analysis().temp_size_in_bytes < 4 * 2**20


@pytest.mark.parametrize("method", [lime, kernel_shap])
def test_the_chunk_does_not_change_results(method):
    inputs = jnp.asarray(RNG.standard_normal((2, 6)), jnp.float32)
    score = lambda x: jnp.sum(jnp.sin(x), axis=1) * x[:, 0]  # noqa: E731
    first, *others = (method(score, inputs, jax.random.key(0), num_samples=50, chunk_size=chunk) for chunk in (50, 8))
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-5)


def test_rows_sharded_over_devices_give_the_same_values():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    inputs = jnp.asarray(RNG.standard_normal((8, 4, 2)), jnp.float32)
    mask = jnp.asarray((RNG.random((8, 4)) < 0.6) | (np.arange(4) == 0))
    options = {"num_samples": 10, "chunk_size": 5}

    @jax.jit
    def run(x, mask):
        return kernel_shap(lambda x: of_masked(x, mask), x, jax.random.key(0), groups=token_groups(mask), **options)

    spread = run(jax.device_put(inputs, rows), jax.device_put(mask, rows))
    assert spread.sharding.is_equivalent_to(rows, spread.ndim)
    np.testing.assert_allclose(spread, run(inputs, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, k: lime(network, x, k, similarity="cosine"), "unknown similarity 'cosine'"),
        (lambda x, k: lime(network, x, k, kernel_width=0.0), "kernel_width must be positive"),
        (lambda x, k: lime(network, x, k, alpha=0.0), "alpha must be positive"),
        (lambda x, k: lime(network, x, k, keep_probability=1.0), "keep_probability must lie between"),
        (lambda x, k: lime(network, x, k, num_samples=0), "num_samples must be at least 1"),
        (
            lambda x, k: kernel_shap(lambda x: jnp.sum(x, axis=1), jnp.ones((2, 2000)), k, memory_budget=10**6),
            "a regression on 2000 features",
        ),
        (lambda x, k: kernel_shap(lambda x: network(x) * jnp.nan, x, k, chunk_size=8), "not finite in 2 of 2"),
        (lambda x, k: ridge_attribution(jnp.ones((2, 3, 4)), jnp.ones((2, 4))), "masks must be"),
        (lambda x, k: ridge_attribution(jnp.ones((1, 3, 4)), jnp.ones((1, 3), int)), "scores must be floating"),
        (
            lambda x, k: ridge_attribution(jnp.ones((1, 3, 4)), jnp.ones((1, 3)), present=jnp.zeros((1, 4))),
            "leaves nothing to attribute",
        ),
        (
            lambda x, k: ridge_attribution(jnp.ones((1, 3, 4)), jnp.ones((1, 3)), sample_weights=jnp.ones(3)),
            "sample_weights must be",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(BATCH, jnp.float32), jax.random.key(0))
