"""A primer on contrastive pretraining in language processing (Rethmeier and Augenstein 2023): its objectives, compared.

What the survey says. Methods differ less than their names: each makes pairs, encodes, scores, draws negatives, and
applies one of a few families of objectives, and the families estimate *different things*. Contrasting texts with
labels (input-label) is the safer half of the field, because editing one word of a text can turn its meaning around.

How it is shown here. Four parts, all on generated or embedded data:
    estimation   E1: what binary, ranking and uncorrected objectives estimate, against a known conditional
    matching     E2: words of a text as pseudo-labels transfer to titles, zero-shot and few-shot (CLESS)
    detection    E3: energies (Electric) against detection scores (ELECTRA), against a known Markov chain
    families     one encoder trained with every objective at one budget, and the table the survey lacks
Every row of the survey's tables as a configuration is in `jaxcore.training.surveyed_methods`.

Read top to bottom: configuration, presets, the four parts, steps, run, report, claims.
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from experiments.protocol import Devices, Paper, Program, Step
from jaxcore.data.markov_chain import chain_conditionals, make_chain, sample_chain
from jaxcore.data.titled_task import TitledDataConfig, TitledTask, graded_halves, open_titled_task
from jaxcore.distributed import (
    MeshConfig,
    batch_sharding,
    check_batch,
    current_ticker,
    jit_on_mesh,
    make_mesh,
)
from jaxcore.evaluation import Claim, Claims, Interrupted, Measured, RunValues, Verdict, judge_single_run, map_rows
from jaxcore.evaluation.retrieval import evaluate_retrieval
from jaxcore.evaluation.sentence_similarity import spearman
from jaxcore.losses import uniformity, unit_vectors
from jaxcore.losses.distribution_shape import alignment, mean_cosine_isotropy
from jaxcore.losses.noise_contrastive import binary_nce, ranking_nce
from jaxcore.losses.replaced_tokens import electric_logits, replaced_token_loss, replaced_token_targets
from jaxcore.models import BagOfWordsConfig, BagOfWordsEncoder, Encoder, EncoderConfig
from jaxcore.training import (
    LoopConfig,
    OptimizerConfig,
    Results,
    RunDirectory,
    abstract_state,
    check_run_directory,
    create_state,
    describe_device,
    fit,
    make_optimizer,
    make_train_step,
    open_run_directory,
    package_versions,
    params_digest,
    read_metrics,
    write_results,
)
from jaxcore.training.label_matching import (
    LabelMatchingConfig,
    init_matcher,
    match_scores,
    pseudo_label_batches,
    title_batches,
    train_matcher,
)
from jaxcore.training.objective_families import FAMILIES, family_claim_rows, family_gradients, train_family

PAPER = Paper(
    title="A primer on contrastive pretraining in language processing",
    year=2023,
    claim="Contrastive methods for language are few objectives in many guises, and these estimate different things.",
    needs="nothing; gpu and pod: titled texts (--data.path), by default the prepared TFDS dataset wikipedia",
)


# ---- configuration ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EstimationConfig:
    """E1: a known p(y|x) proportional to exp(<u_x, v_y>), estimated with a Zipf law as noise."""

    num_contexts: int = 20
    num_labels: int = 60
    dim: int = 6
    """Contexts x, labels y, and the width of their vectors; label vectors are centred, so a constant per x is outside
    the model."""
    norms: tuple[float, float] = (0.3, 2.0)
    """Norm of the first and the last context's vector, growing in between: log Z depends on x."""
    num_noise: int = 10
    num_steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 0.05
    """Adam with cosine decay, fresh samples at every step."""


@dataclasses.dataclass(frozen=True)
class MatchingConfig:
    """E2: words of a text as pseudo-labels, then titles, in one network (CLESS)."""

    network: LabelMatchingConfig = dataclasses.field(default_factory=LabelMatchingConfig)
    """The matcher and its training, of the same length in every arm."""
    pseudo_labels: tuple[int, ...] = (1, 2, 4, 8)
    """Pseudo-labels per text whose effect is measured; the last is the pretraining that is fine-tuned."""
    label_shares: tuple[float, ...] = (0.1, 1.0)
    """Shares of the training texts whose titles supervision may see."""
    num_candidates: int = 50
    """Titles among which the true one is ranked."""

    def __post_init__(self) -> None:
        if not self.pseudo_labels or max(self.pseudo_labels) > self.network.num_labels:
            raise ValueError(
                f"matching.pseudo_labels must be 1..{self.network.num_labels} (matching.network.num_labels), at least "
                f"one: got {self.pseudo_labels}"
            )


@dataclasses.dataclass(frozen=True)
class DetectionConfig:
    """E3: sequences of a Markov chain, some tokens replaced by draws from its marginal."""

    num_states: int = 20
    length: int = 12
    transition_spread: float = 1.0
    marginal_spread: float = 1.5
    """Standard deviations of the transition logits: of each transition, and of each target state."""
    mask_rate: float = 0.15
    embedding_size: int = 16
    window: int = 3
    hidden_size: int = 64
    num_steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 3e-3
    num_test: int = 512


Part = Literal["estimation", "matching", "detection", "families"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    preset: str = "cpu"
    """The preset these fields started from."""
    seed: int = 0
    """Of worlds, splits, parameters, batches and draws."""
    parts: tuple[Part, ...] = ("estimation", "matching", "detection", "families")
    """What is run; see the module's docstring."""
    num_replicates: int = 5
    """Worlds, or splits, over which estimation, matching and detection are repeated."""
    objective: str = "info_nce"
    """Family that is trained with checkpoints, a key of `FAMILIES`; the only one on a pod."""
    families: tuple[str, ...] = ("all",)
    """Further families that are compared with it; "all" for every one, nothing for none."""
    num_steps: int = 200
    """Updates of every family."""
    batch_size: int = 128
    """Texts of a batch; each is encoded as two views."""
    micro_batch: int = 0
    """Texts encoded at once by gradient caching, over all devices; 0 encodes the whole batch."""
    evaluation_batch_size: int = 256
    """Texts embedded at once in evaluation."""
    encoder: Literal["transformer", "bag_of_words"] = "bag_of_words"
    """Which of the two models below the families train."""
    model: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    """The transformer; its vocabulary is that of the data."""
    bag_of_words: BagOfWordsConfig = dataclasses.field(
        default_factory=lambda: BagOfWordsConfig(hidden_sizes=(128,), dropout=0.1)
    )
    """The perceptron on word counts; dropout makes SimCSE's twins."""
    data: TitledDataConfig = dataclasses.field(default_factory=TitledDataConfig)
    """Titled texts of matching and families."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(learning_rate=2e-3))
    """Optimiser of the families, the same for all."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""
    loop: LoopConfig = dataclasses.field(default_factory=lambda: LoopConfig(checkpoint_every=0))
    """Checkpoints and logging."""
    estimation: EstimationConfig = dataclasses.field(default_factory=EstimationConfig)
    matching: MatchingConfig = dataclasses.field(default_factory=MatchingConfig)
    detection: DetectionConfig = dataclasses.field(default_factory=DetectionConfig)
    """The three statistical experiments."""

    def __post_init__(self) -> None:
        trained = [name for name, family in FAMILIES.items() if family.loss is not None]
        if self.objective not in trained:
            raise ValueError(f"unknown objective {self.objective!r}: expected one of {', '.join(trained)}")
        unknown = set(self.families) - set(FAMILIES) - {"all"}
        if unknown:
            raise ValueError(f"unknown families {sorted(unknown)}: expected all, or some of {', '.join(FAMILIES)}")
        if self.num_steps < 0 or self.num_replicates < 1 or not self.parts:
            raise ValueError(
                "num_steps must be >= 0, num_replicates >= 1 and parts name at least one: got "
                f"{self.num_steps}, {self.num_replicates} and {self.parts}"
            )
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide the batch of {self.batch_size} texts")
        if self.encoder == "transformer" and self.model.pooler == "none":
            raise ValueError("families need a vector per text: set model.pooler to mean")

    @property
    def compared(self) -> tuple[str, ...]:
        """Families beside the objective."""
        chosen = tuple(FAMILIES) if "all" in self.families else self.families
        return tuple(name for name in chosen if name != self.objective)


_SMOKE_NETWORK = LabelMatchingConfig(num_steps=10, batch_size=16, num_labels=2, embedding_size=16, num_filters=16)

# Wikipedia as TFDS has it (features title, text): a text's title is its label.
_WIKIPEDIA = TitledDataConfig(path="tfds:wikipedia/20230601.en/train", max_length=128, test_share=0.001)

PRESETS: Mapping[str, Config] = {
    "smoke": Config(
        preset="smoke",
        num_replicates=2,
        families=("untrained", "simcse", "momentum_queue"),
        num_steps=4,
        batch_size=32,
        evaluation_batch_size=64,
        bag_of_words=BagOfWordsConfig(hidden_sizes=(32,), embedding_size=16, dropout=0.1),
        loop=LoopConfig(checkpoint_every=2),
        estimation=EstimationConfig(num_steps=40, batch_size=64),
        matching=MatchingConfig(network=_SMOKE_NETWORK, pseudo_labels=(1, 2)),
        detection=DetectionConfig(num_steps=20, batch_size=32, num_test=64),
    ),
    "cpu": Config(preset="cpu"),
    "gpu": Config(
        preset="gpu",
        parts=("families",),
        objective="symmetric_info_nce",
        families=(),
        num_steps=20_000,
        batch_size=4096,
        micro_batch=1024,
        evaluation_batch_size=1024,
        encoder="transformer",
        model=EncoderConfig(dtype="bfloat16", attention_dropout=0.0, pooler="mean"),
        data=dataclasses.replace(_WIKIPEDIA, vocab_size=30522),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="linear", weight_decay=0.01, clip_norm=1.0),
        loop=LoopConfig(checkpoint_every=500, log_every=10),
    ),
    # One objective at a batch where the number of negatives is the point: DeCLUTR's NT-Xent on spans of one document,
    # RoBERTa-base, as the survey's cpt-text does it (very large batches); 64 texts per chip of 256 chips at a time.
    # Attention weights are not dropped: fused attention cannot.
    "pod": Config(
        preset="pod",
        parts=("families",),
        objective="nt_xent",
        families=(),
        num_steps=10_000,
        batch_size=65_536,
        micro_batch=16_384,
        evaluation_batch_size=16_384,
        encoder="transformer",
        model=EncoderConfig(
            vocab_size=50265, max_positions=514, num_token_types=1, norm_epsilon=1e-5, position_offset=2,
            pad_token_id=1, architecture="roberta", dtype="bfloat16", attention_dropout=0.0, pooler="mean",
            attention_implementation="fused", remat="full",
        ),
        data=dataclasses.replace(_WIKIPEDIA, tokenizer="roberta-base", vocab_size=50265, max_length=256),
        optimizer=OptimizerConfig(learning_rate=4e-4, schedule="linear", weight_decay=0.1, clip_norm=1.0),
        mesh=MeshConfig(data=-1, fsdp=4),
        loop=LoopConfig(checkpoint_every=250, log_every=10),
    ),
}  # fmt: skip


# ---- E1: what the families estimate ----------------------------------------------------------------------


class Replicated(NamedTuple):
    """What a part measured: scalars, values per replicate, and the parameters it ended with."""

    metrics: dict[str, float]
    samples: dict[str, list[float]]
    params: Any


class Estimator(NamedTuple):
    """An objective of E1: family, noise correction, gamma, and whether scores are a free table."""

    objective: Literal["ranking", "binary"]
    noise_correction: bool
    log_partition: Literal["none", "scalar", "row"] = "none"
    tabular: bool = False


ESTIMATORS: Mapping[str, Estimator] = {
    "ranking": Estimator("ranking", True),
    "binary_gamma_per_context": Estimator("binary", True, "row"),
    "binary_scalar_gamma": Estimator("binary", True, "scalar"),
    "ranking_uncorrected": Estimator("ranking", False),
    "binary_uncorrected": Estimator("binary", False),
    "ranking_uncorrected_tabular": Estimator("ranking", False, tabular=True),
}


class Conditional(NamedTuple):
    """The world of E1."""

    labels: Float[Array, "labels dim"]
    log_truth: Float[Array, "contexts labels"]
    log_noise: Float[Array, " labels"]


def make_conditional(config: EstimationConfig, key: Array) -> Conditional:
    """Label vectors, log p(y|x) and log p_N(y), the noise ranks permuted at random."""
    of_labels, of_contexts, of_noise = jax.random.split(key, 3)
    labels = jax.random.normal(of_labels, (config.num_labels, config.dim))
    labels = labels - jnp.mean(labels, axis=0)
    contexts = unit_vectors(jax.random.normal(of_contexts, (config.num_contexts, config.dim)))
    contexts = contexts * jnp.linspace(*config.norms, config.num_contexts)[:, None]
    noise = jax.random.permutation(of_noise, 1.0 / jnp.arange(1, config.num_labels + 1))
    return Conditional(labels, jax.nn.log_softmax(contexts @ labels.T), jnp.log(noise / jnp.sum(noise)))


@functools.partial(jax.jit, static_argnames="config")
def estimate_conditional(config: EstimationConfig, key: Array) -> tuple[dict[str, Array], Any]:
    """All estimators on the same draws, as one scan: their KL divergences from the truth, and their parameters."""
    of_world, of_draws = jax.random.split(key)
    world = make_conditional(config, of_world)
    cumulative, cumulative_noise = jnp.cumsum(jnp.exp(world.log_truth), axis=1), jnp.cumsum(jnp.exp(world.log_noise))
    last = config.num_labels - 1

    def draw(key: Array) -> tuple[Array, Array, Array]:
        keys = jax.random.split(key, 3)
        contexts = jax.random.randint(keys[0], (config.batch_size,), 0, config.num_contexts)
        uniform = jax.random.uniform(keys[1], (config.batch_size, 1))
        positive = jnp.sum(uniform > cumulative[contexts], axis=1, keepdims=True)
        uniform = jax.random.uniform(keys[2], (config.batch_size, config.num_noise))
        return contexts, jnp.minimum(positive, last), jnp.minimum(jnp.searchsorted(cumulative_noise, uniform), last)

    def total_loss(params: Any, drawn: tuple[Array, Array, Array]) -> Array:
        losses = [_estimator_loss(kind, params[name], world, *drawn) for name, kind in ESTIMATORS.items()]
        return jnp.sum(jnp.stack(losses))

    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.num_steps))

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(total_loss)(params, draw(key)), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    params: Any = {
        name: {
            "scores": jnp.zeros((config.num_contexts, config.num_labels if kind.tabular else config.dim)),
            "log_partition": jnp.zeros(config.num_contexts if kind.log_partition == "row" else ()),
        }
        for name, kind in ESTIMATORS.items()
    }
    keys = jax.random.split(of_draws, config.num_steps)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return _divergences(params, world), params


def _estimator_scores(kind: Estimator, params: Any, world: Conditional) -> Float[Array, "contexts labels"]:
    return params["scores"] if kind.tabular else params["scores"] @ world.labels.T


def _estimator_loss(
    kind: Estimator, params: Any, world: Conditional, contexts: Array, positive: Array, negative: Array
) -> Array:
    scores = _estimator_scores(kind, params, world)
    of_candidates: dict[str, Any] = {
        "positive": scores[contexts[:, None], positive],
        "negative": scores[contexts[:, None], negative],
        "noise_correction": kind.noise_correction,
        "log_noise_positive": world.log_noise[positive],
        "log_noise_negative": world.log_noise[negative],
    }
    if kind.objective == "ranking":
        return ranking_nce(**of_candidates)
    gamma = {"none": None, "scalar": params["log_partition"], "row": params["log_partition"]}[kind.log_partition]
    return binary_nce(**of_candidates, log_partition=gamma[contexts] if kind.log_partition == "row" else gamma)


def _divergences(params: Any, world: Conditional) -> dict[str, Array]:
    """``mean_x KL(p || softmax s)`` of every estimator; of the tabular one also to the normalised ratio p / p_N."""

    def divergence(log_target: Array, scores: Array) -> Array:
        difference = log_target - jax.nn.log_softmax(scores)
        return jnp.mean(jnp.sum(jnp.exp(log_target) * difference, axis=1))

    scores = {name: _estimator_scores(kind, params[name], world) for name, kind in ESTIMATORS.items()}
    ratio = jax.nn.log_softmax(world.log_truth - world.log_noise)
    return {name: divergence(world.log_truth, table) for name, table in scores.items()} | {
        "ranking_uncorrected_tabular_to_ratio": divergence(ratio, scores["ranking_uncorrected_tabular"])
    }


ESTIMATION_CRITERIA: Mapping[str, Callable[[Mapping[str, float]], bool]] = {
    "ranking_below_0.005": lambda kl: kl["ranking"] < 0.005,
    "gamma_per_context_below_0.01": lambda kl: kl["binary_gamma_per_context"] < 0.01,
    "scalar_gamma_above_5_ranking": lambda kl: kl["binary_scalar_gamma"] > 5 * kl["ranking"],
    "ranking_uncorrected_above_50_ranking": lambda kl: kl["ranking_uncorrected"] > 50 * kl["ranking"],
    "binary_uncorrected_above_50_ranking": lambda kl: kl["binary_uncorrected"] > 50 * kl["ranking"],
    "uncorrected_fits_ratio": lambda kl: kl["ranking_uncorrected_tabular_to_ratio"] < kl["ranking_uncorrected_tabular"],
}


def run_estimation(config: Config, tick: Callable[[int], bool]) -> Replicated:
    """E1 over replicates: ``kl/...`` and, for each criterion, the share of replicates that meet it."""
    found, params = [], []
    for replicate in range(config.num_replicates):
        key = jax.random.fold_in(jax.random.key(config.seed), replicate)
        divergences, trained = estimate_conditional(config.estimation, key)
        found.append({name: float(value) for name, value in jax.device_get(divergences).items()})
        params.append(trained)
        _leave_on_notice(tick, replicate)
    samples = {f"estimation/kl/{name}": [kl[name] for kl in found] for name in found[0]}
    shares = {f"estimation/share/{name}": [float(met(kl)) for kl in found] for name, met in ESTIMATION_CRITERIA.items()}
    return Replicated(_means(samples | shares), samples, params)


def _means(samples: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in samples.items()}


def _leave_on_notice(tick: Callable[[int], bool], step: int) -> None:
    if tick(step):
        raise Interrupted("stopped on notice between two replicates; run again, they are short")


# ---- E2: words as labels, then titles (CLESS) ------------------------------------------------------------


def title_reciprocal_rank(config: MatchingConfig, task: TitledTask, params: Any, rng: np.random.Generator) -> float:
    """MRR of the true title among `num_candidates` on the held-out texts; ties share their ranks' mean."""
    names = np.unique(np.concatenate([task.training.titles, task.test.titles]))
    others = [rng.permutation(names[names != title])[: config.num_candidates - 1] for title in task.test.titles]
    candidates = np.concatenate([task.test.titles[:, None], np.stack(others)], axis=1)
    texts = task.test.input_ids, task.test.attention_mask
    labels = task.title_ids[candidates], task.title_mask[candidates]
    scores = jax.device_get(match_scores(config.network, params, *texts, *labels))
    above = np.sum(scores[:, 1:] > scores[:, :1], axis=1) + np.sum(scores[:, 1:] == scores[:, :1], axis=1) / 2
    return float(np.mean(1 / (1 + above)))


def match_titles(config: MatchingConfig, task: TitledTask, seed: int) -> tuple[dict[str, float], Any]:
    """One replicate of E2: MRR of every arm, and the parameters after pretraining."""
    rng, network = np.random.default_rng([seed, 2]), config.network
    fresh = init_matcher(network, task.vocab_size, jax.random.key(seed))
    texts = task.training.input_ids, task.training.attention_mask

    def rank(params: Any) -> float:
        return title_reciprocal_rank(config, task, params, np.random.default_rng([seed, 3]))

    ranks, pretrained = {"untrained": rank(fresh)}, fresh
    for count in config.pseudo_labels:
        batches = pseudo_label_batches(network, task, rng, num_labels=count)
        pretrained = train_matcher(network, fresh, *texts, batches)
        ranks[f"zero_shot_{count}"] = rank(pretrained)
    ranks["zero_shot"] = ranks[f"zero_shot_{config.pseudo_labels[-1]}"]
    batches = pseudo_label_batches(network, task, rng, num_labels=config.pseudo_labels[-1], shuffled=True)
    ranks["shuffled"] = rank(train_matcher(network, fresh, *texts, batches))
    for share in config.label_shares:
        batches = title_batches(network, task, rng, share=share)
        ranks[f"scratch_{share:.0%}"] = rank(train_matcher(network, fresh, *texts, batches))
        ranks[f"pretrained_{share:.0%}"] = rank(train_matcher(network, pretrained, *texts, batches))
    return ranks, pretrained


def run_matching(config: Config, tick: Callable[[int], bool]) -> Replicated:
    """E2 over replicates (splits, parameters, draws): ``mrr/...`` per arm, and how it grows with pseudo-labels."""
    found, params = [], []
    for replicate in range(config.num_replicates):
        seed = config.seed * config.num_replicates + replicate
        ranks, trained = match_titles(config.matching, open_titled_task(config.data, seed=seed), seed)
        found.append(ranks)
        params.append(trained)
        _leave_on_notice(tick, replicate)
    samples = {f"matching/mrr/{name}": [ranks[name] for ranks in found] for name in found[0]}
    metrics, counts = _means(samples), config.matching.pseudo_labels
    growth = [metrics[f"matching/mrr/zero_shot_{count}"] for count in counts]
    chance = float(np.mean(1 / np.arange(1, config.matching.num_candidates + 1)))
    metrics |= {
        "matching/spearman_of_pseudo_labels": spearman(np.array(counts), np.array(growth)) if len(counts) > 1 else 0.0,
        "matching/chance": chance,
        "matching/shuffled_above_chance": metrics["matching/mrr/shuffled"] - chance,
    }
    return Replicated(metrics, samples, params)


# ---- E3: energies against detection scores ---------------------------------------------------------------


class Head(NamedTuple):
    """A detector of E3: whether the generator's probability enters its logit, and what it counts as noise."""

    noise_correction: bool
    rule: Literal["electra", "electric"]


HEADS: Mapping[str, Head] = {
    "electric": Head(True, "electric"),
    "electra": Head(False, "electra"),
    "electric_with_electra_labels": Head(True, "electra"),
    "electra_with_electric_labels": Head(False, "electric"),
}


def init_detector(config: DetectionConfig, key: Array) -> dict[str, Array]:
    """A perceptron on a window of token vectors, one number per position."""
    sizes = [config.window * config.embedding_size, config.hidden_size, config.hidden_size, 1]
    keys = jax.random.split(key, len(sizes))
    params = {"embedding": jax.random.normal(keys[0], (config.num_states + 1, config.embedding_size))}
    for layer, (size_in, size_out) in enumerate(itertools.pairwise(sizes)):
        params[f"kernel_{layer}"] = jax.random.normal(keys[layer + 1], (size_in, size_out)) * jnp.sqrt(2 / size_in)
        params[f"bias_{layer}"] = jnp.zeros(size_out)
    return params


def detect(config: DetectionConfig, params: dict[str, Array], tokens: Int[Array, "rows length"]) -> Array:
    """Raw outputs [rows, length]: energies, or logits of "replaced"."""
    side = config.window // 2
    padded = jnp.pad(tokens, ((0, 0), (side, side)), constant_values=config.num_states)
    windows = [padded[:, offset : offset + tokens.shape[1]] for offset in range(config.window)]
    # One-hot rows: with so few states a product is many times faster than the scatter that a lookup's gradient is.
    states = jax.nn.one_hot(jnp.stack(windows, axis=2), config.num_states + 1)
    hidden = (states @ params["embedding"]).reshape(*tokens.shape, -1)
    for layer in range(3):
        hidden = hidden @ params[f"kernel_{layer}"] + params[f"bias_{layer}"]
        hidden = jax.nn.relu(hidden) if layer < 2 else hidden
    return hidden[..., 0]


@functools.partial(jax.jit, static_argnames="config")
def train_detectors(config: DetectionConfig, key: Array) -> tuple[dict[str, Array], Any]:
    """All heads from one start on the same corrupted sequences, one sample each per step; their scores on clean ones.

    Returns:
        ``exact`` log-probabilities, the generator's ``log_noise``, and ``-output`` of every head, [rows, length] each;
        and the parameters.
    """
    of_chain, of_params, of_steps, of_test = jax.random.split(key, 4)
    chain = make_chain(
        of_chain,
        num_states=config.num_states,
        transition_spread=config.transition_spread,
        marginal_spread=config.marginal_spread,
    )
    shape = (config.batch_size, config.length)

    def losses_of(params: Any, key: Array) -> Array:
        of_text, of_mask, of_noise = jax.random.split(key, 3)
        original = sample_chain(chain, of_text, rows=config.batch_size, length=config.length)
        masked = jax.random.uniform(of_mask, shape) < config.mask_rate
        tokens = jnp.where(masked, jax.random.categorical(of_noise, chain.log_marginal, shape=shape), original)
        total = jnp.zeros(())
        for name, head in HEADS.items():
            logits = detect(config, params[name], tokens)
            if head.noise_correction:
                logits = electric_logits(logits, chain.log_marginal[tokens], mask_rate=config.mask_rate)
            total += replaced_token_loss(logits, replaced_token_targets(original, tokens, masked, rule=head.rule))
        return total

    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.num_steps))

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(losses_of)(params, key), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    params: Any = {name: init_detector(config, of_params) for name in HEADS}
    keys = jax.random.split(of_steps, config.num_steps)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    tokens = sample_chain(chain, of_test, rows=config.num_test, length=config.length)
    scores = {name: -detect(config, params[name], tokens) for name in HEADS}
    return scores | {"exact": chain_conditionals(chain, tokens), "log_noise": chain.log_marginal[tokens]}, params


def run_detection(config: Config, tick: Callable[[int], bool]) -> Replicated:
    """E3 over replicates: ``spearman/...`` with the exact log-probability and mean ``error/...`` from it, in nats."""
    samples: dict[str, list[float]] = {}
    params = []
    for replicate in range(config.num_replicates):
        key = jax.random.fold_in(jax.random.key(config.seed), 1000 + replicate)
        outputs, trained = train_detectors(config.detection, key)
        scores = jax.device_get(outputs)
        exact, log_noise = scores.pop("exact"), scores.pop("log_noise")
        scores["electra_plus_log_noise"] = scores["electra"] + log_noise
        for name, values in scores.items():
            samples.setdefault(f"detection/spearman/{name}", []).append(spearman(values.ravel(), exact.ravel()))
            samples.setdefault(f"detection/error/{name}", []).append(float(np.mean(np.abs(values - exact))))
        params.append(trained)
        _leave_on_notice(tick, replicate)
    return Replicated(_means(samples), samples, params)


# ---- families: one encoder, one budget, every objective --------------------------------------------------


def make_model(config: Config) -> Encoder | BagOfWordsEncoder:
    """The encoder of a configuration, its vocabulary that of the data."""
    if config.encoder == "bag_of_words":
        return BagOfWordsEncoder(dataclasses.replace(config.bag_of_words, vocab_size=config.data.vocab_size))
    return Encoder(dataclasses.replace(config.model, vocab_size=config.data.vocab_size))


@dataclasses.dataclass(frozen=True)
class Steps:
    """The jitted functions of the families on a mesh, and what they are made of."""

    mesh: Mesh
    model: Encoder | BagOfWordsEncoder
    optimizer: Any
    initialize: Callable[[Array], Any]
    state: Any
    """The abstract training state, with shardings."""
    train: Any
    """Of `config.objective`."""
    embed: Any


def make_steps(config: Config, devices: Devices | None = None) -> Steps:
    """Train and embed: one program each, for whatever devices the mesh is made of."""
    mesh = make_mesh(config.mesh, devices)
    processes = len({device.process_index for device in mesh.devices.flat})
    for rows in (config.batch_size, config.micro_batch, config.evaluation_batch_size):
        check_batch(mesh, rows or mesh.size, processes)
    model = make_model(config)
    optimizer = make_optimizer(config.optimizer, max(config.num_steps, 1))

    def initialize(key: Array) -> Any:
        return model.init(key, jnp.zeros((1, config.data.half_length), jnp.int32))["params"]

    def embed(params: Any, batch: Any) -> Float[Array, "rows dim"]:
        output: Any = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"])
        return unit_vectors(output.pooled)

    state = abstract_state(initialize, optimizer, mesh)
    gradients = family_gradients(config.objective, model, mesh, micro_batch=config.micro_batch)
    return Steps(
        mesh=mesh,
        model=model,
        optimizer=optimizer,
        initialize=initialize,
        state=state,
        train=make_train_step(gradients, optimizer, state, mesh),
        embed=jit_on_mesh(embed, mesh, out_shardings=batch_sharding(mesh)),
    )


def build(config: Config, devices: Devices | None = None) -> Program:
    """Every jitted step with abstract inputs; see `experiments`."""
    steps = make_steps(config, devices)
    split = batch_sharding(steps.mesh)

    def ids(rows: int, *length: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *length), jnp.int32, sharding=split)

    rows, half, title = config.batch_size, config.data.half_length, config.data.title_length
    batch = {f"{side}_{kind}": ids(rows, half) for side in ("first", "second") for kind in ("ids", "mask")}
    batch |= {"labels": ids(rows), "title_ids": ids(rows, title), "title_mask": ids(rows, title)}
    texts = {name: ids(config.evaluation_batch_size, half) for name in ("input_ids", "attention_mask")}
    return Program(
        mesh=steps.mesh,
        steps={
            "train": Step(steps.train, (steps.state, batch), rows),
            "embed": Step(steps.embed, (steps.state.params, texts), config.evaluation_batch_size),
        },
    )


def run_families(
    config: Config, steps: Steps, task: TitledTask, directory: RunDirectory, tick: Callable[[int], bool]
) -> Replicated:
    """The objective, trained with checkpoints, then the others on the same batches from the same start."""
    if task.vocab_size > config.data.vocab_size:
        raise ValueError(
            f"the tokenizer has {task.vocab_size} ids, the model {config.data.vocab_size}: "
            f"set --data.vocab-size {task.vocab_size}"
        )
    state = create_state(steps.initialize, steps.optimizer, steps.mesh, seed=config.seed)
    start = jax.tree.map(jnp.copy, state)
    batches = functools.partial(task.half_batches, batch_size=config.batch_size, seed=config.seed)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    state = fit(
        state, steps.train, batches(num_steps=config.num_steps, **processes), num_steps=config.num_steps,
        mesh=steps.mesh, run=directory, loop=config.loop, title=f"{config.objective} {config.preset}", tick=tick,
    )  # fmt: skip
    metrics = _prefixed(config.objective, measure_family(config, steps, task, state.params, tick))
    for number, name in enumerate(config.compared):
        params, duration = train_family(
            name, steps.model, steps.optimizer, start, batches(num_steps=config.num_steps, **processes), steps.mesh,
            micro_batch=config.micro_batch,
        )  # fmt: skip
        seconds = {"seconds_per_step": duration} if duration else {}
        metrics |= _prefixed(name, measure_family(config, steps, task, params, tick) | seconds)
        _leave_on_notice(tick, number)
    return Replicated(metrics, {}, state.params)


def _prefixed(family: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"families/{family}/{name}": value for name, value in metrics.items()}


def measure_family(
    config: Config, steps: Steps, task: TitledTask, params: Any, tick: Callable[[int], bool]
) -> dict[str, float]:
    """What the vectors of the held-out texts are good for, and how they lie in their space.

    ``recall_at_1`` of a text's second half by its first among all; ``spearman`` of the cosine of two halves with what
    they share (0 nothing, 1 topic, 2 title, 3 text); ``title_mrr`` of a text's title among all, never trained on but by
    one family; ``alignment``, ``uniformity``, ``isotropy``.
    """

    def embed(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        rows = {"input_ids": ids, "attention_mask": mask}
        size = config.evaluation_batch_size
        return map_rows(steps.embed, params, rows, batch_size=size, mesh=steps.mesh, tick=tick)

    halves = task.halves(task.test)
    first, second = (embed(halves[f"{side}_ids"], halves[f"{side}_mask"]) for side in ("first", "second"))
    width = config.data.half_length - task.title_ids.shape[1]
    titles = embed(*(np.pad(words, ((0, 0), (0, width))) for words in (task.title_ids, task.title_mask)))
    graded = graded_halves(task.test, np.random.default_rng([config.seed, 4]), per_grade=500)
    cosines = np.sum(first[graded.first] * second[graded.second], axis=1)
    every = jnp.concatenate([first, second])
    return {
        "recall_at_1": evaluate_retrieval(first, second, np.arange(len(first)), ks=(1,)).metrics["recall@1"],
        "spearman": spearman(cosines, graded.grades),
        "title_mrr": evaluate_retrieval(first, titles, task.test.titles, ks=(1,)).metrics["mrr"],
        "alignment": float(alignment(jnp.asarray(first), jnp.asarray(second))),
        "uniformity": float(uniformity(every)),
        "isotropy": float(mean_cosine_isotropy(every)),
    }


# ---- run -------------------------------------------------------------------------------------------------


def run(
    config: Config,
    run_dir: pathlib.Path | str,
    *,
    resume: bool = False,
    tick: Callable[[int], bool] = lambda step: False,
) -> Results:
    """Run the parts, measure, report; see `experiments`."""
    started = time.perf_counter()
    check_run_directory(run_dir, config, resume=resume)
    steps = make_steps(config) if "families" in config.parts else None
    directory = open_run_directory(run_dir, config, resume=resume)
    measured: dict[str, Replicated] = {}
    description = ""
    try:
        if steps is not None:
            task = open_titled_task(config.data, seed=config.seed)
            description = task.description
            measured["families"] = run_families(config, steps, task, directory, tick)
        for part, runner in REPLICATED_PARTS.items():
            if part in config.parts:
                with current_ticker().phase("evaluate"):
                    measured[part] = runner(config, tick)
        results = Results(
            experiment="contrastive_primer",
            preset=config.preset,
            seed=config.seed,
            steps=config.num_steps,
            seconds=round(time.perf_counter() - started, 2),
            device=describe_device(),
            versions=package_versions(),
            metrics={name: value for part in measured.values() for name, value in part.metrics.items()},
            samples={name: values for part in measured.values() for name, values in part.samples.items()},
            params_digest=params_digest({part: replicated.params for part, replicated in measured.items()}),
        )
        if jax.process_index() == 0:
            write_primer_report(config, results, description, directory)
            write_results(directory.results, results)
    finally:
        directory.close()
    return results


REPLICATED_PARTS: Mapping[str, Callable[[Config, Callable[[int], bool]], Replicated]] = {
    "estimation": run_estimation,
    "matching": run_matching,
    "detection": run_detection,
}


# ---- report ----------------------------------------------------------------------------------------------


def write_primer_report(config: Config, results: Results, description: str, directory: RunDirectory) -> None:
    """``report.html`` of one run."""
    from jaxcore.reporting import Headline, Paragraph, Section, Table
    from jaxcore.reporting.run_report import configuration_section, training_section, verdict_section, write_run_report

    metrics = results.metrics
    headline = [
        Headline(label, f"{metrics[name]:.3f}", note)
        for label, name, note in (
            ("KL of corrected ranking NCE", "estimation/kl/ranking", "0 is the truth"),
            ("zero-shot MRR from pseudo-labels", "matching/mrr/zero_shot", "titles never seen as labels"),
            ("Spearman of Electric's scores", "detection/spearman/electric", "with exact log-probabilities"),
            ("recall@1 of the objective", f"families/{config.objective}/recall_at_1", config.objective),
        )
        if name in metrics
    ]
    blocks = [
        verdict_section(single_run_verdicts(results), "Judged over this run's replicates, one seed of the run."),
        *(Section(title, [Table(columns, rows)], note) for title, columns, rows, note in _part_tables(results) if rows),
        Section(
            "Families of objectives on one task",
            [
                Paragraph(description),
                Table(("family", *FAMILY_METRICS), family_rows(metrics)),
                Table(
                    ("family", "claim", "measured by", "family's", "compared with", "its", "holds"),
                    family_claim_rows(metrics),
                ),
            ],
            "One encoder, the same batches, start and number of updates; constants from the sources, not tuned. One "
            "seed: read differences of a hundredth or two as none.",
        )
        if description
        else None,
        training_section(read_metrics(directory.metrics)) if description else None,
        configuration_section(config),
    ]
    write_run_report(
        directory.report, results, title=PAPER.title, claim=PAPER.claim, headline=headline, sections=blocks
    )


FAMILY_METRICS = ("recall_at_1", "spearman", "title_mrr", "alignment", "uniformity", "isotropy", "seconds_per_step")


CLAIM_COLUMNS = ("family", "claim", "measured by", "its value", "compared with", "that one's", "holds")


def family_rows(metrics: Mapping[str, float]) -> list[tuple[Any, ...]]:
    """One row per family that was trained, in the order of `FAMILIES`."""
    return [
        (name, *(metrics.get(f"families/{name}/{metric}") for metric in FAMILY_METRICS))
        for name in FAMILIES
        if f"families/{name}/recall_at_1" in metrics
    ]


def _part_tables(results: Results) -> list[tuple[str, tuple[str, ...], list[tuple[Any, ...]], str]]:
    """Title, columns, rows and note of the three statistical parts: every measured sample, lowest to highest."""

    def rows(prefix: str) -> list[tuple[Any, ...]]:
        return [
            (name.removeprefix(prefix), results.metrics[name], min(values), max(values))
            for name, values in results.samples.items()
            if name.startswith(prefix)
        ]

    columns = ("arm", "mean", "least", "most")
    return [
        (
            "E1: what do the objectives estimate?",
            columns,
            rows("estimation/kl/"),
            "KL of the truth p(y|x) from the softmax of the scores, over replicates.",
        ),
        (
            "E2: do words as labels transfer to titles?",
            columns,
            rows("matching/mrr/"),
            f"MRR of the true title of a held-out text; chance {results.metrics.get('matching/chance', 0):.3f}.",
        ),
        (
            "E3: energies against detection scores, in ranks",
            columns,
            rows("detection/spearman/"),
            "Spearman correlation of the score of each token with its exact log-probability given all others.",
        ),
        (
            "E3: energies against detection scores, in nats",
            columns,
            rows("detection/error/"),
            "Mean absolute difference of score and exact log-probability: only Electric's is meant to be one.",
        ),
    ]


def single_run_verdicts(results: Results) -> list[Verdict]:
    """The claims, judged over the replicates of this run."""
    values = RunValues(results.metrics, results.samples)
    return [verdict for part in REPLICATED_PARTS for verdict in judge_single_run(CLAIMS, part, values)]


# ---- claims ----------------------------------------------------------------------------------------------


def _only(part: Part) -> Callable[[Config], Config]:
    return lambda config: dataclasses.replace(config, parts=(part,))


def _every_replicate(name: str, criterion: str, statement: str) -> Claim:
    share = Measured("estimation", f"estimation/share/{criterion}")
    return Claim(name, f"{statement}, in every replicate", "contrastive_primer.md E1", share, margin=1.0)


def _mrr(arm: str) -> Measured:
    return Measured("matching", f"matching/mrr/{arm}")


def _detection(measure: str) -> Measured:
    return Measured("detection", f"detection/{measure}")


CLAIMS = Claims(
    preset="cpu",
    variants={part: _only(part) for part in ("estimation", "matching", "detection")},
    claims=(
        _every_replicate(
            "ranking_is_consistent", "ranking_below_0.005", "corrected ranking NCE recovers p(y|x): KL below 0.005"
        ),
        _every_replicate(
            "binary_needs_its_normaliser",
            "gamma_per_context_below_0.01",
            "corrected binary NCE does too where gamma may depend on x: KL below 0.01",
        ),
        _every_replicate(
            "one_gamma_is_biased", "scalar_gamma_above_5_ranking", "one gamma for all x leaves 5 times the ranking KL"
        ),
        _every_replicate(
            "info_nce_is_no_conditional",
            "ranking_uncorrected_above_50_ranking",
            "ranking without the noise correction (InfoNCE) leaves 50 times the KL",
        ),
        _every_replicate(
            "negative_sampling_is_no_conditional",
            "binary_uncorrected_above_50_ranking",
            "binary matching without it (negative sampling) leaves 50 times the KL",
        ),
        _every_replicate(
            "info_nce_is_a_ratio",
            "uncorrected_fits_ratio",
            "with free scores, what InfoNCE fits is the ratio p / p_N rather than p",
        ),
        Claim(
            "zero_shot",
            "pseudo-labels alone lift the ranking of titles above the untrained network",
            "contrastive_primer.md E2",
            _mrr("zero_shot"),
            _mrr("untrained"),
            margin=0.03,
            alpha=0.01,
            paired_samples=True,
        ),
        Claim(
            "few_shot",
            "pretraining on pseudo-labels helps where 10 % of the titles are known",
            "contrastive_primer.md E2",
            _mrr("pretrained_10%"),
            _mrr("scratch_10%"),
            margin=0.03,
            paired_samples=True,
        ),
        Claim(
            "all_labels",
            "and where all are known",
            "contrastive_primer.md E2",
            _mrr("pretrained_100%"),
            _mrr("scratch_100%"),
            margin=0.02,
            paired_samples=True,
        ),
        Claim(
            "more_pseudo_labels",
            "zero-shot ranking rises with 1, 2, 4, 8 pseudo-labels per text: Spearman of the means above 0.8",
            "contrastive_primer.md E2",
            Measured("matching", "matching/spearman_of_pseudo_labels"),
            margin=0.8 + 1e-9,
        ),
        Claim(
            "pseudo_labels_must_be_the_texts_own",
            "with another text's words as pseudo-labels the ranking falls to chance (within 0.02: our reading)",
            "contrastive_primer.md E2, control",
            Measured("matching", "matching/chance"),
            _mrr("shuffled"),
            margin=-0.02,
        ),
        Claim(
            "electric_scores_are_log_probabilities",
            "Electric's scores rank tokens as their exact log-probabilities do: Spearman above 0.9",
            "contrastive_primer.md E3",
            _detection("spearman/electric"),
            margin=0.9,
        ),
        Claim(
            "electra_scores_are_ratios",
            "ELECTRA's rank them clearly worse (by 0.05: our reading)",
            "contrastive_primer.md E3",
            _detection("spearman/electric"),
            _detection("spearman/electra"),
            margin=0.05,
            alpha=0.01,
            paired_samples=True,
        ),
        Claim(
            "the_generator_is_the_difference",
            "ELECTRA's scores with log q added back recover: Spearman above 0.9",
            "contrastive_primer.md E3",
            _detection("spearman/electra_plus_log_noise"),
            margin=0.9,
        ),
        Claim(
            "labels_belong_to_the_objective",
            "Electric trained with ELECTRA's labels misses the log-probabilities by more (0.05 nats: our reading)",
            "contrastive_primer.md E3",
            _detection("error/electric_with_electra_labels"),
            _detection("error/electric"),
            margin=0.05,
            alpha=0.01,
            paired_samples=True,
        ),
    ),
)
