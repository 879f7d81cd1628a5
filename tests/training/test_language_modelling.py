"""Language-model training: the objective from its parts, a language that is learnt, adapters alone, perplexity."""

import contextlib
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.losses import token_margin_contrast
from jaxcore.models import Decoder, DecoderConfig
from jaxcore.models.lora import LoraConfig
from jaxcore.training import LoopConfig, OptimizerConfig, Preempted, open_run_directory, params_digest
from jaxcore.training.language_modelling import (
    LanguageModelConfig,
    LanguageModelObjective,
    fit_language_model,
    language_model_gradients,
    language_model_initializer,
    language_model_loss,
    mean_negative_log_likelihood,
    merged_params,
    perplexity,
)

VOCABULARY, TIME = 8, 6
MODEL = Decoder(
    DecoderConfig(
        vocab_size=VOCABULARY, num_layers=1, hidden_size=16, num_heads=2, num_key_value_heads=2, head_size=8,
        intermediate_size=16, max_positions=TIME,
    )
)  # fmt: skip
CONFIG = LanguageModelConfig(
    num_steps=40,
    batch_size=16,
    optimizer=OptimizerConfig(learning_rate=2e-2, warmup_fraction=0.1, clip_norm=1.0),
    loop=LoopConfig(checkpoint_every=0),
)
LORA = LoraConfig(rank=2, targets=("c_attn", "c_fc"))


def counting_rows(count, stride=1):
    """Texts in which every token is the one before plus `stride`; the last row is shorter."""
    ids = (np.arange(count)[:, None] + stride * np.arange(TIME)) % VOCABULARY
    mask = np.ones((count, TIME), np.int32)
    mask[-1, 3:] = 0
    return {"input_ids": ids.astype(np.int32), "attention_mask": mask}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=4, tensor=2))


@pytest.fixture(scope="module")
def fresh():
    return meta.unbox(jax.jit(MODEL.init)(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"])


@pytest.fixture(scope="module")
def trained(mesh, tmp_path_factory):
    run = open_run_directory(tmp_path_factory.mktemp("lm") / "run", CONFIG, resume=False)
    params = fit_language_model(MODEL, counting_rows(32), config=CONFIG, seed=0, mesh=mesh, run=run)
    run.close()
    return jax.tree.map(jnp.asarray, jax.device_get(params))


def test_a_language_is_learnt(trained, fresh, mesh):
    before = perplexity(MODEL, fresh, counting_rows(16), batch_size=8, mesh=mesh)
    after = perplexity(MODEL, trained, counting_rows(16), batch_size=8, mesh=mesh)
    assert before == pytest.approx(VOCABULARY, rel=0.2) and after < 1.2


def test_the_likelihood_is_pooled_over_tokens_whatever_the_batch(trained, mesh):
    rows = counting_rows(11)
    logits = MODEL.apply({"params": trained}, rows["input_ids"], rows["attention_mask"]).logits
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    expected = -np.mean(
        [
            log_probs[b, t - 1, rows["input_ids"][b, t]]
            for b in range(11)
            for t in range(1, TIME)
            if rows["attention_mask"][b, t]
        ]
    )
    for options in ({"batch_size": 8}, {"batch_size": 16, "logits_chunk": 2}):
        found = mean_negative_log_likelihood(MODEL, trained, rows, mesh=mesh, **options)
        assert found == pytest.approx(expected, rel=1e-5)
    assert perplexity(MODEL, trained, rows, batch_size=8, mesh=mesh) == pytest.approx(math.exp(expected), rel=1e-5)


def test_simctg_adds_the_contrast_of_last_states(fresh):
    rows = counting_rows(4)
    plain = language_model_loss(MODEL, fresh, rows, LanguageModelObjective())
    both = language_model_loss(MODEL, fresh, rows, LanguageModelObjective(margin_weight=2.0, margin=0.7))
    hidden = MODEL.apply({"params": fresh}, rows["input_ids"], rows["attention_mask"]).last_hidden_state
    contrast = token_margin_contrast(hidden, jnp.asarray(rows["attention_mask"]), margin=0.7)
    assert contrast > 1e-3 and both - plain == pytest.approx(2 * float(contrast), rel=1e-4)


def test_answers_only(fresh):
    rows = counting_rows(4)
    answers = {**rows, "target_mask": (np.arange(TIME) >= 3) * np.ones((4, 1), np.int32)}
    log_probs = jax.nn.log_softmax(MODEL.apply({"params": fresh}, rows["input_ids"], rows["attention_mask"]).logits)
    values = [log_probs[b, t - 1, rows["input_ids"][b, t]] for b in range(3) for t in (3, 4, 5)]
    assert language_model_loss(MODEL, fresh, answers, LanguageModelObjective()) == pytest.approx(
        -float(np.mean(values)), rel=1e-5
    )


def test_adapters_alone_are_trained(trained, mesh, tmp_path):
    other = counting_rows(32, stride=3)
    config = dataclasses.replace(CONFIG, num_steps=25)
    with pytest.raises(ValueError, match="no linear layer"):
        language_model_initializer(MODEL, LoraConfig(targets=("nothing",)))(jax.random.key(0))
    run = open_run_directory(tmp_path / "run", config, resume=False)
    params = fit_language_model(MODEL, other, config=config, seed=0, mesh=mesh, run=run, params=trained, lora=LORA)
    run.close()
    assert params_digest(params["base"]) == params_digest(trained)
    before, after = (
        perplexity(MODEL, tree, other, batch_size=8, mesh=mesh)
        for tree in (trained, merged_params(MODEL, params, LORA))
    )
    assert after < 0.5 * before

    def part(resume, **tick):
        with contextlib.closing(open_run_directory(tmp_path / "again", config, resume=resume)) as run:
            return fit_language_model(
                MODEL, other, config=config, seed=0, mesh=mesh, run=run, params=trained, lora=LORA, **tick
            )

    with pytest.raises(Preempted):
        part(False, tick=lambda step: step == 9)
    stored = (tmp_path / "again" / "checkpoints" / "9" / "state" / "_METADATA").read_text()
    assert "('params', 'adapters'" in stored and "('params', 'base'" not in stored
    assert params_digest(part(True)) == params_digest(params)


def test_gradients_of_adapters_are_those_of_the_merged_model(trained):
    params = language_model_initializer(MODEL, LORA)(jax.random.key(3))
    params = {"base": trained, "adapters": jax.tree.map(lambda leaf: leaf + 0.05, params["adapters"])}
    rows, objective = counting_rows(4, stride=2), LanguageModelObjective()
    value, gradient = language_model_gradients(MODEL, objective, lora=LORA)(params, rows, jax.random.key(0))
    merged = merged_params(MODEL, params, LORA)
    assert value == pytest.approx(float(language_model_loss(MODEL, merged, rows, objective)), rel=1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["base"]))
    name = next(iter(params["adapters"]))

    def moved(step):
        b = params["adapters"][name]["b"].at[0, 0, 0].add(step)
        adapters = {**params["adapters"], name: {**params["adapters"][name], "b": b}}
        changed = merged_params(MODEL, {**params, "adapters": adapters}, LORA)
        return float(language_model_loss(MODEL, changed, rows, objective))

    slope = (moved(2e-2) - moved(-2e-2)) / 4e-2
    assert gradient["adapters"][name]["b"][0, 0, 0] == pytest.approx(slope, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LanguageModelObjective(margin_weight=-1), "must be >= 0"),
        (lambda: LanguageModelConfig(batch_size=0), "batch_size >= 1"),
        (lambda: language_model_loss(MODEL, {}, {"ids": np.zeros((2, 3))}, LanguageModelObjective()), "input_ids"),
        (
            lambda: language_model_loss(
                MODEL, {}, {"input_ids": np.zeros((2, 3), int), "attention_mask": np.ones((2, 2))},
                LanguageModelObjective(),
            ),
            "one shape",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_packed_rows_have_no_token_contrast(fresh):
    rows = {"input_ids": np.zeros((2, 4), np.int32), "segment_ids": np.array([[1, 1, 2, 2], [1, 1, 1, 0]])}
    with pytest.raises(ValueError, match="a text per row"):
        language_model_loss(MODEL, fresh, rows, LanguageModelObjective(margin_weight=1))


def test_nothing_to_predict_is_said(fresh, mesh):
    rows = {"input_ids": np.zeros((2, 4), np.int32), "attention_mask": np.zeros((2, 4), np.int32)}
    with pytest.raises(ValueError, match="nothing to predict"):
        perplexity(MODEL, fresh, rows, batch_size=8, mesh=mesh)
