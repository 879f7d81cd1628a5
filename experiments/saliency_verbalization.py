"""Saliency map verbalization: a classifier's feature importances as sentences (Feldhus et al. 2023).

What the paper claims. A search over windows of a saliency map finds the spans that carry the evidence; templates filled
with them are faithful by construction and, unlike a heatmap, easy to read. A language model given tokens and scores
writes what people find more helpful still, but rests less on the numbers.

How it is shown here. A classifier is trained on half of the training texts; integrated gradients of its prediction are
verbalised in three representations: heatmap, template, instruction. Coverage says how much of the positive evidence a
verbalisation carries. A simulated reader, naive Bayes on the *other* half's true labels, sees only the words that are
named and guesses what the classifier predicted. Permuted maps, random spans and whole texts are the controls, and a
scripted verbaliser that prefers plausible words shows the trade-off between plausible and faithful. Text is generated
(`jaxcore.data.sentiment_world`) or read by path (``--data.path``: trees of SST, CSV, JSONL, Parquet, TFDS). With
``--study-path`` the published human study is analysed again, and every number of its table compared.

What is not possible offline: the paper's own maps (Thermostat) are nowhere in public repositories, so maps are computed
anew; GPT-3.5 is not called: without ``--generator module:function`` or ``--generator-model`` (a causal language model)
nothing stands in for it, and no number of this file reproduces its. The simulated reader is no human: that a whole text
is *worse* than snippets holds for it alone. The extractive rationaliser (Rat-Extr) is not trained; its ratings are in
the study.

Read top to bottom: configuration, presets, texts, classifier, steps, verbalisation, reader, human study, run, report,
claims.
"""

import contextlib
import dataclasses
import functools
import importlib
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

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
from jaxcore.attribution import completeness_error, integrated_gradients
from jaxcore.attribution.scores import logit, predicted_classes
from jaxcore.attribution.token_aggregation import sum_over_dims
from jaxcore.data import class_batches, load_tokenizer
from jaxcore.data.labelled_text_task import LabelledTextConfig, TextRows, open_labelled_text_task
from jaxcore.data.sentiment_world import SentimentWorldConfig
from jaxcore.distributed import (
    MeshConfig,
    batch_sharding,
    current_ticker,
    jit_on_mesh,
)
from jaxcore.evaluation import (
    Claim,
    Claims,
    Measured,
    RunValues,
    Verdict,
    bootstrap_interval,
    judge_single_run,
    map_rows,
)
from jaxcore.evaluation.control_maps import permuted_scores, random_spans
from jaxcore.evaluation.explanation_study import STUDY_DATASETS
from jaxcore.evaluation.simulatability import NaiveBayesReader, fit_reader
from jaxcore.generation import model_generator
from jaxcore.models import EncoderConfig, load_pretrained, output_from_embeddings
from jaxcore.models.classifier import ClassifierConfig, EncoderClassifier, load_classifier
from jaxcore.models.recurrent import RecurrentClassifier, RecurrentConfig
from jaxcore.reporting.saliency_search import (
    Snippet,
    Threshold,
    binary_filters,
    centred_spans,
    common_snippets,
    coverage,
    coverage_at_k,
    is_verbalisable,
    search_snippets,
    summarise_runs,
    threshold_mean_top,
    threshold_n_std,
    threshold_quantile,
    threshold_variance,
    top_tokens,
)
from jaxcore.reporting.verbalisation import (
    COVERAGE_TEMPLATES,
    MOVIE_REVIEW,
    NEWS_ARTICLE,
    Generate,
    Objective,
    TextTask,
    glue_tokens,
    mask_label,
    prompt_for_generator,
    verbalise,
    verbalise_with,
)
from jaxcore.reporting.verbalisation_measures import (
    adjacent_runs,
    all_citations,
    cited_mask,
    exact_percentages,
    snippet_mask,
)
from jaxcore.reporting.verbalisation_study import RANKS, Study, analyse_study, study_section
from jaxcore.training import (
    LoopConfig,
    OptimizerConfig,
    Results,
    RunDirectory,
    abstract_state,
    check_run_directory,
    create_state,
    fit,
    make_optimizer,
    make_train_step,
    one_shot_gradients,
    open_run_directory,
    read_metrics,
    write_results,
)
from jaxcore.training.trained_model import write_trained_model

PAPER = Paper(
    title="Saliency map verbalization",
    year=2023,
    claim="Sentences filled with the spans that a search finds in a saliency map carry its evidence to a reader.",
    needs="nothing; the human study's ratings: --study-path; gpu and pod: TFDS datasets and a --pretrained classifier",
)


# ---- configuration ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The searches of the paper's study."""

    length: int = 5
    """Tokens of a window, L."""
    ones: tuple[int, ...] = (2, 3)
    """Tokens that a convolution filter selects."""
    threshold: Literal["mean_top", "n_std", "variance", "quantile"] = "mean_top"
    """What a snippet's mean must exceed; "n_std" is what the released code calls "quantile"."""
    threshold_value: float = 0.4
    """0.4 for mean_top (study); 3 for n_std (AG News)."""
    top: int = 5
    """Candidates of each search that are united, and single tokens shown."""
    quantile: float = 0.75
    """Runs of lower coverage are left out."""

    def __post_init__(self) -> None:
        if self.top < 1 or not 0 <= self.quantile <= 1 or not self.threshold_value > 0:
            raise ValueError(
                "search.top must be >= 1, search.quantile in [0, 1], search.threshold_value > 0: got "
                f"{self.top}, {self.quantile}, {self.threshold_value}"
            )
        binary_filters(self.length, self.ones)
        centred_spans(self.length)


@dataclasses.dataclass(frozen=True)
class ReadingConfig:
    """Whose verbalisations are read, and by whom."""

    min_tokens: int = 10
    """Shorter texts are not read (the paper's pilot)."""
    max_tokens: int = 100
    """Texts must have fewer (the paper's filter of instances)."""
    min_coverage: float = 0.1
    """A snippet must cover more for a text to count as one that the study would have taken."""
    num_texts: int = 2000
    """Most texts that are read."""
    smoothing: float = 1.0
    """Laplace smoothing of naive Bayes."""
    plausible_share: float = 0.4
    """Slots of the scripted verbaliser that are filled without regard to the map [inferred]."""
    resamples: int = 2000
    """Of the paired bootstrap."""
    shown: int = 6
    """Texts in the report."""
    num_generated: int = 200
    """Texts given to the generator, where there is one."""

    def __post_init__(self) -> None:
        if not self.smoothing > 0 or not 0 <= self.plausible_share <= 1 or self.num_texts < 2:
            raise ValueError(
                "reading.smoothing must be > 0, reading.plausible_share in [0, 1], reading.num_texts >= 2: got "
                f"{self.smoothing}, {self.plausible_share}, {self.num_texts}"
            )


_TASKS: Mapping[str, TextTask] = {"movie_review": MOVIE_REVIEW, "news_article": NEWS_ARTICLE}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    preset: str = "cpu"
    """The preset these fields started from."""
    seed: int = 0
    """Of sentences, halves, parameters, batches and controls."""
    num_steps: int = 600
    """Updates of the classifier."""
    batch_size: int = 64
    """Texts of a batch, the same number of each class."""
    evaluation_batch_size: int = 200
    """Texts explained at once."""
    classifier: Literal["recurrent", "transformer"] = "recurrent"
    """Which of the two models below is trained."""
    pretrained: str = ""
    """Folder or hub id of a fine-tuned transformer classifier to start from; with num_steps 0 it is explained as it is
    (the paper trains nothing)."""
    recurrent: RecurrentConfig = dataclasses.field(default_factory=RecurrentConfig)
    """The BiLSTM; its vocabulary and classes are those of the data."""
    transformer: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    """The encoder under the transformer classifier; likewise."""
    integration_steps: int = 25
    """Of integrated gradients, from padding to the text [known: thermostat]."""
    integration_chunk: int = 5
    """Steps evaluated together."""
    task: Literal["movie_review", "news_article"] = "movie_review"
    """How prompts speak of a text."""
    generator: str = ""
    """module:function that takes a list of prompts and gives a text for each; empty: no instruction-based part."""
    generator_model: str = ""
    """In its place a causal language model, by folder or hub id, that answers greedily in batches."""
    generator_tokens: int = 128
    """Most tokens of one of its answers."""
    generator_batch: int = 8
    """Prompts of one of its batches."""
    objective: Objective = "commonsense"
    """What a prompt asks for."""
    study_path: str = ""
    """Folder or .tar.gz of the published human study; empty: it is not analysed."""
    data: LabelledTextConfig = dataclasses.field(default_factory=LabelledTextConfig)
    """Texts."""
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    """From a map to runs."""
    reading: ReadingConfig = dataclasses.field(default_factory=ReadingConfig)
    """Measurements."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """Optimiser and schedule."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    """Checkpoints and logging."""

    def __post_init__(self) -> None:
        if self.num_steps < 0 or min(self.integration_steps, self.integration_chunk) < 1:
            raise ValueError(
                "num_steps must be >= 0, integration_steps and integration_chunk >= 1: got "
                f"{self.num_steps}, {self.integration_steps}, {self.integration_chunk}"
            )
        if self.batch_size < 1 or self.batch_size % len(self.data.label_names):
            raise ValueError(
                f"batch_size {self.batch_size} is not so many texts of each of {len(self.data.label_names)} classes: "
                "give a multiple"
            )
        if self.pretrained and (self.classifier != "transformer" or not self.data.tokenizer):
            raise ValueError("pretrained needs --classifier transformer and the model's --data.tokenizer")
        if self.generator and not re.fullmatch(r"[\w.]+:\w+", self.generator):
            raise ValueError(f"generator must be module:function: got {self.generator!r}")
        if self.generator and self.generator_model:
            raise ValueError(f"give a generator or a generator_model: got {self.generator} and {self.generator_model}")
        if min(self.generator_tokens, self.generator_batch) < 1:
            given = f"{self.generator_tokens}, {self.generator_batch}"
            raise ValueError(f"generator_tokens and generator_batch must be >= 1: got {given}")

    @property
    def vocab_size(self) -> int:
        """Token ids that may occur, known without data."""
        return self.data.vocab_size

    @property
    def pad_id(self) -> int:
        """The id of padding."""
        return self.transformer.pad_token_id if self.data.tokenizer and self.classifier == "transformer" else 0


_BERT = EncoderConfig(attention_dropout=0.0, dtype="bfloat16", pooler="cls_tanh")

# As long as sentences of SST that the pilot read (10 tokens or more), and with as long a tail of neutral words.
_WORLD = SentimentWorldConfig(num_polar=200, num_neutral=1500, shortest=10, longest=30, most_polar=5)

PRESETS: Mapping[str, Config] = {
    "smoke": Config(
        preset="smoke",
        num_steps=30,
        batch_size=32,
        evaluation_batch_size=64,
        recurrent=RecurrentConfig(embedding_size=16, hidden_size=12, attention_size=8),
        integration_steps=5,
        data=LabelledTextConfig(
            vocab_size=1024,
            max_length=48,
            num_training=400,
            num_test=64,
            world=SentimentWorldConfig(num_polar=40, num_neutral=150, shortest=10, longest=20),
        ),
        reading=ReadingConfig(resamples=200, shown=2),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        loop=LoopConfig(checkpoint_every=10),
    ),
    "cpu": Config(
        preset="cpu",
        recurrent=RecurrentConfig(embedding_size=48, hidden_size=32, attention_size=32, dropout=0.2),
        data=LabelledTextConfig(vocab_size=2048, world=_WORLD),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=20, clip_norm=1.0),
        loop=LoopConfig(checkpoint_every=0),
    ),
    # BERT-base on AG News. The paper's: --pretrained textattack/bert-base-uncased-ag-news --num-steps 0.
    "gpu": Config(
        preset="gpu",
        num_steps=3000,
        batch_size=64,
        evaluation_batch_size=128,
        classifier="transformer",
        transformer=_BERT,
        integration_chunk=1,
        task="news_article",
        data=LabelledTextConfig(
            path="tfds:ag_news_subset/train", test_path="tfds:ag_news_subset/test",
            text_fields=("title", "description"), label_names=("World", "Sports", "Business", "Sci/Tech"),
            vocab_size=30522, max_length=128,
        ),
        search=SearchConfig(threshold="n_std", threshold_value=3.0),
        reading=ReadingConfig(num_texts=7600),
        optimizer=OptimizerConfig(learning_rate=3e-5, schedule="linear", weight_decay=0.01, clip_norm=1.0),
        loop=LoopConfig(checkpoint_every=500, log_every=10),
    ),
    # The paper's maps of IMDb: 25,000 test reviews of 512 ids, 25 integration steps, on a pod of 256 chips.
    "pod": Config(
        preset="pod",
        num_steps=2000,
        batch_size=1024,
        evaluation_batch_size=4096,
        classifier="transformer",
        transformer=dataclasses.replace(_BERT, attention_implementation="fused", remat="full"),
        integration_chunk=1,
        data=LabelledTextConfig(
            path="tfds:imdb_reviews/train", test_path="tfds:imdb_reviews/test", vocab_size=30522, max_length=512,
        ),
        reading=ReadingConfig(num_texts=25_000),
        optimizer=OptimizerConfig(learning_rate=3e-5, schedule="linear", weight_decay=0.01, clip_norm=1.0),
        mesh=MeshConfig(data=-1, fsdp=4),
        loop=LoopConfig(checkpoint_every=250, log_every=10),
    ),
}  # fmt: skip


# ---- texts -----------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """The classifier's half, the reader's half, the texts that are explained, one sentence about them, the tokenizer of
    a model if there is one."""

    training: TextRows
    reading: TextRows
    test: TextRows
    description: str
    tokenizer: Any


def open_task(config: Config) -> Task:
    """The texts of a configuration; the training texts, in random order, are halved.

    Raises:
        ValueError: see `open_labelled_text_task`.
    """
    opened = open_labelled_text_task(
        config.data, seed=config.seed, pad_id=config.pad_id, end_tokens=config.classifier == "transformer"
    )
    rows = np.arange(len(opened.train))
    half = len(rows) // 2
    return Task(
        training=opened.train.take(rows[:half]),
        reading=opened.train.take(rows[half:]),
        test=opened.test,
        description=(
            f"{opened.source}: {half:,} texts train the classifier, {len(rows) - half:,} others the reader, "
            f"{len(opened.test):,} are held out; {opened.num_ids:,} token ids; classes "
            f"{', '.join(config.data.label_names)}."
        ),
        tokenizer=opened.tokenizer,
    )


# ---- classifier and steps --------------------------------------------------------------------------------

Classifier = RecurrentClassifier | EncoderClassifier


def make_model(config: Config) -> Classifier:
    """The classifier of a configuration; vocabulary and classes are those of the data."""
    classes = len(config.data.label_names)
    if config.classifier == "recurrent":
        return RecurrentClassifier(
            dataclasses.replace(config.recurrent, vocab_size=config.vocab_size, num_classes=classes, inputs="single")
        )
    if config.pretrained:
        model, _, labels = load_classifier(config.pretrained, config_overrides=_overrides(config))
        if len(labels) != classes:
            raise ValueError(
                f"{config.pretrained} has the classes {labels}, data.label_names {config.data.label_names}"
            )
        return model
    encoder = dataclasses.replace(config.transformer, vocab_size=config.vocab_size, pad_token_id=config.pad_id)
    return EncoderClassifier(ClassifierConfig(encoder, classes, head_dropout=encoder.dropout))


def _overrides(config: Config) -> dict[str, Any]:
    chosen = config.transformer
    return {"dtype": chosen.dtype, "remat": chosen.remat, "attention_implementation": chosen.attention_implementation}


@dataclasses.dataclass(frozen=True)
class Steps:
    """The jitted functions of a run on a mesh, and what they are made of."""

    mesh: Mesh
    model: Classifier
    optimizer: Any
    initialize: Callable[[Array], Any]
    state: Any
    """The abstract training state, with shardings."""
    train: Any
    explain: Any


def make_steps(config: Config, devices: Devices | None = None) -> Steps:
    """Train and explain: one program each, for whatever devices the mesh is made of."""
    mesh = checked_mesh(config.mesh, devices, config.batch_size, config.evaluation_batch_size)
    model = make_model(config)
    optimizer = make_optimizer(config.optimizer, max(config.num_steps, 1))

    def initialize(key: Array) -> Any:
        return model.init(key, jnp.zeros((1, config.data.max_length), jnp.int32))["params"]

    def loss(params: Any, batch: Any, key: Array) -> Float[Array, ""]:
        output: Any = model.apply(
            {"params": params}, batch["input_ids"], batch["attention_mask"], deterministic=False, rngs={"dropout": key}
        )
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output.logits, batch["labels"]))

    state = abstract_state(initialize, optimizer, mesh)
    return Steps(
        mesh=mesh,
        model=model,
        optimizer=optimizer,
        initialize=initialize,
        state=state,
        train=make_train_step(one_shot_gradients(loss), optimizer, state, mesh),
        explain=jit_on_mesh(functools.partial(explain, config, model), mesh, out_shardings=batch_sharding(mesh)),
    )


def build(config: Config, devices: Devices | None = None) -> Program:
    """Every jitted step with abstract inputs; see `experiments`."""
    steps = make_steps(config, devices)
    length, rows, explained = config.data.max_length, config.batch_size, config.evaluation_batch_size
    batch = abstract_rows(steps.mesh, rows, {"input_ids": (length,), "attention_mask": (length,), "labels": ()})
    fields = ("input_ids", "attention_mask", "content")
    texts = abstract_rows(steps.mesh, explained, dict.fromkeys(fields, (length,)))
    return Program(
        mesh=steps.mesh,
        steps={
            "train": Step(steps.train, (steps.state, batch), rows),
            "explain": Step(steps.explain, (steps.state.params, texts), explained),
        },
    )


def explain(config: Config, model: Classifier, params: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Integrated gradients of the predicted class's logit by token, from padding in place of every word.

    What is varied are the token embeddings; special tokens stand still and get 0, as in the paper's maps.

    Returns:
        ``logits`` [batch, classes], ``scores`` [batch, time] (0 on padding and special tokens), and the
        ``completeness_error`` [batch], in units of the logit.
    """
    table = params["word"] if isinstance(model, RecurrentClassifier) else params["encoder"]["embeddings"]["word"]
    dtype = model.config.dtype if isinstance(model, RecurrentClassifier) else model.config.encoder.dtype
    table, content = table.astype(dtype), batch["content"][..., None] > 0
    words = table[batch["input_ids"]]
    baseline = jnp.where(content, table[config.pad_id], words)

    def logits(embeddings: Float[Array, "batch time dim"]) -> Float[Array, "batch classes"]:
        rows = batch["input_ids"], batch["attention_mask"]
        return output_from_embeddings(model, params, embeddings, *rows).logits.astype(jnp.float32)

    score = logit(logits, predicted_classes(logits, words))
    values = integrated_gradients(
        score, words, baseline=baseline, num_steps=config.integration_steps, chunk_size=config.integration_chunk
    )
    return {
        "logits": logits(words),
        "scores": sum_over_dims(values) * batch["content"],
        "completeness_error": completeness_error(score, words, values, baseline=baseline),
    }


# ---- verbalisation ---------------------------------------------------------------------------------------


class Maps(NamedTuple):
    """What is verbalised: texts, their maps and which entries are words, and the predicted classes."""

    texts: TextRows
    scores: Float[np.ndarray, "n length"]
    mask: Bool[np.ndarray, "n length"]
    predicted: Int[np.ndarray, " n"]


class Verbalised(NamedTuple):
    """Every representation of the maps as tokens shown, [n, length] each; the runs of the summary; share of texts that
    the study would have taken; snippets that both searches found, per text."""

    shown: dict[str, Bool[np.ndarray, "n length"]]
    runs: list[list[Snippet]]
    verbalisable: float
    common: float


REPRESENTATIONS: Mapping[str, str] = {
    "summary": "summarised explanation (SMV-Templ)",
    "top_tokens": "strongest tokens (total order)",
    "convolution": "best snippet of the convolution search",
    "span": "best snippet of the span search",
    "plausible": "scripted plausible verbaliser (a stub, not GPT)",
    "permuted": "summary of a permuted map",
    "random_span": "random span as long as the summary",
    "first_tokens": "first five tokens",
    "whole_text": "whole text",
}
"""What is shown to the reader; the last four are controls."""


@functools.cache  # one object per configuration: the searches compile once for it
def make_threshold(config: SearchConfig) -> Threshold:
    """The rule of a configuration."""
    rules: Mapping[str, Threshold] = {
        "mean_top": functools.partial(threshold_mean_top, fraction=config.threshold_value),
        "n_std": functools.partial(threshold_n_std, factor=config.threshold_value),
        "variance": functools.partial(threshold_variance, factor=config.threshold_value),
        "quantile": functools.partial(threshold_quantile, quantile=config.threshold_value),
    }
    return rules[config.threshold]


def verbalise_maps(config: Config, maps: Maps, association: Float[np.ndarray, "classes vocab"]) -> Verbalised:
    """Searches and controls on all maps; `association` is what the scripted verbaliser knows of words and classes."""
    search, rng = config.search, np.random.default_rng([config.seed, 32])
    scores, mask = jnp.asarray(maps.scores), jnp.asarray(maps.mask)
    threshold, shape = make_threshold(search), maps.mask.shape
    summarise = functools.partial(
        summarise_runs, mask=mask, length=search.length, ones=search.ones, threshold=threshold,
        top=search.top, quantile=search.quantile,
    )  # fmt: skip
    runs = summarise(scores)
    convolution, span = (
        search_snippets(scores, filters, mask, threshold=threshold)
        for filters in (binary_filters(search.length, search.ones), centred_spans(search.length))
    )
    summary = snippet_mask(runs, shape)
    shown = {
        "summary": summary,
        "top_tokens": snippet_mask(top_tokens(scores, mask, k=search.top), shape),
        "convolution": snippet_mask([found[:1] for found in convolution], shape),
        "span": snippet_mask([found[:1] for found in span], shape),
        "plausible": plausible_tokens(config.reading, maps, summary, association, rng),
        "permuted": snippet_mask(summarise(jnp.asarray(permuted_scores(maps.scores, maps.mask, rng))), shape),
        "random_span": random_spans(maps.mask, summary.sum(1), rng),
        "first_tokens": maps.mask & (np.cumsum(maps.mask, axis=1) <= search.top),
        "whole_text": maps.mask,
    }
    taken = [
        is_verbalisable(
            [*found, *spans], num_tokens=int(count), max_tokens=config.reading.max_tokens,
            min_coverage=config.reading.min_coverage,
        )
        for found, spans, count in zip(convolution, span, maps.mask.sum(1), strict=True)
    ]  # fmt: skip
    common = [len(common_snippets(found, spans)) for found, spans in zip(convolution, span, strict=True)]
    return Verbalised(shown, runs, float(np.mean(taken)), float(np.mean(common)))


def plausible_tokens(
    config: ReadingConfig,
    maps: Maps,
    summary: Bool[np.ndarray, "n length"],
    association: Float[np.ndarray, "classes vocab"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, "n length"]:
    """The summary's tokens, a share of them (`plausible_share`, at random) replaced without regard to the map.

    Those slots take the words of the text that go most with the predicted label in the training corpus (that the other
    slots are the summary's own is our reading). It stands in for a language model in miniature, no more: a single word
    that the classifier and its corpus agree on is typical *and* salient, so the two can come out close.
    """
    shown = np.zeros_like(summary)
    for number, (row, template) in enumerate(zip(shown, summary, strict=True)):
        words, slots = np.flatnonzero(maps.mask[number]), rng.permutation(np.flatnonzero(template)).tolist()
        typical = association[maps.predicted[number], maps.texts.input_ids[number, words]]
        liked = words[np.argsort(-typical, kind="stable")][: round(config.plausible_share * len(slots))]
        row[list(dict.fromkeys([*liked.tolist(), *slots]))[: len(slots)]] = True
    return shown


# ---- reader ----------------------------------------------------------------------------------------------


def fit_task_reader(config: Config, texts: TextRows, *, smoothing: float) -> NaiveBayesReader:
    """The reader that knows these texts and their true labels."""
    return fit_reader(
        texts.input_ids, texts.content, texts.labels, num_classes=len(config.data.label_names),
        vocab_size=config.vocab_size, smoothing=smoothing,
    )  # fmt: skip


class Reading(NamedTuple):
    """What was measured: numbers by name, and coverage@k by verbaliser."""

    metrics: dict[str, float]
    at_k: dict[str, Float[np.ndarray, " ranks"]]


def read_verbalisations(config: Config, maps: Maps, verbalised: Verbalised, reader: NaiveBayesReader) -> Reading:
    """Coverage and simulation accuracy of every representation, the paired gains, coverage@k of the two verbalisers."""
    scores, ids = jnp.asarray(maps.scores), maps.texts.input_ids
    metrics: dict[str, float] = {}
    correct: dict[str, np.ndarray] = {}
    for name, shown in verbalised.shown.items():
        carried = np.asarray(coverage(jnp.asarray(shown), scores))
        correct[name] = (reader.guess(ids, shown) == maps.predicted).astype(np.float64)
        metrics[f"coverage/{name}"] = float(carried.mean())
        metrics[f"simulation/{name}"] = float(correct[name].mean())
        metrics[f"tokens/{name}"] = float(shown.sum(1).mean())
    # A heatmap shows every word, the stronger the colour the more: weights are evidence on the scale of its largest.
    colour = np.maximum(maps.scores, 0) / np.maximum(maps.scores.max(axis=1, keepdims=True), 1e-12)
    metrics["simulation/heatmap"] = float(np.mean(reader.guess(ids, colour) == maps.predicted))
    metrics["coverage_ratio/permuted"] = metrics["coverage/summary"] / max(metrics["coverage/permuted"], 1e-12)
    metrics["coverage_gap/convolution_span"] = metrics["coverage/convolution"] - metrics["coverage/span"]
    for name, better, worse in (
        ("summary_permuted", "summary", "permuted"),
        ("summary_whole_text", "summary", "whole_text"),
        ("plausible_summary", "plausible", "summary"),
    ):
        interval = bootstrap_interval(
            correct[better] - correct[worse], resamples=config.reading.resamples, rng=config.seed
        )
        metrics |= {f"gain/{name}": interval.estimate, f"gain_low/{name}": interval.low}
    exact = [
        right
        for row, runs in enumerate(verbalised.runs)
        for right in exact_percentages(runs, maps.texts.tokens[row], maps.scores[row])
    ]
    metrics["exact_percentages"] = float(np.mean(exact)) if exact else float("nan")
    at_k = {name: template_coverage_at_k(maps, verbalised.shown[name]) for name in ("summary", "plausible")}
    for name, values in at_k.items():
        metrics |= {f"coverage_at_k/{name}/{k}": float(value) for k, value in zip(RANKS, values, strict=True)}
        metrics[f"coverage_at_k/{name}/mean"] = float(values.mean())
    metrics |= {
        "coverage_at_k/smallest_gap": float(np.min(at_k["summary"] - at_k["plausible"])),
        "verbalisable_share": verbalised.verbalisable,
        "common_snippets": verbalised.common,
    }
    return Reading(metrics, at_k)


def template_coverage_at_k(maps: Maps, shown: Bool[np.ndarray, "n length"]) -> Float[np.ndarray, " ranks"]:
    """Mean coverage@k of templates filled with the runs of adjacent tokens among those shown, read from the text."""
    tokens = maps.texts.tokens
    texts = [verbalise(adjacent_runs(chosen), words) for chosen, words in zip(shown, tokens, strict=True)]
    return _mean_coverage_at_k(cited_mask(texts, tokens, maps.mask), maps.scores)


def _mean_coverage_at_k(
    cited: Bool[np.ndarray, "n length"], scores: Float[np.ndarray, "n length"]
) -> Float[np.ndarray, " ranks"]:
    return np.asarray(coverage_at_k(jnp.asarray(cited), jnp.asarray(scores), RANKS)).mean(0)


def load_generator(name: str) -> Generate:
    """The function that ``module:function`` names.

    Raises:
        ValueError: no such module or function.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"generator {name!r} cannot be imported ({error}): give module:function") from error
    if not callable(found):
        raise ValueError(f"generator {name!r} is no function: it must take prompts and give a text for each")
    return found


def load_model_generator(config: Config, mesh: Mesh) -> Generate:
    """The language model of ``config.generator_model`` on its shards, as a function of prompts.

    Raises:
        ValueError: as `load_pretrained` and `load_tokenizer`.
    """
    model, params = load_pretrained(config.generator_model, sharding=mesh)
    generate = model_generator(
        model, params, load_tokenizer(config.generator_model), max_new_tokens=config.generator_tokens,
        batch_size=config.generator_batch, mesh=mesh,
    )  # fmt: skip
    return functools.partial(generate, seed=config.seed)


class Generated(NamedTuple):
    """A generator's texts, label mentions masked, and what was measured of them."""

    texts: list[str]
    metrics: dict[str, float]


def instruct(config: Config, generate: Generate, maps: Maps, reader: NaiveBayesReader) -> Generated:
    """The instruction-based representation (SMV-GPT's prompt) by any generator, measured as the templates are.

    Label mentions are masked before anything is read, so that they cannot leak to the reader.
    """
    count, task = min(config.reading.num_generated, len(maps.texts)), _TASKS[config.task]
    tokens = maps.texts.tokens[:count]
    labels = [config.data.label_names[index] for index in maps.predicted[:count]]
    scores = [row[: len(words)] for row, words in zip(maps.scores, tokens, strict=False)]
    written = verbalise_with(generate, tokens, scores, labels, task=task, objective=config.objective)
    texts = [mask_label(text, label, task=task) for text, label in zip(written, labels, strict=True)]
    cited = cited_mask(texts, tokens, maps.mask[:count])
    citations = all_citations(texts, map(glue_tokens, tokens))
    at_k = _mean_coverage_at_k(cited, maps.scores[:count])
    guesses = reader.guess(maps.texts.input_ids[:count], cited)
    metrics = {f"instructed/coverage_at_k/{k}": float(value) for k, value in zip(RANKS, at_k, strict=True)}
    metrics |= {
        "instructed/simulation": float(np.mean(guesses == maps.predicted[:count])),
        "instructed/words": float(np.mean([len(text.split()) for text in texts])),
        "instructed/citations": float(citations.total),
    }
    if citations.total:
        metrics["instructed/citation_precision"] = citations.precision
    return Generated(texts, metrics)


# ---- run -------------------------------------------------------------------------------------------------


def run(
    config: Config,
    run_dir: pathlib.Path | str,
    *,
    resume: bool = False,
    tick: Callable[[int], bool] = lambda step: False,
) -> Results:
    """Train, explain, verbalise, read, report; see `experiments`."""
    started = time.perf_counter()
    check_run_directory(run_dir, config, resume=resume)
    generate = load_generator(config.generator) if config.generator else None
    study = analyse_study(config.study_path) if config.study_path else None
    steps = make_steps(config)
    if config.generator_model:
        generate = load_model_generator(config, steps.mesh)
    task = open_task(config)
    with contextlib.closing(open_run_directory(run_dir, config, resume=resume)) as directory:
        state = initial_state(config, steps)
        state = fit(
            state, steps.train, training_batches(config, task.training), num_steps=config.num_steps, mesh=steps.mesh,
            run=directory, loop=config.loop, title=f"saliency_verbalization {config.preset}", tick=tick,
        )  # fmt: skip
        maps, explained = explain_texts(config, steps, state.params, task.test, tick)
        with current_ticker().phase("evaluate"):
            reader = fit_task_reader(config, task.reading, smoothing=config.reading.smoothing)
            corpus = fit_task_reader(config, task.training, smoothing=1.0)
            verbalised = verbalise_maps(config, maps, corpus.association())
            reading = read_verbalisations(config, maps, verbalised, reader)
        generated = instruct(config, generate, maps, reader) if generate else None
        results = results_of(
            "saliency_verbalization",
            config,
            started=started,
            steps=config.num_steps,
            metrics={
                **explained,
                **reading.metrics,
                **(generated.metrics if generated else {}),
                **(study.metrics if study else {}),
            },
            samples={f"coverage_at_k/{name}": values.tolist() for name, values in reading.at_k.items()},
            params=state.params,
        )
        labels = config.data.label_names
        write_trained_model(directory, steps.model, state.params, tokenizer=task.tokenizer, labels=labels)
        if jax.process_index() == 0:
            shown = Shown(maps, verbalised, reading, generated, study)
            write_verbalization_report(config, task, results, shown, directory)
            write_results(directory.results, results)
    return results


def training_batches(config: Config, texts: TextRows) -> Any:
    """Batches with the same number of texts of every class."""
    classes = len(config.data.label_names)
    return class_batches(
        {"input_ids": texts.input_ids, "attention_mask": texts.attention_mask},
        texts.labels,
        num_classes=classes,
        num_examples=config.batch_size // classes,
        seed=config.seed,
        small_classes="repeat",
        num_steps=config.num_steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def initial_state(config: Config, steps: Steps) -> Any:
    """Fresh parameters, or those of ``config.pretrained`` read straight into their shardings."""
    params = None
    if config.pretrained:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, steps.state.params)
        _, params, _ = load_classifier(config.pretrained, config_overrides=_overrides(config), sharding=shardings)
    return create_state(steps.initialize, steps.optimizer, steps.mesh, seed=config.seed, params=params)


def explained_rows(texts: TextRows) -> dict[str, np.ndarray]:
    """What the explaining step takes."""
    return {"input_ids": texts.input_ids, "attention_mask": texts.attention_mask, "content": texts.content}


def explain_texts(
    config: Config, steps: Steps, params: Any, test: TextRows, tick: Any
) -> tuple[Maps, dict[str, float]]:
    """Maps of the test texts that are read, and how good the classifier and its explanation are.

    Raises:
        ValueError: fewer than two texts of the right length.
    """
    output = map_rows(
        steps.explain, params, explained_rows(test), batch_size=config.evaluation_batch_size, mesh=steps.mesh, tick=tick
    )
    predicted, reading = np.argmax(output["logits"], axis=1), config.reading
    lengths = test.content.sum(1)
    rows = np.flatnonzero((lengths >= reading.min_tokens) & (lengths < reading.max_tokens))[: reading.num_texts]
    if len(rows) < 2:
        raise ValueError(
            f"{len(rows)} of {len(test)} test texts have {reading.min_tokens} to {reading.max_tokens - 1} tokens: "
            "expected at least two; change reading.min_tokens or reading.max_tokens"
        )
    texts = test.take(rows)
    metrics = {
        "classifier/accuracy": float(np.mean(predicted == test.labels)),
        "classifier/completeness_error": float(np.mean(np.abs(output["completeness_error"]))),
        "texts_read": float(len(rows)),
    }
    scores = np.asarray(output["scores"][rows], np.float32)
    return Maps(texts, scores, texts.content.astype(bool), predicted[rows]), metrics


# ---- report ----------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """What a report is written from, beside the results."""

    maps: Maps
    verbalised: Verbalised
    reading: Reading
    generated: Generated | None
    study: Study | None


def write_verbalization_report(
    config: Config, task: Task, results: Results, shown: Shown, directory: RunDirectory
) -> None:
    """``report.html`` of one run."""
    from jaxcore.reporting import Headline, Paragraph, Section
    from jaxcore.reporting.run_report import configuration_section, training_section, verdict_section, write_run_report

    metrics = results.metrics
    headline = [
        Headline("evidence in the summary", f"{metrics['coverage/summary']:.3f}", "share of the positive attributions"),
        Headline(
            "a reader's accuracy from it", f"{metrics['simulation/summary']:.3f}",
            f"permuted map {metrics['simulation/permuted']:.3f}",
        ),
        Headline("classifier's accuracy", f"{metrics['classifier/accuracy']:.3f}"),
    ]  # fmt: skip
    sections = [
        Section("Data", [Paragraph(task.description)]),
        verdict_section(single_run_verdicts(results), single_run_note("saliency_verbalization")),
        reading_section(metrics, shown.reading),
        examples_section(config, shown),
        study_section(shown.study) if shown.study else None,
        training_section(read_metrics(directory.metrics)),
        configuration_section(config),
    ]
    write_run_report(
        directory.report, results, title=PAPER.title, claim=PAPER.claim, headline=headline, sections=sections
    )


def reading_section(metrics: Mapping[str, float], reading: Reading) -> Any:
    """Coverage, simulation accuracy and tokens of each representation; coverage@k."""
    from jaxcore.reporting import Curves, Section, Table

    rows: list[tuple[Any, ...]] = [
        (what, metrics[f"coverage/{name}"], metrics[f"simulation/{name}"], metrics[f"tokens/{name}"])
        for name, what in REPRESENTATIONS.items()
    ]
    rows.append(("heatmap, words weighed by their colour", None, metrics["simulation/heatmap"], None))
    curves = {REPRESENTATIONS[name]: (RANKS, values) for name, values in reading.at_k.items()}
    if "instructed/simulation" in metrics:
        words = metrics["instructed/words"]
        rows.append(("instruction-based, by the generator", None, metrics["instructed/simulation"], words))
        curves["generator"] = (RANKS, np.array([metrics[f"instructed/coverage_at_k/{k}"] for k in RANKS]))
    return Section(
        "What a reader learns",
        [
            Table(("shown", "coverage", "simulation accuracy", "tokens"), rows),
            Curves(
                curves, "k", "coverage@k", caption="Share of the evidence in the cited tokens among the k strongest"
            ),
        ],
        note="The reader is naive Bayes on other texts; it sees the named words and guesses the classifier's label.",
    )


def examples_section(config: Config, shown: Shown) -> Any:
    """The first texts: heatmap, template, and what a generator wrote or would be asked."""
    from jaxcore.reporting import Paragraph, Section, TokenHeatmap

    maps, names = shown.maps, config.data.label_names
    blocks: list[Any] = []
    for row in range(min(config.reading.shown, len(maps.texts))):
        tokens = maps.texts.tokens[row]
        values, label = maps.scores[row, : len(tokens)], names[maps.predicted[row]]
        caption = f"predicted {label}, true {names[maps.texts.labels[row]]}"
        blocks.append(TokenHeatmap(tokens, values, caption=caption))
        blocks.append(Paragraph(verbalise(shown.verbalised.runs[row], tokens, templates=COVERAGE_TEMPLATES)))
        if shown.generated and row < len(shown.generated.texts):
            blocks.append(Paragraph(f"Generator: {shown.generated.texts[row]}"))
        elif row == 0:
            prompt = prompt_for_generator(tokens, values, label, task=_TASKS[config.task], objective=config.objective)
            blocks.append(Paragraph(f"What a generator would be asked:\n{prompt}"))
    return Section("Texts in each representation", blocks)


def single_run_verdicts(results: Results) -> list[Verdict]:
    """The claims that a single run can speak to, and those about the study where it was analysed."""
    values = RunValues(results.metrics, results.samples)
    return judge_single_run(CLAIMS, "verbalised", values) + judge_single_run(STUDY_CLAIMS, "study", values)


# ---- claims ----------------------------------------------------------------------------------------------


_SOURCE = "saliency_verbalization.md, small-scale experiment"


def _claim(
    name: str, statement: str, value: str, against: str = "", *, margin: float = 0.0, worst: float | None = None,
    part: str = "b",
) -> Claim:  # fmt: skip
    other = Measured("verbalised", against) if against else None
    return Claim(
        name, statement, f"{_SOURCE} ({part})", Measured("verbalised", value), other, margin=margin, worst=worst
    )


# The specification asks for five seeds: verify saliency_verbalization --seeds 5.
CLAIMS = Claims(
    preset="cpu",
    variants={"verbalised": lambda config: config},
    claims=(
        _claim(
            "covers_evidence",
            "the summary covers at least 2.5 times the evidence that a summary of the permuted map does",
            "coverage_ratio/permuted", margin=2.5,
        ),
        _claim(
            "simulatable",
            "a reader guesses the prediction from the summary better than from that of a permuted map, by 0.15",
            "simulation/summary", "simulation/permuted", margin=0.15,
        ),
        _claim(
            "simulatable_for_sure",
            "and the paired bootstrap interval (95 %) over texts excludes 0, for every seed",
            "gain_low/summary_permuted", margin=1e-9, worst=1e-9,
        ),
        _claim(
            "better_than_the_text", "better than from the whole text, by 0.05",
            "simulation/summary", "simulation/whole_text", margin=0.05,
        ),
        _claim(
            "better_than_the_text_for_sure",
            "and the paired bootstrap interval (95 %) over texts excludes 0, for every seed",
            "gain_low/summary_whole_text", margin=1e-9, worst=1e-9,
        ),
        _claim(
            "convolution_covers_more",
            "the best snippet of the convolution search covers in the mean at least as much as the span search's",
            "coverage/convolution", "coverage/span",
        ),
        _claim(
            "stated_percentages_are_exact",
            "every percentage in a sentence is the coverage of the words it names, summed anew",
            "exact_percentages", margin=1.0,
        ),
        _claim(
            "plausible_is_less_faithful",
            "with 40 % of the summary's tokens replaced by words typical of the label, every coverage@k is lower",
            "coverage_at_k/smallest_gap", margin=1e-9, part="c",
        ),
        _claim(
            "plausible_is_as_simulatable", "while the reader's accuracy from it is not lower",
            "simulation/plausible", "simulation/summary", part="c",
        ),
    ),
)  # fmt: skip


def _higher(name: str, statement: str, value: str, against: str = "") -> Claim:
    """A direction of the study's table: strictly above."""
    other = Measured("study", f"study/{against}") if against else None
    return Claim(name, statement, f"{_SOURCE} (a)", Measured("study", f"study/{value}"), other, margin=1e-9)


# Judged in the report of a run that was given the study (--study-path): without the files there is nothing to measure.
STUDY_CLAIMS = Claims(
    preset="cpu",
    variants={"study": lambda config: config},
    claims=(
        Claim(
            "every_cell_reproduced",
            "every number of Table 2 and of coverage@k comes out within 0.005",
            f"{_SOURCE} (a)",
            Measured("study", "study/cells_reproduced"),
            margin=1.0,
        ),
        *(
            _higher(
                f"instructed_is_more_{word}_{dataset}",
                f"{dataset}: GPT's verbalisations are rated above templates ({measure})",
                f"{dataset}/all/instructed/{measure}",
                f"{dataset}/all/template/{measure}",
            )
            for dataset in STUDY_DATASETS
            for word, measure in (("helpful", "helpful"), ("easy", "ease"))
        ),
        _higher(
            "templates_are_easier_than_heatmaps",
            "IMDb: templates are easier to understand than heatmaps",
            "IMDb/all/template/ease",
            "IMDb/all/heatmap/ease",
        ),
        *(
            _higher(
                f"coverage_helps_{measure}_{dataset}",
                f"{dataset}: templates of high coverage are above all templates ({measure})",
                f"{dataset}/high_coverage/template/{measure}",
                f"{dataset}/all/template/{measure}",
            )
            for dataset in STUDY_DATASETS
            for measure in ("accuracy", "helpful")
        ),
        _higher(
            "templates_cite_more_evidence",
            "IMDb: coverage@k of templates is above GPT's for every k from 1 to 10",
            "IMDb/coverage_gap/smallest",
        ),
    ),
)
