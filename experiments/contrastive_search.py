"""Contrastive search, and SimCTG: text that neither repeats itself nor wanders off (Su & Collier 2023; Su et al. 2022).

What the papers claim. Of a model's k most probable tokens take the one that is probable and unlike everything before
it, by the cosine of hidden states: the text is as diverse as people's and far more coherent than what samplers write.
It works off the shelf wherever the hidden states are isotropic, as in most models; where they are not, SimCTG's
contrast of a text's tokens, added in training, makes them so.

How it is shown here. The small-scale experiment of contrastive_search.md, on prose that every installation has
(`jaxcore.data.embedded_prose`): a small byte-pair language model, a second one of another seed as the judge of
coherence, prompts from documents that neither has seen. The same vector added to all states leaves every probability
as it was, but makes the states anisotropic: contrastive search then falls back to greedy decoding. Models whose last
norm starts from a large random bias are anisotropic by themselves, with and without SimCTG. ``--pretrained`` and
``--data.prompts`` take a published model and the published prompts.

Read top to bottom: configuration, presets, model, steps, run, decoding, evaluation, report, claims.
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from experiments.protocol import Devices, Paper, Program, Step, abstract_rows, checked_mesh, results_of, single_run_note
from jaxcore.data.language_model_corpus import (
    LanguageModelCorpus,
    LanguageModelDataConfig,
    open_language_model_corpus,
    text_rows,
)
from jaxcore.data.tokenization import load_tokenizer
from jaxcore.distributed import MeshConfig, batch_sharding, current_ticker, jit_on_mesh, replicated
from jaxcore.evaluation import Claim, Claims, Measured, RunValues, judge_single_run, map_rows
from jaxcore.evaluation.coherence import continuation_log_probs
from jaxcore.evaluation.isotropy import layer_isotropy
from jaxcore.evaluation.mauve import last_token_states, mauve
from jaxcore.evaluation.text_diversity import diversity, mean_length, repetition
from jaxcore.generation import BeamSearch, ContrastiveSearch, Greedy, Sampling, Strategy, generate, pad_left
from jaxcore.models import Decoder, DecoderConfig, load_pretrained, read_config
from jaxcore.training import (
    LoopConfig,
    OptimizerConfig,
    Results,
    RunDirectory,
    check_run_directory,
    open_run_directory,
    read_metrics,
    run_part,
    write_results,
)
from jaxcore.training.language_modelling import (
    LanguageModelConfig,
    LanguageModelObjective,
    fit_language_model,
    language_model_initializer,
    language_model_step,
    mean_negative_log_likelihood,
)
from jaxcore.training.trained_model import write_trained_model

PAPER = Paper(
    title="Contrastive search is what you need for neural text generation (with SimCTG)",
    year=2023,
    claim="Choosing probable tokens whose states differ from all before gives text as diverse as people's, coherent.",
    needs="nothing; gpu: gpt2-large and a judge (hub or folders), the stored prompts; pod: gpt2, WikiText-103 as lines",
)


# ---- configuration ---------------------------------------------------------------------------------------

_SIMCTG = LanguageModelObjective(margin_weight=1.0, margin=0.5)
ARMS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "simctg": {"objective": _SIMCTG},
    "anisotropic": {"bias_scale": 2.0},
    "anisotropic_simctg": {"bias_scale": 2.0, "objective": _SIMCTG},
}
"""What each arm changes in the training of the model; 2 lies within the 1.2 to 4 that the specification allows."""

DECODERS = ("greedy", "beam", "top_k", "nucleus", "typical", "contrastive", "low_alpha", "high_k", "shifted")
"""The paper's decoders, then contrastive search with 2/3 of alpha, with k + 3, and on shifted states."""
_ARM_DECODERS = ("greedy", "contrastive")
_OPTIMIZER = OptimizerConfig(learning_rate=2e-3, warmup_fraction=0.1, clip_norm=1.0)
_LOOP = LoopConfig(checkpoint_every=0, log_every=10)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    preset: str = "cpu"
    """The preset these fields started from."""
    seed: int = 0
    """Of the parameters, the order of the rows, and of sampling; not of the texts."""
    num_steps: int = 400
    """Updates of the model (and of a judge that is trained); 0 takes a pretrained model as it is."""
    batch_size: int = 16
    """Rows of a batch over all devices."""
    model: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    """The decoder; its vocabulary is that of the data."""
    pretrained: str = ""
    """Folder or hub id of a model to start from, whose sizes replace those of `model`."""
    bias_scale: float = 0.0
    """Standard deviation b of the last norm's bias at the start; above 0 the states are anisotropic."""
    objective: LanguageModelObjective = dataclasses.field(default_factory=LanguageModelObjective)
    """Maximum likelihood, or SimCTG with margin_weight 1."""
    judge: str = "trained"
    """Whose log probabilities are coherence: "trained" (a model like this one, of another seed), the folder or hub id
    of a pretrained decoder (its tokenizer beside it), or "" for none (no coherence, no MAUVE)."""
    decoders: tuple[str, ...] = DECODERS
    """Which of `DECODERS` write."""
    k: int = 5
    """Candidates of contrastive search."""
    alpha: float = 0.6
    """Weight of its penalty."""
    num_samples: int = 1
    """Continuations per prompt of the decoders that draw."""
    data: LanguageModelDataConfig = dataclasses.field(default_factory=LanguageModelDataConfig)
    """Texts and prompts."""
    languages: tuple[str, ...] = ()
    """More models whose isotropy is measured, NAME=MODEL=FILE: a folder or hub id, and a file of texts, one a line."""
    optimizer: OptimizerConfig = _OPTIMIZER
    """Optimiser and schedule."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""
    loop: LoopConfig = _LOOP
    """Checkpoints and logging."""
    evaluation_batch: int = 32
    """Rows scored or continued at once."""
    compared: tuple[str, ...] = ()
    """Arms (see `ARMS`) trained beside this one and shown in the report."""
    shown_prompts: int = 3
    """Prompts whose continuations the report shows side by side."""

    def __post_init__(self) -> None:
        if self.num_steps < 0 or self.batch_size < 1 or self.num_samples < 1 or self.bias_scale < 0:
            raise ValueError(
                "num_steps and bias_scale must be >= 0, batch_size and num_samples >= 1: got "
                f"{self.num_steps}, {self.bias_scale}, {self.batch_size}, {self.num_samples}"
            )
        if unknown := set(self.compared) - set(ARMS):
            raise ValueError(f"unknown arms {sorted(unknown)} to compare with: expected some of {', '.join(ARMS)}")
        if not self.decoders or set(self.decoders) - set(DECODERS):
            raise ValueError(f"decoders must be some of {', '.join(DECODERS)}: got {list(self.decoders)}")
        if not self.num_steps and not self.pretrained:
            raise ValueError("num_steps 0 takes a model as it is: give --pretrained")
        if self.pretrained and not self.data.tokenizer:
            raise ValueError("a pretrained model reads the ids of its own tokenizer: give --data.tokenizer")
        context = max(self.data.length, self.data.prefix_tokens + self.data.new_tokens)
        if not self.pretrained and context > self.model.context_length:
            raise ValueError(f"rows or texts of {context} tokens, but the model reads {self.model.context_length}")
        for language in self.languages:
            if language.count("=") != 2:
                raise ValueError(f"languages are NAME=MODEL=FILE: got {language!r}")
        strategies(self)  # refuses k and alpha out of range

    @property
    def training(self) -> LanguageModelConfig:
        """The part of it that training needs."""
        return LanguageModelConfig(self.num_steps, self.batch_size, self.objective, self.optimizer, self.loop)


def strategies(config: Config) -> dict[str, Strategy]:
    """Every decoder by name; `shifted` is contrastive search on a `ShiftedDecoder`."""
    contrastive = ContrastiveSearch(k=config.k, alpha=config.alpha)
    everything: dict[str, Strategy] = {
        "greedy": Greedy(),
        "beam": BeamSearch(num_beams=4),
        "top_k": Sampling(top_k=min(50, config.data.vocab_size)),
        "nucleus": Sampling(top_p=0.95),
        "typical": Sampling(typical_p=0.95),
        "contrastive": contrastive,
        "low_alpha": dataclasses.replace(contrastive, alpha=config.alpha * 2 / 3),
        "high_k": dataclasses.replace(contrastive, k=config.k + 3),
        "shifted": contrastive,
    }
    return {name: everything[name] for name in DECODERS if name in config.decoders}


def _small(layers: int, width: int, heads: int, positions: int, **options: Any) -> DecoderConfig:
    return DecoderConfig(
        num_layers=layers, hidden_size=width, num_heads=heads, num_key_value_heads=heads, head_size=width // heads,
        intermediate_size=4 * width, max_positions=positions, **options,
    )  # fmt: skip


PRESETS: Mapping[str, Config] = {
    "smoke": Config(
        preset="smoke",
        num_steps=12,
        model=_small(1, 16, 2, 24),
        decoders=("greedy", "nucleus", "contrastive", "low_alpha", "high_k", "shifted"),
        data=LanguageModelDataConfig(
            sources=("python",), vocab_size=400, length=24, num_prompts=16, prefix_tokens=8, new_tokens=12
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.1, clip_norm=1.0),
        loop=LoopConfig(checkpoint_every=6),
        evaluation_batch=16,
        compared=("simctg",),
        shown_prompts=2,
    ),
    # The rehearsed model (2 layers of width 96) on four times the text.
    "cpu": Config(
        preset="cpu", model=_small(2, 96, 4, 96, dropout=0.1), compared=("anisotropic", "anisotropic_simctg")
    ),
    # The published table: gpt2-large as it is, in float32 as published, on the stored prompts. OPT, the published
    # judges, is not among the decoder families: another base model judges.
    "gpu": Config(
        preset="gpu",
        num_steps=0,
        model=_small(36, 1280, 20, 1024),
        pretrained="gpt2-large",
        judge="Qwen/Qwen2.5-1.5B",
        num_samples=3,
        data=LanguageModelDataConfig(
            tokenizer="gpt2-large", vocab_size=50257, length=256, num_prompts=1000, prefix_tokens=40, new_tokens=200,
            prompts="../shared/data/generation/gpt2_large_webtext.tar.gz",
        ),
        evaluation_batch=200,
    ),
    # SimCTG as published: GPT-2 small on WikiText-103, twice the batch for as many chips and half the updates, the
    # learning rate with the square root of the batch.
    "pod": Config(
        preset="pod",
        num_steps=20_000,
        batch_size=256,
        model=_small(12, 768, 12, 1024, dtype="bfloat16", remat="dots"),
        pretrained="gpt2",
        objective=_SIMCTG,
        judge="gpt2-large",
        k=8,
        num_samples=3,
        data=LanguageModelDataConfig(
            path="wikitext-103-train.txt", tokenizer="gpt2", vocab_size=50257, length=256, num_prompts=1024,
            prefix_tokens=32, new_tokens=128, validation_share=0.005, test_share=0.01,
        ),
        optimizer=OptimizerConfig(learning_rate=2.8e-5, schedule="linear", warmup_fraction=0.1, clip_norm=1.0),
        mesh=MeshConfig(data=-1),
        loop=LoopConfig(checkpoint_every=1000, log_every=25),
        evaluation_batch=1024,
        compared=("plain",),
    ),
}  # fmt: skip


# ---- model -----------------------------------------------------------------------------------------------


class ShiftedDecoder(Decoder):
    """A decoder with one vector added to all its states; logits are of the states without it, so nothing else changes.

    The vector is ten times as long as states are (root mean square): states that had many directions all but share one.
    contrastive_search.md has 10 sqrt(width), the same for a last norm of unit gains; but the search does not depend on
    the scale of states, and so neither may this.
    """

    def trunk(self, *arguments: Any, **options: Any) -> Any:
        hidden, cache = super().trunk(*arguments, **options)
        return hidden.astype(jnp.float32) + self._vector(), cache  # in half precision the vector would swallow states

    def logits(self, hidden: Float[Array, "... hidden"]) -> Float[Array, "... vocab"]:
        return super().logits(hidden - self._vector())

    def _vector(self) -> Float[Array, " hidden"]:
        direction = jax.random.normal(jax.random.key(0), (self.config.hidden_size,))
        # E |scale * n + bias|^2 = |scale|^2 + |bias|^2 for what a norm gives, n.
        leaves = jax.tree.leaves(nn.meta.unbox(self.variables["params"]["final_norm"]))
        length = jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves))
        return 10 * length * direction / jnp.linalg.norm(direction)


def make_model(config: Config) -> Decoder:
    """The decoder of a configuration, without reading anything: with `pretrained`, `model` stands for its sizes."""
    return Decoder(dataclasses.replace(config.model, vocab_size=config.data.vocab_size))


def _initialize(config: Config, model: Decoder) -> Callable[[Array], Any]:
    """key -> fresh parameters, the last norm's bias drawn from N(0, b^2)."""
    fresh = language_model_initializer(model)

    def initialize(key: Array) -> Any:
        params = fresh(key)
        if config.bias_scale:
            drawn = jax.random.normal(jax.random.fold_in(key, 2), (model.config.hidden_size,))
            norm = params["final_norm"]
            bias = jax.tree.map(lambda leaf: leaf + config.bias_scale * drawn, norm["bias"])
            params = {**params, "final_norm": {**norm, "bias": bias}}
        return params

    return initialize


# ---- steps -----------------------------------------------------------------------------------------------


def make_decode(config: Config, model: Decoder, mesh: Mesh) -> Any:
    """``((params, strategy, key data), batch) -> (tokens, lengths)``, prompts split over the mesh."""

    def decode(given: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        params, strategy, key_data = given
        generated = generate(
            model,
            params,
            batch["input_ids"],
            batch["attention_mask"],
            strategy=strategy,
            max_new_tokens=config.data.new_tokens,
            key=jax.random.fold_in(jax.random.wrap_key_data(key_data), batch["number"][0]),
            stop_tokens=model.config.eos_token_ids,
            pad_token=model.config.pad_token_id or 0,
            num_samples=config.num_samples if strategy.is_random else 1,
        )
        return generated.tokens, generated.lengths

    return jit_on_mesh(decode, mesh, out_shardings=batch_sharding(mesh))


def build(config: Config, devices: Devices | None = None) -> Program:
    """Every jitted step with abstract inputs; see `experiments`."""
    mesh = checked_mesh(config.mesh, devices, config.batch_size, config.evaluation_batch)
    model = make_model(config)
    state, train = language_model_step(model, config.training, mesh, initialize=_initialize(config, model))

    def rows(count: int, length: int) -> dict[str, Any]:
        return abstract_rows(mesh, count, {"input_ids": (length,), "attention_mask": (length,)})

    count = config.evaluation_batch
    prompts = {**rows(count, config.data.prefix_tokens), **abstract_rows(mesh, count, {"number": ()})}
    whole = replicated(mesh)
    search = jax.tree.map(
        lambda _: jax.ShapeDtypeStruct((), jnp.float32, sharding=whole), ContrastiveSearch(k=config.k, alpha=0.6)
    )
    key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=whole)
    return Program(
        mesh=mesh,
        steps={
            "train": Step(train, (state, rows(config.batch_size, config.data.length)), config.batch_size),
            "decode": Step(make_decode(config, model, mesh), ((state.params, search, key), prompts), count),
        },
    )


# ---- run -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model that can be asked; `tokenizer` only where it is not that of the corpus."""

    model: Decoder
    params: Any
    tokenizer: Any = None


def run(
    config: Config,
    run_dir: pathlib.Path | str,
    *,
    resume: bool = False,
    tick: Callable[[int], bool] = lambda step: False,
) -> Results:
    """Train, decode, measure, and the same for the arms it is compared with; see `experiments`."""
    started = time.perf_counter()
    check_run_directory(run_dir, config, resume=resume)
    mesh = checked_mesh(config.mesh, None, config.batch_size, config.evaluation_batch)
    corpus = open_language_model_corpus(config.data)
    directory = open_run_directory(run_dir, config, resume=resume)
    try:
        judge = open_judge(config, corpus, mesh, directory, resume=resume, tick=tick)
        written = _human(corpus)
        measured, samples, own = train_and_measure(config, corpus, mesh, directory, judge, tick, written=written)
        metrics = dict(measured)
        for arm in config.compared:
            other: Any = _without_judge(dataclasses.replace(config, **ARMS[arm]))
            with run_part(directory.path / "arms" / arm, other, resume=resume) as part:
                of_arm, _, _ = train_and_measure(other, corpus, mesh, part, None, tick, title=arm)
            metrics |= {f"arms/{arm}/{name}": value for name, value in of_arm.items()}
        metrics |= language_isotropy(config, mesh)
        results = results_of(
            "contrastive_search", config, started=started, steps=config.num_steps, metrics=metrics, params=own.params,
            samples=samples,
        )  # fmt: skip
        if jax.process_index() == 0:
            write_contrastive_search_report(config, corpus, results, written, directory)
            write_results(directory.results, results)
    finally:
        directory.close()
    return results


def _without_judge(config: Config) -> Config:
    return dataclasses.replace(config, judge="", compared=(), languages=(), decoders=_ARM_DECODERS)


def open_model(
    config: Config, corpus: LanguageModelCorpus, mesh: Mesh, directory: RunDirectory, tick: Any, *, title: str
) -> LanguageModel:
    """The trained (or pretrained) model of a configuration."""
    model, params = make_model(config), None
    if config.pretrained:
        model, params = load_pretrained(config.pretrained, config_overrides=_overrides(config), sharding=mesh)
    if len(corpus.tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(corpus.tokenizer)} ids, the model {model.config.vocab_size}: they do not belong "
            "together (--data.tokenizer, --data.vocab-size)"
        )
    if config.num_steps:
        params = fit_language_model(
            model, corpus.train, config=config.training, seed=config.seed, mesh=mesh, run=directory, params=params,
            initialize=_initialize(config, model), title=f"{title} {config.preset}", tick=tick,
        )  # fmt: skip
        write_trained_model(directory, model, params, tokenizer=corpus.tokenizer)
    return LanguageModel(model, params)


def _overrides(config: Config) -> dict[str, Any]:
    return {name: getattr(config.model, name) for name in ("dtype", "remat", "dropout", "attention_implementation")}


def open_judge(
    config: Config, corpus: LanguageModelCorpus, mesh: Mesh, directory: RunDirectory, *, resume: bool, tick: Any
) -> LanguageModel | None:
    """The model that coherence is measured with: never the one that wrote."""
    if not config.judge:
        return None
    if config.judge != "trained":
        model, params = load_pretrained(config.judge, config_overrides={"dtype": config.model.dtype}, sharding=mesh)
        return LanguageModel(model, params, load_tokenizer(config.judge))
    own = _without_judge(
        dataclasses.replace(config, seed=config.seed + 1000, bias_scale=0.0, objective=LanguageModelObjective())
    )
    with run_part(directory.path / "judge", own, resume=resume) as part:
        return open_model(own, corpus, mesh, part, tick, title="judge")


Written = dict[str, list[list[list[int]]]]
"""By decoder: for each sample, the tokens of every prompt's continuation."""


def _human(corpus: LanguageModelCorpus) -> Written:
    return {"human": [[list(reference) for reference in corpus.references]]}


def train_and_measure(
    config: Config,
    corpus: LanguageModelCorpus,
    mesh: Mesh,
    directory: RunDirectory,
    judge: LanguageModel | None,
    tick: Any,
    *,
    written: Written | None = None,
    title: str = "contrastive_search",
) -> tuple[dict[str, float], dict[str, list[float]], LanguageModel]:
    """Metrics and per-prompt samples of one arm, and its model; what it wrote is put into `written`."""
    own = open_model(config, corpus, mesh, directory, tick, title=title)
    written = {} if written is None else written
    with current_ticker().phase("evaluate"):
        nll = mean_negative_log_likelihood(
            own.model, own.params, corpus.validation, batch_size=config.evaluation_batch, mesh=mesh
        )
        isotropy = layer_isotropy(own.model, own.params, corpus.test, batch_size=config.evaluation_batch, mesh=mesh)
        written |= decode_all(config, corpus, mesh, own, tick)
        metrics = {"validation/nll": nll, "validation/perplexity": math.exp(nll), "isotropy/last": float(isotropy[-1])}
        metrics |= {f"isotropy/layer_{layer}": float(value) for layer, value in enumerate(isotropy[:-1])}
        samples: dict[str, list[float]] = {}
        for name, texts in written.items():
            found, coherence = measure_texts(config, corpus, mesh, judge, texts)
            metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
            if coherence is not None:
                samples[f"{name}/coherence"] = coherence.tolist()
    return metrics | derived(metrics), samples, own


# ---- decoding --------------------------------------------------------------------------------------------


def decode_all(config: Config, corpus: LanguageModelCorpus, mesh: Mesh, own: LanguageModel, tick: Any) -> Written:
    """What every decoder writes behind every prompt."""
    ids, mask = pad_left([np.asarray(prefix) for prefix in corpus.prefixes], max(map(len, corpus.prefixes)))
    rows = {"input_ids": ids, "attention_mask": mask, "number": np.arange(len(ids), dtype=np.int32)}
    key = np.asarray(jax.random.key_data(jax.random.key(config.seed)))
    programs = {
        False: make_decode(config, own.model, mesh),
        True: make_decode(config, ShiftedDecoder(own.model.config), mesh),
    }
    written: Written = {}
    for name, strategy in strategies(config).items():
        tokens, lengths = map_rows(
            programs[name == "shifted"], (own.params, strategy, key), rows, batch_size=config.evaluation_batch,
            mesh=mesh, tick=tick,
        )  # fmt: skip
        written[name] = [
            [tokens[row, sample, : lengths[row, sample]].tolist() for row in range(len(tokens))]
            for sample in range(tokens.shape[1])
        ]
    return written


# ---- evaluation ------------------------------------------------------------------------------------------


def measure_texts(
    config: Config,
    corpus: LanguageModelCorpus,
    mesh: Mesh,
    judge: LanguageModel | None,
    texts: Sequence[Sequence[Sequence[int]]],
) -> tuple[dict[str, float], Float[np.ndarray, " prompts"] | None]:
    """Metrics of a decoder's continuations, means over its samples; coherence by prompt, where there is a judge."""
    found: list[dict[str, float]] = []
    coherences = []
    for continuations in texts:
        plain = [corpus.tokenizer.decode(ids, skip_special_tokens=True) for ids in continuations]
        values = {"diversity": diversity(plain), "length": mean_length(plain)}
        values |= {f"rep_{n}": repetition(plain, n) for n in (2, 3, 4)}
        if judge is not None:
            coherences.append(judged_coherence(config, corpus, mesh, judge, continuations))
            values |= {"coherence": float(coherences[-1].mean())}
            values |= {"mauve": 100 * judged_mauve(config, corpus, mesh, judge, continuations)}
        found.append(values)
    means = {name: float(np.mean([values[name] for values in found])) for name in found[0]}
    return means, np.mean(coherences, axis=0) if coherences else None


def judged_coherence(
    config: Config,
    corpus: LanguageModelCorpus,
    mesh: Mesh,
    judge: LanguageModel,
    continuations: Sequence[Sequence[int]],
) -> Float[np.ndarray, " prompts"]:
    """Log probability per token of each continuation under the judge, in nats."""
    return continuation_log_probs(
        judge.model,
        judge.params,
        _in_judge_ids(corpus, judge, corpus.prefixes, first=True),
        _in_judge_ids(corpus, judge, continuations),
        batch_size=config.evaluation_batch,
        mesh=mesh,
        max_length=_judge_length(judge, config.data.prefix_tokens + config.data.new_tokens),
    )


def judged_mauve(
    config: Config,
    corpus: LanguageModelCorpus,
    mesh: Mesh,
    judge: LanguageModel,
    continuations: Sequence[Sequence[int]],
) -> float:
    """MAUVE of the continuations against people's, each pair cut to the shorter of the two."""
    pairs = [(a[: len(b)], b[: len(a)]) for a, b in zip(corpus.references, continuations, strict=True)]
    features = [
        last_token_states(
            judge.model, judge.params, _in_judge_ids(corpus, judge, side), batch_size=config.evaluation_batch,
            mesh=mesh, max_length=_judge_length(judge, config.data.new_tokens),
        )
        for side in zip(*pairs, strict=True)
    ]  # fmt: skip
    return mauve(*features)


def _in_judge_ids(
    corpus: LanguageModelCorpus, judge: LanguageModel, sequences: Sequence[Sequence[int]], *, first: bool = False
) -> list[list[int]]:
    """The same texts as the judge reads them; `first` puts its first token before them."""
    if judge.tokenizer is None:
        return [list(ids) for ids in sequences]
    bos = [judge.tokenizer.bos_token_id] if first and judge.tokenizer.bos_token_id is not None else []
    texts = [corpus.tokenizer.decode(ids, skip_special_tokens=True) for ids in sequences]
    return [bos + (judge.tokenizer(text).input_ids or [judge.tokenizer.eos_token_id]) for text in texts]


def _judge_length(judge: LanguageModel, tokens: int) -> int:
    """Room for as many tokens of the corpus: half as much again where the judge has a vocabulary of its own."""
    return tokens if judge.tokenizer is None else min(tokens * 3 // 2 + 1, judge.model.config.context_length)


def derived(metrics: Mapping[str, float]) -> dict[str, float]:
    """Differences that the claims speak of, where their parts were measured."""
    found = {}
    names = {name: metrics.get(f"{name}/diversity", math.nan) for name in ("human", *DECODERS)}
    differences = {
        "contrastive/human_gap": -abs(names["contrastive"] - names["human"]),
        "contrastive/over_greedy": names["contrastive"] - names["greedy"],
        "contrastive/smallest_rise": float(
            np.min([names["low_alpha"] - names["greedy"], names["contrastive"] - names["low_alpha"],
                    names["high_k"] - names["contrastive"]])
        ),
        "shifted/greedy_gap": -abs(names["shifted"] - names["greedy"]),
    }  # fmt: skip
    for name, value in differences.items():
        if not math.isnan(value):
            found[name] = value
    return found


def language_isotropy(config: Config, mesh: Mesh) -> dict[str, float]:
    """Isotropy of other models on texts of their languages: at most 2000 texts of 256 tokens, as in the paper."""
    found = {}
    for name, path, file in (language.split("=") for language in config.languages):
        if not pathlib.Path(file).is_file():
            raise ValueError(f"no file of texts at {file} for the language {name}")
        lines = [line.strip() for line in pathlib.Path(file).read_text(encoding="utf-8").splitlines()]
        tokenizer, model_config = load_tokenizer(path), read_config(path)
        length = min(256, model_config.context_length)
        texts = [tokenizer(line).input_ids[:length] for line in lines if len(line) >= 2][:2000]
        rows = text_rows(texts, length=length, pad_id=tokenizer.pad_token_id)
        model, params = load_pretrained(path, config_overrides={"dtype": config.model.dtype}, sharding=mesh)
        values = layer_isotropy(model, params, rows, batch_size=config.evaluation_batch, mesh=mesh)
        found[f"languages/{name}"] = float(values[-1])
    return found


# ---- report ----------------------------------------------------------------------------------------------

NOTE = (
    "Diversity alone is easily had: coherence is the log probability that another model gives the text. MAUVE is "
    "ours, by its published definition, with features of the judge; compare it within this table only."
)
_SHOWN = ("diversity", "rep_2", "rep_3", "rep_4", "coherence", "mauve", "length")


def write_contrastive_search_report(
    config: Config, corpus: LanguageModelCorpus, results: Results, written: Written, directory: RunDirectory
) -> None:
    """``report.html`` of one run."""
    from jaxcore.reporting import Curves, Headline, Paragraph, Section, Table
    from jaxcore.reporting.run_report import (
        configuration_section,
        training_section,
        verdict_section,
        write_run_report,
    )

    metrics = results.metrics
    decoders = [(name, *(metrics.get(f"{name}/{metric}") for metric in _SHOWN)) for name in written]
    arms = {"this run": ""} | {arm: f"arms/{arm}/" for arm in config.compared}
    models = [(name, *(metrics.get(prefix + metric) for metric in _OF_MODEL)) for name, prefix in arms.items()]
    layers = {name: _layers(metrics, prefix) for name, prefix in arms.items()}
    curves = {name: (np.arange(len(values)), values) for name, values in layers.items()}
    languages = [(name.removeprefix("languages/"), value) for name, value in metrics.items() if "languages/" in name]
    headline = [
        Headline(f"diversity, {name}", f"{metrics[f'{name}/diversity']:.1f}", note)
        for name, note in (("human", "the references"), ("greedy", "in %"), ("contrastive", "in %"))
        if f"{name}/diversity" in metrics
    ]
    headline.append(Headline("isotropy", f"{metrics['isotropy/last']:.2f}", "of the states after the last norm"))
    sections = [
        Section("Data", [Paragraph(corpus.description)]),
        Section("Decoders", [Table(("decoder", *_SHOWN), decoders, caption="Per cent, nats per token, words.")], NOTE),
        Section("Continuations", _continuations(config, corpus, written)),
        Section(
            "Models",
            [
                Table(("model", *_OF_MODEL), models, caption="Likelihood in nats per token on held-out documents."),
                Curves(curves, "layer (0: embeddings, last: after the norm)", "isotropy", caption="Isotropy by layer"),
            ],
        ),
        Section("Languages", [Table(("model", "isotropy"), languages)]) if languages else None,
        verdict_section(
            judge_single_run(CLAIMS, "plain", RunValues(metrics, results.samples)),
            single_run_note("contrastive_search"),
        ),
        training_section(read_metrics(directory.metrics)) if config.num_steps else None,
        configuration_section(config),
    ]
    write_run_report(
        directory.report, results, title=PAPER.title, claim=PAPER.claim, headline=headline, sections=sections
    )


_OF_MODEL = ("validation/nll", "validation/perplexity", "isotropy/last", "greedy/diversity", "contrastive/diversity")


def _layers(metrics: Mapping[str, float], prefix: str) -> list[float]:
    blocks = [name for name in metrics if name.startswith(f"{prefix}isotropy/layer_")]
    return [metrics[f"{prefix}isotropy/layer_{layer}"] for layer in range(len(blocks))] + [
        metrics[f"{prefix}isotropy/last"]
    ]


def _continuations(config: Config, corpus: LanguageModelCorpus, written: Written) -> list[Any]:
    from jaxcore.reporting import Table

    def text(ids: Sequence[int]) -> str:
        return " ".join(corpus.tokenizer.decode(ids, skip_special_tokens=True).split())

    return [
        Table(
            ("decoder", "continuation"),
            [(name, text(samples[0][number])) for name, samples in written.items()],
            caption=f"After: {text(corpus.prefixes[number])}",
        )
        for number in range(min(config.shown_prompts, len(corpus.prefixes)))
    ]


# ---- claims ----------------------------------------------------------------------------------------------


def _arm(name: str) -> Callable[[Config], Config]:
    """An arm alone; only the plain one is judged, and only it writes with all decoders."""
    if name == "plain":
        return lambda config: dataclasses.replace(config, compared=())
    return lambda config: _without_judge(dataclasses.replace(config, **ARMS[name]))


_SOURCE = "contrastive_search.md, small-scale experiment"

CLAIMS = Claims(
    preset="cpu",
    variants={name: _arm(name) for name in ("plain", "anisotropic", "anisotropic_simctg")},
    claims=(
        Claim(
            "more_diverse_than_greedy",
            "contrastive search is far more diverse than greedy decoding (per cent)",
            _SOURCE,
            Measured("plain", "contrastive/diversity"),
            Measured("plain", "greedy/diversity"),
            margin=50.0,
            worst=50.0,
        ),
        Claim(
            "as_diverse_as_people",
            "its diversity is within 10 of that of people's continuations (per cent)",
            _SOURCE,
            Measured("plain", "contrastive/human_gap"),
            margin=-10.0,
            worst=-10.0,
        ),
        Claim(
            "more_coherent_than_nucleus",
            "another model finds its texts likelier than nucleus samples, by 0.7 nats a token (over prompts)",
            _SOURCE,
            Measured("plain", "contrastive/coherence"),
            Measured("plain", "nucleus/coherence"),
            margin=0.7,
            alpha=0.025,
            paired_samples=True,
        ),
        Claim(
            "needs_isotropy",
            "with one vector added to all states it is no more diverse than greedy decoding (within 5)",
            _SOURCE,
            Measured("plain", "shifted/greedy_gap"),
            margin=-5.0,
            worst=-5.0,
        ),
        Claim(
            "rises_with_alpha_and_k",
            "diversity rises from alpha 0 to 0.4 to 0.6, and with k",
            _SOURCE,
            Measured("plain", "contrastive/smallest_rise"),
            margin=1e-9,
            worst=1e-9,
        ),
        Claim(
            "isotropic_by_itself",
            "a model trained on likelihood alone is isotropic (above 0.5)",
            _SOURCE,
            Measured("plain", "isotropy/last"),
            margin=0.5,
            worst=0.5,
        ),
        Claim(
            "simctg_is_more_isotropic",
            "SimCTG makes an anisotropic model more isotropic",
            _SOURCE,
            Measured("anisotropic_simctg", "isotropy/last"),
            Measured("anisotropic", "isotropy/last"),
            margin=0.03,
            worst=0.03,
        ),
        Claim(
            "simctg_is_more_diverse",
            "and with that contrastive search more diverse (per cent)",
            _SOURCE,
            Measured("anisotropic_simctg", "contrastive/diversity"),
            Measured("anisotropic", "contrastive/diversity"),
            margin=3.0,
            worst=3.0,
        ),
        Claim(
            "simctg_costs_no_likelihood",
            "at no more than 0.03 nats a token",
            _SOURCE,
            Measured("anisotropic", "validation/nll"),
            Measured("anisotropic_simctg", "validation/nll"),
            margin=-0.03,
            worst=-0.03,
        ),
    ),
)
