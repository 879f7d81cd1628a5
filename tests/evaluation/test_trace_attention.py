"""Suppression and receiver heads over traces of different length: rows, padding and devices change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.attribution.attention_suppression import sentence_log_means, suppressed_divergences, suppression_matrix
from jaxcore.attribution.receiver_heads import kurtosis, vertical_scores, with_sentence_attention
from jaxcore.data import reasoning_language as language
from jaxcore.data.reasoning_trace import ReasoningTrace
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.trace_attention import (
    AttentionConfig,
    attention_step,
    receiver_heads,
    suppression_matrices,
    suppression_step,
    trace_rows,
)
from jaxcore.models import DECODER_FAMILIES, Decoder, DecoderConfig

CONFIG = AttentionConfig(
    max_tokens=48, max_sentences=14, sources_per_row=3, batch_size=8, sources_at_once=2, proximity=2, top_heads=2,
    skip_layers=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def setting():
    model = Decoder(
        DecoderConfig(
            architecture="llama", **DECODER_FAMILIES["llama"], vocab_size=len(language.TOKENS), num_layers=2,
            hidden_size=16, num_heads=4, num_key_value_heads=2, head_size=4, intermediate_size=16, max_positions=64,
            attention_implementation="explicit",
        )
    )  # fmt: skip
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32)))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    drawn = [language.draw_trace(rng, fillers=number == 1) for number in range(3)]
    traces = [
        ReasoningTrace(
            f"trace {i}", "", tuple(t.tokens), tuple(language.decode(s.tokens).strip() for s in t.steps), t.spans,
            tuple(s.function for s in t.steps), "", "",
        )
        for i, t in enumerate(drawn)
    ]  # fmt: skip
    assert max(map(len, traces)) > min(map(len, traces))
    return model, params, traces, make_mesh(MeshConfig(data=4, fsdp=2), jax.devices())


def test_suppression_in_rows_over_eight_devices_is_that_of_each_trace_alone(setting):
    model, params, traces, mesh = setting
    found = suppression_matrices(suppression_step(model, CONFIG, mesh), params, traces, CONFIG, mesh=mesh)
    rows = trace_rows(traces, CONFIG)

    @jax.jit
    def alone(params, ids, mask, spans):
        divergences = suppressed_divergences(model, params, ids, mask, spans, chunk_size=14)
        return sentence_log_means(divergences, spans)

    inputs = (jnp.asarray(rows[name]) for name in ("input_ids", "attention_mask", "targets"))
    together = np.asarray(alone(params, *inputs))
    for number, trace in enumerate(traces):
        expected = suppression_matrix(together[number, : len(trace), : len(trace)])
        strong = np.abs(expected) < 8  # logs of the smallest divergences are rounding
        np.testing.assert_allclose(found[number][strong], expected[strong], atol=0.05)
        assert np.isfinite(found[number][np.triu_indices(len(trace), 1)]).all()


def test_receiver_heads_are_those_of_largest_kurtosis(setting):
    model, params, traces, _ = setting
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    config = dataclasses.replace(CONFIG, batch_size=3)
    found = receiver_heads(attention_step(model, config, one), params, traces, config, mesh=one)
    rows = trace_rows(traces, CONFIG)

    def states(params):
        return model.apply({"params": params}, rows["input_ids"], rows["attention_mask"], method="trunk")[0]

    matrices = jax.jit(with_sentence_attention(states, jnp.asarray(rows["targets"])))(params)[1]
    scores = np.asarray(vertical_scores(matrices, proximity=2))
    means = np.asarray(kurtosis(jnp.asarray(scores))).mean(1)
    np.testing.assert_allclose(found.kurtoses, means, rtol=1e-3)
    best = np.argsort(-means.ravel())[:2]
    np.testing.assert_array_equal(found.heads, np.stack(np.unravel_index(best, means.shape), 1))
    for number, trace in enumerate(traces):
        expected = np.mean([scores[layer, number, head, : len(trace)] for layer, head in found.heads], axis=0)
        np.testing.assert_allclose(found.scores[number], expected, rtol=1e-4)
    assert -1 <= found.reliability <= 1


def test_traces_without_room_and_settings_that_make_no_sense_are_refused(setting):
    traces = setting[2]
    with pytest.raises(ValueError, match=r"raise attention\.max_tokens"):
        trace_rows(traces, dataclasses.replace(CONFIG, max_sentences=3))
    with pytest.raises(ValueError, match="no traces"):
        trace_rows([], CONFIG)
    for changes in ({"batch_size": 0}, {"top_heads": 0}, {"shift": 1}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=f"attention.*{next(iter(changes))}"):
            dataclasses.replace(CONFIG, **changes)
