"""Readers: every token of a text once, with its place, whatever it is batched with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.data import train_tokenizer
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.token_states import EncoderReader, HashedWordReader, remembered
from jaxcore.models import Encoder, EncoderConfig

TEXTS = ["One two three.", "", "four " * 20, "Two"]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def test_hashed_words_are_the_same_in_any_company(mesh):
    read = HashedWordReader(TEXTS, seed=0, dim=16, mesh=mesh)
    together, alone = read(TEXTS), read(TEXTS[3:])
    assert [len(part.offsets) for part in together] == [4, 0, 20, 1]
    assert all(part.states.shape == (len(part.offsets), 16) for part in together)
    np.testing.assert_allclose(together[3].states, alone[0].states, atol=1e-6)
    assert [TEXTS[0][a:b] for a, b in together[0].offsets] == ["One", "two", "three", "."]


def test_an_encoder_s_windows_cover_a_long_text(mesh):
    tokenizer = train_tokenizer(TEXTS, vocab_size=60)
    config = EncoderConfig(
        vocab_size=60, num_layers=1, hidden_size=8, num_heads=2, intermediate_size=8, max_positions=32, pooler="none"
    )
    model = Encoder(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    read = EncoderReader(model, params, tokenizer, mesh=mesh, max_length=12)
    found = read(TEXTS)
    encoded = tokenizer(TEXTS, add_special_tokens=False, return_offsets_mapping=True)
    states_of = jax.jit(lambda row: model.apply({"params": params}, row).last_hidden_state)
    for part, ids, places in zip(found, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        assert part.offsets.tolist() == [list(place) for place in places]
        expected = []
        for start in range(0, len(ids), 10):
            row = jnp.asarray([[tokenizer.cls_token_id, *ids[start : start + 10], tokenizer.sep_token_id]])
            expected.append(np.asarray(states_of(row))[0, 1:-1])
        assert len(part.states) == len(ids)
        if ids:
            np.testing.assert_allclose(part.states, np.concatenate(expected), atol=1e-5)


def test_a_remembered_text_is_read_once():
    asked = []

    def read(texts):
        asked.extend(texts)
        return [text.upper() for text in texts]

    reader = remembered(read)
    assert reader(["a", "b", "a"]) == ["A", "B", "A"] and reader(["b", "c"]) == ["B", "C"]
    assert asked == ["a", "b", "c"]
