"""The pooled classifier against its equation, and the zero vector that no gradient moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.models.pooled_embeddings import PooledClassifier, PooledClassifierConfig

IDS = np.array([[3, 5, 5, 0], [1, 0, 0, 0]])
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize(("pooling", "scale"), [("mean", 4.0), ("sum", 1 / 3)])
def test_logits_follow_the_equation(pooling, scale):
    config = PooledClassifierConfig(8, 3, embedding_size=4, hidden_size=5, pooling=pooling, pool_scale=scale)
    model = PooledClassifier(config)
    boxed = model.init(jax.random.key(0), IDS, MASK)["params"]
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(unbox(boxed)))
    vectors = params["table"][IDS] * (IDS != 0)[..., None]
    pooled = (vectors * MASK[..., None]).sum(1)
    pooled = pooled / MASK.sum(1, keepdims=True) if pooling == "mean" else pooled
    hidden = np.maximum(scale * pooled @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    expected = hidden @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(model.apply({"params": boxed}, IDS, MASK), expected, rtol=1e-4, atol=1e-5)


def test_id_0_stays_zero():
    model = PooledClassifier(PooledClassifierConfig(8, 3, embedding_size=4, hidden_size=32))
    params = unbox(model.init(jax.random.key(0), IDS, MASK)["params"])
    gradient = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, IDS, MASK) ** 2))(params)
    np.testing.assert_array_equal(gradient["table"][0], 0)
    assert np.abs(gradient["table"][5]).max() > 0
    np.testing.assert_array_equal(model.apply({"params": params}, IDS, method="embed")[0, 3], 0)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="hidden_size must be positive: got 0"):
        PooledClassifierConfig(hidden_size=0)
    with pytest.raises(ValueError, match="pool_scale must be positive"):
        PooledClassifierConfig(pool_scale=0)


def unbox(params):
    from flax.core import meta

    return meta.unbox(params)
