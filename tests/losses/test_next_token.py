"""Next-token log-likelihood against float64 loops: masks, answers only, packed documents, chunks, sharded batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, batch_sharding, make_mesh
from jaxcore.losses.next_token import (
    chunked_next_token_log_probs,
    counted_targets,
    next_token_log_probs,
    next_token_loss,
)

RNG = np.random.default_rng(0)
BATCH, TIME, WIDTH, VOCABULARY = 8, 7, 5, 11
HIDDEN = RNG.standard_normal((BATCH, TIME, WIDTH))
HEAD = 2 * RNG.standard_normal((WIDTH, VOCABULARY))
IDS = RNG.integers(0, VOCABULARY, (BATCH, TIME))
REAL = np.arange(TIME) < np.array([7, 5, 2, 1, 7, 6, 4, 3])[:, None]


def by_loops(logits, ids, mask, answer=None, segments=None):
    values = np.zeros((BATCH, TIME - 1))
    counted = np.zeros((BATCH, TIME - 1), bool)
    for b in range(BATCH):
        for t in range(1, TIME):
            ok = mask[b, t] and mask[b, t - 1]
            ok = ok and (answer is None or answer[b, t])
            ok = ok and (segments is None or segments[b, t] == segments[b, t - 1])
            if ok:
                row = logits[b, t - 1]
                values[b, t - 1] = row[ids[b, t]] - np.log(np.sum(np.exp(row)))
                counted[b, t - 1] = True
    return values, counted


@pytest.mark.parametrize("side", ["right", "left"])
def test_it_is_the_mean_over_real_targets(side):
    mask = REAL if side == "right" else REAL[:, ::-1]
    logits = HIDDEN @ HEAD
    values, counted = by_loops(logits, IDS, mask)
    loss = next_token_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(IDS), jnp.asarray(mask))
    assert loss == pytest.approx(-values.sum() / counted.sum(), rel=1e-5)


def test_answers_only_and_packed_documents():
    logits = HIDDEN @ HEAD
    answer = RNG.random((BATCH, TIME)) < 0.5
    segments = np.where(REAL, 1 + (np.arange(TIME) >= 3), 0)
    values, counted = by_loops(logits, IDS, REAL, answer, segments)
    found = next_token_log_probs(
        jnp.asarray(logits, jnp.float32), jnp.asarray(IDS), target_mask=jnp.asarray(answer),
        segment_ids=jnp.asarray(segments),
    )  # fmt: skip
    np.testing.assert_array_equal(found.counted, counted)
    np.testing.assert_allclose(found.values, values, atol=1e-5)
    np.testing.assert_allclose(found.sums(), values.sum(1), atol=1e-5)
    np.testing.assert_allclose(found.means(), values.sum(1) / np.maximum(counted.sum(1), 1), atol=1e-5)
    assert not found.counted[:, 2].any()  # token 3 begins the second document


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_have_the_value_and_the_gradient_of_the_whole(chunk):
    answer = jnp.asarray(RNG.random((BATCH, TIME)) < 0.7)
    ids, mask = jnp.asarray(IDS), jnp.asarray(REAL)

    def whole(hidden, head):
        return next_token_loss(hidden @ head, ids, mask, target_mask=answer)

    def in_chunks(hidden, head):
        return chunked_next_token_log_probs(
            hidden, ids, mask, to_logits=lambda rows: rows @ head, chunk=chunk, target_mask=answer
        ).negative_mean()

    arguments = jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(HEAD, jnp.float32)
    value, gradients = jax.value_and_grad(whole, (0, 1))(*arguments)
    other, others = jax.value_and_grad(in_chunks, (0, 1))(*arguments)
    assert other == pytest.approx(float(value), rel=1e-6)
    for one, two in zip(gradients, others, strict=True):
        assert np.abs(one).max() > 1e-3
        np.testing.assert_allclose(two, one, atol=1e-6)


def test_chunks_never_hold_the_logits_of_all_positions():
    time, vocabulary = 64, 512
    head = jnp.ones((WIDTH, vocabulary))

    def loss(hidden, ids):
        found = chunked_next_token_log_probs(hidden, ids, to_logits=lambda rows: rows @ head, chunk=8)
        return found.negative_mean()

    hidden = jax.ShapeDtypeStruct((4, time, WIDTH), jnp.float32)
    ids = jax.ShapeDtypeStruct((4, time), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(hidden, ids).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * time * vocabulary * 4


def test_bfloat16_logits_are_summed_in_float32_and_extreme_ones_stay_finite():
    logits = jnp.asarray(HIDDEN @ HEAD, jnp.bfloat16)
    values, counted = by_loops(np.asarray(logits, np.float64), IDS, REAL)
    loss = next_token_loss(logits, jnp.asarray(IDS), jnp.asarray(REAL))
    assert loss.dtype == jnp.float32 and loss == pytest.approx(-values.sum() / counted.sum(), rel=1e-5)
    assert np.isfinite(next_token_loss(jnp.full((1, 3, 4), 1e30), jnp.zeros((1, 3), jnp.int32)))


def test_no_target_is_no_loss():
    logits = jnp.asarray(HIDDEN @ HEAD, jnp.float32)
    loss, gradient = jax.value_and_grad(next_token_loss)(logits, jnp.asarray(IDS), jnp.zeros((BATCH, TIME), bool))
    assert loss == 0 and not np.any(gradient)


def test_a_batch_over_devices_has_the_loss_of_the_whole_batch():
    mesh = make_mesh(MeshConfig(data=8))
    logits, ids, mask = (jax.device_put(x, batch_sharding(mesh)) for x in ((HIDDEN @ HEAD).astype("f4"), IDS, REAL))
    values, counted = by_loops(HIDDEN @ HEAD, IDS, REAL)
    assert jax.jit(next_token_loss)(logits, ids, mask) == pytest.approx(-values.sum() / counted.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": jnp.zeros((2, 4), jnp.int32)}, "logits \\[batch, time, vocab\\]"),
        ({"input_ids": jnp.full((2, 3), 9)}, "0..4"),
        ({"mask": jnp.ones((2, 2))}, "mask must have the shape"),
        ({"segment_ids": jnp.ones((3, 3), jnp.int32)}, "segment_ids must have the shape"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    given = {"logits": jnp.zeros((2, 3, 5)), "input_ids": jnp.zeros((2, 3), jnp.int32), **change}
    with pytest.raises(ValueError, match=message):
        next_token_loss(given.pop("logits"), given.pop("input_ids"), **given)


def test_more_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="two or more tokens"):
        counted_targets(jnp.zeros((2, 1), jnp.int32))
    with pytest.raises(ValueError, match="chunk must be 1"):
        chunked_next_token_log_probs(
            jnp.zeros((1, 3, 2)), jnp.zeros((1, 3), jnp.int32), to_logits=lambda rows: rows, chunk=0
        )
