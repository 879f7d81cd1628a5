"""attend: against a float64 loop over heads and queries, and its implementations against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.models import attend


def heads(seed: int, shape=(2, 5, 3, 8), dtype=np.float32):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3))


def reference(queries, keys, values, mask):
    """Attention written out query by query in float64."""
    queries, keys, values = (np.asarray(x, np.float64) for x in (queries, keys, values))
    batch, time, count, size = queries.shape
    result = np.zeros_like(queries)
    for b, t, h in np.ndindex(batch, time, count):
        allowed = np.flatnonzero(np.broadcast_to(mask, (batch, count, time, time))[b, h, t])
        logits = keys[b, allowed, h] @ queries[b, t, h] / np.sqrt(size)
        weights = np.exp(logits - logits.max())
        result[b, t, h] = weights @ values[b, allowed, h] / weights.sum()
    return result


@pytest.mark.parametrize("implementation", ("auto", "explicit", "fused"))
@pytest.mark.parametrize("kind", ("padding", "causal", "per head"))
def test_against_float64(implementation, kind):
    q, k, v = heads(0)
    mask = {
        "padding": (np.arange(5) < np.array([5, 3])[:, None])[:, None, None],
        "causal": np.tril(np.ones((5, 5), bool))[None, None],
        "per head": np.random.default_rng(1).random((2, 3, 5, 5)) < 0.6,
    }[kind]
    mask = mask | np.eye(5, dtype=bool)
    got = attend(q, k, v, jnp.asarray(mask), implementation=implementation)
    np.testing.assert_allclose(got, reference(q, k, v, mask), atol=1e-5)


def test_no_mask_and_large_logits():
    q, k, v = heads(2)
    everywhere = np.ones((1, 1, 5, 5), bool)
    np.testing.assert_allclose(attend(q, k, v, None), reference(q, k, v, everywhere), atol=1e-5)
    got = attend(300 * q, k, v, None)
    np.testing.assert_allclose(got, reference(300 * q, k, v, everywhere), atol=1e-3)


@pytest.mark.parametrize("implementation", ("explicit", "fused"))
def test_a_query_without_sources_takes_the_mean(implementation):
    q, k, v = heads(3)
    got = attend(q, k, v, jnp.zeros((1, 1, 5, 5), bool), implementation=implementation)
    expected = np.broadcast_to(np.asarray(v).mean(1, keepdims=True), v.shape)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_gradients_of_implementations_agree():
    q, k, v = heads(4)
    mask = jnp.asarray((np.arange(5) < np.array([5, 3])[:, None])[:, None, None])

    def gradients(implementation):
        return jax.grad(lambda args: (attend(*args, mask, implementation=implementation) ** 3).sum())((q, k, v))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients("explicit"), gradients("fused"))


def test_softmax_is_float32_in_low_precision():
    """Two hundred equal sources: a bfloat16 sum of their weights would be off by percents."""
    q, k, _ = heads(5, (1, 200, 1, 8), jnp.bfloat16)
    got = attend(0 * q, k, jnp.ones_like(q), None, implementation="explicit")
    np.testing.assert_allclose(np.asarray(got, np.float32), 1, rtol=1e-2)
    lowered = jax.make_jaxpr(lambda *a: attend(*a, None, implementation="explicit"))(q, k, q)
    assert "exp" in str(lowered) and "bf16[1,1,200,200] = exp" not in str(lowered)


def test_weight_dropout_is_unbiased_and_falls_back():
    q, k, v = heads(6, (64, 5, 3, 8))
    plain = attend(q, k, v, None)
    keys = jax.random.split(jax.random.key(0), 400)
    drop = jax.vmap(lambda key: attend(q, k, v, None, dropout_rate=0.2, dropout_key=key))
    np.testing.assert_allclose(drop(keys).mean(0), plain, atol=0.25)
    np.testing.assert_allclose((drop(keys).mean(0) - plain).mean(), 0, atol=0.005)
    with pytest.raises(ValueError, match="no weight dropout, but attention_dropout=0"):
        attend(q, k, v, None, implementation="fused", dropout_rate=0.2, dropout_key=keys[0])


def test_unknown_implementation():
    with pytest.raises(ValueError, match="unknown attention implementation 'flash'"):
        attend(*heads(7), None, implementation="flash")


def test_only_explicit_weights_are_named():
    def text(implementation):
        return str(jax.make_jaxpr(lambda *a: attend(*a, None, implementation=implementation))(*heads(8)))

    assert "name=attention_weights" in text("explicit") and "name=attention_weights" not in text("fused")
