"""Packing loses nothing, is deterministic and tight; packed logits and losses are those of the texts by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.data.packing import pack_sequences
from jaxcore.losses.next_token import next_token_log_probs
from jaxcore.models import DECODER_FAMILIES, Decoder, DecoderConfig


def test_the_example():
    rows = pack_sequences([[5, 6, 7], [8, 9]], length=6)
    assert rows.input_ids.tolist() == [[5, 6, 7, 8, 9, 0]]
    assert rows.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert rows.sequence_ids.tolist() == [[0, 0, 0, 1, 1, -1]] and rows.fill == pytest.approx(5 / 6)


def test_the_fullest_row_with_room_is_chosen():
    rows = pack_sequences([np.arange(n) for n in (5, 4, 3, 2)], length=7, pad_id=-1)
    assert [sorted({n for n in row if n >= 0}) for row in rows.sequence_ids.tolist()] == [[0, 3], [1, 2]]
    assert rows.fill == 1 and (rows.input_ids >= 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 25), min_size=1, max_size=30), st.integers(2, 12))
def test_every_token_is_there_once_in_order(lengths, length):
    sequences = [100 * number + np.arange(size) for number, size in enumerate(lengths)]
    kept = [
        ids[start : start + length]
        for ids in sequences
        for start in range(0, len(ids), length)
        if len(ids[start : start + length]) >= 2
    ]
    if not kept:
        with pytest.raises(ValueError, match="nothing to pack"):
            pack_sequences(sequences, length=length)
        return
    rows = pack_sequences(sequences, length=length)
    found = [
        ids[segments == segment].tolist()
        for ids, segments in zip(rows.input_ids, rows.segment_ids, strict=True)
        for segment in range(1, segments.max() + 1)
    ]
    assert sorted(found) == sorted(piece.tolist() for piece in kept)
    again = pack_sequences(sequences, length=length)
    np.testing.assert_array_equal(again.input_ids, rows.input_ids)
    real = rows.segment_ids > 0
    assert (np.sort(real, axis=1)[:, ::-1] == real).all()  # padding on the right only
    assert not rows.positions[~real].any() and (rows.sequence_ids[~real] == -1).all()
    half_empty = np.sum(real.sum(1) * 2 <= length)
    assert half_empty <= 1  # two such rows would have been one


SIZES = {
    "vocab_size": 19, "num_layers": 2, "hidden_size": 16, "num_heads": 4, "num_key_value_heads": 4, "head_size": 4,
    "intermediate_size": 24, "max_positions": 16,
}  # fmt: skip
CONFIGS = {
    "gpt2": DecoderConfig(**SIZES),
    "qwen3": DecoderConfig(
        architecture="qwen3", **DECODER_FAMILIES["qwen3"], **SIZES, sliding_window=3, windowed_layers=(True, False)
    ),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_logits_are_those_of_the_texts_by_themselves(family):
    """Learned positions and, with a window, rotary ones."""
    model, rng = Decoder(CONFIGS[family]), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    import flax.linen as nn

    params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), "f4"), nn.meta.unbox(shapes))
    texts = [rng.integers(0, 19, size) for size in (7, 4, 5, 3, 6)]
    rows = pack_sequences(texts, length=12)
    assert rows.segment_ids.max() >= 2

    @jax.jit
    def run(ids, mask, segments):
        return model.apply({"params": params}, ids, mask, segment_ids=segments).logits

    mask = (rows.segment_ids > 0).astype(np.int32)
    packed = run(rows.input_ids, mask, rows.segment_ids)
    alone_ids = np.zeros((5, 12), np.int32)
    for number, text in enumerate(texts):
        alone_ids[number, : len(text)] = text
    alone_mask = (np.arange(12) < np.array([len(text) for text in texts])[:, None]).astype(np.int32)
    alone = run(alone_ids, alone_mask, np.ones_like(alone_ids))
    unsegmented = model.apply({"params": params}, alone_ids, alone_mask).logits
    for number, text in enumerate(texts):
        row, columns = np.nonzero(rows.sequence_ids == number)
        np.testing.assert_allclose(packed[row, columns], alone[number, : len(text)], atol=1e-5)
        np.testing.assert_allclose(unsegmented[number, : len(text)], alone[number, : len(text)], atol=1e-5)
    unaware = model.apply({"params": params}, rows.input_ids, mask).logits
    assert np.abs(np.where(rows.segment_ids[..., None] > 1, unaware - packed, 0)).max() > 0.1
    together = next_token_log_probs(packed, jnp.asarray(rows.input_ids), segment_ids=jnp.asarray(rows.segment_ids))
    apart = next_token_log_probs(alone, jnp.asarray(alone_ids), jnp.asarray(alone_mask))
    assert together.counted.sum() == sum(len(text) - 1 for text in texts)
    assert together.negative_mean() == pytest.approx(float(apart.negative_mean()), rel=1e-5)


def test_packed_rows_are_not_read_with_a_cache():
    from jaxcore.models import KeyValueCache

    config = CONFIGS["gpt2"]
    ids = jnp.ones((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="without a cache"):
        jax.eval_shape(
            lambda: Decoder(config).init(
                jax.random.key(0), ids, segment_ids=ids, cache=KeyValueCache.empty(config, 1, 8)
            )
        )


@pytest.mark.parametrize("given", [{"length": 0}, {"length": 4, "min_length": 5}, {"length": 4, "min_length": 0}])
def test_bad_lengths_are_refused(given):
    with pytest.raises(ValueError, match="min_length in"):
        pack_sequences([[1, 2]], **given)
