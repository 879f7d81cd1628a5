"""The convolutional text encoder against torch's Conv1d, and what padding must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.models.convolutional_text import ConvolutionalTextConfig, ConvolutionalTextEncoder

CONFIG = ConvolutionalTextConfig(vocab_size=30, embedding_size=5, widths=(1, 3), num_filters=7, pooled_maxima=2)
MODEL = ConvolutionalTextEncoder(CONFIG)
IDS = np.random.default_rng(0).integers(0, 30, (4, 9)).astype(np.int32)
MASK = (np.arange(9) < np.array([[9], [5], [1], [0]])).astype(np.int32)
PARAMS = meta.unbox(MODEL.init(jax.random.key(0), IDS))["params"]


def shifted(params):
    """Biases that are not zero."""
    return {k: {**v, "bias": v["bias"] + 0.3} if isinstance(v, dict) else v for k, v in params.items()}


def test_it_is_torchs_convolution_and_k_max_pooling():
    torch = pytest.importorskip("torch")
    params = shifted(PARAMS)
    words = torch.tensor(np.asarray(params["word"], np.float64))[torch.tensor(IDS)] * torch.tensor(MASK)[..., None]
    expected = []
    for width in CONFIG.widths:
        kernel = np.asarray(params[f"filters_{width}"]["kernel"], np.float64).reshape(width, 5, 7)
        out = torch.nn.functional.conv1d(
            words.transpose(1, 2),
            torch.tensor(kernel.transpose(2, 1, 0)),
            torch.tensor(np.asarray(params[f"filters_{width}"]["bias"], np.float64)),
            padding=width // 2,
        )
        rows = []
        for row, count in zip(out, MASK.sum(1), strict=True):
            top = torch.topk(row[:, :count], min(2, int(count)), dim=1).values
            top = torch.nn.functional.pad(top, (0, 2 - top.shape[1]))
            rows.append(top.T.reshape(-1))
        expected.append(torch.stack(rows))
    expected = torch.relu(torch.cat(expected, dim=1)).numpy()
    pooled = MODEL.apply({"params": params}, IDS, MASK).pooled
    assert pooled.shape == (4, CONFIG.output_size)
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing():
    short = MODEL.apply({"params": PARAMS}, IDS[1:2, :5]).pooled
    padded = MODEL.apply(
        {"params": PARAMS}, np.pad(IDS[1:2, :5], ((0, 0), (0, 6)), constant_values=7), MASK_OF_FIVE
    ).pooled
    np.testing.assert_allclose(padded, short, rtol=1e-5)


MASK_OF_FIVE = (np.arange(11)[None] < 5).astype(np.int32)


def test_labels_are_means_of_the_texts_word_vectors():
    labels = np.array([[[3, 4, 0], [5, 0, 0]]])
    mask = np.array([[[1, 1, 0], [1, 0, 0]]])
    vectors = MODEL.apply({"params": PARAMS}, labels, mask, method="embed_labels")
    word = np.asarray(PARAMS["word"])
    np.testing.assert_allclose(vectors[0, 0], (word[3] + word[4]) / 2, rtol=1e-5)
    np.testing.assert_allclose(vectors[0, 1], word[5], rtol=1e-5)


def test_a_text_without_words_is_zero_with_a_finite_gradient():
    def total(params):
        return jnp.sum(MODEL.apply({"params": params}, IDS, MASK).pooled)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(total)(PARAMS)))
    assert not np.any(MODEL.apply({"params": shifted(PARAMS)}, IDS, MASK).pooled[3])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"widths": (2,)}, "widths must be odd"), ({"widths": ()}, "at least one"), ({"num_filters": 0}, "positive")],
)
def test_bad_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        ConvolutionalTextConfig(**change)
    with pytest.raises(ValueError, match="attention_mask must have the shape"):
        MODEL.apply({"params": PARAMS}, IDS, MASK[:2])
