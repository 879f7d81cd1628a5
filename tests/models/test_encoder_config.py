"""EncoderConfig refuses what cannot be built, in one line that names the field."""

import pytest

from jaxcore.models import EncoderConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    (
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
        ({"norm_epsilon": -1.0}, "norm_epsilon must not be negative"),
        ({"num_heads": 7}, "hidden_size must be a multiple of num_heads, got 768 and 7"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"activation": "mish"}, "activation must be one of gelu, gelu_tanh.*'mish'"),
        ({"pooler": "max"}, "pooler must be one of cls_tanh, mean"),
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"output_tokens": "last"}, "output_tokens must be one of all, first, got 'last'"),
        ({"output_tokens": "first", "pooler": "mean"}, "pooler 'mean' reads all tokens"),
        ({"remat": "some"}, "remat must be one of none"),
        ({"architecture": "gpt"}, "architecture must be one of bert"),
        ({"attention_implementation": "flash"}, "attention_implementation must be one of auto"),
        ({"architecture": "roberta", "pad_token_id": 1}, "roberta numbers positions from 2.*set it to 2"),
        ({"position_offset": 2}, "bert numbers positions from 0"),
        ({"architecture": "distilbert"}, "distilbert has no token types: set num_token_types=0"),
        ({"num_token_types": 0}, "bert needs 1 or more"),
        (
            {"max_positions": 2, "architecture": "roberta", "pad_token_id": 1, "position_offset": 2},
            "must exceed",
        ),
    ),
)
def test_invalid_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**fields)


def test_command_line_sets_fields():
    tyro = pytest.importorskip("tyro")
    config = tyro.cli(EncoderConfig, args=["--num-layers", "6", "--pooler", "mean", "--dtype", "bfloat16"])
    assert config == EncoderConfig(num_layers=6, pooler="mean", dtype="bfloat16")
