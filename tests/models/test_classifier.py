"""Sequence classifiers against transformers' torch models, their saving, and damaged checkpoints."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcore.models import EncoderConfig, count_parameters, load_pretrained, save_pretrained
from jaxcore.models.classifier import (
    ClassifierConfig,
    EncoderClassifier,
    load_classifier,
    save_classifier,
    with_encoder,
)
from jaxcore.transforms import capture

FAMILIES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "xlm-roberta": "XLMRoberta"}
LABELS = ("world", "sports", "science & technology")


def torch_classifier(family: str, **changes):
    """A tiny random transformers classifier; norms and biases too are away from their initial values."""
    torch = pytest.importorskip("torch", reason="parity tests need the extra 'torch'")
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 31, "max_position_embeddings": 16, "pad_token_id": int("roberta" in family)}
    if family == "distilbert":
        sizes |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "seq_classif_dropout": 0.3}
    else:
        sizes |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        sizes |= {"type_vocab_size": 2, "classifier_dropout": 0.3}
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    config = transformers.AutoConfig.for_model(family, **{**sizes, **labels, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def texts(pad: int):
    ids = np.random.default_rng(0).integers(2, 31, (3, 10)).astype(np.int32)
    mask = (np.arange(10) < np.array([[10], [6], [3]])).astype(np.int32)
    return np.where(mask == 1, ids, pad).astype(np.int32), mask


def torch_logits(model, ids, mask):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).logits.numpy()


def logits(model, params, ids, mask):
    return jax.jit(model.apply)({"params": params}, ids, mask).logits


def config_of(architecture: str, **changes) -> ClassifierConfig:
    encoder = EncoderConfig(
        vocab_size=31, num_layers=1, hidden_size=16, num_heads=2, intermediate_size=24, max_positions=16,
        architecture=architecture, pooler="cls_tanh" if architecture == "bert" else "none",
        position_offset=int(architecture == "roberta"), num_token_types=0 if architecture == "distilbert" else 2,
    )  # fmt: skip
    return ClassifierConfig(encoder, **{"num_classes": 3, **changes})


def drawn(config: ClassifierConfig):
    variables = nn.meta.unbox(
        jax.eval_shape(EncoderClassifier(config).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), variables["params"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small DistilBERT classifier of our own, for tests that need no torch."""
    config = config_of("distilbert")
    params = drawn(config)
    directory = tmp_path_factory.mktemp("classifier")
    save_classifier(directory, config, params, LABELS)
    return directory, config, params


@pytest.fixture
def copied(saved, tmp_path):
    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def rewrite_config(directory, **changes):
    file = directory / "config.json"
    settings = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_match_torch_and_survive_both_directions(family, tmp_path):
    reference = torch_classifier(family)
    reference.save_pretrained(tmp_path / "theirs", safe_serialization=True)
    model, params, labels = load_classifier(tmp_path / "theirs")
    assert labels == LABELS and model.config.num_classes == 3 and model.config.head_dropout == 0.3
    assert count_parameters(params) == sum(parameter.numel() for parameter in reference.parameters())
    ids, mask = texts(model.config.encoder.pad_token_id)
    expected = torch_logits(reference, ids, mask)
    got = logits(model, params, ids, mask)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.ptp(expected, axis=0).min() > 0.01  # logits that tell texts apart, or the comparison says little
    save_classifier(tmp_path / "ours", model, params, labels)
    transformers = pytest.importorskip("transformers")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    assert type(again).__name__ == f"{FAMILIES[family].removeprefix('XLM')}ForSequenceClassification"
    assert again.config.id2label == dict(enumerate(LABELS))
    np.testing.assert_array_equal(torch_logits(again, ids, mask), expected)


def test_default_labels_and_dropout_of_transformers(tmp_path):
    torch_classifier(
        "bert", id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id=None, classifier_dropout=None, hidden_dropout_prob=0.25
    ).save_pretrained(tmp_path)
    model, _, labels = load_classifier(tmp_path)
    assert labels == ("LABEL_0", "LABEL_1") and model.config.head_dropout == 0.25


@pytest.mark.parametrize("architecture", ("bert", "roberta", "distilbert"))
def test_round_trip(architecture, tmp_path):
    config = config_of(architecture, head_dropout=0.2)
    params = drawn(config)
    save_classifier(tmp_path, EncoderClassifier(config), params, LABELS)
    model, again, labels = load_classifier(tmp_path)
    assert model.config == config and labels == LABELS
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert sorted(again) == sorted(params)
    encoder, encoder_params = load_pretrained(tmp_path)  # an encoder still, for those who want no head
    assert encoder.config == config.encoder
    jax.tree.map(np.testing.assert_array_equal, encoder_params, params["encoder"])


def test_head_by_its_equation(saved):
    directory, _, params = saved
    model, again, _ = load_classifier(directory)
    ids, mask = texts(0)
    run = jax.jit(capture(lambda: model.apply({"params": again}, ids, mask), ["pooled", "logits", "token_embeddings"]))
    output, seen = run()
    first = np.asarray(output.last_hidden_state[:, 0], np.float64)
    pooled = np.maximum(first @ params["dense"]["kernel"] + params["dense"]["bias"], 0)
    np.testing.assert_allclose(seen["pooled"], pooled, atol=1e-5)
    np.testing.assert_allclose(output.logits, pooled @ params["output"]["kernel"] + params["output"]["bias"], atol=1e-5)
    np.testing.assert_array_equal(seen["logits"], output.logits)
    assert seen["token_embeddings"].shape == (3, 10, 16)


def test_head_dropout_acts_in_training_only():
    config = config_of("roberta", head_dropout=0.5)
    config = dataclasses.replace(
        config, encoder=dataclasses.replace(config.encoder, dropout=0.0, attention_dropout=0.0)
    )
    model, params = EncoderClassifier(config), drawn(config)
    ids, mask = texts(1)

    @jax.jit
    def train(key):
        return model.apply({"params": params}, ids, mask, deterministic=False, rngs={"dropout": key}).logits

    a, b = train(jax.random.key(0)), train(jax.random.key(1))
    assert np.abs(a - b).max() > 1e-3 and np.abs(a - logits(model, params, ids, mask)).max() > 1e-3


def test_every_parameter_can_be_placed_by_its_path(saved):
    directory, *_ = saved
    seen = []
    device = jax.devices()[1]

    def place(path):
        seen.append(path)
        return jax.sharding.SingleDeviceSharding(device)

    _, placed, _ = load_classifier(directory, sharding=place, dtype="bfloat16")
    assert {"encoder/layers/mlp_in/kernel", "dense/kernel", "output/bias"} <= set(seen)
    leaves = jax.tree.leaves(placed)
    assert len(seen) == len(leaves) and all(leaf.devices() == {device} and leaf.dtype == "bfloat16" for leaf in leaves)


def test_an_encoder_trained_before_takes_its_place(saved, tmp_path):
    _, config, params = saved
    encoder_params = jax.tree.map(lambda leaf: leaf + 1, params["encoder"])
    save_pretrained(tmp_path, config.encoder, encoder_params)
    joined = with_encoder(params, load_pretrained(tmp_path)[1])
    jax.tree.map(np.testing.assert_array_equal, joined["encoder"], encoder_params)
    np.testing.assert_array_equal(joined["output"]["kernel"], params["output"]["kernel"])
    with pytest.raises(ValueError, match=r"encoder parameter embeddings/token_type is \(2, 16\), expected absent"):
        with_encoder(params, drawn(config_of("bert"))["encoder"])
    with pytest.raises(ValueError, match="no classification head"):
        rewrite_config(tmp_path, architectures=None)
        load_classifier(tmp_path)


def test_damaged_directories_are_refused(copied):
    rewrite_config(copied, architectures=["DistilBertForTokenClassification"])
    with pytest.raises(ValueError, match="DistilBertForTokenClassification"):
        load_classifier(copied)
    rewrite_config(copied, architectures=None, id2label={"0": "a", "1": "b"})
    with pytest.raises(ValueError, match="id2label has the ids 0, 1, but the head has 3 classes"):
        load_classifier(copied)
    rewrite_config(copied, id2label=None)
    assert load_classifier(copied)[2] == ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(ValueError, match="pooler is part of its head"):
        load_classifier(copied, config_overrides={"pooler": "mean"})
    with pytest.raises(ValueError, match="unknown field 'depth'"):
        load_classifier(copied, config_overrides={"depth": 3})
    tensors = load_file(copied / "model.safetensors")
    save_file({**tensors, "pre_classifier.bias": np.zeros(7, np.float32)}, copied / "model.safetensors")
    with pytest.raises(ValueError, match=r"pre_classifier\.bias has shape \(7,\), expected \(16,\)"):
        load_classifier(copied)
    save_file({k: v for k, v in tensors.items() if k != "pre_classifier.weight"}, copied / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing tensor pre_classifier\.weight"):
        load_classifier(copied)


def test_saving_refuses_what_it_cannot_keep(saved, copied):
    _, config, params = saved
    with pytest.raises(ValueError, match=r"exists: choose another directory"):
        save_classifier(copied, config, params, LABELS)
    save_classifier(copied, config, params, ("a", "b", "c"), overwrite=True)
    assert load_classifier(copied)[2] == ("a", "b", "c")
    for labels in (("a", "b"), ("a", "a", "b")):
        with pytest.raises(ValueError, match="3 distinct names"):
            save_classifier(copied, config, params, labels, overwrite=True)
    with pytest.raises(ValueError, match="output/bias is missing from params"):
        save_classifier(copied, config, {**params, "output": {"kernel": params["output"]["kernel"]}}, overwrite=True)


def test_settings_that_make_no_classifier():
    with pytest.raises(ValueError, match="a bert classifier reads pooler='cls_tanh', got 'mean'"):
        ClassifierConfig(EncoderConfig(pooler="mean"))
    with pytest.raises(ValueError, match="num_classes must be positive"):
        ClassifierConfig(num_classes=0)
    with pytest.raises(ValueError, match=r"head_dropout must be in \[0, 1\)"):
        ClassifierConfig(head_dropout=1.0)
