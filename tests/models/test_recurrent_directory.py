"""Recurrent classifiers on disk: there and back bit by bit, on a mesh, and what is said of damaged directories."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from safetensors.numpy import load_file, save_file

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.models.recurrent import RecurrentClassifier, RecurrentConfig
from jaxcore.models.recurrent_directory import holds_recurrent, load_recurrent, save_recurrent

CONFIG = RecurrentConfig(
    vocab_size=16, embedding_size=8, hidden_size=4, num_layers=2, num_classes=3, attention_size=8, dropout=0.25
)
LABELS = ("entailment", "neutral", "contradiction")


def drawn(config):
    ids = jnp.ones((1, 2), jnp.int32)
    texts = (ids, ids) * (2 if config.inputs == "pair" else 1)
    shapes = meta.unbox(jax.eval_shape(RecurrentClassifier(config).init, jax.random.key(0), *texts)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture
def folder(tmp_path):
    save_recurrent(tmp_path / "model", CONFIG, drawn(CONFIG), LABELS)
    return tmp_path / "model"


@pytest.mark.parametrize("inputs", ["single", "pair"])
@pytest.mark.parametrize("attention", ["additive", "dot", "uniform"])
def test_what_was_saved_comes_back_bit_by_bit(tmp_path, inputs, attention):
    config = dataclasses.replace(CONFIG, inputs=inputs, attention=attention, trainable_embeddings=False)
    params = drawn(config)
    save_recurrent(tmp_path, RecurrentClassifier(config), params, LABELS)
    model, loaded, labels = load_recurrent(tmp_path)
    assert model.config == config and labels == LABELS and holds_recurrent(tmp_path)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_parameters_go_to_their_shards_and_overrides_count(folder):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model, loaded, _ = load_recurrent(folder, config_overrides={"dtype": "bfloat16"}, sharding=mesh)
    assert model.config.dtype == "bfloat16"
    assert not loaded["word"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), drawn(CONFIG))
    pair = dataclasses.replace(CONFIG, inputs="pair")
    save_recurrent(folder, pair, drawn(pair), overwrite=True)
    model, loaded, labels = load_recurrent(folder, sharding=mesh, dtype="bfloat16")
    assert model.config == pair and labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert loaded["output"]["kernel"].dtype == jnp.bfloat16


def with_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def with_settings(folder, **changes):
    settings = json.loads((folder / "config.json").read_text())
    settings = {name: value for name, value in {**settings, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: with_tensors(f, lambda t: t.pop("attention.vector")),
            r"missing tensor attention.vector of shape \(8",
        ),
        (lambda f: with_tensors(f, lambda t: t.update(extra=np.ones(2))), "unexpected tensor extra"),
        (
            lambda f: with_tensors(f, lambda t: t.update({"output.bias": np.ones(4, np.float32)})),
            r"output.bias has shape \(4,\), expected \(3,\) for a single recurrent classifier of 2 layers",
        ),
        (lambda f: with_tensors(f, lambda t: t.update(word=np.ones((16, 8), np.int32))), "word has dtype I32"),
        (lambda f: with_settings(f, attention="dot"), "missing tensor attention.query"),
        (lambda f: with_settings(f, hidden_size=None), "no hidden_size"),
        (lambda f: with_settings(f, hidden_size="4"), "hidden_size must be a int, got '4'"),
        (lambda f: with_settings(f, hidden_size=0), "hidden_size must be positive"),
        (lambda f: with_settings(f, id2label={"0": "a"}), "id2label has the ids 0, but the head has 3 classes"),
        (lambda f: with_settings(f, architectures=["BertModel"]), "architectures is not"),
        (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    ],
)
def test_damage_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_recurrent(folder)


def test_what_cannot_be_saved_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="exists: choose another directory, or pass overwrite=True"):
        save_recurrent(folder, CONFIG, drawn(CONFIG))
    with pytest.raises(ValueError, match="labels must be 3 distinct names"):
        save_recurrent(tmp_path / "other", CONFIG, drawn(CONFIG), ["a", "a", "b"])
    with pytest.raises(ValueError, match="attention/bias is unexpected in params"):
        save_recurrent(tmp_path / "other", dataclasses.replace(CONFIG, attention="dot"), drawn(CONFIG))
    with pytest.raises(ValueError, match="unknown field 'width'"):
        load_recurrent(folder, config_overrides={"width": 3})
    assert not holds_recurrent(tmp_path) and not (tmp_path / "other").exists()
