"""The queue against collections.deque, under jit and scan; the moving average against its closed form."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.losses import queue_info_nce
from jaxcore.losses.memory_queue import empty_queue, momentum_update, push

RNG = np.random.default_rng(5)


@pytest.mark.parametrize(("size", "batch"), [(8, 4), (7, 3), (5, 5), (6, 4)])
def test_it_holds_what_a_deque_holds(size, batch):
    queue, expected = empty_queue(size, 2), collections.deque(maxlen=size)
    pushed = jax.jit(push)
    for step in range(7):
        keys = RNG.standard_normal((batch, 2)).astype(np.float32)
        labels = np.arange(batch) + 100 * step
        queue = pushed(queue, jnp.asarray(keys), jnp.asarray(labels))
        expected.extend(zip(labels, keys, strict=True))
        filled = int(queue.filled)
        assert filled == len(expected)
        held = {int(label): np.asarray(key) for label, key in zip(queue.labels, queue.keys, strict=True) if label >= 0}
        assert set(held) == {label for label, _ in expected}
        for label, key in expected:
            np.testing.assert_array_equal(held[label], key)
        np.testing.assert_array_equal(np.isfinite(queue.log_weights), np.asarray(queue.labels) >= 0)


def test_the_oldest_keys_go_first_and_the_position_wraps():
    queue = empty_queue(5, 1)
    for start in (0, 3, 6):
        queue = push(queue, jnp.arange(start, start + 3.0)[:, None])
    np.testing.assert_array_equal(queue.keys[:, 0], [5, 6, 7, 8, 4])
    assert int(queue.position) == 4 and int(queue.filled) == 5


def test_it_scans_with_static_shapes_and_passes_no_gradient():
    def total(keys):
        queue, _ = jax.lax.scan(lambda queue, k: (push(queue, k), None), empty_queue(6, 3), keys)
        return jnp.sum(queue.keys)

    keys = jnp.asarray(RNG.standard_normal((4, 2, 3)), jnp.float32)
    value, gradient = jax.value_and_grad(total)(keys)
    assert value == pytest.approx(float(jnp.sum(keys[1:])), rel=1e-5) and not np.any(gradient)


def test_empty_slots_are_no_negatives():
    queries, keys = (jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32) for _ in range(2))
    queue = push(empty_queue(16, 3), keys[:2])
    partly = queue_info_nce(queries, keys, queue.keys, temperature=0.1, queue_log_weights=queue.log_weights)
    alone = queue_info_nce(queries, keys, keys[:2], temperature=0.1)
    assert partly == pytest.approx(float(alone), rel=1e-5)


def test_the_average_follows_its_closed_form():
    """After n moves towards a constant w from 0: (1 - m^n) w; bfloat16 leaves are averaged in float32."""
    online = {"a": jnp.array([1.0, -2.0]), "b": (jnp.full(3, 4.0, jnp.bfloat16),)}
    target = jax.tree.map(jnp.zeros_like, online)
    for _ in range(10):
        target = jax.jit(momentum_update)(target, online, 0.9)
    np.testing.assert_allclose(target["a"], (1 - 0.9**10) * online["a"], rtol=1e-5)
    np.testing.assert_allclose(target["b"][0].astype(jnp.float32), (1 - 0.9**10) * 4, rtol=2e-2)
    assert target["b"][0].dtype == jnp.bfloat16
    for momentum, kept in ((0.0, online), (1.0, target)):
        moved = momentum_update(target, online, momentum)
        np.testing.assert_allclose(moved["a"], kept["a"])


def test_no_gradient_flows_through_the_average():
    gradient = jax.grad(lambda w: jnp.sum(momentum_update({"w": jnp.ones(2)}, {"w": w}, 0.5)["w"]))(jnp.ones(2))
    assert not np.any(gradient)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: empty_queue(0, 4), "positive size and width: got size 0"),
        (lambda: push(empty_queue(4, 2), jnp.zeros((3, 5))), r"keys of width 2: got \(3, 5\)"),
        (lambda: push(empty_queue(4, 2), jnp.zeros((5, 2))), "queue of 4 cannot take 5 keys at once"),
        (lambda: push(empty_queue(4, 2), jnp.zeros((3, 2)), jnp.zeros(2, int)), "a label for each of 3 keys"),
        (lambda: momentum_update({"a": jnp.ones(1)}, {"b": jnp.ones(1)}, 0.9), "trees of one structure"),
        (lambda: momentum_update({"a": jnp.ones(1)}, {"a": jnp.ones(1)}, 1.1), r"momentum must be in \[0, 1\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
