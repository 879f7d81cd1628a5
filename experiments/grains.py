"""GrAInS: gradient-based attribution for inference-time steering of language models (Nguyen et al. 2025).

What the paper claims. Integrated gradients of ``log p(preferred) - log p(dispreferred)`` say which tokens of a prompt
speak for and against the preferred response. Masking the first and the second kind in turn moves the hidden states; the
difference of the two movements is a direction per layer, found on 50 examples. Added to the residual stream, with each
state's length kept, it makes the preferred response likelier, more than other directions and than fine-tuning do.

How it is shown here. The small-scale experiment of grains.md: a language of two sources, whose hints say which of them
is right (`jaxcore.data.two_source_world`), a small decoder that has learned it, and a control question that steering
must leave alone. ``--data.path`` takes preference pairs, or TruthfulQA.csv, with a pretrained model in their place.

Claims are judged at the setting that grains.md fixes in advance (`layers`, `strength`, `k`); the grid over layers,
strengths and k is chosen on validation prompts only, and reported beside it.

Read top to bottom: configuration, presets, steps, run, directions, evaluation, grid, report, claims.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.protocol import Devices, Paper, Program, Step, abstract_rows, checked_mesh, results_of, single_run_note
from jaxcore.attribution.preference_score import Reduction
from jaxcore.attribution.steering_directions import (
    Aggregate,
    class_difference,
    cosine,
    grains_direction,
    head_shifts,
    in_context_vector,
    mean_difference,
    random_direction,
    top_k_tokens,
)
from jaxcore.data import load_tokenizer
from jaxcore.data.preference_task import PreferenceDataConfig, PreferenceTask, open_preference_task, preferred_rows
from jaxcore.data.two_source_world import PAD, PROMPT_LENGTH, VOCABULARY_SIZE
from jaxcore.distributed import MeshConfig
from jaxcore.evaluation import Claim, Claims, Measured, RunValues, judge_single_run
from jaxcore.evaluation.steering_bench import (
    Explainer,
    Kind,
    Shifts,
    SteeringBench,
    SteeringPrograms,
    scaled_shifts,
    steering_programs,
)
from jaxcore.generation.steering import chosen_layers, shift_edits
from jaxcore.models import DECODER_FAMILIES, Decoder, DecoderConfig, RopeScaling, load_pretrained, read_config
from jaxcore.models.lora import LoraConfig
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
    run_part,
    write_results,
)
from jaxcore.training.language_modelling import (
    LanguageModelConfig,
    fit_language_model,
    language_model_gradients,
    language_model_initializer,
    language_model_optimizer,
    merged_params,
)
from jaxcore.training.trained_model import write_trained_model

PAPER = Paper(
    title="GrAInS: gradient-based attribution for inference-time steering of LLMs and VLMs",
    year=2025,
    claim="Masking the tokens that integrated gradients pick gives directions that steer a model, weights untouched.",
    needs="nothing; gpu and pod: a Llama model (--pretrained) and preference pairs or TruthfulQA.csv (--data.path)",
)


# ---- configuration ---------------------------------------------------------------------------------------


TOY = DecoderConfig(
    vocab_size=VOCABULARY_SIZE, num_layers=2, hidden_size=32, num_heads=4, num_key_value_heads=4, head_size=8,
    intermediate_size=128, max_positions=PROMPT_LENGTH + 1, pad_token_id=PAD, initializer_range=32**-0.5,
)  # fmt: skip
"""Two blocks of width 32. Initial weights are as large as that width asks for: from GPT-2's 0.02 positions stay small
beside words, near zero a block then turns within a fraction of a node of the quadrature, and completeness is lost."""
TRAINING = LanguageModelConfig(
    num_steps=1500,
    batch_size=128,
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.03, clip_norm=1.0),
    loop=LoopConfig(checkpoint_every=0, log_every=25),
)
ADAPTATION = LanguageModelConfig(
    num_steps=100,
    batch_size=50,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.1, weight_decay=0.0, clip_norm=1.0),
    loop=LoopConfig(checkpoint_every=0, log_every=25),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    preset: str = "cpu"
    """The preset these fields started from."""
    seed: int = 0
    """Of the language, the parameters, the split, the random baselines."""
    data: PreferenceDataConfig = dataclasses.field(default_factory=PreferenceDataConfig)
    """The pairs."""
    pretrained: str = ""
    """Folder or hub id of the decoder to steer; empty: one is trained on the generated language."""
    model: DecoderConfig = dataclasses.field(default_factory=lambda: TOY)
    """The decoder that is trained, or the sizes of the pretrained one."""
    language_model: LanguageModelConfig = dataclasses.field(default_factory=lambda: TRAINING)
    """Its training."""
    k: int = 4
    """Tokens masked on either side; 10 in the paper."""
    num_steps: int = 20
    """Nodes of the quadrature of integrated gradients."""
    chunk_size: int = 0
    """Nodes evaluated at once; 0 = as many as fit."""
    reduction: Reduction = "sum"
    """Log probability of a response: of all its tokens, or their mean."""
    layers: str = "0"
    """Steered layers: "all", "last" or numbers."""
    strength: float = 0.75
    """Length of what is added, relative to the mean length of the layer's states."""
    head_strength: float = 5.0
    """alpha of ITI, in standard deviations."""
    num_heads: int = 4
    """Heads that ITI shifts."""
    num_random: int = 6
    """Draws of the random baselines."""
    grid_layers: tuple[str, ...] = ("0", "1", "all")
    grid_strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    grid_head_strengths: tuple[float, ...] = (1.0, 5.0, 15.0)
    grid_k: tuple[int, ...] = (2, 4, 6)
    least_control: float = 0.95
    """Control accuracy that a setting must keep on validation prompts to be chosen."""
    lora: LoraConfig = dataclasses.field(default_factory=lambda: LoraConfig(targets=("c_attn",)))
    """Adapters of the fine-tuning baseline, trained on the preferred responses of the same pairs."""
    lora_training: LanguageModelConfig = dataclasses.field(default_factory=lambda: ADAPTATION)
    """Its training."""
    lora_rates: tuple[float, ...] = (1e-3, 1e-2)
    """Learning rates, chosen on validation."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""
    batch_size: int = 200
    """Prompts evaluated at once over all devices."""
    shown: int = 6
    """Prompts whose selected tokens the report shows."""

    def __post_init__(self) -> None:
        if min(self.k, self.num_steps, self.num_random, self.batch_size) < 1:
            raise ValueError(
                "k, num_steps, num_random and batch_size must be at least 1: got "
                f"{self.k}, {self.num_steps}, {self.num_random}, {self.batch_size}"
            )
        if bool(self.pretrained) != bool(self.data.path):
            raise ValueError(
                "--pretrained and --data.path go together: a pretrained model knows nothing of the generated language; "
                f"got {self.pretrained!r} and {self.data.path!r}"
            )
        if self.strength < 0 or min(self.grid_strengths, default=0) < 0:
            raise ValueError(f"strengths must not be negative: got {self.strength} and {self.grid_strengths}")
        if self.lora_training.batch_size > self.data.num_steer:
            raise ValueError(
                f"lora_training.batch_size {self.lora_training.batch_size} exceeds the {self.data.num_steer} pairs to "
                "steer with"
            )
        for layers in (self.layers, *self.grid_layers):
            chosen_layers(layers, self.model.num_layers)


LLAMA_3_1_8B = DecoderConfig(
    architecture="llama", **DECODER_FAMILIES["llama"], vocab_size=128_256, num_layers=32, hidden_size=4096,
    num_heads=32, num_key_value_heads=8, head_size=128, intermediate_size=14_336, max_positions=131_072,
    rope_theta=500_000.0, rope_scaling=RopeScaling("llama3", 8.0, 8192, 1.0, 4.0), dtype="bfloat16", remat="full",
)  # fmt: skip
_TRUTHFULQA = PreferenceDataConfig(path="../shared/data/truthfulqa/TruthfulQA.csv", num_validation=100, num_test=0)
_PAPER_SCALE: dict[str, Any] = {
    "pretrained": "meta-llama/Llama-3.1-8B-Instruct",
    "model": LLAMA_3_1_8B,
    "data": _TRUTHFULQA,
    "chunk_size": 1,
    "k": 10,
    "layers": "last",
    "strength": 0.5,
    "head_strength": 15.0,
    "num_heads": 48,
    "grid_layers": ("all", "0-7", "8-15", "16-23", "24-31", "last"),
    "grid_strengths": (0.05, 0.1, 0.25, 0.5, 1.0),
    "grid_k": (3, 5, 10, 20),
    "lora": LoraConfig(rank=16, targets=("q_proj", "v_proj")),
    "lora_rates": (1e-4, 1e-3),
}

PRESETS: Mapping[str, Config] = {
    "smoke": Config(
        preset="smoke",
        data=PreferenceDataConfig(num_steer=10, num_validation=16, num_test=24, num_texts=512),
        language_model=LanguageModelConfig(
            num_steps=12,
            batch_size=64,
            optimizer=OptimizerConfig(learning_rate=3e-3),
            loop=LoopConfig(checkpoint_every=6),
        ),
        num_steps=4,
        num_random=2,
        grid_layers=("0", "all"),
        grid_strengths=(0.5,),
        grid_head_strengths=(5.0,),
        grid_k=(2,),
        least_control=0.0,
        lora_training=LanguageModelConfig(num_steps=4, batch_size=8, loop=LoopConfig(checkpoint_every=0)),
        lora_rates=(1e-2,),
        batch_size=40,
        shown=2,
    ),
    "cpu": Config(preset="cpu"),
    # The paper's model and data on one accelerator; 50 to steer, 100 to choose on, 667 to judge.
    "gpu": Config(
        preset="gpu",
        batch_size=8,
        lora_training=LanguageModelConfig(
            num_steps=100, batch_size=8, optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.0)
        ),
        **_PAPER_SCALE,
    ),
    # Weights over tensor x fsdp of a 256-chip pod (eight key-value heads, so tensor 8), two prompts per fsdp shard.
    "pod": Config(
        preset="pod",
        batch_size=64,
        mesh=MeshConfig(data=-1, fsdp=32, tensor=8),
        lora_training=LanguageModelConfig(
            num_steps=50, batch_size=32, optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.0)
        ),
        **_PAPER_SCALE,
    ),
}


# ---- steps -----------------------------------------------------------------------------------------------


def make_programs(config: Config, devices: Devices | None = None) -> tuple[SteeringPrograms, Any]:
    """Programs that find directions and judge them (`jaxcore.evaluation.steering_bench`); abstract parameters."""
    mesh = checked_mesh(config.mesh, devices, config.batch_size)
    model = Decoder(config.model)
    optimizer = language_model_optimizer(config.language_model.optimizer, 1)
    params = abstract_state(language_model_initializer(model), optimizer, mesh).params
    chunk = config.chunk_size or None
    return steering_programs(
        model, mesh, num_steps=config.num_steps, chunk_size=chunk, reduction=config.reduction, seed=config.seed
    ), params


def build(config: Config, devices: Devices | None = None) -> Program:
    """Every jitted step with abstract inputs; "train" is that of the decoder, or of a pretrained one's adapters."""
    config = with_pretrained_sizes(config, download=False)
    programs, params = make_programs(config, devices)
    mesh, model, data = programs.mesh, programs.model, config.data
    lora = config.lora if config.pretrained else None
    training = config.lora_training if config.pretrained else config.language_model
    optimizer = language_model_optimizer(training.optimizer, training.num_steps, lora=lora)
    state = abstract_state(language_model_initializer(model, lora), optimizer, mesh)
    train = make_train_step(language_model_gradients(model, training.objective, lora=lora), optimizer, state, mesh)
    width, length = (data.prompt_length, data.response_length) if config.pretrained else (PROMPT_LENGTH, 1)
    shapes = {"prompt_ids": (width,), "prompt_mask": (width,)}
    shapes |= dict.fromkeys(("chosen", "chosen_mask", "rejected", "rejected_mask"), (length,))
    rows = abstract_rows(mesh, config.batch_size, shapes)
    masks = abstract_rows(mesh, config.batch_size, {"positive": (width,), "negative": (width,), "fill": ()})
    names = ("input_ids", "target_mask", *(("attention_mask",) if config.pretrained else ()))
    texts = abstract_rows(mesh, training.batch_size, dict.fromkeys(names, (width + length,)))
    shifts = jax.ShapeDtypeStruct((config.model.num_layers, config.model.hidden_size), jnp.float32)
    calls = {
        "attribute": (programs.attribute["integrated_gradients"], (params, rows)),
        "states": (programs.states, (params, rows)),
        "effects": (programs.effects, (params, {**rows, **masks})),
        "evaluate": (programs.evaluate["norm"], ((params, shifts), rows)),
    }
    steps = {name: Step(*call, config.batch_size) for name, call in calls.items()}
    return Program(mesh=mesh, steps={"train": Step(train, (state, texts), training.batch_size), **steps})


def with_pretrained_sizes(config: Config, *, download: bool = True) -> Config:
    """The configuration with the pretrained model's sizes in `model`; those given stay where nothing is at hand."""
    if not config.pretrained or not (download or pathlib.Path(config.pretrained).is_dir()):
        return config
    read = read_config(config.pretrained, config_overrides=_overrides(config))
    if not isinstance(read, DecoderConfig):
        raise ValueError(f"{config.pretrained} is no decoder but an encoder ({read.architecture}): give a decoder")
    return dataclasses.replace(config, model=read)


def _overrides(config: Config) -> dict[str, Any]:
    return {"dtype": config.model.dtype, "remat": config.model.remat}


# ---- run -------------------------------------------------------------------------------------------------


def run(
    config: Config,
    run_dir: pathlib.Path | str,
    *,
    resume: bool = False,
    tick: Callable[[int], bool] = lambda step: False,
) -> Results:
    """Train or read the decoder, find directions, steer, compare, report; see `experiments`."""
    started = time.perf_counter()
    check_run_directory(run_dir, config, resume=resume)
    config = with_pretrained_sizes(config)
    programs, shapes = make_programs(config)
    tokenizer = load_tokenizer(config.pretrained) if config.pretrained else None
    task = open_preference_task(config.data, seed=config.seed, tokenizer=tokenizer)
    directory = open_run_directory(run_dir, config, resume=resume)
    try:
        params = language_model(config, task, programs, shapes, directory, tick)
        study = Study(config, task, SteeringBench(programs, params, config.batch_size, task.fill, tick))
        found = find_directions(study)
        metrics, samples = measure_fixed(study, found)
        chosen, grid = search_grid(study, found)
        metrics |= chosen | measure_lora(study, directory, resume=resume)
        metrics |= measure_attribution(study, found) | measure_lengths(study, found)
        results = results_of(
            "grains", config, started=started, steps=config.language_model.num_steps * (not config.pretrained),
            metrics=metrics, samples=samples, params=params,
        )  # fmt: skip
        if jax.process_index() == 0:
            write_grains_report(study, found, results, grid, directory)
            write_results(directory.results, results)
    finally:
        directory.close()
    return results


def language_model(
    config: Config, task: PreferenceTask, programs: SteeringPrograms, shapes: Any, directory: RunDirectory, tick: Any
) -> Any:
    """Parameters of the decoder: read, or trained on the generated language."""
    if task.training is None:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        options: dict[str, Any] = {"config_overrides": _overrides(config), "dtype": config.model.dtype}
        return load_pretrained(config.pretrained, sharding=shardings, **options)[1]
    params = fit_language_model(
        programs.model, task.training, config=config.language_model, seed=config.seed, mesh=programs.mesh,
        run=directory, title=f"grains {config.preset}", tick=tick,
    )  # fmt: skip
    write_trained_model(directory, programs.model, params)
    return params


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """A decoder and the prompts that it is steered on."""

    config: Config
    task: PreferenceTask
    bench: SteeringBench

    def shifts(self, found: "Found", vectors: Array, layers: str, strength: float, kind: Kind = "norm") -> Shifts:
        """A direction in the named layers, `strength` times as long as their states are on average."""
        chosen = chosen_layers(layers, self.config.model.num_layers)
        return scaled_shifts(vectors, found.lengths, layers=chosen, strength=strength, kind=kind)


# ---- directions ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What the prompts to steer with gave."""

    attributions: Mapping[Explainer, Mapping[str, np.ndarray]]
    residual: Float[Array, "batch 2 layers hidden"]
    """States at the last token of prompt and response."""
    lengths: Float[Array, " layers"]
    """Mean length of the residual stream."""
    directions: Mapping[str, Float[Array, "layers hidden"]]
    """Unscaled, by method."""
    random_tokens: Sequence[Float[Array, "layers hidden"]]
    heads: Float[Array, "layers heads size"]
    by_k: Mapping[int, Float[Array, "layers hidden"]]
    """The method's, with mean aggregation, for every k of the grid."""
    oracle: Float[Array, "layers hidden"] | None


AGGREGATES: tuple[Aggregate, ...] = ("mean", "pca", "pca_uncentered")


def find_directions(study: Study) -> Found:
    """Steps A to C of the paper, and the directions it is compared with."""
    config, bench, rows = study.config, study.bench, study.task.steer
    attributions = {name: bench.attribute(rows, name) for name in bench.programs.attribute}
    states = bench.states(rows)
    residual, scores = jnp.asarray(states["residual"]), attributions["integrated_gradients"]["scores"]

    def of_scores(scores: np.ndarray, k: int = config.k) -> Float[Array, "layers hidden"]:
        return grains_direction(bench.token_effects(rows, scores, k), aggregate="mean")

    own = bench.token_effects(rows, scores, config.k)
    directions = {f"grains_{name}": grains_direction(own, aggregate=name) for name in AGGREGATES}
    directions["positive_only"] = grains_direction(own, aggregate="mean", sides="positive")
    for name, made in attributions.items():
        if name != "integrated_gradients":
            directions[name] = of_scores(made["scores"])
    directions |= {"mean_difference": mean_difference(residual), "icv": in_context_vector(residual)}
    rng = np.random.default_rng([config.seed, 12])
    return Found(
        attributions=attributions,
        residual=residual,
        lengths=jnp.asarray(states["lengths"].mean(0)),
        directions=directions,
        random_tokens=[of_scores(rng.random(scores.shape)) for _ in range(config.num_random)],
        heads=head_shifts(jnp.asarray(states["heads"]), num_heads=config.num_heads),
        by_k={k: of_scores(scores, k) for k in config.grid_k},
        oracle=_oracle(study),
    )


def _oracle(study: Study) -> Float[Array, "layers hidden"] | None:
    """Difference of the classes' mean states at the question, where the classes are known."""
    if study.task.classes is None:
        return None
    rows, signs = study.task.classes
    # Responses of no token: the last token is the prompt's.
    states = study.bench.states({**rows, "chosen_mask": np.zeros_like(rows["chosen_mask"])})["residual"][:, 0]
    return class_difference(jnp.asarray(states), jnp.asarray(signs))


# ---- evaluation ------------------------------------------------------------------------------------------


def fixed_shifts(study: Study, found: Found) -> dict[str, Shifts]:
    """Every method at the setting fixed in advance."""
    at = (study.config.layers, study.config.strength)
    shifts = {name: study.shifts(found, one, *at) for name, one in found.directions.items() if name != "icv"}
    shifts["icv"] = study.shifts(found, found.directions["icv"], "all", study.config.strength)
    shifts["caa"] = study.shifts(found, found.directions["mean_difference"], *at, "plain")
    shifts["without_norm"] = study.shifts(found, found.directions["grains_mean"], *at, "plain")
    shifts["iti"] = Shifts(study.config.head_strength * found.heads, "heads")
    if found.oracle is not None:
        shifts["oracle"] = study.shifts(found, found.oracle, *at)
    return shifts


def measure(study: Study, part: str, shifts: Shifts | None = None, params: Any = None) -> dict[str, float]:
    """Mean margin, accuracy (share of positive margins), and control accuracy, of validation or test prompts."""
    rows, count = getattr(study.task, part), len(getattr(study.task, part)["prompt_ids"])
    control, answers = study.task.control.get(part, ({}, None))
    joined = {name: np.concatenate([array, control[name]]) if control else array for name, array in rows.items()}
    made = study.bench.evaluate(joined, shifts, params)
    margins = made["margin"][:count]
    found = {"margin": float(margins.mean()), "accuracy": float(np.mean(margins > 0))}
    return found if answers is None else found | {"control": float(np.mean(made["answer"][count:] == answers))}


def measure_fixed(study: Study, found: Found) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Gain of every method on test prompts: the mean margin's change; and the random baselines, draw by draw."""
    base = measure(study, "test")
    metrics = {f"{name}/base": value for name, value in base.items()}

    def record(name: str, measured: Mapping[str, float]) -> None:
        metrics[f"gain/{name}"] = measured["margin"] - base["margin"]
        metrics.update({f"{kind}/{name}": value for kind, value in measured.items() if kind != "margin"})

    for name, shifts in fixed_shifts(study, found).items():
        record(name, measure(study, "test", shifts))
    key, like = jax.random.key(study.config.seed), found.directions["grains_mean"]
    gaussian = [random_direction(jax.random.fold_in(key, draw), like) for draw in range(study.config.num_random)]
    samples = {}
    for name, vectors in (("random_tokens", found.random_tokens), ("random_vector", gaussian)):
        at = (study.config.layers, study.config.strength)
        draws = [measure(study, "test", study.shifts(found, one, *at)) for one in vectors]
        record(name, {kind: float(np.mean([draw[kind] for draw in draws])) for kind in base})
        samples[f"gain/{name}"] = [draw["margin"] - base["margin"] for draw in draws]
    if found.oracle is not None:
        layer = chosen_layers(study.config.layers, study.config.model.num_layers)[0]
        own = {name: cosine(found.directions[f"grains_{name}"], found.oracle)[layer] for name in AGGREGATES}
        metrics |= {f"cosine/{name}": float(value) for name, value in own.items()}
    return metrics, samples


def measure_attribution(study: Study, found: Found) -> dict[str, float]:
    """Assertions 1 to 3: completeness, deletion, selection."""
    rows, own = study.task.steer, found.attributions["integrated_gradients"]
    eligible, rng = jnp.asarray(rows["special"] == 0), np.random.default_rng([study.config.seed, 13])
    before = study.bench.evaluate(rows)["margin"]

    def deletion(mask: Any) -> float:
        masked = np.where(np.asarray(mask), study.task.fill, rows["prompt_ids"]).astype(np.int32)
        return float(np.mean(study.bench.evaluate({**rows, "prompt_ids": masked})["margin"] - before))

    positive, negative = top_k_tokens(jnp.asarray(own["scores"]), eligible, 2)
    random = [top_k_tokens(jnp.asarray(rng.random(eligible.shape)), eligible, 2)[0] for _ in range(5)]
    at_random = float(np.mean([deletion(mask) for mask in random]))
    metrics = {
        "completeness": 1 - float(np.abs(own["error"]).sum() / np.abs(own["change"]).sum()),
        "deletion/drop": -deletion(positive),
        "deletion/rise": deletion(negative),
        "deletion/random": at_random,
        "deletion/random_room": 1 - abs(at_random),
    }
    signs = study.task.hint_signs
    if signs is None:
        return metrics
    sides = [np.asarray(mask) for mask in top_k_tokens(jnp.asarray(own["scores"]), eligible, study.config.k)]
    right, wrong = (
        [float(np.mean(signs[mask] == turn * sign)) for mask, sign in zip(sides, (1, -1), strict=True)]
        for turn in (1, -1)
    )
    selection = {"positive_right": right[0], "negative_right": right[1], "not_wrong": 1 - max(wrong)}
    return metrics | {f"selection/{name}": value for name, value in selection.items()}


def measure_lengths(study: Study, found: Found) -> dict[str, float]:
    """Assertion 6: how far equation 5 is from keeping lengths, on the states found; and that 0 changes no bit."""
    shifts = study.shifts(found, found.directions["grains_mean"], "all", study.config.strength).values
    worst, still = 0.0, True
    for layer in range(len(shifts)):
        before = found.residual[:, :, layer]
        after = shift_edits(shifts)["layer_output"](before, step=layer)
        lengths = [np.linalg.norm(np.asarray(states, np.float64), axis=-1) for states in (before, after)]
        worst = max(worst, float(np.abs(lengths[1] / lengths[0] - 1).max()))
        still &= bool(jnp.array_equal(shift_edits(0 * shifts)["layer_output"](before, step=layer), before))
    return {"length_kept": 1 - worst, "identity": float(still)}


# ---- grid and fine-tuning --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cell:
    """A setting of a method, and what it gave on validation prompts."""

    method: str
    layers: str
    strength: float
    k: int
    gain: float = 0.0
    control: float = 1.0

    def judged(self, measured: Mapping[str, float], base: Mapping[str, float]) -> "Cell":
        """With what was measured under it."""
        gain = measured["margin"] - base["margin"]
        return dataclasses.replace(self, gain=gain, control=measured.get("control", 1.0))


def search_grid(study: Study, found: Found) -> tuple[dict[str, float], list[Cell]]:
    """Every method over layers and strengths (and k), chosen on validation prompts; test prompts for the chosen one.

    Chosen is the largest gain among settings that keep the control task; where none gains, the model stays as it is.
    """
    config = study.config
    vectors = {"grains_mean": found.by_k}
    vectors |= {name: {config.k: found.directions[name]} for name in ("grains_pca", "grains_pca_uncentered", "icv")}
    vectors |= {name: {config.k: found.directions["mean_difference"]} for name in ("mean_difference", "caa")}
    kinds: dict[str, Kind] = {"caa": "plain"}
    settings = [
        (Cell(name, layers, strength, k), study.shifts(found, one, layers, strength, kinds.get(name, "norm")))
        for name, choices in vectors.items()
        for k, one in choices.items()
        for layers in (("all",) if name == "icv" else config.grid_layers)
        for strength in config.grid_strengths
    ]
    settings += [(Cell("iti", "heads", a, 0), Shifts(a * found.heads, "heads")) for a in config.grid_head_strengths]
    base = {part: measure(study, part) for part in ("validation", "test")}
    judged = [(cell.judged(measure(study, "validation", one), base["validation"]), one) for cell, one in settings]
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(cell.method for cell, _ in judged):
        kept = [pair for pair in judged if pair[0].method == name and pair[0].control >= config.least_control]
        best = max(kept, key=lambda pair: pair[0].gain, default=None)
        after = measure(study, "test", best[1]) if best is not None and best[0].gain > 0 else base["test"]
        metrics |= _tuned(name, after, base["test"])
    return metrics, [cell for cell, _ in judged]


def _tuned(name: str, after: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    others = {f"tuned_{kind}/{name}": value for kind, value in after.items() if kind != "margin"}
    return {f"tuned_gain/{name}": after["margin"] - base["margin"], **others}


def measure_lora(study: Study, directory: RunDirectory, *, resume: bool) -> dict[str, float]:
    """Adapters trained on the preferred responses of the pairs to steer with; the rate is chosen on validation."""
    config, bench, rows = study.config, study.bench, preferred_rows(study.task.steer)
    model, mesh = bench.programs.model, bench.programs.mesh
    base = {part: measure(study, part) for part in ("validation", "test")}
    best, after = 0.0, base["test"]
    for rate in config.lora_rates:
        optimizer = dataclasses.replace(config.lora_training.optimizer, learning_rate=rate)
        training = dataclasses.replace(config.lora_training, optimizer=optimizer)
        with run_part(directory.path / "lora" / f"{rate:g}", config, resume=resume) as part:
            adapted = fit_language_model(
                model, rows, config=training, seed=config.seed, mesh=mesh, run=part, params=bench.params,
                lora=config.lora, title=f"lora {rate:g}", tick=bench.tick,
            )  # fmt: skip
        merged = merged_params(model, adapted, config.lora)
        cell = Cell("lora", "all", rate, 0).judged(measure(study, "validation", None, merged), base["validation"])
        if cell.gain > best and cell.control >= config.least_control:
            best, after = cell.gain, measure(study, "test", None, merged)
    return _tuned("lora", after, base["test"])


# ---- report ----------------------------------------------------------------------------------------------

NOTE = (
    "Gain is the mean change of log p(preferred) - log p(dispreferred), in nats, on test prompts. A margin that moves "
    "while the control accuracy falls is damage, not steering: read both. Fixed: the setting that grains.md states in "
    "advance. Tuned: the best on validation prompts that keeps the control task."
)


def write_grains_report(
    study: Study, found: Found, results: Results, grid: Sequence[Cell], directory: RunDirectory
) -> None:
    """``report.html`` of one run."""
    from jaxcore.reporting import Headline, Section, Table
    from jaxcore.reporting.run_report import (
        configuration_section,
        training_section,
        verdict_section,
        write_run_report,
    )

    metrics, config = results.metrics, study.config
    columns = ("gain", "accuracy", "control", "tuned_gain", "tuned_accuracy", "tuned_control")
    names = dict.fromkeys(name.split("/")[1] for name in metrics if name.startswith(("gain/", "tuned_gain/")))
    rows = [(name, *(metrics.get(f"{column}/{name}") for column in columns)) for name in names]
    cells = [(cell.method, cell.layers, cell.strength, cell.k or None, cell.gain, cell.control) for cell in grid]
    checks = [(name, value) for name, value in metrics.items() if name.startswith(("completeness", "deletion", "sel"))]
    headline = [
        Headline("gain of GrAInS (mean)", f"{metrics['gain/grains_mean']:+.2f}", "nats, fixed setting"),
        Headline("random tokens", f"{metrics['gain/random_tokens']:+.2f}", f"mean of {config.num_random} draws"),
        Headline("mean difference", f"{metrics['gain/mean_difference']:+.2f}", "nats, fixed setting"),
    ]
    verdicts = judge_single_run(CLAIMS.asked_of(config), "method", RunValues(metrics, results.samples))
    logged = read_metrics(directory.metrics) if directory.metrics.exists() else []
    sections = [
        Section("Methods", [Table(("method", *columns), rows, caption="Test prompts.")], note=NOTE),
        Section("Attribution", [Table(("measure", "value"), checks), _token_maps(study, found)]),
        Section(
            "Grid",
            [Table(("method", "layers", "strength", "k", "gain", "control"), cells, caption="Validation prompts.")],
        ),
        verdict_section(verdicts, single_run_note("grains")),
        training_section(logged),
        configuration_section(config),
    ]
    write_run_report(
        directory.report, results, title=PAPER.title, claim=PAPER.claim, headline=headline, sections=sections
    )


def _token_maps(study: Study, found: Found) -> Any:
    """Prompts coloured by integrated gradients; the masked tokens are underlined."""
    from jaxcore.reporting import TokenHeatmap, TokenHeatmaps

    rows, scores = study.task.steer, found.attributions["integrated_gradients"]["scores"]
    positive, negative = top_k_tokens(jnp.asarray(scores), jnp.asarray(rows["special"] == 0), study.config.k)
    selected = np.asarray(positive | negative)
    maps = []
    for row in range(min(study.config.shown, len(scores))):
        real = rows["prompt_mask"][row] == 1
        maps.append(
            TokenHeatmap(
                study.task.names(rows["prompt_ids"][row][real]),
                scores[row][real],
                caption=f"prompt {row}",
                marked=selected[row][real],
                positive_label="for the preferred response",
                negative_label="against it",
                marked_label="masked token",
            )
        )
    return TokenHeatmaps(maps, caption="Integrated gradients of the margin, in nats.")


# ---- claims ----------------------------------------------------------------------------------------------

_SOURCE = "grains.md, small-scale experiment, assertion"


def _generated(config: Config) -> bool:
    """Whether the language is the generated one, of which the numbers below are stated."""
    return not config.data.path


_AT_LEAST_1_5: dict[str, Any] = {"margin": 1.5, "worst": 1.5}


def _claim(number: int, name: str, statement: str, metric: str, *, against: str = "", **criteria: Any) -> Claim:
    other = Measured("method", against) if against else None
    return Claim(
        name, statement, f"{_SOURCE} {number}", Measured("method", metric), other, applies=_generated, **criteria
    )


CLAIMS = Claims(
    preset="cpu",
    variants={"method": lambda config: config},
    claims=(
        _claim(0, "learned", "the decoder answers the control question", "control/base", margin=0.99, worst=0.99),
        _claim(1, "complete", "attributions add up to the score's change", "completeness", margin=0.95, worst=0.95),
        _claim(2, "positive_tokens", "masking 2 positive tokens lowers the margin", "deletion/drop", **_AT_LEAST_1_5),
        _claim(2, "negative_tokens", "masking 2 negative ones raises it", "deletion/rise", **_AT_LEAST_1_5),
        _claim(2, "random_tokens", "masking 2 random ones moves it by less than 1", "deletion/random_room", worst=0.0),
        _claim(3, "right_positive", "a quarter of the positive tokens are positive hints", "selection/positive_right",
               margin=0.25, worst=0.25),
        _claim(3, "right_negative", "a quarter of the negative tokens are negative hints", "selection/negative_right",
               margin=0.25, worst=0.25),
        _claim(3, "no_wrong_tokens", "at most 5 % of either are hints of the other sign", "selection/not_wrong",
               margin=0.95, worst=0.95),
        _claim(4, "beats_random", "steering gains more than along random tokens' directions", "gain/grains_mean",
               against="gain/random_tokens", margin=0.3, alpha=0.05),
        _claim(4, "beats_mean_difference", "and more than along the mean difference", "gain/grains_mean",
               against="gain/mean_difference", margin=0.2, alpha=0.05),
        _claim(4, "keeps_control", "the control question is still answered", "control/grains_mean", margin=0.95,
               worst=0.95),
        _claim(6, "keeps_lengths", "states keep their lengths to 1e-5", "length_kept", margin=1 - 1e-5, worst=1 - 1e-5),
        _claim(6, "identity", "strength 0 changes no bit", "identity", margin=1.0, worst=1.0),
    ),
)  # fmt: skip
