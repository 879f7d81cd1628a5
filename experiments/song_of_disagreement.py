"""A Song of (Dis)agreement: do explanation methods agree with each other? (Neely, Schouten, Bleeker and Lucic 2022).

What the paper claims. Explanations are compared by the Kendall tau-b of their rankings of the tokens of each instance.
Attention agrees weakly with every attribution method, and on a transformer the attribution methods hardly agree with
one another; only algorithmic relatives do. So agreement with some method says nothing about how good an explanation is.

How it is shown here. A BiLSTM with additive attention and a DistilBERT-shaped transformer are trained on the same
texts, the same instances are explained by every method, and all pairs are correlated per instance. Embedded data: a
generated language of opinions and generated inference pairs; ``--data.path`` takes the SST trees (and IMDb, SNLI, ...).

Two of the paper's rows need care. Its DeepLIFT never applied the rescale rule: `deeplift_as_run` is what it computed,
gradient x (input - baseline), and `deeplift_rescale` is DeepLIFT. Its Deep-SHAP averaged over copies of one baseline,
which is DeepLIFT again: `deep_shap` here averages over texts drawn from the training set.

Read top to bottom: configuration, presets, models, instances and methods, steps, run, agreement, report, claims.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from experiments.protocol import (
    Devices,
    Paper,
    Program,
    Step,
    abstract_rows,
    checked_mesh,
    results_of,
    single_run_note,
)
from jaxcore.attribution.ablation import feature_ablation
from jaxcore.attribution.agreement import AgreementMatrix, agreement_matrix, kendall_tau, pearson, spearman
from jaxcore.attribution.attention import attention_rollout, attention_weights, raw_attention
from jaxcore.attribution.attention_flow import attention_flow
from jaxcore.attribution.deeplift import deep_lift, deep_shap
from jaxcore.attribution.expected_gradients import expected_gradients
from jaxcore.attribution.feature_groups import token_groups
from jaxcore.attribution.gradients import input_x_gradient
from jaxcore.attribution.integrated_gradients import integrated_gradients
from jaxcore.attribution.scores import predicted_classes, probability
from jaxcore.attribution.surrogates import lime
from jaxcore.attribution.token_aggregation import abs_sum_over_dims, mean_over_dims
from jaxcore.data.classification_task import (
    ClassificationDataConfig,
    ClassificationTask,
    TaskShape,
    check_task,
    class_names,
    open_classification_task,
    task_shape,
)
from jaxcore.data.labelled_texts import LabelledTexts
from jaxcore.distributed import (
    MeshConfig,
    batch_sharding,
    current_ticker,
    jit_on_mesh,
    replicated,
)
from jaxcore.evaluation import Claim, Claims, Measured, RunValues, Verdict, judge_single_run, map_rows
from jaxcore.evaluation.bootstrap import bootstrap_interval
from jaxcore.evaluation.classifier_instances import Given, Instances, Model, apply_model, instances_of, layout_of
from jaxcore.evaluation.explainer_agreement import mean_over_pairs, pair_metrics, shuffled_tau
from jaxcore.models.classifier import ClassifierConfig, EncoderClassifier
from jaxcore.models.encoder_config import EncoderConfig
from jaxcore.models.recurrent import RecurrentClassifier, RecurrentConfig
from jaxcore.training import (
    LoopConfig,
    OptimizerConfig,
    Results,
    RunDirectory,
    abstract_state,
    check_run_directory,
    create_state,
    make_optimizer,
    make_train_step,
    one_shot_gradients,
    open_run_directory,
    read_metrics,
    run_part,
    write_results,
)
from jaxcore.training.classifier_starts import Starts, read_starts, starting_params
from jaxcore.training.classifier_training import ClassifierTrainingConfig, accuracy, fit_best_epoch
from jaxcore.training.random_streams import random_stream
from jaxcore.training.trained_model import write_trained_model

PAPER = Paper(
    title="A Song of (Dis)agreement: evaluating the evaluation of explainable artificial intelligence",
    year=2022,
    claim="Attention agrees with no attribution method, and on transformers these hardly agree with each other.",
    needs="nothing; gpu and pod: five tasks by TFDS or files (--data.path), DistilBERT and FastText's vectors",
)


# ---- configuration ---------------------------------------------------------------------------------------

ModelName = Literal["bilstm", "bilstm_uniform", "transformer"]

PILOT_METHODS = ("lime", "integrated_gradients", "deeplift_as_run", "grad_shap")
"""The attribution methods of the small-scale experiment, for which its criteria were set."""
PAPER_METHODS = (*PILOT_METHODS, "deep_shap")
"""The attribution methods of the paper's tables, beside the attention of `ATTENTION`."""
METHOD_NAMES = (*PAPER_METHODS, "deeplift_rescale", "feature_ablation")
"""All of `METHODS`."""


@dataclasses.dataclass(frozen=True)
class ExplanationConfig:
    """What is explained, and the settings of the methods (the paper's, where it says)."""

    methods: tuple[str, ...] = METHOD_NAMES
    """Attribution methods, keys of `METHODS`; attention comes with the model. The first four are always among them."""
    num_instances: int = 60
    """Test instances per seed, the same for all models; 500 in the paper, 60 in the pilot."""
    batch_size: int = 60
    """Instances explained at once, over all devices."""
    lime_samples: int = 1000
    integration_steps: int = 50
    shap_samples: int = 5
    """Draws of Grad-SHAP, all from the one padding baseline, as in the paper."""
    num_baselines: int = 8
    """Training texts that Deep-SHAP averages over [inferred]."""
    flow_longest: int = 48
    """Attention flow, a maximum flow per token on the host, is left out where rows are longer than this."""
    chunk_size: int = 0
    """Steps, samples and ablated tokens evaluated together; 0: as many as fit the memory."""
    resamples: int = 2000
    """Of the bootstrap over instances."""

    def __post_init__(self) -> None:
        unknown, absent = set(self.methods) - set(METHOD_NAMES), set(PILOT_METHODS) - set(self.methods)
        if unknown or absent:
            raise ValueError(
                f"explanation.methods must be {', '.join(PILOT_METHODS)} and any of {', '.join(METHOD_NAMES)}: got "
                f"{self.methods}"
            )
        counts = {field: value for field, value in dataclasses.asdict(self).items() if field != "methods"}
        free = {"chunk_size", "flow_longest"}
        bad = {name: value for name, value in counts.items() if value < (0 if name in free else 1)}
        if bad or self.num_instances < 2 or self.resamples < 100:
            raise ValueError(
                "explanation: counts must be positive, num_instances at least 2 and resamples at least 100: got "
                f"{bad or {'num_instances': self.num_instances, 'resamples': self.resamples}}"
            )

    @property
    def chunks(self) -> dict[str, Any]:
        return {"chunk_size": self.chunk_size or None}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    preset: str = "cpu"
    """The preset these fields started from."""
    seed: int = 0
    """Of texts, parameters, batches, instances and draws. The paper's are 87, 2134 and 5555."""
    tasks: tuple[str, ...] = ("sentiment", "overlap")
    """Tasks of jaxcore.data.classification_task: sentiment, overlap (a pair task), sst2, imdb, mnli, snli, qqp."""
    models: tuple[ModelName, ...] = ("bilstm", "transformer")
    """What is trained on each task; bilstm_uniform is the ablation without attention."""
    bilstm: RecurrentConfig = dataclasses.field(default_factory=RecurrentConfig)
    transformer: ClassifierConfig = dataclasses.field(
        default_factory=lambda: ClassifierConfig(_distilbert(EncoderConfig()))
    )
    """Vocabulary, classes and pair input of both are those of the task."""
    bilstm_training: ClassifierTrainingConfig = dataclasses.field(default_factory=ClassifierTrainingConfig)
    transformer_training: ClassifierTrainingConfig = dataclasses.field(default_factory=ClassifierTrainingConfig)
    """The epoch that is best on dev is explained; epochs on pairs are always compared by accuracy."""
    pretrained: str = ""
    """Folder or hub id of an encoder that the transformer starts from, of its sizes; empty: random."""
    word_vectors: str = ""
    """File of word vectors (FastText's, GloVe's) that the BiLSTM's embeddings start from; empty: random."""
    data: ClassificationDataConfig = dataclasses.field(default_factory=ClassificationDataConfig)
    """Texts."""
    explanation: ExplanationConfig = dataclasses.field(default_factory=ExplanationConfig)
    """Explanations."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    """Checkpoints and logging."""

    @property
    def cells(self) -> list[tuple[str, ModelName]]:
        """(task, model) of all that is trained. The generated pairs are for the BiLSTM alone, of which C3 speaks: the
        transformer does not learn them from scratch in the time of a study."""
        pairs = itertools.product(self.tasks, self.models)
        return [(task, model) for task, model in pairs if (task, model) != ("overlap", "transformer")]

    def __post_init__(self) -> None:
        for name in (*self.tasks, *self.bilstm_training.named_tasks, *self.transformer_training.named_tasks):
            check_task(name)
        unknown = set(self.models) - set(get_args(ModelName))
        if unknown or not self.cells:
            raise ValueError(
                f"models must be some of {', '.join(get_args(ModelName))} and tasks at least one (overlap is for the "
                f"bilstm): got {self.models} and {self.tasks}"
            )
        if len({*self.tasks}) < len(self.tasks) or len({*self.models}) < len(self.models):
            raise ValueError(f"tasks and models must be named once each: got {self.tasks} and {self.models}")
        longest = max(task_shape(name, self.data).sequence_length for name in self.tasks)
        if "transformer" in self.models and longest > self.transformer.encoder.max_length:
            raise ValueError(
                f"rows of {longest} ids, but the transformer has {self.transformer.encoder.max_length} positions: "
                "lower data.max_length or raise transformer.encoder.max_positions"
            )


def _distilbert(sizes: EncoderConfig) -> EncoderConfig:
    """The architecture of DistilBERT with these sizes; weights explicit, because attention is an explanation here."""
    return dataclasses.replace(
        sizes, architecture="distilbert", num_token_types=0, pooler="none", attention_implementation="explicit"
    )


def _adam(learning_rate: float, weight_decay: float = 1e-5, name: Any = "adamw") -> OptimizerConfig:
    return OptimizerConfig(
        name, learning_rate=learning_rate, schedule="constant", warmup_fraction=0, weight_decay=weight_decay
    )


# The sizes of the pilot (song_of_disagreement.md, small-scale experiment): D = H = 32, 4 layers of 4 heads.
_SMALL_BILSTM = RecurrentConfig(embedding_size=32, hidden_size=32, attention_size=32, dropout=0.3)
_SMALL_TRANSFORMER = ClassifierConfig(
    _distilbert(
        EncoderConfig(
            num_layers=4, hidden_size=32, num_heads=4, intermediate_size=128, max_positions=64, dropout=0.1,
            attention_dropout=0.1, initializer_range=0.15,
        )
    )
)  # fmt: skip
_CPU = Config(
    preset="cpu",
    bilstm=_SMALL_BILSTM,
    transformer=_SMALL_TRANSFORMER,
    bilstm_training=ClassifierTrainingConfig(num_epochs=6, optimizer=_adam(3e-3)),
    transformer_training=ClassifierTrainingConfig(num_epochs=8, optimizer=_adam(1e-3)),
    explanation=ExplanationConfig(chunk_size=25),
    loop=LoopConfig(checkpoint_every=0, log_every=10),
)
# Architecture and hyperparameters of song_of_disagreement.md. [known] AdamW's default there, no weight decay.
_PAPER = Config(
    preset="gpu",
    tasks=("sst2", "imdb", "mnli", "snli", "qqp"),
    models=("bilstm", "bilstm_uniform", "transformer"),
    bilstm=RecurrentConfig(),
    transformer=ClassifierConfig(
        _distilbert(EncoderConfig(num_layers=6, dropout=0.2, attention_dropout=0.2)), head_dropout=0.1
    ),
    bilstm_training=ClassifierTrainingConfig(
        num_epochs=40, patience=5, selection="auc", batch_size=64, task_batch_sizes=(("mnli", 512), ("qqp", 1024)),
        optimizer=_adam(1e-3, name="amsgrad"),
    ),
    transformer_training=ClassifierTrainingConfig(
        num_epochs=40, patience=5, batch_size=64, task_batch_sizes=(("mnli", 32),), optimizer=_adam(2e-5, 0.0),
        task_learning_rates=(("sst2", 1e-5), ("imdb", 1e-5)),
    ),
    pretrained="distilbert-base-uncased",
    word_vectors="wiki-news-300d-1M.vec",
    data=ClassificationDataConfig(vocab_size=30522, tokenizer="distilbert-base-uncased", max_length=240),
    explanation=ExplanationConfig(num_instances=500, batch_size=20, chunk_size=5),
    loop=LoopConfig(checkpoint_every=1000, log_every=50),
)  # fmt: skip

PRESETS: Mapping[str, Config] = {
    "smoke": dataclasses.replace(
        _CPU,
        preset="smoke",
        tasks=("sentiment",),
        bilstm=dataclasses.replace(_SMALL_BILSTM, embedding_size=8, hidden_size=8, attention_size=8),
        transformer=ClassifierConfig(
            dataclasses.replace(
                _SMALL_TRANSFORMER.encoder, num_layers=2, hidden_size=16, num_heads=2, intermediate_size=32
            )
        ),
        bilstm_training=ClassifierTrainingConfig(
            num_epochs=2, patience=1, selection="auc", task_batch_sizes=(("overlap", 32),),
            optimizer=_adam(1e-2, name="amsgrad"),
        ),
        transformer_training=ClassifierTrainingConfig(
            num_epochs=2, patience=1, task_learning_rates=(("sentiment", 3e-3),), optimizer=_adam(1e-3)
        ),
        data=ClassificationDataConfig(num_train=512, num_dev=64, num_test=64),
        explanation=ExplanationConfig(
            num_instances=16, batch_size=16, lime_samples=48, integration_steps=16, num_baselines=2, chunk_size=8,
            methods=PILOT_METHODS,
            resamples=200,
        ),
        loop=LoopConfig(checkpoint_every=4),
    ),
    "cpu": _CPU,
    "gpu": _PAPER,
    "pod": dataclasses.replace(
        _PAPER,
        preset="pod",
        bilstm_training=dataclasses.replace(_PAPER.bilstm_training, batch_size=1024, task_batch_sizes=()),
        transformer_training=dataclasses.replace(
            _PAPER.transformer_training,
            batch_size=1024,
            task_batch_sizes=(),
            optimizer=_adam(8e-5, 0.0),
            task_learning_rates=(("sst2", 4e-5), ("imdb", 4e-5)),
        ),
        explanation=dataclasses.replace(_PAPER.explanation, batch_size=256, chunk_size=10),
        mesh=MeshConfig(data=-1, fsdp=4),
    ),
}  # fmt: skip
"""Sizes of a run.

gpu: the paper's set-up: both models start from published vectors and weights, make at most 40 epochs with patience 5,
in batches of each task's size; AMSGrad and, on single texts, selection by AUC for the BiLSTM; 500 instances, 1000 LIME
samples. Its differences: which splits TFDS has (`jaxcore.data.classification_task.PUBLISHED`; --data.path takes the
paper's own files of SST and IMDb), batches not grouped by length, and standard attention in DistilBERT.

pod: the same on 256 chips, which batches of 32 and 64 texts do not fill: all batches are of 1024 (that of Quora in the
paper), and the transformer's learning rates grow with the root of it, fourfold.

cpu: the pilot of song_of_disagreement.md, minutes on two cores: generated texts, widths of 32, 4 layers, random starts,
6 and 8 epochs without patience by AdamW in batches of 64, selection by accuracy, 60 instances.

smoke: seconds, for tests, with everything that the paper's training has.
"""


# ---- models ----------------------------------------------------------------------------------------------


def make_model(config: Config, name: ModelName, shape: TaskShape) -> Model:
    """A model for the rows of a task."""
    if name == "transformer":
        encoder = dataclasses.replace(config.transformer.encoder, vocab_size=shape.sequence_vocab_size)
        return EncoderClassifier(
            dataclasses.replace(config.transformer, encoder=encoder, num_classes=shape.num_classes)
        )
    return RecurrentClassifier(
        dataclasses.replace(
            config.bilstm,
            vocab_size=shape.vocab_size,
            num_classes=shape.num_classes,
            inputs="pair" if shape.is_pair else "single",
            attention="uniform" if name == "bilstm_uniform" else config.bilstm.attention,
        )
    )


# ---- instances and methods -------------------------------------------------------------------------------


Attributions = tuple[Float[Array, "batch time dim"], ...]
Score = Callable[[Any], Float[Array, " batch"]]


@dataclasses.dataclass(frozen=True)
class Method:
    """An attribution method.

    Attributes:
        compute: (score, instances, settings) -> attributions of the embeddings.
        masks_tokens: every dimension of a token carries the token's own coefficient; otherwise dimensions are summed.
        is_complete: attributions sum to the score less that of the baseline.
    """

    compute: Callable[[Score, Instances, ExplanationConfig], Attributions]
    masks_tokens: bool = False
    is_complete: bool = False


METHODS: Mapping[str, Method] = {
    "lime": Method(
        lambda score, x, e: lime(
            score, x.embeddings, x.key, baseline=x.baseline, groups=token_groups(x.masks), num_samples=e.lime_samples,
            **e.chunks,
        ),
        masks_tokens=True,
    ),
    "integrated_gradients": Method(
        lambda score, x, e: integrated_gradients(
            score, x.embeddings, baseline=x.baseline, num_steps=e.integration_steps, **e.chunks
        ),
        is_complete=True,
    ),
    "deeplift_as_run": Method(lambda score, x, e: input_x_gradient(score, x.embeddings, baseline=x.baseline)),
    "grad_shap": Method(
        lambda score, x, e: expected_gradients(
            score, x.embeddings, x.key, baselines=x.baseline, num_samples=e.shap_samples, **e.chunks
        )
    ),
    "deep_shap": Method(lambda score, x, e: deep_shap(score, x.embeddings, baselines=x.baselines, **e.chunks)),
    "deeplift_rescale": Method(
        lambda score, x, e: deep_lift(score, x.embeddings, baseline=x.baseline), is_complete=True
    ),
    "feature_ablation": Method(
        lambda score, x, e: feature_ablation(
            score, x.embeddings, baseline=x.baseline, groups=token_groups(x.masks), **e.chunks
        ),
        masks_tokens=True,
    ),
}  # fmt: skip

ATTENTION: Mapping[str, str] = {
    "bilstm": "attention", "bilstm_uniform": "attention", "transformer": "attention_rollout",
}  # fmt: skip
"""What the paper's tables call attention, by model."""

RELATIVES = ("integrated_gradients", "grad_shap")


def attribute(name: str, score: Score, instances: Instances, settings: ExplanationConfig) -> Attributions:
    """Attributions of a method of `METHODS`; random ones share no noise, which would pass for agreement."""
    return METHODS[name].compute(score, instances._replace(key=random_stream(instances.key, name)), settings)


def reduce_tokens(
    attributions: Attributions, masks: Sequence[Array], *, masks_tokens: bool
) -> Float[Array, "batch tokens"]:
    """One magnitude per token, both texts of a pair one after the other; the sign is thrown away, as in the paper.

    ``| sum_d a[t, d] |``, or ``| mean_d a[t, d] |`` where all dimensions carry the token's coefficient; 0 on padding.
    """
    reduce = (lambda leaf: jnp.abs(mean_over_dims(leaf))) if masks_tokens else abs_sum_over_dims
    return jnp.concatenate([jnp.where(m, reduce(a), 0) for a, m in zip(attributions, masks, strict=True)], axis=1)


def explain(model: Model, explanation: ExplanationConfig, name: str, given: Given, batch: Any) -> dict[str, Array]:
    """Token scores of one method, and what its attributions sum to."""
    instances = instances_of(model, given, batch)
    score = probability(instances.predict, predicted_classes(instances.predict, instances.embeddings))
    attributions = attribute(name, score, instances, explanation)
    total = sum(jnp.sum(leaf, axis=(1, 2)) for leaf in attributions)
    scores = reduce_tokens(attributions, instances.masks, masks_tokens=METHODS[name].masks_tokens)
    return {"scores": scores, "total": total}  # type: ignore[dict-item]


def look(model: Model, given: Given, batch: Any) -> dict[str, Array]:
    """The explained score at the input and at the baseline, and the attention weights as explanations.

    BiLSTM: ``attention``. Transformer: ``attention`` (last layer, [CLS] row), ``attention_rollout``, and the weights
    themselves, averaged over heads, for attention flow.
    """
    instances = instances_of(model, given, batch)
    score = probability(instances.predict, predicted_classes(instances.predict, instances.embeddings))
    baseline = jax.tree.map(lambda b, x: jnp.broadcast_to(b, x.shape), instances.baseline, instances.embeddings)
    found = {"score": score(instances.embeddings), "baseline_score": score(baseline)}
    if isinstance(model, RecurrentClassifier):
        output = apply_model(model, given.params, batch)
        both = [output.attention_weights, output.second_attention_weights]
        return {**found, "attention": jnp.concatenate([w for w in both if w is not None], axis=1)}
    weights = attention_weights(instances.predict)(instances.embeddings)
    return {
        **found,
        "attention": raw_attention(weights, instances.masks[0]),
        "attention_rollout": attention_rollout(weights, instances.masks[0]),
        "weights": jnp.mean(weights, axis=2, keepdims=True),
    }


EXACT = ("integrated_gradients", "grad_shap", "deeplift_as_run", "deeplift_rescale", "lime")


def explain_linear(model: Model, explanation: ExplanationConfig, given: Given, batch: Any) -> dict[str, Array]:
    """Signed token attributions by the methods of `EXACT` of a score that is linear in these embeddings.

    ``F(E) = sum_t <w, E_t> / T`` over the tokens, w random: all must give ``<w, E_t - E'_t> / T`` (LIME up to its
    penalty).
    """
    instances = instances_of(model, given, batch)
    direction = jax.random.normal(random_stream(instances.key, "direction"), instances.embeddings[0].shape[-1:])
    count = sum(jnp.sum(mask, axis=1) for mask in instances.masks)

    def score(embeddings: Any) -> Array:
        parts = [jnp.sum(jnp.where(m, x @ direction, 0), 1) for x, m in zip(embeddings, instances.masks, strict=True)]
        return sum(parts) / count  # type: ignore[return-value]

    settings = dataclasses.replace(explanation, lime_samples=max(explanation.lime_samples, 1000))
    signed = {}
    for name in EXACT:
        reduce = mean_over_dims if METHODS[name].masks_tokens else functools.partial(jnp.sum, axis=-1)
        signed[name] = jnp.concatenate([reduce(a) for a in attribute(name, score, instances, settings)], axis=1)
    return signed


# ---- steps -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Steps:
    """The jitted functions of one model on one task, and what they are made of."""

    mesh: Mesh
    name: ModelName
    shape: TaskShape
    model: Model
    optimizer: Any
    initialize: Callable[[Array], Any]
    state: Any
    """The abstract training state, with shardings."""
    training: ClassifierTrainingConfig
    """That of the task."""
    train: Any
    predict: Any
    """(params, rows) -> logits."""
    explanations: Mapping[str, Any]
    """(given, rows) -> ..., one program per method, ``look`` and ``linear`` beside them."""


def training_of(config: Config, task: str, name: ModelName) -> ClassifierTrainingConfig:
    """How a model is trained on a task."""
    training = (config.transformer_training if name == "transformer" else config.bilstm_training).of_task(task)
    is_pair = task_shape(task, config.data).is_pair
    return dataclasses.replace(training, selection="accuracy") if is_pair else training


def make_steps(config: Config, task: str, name: ModelName, devices: Devices | None = None) -> Steps:
    """Train, predict, and one explanation program per method."""
    training, shape = training_of(config, task, name), task_shape(task, config.data)
    mesh = checked_mesh(config.mesh, devices, training.batch_size, config.explanation.batch_size)
    model = make_model(config, name, shape)
    optimizer = make_optimizer(training.optimizer, 1)

    def initialize(key: Array) -> Any:
        rows = [jnp.zeros((1, *size), jnp.int32) for size in shape.inputs(layout_of(model)).values()]
        return model.init(key, *rows)["params"]

    def loss(params: Any, batch: Any, key: Array) -> Float[Array, ""]:
        logits = apply_model(model, params, batch, deterministic=False, rngs={"dropout": key}).logits
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]))

    state = abstract_state(initialize, optimizer, mesh)
    explanation = config.explanation
    programs = {method: functools.partial(explain, model, explanation, method) for method in explanation.methods}
    programs |= {
        "look": functools.partial(look, model),
        "linear": functools.partial(explain_linear, model, explanation),
    }
    split = batch_sharding(mesh)
    return Steps(
        mesh=mesh,
        name=name,
        shape=shape,
        model=model,
        optimizer=optimizer,
        initialize=initialize,
        state=state,
        training=training,
        train=make_train_step(one_shot_gradients(loss), optimizer, state, mesh),
        predict=jit_on_mesh(lambda params, batch: apply_model(model, params, batch).logits, mesh, out_shardings=split),
        explanations={key: jit_on_mesh(program, mesh, out_shardings=split) for key, program in programs.items()},
    )


@functools.lru_cache(maxsize=16)
def steps_of_any_seed(config: Config, task: str, name: ModelName) -> Steps:
    """The steps of a cell, kept: programs do not depend on the seed, and a study of several compiles them once."""
    return make_steps(config, task, name)


def _seedless(config: Config) -> Config:
    return dataclasses.replace(config, seed=0)


def build(config: Config, devices: Devices | None = None) -> Program:
    """The training step of every model on one text and on a pair, where batches are largest; its explanations once."""
    steps: dict[str, Step] = {}
    mesh: Any = None
    for name in config.models:
        rising = sorted(reversed(config.tasks), key=lambda task: training_of(config, task, name).batch_size)
        kinds = {task_shape(task, config.data).is_pair: task for task in rising}
        first = kinds[task_shape(config.tasks[0], config.data).is_pair]
        for task in sorted(kinds.values(), key=lambda task: task != first):
            made = make_steps(config, task, name, devices)
            mesh = made.mesh
            found = abstract_steps(config, made)
            if task != first or name == "bilstm_uniform":
                found = {"train": found["train"]}
            label = f"{name}_{'pair' if made.shape.is_pair else 'single'}"
            steps |= {f"{key}_{label}": step for key, step in found.items()}
    first = next(key for key in steps if key.startswith("train"))
    return Program(mesh=mesh, steps={"train": steps.pop(first), **steps})


def abstract_steps(config: Config, made: Steps) -> dict[str, Step]:
    """The steps of one model with abstract arguments."""
    shapes, whole = made.shape.inputs(layout_of(made.model)), replicated(made.mesh)
    rows = functools.partial(abstract_rows, made.mesh)
    reference = {
        field: jax.ShapeDtypeStruct((config.explanation.num_baselines, *size), jnp.int32, sharding=whole)
        for field, size in shapes.items()
    }
    params, train_rows, explained = made.state.params, made.training.batch_size, config.explanation.batch_size
    given = Given(params, reference, jax.ShapeDtypeStruct((), jnp.uint32, sharding=whole))
    return {
        "train": Step(made.train, (made.state, rows(train_rows, {**shapes, "labels": ()})), train_rows),
        "predict": Step(made.predict, (params, rows(train_rows, shapes)), train_rows),
        **{
            name: Step(program, (given, rows(explained, {**shapes, "number": ()})), explained)
            for name, program in made.explanations.items()
        },
    }


# ---- run -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model on one task: what was measured.

    Attributes:
        metrics, samples: without the cell's prefix.
        agreement: tau-b of all pairs of explainers.
        example: tokens of the first instance, and its scores by method.
        training: rows of ``metrics.jsonl``.
        params: the explained parameters.
    """

    metrics: dict[str, float]
    samples: dict[str, list[float]]
    agreement: AgreementMatrix
    example: tuple[list[str], dict[str, np.ndarray]]
    training: list[dict[str, Any]]
    params: Any


def run(
    config: Config,
    run_dir: pathlib.Path | str,
    *,
    resume: bool = False,
    tick: Callable[[int], bool] = lambda step: False,
) -> Results:
    """Train every model on every task, explain, compare, report; see `experiments`."""
    started = time.perf_counter()
    check_run_directory(run_dir, config, resume=resume)
    steps = {(task, name): steps_of_any_seed(_seedless(config), task, name) for task, name in config.cells}
    tasks = {name: open_classification_task(name, config.data, seed=config.seed) for name in config.tasks}
    for task in tasks.values():
        sample_instances(config, task)
    starts = starts_of(config, tasks.values())
    with contextlib.closing(open_run_directory(run_dir, config, resume=resume)) as directory:
        cells = {
            pair: run_cell(config, tasks[pair[0]], steps[pair], starts, directory.path, resume=resume, tick=tick)
            for pair in config.cells
        }
        between, between_samples = compare_cells(config, cells)
        metrics = {f"{task}/{model}/{k}": v for (task, model), cell in cells.items() for k, v in cell.metrics.items()}
        samples = {f"{task}/{model}/{k}": v for (task, model), cell in cells.items() for k, v in cell.samples.items()}
        results = results_of(
            "song_of_disagreement",
            config,
            started=started,
            steps=sum(int(cell.metrics["steps"]) for cell in cells.values()),
            metrics={**metrics, **between},
            samples={**samples, **between_samples},
            params={f"{task}/{model}": cell.params for (task, model), cell in cells.items()},
        )
        if jax.process_index() == 0:
            write_song_report(config, tasks, cells, results, directory)
            write_results(directory.results, results)
    return results


def run_cell(
    config: Config,
    task: ClassificationTask,
    steps: Steps,
    starts: Starts,
    run_dir: pathlib.Path,
    *,
    resume: bool,
    tick: Callable[[int], bool],
) -> Cell:
    """Train one model on one task, in a run directory of its own, and explain its own predictions."""
    with run_part(run_dir / "cells" / f"{task.name}-{steps.name}", config, resume=resume) as directory:
        params = starting_params(steps.model, steps.initialize, starts, words=task.words, seed=config.seed)
        state, num_steps = train_model(config, task, steps, params, directory, tick)
        write_trained_model(
            directory,
            steps.model,
            state.params,
            tokenizer=task.text_tokenizer(layout_of(steps.model)),
            labels=class_names(task.name),
        )
        metrics = {"steps": float(num_steps)}
        for split in ("dev", "test"):
            logits = logits_of(steps, state.params, task, split, tick)
            metrics[f"{split}_accuracy"] = accuracy(logits, task.splits[split].labels)
        rows = task.inputs(sample_instances(config, task), layout_of(steps.model))
        scores, mask, checks = explain_instances(config, steps, state.params, task, rows, tick)
        with current_ticker().phase("evaluate"):
            measured, samples, agreement = measure_agreement(config, steps.name, scores, mask)
        tokens = task.tokens(rows, 0)
        example = {name: values[0][mask[0]] for name, values in scores.items()}
        metrics |= {**checks, **measured}
        return Cell(
            {**metrics, **rooms(metrics)}, samples, agreement, (tokens, example),
            read_metrics(directory.metrics) if jax.process_index() == 0 else [], state.params,
        )  # fmt: skip


def starts_of(config: Config, tasks: Iterable[ClassificationTask]) -> Starts:
    """The published weights and vectors that a configuration names, as far as its models are of their kind."""
    return read_starts(
        pretrained=config.pretrained if "transformer" in config.models else "",
        encoder=config.transformer.encoder,
        word_vectors=config.word_vectors if set(config.models) - {"transformer"} else "",
        words={word for task in tasks for word in task.words},
        embedding_size=config.bilstm.embedding_size,
    )


def train_model(
    config: Config,
    task: ClassificationTask,
    steps: Steps,
    params: Any,
    directory: RunDirectory,
    tick: Callable[[int], bool],
) -> tuple[Any, int]:
    """The state of the epoch that is best on dev, and the number of updates made in all.

    Args:
        params: that training starts from; None: random ones.
    """
    batches = functools.partial(
        task.batches, layout_of(steps.model), batch_size=steps.training.batch_size, seed=config.seed,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    return fit_best_epoch(
        create_state(steps.initialize, steps.optimizer, steps.mesh, seed=config.seed, params=params),
        steps.train,
        lambda num_steps: batches(num_steps=num_steps),
        training=steps.training,
        num_texts=len(task.splits["train"]),
        dev_logits=lambda params: logits_of(steps, params, task, "dev"),
        dev_labels=task.splits["dev"].labels,
        abstract=steps.state,
        mesh=steps.mesh,
        run=directory,
        loop=config.loop,
        title=f"{steps.name} {task.name}",
        tick=tick,
    )


def logits_of(
    steps: Steps, params: Any, task: ClassificationTask, split: str, tick: Callable[[int], bool] = lambda step: False
) -> Float[np.ndarray, "texts classes"]:
    """Logits of a split's texts."""
    rows = task.inputs(task.splits[split], layout_of(steps.model))
    return map_rows(steps.predict, params, rows, batch_size=steps.training.batch_size, mesh=steps.mesh, tick=tick)


def sample_instances(config: Config, task: ClassificationTask) -> LabelledTexts:
    """The explained test instances, drawn without replacement: the same for every model of a seed."""
    test = task.splits["test"]
    wanted = config.explanation.num_instances
    if wanted > len(test):
        raise ValueError(f"{task.name} has {len(test)} test texts: lower explanation.num_instances {wanted}")
    return test.take(np.random.default_rng([config.seed, 11]).permutation(len(test))[:wanted])


def explain_instances(
    config: Config, steps: Steps, params: Any, task: ClassificationTask, rows: dict[str, np.ndarray], tick: Any
) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, "instances tokens"], dict[str, float]]:
    """Token scores [instances, tokens] of every explainer, the tokens, and the checks of exactness."""
    train = task.splits["train"]
    chosen = np.random.default_rng([config.seed, 12]).permutation(len(train))[: config.explanation.num_baselines]
    reference = task.inputs(train.take(chosen), layout_of(steps.model))
    given = Given(params, *jax.device_put((reference, np.uint32(config.seed)), replicated(steps.mesh)))
    numbered = {**rows, "number": np.arange(len(next(iter(rows.values()))), dtype=np.int32)}

    def of(program: str) -> dict[str, np.ndarray]:
        size = config.explanation.batch_size
        return map_rows(steps.explanations[program], given, numbered, batch_size=size, mesh=steps.mesh, tick=tick)

    masks = [values > 0 for name, values in rows.items() if name.endswith("mask")]
    mask = np.concatenate(masks, axis=1)
    seen, scores, checks = of("look"), {}, {}
    change = seen["score"] - seen["baseline_score"]
    for name in config.explanation.methods:
        found = of(name)
        scores[name] = found["scores"]
        if METHODS[name].is_complete:
            checks[f"completeness_error/{name}"] = float(np.max(np.abs(found["total"] - change)))
    scores |= {name: seen[name] for name in ("attention", "attention_rollout") if name in seen}
    if "weights" in seen and mask.shape[1] <= config.explanation.flow_longest:
        scores["attention_flow"] = attention_flow(seen["weights"], mask).astype(np.float32)
    broken = [name for name, values in scores.items() if not np.all(np.isfinite(values[mask]))]
    if broken:
        raise ValueError(
            f"{task.name}, {steps.name}: scores of {', '.join(broken)} are not finite; was training stable?"
        )
    return scores, mask, {**checks, **exactness(of("linear"), mask)}


# ---- agreement -------------------------------------------------------------------------------------------


def exactness(signed: Mapping[str, np.ndarray], mask: Bool[np.ndarray, "instances tokens"]) -> dict[str, float]:
    """How far the methods of `EXACT` agree where they must: on a linear score."""
    gradient = [name for name in EXACT if name != "lime"]
    truth = np.where(mask, signed["deeplift_as_run"], 0)
    difference = max(float(np.max(np.abs(np.where(mask, signed[name], 0) - truth))) for name in gradient)
    tau = agreement_matrix({name: np.abs(values) for name, values in signed.items()}, jnp.asarray(mask)).mean
    count = len(gradient)
    return {
        "linear/largest_difference": difference,
        "linear/least_tau": float(np.min(np.asarray(tau)[:count, :count])),
        "linear/lime_tau": float(np.min(np.asarray(tau)[-1, :count])),
    }


def pair_names(names: Sequence[str]) -> list[tuple[str, str]]:
    return list(itertools.combinations(names, 2))


def measure_agreement(
    config: Config, model: ModelName, scores: Mapping[str, np.ndarray], mask: Bool[np.ndarray, "instances tokens"]
) -> tuple[dict[str, float], dict[str, list[float]], AgreementMatrix]:
    """Agreement of all pairs, per instance first; the means that claims speak of; the shuffled control.

    Metrics: ``tau/A/B`` (and ``std/``, ``undefined/``), ``attribution_pairs`` and ``attention_pairs`` (means over the
    pairs of `PILOT_METHODS`, and of these with the model's `ATTENTION`) with ``_low`` and ``_high``, their bootstrap
    interval over instances, and ``table_attribution_pairs``, ``table_attention_pairs`` of `PAPER_METHODS`; the same
    means of Spearman's rho and Pearson's r; ``relatives_lead``, how far Integrated
    Gradients and Grad-SHAP are ahead of the next pair of the table; ``shuffled_tau``. A pair that is defined for no
    instance is left out.
    """
    tokens = jnp.asarray(mask)
    arrays = {name: jnp.asarray(values) for name, values in scores.items()}
    agreement = agreement_matrix(arrays, tokens, measure=kendall_tau)
    metrics = pair_metrics(agreement)
    groups = {
        "attribution_pairs": pair_names(PILOT_METHODS),
        "attention_pairs": [(name, ATTENTION[model]) for name in PILOT_METHODS],
    }
    if set(PAPER_METHODS) <= set(scores):
        groups["table_attribution_pairs"] = pair_names(PAPER_METHODS)
        groups["table_attention_pairs"] = [(name, ATTENTION[model]) for name in PAPER_METHODS]
    samples: dict[str, list[float]] = {}
    for measure, prefix in ((kendall_tau, ""), (spearman, "spearman/"), (pearson, "pearson/")):
        matrix = agreement if measure is kendall_tau else agreement_matrix(arrays, tokens, measure=measure)
        for group, pairs in groups.items():
            each = mean_over_pairs(matrix, pairs)
            if not len(each):
                continue
            metrics[f"{prefix}{group}"] = float(np.mean(each))
            if not prefix and len(each) > 1:
                interval = bootstrap_interval(each, resamples=config.explanation.resamples, rng=config.seed)
                metrics |= {f"{group}_low": interval.low, f"{group}_high": interval.high}
                samples[group] = each.tolist()
    table = {pair: metrics.get(f"tau/{pair[0]}/{pair[1]}") for pair in itertools.chain(*groups.values())}
    others = [tau for pair, tau in table.items() if pair != RELATIVES and tau is not None]
    related = table[RELATIVES]
    if related is not None and others:
        metrics["relatives_lead"] = related - max(others)
    pilot = {name: scores[name] for name in PILOT_METHODS}
    metrics["shuffled_tau"] = shuffled_tau(pilot, mask, np.random.default_rng([config.seed, 13]))
    return metrics, samples, agreement


def compare_cells(config: Config, cells: Mapping[Any, Cell]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """``TASK/bilstm_minus_transformer``: attribution-pair agreement of both on the same instances, its interval."""
    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    for task in config.tasks:
        both = [
            cells[task, model].samples.get("attribution_pairs")
            for model in ("bilstm", "transformer")
            if (task, model) in cells
        ]
        if len(both) == 2 and both[0] and both[1] and len(both[0]) == len(both[1]):
            difference = np.asarray(both[0]) - np.asarray(both[1])
            interval = bootstrap_interval(difference, resamples=config.explanation.resamples, rng=config.seed)
            name = f"{task}/bilstm_minus_transformer"
            metrics |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
            samples[name] = difference.tolist()
    return metrics, samples


# ---- report ----------------------------------------------------------------------------------------------


def write_song_report(
    config: Config,
    tasks: Mapping[str, ClassificationTask],
    cells: Mapping[Any, Cell],
    results: Results,
    directory: RunDirectory,
) -> None:
    """``report.html`` of one run: the paper's tables, all matrices, an example of each."""
    from jaxcore.reporting import Headline, Paragraph, Section, Table, token_maps
    from jaxcore.reporting.run_report import configuration_section, training_section, verdict_section, write_run_report

    headline = [
        Headline(
            f"attribution pairs, {model} on {task}",
            f"{cell.metrics['attribution_pairs']:.3f}",
            f"attention with attributions {cell.metrics.get('attention_pairs', float('nan')):.3f}",
        )
        for (task, model), cell in cells.items()
        if "attribution_pairs" in cell.metrics
    ]
    sections = [
        Section("Data", [Paragraph("\n".join(task.description for task in tasks.values()))]),
        verdict_section(single_run_verdicts(results), single_run_note("song_of_disagreement")),
        Section("Accuracy and agreement", [Table(SUMMARY_COLUMNS, summary_rows(cells))], note=SUMMARY_NOTE),
        *(
            Section(
                f"The paper's table: {model}",
                [Table(("pair", *config.tasks), table_rows(config, model, cells))],
                note=TABLE_NOTE,
            )
            for model in config.models
        ),
    ]
    for (task, model), cell in cells.items():
        found = cell.agreement
        matrix = token_maps.AgreementMatrix(
            found.names, found.mean, found.std, measure="mean tau-b ± std over instances"
        )
        tokens, scores = cell.example
        blocks: list[Any] = [
            matrix.table(),
            token_maps.side_by_side(tokens, scores, caption="The first instance, magnitudes"),
        ]
        sections += [Section(f"All explainers: {model} on {task}", blocks, note=_undefined_note(cell))]
        training = training_section(cell.training)
        sections += [dataclasses.replace(training, title=f"Training: {model} on {task}")] if training else []
    sections.append(configuration_section(config))
    write_run_report(
        directory.report, results, title=PAPER.title, claim=PAPER.claim, headline=headline, sections=sections
    )


SUMMARY_COLUMNS = (
    "task", "model", "dev accuracy", "test accuracy", "attribution pairs", "low", "high", "attention pairs",
    "Spearman of attribution pairs", "relatives' lead", "shuffled", "completeness error of IG",
)  # fmt: skip
SUMMARY_NOTE = (
    "Mean tau-b over instances: pairs of LIME, Integrated Gradients, DeepLIFT as the paper ran it (gradient x (input - "
    "baseline)) and Grad-SHAP, and of each of them with attention (BiLSTM: its weights; transformer: rollout). low and "
    "high: 95 % bootstrap over instances. Shuffled: the negative control."
)
TABLE_NOTE = (
    "Mean tau-b over instances ± standard deviation, the explainers of the paper's Tables 1 and 2. Deep-SHAP averages "
    "over training texts here, where the paper used copies of the padding baseline."
)


def summary_rows(cells: Mapping[Any, Cell]) -> list[tuple[Any, ...]]:
    """A row per cell; see `SUMMARY_COLUMNS`."""
    wanted = (
        "dev_accuracy", "test_accuracy", "attribution_pairs", "attribution_pairs_low", "attribution_pairs_high",
        "attention_pairs", "spearman/attribution_pairs", "relatives_lead", "shuffled_tau",
        "completeness_error/integrated_gradients",
    )  # fmt: skip
    return [(task, model, *(cell.metrics.get(name) for name in wanted)) for (task, model), cell in cells.items()]


def table_rows(config: Config, model: ModelName, cells: Mapping[Any, Cell]) -> list[tuple[str, ...]]:
    """The paper's Table 1 or 2: a row per pair of explainers, a column per task."""

    def entry(task: str, a: str, b: str) -> str:
        metrics = cells[task, model].metrics if (task, model) in cells else {}
        tau = metrics.get(f"tau/{a}/{b}")
        return "–" if tau is None else f"{tau:.3f} ± {metrics[f'std/{a}/{b}']:.3f}"

    pairs = [(name, ATTENTION[model]) for name in PAPER_METHODS] + pair_names(PAPER_METHODS)
    return [(f"{a} – {b}", *(entry(task, a, b) for task in config.tasks)) for a, b in pairs]


def _undefined_note(cell: Cell) -> str:
    worst = int(np.asarray(cell.agreement.undefined).max())
    return f"Constant scores have no ranking: at most {worst} instances are left out of a pair." if worst else ""


def single_run_verdicts(results: Results) -> list[Verdict]:
    """The claims over this run alone; that on pairs is left out where its task was not learnt."""
    verdicts = judge_single_run(CLAIMS, "study", RunValues(results.metrics, results.samples))
    learnt = results.metrics.get("overlap/bilstm/dev_accuracy", 0) >= LEARNT
    return [verdict for verdict in verdicts if learnt or verdict.name != "pairs_agree_less"]


# ---- claims ----------------------------------------------------------------------------------------------

LEARNT = 0.8
"""Dev accuracy of the pair task below which C3 is not applicable (song_of_disagreement.md)."""
_SOURCE = "song_of_disagreement.md, small-scale experiment"
LIMITS = {
    "attention_pairs": 0.40,
    "shuffled_tau": 0.05,
    "completeness_error/integrated_gradients": 1e-2,
    "linear/largest_difference": 1e-5,
}
"""Largest magnitudes that the claims allow; the metric ``room/NAME`` is the limit less the magnitude."""


def rooms(metrics: Mapping[str, float]) -> dict[str, float]:
    """``room/NAME`` for every limit whose metric was measured."""
    return {f"room/{name}": limit - abs(metrics[name]) for name, limit in LIMITS.items() if name in metrics}


def _study(metric: str) -> Measured:
    return Measured("study", metric)


def _of_model(model: str) -> list[Claim]:
    """What is claimed of each model by itself."""
    cell = f"sentiment/{model}"
    return [
        Claim(
            f"{model}_learns", f"the {model} learns the task (else the run is void)", f"{_SOURCE} (1)",
            _study(f"{cell}/dev_accuracy"), margin=0.70, worst=0.70,
        ),
        Claim(
            f"{model}_attention_agrees_least",
            f"C1, {model}: attention agrees with attributions much less than they do with each other", f"{_SOURCE} (3)",
            _study(f"{cell}/attribution_pairs"), _study(f"{cell}/attention_pairs"), margin=0.15,
        ),
        Claim(
            f"{model}_attention_agrees_little", f"C1, {model}: attention and attributions agree at most 0.40",
            f"{_SOURCE} (3)", _study(f"{cell}/room/attention_pairs"),
        ),
        Claim(
            f"{model}_relatives_agree_most",
            f"C4, {model}: Integrated Gradients and Grad-SHAP agree more than any other pair of the paper's table",
            f"{_SOURCE} (4)", _study(f"{cell}/relatives_lead"),
        ),
        Claim(
            f"{model}_relatives_agree", f"C4, {model}: Integrated Gradients and Grad-SHAP agree at least 0.65",
            f"{_SOURCE} (4)", _study(f"{cell}/tau/integrated_gradients/grad_shap"), margin=0.65,
        ),
        Claim(
            f"{model}_shuffled_scores_disagree",
            f"negative control, {model}: scores permuted within the instance agree with nothing (|tau| <= 0.05)",
            f"{_SOURCE} (5)", _study(f"{cell}/room/shuffled_tau"),
        ),
        Claim(
            f"{model}_exact_on_linear_scores", f"{model}: gradient methods are equal to 1e-5 on a linear score",
            f"{_SOURCE} (6)", _study(f"{cell}/room/linear/largest_difference"), worst=0.0,
        ),
        Claim(
            f"{model}_one_ranking_on_linear_scores", f"{model}: their rankings are then the same", f"{_SOURCE} (6)",
            _study(f"{cell}/linear/least_tau"), margin=0.999,
        ),
        Claim(
            f"{model}_lime_on_linear_scores", f"{model}: LIME's ranking is then nearly theirs", f"{_SOURCE} (6)",
            _study(f"{cell}/linear/lime_tau"), margin=0.9, worst=0.9,
        ),
        Claim(
            f"{model}_completeness",
            f"{model}: Integrated Gradients sum to the change of the probability, to 0.01 in every instance",
            f"{_SOURCE} (7)", _study(f"{cell}/room/completeness_error/integrated_gradients"), worst=0.0,
        ),
    ]  # fmt: skip


CLAIMS = Claims(
    preset="cpu",
    variants={"study": lambda config: config},
    claims=(
        *_of_model("bilstm"),
        *_of_model("transformer"),
        Claim(
            "transformer_disagrees_more",
            "C2: attribution methods agree far less on the transformer than on the BiLSTM, instance by instance",
            f"{_SOURCE} (2)",
            _study("sentiment/bilstm_minus_transformer"),
            margin=0.12,
            alpha=0.025,
            paired_samples=True,
        ),
        Claim(
            "pair_task_is_learnt",
            "the BiLSTM learns the pair task (else the next claim is not applicable)",
            "song_of_disagreement.md, C3",
            _study("overlap/bilstm/dev_accuracy"),
            margin=LEARNT,
            worst=LEARNT,
        ),
        Claim(
            "pairs_agree_less",
            "C3: on the BiLSTM, attribution methods agree more on single texts than on pairs",
            "song_of_disagreement.md, C3",
            _study("sentiment/bilstm/attribution_pairs"),
            _study("overlap/bilstm/attribution_pairs"),
            margin=1e-9,
        ),
    ),
)
