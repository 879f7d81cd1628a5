"""Shapley values and interactions against brute force over permutations, captum, axioms and games solved by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution.feature_groups import token_groups
from jaxcore.attribution.shapley import exact_shapley, shapley_interaction, shapley_sampling

RNG = np.random.default_rng(0)
FIRST = RNG.standard_normal((4, 3))
BATCH, BASELINE = RNG.standard_normal((2, 4)), RNG.standard_normal((2, 4))


def network(x):
    return jnp.sum(jnp.tanh(x @ jnp.asarray(FIRST, x.dtype)) ** 2, axis=1) + x[:, 0] * x[:, 1]


def in_numpy(x):
    return np.sum(np.tanh(x @ FIRST) ** 2, axis=1) + x[:, 0] * x[:, 1]


def over_all_orders(value, players):
    """Shapley's own definition: the mean marginal contribution over all orders; value: frozenset -> number."""
    totals = np.zeros(players)
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        for place, player in enumerate(order):
            totals[player] += value(frozenset(order[: place + 1])) - value(frozenset(order[:place]))
    return totals / len(orders)


def game_of_row(row):
    def value(subset):
        kept = [i in subset for i in range(4)]
        return in_numpy(np.where(kept, BATCH[row], BASELINE[row])[None])[0]

    return value


def test_exact_values_are_the_mean_over_all_orders():
    expected = [over_all_orders(game_of_row(row), 4) for row in range(2)]
    with jax.enable_x64(True):
        values = exact_shapley(network, jnp.asarray(BATCH), baseline=BASELINE, chunk_size=5)
        np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-12)


def test_exact_values_equal_captum_with_groups():
    captum = pytest.importorskip("captum.attr", reason="the torch extra is not installed")
    torch = pytest.importorskip("torch")
    groups, first = np.array([[0, 1, 2, 1]]), torch.tensor(FIRST)
    method = captum.ShapleyValues(lambda x: torch.tanh(x @ first).pow(2).sum(1) + x[:, 0] * x[:, 1])
    expected = method.attribute(torch.tensor(BATCH), torch.tensor(BASELINE), feature_mask=torch.tensor(groups))
    with jax.enable_x64(True):
        values = exact_shapley(network, jnp.asarray(BATCH), baseline=BASELINE, groups=groups, chunk_size=8)
        np.testing.assert_allclose(values, expected.numpy(), rtol=1e-6, atol=1e-6)


def test_axioms():
    """Efficiency, symmetry (coordinates 0 and 1 of an even function), dummy (coordinate 2)."""
    score = lambda x: jnp.sin(x[:, 0] * x[:, 1] + x[:, 3])  # noqa: E731
    inputs = jnp.array([[0.7, 0.7, 5.0, -1.0], [1.3, 1.3, -2.0, 0.4]])
    for values in (
        exact_shapley(score, inputs, baseline=0.1, chunk_size=16),
        shapley_sampling(score, inputs, jax.random.key(0), baseline=0.1, num_permutations=3, chunk_size=12),
    ):
        change = score(inputs) - score(jnp.full_like(inputs, 0.1))
        np.testing.assert_allclose(np.sum(values, axis=1), change, rtol=1e-5)
        np.testing.assert_allclose(values[:, 2], 0, atol=1e-6)
    exact = exact_shapley(score, inputs, baseline=0.1, chunk_size=16)
    np.testing.assert_allclose(exact[:, 0], exact[:, 1], rtol=1e-5)


def test_each_row_plays_with_its_own_features():
    """A padded batch gives each text what it gets alone; padding gets exactly 0."""
    mask = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]])
    inputs = jnp.asarray(RNG.standard_normal((3, 4, 2)), jnp.float32)
    score_of = lambda mask: lambda x: jnp.tanh(jnp.sum(x * mask[..., None], axis=(1, 2))) ** 2 + x[:, 0, 0]  # noqa: E731
    groups = token_groups(mask)
    exact = exact_shapley(score_of(jnp.asarray(mask)), inputs, groups=groups, chunk_size=16)
    pairs = shapley_interaction(score_of(jnp.asarray(mask)), inputs, groups=groups, chunk_size=16)
    assert np.all(np.asarray(exact)[mask == 0] == 0)
    for row in range(3):
        one, alone = slice(row, row + 1), mask[row : row + 1]
        score = score_of(jnp.asarray(alone))
        single = exact_shapley(score, inputs[one], groups=token_groups(alone), chunk_size=16)
        np.testing.assert_allclose(exact[row], single[0], rtol=1e-4, atol=1e-6)
        players = alone.sum()
        expected = shapley_interaction(score, inputs[one], groups=token_groups(alone), chunk_size=16)[0]
        np.testing.assert_allclose(pairs[row, :players, :players], expected, rtol=1e-4, atol=1e-6)
        assert np.all(np.asarray(pairs)[row, players:] == 0) and np.all(np.asarray(pairs)[row, :, players:] == 0)


def test_sampling_is_within_its_standard_error_and_antithetic_orders_reduce_it():
    exact = np.asarray(exact_shapley(network, jnp.asarray(BATCH, jnp.float32), baseline=BASELINE, chunk_size=16))
    run = jax.jit(
        jax.vmap(
            lambda key, antithetic: shapley_sampling(
                network,
                jnp.asarray(BATCH, jnp.float32),
                key,
                baseline=BASELINE,
                num_permutations=20,
                antithetic=antithetic,
                chunk_size=80,
            ),
            in_axes=(0, None),
        ),
        static_argnums=1,
    )
    keys = jax.random.split(jax.random.key(1), 200)
    plain, paired = np.asarray(run(keys, False)), np.asarray(run(keys, True))
    for draws in (plain, paired):
        standard_error = draws.std(axis=0) / np.sqrt(len(keys))
        assert np.all(np.abs(draws.mean(axis=0) - exact) < 4.5 * standard_error + 1e-6)
    assert np.mean(paired.var(axis=0)) < 0.5 * np.mean(plain.var(axis=0))


def test_interaction_by_brute_force():
    def index(value, i, j, n=4):
        rest, total = [k for k in range(n) if k not in (i, j)], 0.0
        for size in range(n - 1):
            for chosen in itertools.combinations(rest, size):
                subset = frozenset(chosen)
                weight = 1 / ((n - 1) * len(list(itertools.combinations(rest, size))))
                total += weight * (value(subset | {i, j}) - value(subset | {i}) - value(subset | {j}) + value(subset))
        return total

    with jax.enable_x64(True):
        pairs = shapley_interaction(network, jnp.asarray(BATCH), baseline=BASELINE, chunk_size=6)
        singles = exact_shapley(network, jnp.asarray(BATCH), baseline=BASELINE, chunk_size=6)
        for row in range(2):
            value = game_of_row(row)
            expected = [[singles[row, i] if i == j else index(value, i, j) for j in range(4)] for i in range(4)]
            np.testing.assert_allclose(pairs[row], expected, rtol=1e-9, atol=1e-12)


def test_interaction_of_a_product_by_hand():
    """f = x1 x2 + x3: the pair does 6 together, and nothing else interacts."""
    score = lambda x: x[:, 0] * x[:, 1] + x[:, 2]  # noqa: E731
    pairs = shapley_interaction(score, jnp.array([[2.0, 3.0, 5.0]]), chunk_size=8)
    np.testing.assert_allclose(pairs[0], [[3, 6, 0], [6, 3, 0], [0, 0, 5]], atol=1e-6)


def test_a_row_of_one_feature_takes_the_whole_change():
    score = lambda x: jnp.exp(x[:, 0, 0]) + x[:, 1, 0]  # noqa: E731
    inputs, groups = jnp.array([[[1.0], [2.0]], [[1.0], [2.0]]]), token_groups(jnp.array([[1, 0], [1, 1]]))
    for values in (
        exact_shapley(score, inputs, groups=groups, chunk_size=4),
        shapley_sampling(score, inputs, jax.random.key(0), groups=groups, num_permutations=2, chunk_size=4),
    ):
        np.testing.assert_allclose(values[..., 0], [[np.e - 1, 0], [np.e - 1, 2]], rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 5, None])
def test_the_chunk_does_not_change_results(chunk_size):
    inputs = jnp.asarray(BATCH, jnp.float32)
    sampled = lambda chunk: shapley_sampling(  # noqa: E731
        network, inputs, jax.random.key(3), num_permutations=4, chunk_size=chunk
    )
    np.testing.assert_allclose(sampled(chunk_size), sampled(16), rtol=1e-5, atol=1e-6)
    exact = lambda chunk: exact_shapley(network, inputs, chunk_size=chunk)  # noqa: E731
    np.testing.assert_allclose(exact(chunk_size), exact(16), rtol=1e-5, atol=1e-6)


def test_works_under_grad_and_jit():
    """phi of a linear score is w d, so its derivative with respect to w is d."""
    inputs = jnp.array([[1.0, -2.0, 3.0]])

    def second(weight):
        return exact_shapley(lambda x: x @ weight, inputs, baseline=0.5, chunk_size=8)[0, 1]

    gradient = jax.jit(jax.grad(second))(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(gradient, [0, -2.5, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: exact_shapley(lambda x: jnp.sum(x, axis=1), jnp.ones((2, 17))), "up to 16 features: got 17"),
        (lambda x: shapley_interaction(lambda x: jnp.sum(x, axis=1), jnp.ones((2, 17))), "group the features"),
        (lambda x: shapley_sampling(network, x, jax.random.key(0), num_permutations=0), "num_permutations must be"),
        (lambda x: exact_shapley(network, x, baseline=jnp.ones(3)), "baseline of shape"),
        (lambda x: exact_shapley(network, x, groups=-jnp.ones((2, 4), int)), "leaves nothing to attribute"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(BATCH, jnp.float32))
