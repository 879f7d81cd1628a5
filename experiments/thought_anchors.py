"""Thought Anchors: which LLM reasoning steps matter? (Bogdan, Macar, Nanda, Conmy 2025).

What the paper claims. A chain of thought is cut into sentences, and each is scored three ways: by resampling it and
comparing final answers; by heads whose attention concentrates on few earlier sentences (receiver heads); by suppressing
all attention to it and measuring what later tokens lose. Plans and doubts come out as the anchors of an answer, where
forcing an answer at every step would have credited computations.

How it is shown here. (1) The published scores of 40 traces, where their files are (``--traces-path``, by default under
$JAXCORE_SHARED): an identity they must keep, the paper's table recomputed, its contrasts tested. (2) A reasoner that is
a program, so that what its answers hang on is known (`jaxcore.data.programmatic_reasoner`). (3) A small language model
trained on traces whose dependencies are known (`jaxcore.data.reasoning_language`): does suppression find them? The same
code runs a reasoning model from a folder or hub id (``--pretrained``, presets gpu and pod).

What is not claimed. Agreement between suppression and resampling is reported and not asserted: the released matrices
agree to a Spearman of 0.02. The released labeller's edges are near ones, so recovering them proves nothing: distance
alone does better. Which heads are receivers says nothing at this size; their ablation is compared with heads of the
same layers. Functions of real sentences are read from files (``--labels-path``), never guessed.

Read top to bottom: configuration, presets, traces, steps, the three parts, run, report, claims.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jax.sharding import Mesh
from jaxtyping import Array, Int

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
from jaxcore.attribution.head_ablation import ablate_heads, head_mask, layer_matched_heads
from jaxcore.attribution.resampling_importance import (
    FEW_ROLLOUTS,
    Reference,
    counterfactual_importance,
    resampling_importance,
)
from jaxcore.attribution.sentence_matrices import matrix_agreement
from jaxcore.data import programmatic_reasoner, reasoning_language
from jaxcore.data.hashed_word_counts import hashed_word_counts
from jaxcore.data.published_traces import PublishedTrace, read_published_traces
from jaxcore.data.reasoning_problems import FORCED_LEAD_IN, read_problems
from jaxcore.data.reasoning_taxonomy import FUNCTIONS
from jaxcore.data.reasoning_trace import ReasoningTrace, cut_trace
from jaxcore.distributed import MeshConfig, batch_sharding, current_ticker, jit_on_mesh, replicated
from jaxcore.evaluation import Claim, Claims, Interrupted, Measured, RunValues, judge_single_run, map_rows
from jaxcore.evaluation.boxed_answers import final_answer
from jaxcore.evaluation.dependency_recovery import dependency_auc
from jaxcore.evaluation.published_importance import (
    COUNTERFACTUAL,
    FORCED,
    PublishedAnalysis,
    analyse_published,
    reproduced_share,
)
from jaxcore.evaluation.reasoning_categories import function_means
from jaxcore.evaluation.sampled_traces import choose_traces
from jaxcore.evaluation.step_similarity import Embed, first_step_similarities
from jaxcore.evaluation.trace_attention import (
    AttentionConfig,
    ReceiverHeads,
    attention_step,
    receiver_heads,
    row_shapes,
    suppression_matrices,
    suppression_step,
)
from jaxcore.evaluation.trace_resampling import SMOOTHINGS, TraceResampling, score_resampling
from jaxcore.generation import Sampling, ending_tokens
from jaxcore.generation.rollouts import Rollout, RolloutsInterrupted, Sampler, rollout_program, sample_rollouts
from jaxcore.models import DECODER_FAMILIES, Decoder, DecoderConfig, RopeScaling, load_pretrained, read_config
from jaxcore.training import (
    LoopConfig,
    OptimizerConfig,
    Results,
    RunDirectory,
    abstract_state,
    check_run_directory,
    make_train_step,
    open_run_directory,
    read_metrics,
    write_results,
)
from jaxcore.training.language_modelling import (
    LanguageModelConfig,
    fit_language_model,
    language_model_gradients,
    language_model_initializer,
    language_model_optimizer,
)
from jaxcore.training.trained_model import write_trained_model
from jaxcore.transforms import intervene

PAPER = Paper(
    title="Thought anchors: which LLM reasoning steps matter?",
    year=2025,
    claim="Plans and doubts are the sentences that a chain of thought's answer hangs on; computations are not.",
    needs="nothing; gpu and pod: a reasoning model (--pretrained), problems as JSON, a sentence encoder",
)


# ---- configuration ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ReasonerConfig:
    """The programmatic reasoner."""

    num_traces: int = 12
    """Problems, a trace each."""
    num_samples: int = 100
    """Rollouts at each position, N."""


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Rollouts of the language model."""

    num_traces: int = 8
    """Traces that are resampled, from the first on."""
    num_samples: int = 50
    """Rollouts at each position, N."""
    samples_per_row: int = 50
    """Samples of a row of the batch: a prefix stands in num_samples / samples_per_row rows, which devices share."""
    max_new_tokens: int = 52
    """Of a continuation."""
    forced_tokens: int = 4
    """Of a forced answer."""
    batch_size: int = 8
    """Rows of a call over all devices."""
    width: int = 64
    """Tokens that prefixes, forced answers' lead-in included, are padded to."""
    temperature: float = 0.6
    """Of sampling."""
    top_p: float = 0.95
    """Nucleus of sampling."""
    threshold: float = 0.8
    """Cosine below which a sentence drawn in the place of another differs from it."""
    reference: Reference = "next+similar"
    """Rollouts that keep a sentence: those of the next position alone, or the similar ones of its own with them."""
    attempts: int = 0
    """Traces sampled of each problem until one is right and one wrong; 0: traces come from the language."""

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.samples_per_row < 1 or self.num_samples % self.samples_per_row:
            raise ValueError(
                "rollouts.num_samples must be a multiple of rollouts.samples_per_row: got "
                f"{self.num_samples} and {self.samples_per_row}"
            )

    @property
    def copies(self) -> int:
        """Rows of each prefix."""
        return self.num_samples // self.samples_per_row


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    preset: str = "cpu"
    """The preset these fields started from."""
    seed: int = 0
    """Of traces, parameters, batches and rollouts."""
    model: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    """The language model; that of `pretrained` takes its place in a run."""
    pretrained: str = ""
    """Folder or hub id of a reasoning model; empty: `model` is trained on the language."""
    parameter_dtype: str = "float32"
    """Of a pretrained model's parameters."""
    embedder: str = ""
    """Folder or hub id of a sentence encoder; empty: bags of hashed words."""
    problems_path: str = "selected_problems.json"
    """Problems of a pretrained model: JSON list with `problem_idx`, `problem`, `gt_answer`."""
    num_problems: int = 10
    """From the first on."""
    labels_path: str = ""
    """Folder with the functions of each trace's sentences (`choose_traces`); empty: they are unknown."""
    traces_path: str = ""
    """Folder or .tar.gz of the published traces; empty: those under $JAXCORE_SHARED (default ../shared), if any."""
    num_rows: int = 20_000
    """Traces of the language that the model is trained on."""
    num_traces: int = 20
    """Other traces of the language that are explained."""
    ablation_draws: int = 10
    """Random sets of heads that the ablation is compared with."""
    training: LanguageModelConfig = dataclasses.field(default_factory=LanguageModelConfig)
    """Training of the language model."""
    reasoner: ReasonerConfig = dataclasses.field(default_factory=ReasonerConfig)
    """The programmatic reasoner."""
    rollouts: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    """Resampling."""
    attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    """Suppression and receiver heads."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""

    def __post_init__(self) -> None:
        if self.num_traces < 2 or self.reasoner.num_traces < 1 or self.num_problems < 1:
            raise ValueError(
                "num_traces must be at least 2, reasoner.num_traces and num_problems at least 1: got "
                f"{self.num_traces}, {self.reasoner.num_traces}, {self.num_problems}"
            )
        if self.pretrained and self.rollouts.attempts < 1:
            raise ValueError("a pretrained model needs rollouts.attempts >= 1: its own traces are what is explained")
        if self.rollouts.width + self.rollouts.max_new_tokens > self.model.context_length:
            raise ValueError(
                f"rollouts.width {self.rollouts.width} and max_new_tokens {self.rollouts.max_new_tokens} exceed the "
                f"model's context of {self.model.context_length} tokens"
            )


_TOY = DecoderConfig(
    architecture="llama", **DECODER_FAMILIES["llama"], vocab_size=len(reasoning_language.TOKENS), num_layers=2,
    hidden_size=48, num_heads=4, num_key_value_heads=4, head_size=12, intermediate_size=192, max_positions=128,
)  # fmt: skip
_TOY_ATTENTION = AttentionConfig(max_tokens=reasoning_language.MAX_LENGTH, top_heads=2, skip_layers=0)
_LLAMA_8B = DecoderConfig(
    architecture="llama", **DECODER_FAMILIES["llama"], vocab_size=128256, num_layers=32, hidden_size=4096,
    num_heads=32, num_key_value_heads=8, head_size=128, intermediate_size=14336, max_positions=131072,
    rope_theta=500000.0, rope_scaling=RopeScaling("llama3", 8.0, 8192, 1.0, 4.0), norm_epsilon=1e-5, dtype="bfloat16",
)  # fmt: skip
_QWEN_14B = DecoderConfig(
    architecture="qwen2", **DECODER_FAMILIES["qwen2"], vocab_size=152064, num_layers=48, hidden_size=5120,
    num_heads=40, num_key_value_heads=8, head_size=128, intermediate_size=13824, max_positions=131072,
    rope_theta=1000000.0, norm_epsilon=1e-5, dtype="bfloat16",
)  # fmt: skip

PRESETS: Mapping[str, Config] = {
    "smoke": Config(
        preset="smoke",
        model=dataclasses.replace(_TOY, hidden_size=16, head_size=4, intermediate_size=32),
        num_rows=64,
        num_traces=4,
        ablation_draws=2,
        training=LanguageModelConfig(
            num_steps=8,
            batch_size=16,
            optimizer=OptimizerConfig(learning_rate=3e-3),
            loop=LoopConfig(checkpoint_every=4),
        ),
        reasoner=ReasonerConfig(num_traces=2, num_samples=10),
        rollouts=RolloutConfig(num_traces=2, num_samples=4, samples_per_row=4, max_new_tokens=12),
        attention=_TOY_ATTENTION,
    ),
    "cpu": Config(
        preset="cpu",
        model=_TOY,
        training=LanguageModelConfig(
            num_steps=2400,
            batch_size=64,
            optimizer=OptimizerConfig(learning_rate=3e-3),
            loop=LoopConfig(checkpoint_every=0, log_every=25),
        ),
        attention=_TOY_ATTENTION,
    ),
    # The paper's replication model, 10 problems, fewer rollouts than its 100.
    "gpu": Config(
        preset="gpu",
        model=_LLAMA_8B,
        pretrained="deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        parameter_dtype="bfloat16",
        embedder="sentence-transformers/all-MiniLM-L6-v2",
        training=LanguageModelConfig(num_steps=0),
        rollouts=RolloutConfig(
            num_traces=20, num_samples=30, samples_per_row=30, max_new_tokens=8192, forced_tokens=32, batch_size=1,
            width=8192, attempts=8,
        ),
        attention=AttentionConfig(
            max_tokens=8192, max_sentences=275, sources_per_row=275, batch_size=1, sources_at_once=1
        ),
    ),
    # The paper's model and numbers: 10 problems, a right and a wrong trace of each, 100 rollouts at every sentence. On
    # v5e:16x16 a model stands on 8 chips, as many as it has key-value heads (weights whole on each chip would fill it,
    # and over fsdp they would be gathered for every token), and 32 such groups share the rows. Batches are multiples of
    # the 64 hosts. A prefix stands in 10 rows of 10 samples, so that their caches of 16,384 tokens fit.
    "pod": Config(
        preset="pod",
        model=_QWEN_14B,
        pretrained="deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
        parameter_dtype="bfloat16",
        embedder="sentence-transformers/all-MiniLM-L6-v2",
        training=LanguageModelConfig(num_steps=0),
        rollouts=RolloutConfig(
            num_traces=20, num_samples=100, samples_per_row=10, max_new_tokens=16_384, forced_tokens=32, batch_size=64,
            width=8192, attempts=40,
        ),
        attention=AttentionConfig(
            max_tokens=8192, max_sentences=275, sources_per_row=5, batch_size=64, sources_at_once=1, time_block=64
        ),
        mesh=MeshConfig(data=-1, tensor=8),
    ),
}  # fmt: skip


# ---- traces ----------------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """The model that is explained, and how it reads and writes."""

    model: Decoder
    params: Any
    decode: Callable[[Sequence[int]], str]
    lead_in: tuple[int, ...]
    stop_tokens: tuple[int, ...]
    traces: list[ReasoningTrace]
    description: str


def language_traces(config: Config) -> list[ReasoningTrace]:
    """Traces of the language that the model was not trained on, with their dependencies."""
    rng = np.random.default_rng([config.seed, 1])
    return [language_trace(reasoning_language.draw_trace(rng), f"trace {i}") for i in range(config.num_traces)]


def language_trace(drawn: reasoning_language.LanguageTrace, name: str) -> ReasoningTrace:
    """Cut by the rules for any text; functions by the language's own."""
    text = reasoning_language.decode(drawn.tokens)
    offsets = [(int(start), int(end)) for start, end in reasoning_language.token_offsets(drawn.tokens)]
    sentences, spans = cut_trace(text, drawn.tokens, offsets, tail="keep")
    functions = tuple(map(reasoning_language.label_sentence, sentences))
    answer = final_answer(text) or ""
    return ReasoningTrace(name, "", tuple(drawn.tokens), sentences, spans, functions, answer, answer, edges=drawn.edges)


# Added to the seed, so that draws of one kind are not those of another, nor of the next seed.
_ATTEMPTS, _FORCED = 1_000_000, 2_000_000


def sampled_traces(
    config: Config, steps: "Steps", params: Any, tokenizer: Any, path: pathlib.Path, tick: Callable[[int], bool]
) -> list[Any]:
    """A right and a wrong trace of each problem that has both among its attempts."""
    problems = read_problems(config.problems_path)[: config.num_problems]
    prompts = [tokenizer(problem.prompt())["input_ids"] for problem in problems]
    stops = ending_tokens(tokenizer, config.model)
    attempts = steps.sample(
        params, prompts, path, config.rollouts.attempts, seed=config.seed + _ATTEMPTS, stop_tokens=stops, tick=tick
    )
    labels = pathlib.Path(config.labels_path).expanduser() if config.labels_path else None
    lead_in = tokenizer(FORCED_LEAD_IN, add_special_tokens=False)["input_ids"]  # follows every prefix once
    longest = min(config.attention.max_tokens, config.rollouts.width - len(lead_in))
    return choose_traces(
        problems, attempts, tokenizer, labels=labels, max_tokens=longest, max_sentences=config.attention.max_sentences
    )


def open_embedder(config: Config) -> Embed:
    """The sentence encoder, or hashed words."""
    if not config.embedder:
        return hashed_word_counts
    from jaxcore.data import load_tokenizer
    from jaxcore.evaluation.text_embedding import embed_texts

    model, params = load_pretrained(config.embedder)
    return functools.partial(embed_texts, model, params, load_tokenizer(config.embedder), normalize=True)


# ---- steps -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Steps:
    """The jitted functions of a run on a mesh, and what they are made of."""

    config: Config
    mesh: Mesh
    model: Decoder
    state: Any
    """The abstract training state, with shardings."""
    train: Any
    suppress: Any
    attend: Any
    compute: Any
    """Share of a row's computed values that the model gets right, some heads taken out."""

    def sampler(self, samples: int, new_tokens: int, stop_tokens: tuple[int, ...]) -> Sampler:
        """How rollouts are drawn."""
        options = self.config.rollouts
        return Sampler(Sampling(options.temperature, top_p=options.top_p), samples, new_tokens, stop_tokens)

    def sample(
        self, params: Any, prefixes: Sequence[Sequence[int]], file: pathlib.Path, count: int, *, seed: int,
        stop_tokens: tuple[int, ...], forced: bool = False, tick: Any = lambda batch: False,
    ) -> list[list[Rollout]]:  # fmt: skip
        """`count` rollouts of every prefix; see `sample_rollouts`."""
        options, per_row = self.config.rollouts, min(self.config.rollouts.samples_per_row, count)
        copies = -(-count // per_row)
        new_tokens = options.forced_tokens if forced else options.max_new_tokens
        sampler = self.sampler(per_row, new_tokens, stop_tokens)
        try:
            drawn = sample_rollouts(
                self.model, params, [prefix for prefix in prefixes for _ in range(copies)], sampler=sampler,
                file=file, seed=seed, mesh=self.mesh, batch_size=options.batch_size, width=options.width,
                identity=str(self.config), tick=tick,
            )  # fmt: skip
        except RolloutsInterrupted as notice:
            raise Interrupted(str(notice)) from notice
        return [[*itertools.chain(*drawn[i : i + copies])] for i in range(0, len(drawn), copies)]


def make_steps(config: Config, devices: Devices | None = None) -> Steps:
    """Train, rollouts, suppress, attend: a program each, for whatever devices the mesh is made of."""
    batches = (config.rollouts.batch_size, config.attention.batch_size)
    mesh = checked_mesh(
        config.mesh, devices, *batches, *([config.training.batch_size] if not config.pretrained else [])
    )
    model = Decoder(config.model)
    explicit = Decoder(dataclasses.replace(config.model, attention_implementation="explicit"))
    optimizer = optax.identity()
    if config.training.num_steps:
        optimizer = language_model_optimizer(config.training.optimizer, config.training.num_steps)
    state = abstract_state(language_model_initializer(model), optimizer, mesh)
    gradients = language_model_gradients(model, config.training.objective)

    def compute(params: Any, batch: Mapping[str, Array]) -> Array:
        def logits() -> Array:
            return explicit.apply({"params": params["model"]}, batch["input_ids"], batch["attention_mask"]).logits  # type: ignore

        found = jnp.argmax(intervene(logits, ablate_heads(params["removed"]))()[:, :-1], axis=-1)
        asked = batch["is_computed"][:, 1:]
        return jnp.stack([jnp.sum(asked & (found == batch["input_ids"][:, 1:]), 1), jnp.sum(asked, 1)], axis=1)

    return Steps(
        config=config,
        mesh=mesh,
        model=model,
        state=state,
        train=make_train_step(gradients, optimizer, state, mesh),
        suppress=suppression_step(explicit, config.attention, mesh),
        attend=attention_step(explicit, config.attention, mesh),
        compute=jit_on_mesh(compute, mesh, out_shardings=batch_sharding(mesh)),
    )


def build(config: Config, devices: Devices | None = None) -> Program:
    """Every jitted step with abstract inputs; see `experiments`.

    "rollouts" and "forced" read prefixes (prefill) and draw from them token by token; "suppress" and "attend" read
    whole traces. "train" is there where a model is trained, not where a pretrained one is explained.
    """
    steps = make_steps(config, devices)
    mesh, options = steps.mesh, config.rollouts
    dtype = config.parameter_dtype if config.pretrained else None
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=leaf.sharding), steps.state.params
    )
    prefixes = abstract_rows(mesh, options.batch_size, dict.fromkeys(("ids", "mask"), (options.width,)))
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    rows = abstract_rows(mesh, config.attention.batch_size, row_shapes(config.attention))
    whole = {name: row for name, row in rows.items() if name != "sources"}

    def rollouts(new_tokens: int) -> Step:
        program = rollout_program(steps.model, steps.sampler(options.samples_per_row, new_tokens, (0,)), mesh)
        return Step(program, (params, *prefixes.values(), key), options.batch_size)

    found = {
        "rollouts": rollouts(options.max_new_tokens),
        "forced": rollouts(options.forced_tokens),
        "suppress": Step(steps.suppress, (params, rows), config.attention.batch_size),
        "attend": Step(steps.attend, (params, whole), config.attention.batch_size),
    }
    if config.training.num_steps:
        count = config.training.batch_size
        shapes = dict.fromkeys(("input_ids", "attention_mask"), (reasoning_language.MAX_LENGTH,))
        found = {"train": Step(steps.train, (steps.state, abstract_rows(mesh, count, shapes)), count), **found}
    return Program(mesh=mesh, steps=found)


# ---- the programmatic reasoner ---------------------------------------------------------------------------


def measure_reasoner(config: Config) -> dict[str, float]:
    """Mean importances of the reasoner's functions over traces, and the contrasts that the claims ask for."""
    rng = np.random.default_rng([config.seed, 2])
    values: dict[str, list[dict[str, float]]] = {"counterfactual": [], "resampling": [], "forced": []}
    undecided = 0
    for _ in range(config.reasoner.num_traces):
        problem = programmatic_reasoner.draw_problem(rng)
        trace = programmatic_reasoner.continue_trace(problem, [], rng)
        drawn = programmatic_reasoner.draw_rollouts(problem, trace, config.reasoner.num_samples, rng)
        own, functions = [sentence.text for sentence in trace], [sentence.function for sentence in trace]
        similar = first_step_similarities(hashed_word_counts, own, drawn.first_steps[:-1])
        similar = np.concatenate([similar, np.ones((1, similar.shape[1]))])
        modulus, alpha = programmatic_reasoner.MODULUS, SMOOTHINGS["laplace"]
        found = counterfactual_importance(
            drawn.answers, similar, modulus, threshold=config.rollouts.threshold,
            reference=config.rollouts.reference, alpha=alpha,
        )  # fmt: skip
        undecided += int(np.sum(found.is_defined & (found.num_dissimilar < FEW_ROLLOUTS)))
        values["counterfactual"].append(function_means(functions, found.importance))
        for kind, answers in (("resampling", drawn.answers), ("forced", drawn.forced)):
            scores = resampling_importance(answers, modulus, alpha=alpha)
            values[kind].append(function_means(functions, scores))
    means = {kind: mean_by_function(traces) for kind, traces in values.items()}
    metrics = {f"reasoner/{k}/{name}": value for k, found_ in means.items() for name, value in found_.items()}
    plan, computed = "plan_generation", "active_computation"
    better = [trace[plan] > trace[computed] for trace in values["counterfactual"]]
    return metrics | {
        "reasoner/plan_over_computation": ratio(means["counterfactual"][plan], means["counterfactual"][computed]),
        "reasoner/forced_computation_over_plan": ratio(means["forced"][computed], means["forced"][plan]),
        "reasoner/counterfactual_over_resampling": ratio(means["counterfactual"][plan], means["resampling"][plan]),
        "reasoner/share_plan_above_computation": float(np.mean(better)),
        "reasoner/few_dissimilar": float(undecided),
    }


def mean_by_function(traces: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over the traces that have a function."""
    names = sorted({name for trace in traces for name in trace})
    return {name: float(np.mean([trace[name] for trace in traces if name in trace])) for name in names}


def ratio(above: float, below: float) -> float:
    """Of two divergences, finite."""
    return above / max(below, 1e-6)


# ---- the language model ----------------------------------------------------------------------------------


class Explained(NamedTuple):
    """What was found about the traces; `resampled` of the first ones only."""

    suppression: list[np.ndarray]
    receivers: ReceiverHeads
    resampled: list[TraceResampling]


def explain(config: Config, steps: Steps, subject: Subject, directory: RunDirectory, tick: Any) -> Explained:
    """The paper's three methods on the traces of a model."""
    options = {"mesh": steps.mesh, "tick": tick}
    suppression = suppression_matrices(steps.suppress, subject.params, subject.traces, config.attention, **options)
    receivers = receiver_heads(steps.attend, subject.params, subject.traces, config.attention, **options)
    traces = subject.traces[: config.rollouts.num_traces]
    prefixes = [prefix for trace in traces for prefix in trace.prefixes()]
    draw = functools.partial(
        steps.sample, subject.params, count=config.rollouts.num_samples, stop_tokens=subject.stop_tokens, tick=tick
    )
    drawn = draw(prefixes, directory.path / "rollouts.jsonl", seed=config.seed)
    forced_prefixes = [[*prefix, *subject.lead_in] for prefix in prefixes]
    forced = draw(forced_prefixes, directory.path / "forced.jsonl", seed=config.seed + _FORCED, forced=True)
    embed = open_embedder(config)
    resampled, start = [], 0
    for trace in traces:
        places = slice(start, start + len(trace) + 1)
        start = places.stop
        resampled.append(
            score_resampling(
                trace, drawn[places], forced[places], decode=subject.decode, lead_in=subject.lead_in, embed=embed,
                threshold=config.rollouts.threshold, reference=config.rollouts.reference,
            )
        )  # fmt: skip
    return Explained(suppression, receivers, resampled)


def measure_edges(traces: Sequence[ReasoningTrace], matrices: Sequence[np.ndarray]) -> dict[str, float]:
    """Does suppression find the dependencies of computations and answers? Against distance, over all pairs."""
    metrics: dict[str, float] = {}
    targets = ("active_computation", "final_answer_emission")
    for label, nearest in (("", 1), ("_far", 2)):
        found, nearness = dependency_auc(traces, matrices, targets=targets, nearest=nearest)
        metrics |= {f"suppression/auc{label}": found, f"distance/auc{label}": nearness}
        metrics[f"suppression/auc_gain{label}"] = found - nearness
    return metrics


def untrained_edges(config: Config, steps: Steps, traces: Sequence[ReasoningTrace]) -> dict[str, float]:
    """The same of fresh parameters: what position and length of sentences give away without any knowledge."""
    params = jax.jit(lambda key: meta.unbox(language_model_initializer(steps.model)(key)))(jax.random.key(config.seed))
    params = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, steps.state.params))
    matrices = suppression_matrices(steps.suppress, params, traces, config.attention, mesh=steps.mesh)
    found = measure_edges(traces, matrices)
    return {f"untrained/{name.split('/')[1]}": found[name] for name in ("suppression/auc", "suppression/auc_far")}


def measure_ablation(config: Config, steps: Steps, params: Any, heads: Int[np.ndarray, "heads 2"]) -> dict[str, float]:
    """Accuracy of computed values: whole model, without its receiver heads, without others of the same layers."""
    rng = np.random.default_rng([config.seed, 3])
    rows = reasoning_language.padded_rows([reasoning_language.draw_trace(rng).tokens for _ in range(128)])._asdict()
    shape = (config.model.num_layers, config.model.num_heads)

    def accuracy(removed: np.ndarray) -> float:
        given = {"model": params, "removed": jnp.asarray(removed)}
        right = map_rows(steps.compute, given, rows, batch_size=config.training.batch_size, mesh=steps.mesh)
        return float(right[:, 0].sum() / right[:, 1].sum())

    controls = [
        accuracy(head_mask(layer_matched_heads(heads, shape[1], rng), *shape)) for _ in range(config.ablation_draws)
    ]
    return {
        "model/computation_accuracy": accuracy(np.zeros(shape, bool)),
        "ablation/receiver_heads": accuracy(head_mask(heads, *shape)),
        "ablation/layer_matched": float(np.mean(controls)),
    }


def measure_explained(config: Config, subject: Subject, found: Explained) -> dict[str, float]:
    """Importances by function over traces (smoothing by smoothing), and how far the methods agree."""
    metrics: dict[str, float] = {}
    traces = subject.traces[: len(found.resampled)]
    for smoothing in SMOOTHINGS:
        for kind in ("counterfactual", "resampling", "forced"):
            means = [
                function_means(trace.functions, importance_of(resampled, kind, smoothing))
                for trace, resampled in zip(traces, found.resampled, strict=True)
            ]
            metrics |= {f"rollouts/{kind}/{smoothing}/{n}": value for n, value in mean_by_function(means).items()}
    pairs = list(zip(found.suppression, [resampled.matrix for resampled in found.resampled], strict=False))
    for name, options in (("all", {}), ("near", {"farthest": 4}), ("detrended", {"detrended": True})):
        values = [matrix_agreement(*pair, **options) for pair in pairs]  # type: ignore[arg-type]
        if np.isfinite(values).any():
            metrics[f"agreement/{name}"] = float(np.nanmean(values))
    if np.isfinite(found.receivers.reliability):
        metrics["receivers/split_half"] = found.receivers.reliability
    answers = [resampled.accuracy for resampled in found.resampled]
    metrics["rollouts/accuracy"] = float(np.nanmean(np.concatenate(answers))) if np.isfinite(answers[0]).any() else 0.0
    return metrics


def importance_of(resampled: TraceResampling, kind: str, smoothing: str) -> np.ndarray:
    """One of a trace's importances by name."""
    scores = getattr(resampled, kind)[smoothing]
    return scores.importance if kind == "counterfactual" else scores


# ---- the published traces --------------------------------------------------------------------------------

# Recomputed from the released files by the rule of `plots.py` [measured]: mean and standard error over traces.
PUBLISHED: Mapping[tuple[str, str], Mapping[str, tuple[float, float]]] = {
    ("qwen-14b", COUNTERFACTUAL): {
        "plan_generation": (0.622, 0.280), "uncertainty_management": (0.346, 0.077),
        "fact_retrieval": (0.366, 0.091), "active_computation": (0.193, 0.027),
        "result_consolidation": (0.215, 0.055), "self_checking": (0.241, 0.077),
    },
    ("qwen-14b", FORCED): {
        "plan_generation": (1.236, 0.175), "uncertainty_management": (1.059, 0.228),
        "fact_retrieval": (1.797, 0.360), "active_computation": (3.524, 0.567),
        "result_consolidation": (2.240, 0.796), "self_checking": (0.837, 0.442),
    },
    ("llama-8b", COUNTERFACTUAL): {
        "plan_generation": (1.507, 0.433), "uncertainty_management": (0.838, 0.249),
        "fact_retrieval": (0.839, 0.238), "active_computation": (0.771, 0.212),
        "result_consolidation": (0.446, 0.110), "self_checking": (0.272, 0.116),
    },
    ("llama-8b", FORCED): {
        "plan_generation": (1.845, 0.354), "uncertainty_management": (1.191, 0.302),
        "fact_retrieval": (2.154, 0.440), "active_computation": (3.863, 0.744),
        "result_consolidation": (3.556, 1.394), "self_checking": (1.120, 0.468),
    },
}  # fmt: skip


def published_file(config: Config) -> pathlib.Path | None:
    """Where the published traces are; None where there are none."""
    if config.traces_path:
        return pathlib.Path(config.traces_path).expanduser()
    root = pathlib.Path(os.environ.get("JAXCORE_SHARED", pathlib.Path(__file__).parents[2] / "shared"))
    path = root / "data" / "reasoning" / "thought_anchors" / "traces.tar.gz"
    return path if path.is_file() else None


def measure_published(traces: Sequence[PublishedTrace]) -> PublishedAnalysis:
    """The released scores analysed again, and the share of the paper's numbers that come out."""
    found = analyse_published(traces)
    metrics = found.metrics | {"cells_reproduced": reproduced_share(found.table, PUBLISHED)}
    return found._replace(metrics={f"published/{name}": value for name, value in metrics.items()})


# ---- run -------------------------------------------------------------------------------------------------


def run(
    config: Config,
    run_dir: pathlib.Path | str,
    *,
    resume: bool = False,
    tick: Callable[[int], bool] = lambda step: False,
) -> Results:
    """Analyse the published scores, run the reasoner, train or load a model, explain its traces; see `experiments`."""
    started = time.perf_counter()
    check_run_directory(run_dir, config, resume=resume)
    file = published_file(config)
    published = measure_published(read_published_traces(file)) if file is not None else None
    given, config = config, with_stored_model(config)
    steps = make_steps(config)
    with contextlib.closing(open_run_directory(run_dir, given, resume=resume)) as directory:
        subject = open_subject(config, steps, directory, tick)
        with current_ticker().phase("evaluate", 3600):
            metrics = measure_reasoner(config) | (published.metrics if published else {})
        found = explain(config, steps, subject, directory, tick)
        metrics |= measure_explained(config, subject, found)
        if not config.pretrained:
            metrics |= measure_edges(subject.traces, found.suppression) | untrained_edges(config, steps, subject.traces)
            metrics |= measure_ablation(config, steps, subject.params, found.receivers.heads)
        results = results_of(
            "thought_anchors", config, started=started, steps=config.training.num_steps, metrics=metrics,
            params=subject.params,
        )  # fmt: skip
        if jax.process_index() == 0:
            write_anchors_report(config, subject, found, published, results, directory)
            write_results(directory.results, results)
    return results


def with_stored_model(config: Config) -> Config:
    """The configuration with the sizes of ``config.pretrained`` in place of the preset's, which `build` compiles."""
    if not config.pretrained:
        return config
    stored = read_config(config.pretrained, config_overrides={"dtype": config.model.dtype})
    if not isinstance(stored, DecoderConfig):
        raise ValueError(f"{config.pretrained} is no decoder: give a reasoning model")
    return dataclasses.replace(config, model=stored)


def open_subject(config: Config, steps: Steps, directory: RunDirectory, tick: Any) -> Subject:
    """The model trained on the language, or the pretrained one, with the traces that are explained."""
    if not config.pretrained:
        rows = reasoning_language.training_rows(config.num_rows, np.random.default_rng([config.seed, 0]))
        params = fit_language_model(
            steps.model, {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}, config=config.training,
            seed=config.seed, mesh=steps.mesh, run=directory, title=f"thought_anchors {config.preset}", tick=tick,
        )  # fmt: skip
        write_trained_model(directory, steps.model, params)
        return Subject(
            steps.model, params, reasoning_language.decode, reasoning_language.FORCED_LEAD_IN,
            reasoning_language.STOP_TOKENS, language_traces(config),
            f"A decoder trained on {config.num_rows:,} traces of a generated language; {config.num_traces} others are "
            f"explained, {config.rollouts.num_traces} of them resampled {config.rollouts.num_samples} times at every "
            "sentence. Functions are labelled by the language's own rules.",
        )  # fmt: skip
    from jaxcore.data import load_tokenizer

    shardings = jax.tree.map(lambda leaf: leaf.sharding, steps.state.params)
    _, params = load_pretrained(
        config.pretrained, config_overrides={"dtype": config.model.dtype}, sharding=shardings,
        dtype=config.parameter_dtype,
    )  # fmt: skip
    tokenizer = load_tokenizer(config.pretrained)
    traces = sampled_traces(config, steps, params, tokenizer, directory.path / "traces.jsonl", tick)
    lead_in = tuple(tokenizer(FORCED_LEAD_IN, add_special_tokens=False)["input_ids"])
    decode: Any = functools.partial(tokenizer.decode, skip_special_tokens=True)
    description = f"{len(traces)} traces of {config.pretrained}; sentences are labelled from files, or not at all."
    stops = ending_tokens(tokenizer, config.model)
    return Subject(steps.model, params, decode, lead_in, stops, traces, description)


# ---- report ----------------------------------------------------------------------------------------------


def reasoning_graphs(subject: Subject, found: Explained) -> list[Any]:
    """The resampled traces as the reasoning page shows them."""
    from jaxcore.reporting.reasoning_graph import GraphSentence, ReasoningGraph

    graphs = []
    for number, resampled in enumerate(found.resampled):
        trace, scores = subject.traces[number], resampled.counterfactual["laplace"]
        receiver = [f"{score:.4g}" if np.isfinite(score) else "undefined" for score in found.receivers.scores[number]]
        forced = resampled.forced["laplace"]
        sentences = [
            GraphSentence(
                text, function, float(scores.importance[i]) if scores.is_defined[i] else None, resampled.resamples[i],
                f"{scores.num_dissimilar[i]} rollouts say something else; forced-answer importance {forced[i]:.3f}, "
                f"receiver-head score {receiver[i]}, overdetermined {resampled.overdeterminedness[i]:.2f}",
            )
            for i, (text, function) in enumerate(zip(trace.sentences, trace.functions, strict=True))
        ]  # fmt: skip
        influences = {"suppression": found.suppression[number], "resampling": resampled.matrix}
        answer = f"Answer {trace.answer or 'none'}, truth {trace.truth}"
        graphs.append(ReasoningGraph(trace.name, trace.problem, sentences, influences, answer))
    return graphs


def write_anchors_report(
    config: Config, subject: Subject, found: Explained, published: PublishedAnalysis | None, results: Results,
    directory: RunDirectory,
) -> None:  # fmt: skip
    """``report.html`` of one run, and ``reasoning.html`` beside it."""
    from jaxcore.reporting import Headline, Link, Paragraph, Section, Table
    from jaxcore.reporting.reasoning_graph import write_reasoning_page
    from jaxcore.reporting.run_report import configuration_section, training_section, verdict_section, write_run_report

    metrics = results.metrics
    note = "Dots: counterfactual importance (Laplace smoothing). Arcs: strongest influences, dashed where negative."
    write_reasoning_page(directory.path / "reasoning.html", PAPER.title, reasoning_graphs(subject, found), note=note)
    headline = [
        Headline("plan over computation", f"{metrics['reasoner/plan_over_computation']:.0f} x", "reasoner, resampled"),
        Headline(
            "the same, forced",
            f"1 / {metrics['reasoner/forced_computation_over_plan']:.0f}",
            "reasoner, forced answers",
        ),
    ]
    if "suppression/auc" in metrics:
        other = f"distance alone {metrics['distance/auc']:.3f}"
        headline.append(Headline("suppression finds dependencies", f"AUC {metrics['suppression/auc']:.3f}", other))
    kinds = [f"{kind} ({smoothing})" for kind in ("counterfactual", "resampling", "forced") for smoothing in SMOOTHINGS]
    rows = [
        (name, *(
            metrics.get(f"rollouts/{kind}/{smoothing}/{name}")
            for kind in ("counterfactual", "resampling", "forced") for smoothing in SMOOTHINGS
        ))
        for name in FUNCTIONS
    ]  # fmt: skip
    reasoner = [
        (name, *(metrics.get(f"reasoner/{kind}/{name}") for kind in ("counterfactual", "resampling", "forced")))
        for name in FUNCTIONS
    ]
    others = [
        (name, value)
        for name, value in metrics.items()
        if name.split("/")[0] in ("suppression", "distance", "untrained", "agreement", "receivers", "ablation", "model")
    ]
    heads = [(int(layer), int(head), found.receivers.kurtoses[layer, head]) for layer, head in found.receivers.heads]
    sections = [
        verdict_section(
            judge_single_run(CLAIMS, "toy", RunValues(metrics, {})), single_run_note("thought_anchors")
        ),
        Section("Traces", [Paragraph(subject.description), Link("Sentence by sentence", "reasoning.html")]),
        Section("Importance by function, language model", [Table(("function", *kinds), rows, caption="Nats")]),
        Section(
            "Importance by function, programmatic reasoner",
            [Table(("function", "counterfactual", "resampling", "forced"), reasoner, caption="Nats, Laplace")],
        ),
        Section(
            "Attention between sentences",
            [
                Table(("measure", "value"), others),
                Table(("layer", "head", "mean kurtosis"), heads, caption="Receiver heads"),
            ],
        ),
        published_section(published) if published else None,
        training_section(read_metrics(directory.metrics)) if config.training.num_steps else None,
        configuration_section(config),
    ]  # fmt: skip
    write_run_report(
        directory.report, results, title=PAPER.title, claim=PAPER.claim, headline=headline, sections=sections
    )


def published_section(published: PublishedAnalysis) -> Any:
    """The paper's table, recomputed."""
    from jaxcore.reporting import Section, Table

    rows = [
        (model, measure, name, cell.mean, cell.standard_error, cell.num_traces)
        for (model, measure), cells in published.table.items()
        for name, cell in cells.items()
    ]
    measures = [(name.removeprefix("published/"), value) for name, value in published.metrics.items()]
    columns = ("model", "measure", "function", "mean", "standard error", "traces")
    return Section(
        "The published traces, analysed again", [Table(columns, rows), Table(("measure", "value"), measures)]
    )


# ---- claims ----------------------------------------------------------------------------------------------

_SOURCE = "thought_anchors.md, small-scale experiment"


def _claim(name: str, statement: str, metric: str, least: float, part: str, **options: Any) -> Claim:
    """At least so much, in every seed."""
    return Claim(name, statement, f"{_SOURCE} {part}", Measured("toy", metric), margin=least, worst=least, **options)


def _has_traces(config: Config) -> bool:
    return published_file(config) is not None


# The specification asks for five seeds: verify thought_anchors --seeds 5.
CLAIMS = Claims(
    preset="cpu",
    variants={"toy": lambda config: config},
    claims=(
        _claim(
            "cells_reproduced", "every mean and standard error of the published table comes out to three decimals",
            "published/cells_reproduced", 1.0, "E1", applies=_has_traces,
        ),
        Claim(
            "identity", "the released resampling importance is the change of accuracy, to 1e-9, for every sentence",
            f"{_SOURCE} E1", Measured("toy", "published/identity_holds"), margin=1.0, applies=_has_traces,
        ),
        _claim(
            "plans_matter_in_the_paper", "real traces: plans above computations (-log10 of Wilcoxon's p at least 2)",
            "published/plan_over_computation/evidence", 2.0, "E1", applies=_has_traces,
        ),
        _claim(
            "forcing_credits_computations_in_the_paper",
            "real traces, forced answers: computations above plans (-log10 of Wilcoxon's p at least 2)",
            "published/forced_computation_over_plan/evidence", 2.0, "E1", applies=_has_traces,
        ),
        _claim(
            "plans_are_anchors", "the reasoner's plan has ten times the counterfactual importance of a computation",
            "reasoner/plan_over_computation", 10.0, "E2",
        ),
        _claim(
            "forcing_credits_computations", "forcing answers gives computations five times the importance of plans",
            "reasoner/forced_computation_over_plan", 5.0, "E2",
        ),
        _claim(
            "filter_matters", "counting only dissimilar rollouts gives plans 1.5 times the importance",
            "reasoner/counterfactual_over_resampling", 1.5, "E2",
        ),
        _claim(
            "in_most_traces", "plans are above computations in at least 90 % of the traces",
            "reasoner/share_plan_above_computation", 0.9, "E2",
        ),
        _claim(
            "the_model_computes", "the language model gets more than 99 % of the computed values right",
            "model/computation_accuracy", 0.99, "E3",
        ),
        _claim(
            "suppression_finds_dependencies", "suppression ranks true dependencies above others: AUC at least 0.75",
            "suppression/auc", 0.75, "E3",
        ),
        _claim(
            "beyond_distance", "and by at least 0.15 better than distance alone does",
            "suppression/auc_gain", 0.15, "E3",
        ),
    ),
)  # fmt: skip
