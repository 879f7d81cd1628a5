"""The bench against plain calls of the library: attributions, effects, margins under shifts, vectors by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution import integrated_gradients
from jaxcore.attribution.preference_score import ResponsePairs, preference_margin, preference_score
from jaxcore.attribution.steering_directions import masking_effects, top_k_tokens
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.steering_bench import (
    Shifts,
    SteeringBench,
    scaled_shifts,
    steering_programs,
    steering_vectors,
)
from jaxcore.generation.steering import shift_edits
from jaxcore.models import Decoder, DecoderConfig
from jaxcore.transforms import intervene

RNG = np.random.default_rng(0)
CONFIG = DecoderConfig(
    vocab_size=11, num_layers=2, hidden_size=8, num_heads=2, num_key_value_heads=2, head_size=4,
    intermediate_size=12, max_positions=12,
)  # fmt: skip
MODEL = Decoder(CONFIG)


def rows_of(count):
    """Prompts of 2 to 5 tokens, padded left; responses of 1 or 2 tokens, padded right; first tokens are special."""
    lengths = RNG.integers(2, 6, count)
    mask = (np.arange(5) >= 5 - lengths[:, None]).astype(np.int32)
    ids = RNG.integers(1, 11, (count, 5)).astype(np.int32) * mask
    rows = {"prompt_ids": ids, "prompt_mask": mask, "special": 1 - mask}
    rows["special"][np.arange(count), 5 - lengths] = 1
    for side in ("chosen", "rejected"):
        kept = (np.arange(2) < RNG.integers(1, 3, (count, 1))).astype(np.int32)
        rows |= {side: RNG.integers(1, 11, (count, 2)).astype(np.int32) * kept, f"{side}_mask": kept}
    return rows


ROWS = rows_of(6)
PAIRS = ResponsePairs(**{name: jnp.asarray(ROWS[name]) for name in ResponsePairs.__dataclass_fields__})


@pytest.fixture(scope="module")
def bench():
    """On two devices of the mesh, four rows at a time: the last batch is filled up."""
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * RNG.normal(size=leaf.shape), jnp.float32), nn.unbox(boxed))
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    return SteeringBench(steering_programs(MODEL, mesh, num_steps=4), params, batch_size=4, fill=0)


@pytest.fixture(scope="module")
def prompt(bench):
    return MODEL.apply({"params": bench.params}, ROWS["prompt_ids"], method="embed")


def test_tokens_are_scored_by_integrated_gradients_of_the_margin(bench, prompt):
    found = bench.attribute(ROWS)

    @jax.jit
    def plain(prompt):
        return integrated_gradients(preference_score(MODEL, bench.params, PAIRS), prompt, num_steps=4).sum(-1)

    np.testing.assert_allclose(found["scores"], plain(prompt), atol=1e-4)
    np.testing.assert_allclose(found["error"], found["scores"].sum(1) - found["change"], atol=1e-4)
    assert np.abs(found["change"]).max() > 0.1


def test_effects_are_of_the_chosen_tokens_and_spare_special_ones(bench, prompt):
    scores = RNG.normal(size=(6, 5))
    effects = bench.token_effects(ROWS, scores, 1)
    masks = top_k_tokens(jnp.asarray(scores), jnp.asarray(ROWS["special"] == 0), 1)
    fill = MODEL.apply({"params": bench.params}, jnp.zeros((1, 1), jnp.int32), method="embed")[0, 0]
    expected = jax.jit(lambda prompt: masking_effects(MODEL, bench.params, prompt, PAIRS, *masks, fill=fill))(prompt)
    for found, one in zip(effects, expected, strict=True):
        np.testing.assert_allclose(found, one, atol=1e-4)
    nothing = bench.token_effects({**ROWS, "special": np.ones_like(ROWS["special"])}, scores, 1)
    assert not np.any(nothing.positive) and np.any(effects.positive)


def test_margins_are_those_of_the_steered_model(bench, prompt):
    towards = jnp.asarray(RNG.normal(size=(2, 8)), jnp.float32)  # a constant would vanish in the last norm
    shifts = scaled_shifts(towards, jnp.array([3.0, 5.0]), layers=(1,), strength=0.5)
    np.testing.assert_allclose(np.linalg.norm(shifts.values, axis=1), [0, 2.5], rtol=1e-6)

    @jax.jit
    def plain(prompt, values):
        margin = intervene(lambda x: preference_margin(MODEL, bench.params, x, PAIRS), shift_edits(values))(prompt)
        logits = MODEL.apply({"params": bench.params}, ROWS["prompt_ids"], ROWS["prompt_mask"]).logits
        return margin, jnp.argmax(logits[:, -1], -1)

    found, still = bench.evaluate(ROWS, shifts), bench.evaluate(ROWS)
    np.testing.assert_allclose(found["margin"], plain(prompt, shifts.values)[0], atol=1e-4)
    margin, answer = plain(prompt, 0 * shifts.values)
    np.testing.assert_allclose(still["margin"], margin, atol=1e-4)
    np.testing.assert_array_equal(still["answer"], answer)
    assert np.abs(found["margin"] - still["margin"]).max() > 0.05
    other = jax.tree.map(lambda leaf: 0 * leaf, bench.params)
    np.testing.assert_array_equal(bench.evaluate(ROWS, None, other)["answer"], 0)


@pytest.mark.parametrize("method", ("grains", "mean_difference", "caa", "icv", "iti", "random"))
def test_vectors_of_every_method_are_of_its_kind(bench, method):
    """All from the programs above and the one that captures states."""
    found = steering_vectors(bench, ROWS, method=method, layers=(1,), k=1, num_heads=3)
    assert (found.method, found.layers, found.num_layers) == (method, (1,), 2)
    assert found.site == ("attention_heads" if method == "iti" else "layer_output")
    assert found.norm_preserving == (method not in ("caa", "iti"))
    if method == "iti":
        assert found.vectors.shape == (1, 2, 4)
        return
    assert np.linalg.norm(found.vectors[0]) == pytest.approx(float(bench.mean_lengths(ROWS)[1]), rel=1e-4)
    if method in ("mean_difference", "caa"):
        residual = bench.states(ROWS)["residual"][:, :, 1]
        direction = (residual[:, 0] - residual[:, 1]).mean(0)
        cosine = found.vectors[0] @ direction / np.linalg.norm(found.vectors[0]) / np.linalg.norm(direction)
        assert cosine == pytest.approx(1, abs=1e-4)


def test_heads_are_shifted_without_keeping_lengths(bench):
    values = jnp.asarray(RNG.normal(size=(2, 2, 4)), jnp.float32)
    moved = bench.evaluate(ROWS, Shifts(values, "heads"))["margin"]
    assert np.abs(moved - bench.evaluate(ROWS)["margin"]).max() > 0.05


def test_what_cannot_be_found_is_refused(bench):
    with pytest.raises(ValueError, match="unknown method 'steer': expected one of grains, mean_difference"):
        steering_vectors(bench, ROWS, method="steer", layers=(0,))
    same = {**ROWS, "rejected": ROWS["chosen"], "rejected_mask": ROWS["chosen_mask"]}
    with pytest.raises(ValueError, match="direction of mean_difference is zero in layers"):
        steering_vectors(bench, same, method="mean_difference", layers=(0,))
