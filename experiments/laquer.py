"""LAQuer: localized attribution queries in content-grounded generation (Hirsch et al. 2025).

What the paper claims. A reader highlights any part of a generated text and gets the parts of the sources that support
it. Two steps make this of the sentence-level attribution that a generator gives: rewrite the highlight into a claim
that stands by itself, then locate source spans for the claim among what the generator attributed. That leaves far less
to read than whole sentences do, and follows what was highlighted.

How it is shown here. Locating works on the states of tokens: source tokens whose cosine with some token of the query
exceeds a threshold, in runs. States are those of hashed words (no training, the default), of an encoder, or of a causal
language model that reads sources and claim; prompting a language model for quotations is the other method. The sets of
queries: a generated world in which only the sentence around a highlight says who "she" is (the whole pipeline,
rewriting by rule); ten highlights on three public documents; with ``--data.path`` the published files: 1,458 highlights
that people aligned with news (SPARK), and generated answers with supporting passages. In SPARK the candidates are the
sentences that people aligned with the whole output sentence: an oracle, so its numbers say nothing of a whole system.
With ``--data.lfqa True`` a pretrained model answers the published long-form questions from their pages, with
``--data.generations`` it reads answers that were written elsewhere; highlights are then simulated from the facts that
it finds in them, and nobody has aligned them: they are judged by length, coverage and, with ``--nli-model``, AutoAIS.

What is not possible offline: the paper's tables need GPT-4o and an 11B entailment model, and are not reproduced. The
recipe of the paper's internals (layers, thresholds) is not public; this one is laquer.md's reconstruction. A language
model that is trained here is trained on the sources alone, as a stand-in for a real one: ``--pretrained``.

Read top to bottom: configuration, presets, tasks, internals, steps, attribution, measurements, run, report, claims.
"""

import collections
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.sharding import Mesh

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
from jaxcore.attribution.decontextualisation import Claim as Rewritten
from jaxcore.attribution.decontextualisation import Highlighted, decontextualise
from jaxcore.attribution.quoted_sources import (
    QuotationRequest,
    QuotedAttribution,
    attribute_by_quotation,
    candidate_texts,
)
from jaxcore.attribution.text_spans import Offsets, Span, num_characters
from jaxcore.data import load_tokenizer, pad_rows, train_tokenizer
from jaxcore.data.grounded_answers import (
    GroundedAnswer,
    answer_queries,
    read_grounded_answers,
    with_output,
    write_answers,
)
from jaxcore.data.grounded_example import grounded_example
from jaxcore.data.grounded_texts import GroundedText, read_lfqa, read_mds
from jaxcore.data.highlight_queries import HighlightQuery
from jaxcore.data.pronoun_world import PronounWorldConfig, pronoun_world, quote_most_shared, rewrite_pronoun
from jaxcore.data.span_alignments import read_granular_statements, read_spark_alignments, spark_queries
from jaxcore.distributed import MeshConfig, current_ticker
from jaxcore.evaluation import Claim, Claims, Measured, RunValues, judge_single_run
from jaxcore.evaluation.entailment import EntailmentModel
from jaxcore.evaluation.finished_items import FinishedLog
from jaxcore.evaluation.query_attribution import Attributed, entailment_metrics, entailment_pairs, measure
from jaxcore.evaluation.released_attribution import released_agreement
from jaxcore.evaluation.row_map import Tick
from jaxcore.evaluation.span_attribution import paired_gain
from jaxcore.evaluation.span_localiser import (
    LocaliserConfig,
    Located,
    Request,
    decoder_localiser_step,
    localise_texts,
    localise_with_decoder,
    localiser_step,
)
from jaxcore.evaluation.token_states import EncoderReader, HashedWordReader, remembered
from jaxcore.generation.sampling import GREEDY, Sampling
from jaxcore.generation.text_generators import TextGenerator, model_generator, rule_generator
from jaxcore.models import Decoder, DecoderConfig, load_pretrained
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

PAPER = Paper(
    title="LAQuer: localized attribution queries in content-grounded generation",
    year=2025,
    claim="Source spans for any highlighted part of an output: far shorter than attributed sentences, and about it.",
    needs="nothing; human alignments: --data.path; gpu, pod and --data.lfqa True: a --pretrained causal language model",
)


# ---- configuration ---------------------------------------------------------------------------------------

Internals = Literal["hash", "encoder", "decoder"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Queries."""

    path: str = ""
    """Folder of the published files (mds_sents_separation.json, spark_manual_alignments.csv and, where they are there,
    verifiability_granular_*.jsonl); empty: the generated world and the embedded example alone."""
    lfqa: bool = False
    """Also let the pretrained model write an answer from the pages of each long-form question in `path`, lfqa_test.json
    (stage 1, end to end: every source is a candidate). The file has the pages without the questions."""
    generations: str = ""
    """Also answers that a generator wrote, with its attribution: JSON Lines of the published form, see
    `read_grounded_answers`; lines without documents have those of lfqa_test.json in `path`, by their unique_id."""
    facts_per_output: int = 10
    """Most simulated highlights of an answer."""
    released: str = ""
    """Folder `results/test` of the published code: its example runs are computed again."""
    world: PronounWorldConfig = dataclasses.field(default_factory=PronounWorldConfig)
    """The generated world."""
    most_queries: int = 0
    """Most queries of each published file (answers of `lfqa`, `generations`), the first ones; 0 = all."""
    open_queries: int = 449
    """Highlights, the first ones, that are also searched for without the generator's attribution."""

    def __post_init__(self) -> None:
        if self.most_queries < 0 or min(self.open_queries, self.facts_per_output) < 1:
            raise ValueError(
                "most_queries must be >= 0, open_queries >= 1 and facts_per_output >= 1: got "
                f"{self.most_queries}, {self.open_queries}, {self.facts_per_output}"
            )
        if self.lfqa and not self.path:
            raise ValueError("data.lfqa needs --data.path, the folder of lfqa_test.json")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    preset: str = "cpu"
    """The preset these fields started from."""
    seed: int = 0
    """Of hashed words, the world, the language model and prompts."""
    internals: tuple[Internals, ...] = ("hash",)
    """Whose states tell what supports a claim; each is measured by itself."""
    localiser: LocaliserConfig = dataclasses.field(default_factory=LocaliserConfig)
    """From states to spans."""
    thresholds: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Encoders and decoders take the best of these on a fifth of the topics, which are not evaluated then."""
    hash_dim: int = 64
    """Of hashed words."""
    centre: bool = True
    """Subtract the mean state of a row's sources from an encoder's or decoder's states, which all look alike."""
    encoder: str = ""
    """Folder or hub id of an encoder."""
    pretrained: str = ""
    """Folder or hub id of a causal language model: its states, and with `prompting` its answers."""
    layers: tuple[int, ...] = (1,)
    """Layers of the decoder to choose among, with the thresholds; the first is what `build` compiles."""
    prompting: bool = True
    """Also ask for quotations: the pretrained model, or in the generated world a rule in its place."""
    max_prompted: int = 200
    """Most queries of a set that are prompted."""
    attempts: int = 5
    """Answers asked for before everything a generator attributed is taken."""
    temperature: float = 1.0
    """Of answers; 0: the likeliest tokens, which all attempts have in common."""
    max_new_tokens: int = 256
    """Of an answer."""
    prompt_batch: int = 8
    """Prompts of a program run, padded on the left to one of few widths."""
    prompts_at_once: int = 32
    """Queries whose answers are put on disk together."""
    queries_at_once: int = 128
    """Queries whose spans, and pairs whose entailment, are put on disk together."""
    nli_model: str = ""
    """Folder or hub id of a classifier of pairs with a class 'entailment', for AutoAIS; empty: it is not measured."""
    nli_length: int = 512
    """Tokens of a pair; the end of a longer one's premise is left out (``premise_cut``), never of its hypothesis."""
    num_steps: int = 0
    """Updates of a decoder that is trained here, on the sources."""
    batch_size: int = 32
    """Rows of one of its batches."""
    vocab_size: int = 1024
    """Of its byte-pair tokenizer."""
    model: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    """Its sizes."""
    max_length: int = 1024
    """Tokens of a row that the decoder reads: sources, then the claim."""
    query_length: int = 64
    """Query tokens of a compiled row."""
    evaluation_rows: int = 16
    """Rows of a compiled batch."""
    batch_tokens: int = 16384
    """Source tokens of a batch on each device."""
    resamples: int = 2000
    """Of bootstrap intervals, over topics."""
    shown: int = 8
    """Examples in the report."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """Queries."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """Optimiser and schedule of the decoder."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    """Checkpoints and logging."""

    def __post_init__(self) -> None:
        unknown = set(self.internals) - {"hash", "encoder", "decoder"}
        if unknown or not self.internals:
            raise ValueError(f"internals must be some of hash, encoder, decoder: got {self.internals}")
        if "encoder" in self.internals and not self.encoder:
            raise ValueError("internals 'encoder' needs --encoder, a folder or hub id")
        for name in (
            "attempts", "max_length", "query_length", "evaluation_rows", "batch_tokens", "prompt_batch",
            "prompts_at_once", "queries_at_once", "nli_length",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1: got {getattr(self, name)}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0: got {self.temperature}")
        if (self.data.lfqa or self.data.generations) and not (self.pretrained and self.prompting):
            raise ValueError(
                "data.lfqa and data.generations need a model that is prompted: give --pretrained, a folder or hub id"
            )
        if self.num_steps < 0 or not self.thresholds or not self.layers:
            raise ValueError(
                "num_steps must be >= 0 and thresholds and layers not empty: got "
                f"{self.num_steps}, {self.thresholds}, {self.layers}"
            )
        if self.num_steps and self.pretrained:
            raise ValueError("a pretrained model is not trained here: leave num_steps at 0")
        if not self.pretrained and max(self.layers) > self.model.num_layers:
            raise ValueError(f"the decoder has layers 1 to {self.model.num_layers}: got layers {self.layers}")


_TINY = DecoderConfig(
    vocab_size=1024, num_layers=2, hidden_size=64, num_heads=4, num_key_value_heads=4, head_size=16,
    intermediate_size=256, max_positions=1024, eos_token_ids=(),
)  # fmt: skip
_LLAMA = DecoderConfig(
    architecture="llama", vocab_size=128_256, num_layers=32, hidden_size=4096, num_heads=32, num_key_value_heads=8,
    head_size=128, intermediate_size=14_336, max_positions=131_072, positions="rotary", rope_theta=500_000.0,
    norm="rms", activation="silu", gated=True, qkv_bias=False, output_bias=False, mlp_bias=False, tied_head=False,
    dtype="bfloat16", attention_implementation="fused",
)  # fmt: skip

PRESETS: Mapping[str, Config] = {
    "smoke": Config(
        preset="smoke",
        internals=("hash", "decoder"),
        num_steps=6,
        batch_size=8,
        vocab_size=512,
        model=dataclasses.replace(_TINY, vocab_size=512, num_layers=1, max_positions=256),
        max_length=256,
        thresholds=(0.5, 0.8),
        evaluation_rows=8,
        resamples=100,
        shown=2,
        data=DataConfig(world=PronounWorldConfig(num_texts=24)),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=1),
        loop=LoopConfig(checkpoint_every=3),
    ),
    "cpu": Config(preset="cpu", model=_TINY, layers=(1, 2), loop=LoopConfig(checkpoint_every=0)),
    # A small instruction model on the published files: --data.path; any folder or hub id of the families in
    # jaxcore.models. Long sources: those that do not fit into a row are left out, and said so.
    "gpu": Config(
        preset="gpu",
        internals=("hash", "decoder"),
        pretrained="Qwen/Qwen2.5-1.5B-Instruct",
        model=dataclasses.replace(
            _LLAMA, architecture="qwen2", vocab_size=151_936, num_layers=28, hidden_size=1536, num_heads=12,
            num_key_value_heads=2, intermediate_size=8960, rope_theta=1_000_000.0, qkv_bias=True, tied_head=True,
            max_positions=32_768,
        ),
        layers=(14, 10, 18, 22),
        max_length=4096,
        evaluation_rows=8,
        batch_tokens=32_768,
    ),
    # The paper's scale: an 8B instruction model over whole clusters and pages, a row of 8,192 tokens a chip.
    "pod": Config(
        preset="pod",
        internals=("hash", "decoder"),
        pretrained="meta-llama/Llama-3.1-8B-Instruct",
        model=_LLAMA,
        layers=(16, 12, 20, 24),
        max_length=8192,
        query_length=128,
        batch_size=256,
        evaluation_rows=256,
        batch_tokens=8192,
        prompt_batch=256,
        prompts_at_once=256,
        mesh=MeshConfig(data=-1, fsdp=16),
    ),
}  # fmt: skip


# ---- tasks -----------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A set of queries with people's (or the generator's) spans."""

    name: str
    queries: list[HighlightQuery]
    rewrite: TextGenerator | None
    """Rewrites highlights (step A); None: the host's language model does, where it has one to prompt."""
    quote: TextGenerator | None
    """Quotes sources; None as above."""


def open_tasks(config: Config) -> list[Task]:
    """The queries of a configuration.

    Raises:
        ValueError: files that are missing or of another form.
    """
    tasks = [
        Task(
            "world",
            pronoun_world(config.data.world, seed=config.seed),
            rule_generator(rewrite_pronoun),
            rule_generator(quote_most_shared),
        ),
        Task("example", grounded_example(), None, None),
    ]
    if config.data.path:
        folder = pathlib.Path(config.data.path).expanduser()
        texts = read_mds(folder / "mds_sents_separation.json")
        queries = spark_queries(read_spark_alignments(folder / "spark_manual_alignments.csv", texts), texts)
        tasks.append(Task("spark", _first_sentences(queries, config.data.most_queries), None, None))
        granular = folder / "verifiability_granular_test.jsonl"
        if granular.is_file():
            answers = read_granular_statements(granular)
            tasks.append(Task("granular", answers[: config.data.most_queries or len(answers)], None, None))
    return tasks


class GivenAnswers(NamedTuple):
    """Sources that outputs were, or are to be, written from."""

    name: str
    answers: list[GroundedAnswer]
    written: bool
    """False: a model writes the outputs."""


def open_answers(config: Config) -> list[GivenAnswers]:
    """What becomes a task once a model has found the facts of its outputs.

    Raises:
        ValueError: files that are missing or of another form.
    """
    data, found = config.data, []
    pages: dict[str, GroundedText] = {}
    if data.path and (data.lfqa or data.generations):
        file = pathlib.Path(data.path).expanduser() / "lfqa_test.json"
        pages = read_lfqa(file) if data.lfqa or file.is_file() else {}
    if data.lfqa:
        texts = list(pages.values())[: data.most_queries or len(pages)]
        found.append(GivenAnswers("lfqa", [GroundedAnswer(text, None) for text in texts], written=False))
    if data.generations:
        answers = read_grounded_answers(data.generations, pages)
        found.append(GivenAnswers("generations", answers[: data.most_queries or len(answers)], written=True))
    return found


def answer_task(config: Config, given: GivenAnswers, generate: TextGenerator, log: FinishedLog) -> Task:
    """The outputs, written where they are not, with the simulated highlights of their facts as queries.

    Raises:
        ValueError: the model wrote no output, or found no fact that is in one.
    """
    answers = given.answers
    if not given.written:
        outputs = log.map(
            f"{given.name}/outputs", lambda group: write_answers(group, generate, seed=config.seed),
            [answer.text for answer in answers], group_size=config.prompts_at_once,
        )  # fmt: skip
        pairs = zip(answers, outputs, strict=True)
        answers = [answer._replace(text=with_output(answer.text, output)) for answer, output in pairs if output]
        if not answers:
            raise ValueError(f"the model wrote no output for any of the {len(outputs)} texts of {given.name}")

    def highlights(group: Sequence[GroundedAnswer]) -> list[Any]:
        found = answer_queries(group, generate, most=config.data.facts_per_output, seed=config.seed)
        return [[[q.highlight, q.sentence, q.candidates] for q in queries] for queries in found]

    found = log.map(f"{given.name}/highlights", highlights, answers, group_size=config.prompts_at_once)
    queries = [
        HighlightQuery(answer.text, _offsets(highlight), _offsets([sentence])[0], _spans(candidates))
        for answer, rows in zip(answers, found, strict=True)
        for highlight, sentence, candidates in rows
    ]
    if not queries:
        raise ValueError(f"the model found no fact in the words of any of the {len(answers)} outputs of {given.name}")
    return Task(given.name, queries, None, None)


def _offsets(pairs: Any) -> tuple[Offsets, ...]:
    return tuple((int(start), int(end)) for start, end in pairs)


def _spans(triples: Any) -> tuple[Span, ...]:
    return tuple(Span(*triple) for triple in triples)


def _first_sentences(queries: Sequence[HighlightQuery], most: int) -> list[HighlightQuery]:
    """The first queries, at most `most` (0 = all), without those of a sentence that would be cut."""
    kept = list(queries[: most or len(queries)])
    if len(kept) < len(queries):
        cut = queries[len(kept)]
        while kept and (kept[-1].text.name, kept[-1].sentence) == (cut.text.name, cut.sentence):
            kept.pop()
    if not kept:
        raise ValueError(f"data.most_queries {most} holds no whole sentence: give more")
    return kept


def topics_of(queries: Sequence[HighlightQuery]) -> list[str]:
    """The group each query is resampled with."""
    return [query.text.name for query in queries]


# ---- internals -------------------------------------------------------------------------------------------

Locate = Callable[[Sequence[Request], float, Tick], list[Located]]
"""Requests and threshold to spans; ticks after each batch."""


def locate_all(
    log: FinishedLog, name: str, locate: Locate, requests: Sequence[Request], threshold: float, group_size: int
) -> list[Located]:
    """Spans of every request, on disk group by group."""
    return log.map(
        name,
        lambda group: locate(group, threshold, log.tick),
        requests,
        identity=repr([threshold, *((request.query, request.query_spans, request.sources) for request in requests)]),
        group_size=group_size,
        to_json=list,
        from_json=lambda row: Located(_spans(row[0]), row[1], row[2]),
    )


class Host(NamedTuple):
    """A model whose states are looked at: how to locate with each of its layers, and whether to choose on held-out
    topics."""

    layers: Mapping[int, Locate]
    windows: Locate | None
    tuned: bool
    params: Any
    """What the run's digest is of."""
    generate: TextGenerator | None = None


def hash_host(config: Config, mesh: Mesh, tasks: Sequence[Task]) -> Host:
    """Hashed words; documents of all tasks count words."""
    documents = {document.text for task in tasks for query in task.queries for document in query.text.documents}
    read = HashedWordReader(sorted(documents), seed=config.seed, dim=config.hash_dim, mesh=mesh)
    return _reading_host(config, config.localiser, mesh, read, jax.random.key_data(jax.random.key(config.seed)))


def encoder_host(config: Config, mesh: Mesh) -> Host:
    """A pretrained encoder that reads sources and queries one by one."""
    model, params = load_pretrained(config.encoder, sharding=mesh)
    read = EncoderReader(model, params, load_tokenizer(config.encoder), mesh=mesh, max_length=256)
    return _reading_host(config, _centred(config), mesh, read, params)._replace(tuned=True)


def _reading_host(config: Config, localiser: LocaliserConfig, mesh: Mesh, read: Any, params: Any) -> Host:
    reader = remembered(read)

    def located_by(chosen: LocaliserConfig) -> Locate:
        step = localiser_step(chosen, mesh)
        return lambda requests, threshold, tick: localise_texts(
            requests, reader, step, threshold=threshold, mesh=mesh, batch_tokens=config.batch_tokens, tick=tick
        )

    windows = located_by(dataclasses.replace(localiser, method="windows"))
    return Host({0: located_by(localiser)}, windows, False, params)


class LanguageModel(NamedTuple):
    """A pretrained causal language model: read once, for its states and its answers."""

    model: Decoder
    params: Any
    tokenizer: Any
    generate: TextGenerator


def open_language_model(config: Config, mesh: Mesh) -> LanguageModel:
    """The pretrained model on its shards; prompts are answered in batches over the same mesh."""
    tokenizer = load_tokenizer(config.pretrained)
    model, params = load_pretrained(config.pretrained, config_overrides=_overrides(config), sharding=mesh)
    params = meta.unbox(params)
    strategy = Sampling(temperature=config.temperature) if config.temperature else GREEDY
    generate = model_generator(
        model, params, tokenizer, max_new_tokens=config.max_new_tokens, strategy=strategy,
        batch_size=config.prompt_batch, mesh=mesh,
    )  # fmt: skip
    return LanguageModel(model, params, tokenizer, generate)


def decoder_host(
    config: Config, mesh: Mesh, tasks: Sequence[Task], directory: RunDirectory, tick: Any,
    language_model: LanguageModel | None,
) -> Host:  # fmt: skip
    """A causal language model that reads sources, then the query: pretrained, or trained here on the sources."""
    generate: TextGenerator | None = None
    if language_model is not None:
        model, params, tokenizer, generate = language_model
    else:
        texts = source_texts(tasks)
        tokenizer = train_tokenizer(texts, vocab_size=config.vocab_size, kind="bpe")
        model = make_model(config)
        params = fit_language_model(
            model, training_rows(config, tokenizer, texts), config=_language_model(config), seed=config.seed, mesh=mesh,
            run=directory, title=f"laquer {config.preset}", tick=tick,
        )  # fmt: skip
    bos = model.config.bos_token_id if config.pretrained else tokenizer.cls_token_id
    params = meta.unbox(params)

    def located_by(layer: int) -> Locate:
        step = decoder_localiser_step(_centred(config), model, mesh, layer=layer)
        return lambda requests, threshold, tick: localise_with_decoder(
            requests, params, tokenizer, step, threshold=threshold, max_length=config.max_length, mesh=mesh,
            bos_token_id=bos, batch_tokens=config.batch_tokens, tick=tick,
        )  # fmt: skip

    return Host({layer: located_by(layer) for layer in config.layers}, None, True, params, generate)


def _centred(config: Config) -> LocaliserConfig:
    return dataclasses.replace(config.localiser, centre=config.centre)


def make_model(config: Config) -> Decoder:
    """The decoder that is trained here, or the abstract one of a pretrained model's sizes."""
    if config.pretrained:
        return Decoder(config.model)
    return Decoder(dataclasses.replace(config.model, vocab_size=config.vocab_size))


def _overrides(config: Config) -> dict[str, Any]:
    attention = "explicit" if config.localiser.method == "attention" else config.model.attention_implementation
    return {"dtype": config.model.dtype, "attention_implementation": attention}


def _language_model(config: Config) -> LanguageModelConfig:
    return LanguageModelConfig(
        num_steps=config.num_steps, batch_size=config.batch_size, optimizer=config.optimizer, loop=config.loop
    )


def source_texts(tasks: Sequence[Task]) -> list[str]:
    """The documents of all tasks, each once."""
    documents = (document for task in tasks for query in task.queries for document in query.text.documents)
    return list(dict.fromkeys(document.text for document in documents))


def training_rows(config: Config, tokenizer: Any, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The documents in rows of 128 tokens; the last row of each is padded."""
    length = min(128, config.max_length)
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    rows = [ids[start : start + length] for ids in encoded for start in range(0, len(ids), length)]
    rows = [row for row in rows if len(row) > 1]
    rows += rows[: max(0, config.batch_size - len(rows))] * config.batch_size  # as many as a batch takes
    ids, lengths = pad_rows(rows, length=length, pad_id=tokenizer.pad_token_id)
    return {"input_ids": ids, "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int32)}


# ---- steps -----------------------------------------------------------------------------------------------


def build(config: Config, devices: Devices | None = None) -> Program:
    """Every jitted step with abstract inputs; see `experiments`.

    "train" fits the decoder to sources, "locate" finds spans in given states, "locate_with_decoder" reads rows first.
    """
    mesh = checked_mesh(config.mesh, devices, config.batch_size, config.evaluation_rows)
    model = make_model(config)
    optimizer = language_model_optimizer(config.optimizer, config.num_steps)
    language_model = _language_model(config)
    state = abstract_state(language_model_initializer(model), optimizer, mesh)
    train = make_train_step(language_model_gradients(model, language_model.objective), optimizer, state, mesh)
    row = (min(128, config.max_length),)
    training = abstract_rows(mesh, config.batch_size, {"input_ids": row, "attention_mask": row})
    rows, length, asked = config.evaluation_rows, config.max_length, config.query_length
    threshold = jax.ShapeDtypeStruct((), jnp.float32)
    kinds = {"query_mask": jnp.bool_, "output_mask": jnp.bool_, "source": jnp.float32, "query": jnp.float32}
    reading = {"input_ids": (length,), "attention_mask": (length,), "pieces": (length,), "output_mask": (length,)}
    reading |= {"query_positions": (asked,), "query_mask": (asked,)}
    located = {"source": (length, config.hash_dim), "pieces": (length,)}
    located |= {"query": (asked, config.hash_dim), "query_mask": (asked,)}
    texts = dataclasses.replace(config.localiser, method="tokens")
    return Program(
        mesh=mesh,
        steps={
            "train": Step(train, (state, training), config.batch_size),
            "locate": Step(localiser_step(texts, mesh), (threshold, abstract_rows(mesh, rows, located, kinds)), rows),
            "locate_with_decoder": Step(
                decoder_localiser_step(_centred(config), model, mesh, layer=config.layers[0]),
                ((meta.unbox(state.params), threshold), abstract_rows(mesh, rows, reading, kinds)),
                rows,
            ),
        },
    )


# ---- attribution -----------------------------------------------------------------------------------------


def request_of(
    query: HighlightQuery, spans: Sequence[Offsets], sources: Sequence[Span], *, context: Offsets | None = None
) -> Request:
    """Parts of the output as a query, read in their sentence."""
    start, end = context or query.sentence
    inside = tuple((max(a, start) - start, min(b, end) - start) for a, b in spans if a < end and b > start)
    return Request(tuple(sources), query.text.texts(), query.text.output[start:end], inside, query.text.question)


def claim_request(query: HighlightQuery, claim: Rewritten, sources: Sequence[Span]) -> Request:
    """A rewritten highlight as a query: what step A gives is what step B looks for."""
    return Request(tuple(sources), query.text.texts(), claim.text, ((0, len(claim.text)),), query.text.question)


def other_highlights(queries: Sequence[HighlightQuery]) -> list[tuple[Offsets, ...] | None]:
    """For each query another highlight of its sentence: the next one, in a ring. None for the only one."""
    sentences: dict[tuple[str, Offsets], list[int]] = collections.defaultdict(list)
    for number, query in enumerate(queries):
        sentences[query.text.name, query.sentence].append(number)
    others: list[tuple[Offsets, ...] | None] = [None] * len(queries)
    for numbers in sentences.values():
        for place, number in enumerate(numbers):
            if len(numbers) > 1:
                others[number] = queries[numbers[(place + 1) % len(numbers)]].highlight
    return others


def rewritten_claims(
    config: Config, queries: Sequence[HighlightQuery], generate: TextGenerator, log: FinishedLog, name: str
) -> list[Rewritten]:
    """Step A for every query."""
    return log.map(
        name,
        lambda group: decontextualise(group, generate, seed=_first_seed(config), attempts=config.attempts),
        [Highlighted(query.highlight, query.sentence, query.text.output) for query in queries],
        group_size=config.prompts_at_once,
        to_json=lambda claim: [claim.text, claim.spans, claim.explanation, claim.rewritten],
        from_json=lambda row: Rewritten(row[0], _offsets(row[1]), row[2], row[3]),
    )


def _first_seed(config: Config) -> int:
    """Of the attempts of a run, which are not those of the next seed."""
    return config.seed * config.attempts


def spans_of(located: Sequence[Located]) -> Attributed:
    """The located spans of each query."""
    return [found.spans for found in located]


# ---- measurements ----------------------------------------------------------------------------------------


class Evaluated(NamedTuple):
    """What one host gives for one task: metrics by name, and attributions by method."""

    metrics: dict[str, float]
    attributed: dict[str, Attributed]
    """Of the first queries where a method was not asked about all."""
    scores: dict[str, np.ndarray]
    queries: list[HighlightQuery]


def evaluate_task(
    config: Config,
    task: Task,
    host: Host,
    internals: str,
    *,
    log: FinishedLog | None = None,
    entailment: EntailmentModel | None = None,
) -> Evaluated:
    """All methods on one task with one host; nothing is kept without a log."""
    log = log or FinishedLog()
    place = f"{task.name}/{internals}"
    queries, held_out = _split(task.queries) if host.tuned and task.name == "spark" else (task.queries, [])
    layer, threshold, chosen = _choose(config, host, held_out, log, place)
    attributed: dict[str, Attributed] = {"sentences": [query.candidates for query in queries]}

    def add(name: str, requests: list[Request], locate: Locate = host.layers[layer]) -> list[Located]:
        located = locate_all(log, f"{place}/{name}", locate, requests, threshold, config.queries_at_once)
        attributed[name] = spans_of(located)
        return located

    raw = add("highlight", [request_of(query, query.highlight, query.candidates) for query in queries])
    metrics: dict[str, float] = {**chosen, "highlight/cut_short": _cut_short(raw)}
    claims: list[Rewritten] = []
    rewrite, quote = (given or (host.generate if config.prompting else None) for given in (task.rewrite, task.quote))
    if rewrite is not None:
        claims = rewritten_claims(config, queries, rewrite, log, f"{place}/claims")
        found = add("claim", [claim_request(q, c, q.candidates) for q, c in zip(queries, claims, strict=True)])
        if all(query.gold for query in queries):
            metrics |= _top_source(queries, raw, found)
    if task.name == "granular":
        metrics["best_passage"] = _accuracy(queries, raw)
        metrics["best_passage_chance"] = float(np.mean([1 / len(query.candidates) for query in queries]))
    others = other_highlights(queries)
    if all(other is not None for other in others):
        add("whole_sentence", [request_of(query, (query.sentence,), query.candidates) for query in queries])
        wrong = [request_of(q, other or (), q.candidates) for q, other in zip(queries, others, strict=True)]
        add("wrong_highlight", wrong)
        if host.windows is not None:
            add("windows", [request_of(q, q.highlight, q.candidates) for q in queries], host.windows)
    if task.name in ("spark", "example"):
        some = queries[: config.data.open_queries]
        everywhere = add("no_metadata", [request_of(q, q.highlight, q.text.sentences()) for q in some])
        metrics["no_metadata/cut_short"] = _cut_short(everywhere)
    if config.prompting and quote is not None:
        metrics |= _prompted(config, queries, claims, quote, attributed, log, f"{place}/quoted")
    scores = {}
    for name, spans in attributed.items():
        scored = measure(queries[: len(spans)], spans)
        scores[name] = scored.f1
        metrics |= {f"{name}/{name_}": value for name_, value in scored.metrics.items()}
    metrics |= _gains(config, queries, scores, metrics)
    if entailment is not None:
        metrics |= _entailed(config, queries, claims, attributed, entailment, log, f"{place}/entailment")
    return Evaluated({f"{place}/{k}": v for k, v in metrics.items()}, attributed, scores, queries)


def _split(queries: Sequence[HighlightQuery]) -> tuple[list[HighlightQuery], list[HighlightQuery]]:
    """Evaluated and held out: every fifth topic."""
    topics = {name: number for number, name in enumerate(dict.fromkeys(topics_of(queries)))}
    held = [query for query in queries if topics[query.text.name] % 5 == 0]
    return [query for query in queries if topics[query.text.name] % 5], held


def _choose(
    config: Config, host: Host, held_out: Sequence[HighlightQuery], log: FinishedLog, place: str
) -> tuple[int, float, dict[str, float]]:
    """Layer and threshold of the highest F1 on held-out topics; the configured ones where there are none."""
    first = next(iter(host.layers))
    if not held_out:
        return first, config.localiser.threshold, {}
    requests = [request_of(query, query.highlight, query.candidates) for query in held_out]
    sweep = {}
    for layer, locate in host.layers.items():
        for threshold in config.thresholds:
            name = f"{place}/sweep/layer_{layer}_threshold_{threshold:g}"
            located = locate_all(log, name, locate, requests, threshold, config.queries_at_once)
            sweep[layer, threshold] = measure(held_out, spans_of(located)).metrics["f1"]
    layer, threshold = max(sweep, key=lambda pair: sweep[pair])
    named = {f"sweep/layer_{layer}/threshold_{threshold:g}": value for (layer, threshold), value in sweep.items()}
    return layer, threshold, {"layer": float(layer), "threshold": threshold, **named}


def _accuracy(queries: Sequence[HighlightQuery], located: Sequence[Located]) -> float:
    """How often the source that has most of the query is the gold one."""
    pairs = zip(queries, located, strict=True)
    return float(np.mean([found.best_source >= 0 and q.candidates[found.best_source] in q.gold for q, found in pairs]))


def _cut_short(located: Sequence[Located]) -> float:
    """Share of queries whose sources a decoder's row had no room for."""
    return float(np.mean([found.left_out > 0 for found in located]))


def _top_source(
    queries: Sequence[HighlightQuery], raw: Sequence[Located], claims: Sequence[Located]
) -> dict[str, float]:
    before, after = _accuracy(queries, raw), _accuracy(queries, claims)
    return {"best_source/highlight": before, "best_source/claim": after, "best_source/gain": after - before}


def _gains(
    config: Config, queries: Sequence[HighlightQuery], scores: Mapping[str, np.ndarray], metrics: Mapping[str, float]
) -> dict[str, float]:
    """F1 of the highlight's spans over each other method's, with 95 % intervals over topics; and its length."""
    found = {
        "length_saving": 1 - metrics["highlight/characters"] / max(metrics["sentences/characters"], 1.0),
    }
    if not len(scores["highlight"]):
        return found
    if "no_metadata" in scores:
        within = float(np.mean(scores["highlight"][: len(scores["no_metadata"])]))
        found["no_metadata/f1_within_candidates"] = within
        found["no_metadata/loss"] = 1 - metrics["no_metadata/f1"] / max(within, 1e-9)
    topics = topics_of(queries)
    for other in ("sentences", "whole_sentence", "wrong_highlight"):
        if other not in scores:
            continue
        found[f"gain/{other}"] = float(np.mean(scores["highlight"] - scores[other]))
        if len(set(topics)) > 1:
            interval = paired_gain(
                scores["highlight"], scores[other], topics, resamples=config.resamples, rng=config.seed
            )
            found |= {f"gain_low/{other}": interval.low, f"gain_high/{other}": interval.high}
    return found


def _prompted(
    config: Config,
    queries: Sequence[HighlightQuery],
    claims: Sequence[Rewritten],
    generate: TextGenerator,
    attributed: dict[str, Attributed],
    log: FinishedLog,
    name: str,
) -> dict[str, float]:
    """Quotations asked for: how often none could be placed, and the length without those."""
    requests = [
        QuotationRequest(
            claims[number].text if claims else query.words(),
            candidate_texts(query.candidates, query.text.texts()),
            query.text.question,
        )
        for number, query in enumerate(queries[: config.max_prompted])
    ]
    found = log.map(
        name,
        lambda group: attribute_by_quotation(group, generate, seed=_first_seed(config), attempts=config.attempts),
        requests,
        group_size=config.prompts_at_once,
        to_json=lambda quoted: [quoted.spans, quoted.attempts, quoted.fell_back, quoted.answer],
        from_json=lambda row: QuotedAttribution(_spans(row[0]), *row[1:]),
    )
    attributed["quoted"] = [quoted.spans for quoted in found]
    placed = [num_characters(quoted.spans) for quoted in found if not quoted.fell_back]
    return {
        "quoted/fell_back": float(np.mean([quoted.fell_back for quoted in found])),
        "quoted/characters_without_fall_backs": float(np.mean(placed)) if placed else 0.0,
        "quoted/attempts": float(np.mean([quoted.attempts for quoted in found])),
    }


def _entailed(
    config: Config,
    queries: Sequence[HighlightQuery],
    claims: Sequence[Rewritten],
    attributed: Mapping[str, Attributed],
    entailment: EntailmentModel,
    log: FinishedLog,
    name: str,
) -> dict[str, float]:
    """AutoAIS of every method: highlights as they are and, where they were rewritten, as claims."""
    hypotheses = {"autoais": [query.words() for query in queries]}
    if claims:
        hypotheses["autoais_claim"] = [claim.text for claim in claims]
    pairs = entailment_pairs(queries, attributed, hypotheses)

    def judge(group: Sequence[tuple[str, str]]) -> list[list[bool]]:
        found = entailment([premise for premise, _ in group], [claim for _, claim in group], tick=log.tick)
        return np.stack([found.entails, found.cut], axis=1).tolist()

    identity = f"{config.nli_model} {pairs}"
    judged = log.map(name, judge, pairs, identity=identity, group_size=config.queries_at_once)
    return entailment_metrics(queries, attributed, hypotheses, dict(zip(pairs, judged, strict=True)))


# ---- run -------------------------------------------------------------------------------------------------


def run(
    config: Config,
    run_dir: pathlib.Path | str,
    *,
    resume: bool = False,
    tick: Callable[[int], bool] = lambda step: False,
) -> Results:
    """Read (and where asked train) the hosts, attribute every query, measure, report; see `experiments`."""
    started = time.perf_counter()
    check_run_directory(run_dir, config, resume=resume)
    mesh = build(config).mesh  # what cannot be built is said before any data is read
    tasks, answers = open_tasks(config), open_answers(config)
    released = released_agreement(config.data.released) if config.data.released else {}
    directory = open_run_directory(run_dir, config, resume=resume)
    try:
        metrics = {f"released/{name}": value for name, value in released.items()}
        evaluated: dict[str, dict[str, Evaluated]] = {}
        digested: dict[str, Any] = {}
        log = FinishedLog(directory.path / "evaluation", str(config), tick)
        entailment = None
        if config.nli_model:
            entailment = EntailmentModel(config.nli_model, mesh=mesh, max_length=config.nli_length)
        language_model = None
        if config.pretrained and (answers or "decoder" in config.internals):
            language_model = open_language_model(config, mesh)
        with current_ticker().phase("evaluate"):
            tasks += [answer_task(config, given, language_model.generate, log) for given in answers if language_model]
        for internals in config.internals:
            host = _host(config, internals, mesh, tasks, directory, tick, language_model)
            digested[internals] = host.params
            with current_ticker().phase("evaluate"):
                for task in tasks:
                    found = evaluate_task(config, task, host, internals, log=log, entailment=entailment)
                    evaluated.setdefault(task.name, {})[internals] = found
                    metrics |= found.metrics
        metrics |= _against_hashes(config, evaluated.get("spark", {}))
        results = results_of(
            "laquer", config, started=started, steps=config.num_steps, metrics=metrics, params=digested
        )
        if jax.process_index() == 0:
            write_laquer_report(config, results, evaluated, directory)
            write_results(directory.results, results)
    finally:
        directory.close()
    return results


def _host(
    config: Config, internals: str, mesh: Mesh, tasks: Sequence[Task], directory: RunDirectory, tick: Any,
    language_model: LanguageModel | None,
) -> Host:  # fmt: skip
    if internals == "hash":
        return hash_host(config, mesh, tasks)
    if internals == "encoder":
        return encoder_host(config, mesh)
    return decoder_host(config, mesh, tasks, directory, tick, language_model)


def _against_hashes(config: Config, evaluated: Mapping[str, Evaluated]) -> dict[str, float]:
    """F1 of a model's states over hashed words', on the queries that both were measured on."""
    gains: dict[str, float] = {}
    base = evaluated.get("hash")
    if base is None:
        return gains
    by_query = dict(zip(map(id, base.queries), base.scores["highlight"], strict=True))
    for name, found in evaluated.items():
        if name != "hash":
            other = np.asarray([by_query[id(query)] for query in found.queries])
            interval = paired_gain(
                found.scores["highlight"], other, topics_of(found.queries), resamples=config.resamples, rng=config.seed
            )
            gains |= {f"spark/{name}/gain/hash": interval.estimate, f"spark/{name}/gain_low/hash": interval.low}
    return gains


# ---- report ----------------------------------------------------------------------------------------------

NOTE = (
    "Means over queries, in characters. 'sentences' is what the generator attributed, everything there is to read "
    "without this method; in the sets that people aligned it is itself made of their alignments, so no row is the "
    "quality of a whole system. Length and agreement are to be read together."
)
_AUTOAIS_NOTE = (
    " AutoAIS: the share of highlights (autoais), or of rewritten highlights (autoais_claim), that the attributed text "
    "entails; no text entails none."
)
_SHOWN = ("precision", "recall", "f1", "characters", "coverage", "non_attributed", "autoais", "autoais_claim")


def write_laquer_report(
    config: Config, results: Results, evaluated: Mapping[str, Mapping[str, Evaluated]], directory: RunDirectory
) -> None:
    """``report.html`` of one run."""
    from jaxcore.reporting import Headline, Section, Table
    from jaxcore.reporting.run_report import (
        configuration_section,
        training_section,
        verdict_section,
        write_run_report,
    )

    metrics = results.metrics
    first = config.internals[0]
    headline = [
        Headline("source found, rewritten", f"{metrics[f'world/{first}/best_source/claim']:.2f}",
                 f"highlight as it is {metrics[f'world/{first}/best_source/highlight']:.2f}"),
    ]  # fmt: skip
    for task in evaluated:
        saving = metrics[f"{task}/{first}/length_saving"]
        headline.append(Headline(f"{task}: left to read", f"{1 - saving:.2f}", "share of the attributed sentences"))
    sections: list[Section | None] = []
    for task, found in evaluated.items():
        pairs = [(internals, method) for internals, part in found.items() for method in part.attributed]
        shown = [name for name in _SHOWN if any(f"{task}/{i}/{method}/{name}" in metrics for i, method in pairs)]
        rows = [(i, method, *(metrics.get(f"{task}/{i}/{method}/{name}") for name in shown)) for i, method in pairs]
        note = NOTE + (_AUTOAIS_NOTE if "autoais" in shown else "")
        sections.append(Section(f"Attribution: {task}", [Table(("states", "query", *shown), rows)], note=note))
    sections += [examples_section(config, task, found[first]) for task, found in evaluated.items() if first in found]
    for title, part in (("Published example runs", "released/"), ("Layers and thresholds", "/sweep/")):
        values = [(name, value) for name, value in metrics.items() if part in name]
        sections.append(Section(title, [Table(("measure", "value"), values)]) if values else None)
    verdicts = judge_single_run(CLAIMS.asked_of(config), "laquer", RunValues(metrics))
    sections.append(verdict_section(verdicts, single_run_note("laquer")))
    if "decoder" in config.internals and not config.pretrained:
        sections.append(training_section(read_metrics(directory.metrics) if directory.metrics.exists() else []))
    sections.append(configuration_section(config))
    write_run_report(
        directory.report, results, title=PAPER.title, claim=PAPER.claim, headline=headline, sections=sections
    )


def examples_section(config: Config, task: str, found: Evaluated) -> Any:
    """A few queries: the output with the highlight in brackets, and the candidates with what was attributed."""
    from jaxcore.reporting import Paragraph, Section
    from jaxcore.reporting.attributed_spans import attribution_table, bracketed, source_map

    method = "claim" if "claim" in found.attributed else "highlight"
    blocks: list[Any] = []
    for query, spans in list(zip(found.queries, found.attributed[method], strict=True))[: config.shown]:
        documents = query.text.texts()
        blocks.append(Paragraph(f"Output: {bracketed(query.text.output, query.highlight, within=query.sentence)}"))
        blocks.append(source_map(query.candidates, documents, spans, query.gold))
        blocks.append(attribution_table(spans, documents))
    return Section(f"Examples: {task}", blocks, note="Coloured: attributed. Underlined: aligned by people (gold).")


# ---- claims ----------------------------------------------------------------------------------------------


def _claim(
    name: str, statement: str, metric: str, margin: float, applies: Callable[[Any], bool] | None, part: str = "A"
) -> Claim:
    """Asked of every seed: none may be below the margin."""
    source = f"laquer.md, small-scale experiment {part}"
    return Claim(name, statement, source, Measured("laquer", metric), margin=margin, worst=margin, applies=applies)


def _given_files(config: Config) -> bool:
    return bool(config.data.path) and "hash" in config.internals


def _given_release(config: Config) -> bool:
    return bool(config.data.released)


def _given_model(internals: str) -> Callable[[Config], bool]:
    def given(config: Config) -> bool:
        model = config.pretrained if internals == "decoder" else config.encoder
        return _given_files(config) and internals in config.internals and bool(model)

    return given


CLAIMS = Claims(
    preset="cpu",
    variants={"laquer": lambda config: config},
    claims=(
        _claim(
            "rewriting_matters",
            "through the whole pipeline, a rewritten highlight finds its source sentence at least 0.5 more often",
            "world/hash/best_source/gain", 0.5, lambda config: "hash" in config.internals, "B",
        ),
        _claim(
            "far_less_to_read", "attributed spans have at most 0.30 of the attributed sentences' length",
            "spark/hash/length_saving", 0.70, _given_files,
        ),
        _claim(
            "better_than_sentences", "their F1 is above that of the sentences; interval over topics above 0",
            "spark/hash/gain_low/sentences", 1e-9, _given_files,
        ),
        _claim(
            "better_than_the_whole_sentence", "and above that of spans for the whole output sentence; interval above 0",
            "spark/hash/gain_low/whole_sentence", 1e-9, _given_files,
        ),
        _claim(
            "follows_the_highlight", "F1 is at least 0.12 above that for another highlight of the same sentence",
            "spark/hash/gain/wrong_highlight", 0.12, _given_files,
        ),
        _claim(
            "attribution_of_sentences_matters", "without it F1 is at most 0.6 of that with it",
            "spark/hash/no_metadata/loss", 0.4, _given_files,
        ),
        _claim(
            "encoder_beats_hashed_words", "a pretrained encoder's states are better than hashed words'",
            "spark/encoder/gain_low/hash", 1e-9, _given_model("encoder"),
        ),
        _claim(
            "internals_beat_hashed_words", "a pretrained language model's states are better than hashed words'",
            "spark/decoder/gain_low/hash", 1e-9, _given_model("decoder"),
        ),
        _claim(
            "highlights_of_facts_agree", "simulated highlights agree with the published ones (character F1)",
            "released/highlights_f1", 0.95, _given_release, "C",
        ),
        _claim(
            "quotations_agree", "answers that quote verbatim are placed as published, all of them",
            "released/verbatim_identical", 1.0, _given_release, "C",
        ),
        _claim(
            "no_metadata_is_lost", "both facts that a one-sided overlap test left without candidates have some",
            "released/MDS/E2E/recovered", 2.0, _given_release, "C",
        ),
    ),
)  # fmt: skip
