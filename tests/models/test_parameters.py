"""Parameter counts against published sizes."""

import jax
import jax.numpy as jnp

from jaxcore.models import Encoder, EncoderConfig, count_parameters


def test_bert_base_has_its_published_size():
    variables = jax.eval_shape(Encoder(EncoderConfig()).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    assert count_parameters(variables["params"]) == 109_482_240


def test_roberta_large_has_its_published_size():
    config = EncoderConfig(
        vocab_size=50265, num_layers=24, hidden_size=1024, num_heads=16,
        intermediate_size=4096, max_positions=514,
        num_token_types=1, pad_token_id=1, position_offset=2, architecture="roberta",
    )  # fmt: skip
    variables = jax.eval_shape(Encoder(config).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    assert count_parameters(variables["params"]) == 355_359_744
