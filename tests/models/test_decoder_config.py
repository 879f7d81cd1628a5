"""What DecoderConfig and RopeScaling refuse."""

import dataclasses

import pytest

from jaxcore.models import DECODER_FAMILIES, DecoderConfig, RopeScaling

MISTRAL = DecoderConfig(architecture="mistral", **DECODER_FAMILIES["mistral"], num_key_value_heads=4)


def test_config_is_a_value():
    assert hash(MISTRAL) == hash(dataclasses.replace(MISTRAL))
    assert (MISTRAL.group_size, MISTRAL.context_length, DecoderConfig().group_size) == (3, 1024, 1)


@pytest.mark.parametrize(
    ("scaling", "length"),
    (
        (RopeScaling("linear", 4.0), 4096),
        (RopeScaling("yarn", 4.0, 1024), 4096),
        (RopeScaling("yarn", 2.0, 256), 1024),
        (RopeScaling("llama3", 8.0, 128), 1024),
    ),
)
def test_context_length_includes_scaling(scaling, length):
    assert dataclasses.replace(MISTRAL, rope_scaling=scaling).context_length == length


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
        ({"num_key_value_heads": 5}, "multiple of num_key_value_heads, got 12 and 5"),
        ({"head_size": 63}, "even head_size, got 63"),
        ({"sliding_window": 0}, "sliding_window must be positive or None"),
        ({"windowed_layers": (True,)}, "windowed_layers is for qwen with a sliding_window"),
        ({"architecture": "bloom"}, "architecture must be one of gpt2, llama, .*, got 'bloom'"),
        ({"activation": "mish"}, "activation must be one of"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"rope_theta": 0.5}, "rope_theta must exceed 1"),
        ({"qkv_bias": True}, "mistral has qkv_bias=False, got True: start from DECODER_FAMILIES"),
        ({"architecture": "llama", "qkv_bias": True}, "llama has both or neither of qkv_bias and output_bias"),
        ({"architecture": "llama", "sliding_window": 9}, "llama has no sliding window, got 9"),
        ({"architecture": "gpt2"}, "gpt2 has positions='learned', got 'rotary'"),
    ),
)
def test_unfit_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MISTRAL, **changes)


def test_gpt2_has_one_key_per_query_head():
    with pytest.raises(ValueError, match="num_key_value_heads == num_heads"):
        DecoderConfig(num_key_value_heads=4)


def test_windowed_layers_cover_every_layer():
    qwen = {**DECODER_FAMILIES["qwen2"], "architecture": "qwen2", "sliding_window": 8}
    assert DecoderConfig(**qwen, windowed_layers=(True, False) * 6).windowed_layers == (True, False) * 6
    with pytest.raises(ValueError, match="each of the 12 layers, got 2 entries"):
        DecoderConfig(**qwen, windowed_layers=(True, False))


@pytest.mark.parametrize(
    ("fields", "message"),
    (
        ({"kind": "longrope"}, "rope scaling must be one of default, linear, dynamic, llama3, yarn, got 'longrope'"),
        ({"kind": "linear", "factor": 0.5}, "factor must be at least 1, got 0.5"),
        ({"kind": "llama3", "factor": 8.0}, "llama3 needs original_max_positions >= 1, got None"),
        (
            {"kind": "llama3", "original_max_positions": 8, "low_frequency_factor": 4.0},
            "0 < low_frequency_factor < high_frequency_factor, got 4.0 and 4.0",
        ),
        (
            {"kind": "yarn", "original_max_positions": 8, "beta_fast": 0.5},
            "beta_fast >= beta_slow > 0, got 0.5",
        ),
    ),
)
def test_unfit_scalings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**fields)
