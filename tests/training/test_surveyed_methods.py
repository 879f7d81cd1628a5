"""Every surveyed method is built from its row and takes a step on random ids; what sets rows apart, by hand."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcore.data.text_augmentation import make_lexicon
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.losses import info_nce
from jaxcore.models import Encoder, EncoderConfig, EncoderOutput, masked_mean
from jaxcore.training import method_objectives as objectives
from jaxcore.training.objective_families import empty_memory
from jaxcore.training.surveyed_methods import NUM_POSITIVES, SURVEYED_METHODS, Corpus, make_instances

VOCAB, ROWS, LENGTH, SPAN, CLASSES = 64, 8, 32, 8, 4
CONFIG = EncoderConfig(
    vocab_size=VOCAB,
    num_layers=1,
    hidden_size=16,
    num_heads=2,
    intermediate_size=16,
    max_positions=80,
    num_token_types=1,
    dropout=0.1,
    attention_dropout=0.0,
    pooler="mean",
)


class Embeddings(nn.Module):
    """The word table where an `Encoder` has it."""

    @nn.compact
    def __call__(self, ids):
        return jnp.take(self.param("word", nn.initializers.normal(0.3), (VOCAB, CONFIG.hidden_size)), ids, axis=0)


class TinyEncoder(nn.Module):
    """What an `Encoder` is to the methods, in two products: it compiles in a fraction of the time."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, ids, mask=None, *, deterministic=True):
        x = Embeddings(name="embeddings")(ids)
        context = masked_mean(x, None if mask is None else mask.astype(bool))
        x = nn.Dropout(0.1, deterministic=deterministic)(jnp.tanh(nn.Dense(x.shape[-1])(x + context[:, None])))
        return EncoderOutput(x, masked_mean(x, None if mask is None else mask.astype(bool)))


MODEL = TinyEncoder(CONFIG)
MESH = make_mesh(MeshConfig(), jax.devices()[:1])


def corpus(seed=0):
    rng = np.random.default_rng(seed)
    words = {word: (word + 1, word + 2) for word in range(10, VOCAB - 2, 2)}
    return Corpus(
        ids=rng.integers(4, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        mask=np.ones((ROWS, LENGTH), np.int32),
        paired_ids=rng.integers(4, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        paired_mask=(np.arange(LENGTH) < rng.integers(4, LENGTH, (ROWS, 1))).astype(np.int32),
        documents=np.repeat([0, 1], ROWS // 2),
        classes=np.arange(ROWS) % CLASSES,
        label_ids=rng.integers(4, VOCAB, (CLASSES, 3)).astype(np.int32),
        label_mask=np.ones((CLASSES, 3), bool),
        synonyms=make_lexicon(words, vocab_size=VOCAB),
        antonyms=make_lexicon(words, vocab_size=VOCAB),
    )


def built(name, *, seed=0):
    """Method, parameters, memory and batch of a row."""
    method = SURVEYED_METHODS[name]
    batch = make_instances(method, corpus(seed), np.random.default_rng(seed), span_length=SPAN)
    batch = {key: jnp.asarray(value) for key, value in batch.items()}
    params = objectives.init_method(method, MODEL, jax.random.key(seed), num_classes=CLASSES)
    memory = empty_memory(params["encoder"], MESH, size=2 * ROWS, dim=CONFIG.hidden_size)
    return method, params, memory, batch


quickly_compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("name", SURVEYED_METHODS)
def test_the_row_takes_a_step_that_reaches_all_its_parts(name):
    method, params, memory, batch = built(name)
    optimizer = optax.sgd(0.1)
    step = quickly_compiled(objectives.make_method_step(method, MODEL, optimizer))
    state = params, optimizer.init(params), memory
    updates = 2 if method.encoders == "momentum" else 1  # the first meets an empty queue
    for number in range(updates):
        *state, losses = step(*state, batch, jax.random.key(number))
    assert set(losses) == set(method.terms)
    assert all(np.isfinite(value) for value in losses.values()), losses
    assert all(value > 0 for value in losses.values()), losses
    moved = jax.tree.map(lambda new, old: bool(np.any(np.asarray(new) != np.asarray(old))), state[0], params)
    for part, leaves in moved.items():
        assert any(jax.tree.leaves(leaves)), f"{part} did not learn"
    target_moved = any(
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (state[2].target, memory.target)), strict=True)
    )
    assert target_moved == (method.encoders == "momentum")
    assert int(state[2].queue.filled) == (2 * ROWS if method.encoders == "momentum" else 0)


def test_a_row_trains_the_transformer():
    """The others take a smaller stand-in; both are called alike."""
    method, _, memory, batch = built("electric")
    params = objectives.init_method(method, Encoder(CONFIG), jax.random.key(0))
    optimizer = optax.sgd(0.1)
    step = quickly_compiled(objectives.make_method_step(method, Encoder(CONFIG), optimizer))
    moved, *_, losses = step(params, optimizer.init(params), memory, batch, jax.random.key(1))
    assert all(np.isfinite(value) and value > 0 for value in losses.values())
    assert np.any(moved["encoder"]["layers"]["mlp_in"]["kernel"] != params["encoder"]["layers"]["mlp_in"]["kernel"])


def losses_of(name, *, params=None, key=0):
    method, fresh, memory, batch = built(name)
    return objectives.method_losses(
        method, MODEL, fresh if params is None else params, memory, batch, jax.random.key(key)
    )


def test_the_detector_teaches_the_generator_nothing():
    for name, term in (("electra", "electra"), ("electric", "electric"), ("coco_lm", "corrective_language_model")):
        _, params, _, _ = built(name)
        gradient = jax.grad(lambda p, name=name, term=term: losses_of(name, params=p)[term])(params)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["generator"]))
        assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["encoder"]))


def test_generator_and_detector_see_one_sample_a_step():
    method, params, memory, batch = built("electra")
    forward = objectives.Forward(method, MODEL, params, memory, batch, jax.random.key(7))
    tokens, masked, log_noise = objectives._generated(forward)
    again, _, _ = objectives._generated(forward)
    np.testing.assert_array_equal(tokens, again)
    np.testing.assert_array_equal(np.asarray(tokens)[~masked], np.asarray(batch["first_ids"])[~masked])
    _, of_generator = objectives._cloze(forward, batch["first_ids"], batch["first_mask"])
    np.testing.assert_array_equal(masked, of_generator)
    assert 0.05 < np.mean(masked) < 0.3 and np.all(log_noise < 0)


def test_declutr_averages_the_positives_of_an_anchor():
    method, params, memory, batch = built("declutr")
    forward = objectives.Forward(method, MODEL, params, memory, batch, jax.random.key(0))
    single = forward.pooled(batch["second_ids"], batch["second_mask"], stream=2)
    expected = np.asarray(single).reshape(-1, NUM_POSITIVES, CONFIG.hidden_size).mean(axis=1)
    np.testing.assert_allclose(forward.second(), expected, rtol=1e-5, atol=1e-7)
    assert forward.first().shape == expected.shape == (2 * ROWS, CONFIG.hidden_size)


def test_simcse_contrasts_dropout_twins():
    method, params, memory, batch = built("simcse")
    forward = objectives.Forward(method, MODEL, params, memory, batch, jax.random.key(0))
    first, second = forward.first(), forward.second()
    assert np.abs(first - second).max() > 1e-3
    assert losses_of("simcse")["info_nce"] == pytest.approx(float(info_nce(first, second, temperature=0.05)), rel=1e-5)


def test_a_label_that_several_texts_share_is_no_negative_of_any():
    batch = make_instances(SURVEYED_METHODS["gile"], corpus(), np.random.default_rng(0))
    labels, own = corpus().label_ids, corpus().classes
    for row in range(ROWS):
        negatives = batch["label_ids"][row, 4:][batch["label_counted"][row, 4:]]
        assert not (negatives == labels[own[row]]).all(axis=1).any()
        positives = batch["label_ids"][row, :4][batch["label_counted"][row, :4]]
        np.testing.assert_array_equal(positives, labels[own[row]][None])


def test_cline_learns_its_weights_and_the_others_do_not():
    for name, method in SURVEYED_METHODS.items():
        params = jax.eval_shape(lambda m=method: objectives.init_method(m, MODEL, jax.random.key(0), num_classes=2))
        assert ("log_variances" in params) == (name == "cline")


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("cert", "paired_ids", "paired needs paired_ids"),
        ("conpono", "documents", "distances needs documents"),
        ("clear", "synonyms", "synonyms needs synonyms"),
        ("cline", "antonyms", "synonym_or_antonym needs antonyms"),
        ("gile", "label_ids", "label_texts needs label_ids"),
        ("coda", "classes", "needs classes"),
    ],
)
def test_what_a_corpus_lacks_is_named(name, field, message):
    with pytest.raises(ValueError, match=message):
        make_instances(SURVEYED_METHODS[name], corpus()._replace(**{field: None}), np.random.default_rng(0))


def test_bad_rows_are_refused():
    method = dataclasses.replace(SURVEYED_METHODS["simcse"], terms={"info_nse": 1.0})
    with pytest.raises(ValueError, match=r"unknown terms \['info_nse'\]: expected some of info_nce"):
        objectives.init_method(method, MODEL, jax.random.key(0))
    with pytest.raises(ValueError, match="too short for 2 anchors"):
        make_instances(SURVEYED_METHODS["declutr"], corpus(), np.random.default_rng(0), span_length=9)
