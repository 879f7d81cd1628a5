"""Cascading randomisation: which parameters change at each stage, and that it tells a model's explanation from none."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcore.attribution.cascading_randomisation import (
    cascaded_parameters,
    cascading_randomisation,
    redrawn_parameters,
)

WIDTH = 5


def parameters(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "layers": {"kernel": jax.random.normal(keys[0], (3, WIDTH, WIDTH)), "bias": jnp.zeros((3, WIDTH))},
        "layers_norm": jnp.full(WIDTH, float(seed)),
        "head": {"kernel": jax.random.normal(keys[1], (WIDTH,))},
    }


def gradient(params, inputs):
    def score(x):
        for kernel in params["layers"]["kernel"]:
            x = jnp.tanh(x @ kernel)
        return jnp.sum(x @ params["head"]["kernel"])

    return jax.grad(score)(inputs)


PATHS = ["head", ("layers", 2), ("layers", -2), "layers/kernel"]


def test_stages_replace_paths_one_after_the_other():
    params, fresh = parameters(0), parameters(1)
    stages = list(cascaded_parameters(params, fresh, PATHS))
    from_fresh = [set(), {2}, {1, 2}, {0, 1, 2}]
    for stage, layers in zip(stages, from_fresh, strict=True):
        np.testing.assert_array_equal(stage["head"]["kernel"], fresh["head"]["kernel"])
        np.testing.assert_array_equal(stage["layers_norm"], params["layers_norm"])  # a longer name, not in the subtree
        for layer in range(3):
            source = fresh if layer in layers else params
            np.testing.assert_array_equal(stage["layers"]["kernel"][layer], source["layers"]["kernel"][layer])


def test_agreement_of_each_stage_is_the_correlation_of_explanations():
    params, fresh = parameters(0), parameters(1)
    inputs = jax.random.normal(jax.random.key(2), (4, WIDTH))
    check = cascading_randomisation(lambda p: gradient(p, inputs), params, fresh, PATHS)
    assert check.paths == tuple(PATHS) and check.agreement.shape == (4, 4)
    original = gradient(params, inputs)
    for row, stage in zip(check.agreement, cascaded_parameters(params, fresh, PATHS), strict=True):
        pairs = zip(original, gradient(stage, inputs), strict=True)
        np.testing.assert_allclose(row, [stats.spearmanr(a, b).statistic for a, b in pairs], atol=1e-6)


def test_one_stage_of_parameters_is_alive_at_a_time():
    params, fresh = parameters(0), parameters(1)
    made = []

    def explain(stage):
        made.append(weakref.ref(stage["layers"]["kernel"]))
        gc.collect()
        assert [reference() is not None for reference in made[1:]].count(True) <= 1  # made[0]: the trained ones
        return jnp.ones((2, WIDTH)).at[:, 0].set(stage["layers"]["kernel"][0, :2, 0])

    layers = [("layers", 2), ("layers", 1), ("layers", 0)]
    cascading_randomisation(explain, params, fresh, layers)
    assert len(made) == 4
    stages = cascaded_parameters(params, fresh, layers)
    first = weakref.ref(next(stages)["layers"]["kernel"])
    gc.collect()
    assert first() is None  # the iterator itself keeps nothing


def test_a_wrong_path_is_reported_before_any_work():
    calls = []
    for paths in (["head", "nothing"], ["head", ("layers", 7)]):
        with pytest.raises(ValueError, match=r"no parameters under|no entry 7"):
            cascaded_parameters(parameters(0), parameters(1), paths)
        with pytest.raises(ValueError, match=r"no parameters under|no entry 7"):
            cascading_randomisation(calls.append, parameters(0), parameters(1), paths)
    assert not calls


def test_an_explanation_that_ignores_the_model_never_changes():
    inputs = jax.random.normal(jax.random.key(2), (64, WIDTH))
    edges = cascading_randomisation(lambda p: inputs, parameters(0), parameters(1), PATHS)
    np.testing.assert_allclose(edges.agreement, 1, atol=1e-6)
    explained = cascading_randomisation(lambda p: gradient(p, inputs), parameters(0), parameters(1), PATHS)
    assert abs(np.mean(explained.agreement[-1])) < 0.4


def test_padding_is_not_compared():
    tokens, mask = jax.random.normal(jax.random.key(0), (2, 4, 3)), jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])

    def explain(params):
        noise = 3 * jnp.sin(params["head"]["kernel"][0] * jnp.arange(12.0).reshape(4, 3))
        return jnp.where(mask[..., None] > 0, tokens, noise)

    check = cascading_randomisation(explain, parameters(0), parameters(1), ["head"], mask=mask)
    np.testing.assert_allclose(check.agreement, 1, atol=1e-6)
    assert np.all(cascading_randomisation(explain, parameters(0), parameters(1), ["head"]).agreement < 0.999)


def test_redrawn_parameters_keep_mean_and_spread_only():
    params = {
        "w": 3 + 2 * jax.random.normal(jax.random.key(0), (200, 50)),
        "scale": jnp.ones(7),
        "v": jnp.zeros((200, 50)),
    }
    redrawn = redrawn_parameters(params, jax.random.key(1))
    assert abs(np.mean(redrawn["w"]) - 3) < 0.1 and abs(np.std(redrawn["w"]) - 2) < 0.05
    assert abs(np.corrcoef(redrawn["w"].ravel(), params["w"].ravel())[0, 1]) < 0.05
    np.testing.assert_array_equal(redrawn["scale"], 1)


@pytest.mark.parametrize(
    ("paths", "fresh", "message"),
    [
        (["nothing"], None, "no parameters under 'nothing': there are head/kernel, layers/bias"),
        ([("layers", 3)], None, "no entry 3"),
        ([("layers", 0.5)], None, "no entry 0.5"),
        ([], None, "name no parameters"),
        (["head"], {"head": jnp.ones(2)}, "structure of the trained"),
    ],
)
def test_bad_paths_are_refused(paths, fresh, message):
    with pytest.raises(ValueError, match=message):
        cascading_randomisation(lambda p: jnp.ones((2, 3)), parameters(0), fresh or parameters(1), paths)


def test_other_shapes_are_refused():
    params = parameters(0)
    wrong = params | {"layers_norm": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"fresh layers_norm must be \[5\]: got \[2\]"):
        cascading_randomisation(lambda p: jnp.ones((2, 3)), params, wrong, ["head"])
    with pytest.raises(ValueError, match="the mask's shape"):
        cascading_randomisation(lambda p: jnp.ones((2, 3)), params, params, ["head"], mask=jnp.ones((2, 4)))
