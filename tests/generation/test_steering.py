"""Steering by hand, in prefill and every step alike, its identity, its lengths, its files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_references import PROMPTS, loop
from safetensors.numpy import save_file

from jaxcore.generation import generate, pad_left
from jaxcore.generation.generate import _program
from jaxcore.generation.steering import (
    SteeringVectors,
    check_fits,
    chosen_layers,
    load_steering,
    save_steering,
    shift_edits,
    steering_edits,
)
from jaxcore.models import unstack_layers
from jaxcore.transforms import capture, intervene

COUNT, WIDTH = 6, 8
IDS, MASK = pad_left(PROMPTS, WIDTH)
RNG = np.random.default_rng(0)


def vectors(layers=(0, 1), **more):
    return SteeringVectors(RNG.normal(size=(len(layers), 32)), layers=layers, num_layers=2, **more)


def heads():
    shifts = RNG.normal(size=(1, 4, 8))
    return SteeringVectors(shifts, layers=(1,), num_layers=2, site="attention_heads", norm_preserving=False)


def test_the_edit_is_equation_5():
    states, shifts = RNG.normal(size=(2, 3, 32)), RNG.normal(size=(2, 32))
    edit = shift_edits(jnp.asarray(shifts, jnp.float32))["layer_output"]
    for layer in (0, 1):
        moved = states + shifts[layer]
        ratio = np.linalg.norm(states, axis=-1, keepdims=True) / np.linalg.norm(moved, axis=-1, keepdims=True)
        np.testing.assert_allclose(edit(jnp.asarray(states, jnp.float32), step=layer), moved * ratio, atol=1e-5)
    plain = shift_edits(jnp.asarray(shifts, jnp.float32), norm_preserving=False)["layer_output"]
    np.testing.assert_allclose(plain(jnp.asarray(states, jnp.float32), step=1), states + shifts[1], atol=1e-6)


def test_lengths_stay_and_a_zero_shift_is_the_identity():
    states = jnp.asarray(10 ** RNG.uniform(-2, 3, (40, 1)) * RNG.normal(size=(40, 32)), jnp.float32)
    edit = shift_edits(jnp.asarray([RNG.normal(size=32), np.zeros(32)], jnp.float32))["layer_output"]
    steered = edit(states, step=0)
    ratio = np.linalg.norm(np.asarray(steered, np.float64), axis=1) / np.linalg.norm(np.asarray(states), axis=1)
    assert np.abs(ratio - 1).max() < 1e-5 and np.abs(steered - states).max() > 1
    for dtype in (jnp.float32, jnp.bfloat16):
        np.testing.assert_array_equal(edit(states.astype(dtype), step=1), states.astype(dtype))


@pytest.fixture(scope="module")
def full(decoder):
    """Logits and states of one steered full forward pass, jitted with the edits as an argument."""

    @jax.jit
    def run(edits, ids):
        forward = intervene(lambda ids: decoder.model.apply({"params": decoder.params}, ids).logits, edits)
        logits, states = capture(forward, "layer_output")(ids)
        return logits, states["layer_output"]

    return lambda edits, tokens: [np.asarray(part) for part in run(edits, np.asarray(tokens, np.int32))]


@pytest.mark.parametrize("steering", (vectors(), vectors((1,)), vectors((0,), norm_preserving=False), heads()))
def test_steered_generation_equals_steered_full_passes(decoder, full, steering):
    """Cached decoding against one edited pass over the whole text per token, parameters stacked and unstacked."""
    edits = steering_edits(steering, 4.0)

    def choose(tokens):
        ids = np.zeros((1, 24), np.int32)
        ids[0, : len(tokens)] = tokens
        return full(edits, ids)[0][0, len(tokens) - 1].argmax()

    expected = [loop(prompt, COUNT, choose) for prompt in PROMPTS]
    forms = [decoder.params, *([unstack_layers(decoder.params)] if steering.norm_preserving else [])]
    for params in forms:
        steered = generate(decoder.model, params, IDS, MASK, max_new_tokens=COUNT, edits=edits)
        assert steered.tokens[:, 0].tolist() == expected
    plain = generate(decoder.model, decoder.params, IDS, MASK, max_new_tokens=COUNT)
    assert plain.tokens[:, 0].tolist() != expected


def test_strength_0_generates_the_same_and_no_strength_compiles_anew(decoder):
    steering = vectors()
    plain = generate(decoder.model, decoder.params, IDS, MASK, max_new_tokens=COUNT)

    def steered(strength):
        return generate(
            decoder.model, decoder.params, IDS, MASK, max_new_tokens=COUNT, edits=steering_edits(steering, strength)
        )

    still = steered(0.0)
    programs = _program._cache_size()
    np.testing.assert_array_equal(still.tokens, plain.tokens)
    np.testing.assert_array_equal(still.log_probs, plain.log_probs)
    assert np.abs(steered(3.0).log_probs - plain.log_probs).max() > 0.1
    assert np.any(steered(-3.0).log_probs != steered(3.0).log_probs)
    assert _program._cache_size() == programs


def test_only_the_named_layers_move(full):
    ids = np.ones((1, 24), np.int32)
    plain = full(steering_edits(vectors(), 0.0), ids)[1]
    last = full(steering_edits(vectors((1,)), 2.0), ids)[1]
    np.testing.assert_array_equal(last[0], plain[0])
    lengths = [np.linalg.norm(states[1], axis=-1) for states in (last, plain)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert np.abs(last[1] - plain[1]).max() > 0.1


@pytest.mark.parametrize("steering", (vectors((1,), method="grains"), heads()))
def test_a_file_gives_back_what_was_saved(decoder, tmp_path, steering):
    save_steering(tmp_path / "v.safetensors", steering, facts={"model": "tiny"})
    loaded = load_steering(tmp_path / "v.safetensors", decoder.model.config)
    np.testing.assert_array_equal(loaded.vectors, steering.vectors.astype(np.float32))
    for name in ("layers", "num_layers", "site", "norm_preserving", "method"):
        assert getattr(loaded, name) == getattr(steering, name)
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]


def test_files_that_do_not_fit_are_refused(decoder, narrow, tmp_path):
    file, config = tmp_path / "v.safetensors", decoder.model.config

    def write(array, header):
        metadata = None if header is None else {"steering": json.dumps(header)}
        save_file({"vectors": np.asarray(array, np.float32)}, file, metadata=metadata)

    header = {"layers": [0], "num_layers": 2, "site": "layer_output", "norm_preserving": True, "method": ""}
    zeros = np.zeros((1, 32))
    for array, changes, message in (
        (zeros, None, "but not one of steering vectors"),
        (zeros + np.nan, {}, "not finite"),
        (zeros[:, :16], {}, r"vectors \(16,\) at layer_output of a model with 2 layers, but .* takes \(32,\)"),
        (zeros, {"num_layers": 3}, "of a model with 3 layers, but this model has 2"),
        (zeros, {"layers": [2]}, r"layers \(2,\) are not all in 0 to 1"),
        (zeros, {"layers": [0, 1]}, "one entry for each of the layers"),
        (zeros, {"site": "mlp"}, "site must be one of layer_output, attention_heads"),
        (zeros, {"colour": 1}, "header does not describe"),
    ):
        write(array, None if changes is None else {**header, **changes})
        with pytest.raises(ValueError, match=message):
            load_steering(file, config)
    file.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="not a readable file"):
        load_steering(file)
    with pytest.raises(ValueError, match="no such file"):
        load_steering(tmp_path / "other")
    with pytest.raises(ValueError, match=r"attention_heads of a model .* takes \(2, 8\)"):
        check_fits(heads(), narrow.model.config)
    with pytest.raises(ValueError, match="different layers"):
        SteeringVectors(np.zeros((2, 4)), layers=(1, 1), num_layers=2)


@pytest.mark.parametrize(
    ("text", "layers"),
    (("all", (0, 1, 2, 3, 4)), ("last", (4,)), ("2", (2,)), ("-2", (3,)), ("0,3", (0, 3)), ("1-3,0", (1, 2, 3, 0))),
)
def test_layers_are_named_by_words_and_numbers(text, layers):
    assert chosen_layers(text, 5) == layers


@pytest.mark.parametrize("text", ("5", "-6", "first", "", "3-9", "2-1"))
def test_layers_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="layer"):
        chosen_layers(text, 5)
