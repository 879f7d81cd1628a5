"""Suppression against a forward pass written out with the columns masked, and its arithmetic by scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from scipy import special, stats

from jaxcore.attribution.attention_suppression import (
    sentence_log_means,
    suppressed_divergences,
    suppression_matrix,
)
from jaxcore.models import DECODER_FAMILIES, Decoder, DecoderConfig

CONFIG = DecoderConfig(
    architecture="qwen2", **DECODER_FAMILIES["qwen2"], vocab_size=13, num_layers=2, hidden_size=16, num_heads=4,
    num_key_value_heads=2, head_size=8, intermediate_size=24, max_positions=32,
)  # fmt: skip
TIME = 10
SPANS = np.array([[[2, 4], [4, 7], [7, 10]], [[3, 5], [5, 9], [0, 0]]])
"""Of two texts; the second is padded by a token on the right and has one sentence less."""


@pytest.fixture(scope="module")
def texts():
    model = Decoder(CONFIG)
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32)))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    ids = jnp.asarray(rng.integers(0, 13, (2, TIME)), jnp.int32)
    mask = jnp.ones((2, TIME), jnp.int32).at[1, 9].set(0)
    return model, params, ids, mask


@pytest.fixture(scope="module")
def divergences(texts):
    model, *arrays = texts
    run = jax.jit(functools.partial(suppressed_divergences, model, chunk_size=2, time_block=4))
    return np.asarray(run(*arrays, jnp.asarray(SPANS)))


def rotated(x, places, theta=10000.0):
    half = x.shape[-1] // 2
    angles = places[:, None] / theta ** (np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1)


def rms(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.norm_epsilon) * scale


def by_hand(params, ids, hidden_columns):
    """Logits of one text in float64, the columns masked in every layer: nothing of the library but its parameters."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    places = np.arange(len(ids))
    x = p["embeddings"]["word"][ids]
    allowed = (places[:, None] >= places) & ~hidden_columns[None, :]
    for layer in range(CONFIG.num_layers):
        block = jax.tree.map(lambda leaf, at=layer: leaf[at], p["layers"])
        normed = rms(x, block["attention_norm"]["scale"])
        qkv = np.einsum("td,dgmc->tgmc", normed, block["attention"]["qkv_kernel"]) + block["attention"]["qkv_bias"]
        queries, keys, values = qkv[:, :, :2].reshape(len(ids), 4, 8), qkv[:, :, 2], qkv[:, :, 3]
        queries, keys = rotated(queries, places), rotated(keys, places)
        keys, values = np.repeat(keys, 2, axis=1), np.repeat(values, 2, axis=1)
        scores = np.einsum("qhd,khd->hqk", queries, keys) / np.sqrt(8)
        scores = np.where(allowed, scores, -1e300)
        weights = special.softmax(scores, axis=-1) * allowed.any(1)[None, :, None]
        heads = np.einsum("hqk,khd->qhd", weights, values).reshape(len(ids), -1)
        x = x + heads @ block["attention"]["output"]["kernel"]
        normed = rms(x, block["mlp_norm"]["scale"])
        gate = normed @ block["mlp"]["gate"]["kernel"]
        x = x + (gate * special.expit(gate) * (normed @ block["mlp"]["in"]["kernel"])) @ block["mlp"]["out"]["kernel"]
    return rms(x, p["final_norm"]["scale"]) @ p["head"].T


def test_divergences_are_those_of_a_forward_pass_with_the_columns_masked(texts, divergences):
    _, params, ids, mask = texts
    compared = 0
    for row, source in np.ndindex(2, 3):
        start, end = SPANS[row, source]
        if start == end:
            continue
        length = int(mask[row].sum())
        text = np.asarray(ids[row, :length])
        columns = (np.arange(length) >= start) & (np.arange(length) < end)
        base, masked = (by_hand(params, text, hidden) / 0.6 for hidden in (np.zeros(length, bool), columns))
        expected = [stats.entropy(special.softmax(a), special.softmax(b)) for a, b in zip(base, masked, strict=True)]
        np.testing.assert_allclose(divergences[row, source, end:length], expected[end:], rtol=2e-3, atol=2e-6)
        assert np.all(divergences[row, source, :start] < 1e-6), "what comes before a sentence cannot change"
        compared += np.sum(np.asarray(expected[end:]) > 1e-3)
    assert compared >= 8


def test_chunks_blocks_and_padding_sources_change_nothing(texts, divergences):
    model, *arrays = texts
    run = jax.jit(functools.partial(suppressed_divergences, model, chunk_size=8, time_block=128))
    np.testing.assert_allclose(run(*arrays, jnp.asarray(SPANS)), divergences, rtol=1e-3, atol=1e-6)
    assert np.all(divergences[1, 2, :9] < 1e-6), "an empty source suppresses nothing"


def test_no_array_of_sources_times_vocabulary_exists(texts):
    """Of any array in the program none has more entries than the chunk's logits of one block or its hidden states."""
    model, params, ids, mask = texts
    run = functools.partial(suppressed_divergences, model, chunk_size=2, time_block=2)
    jaxpr = jax.make_jaxpr(run)(params, ids, mask, jnp.zeros((2, 8, 2), jnp.int32))
    shapes = set()

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            shapes.update(tuple(var.aval.shape) for var in eqn.outvars)
            for inner in jax.tree.leaves(
                eqn.params, is_leaf=lambda leaf: isinstance(leaf, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr)
            ):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    walk(getattr(inner, "jaxpr", inner))

    walk(jaxpr.jaxpr)
    of_vocabulary = [shape for shape in shapes if shape[-1:] == (13,)]
    assert of_vocabulary and max(map(np.prod, of_vocabulary)) == 2 * 2 * 2 * 13  # rows, chunk, block, vocabulary


@pytest.mark.parametrize("shift", [0, -1])
def test_entries_are_means_of_logs_over_the_targets_tokens(divergences, shift):
    found = np.asarray(sentence_log_means(jnp.asarray(divergences), jnp.asarray(SPANS), shift=shift))
    for row, source, target in np.ndindex(2, 3, 3):
        start, end = SPANS[row, target] + shift
        if SPANS[row, target, 0] == SPANS[row, target, 1]:
            assert np.isnan(found[row, source, target])
            continue
        expected = np.mean(np.log(divergences[row, source, start:end] + 1e-9))
        assert found[row, source, target] == pytest.approx(expected, rel=1e-4)


def test_the_matrix_is_normalised_by_target_over_earlier_sources():
    log_means = np.arange(16.0).reshape(4, 4) ** 1.5
    matrix = suppression_matrix(log_means)
    assert np.isnan(matrix[np.tril_indices(4)]).all()
    np.testing.assert_allclose(np.nanmean(matrix[:, 1:], axis=0), 0, atol=1e-12)
    assert matrix[0, 3] - matrix[2, 3] == pytest.approx(log_means[0, 3] - log_means[2, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"chunk_size": 0}, "at least 1"),
        ({"sources": jnp.zeros((3, 1, 2), jnp.int32)}, r"sources must be \[2, sources, 2\]"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(texts, options, message):
    model, params, ids, mask = texts
    sources = options.pop("sources", jnp.asarray(SPANS))
    with pytest.raises(ValueError, match=message):
        suppressed_divergences(model, params, ids, mask, sources, **options)
    with pytest.raises(ValueError, match="shift must be 0"):
        sentence_log_means(jnp.zeros((1, 1, 4)), jnp.zeros((1, 1, 2), jnp.int32), shift=1)


def test_fused_attention_is_refused(texts):
    import dataclasses

    _, params, ids, mask = texts
    fused = Decoder(dataclasses.replace(CONFIG, attention_implementation="fused"))
    with pytest.raises(ValueError, match="attention_scores"):
        suppressed_divergences(fused, params, ids, mask, jnp.asarray(SPANS))
