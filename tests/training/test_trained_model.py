"""The folder `model/` of a run: what the library and transformers read of it."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.data import load_tokenizer, word_tokenizer
from jaxcore.distributed import MeshConfig, make_mesh, tree_shardings
from jaxcore.models import Decoder, DecoderConfig, Encoder, EncoderConfig, load_pretrained
from jaxcore.models.bag_of_words import BagOfWordsConfig, BagOfWordsEncoder
from jaxcore.models.classifier import ClassifierConfig, EncoderClassifier, load_classifier
from jaxcore.models.recurrent import RecurrentClassifier, RecurrentConfig
from jaxcore.models.recurrent_directory import load_recurrent
from jaxcore.training import open_run_directory, params_digest
from jaxcore.training.trained_model import write_trained_model

SIZES = {"vocab_size": 11, "num_layers": 2, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12}
ENCODER = EncoderConfig(max_positions=16, pooler="none", **SIZES)
MODELS = {
    "encoder": Encoder(ENCODER),
    "decoder": Decoder(DecoderConfig(num_key_value_heads=2, head_size=4, max_positions=16, **SIZES)),
    "classifier": EncoderClassifier(ClassifierConfig(EncoderConfig(max_positions=16, pooler="cls_tanh", **SIZES), 2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_in_parts_come_back_bit_by_bit_and_transformers_reads_them(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch", reason="parity tests need the extra 'torch'")
    model, mesh = MODELS[name], make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), meta.unbox(boxed))
    params = jax.device_put(drawn, tree_shardings(boxed, mesh))
    labels = ("refund", "arrival")
    with contextlib.closing(open_run_directory(tmp_path / "run", MeshConfig(), resume=False)) as run:
        write_trained_model(run, model, params, labels=labels if name == "classifier" else None)
    folder = tmp_path / "run" / "model"
    if name == "classifier":
        _, loaded, named = load_classifier(folder)
        assert named == labels
    else:
        _, loaded = load_pretrained(folder)
    assert params_digest(loaded) == params_digest(params)
    autos = {
        "encoder": transformers.AutoModel,
        "decoder": transformers.AutoModelForCausalLM,
        "classifier": transformers.AutoModelForSequenceClassification,
    }
    autos[name].from_pretrained(folder)
    assert "architectures" in json.loads((folder / "config.json").read_text())


def test_a_recurrent_classifier_is_written_for_the_library_alone(tmp_path):
    model = RecurrentClassifier(RecurrentConfig(vocab_size=11, embedding_size=4, hidden_size=3, attention_size=2))
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    tokenizer = word_tokenizer(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"], start_token=False, end_token=False, lowercase=True
    )
    with contextlib.closing(open_run_directory(tmp_path / "run", MeshConfig(), resume=False)) as run:
        write_trained_model(run, model, params, tokenizer=tokenizer, labels=("bad", "good"))
    folder = tmp_path / "run" / "model"
    loaded, stored, labels = load_recurrent(folder)
    assert loaded.config == model.config and labels == ("bad", "good")
    assert params_digest(stored) == params_digest(meta.unbox(params))
    assert load_tokenizer(folder)("Word word x")["input_ids"] == [5, 5, 1]


def test_a_model_that_transformers_does_not_know_is_left_to_the_checkpoints(tmp_path):
    model = BagOfWordsEncoder(BagOfWordsConfig(vocab_size=11))
    params = model.init(jax.random.key(0), jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2), jnp.int32))["params"]
    with contextlib.closing(open_run_directory(tmp_path / "run", MeshConfig(), resume=False)) as run:
        write_trained_model(run, model, params)
    assert not (tmp_path / "run" / "model").exists()
