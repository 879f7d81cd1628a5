"""MAUVE: the area in closed form and by fine integration, equal and far sets, what it must not depend on."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.mauve import divergence_area, last_token_states, mauve
from jaxcore.models import Decoder, DecoderConfig

RNG = np.random.default_rng(0)


def test_equal_histograms_have_area_one_and_disjoint_ones_the_beta_integral():
    assert divergence_area(np.array([3, 5, 2]), np.array([6, 10, 4])) == pytest.approx(1)
    # x = (1 - w)^c, y = w^c: the area is c B(c + 1, c)
    for scale, expected in ((1.0, 0.5), (2.0, 1 / 6), (5.0, 5 * 120 * 24 / 3628800)):
        area = divergence_area(np.array([1, 0]), np.array([0, 1]), scale=scale, num_points=2001)
        assert area == pytest.approx(expected, rel=1e-3)


def test_few_points_come_near_a_fine_integral_by_loops():
    p, q, scale = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.25, 0.25, 0.25, 0.25]), 5.0
    points = []
    for weight in np.linspace(1e-9, 1 - 1e-9, 20001):
        mixture = weight * p + (1 - weight) * q
        divergence = [sum(a * np.log(a / r) for a, r in zip(h, mixture, strict=True) if a > 0) for h in (q, p)]
        points.append(np.exp(-scale * np.array(divergence)))
    x, y = np.array([(0, 1), *points, (1, 0)]).T
    order = np.lexsort((-y, x))
    exact = np.trapezoid(y[order], x[order])
    assert 0.05 < exact < 0.95
    assert divergence_area(p, q, num_points=5001) == pytest.approx(exact, abs=1e-3)
    assert divergence_area(p, q) == pytest.approx(exact, abs=0.03)
    assert divergence_area(p, q) == pytest.approx(divergence_area(q, p), abs=1e-9)


def test_sets_from_one_source_are_close_and_from_two_far():
    people = RNG.standard_normal((200, 6)) + 2
    same = RNG.standard_normal((200, 6)) + 2
    other = RNG.standard_normal((200, 6)) * 0.2 + [4, -4, 0, 0, 0, 0]
    near, far = mauve(people, same), mauve(people, other)
    assert near > 0.9 and far < 0.1
    mixed = np.concatenate([same[:100], other[:100]])
    assert far < mauve(people, mixed) < near
    assert mauve(people, people) == pytest.approx(1)
    assert mauve(7.0 * people, 7.0 * same) == pytest.approx(near, abs=1e-6)  # lengths do not matter
    assert mauve(people, same) == near


def test_states_are_those_of_the_last_real_token():
    model = Decoder(
        DecoderConfig(vocab_size=9, num_layers=1, hidden_size=8, num_heads=2, num_key_value_heads=2, head_size=4,
                      intermediate_size=8, max_positions=8)
    )  # fmt: skip
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"])
    texts = [[1, 2, 3], [4], [5, 6, 7, 8, 1, 2, 3]]
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    found = last_token_states(model, params, texts, batch_size=2, mesh=mesh, max_length=6)
    for row, text in zip(found, texts, strict=True):
        ids = jnp.asarray([text[:6]])
        alone = model.apply({"params": params}, ids, method="trunk")[0][0, -1]
        np.testing.assert_allclose(row, alone, atol=1e-5)
    with pytest.raises(ValueError, match="every text needs a token"):
        last_token_states(model, params, [[1], []], batch_size=2, mesh=mesh, max_length=6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generated": np.zeros((4, 2))}, "of one width"),
        ({"generated": np.zeros((1, 3))}, "two or more texts"),
        ({"generated": np.full((4, 3), np.nan)}, "finite"),
        ({"num_clusters": 9}, "num_clusters must be in 2..8"),
        ({"explained_variance": 0.0}, "explained_variance must be"),
    ],
)
def test_bad_sets_are_refused(change, message):
    given = {"reference": RNG.standard_normal((4, 3)), "generated": RNG.standard_normal((4, 3)), **change}
    with pytest.raises(ValueError, match=message):
        mauve(**given)


@pytest.mark.parametrize("given", [([1, 0], [0, 0]), ([1, 0], [1, 0, 0]), ([1, -1], [1, 1])])
def test_bad_histograms_are_refused(given):
    with pytest.raises(ValueError, match="two histograms"):
        divergence_area(*map(np.array, given))
