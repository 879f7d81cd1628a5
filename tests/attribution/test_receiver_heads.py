"""Receiver heads: sentence means, vertical scores and kurtosis against numpy and scipy, planted heads found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from scipy import stats

from jaxcore.attribution.head_ablation import ablate_heads, head_mask, layer_matched_heads
from jaxcore.attribution.receiver_heads import (
    kurtosis,
    mean_kurtosis,
    sentence_matrix,
    split_half_reliability,
    top_heads,
    vertical_scores,
    with_sentence_attention,
)
from jaxcore.models import DECODER_FAMILIES, Decoder, DecoderConfig
from jaxcore.transforms import capture, intervene

SPANS = np.array([[[1, 4], [4, 5], [5, 10]], [[0, 2], [2, 7], [0, 0]]])


def random_attention(rng, *shape):
    weights = np.tril(rng.random(shape)) + 1e-9
    return weights / weights.sum(-1, keepdims=True)


def published_vertical_scores(matrix, proximity, depth_control):
    """What the released `get_vertical_scores` computes, written anew in numpy."""
    kept = np.array(matrix)
    kept[np.triu_indices(len(kept), 1)] = np.nan
    kept[np.triu_indices(len(kept), -proximity + 1)] = np.nan
    if depth_control:
        counts = np.sum(~np.isnan(kept), axis=1)
        kept = stats.rankdata(kept, axis=1, nan_policy="omit") / np.maximum(counts, 1)[:, None]
    columns = [kept[j + proximity :, j] for j in range(len(kept))]
    return np.array([np.nan if not len(column) else np.mean(column) for column in columns])


def test_sentence_matrix_is_the_mean_over_both_sentences_tokens():
    weights = random_attention(np.random.default_rng(0), 2, 3, 10, 10)
    found = np.asarray(sentence_matrix(jnp.asarray(weights, jnp.float32), jnp.asarray(SPANS)))
    for row, head, i, j in np.ndindex(2, 3, 3, 3):
        (a, b), (c, d) = SPANS[row, i], SPANS[row, j]
        if a == b or c == d:
            assert np.isnan(found[row, head, i, j])
        else:
            assert found[row, head, i, j] == pytest.approx(weights[row, head, a:b, c:d].mean(), rel=1e-5)


@pytest.mark.parametrize("depth_control", [False, True])
@pytest.mark.parametrize("proximity", [1, 4])
def test_vertical_scores_are_those_of_the_released_code(proximity, depth_control):
    matrices = random_attention(np.random.default_rng(1), 2, 9, 9)
    found = vertical_scores(jnp.asarray(matrices, jnp.float32), proximity=proximity, depth_control=depth_control)
    expected = [published_vertical_scores(matrix, proximity, depth_control) for matrix in matrices]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(expected[0]).sum() == proximity


def test_padding_sentences_change_nothing_and_ends_can_be_dropped():
    matrix = random_attention(np.random.default_rng(2), 9, 9)
    padded = np.full((12, 12), np.nan)
    padded[:9, :9] = matrix
    whole, found = (vertical_scores(jnp.asarray(m, jnp.float32), proximity=2) for m in (matrix, padded))
    np.testing.assert_allclose(found[:9], whole, rtol=1e-6)
    assert np.isnan(found[9:]).all()
    dropped = np.asarray(vertical_scores(jnp.asarray(padded, jnp.float32), proximity=2, drop_first=3, drop_last=4))
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(dropped)), [3, 4])


def test_kurtosis_is_scipys_without_nan():
    values = np.random.default_rng(3).gamma(0.3, 1e-4, (4, 30))
    values[1, 5:20] = np.nan
    expected = stats.kurtosis(values, axis=1, fisher=True, bias=True, nan_policy="omit")
    np.testing.assert_allclose(kurtosis(jnp.asarray(values, jnp.float32)), expected, rtol=1e-4)
    assert np.isnan(kurtosis(jnp.ones((1, 4)))).all() and np.isnan(kurtosis(jnp.full((1, 4), jnp.nan))).all()


@pytest.mark.parametrize("n", [5, 40])
def test_kurtosis_of_one_spike_is_its_closed_form(n):
    assert kurtosis(jnp.zeros(n).at[2].set(0.7)) == pytest.approx((n * n - 3 * n + 3) / (n - 1) - 3, rel=1e-5)


def test_a_planted_receiver_head_ranks_first_and_peaks_at_its_sentence():
    sentences, planted = 20, (1, 2)
    uniform = np.tril(np.ones((sentences, sentences)))
    uniform /= uniform.sum(-1, keepdims=True)
    matrices = np.tile(uniform, (2, 4, 1, 1)) * (1 + 0.05 * np.random.default_rng(4).random((2, 4, 1, sentences)))
    matrices[planted][7:, 6] += 0.8
    scores = vertical_scores(jnp.asarray(matrices, jnp.float32), proximity=4)
    kurtoses = np.asarray(kurtosis(scores))[None]
    assert tuple(top_heads(kurtoses, 1)[0]) == planted
    assert np.nanargmax(scores[planted]) == 6
    assert 0 not in top_heads(kurtoses, 3)[:, 0], "layer 0 is no candidate"


def test_longer_sentences_are_not_attended_to_more():
    """Uniform attention: a sentence of five tokens has the score of one of one token."""
    weights = jnp.full((1, 1, 10, 10), 0.1)
    found = np.asarray(sentence_matrix(weights, jnp.asarray(SPANS[:1])))
    np.testing.assert_allclose(found, 0.1, rtol=1e-6)


def test_halves_agree_as_far_as_heads_are_the_same_in_both():
    rng = np.random.default_rng(5)
    heads = rng.normal(size=(3, 8))
    noisy = heads + 0.1 * rng.normal(size=(10, 3, 8))
    expected = np.corrcoef(noisy[::2].mean(0).ravel(), noisy[1::2].mean(0).ravel())[0, 1]
    assert split_half_reliability(noisy) == pytest.approx(expected)
    assert split_half_reliability(rng.normal(size=(10, 3, 8))) < 0.6 < expected
    noisy[3, 1, 2] = np.nan
    assert np.isfinite(mean_kurtosis(noisy)).all()


@pytest.fixture(scope="module")
def decoder():
    config = DecoderConfig(
        architecture="llama", **DECODER_FAMILIES["llama"], vocab_size=11, num_layers=2, hidden_size=16, num_heads=4,
        num_key_value_heads=2, head_size=4, intermediate_size=16, max_positions=16,
    )  # fmt: skip
    model = Decoder(config)
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32)))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    return model, params, jnp.asarray(rng.integers(0, 11, (2, 10)), jnp.int32)


def test_attention_is_reduced_inside_the_model(decoder):
    """The same as capturing all maps over tokens, none of which the program holds for all layers."""
    model, params, ids = decoder

    def run(params, ids):
        return model.apply({"params": params}, ids, method="trunk")[0]

    observed = with_sentence_attention(run, jnp.asarray(SPANS))
    hidden, found = jax.jit(observed)(params, ids)
    plain, captured = jax.jit(capture(run, "attention_weights"))(params, ids)
    np.testing.assert_allclose(hidden, plain, atol=1e-5)
    for layer in range(2):
        expected = sentence_matrix(captured["attention_weights"][layer], jnp.asarray(SPANS))
        np.testing.assert_allclose(found[layer], expected, rtol=1e-4)
    stacked = "f32[2,2,4,10,10]"
    assert stacked in str(jax.make_jaxpr(capture(run, "attention_weights"))(params, ids))
    assert stacked not in str(jax.make_jaxpr(observed)(params, ids))


def test_an_ablated_head_adds_nothing_to_the_residual_and_others_all_of_theirs(decoder):
    model, params, ids = decoder

    def run(params, ids):
        return model.apply({"params": params}, ids, method="trunk")[0]

    removed = head_mask(np.array([[0, 1], [1, 3]]), 2, 4)
    found = jax.jit(intervene(run, ablate_heads(jnp.asarray(removed))))(params, ids)
    # Without its rows of the output projection a head adds nothing, either.
    kernel = np.array(params["layers"]["attention"]["output"]["kernel"]).reshape(2, 4, 4, -1)
    kernel[removed] = 0
    cut = {**params["layers"]["attention"], "output": {"kernel": jnp.asarray(kernel.reshape(2, 16, -1))}}
    expected = jax.jit(run)({**params, "layers": {**params["layers"], "attention": cut}}, ids)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(np.asarray(found - jax.jit(run)(params, ids))).max() > 0.01


def test_random_heads_are_matched_by_layer():
    heads = np.array([[0, 1], [2, 0], [2, 3]])
    for seed in range(5):
        chosen = layer_matched_heads(heads, 6, np.random.default_rng(seed))
        assert sorted(chosen[:, 0]) == [0, 2, 2]
        assert not {*map(tuple, chosen)} & {*map(tuple, heads)} and len({*map(tuple, chosen)}) == 3
    with pytest.raises(ValueError, match="too many"):
        layer_matched_heads(np.array([[2, 0], [2, 1]]), 3, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vertical_scores(jnp.zeros((3, 4))), "square"),
        (lambda: vertical_scores(jnp.zeros((4, 4)), drop_first=-1), "at least 0"),
        (lambda: vertical_scores(jnp.zeros((4, 4)), proximity=0), "proximity"),
        (lambda: top_heads(np.zeros((1, 2, 3)), 4), "4 heads were asked for, but 3"),
        (lambda: split_half_reliability(np.zeros((1, 2, 2))), "at least two traces"),
        (lambda: head_mask(np.array([[2, 0]]), 2, 4), "no head 0 of layer 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
