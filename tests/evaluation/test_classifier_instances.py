"""Instances of classifiers: what is explained is what the model reads, and baselines are padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.data.classification_task import ClassificationDataConfig, open_classification_task
from jaxcore.evaluation.classifier_instances import Given, apply_model, instances_of, layout_of
from jaxcore.models.classifier import ClassifierConfig, EncoderClassifier
from jaxcore.models.encoder_config import EncoderConfig
from jaxcore.models.recurrent import RecurrentClassifier, RecurrentConfig

DATA = ClassificationDataConfig(num_train=64, num_dev=8, num_test=8)


@functools.cache
def pieces(kind, task_name):
    """A fresh model, what its explanations take, and three texts."""
    task = open_classification_task(task_name, DATA, seed=0)
    shape = task.shape
    if kind == "recurrent":
        sizes = RecurrentConfig(
            vocab_size=shape.vocab_size, num_classes=shape.num_classes, embedding_size=6, hidden_size=4,
            attention_size=4, inputs="pair" if shape.is_pair else "single",
        )  # fmt: skip
        model = RecurrentClassifier(sizes)
    else:
        encoder = EncoderConfig(
            vocab_size=shape.sequence_vocab_size, num_layers=1, hidden_size=8, num_heads=2, intermediate_size=8,
            max_positions=48, num_token_types=0, architecture="distilbert", pooler="none", initializer_range=0.2,
            attention_implementation="explicit",
        )  # fmt: skip
        model = EncoderClassifier(ClassifierConfig(encoder, shape.num_classes))
    rows = task.inputs(task.splits["dev"].take(np.arange(3)), layout_of(model))
    params = jax.jit(model.init)(jax.random.key(0), *rows.values())["params"]
    batch = {name: jnp.asarray(value) for name, value in rows.items()} | {"number": jnp.arange(3)}
    return model, Given(params, {name: value[:2] for name, value in rows.items()}, jnp.uint32(0)), batch


@pytest.mark.parametrize(
    ("kind", "task"), [("recurrent", "sentiment"), ("recurrent", "overlap"), ("transformer", "overlap")]
)
def test_what_is_explained_is_what_the_model_reads_and_baselines_are_padding(kind, task):
    model, given, batch = pieces(kind, task)

    @jax.jit
    def found(given, batch):
        instances = instances_of(model, given, batch)
        assert len(instances.embeddings) == (2 if (kind, task) == ("recurrent", "overlap") else 1)
        logits = instances.predict(instances.embeddings), apply_model(model, given.params, batch).logits
        return logits, *instances[1:5]

    (logits, expected), embeddings, masks, baselines, references = found(given, batch)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    for embedding, mask, baseline, reference in zip(embeddings, masks, baselines, references, strict=True):
        difference = np.abs(np.asarray(embedding) - baseline).max(axis=-1)
        assert np.all(difference[~mask] < 1e-6) and np.all(difference[mask] > 1e-3)
        np.testing.assert_allclose(reference, embedding[:2], atol=1e-6)
        per_position = np.ptp(np.asarray(baseline)[0], axis=0).max() > 1e-3  # positions are part of the embedding
        assert per_position == (kind == "transformer")


def test_other_embeddings_give_other_logits_and_masks_stay():
    model, given, batch = pieces("transformer", "overlap")

    @jax.jit
    def at_baseline(given, batch):
        instances = instances_of(model, given, batch)
        tokens = [jnp.broadcast_to(b, e.shape) for b, e in zip(instances.baseline, instances.embeddings, strict=True)]
        noisy = [jnp.where(m[..., None], t, t + 5) for m, t in zip(instances.masks, tokens, strict=True)]
        return (
            instances.predict(tuple(tokens)),
            instances.predict(tuple(noisy)),
            instances.predict(instances.embeddings),
        )

    baseline, noisy, own = at_baseline(given, batch)
    np.testing.assert_allclose(baseline, noisy, rtol=1e-5, atol=1e-6)
    assert np.abs(baseline - own).max() > 1e-4


def test_the_first_number_of_a_batch_and_the_seed_decide_the_key():
    model, given, batch = pieces("recurrent", "sentiment")

    def key(seed, first):
        rows = {**batch, "number": first + jnp.arange(3)}
        return tuple(jax.random.key_data(instances_of(model, given._replace(seed=seed), rows).key).tolist())

    assert len({key(seed, first) for seed in (0, 1) for first in (0, 3)}) == 4
