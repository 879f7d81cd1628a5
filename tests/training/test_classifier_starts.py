"""Published encoders and word vectors as the start of a classifier's training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.models import Encoder, EncoderConfig, save_pretrained
from jaxcore.models.classifier import ClassifierConfig, EncoderClassifier
from jaxcore.models.recurrent import RecurrentClassifier, RecurrentConfig
from jaxcore.training.classifier_starts import Starts, read_starts, starting_params

SIZES = EncoderConfig(
    vocab_size=11, num_layers=1, hidden_size=8, num_heads=2, intermediate_size=12, max_positions=16, num_token_types=0,
    architecture="distilbert", pooler="none",
)  # fmt: skip
TRANSFORMER = EncoderClassifier(ClassifierConfig(SIZES, 2))
RECURRENT = RecurrentClassifier(RecurrentConfig(vocab_size=11, embedding_size=3, hidden_size=3, attention_size=2))
WORDS = ("[PAD]", "cat", "the")


def initialize(model):
    return lambda key: model.init(key, jnp.ones((1, 2), jnp.int32))["params"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    encoder = Encoder(SIZES)
    params = meta.unbox(jax.jit(encoder.init)(jax.random.key(7), jnp.ones((1, 2), jnp.int32))["params"])
    save_pretrained(folder / "encoder", encoder, params)
    (folder / "words.vec").write_text("1 3\ncat 1 2 3\n")
    return folder, jax.device_get(params)


def read(folder, **changes):
    given = {
        "pretrained": str(folder / "encoder"), "encoder": SIZES, "word_vectors": str(folder / "words.vec"),
        "words": set(WORDS), "embedding_size": 3, **changes,
    }  # fmt: skip
    return read_starts(**given)


def test_each_kind_of_model_takes_what_is_for_it(published):
    folder, stored = published
    starts = read(folder)
    transformer = starting_params(TRANSFORMER, initialize(TRANSFORMER), starts, words=WORDS, seed=0)
    jax.tree.map(np.testing.assert_array_equal, transformer["encoder"], stored)
    fresh = meta.unbox(jax.jit(initialize(TRANSFORMER))(jax.random.key(0)))
    np.testing.assert_array_equal(transformer["output"]["kernel"], fresh["output"]["kernel"])
    recurrent = starting_params(RECURRENT, initialize(RECURRENT), starts, words=WORDS, seed=0)
    assert recurrent["word"].shape == (11, 3) and recurrent["word"][1].tolist() == [1, 2, 3]


def test_without_anything_published_all_is_random():
    starts = read_starts(pretrained="", encoder=SIZES, word_vectors="", words=(), embedding_size=3)
    assert starts == Starts(None, {})
    for model in (TRANSFORMER, RECURRENT):
        assert starting_params(model, initialize(model), starts, words=WORDS, seed=0) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": "/does/not/exist"}, "/does/not/exist"),
        ({"word_vectors": "/does/not/exist"}, "no file of word vectors at /does/not/exist"),
        ({"embedding_size": 4}, r"words\.vec:2: expected a word and 4 numbers"),
        ({"encoder": EncoderConfig()}, "has architecture distilbert, expected the configuration's bert"),
    ],
)
def test_what_does_not_fit_is_refused(published, changes, message):
    with pytest.raises(ValueError, match=message):
        read(published[0], **changes)
