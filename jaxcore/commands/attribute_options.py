"""The options of ``jaxcore attribute``: what may be given together, and what it means for a model with these labels."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from jaxcore.attribution.method_names import TOKEN_METHODS, method_names
from jaxcore.attribution.sequence_targets import SEQUENCE_METHODS
from jaxcore.commands.generate_options import StrategyOptions
from jaxcore.distributed import MeshConfig
from jaxcore.evaluation.generation_attribution import ContinuationOptions
from jaxcore.evaluation.text_explanation import AttributionOptions, ScoreName
from jaxcore.generation import Strategy, strategy_from_name

_MEGABYTE = 2**20
_MOST_LABELS = 20


@dataclasses.dataclass(frozen=True)
class AttributeOptions:
    """Options of `jaxcore attribute`."""

    model: str = ""
    """Folder or hub id: a BERT, RoBERTa, DistilBERT or recurrent sequence classifier, with --similar-to an encoder, or
    a decoder (GPT-2, Llama, Mistral, Qwen), of which each token that continues a text is explained."""
    text: tuple[str, ...] = ()
    """One or more texts to explain."""
    text_pair: tuple[str, ...] = ()
    """Of a classifier of pairs (inference, paraphrase): the second text that goes with each --text."""
    input: str = ""
    """Or texts of a file: .jsonl, .csv, .tsv or .parquet (records), .txt (one text a line), or tfds:NAME/SPLIT."""
    method: str = "integrated_gradients"
    """One or more methods, comma-separated; see --methods."""
    methods: bool = False
    """List the methods and end."""
    output: pathlib.Path = pathlib.Path("terminal")
    """"terminal", a report (.html), or one line of JSON per text and method (.jsonl)."""
    target: str = ""
    """Label of the class to explain; each text's predicted class by default."""
    versus: str = ""
    """Why --target rather than this label: the difference of their logits is explained."""
    similar_to: str = ""
    """Explain why the text's embedding is similar to that of this text."""
    chat: bool = False
    """Of a decoder: whether a text is a user's message, put into the tokenizer's chat template; otherwise it is
    continued as it is."""
    continuation: tuple[str, ...] = ()
    """Of a decoder: what follows each --text, with its leading space; what the model itself writes by default."""
    contrast: tuple[str, ...] = ()
    """Of a decoder: why each token of the continuation rather than the one in its place here; one for each --text."""
    attributed: Literal["prefix", "prompt"] = "prefix"
    """Of a decoder: what gets scores, all that stands before a token, or the prompt alone."""
    strategy: str = "greedy"
    """How a decoder chooses tokens; jaxcore generate --strategies lists them with their options."""
    decoding: Annotated[StrategyOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=StrategyOptions)
    max_new_tokens: int = 32
    """Most tokens that a decoder writes."""
    score: ScoreName | None = None
    """Of the target class (logit by default), or of each token that a decoder wrote (log_probability by default)."""
    level: Literal["token", "word", "sentence"] = "token"
    """Scores of tokens, of words (what white space separates; the sum over a word's tokens), or, of a decoder, of
    sentences."""
    field: str = "text"
    """The field of a record that holds the text."""
    pair_field: str = ""
    """Of a classifier of pairs: the field of a record that holds the second text."""
    tokenizer: str = ""
    """Folder or hub id of the tokenizer; the model's own by default."""
    truncate: bool = False
    """Cut texts that are longer than the model reads."""
    num_steps: int = 0
    """Points on the path of path methods; 0: each method's own number."""
    num_samples: int = 0
    """Draws (of shapley_sampling: orders) of sampling methods; 0: each method's own number."""
    seed: int = 0
    """Of the random methods."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which the model computes."""
    batch_tokens: int = 0
    """Tokens of a batch on each device, padding counted; 0 chooses by device. No influence but on random draws."""
    memory_megabytes: int = 0
    """Temporary memory that a method may take on each device; 0: half of what is free, 512 on CPU."""
    window: int = 128
    """Texts explained, sorted by length, and written at a time; continuations are in windows of a sixteenth of it."""
    report_texts: int = 100
    """Texts that a report shows; its averages are over all."""
    max_malformed_rate: float = 0.0
    """Largest share of records without a text; these would be left out."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices of each process along each mesh axis; by default all of them work on different texts."""
    resume: bool = False
    """Go on with a .jsonl output that an earlier, interrupted run of this same command began."""

    @property
    def are_pairs(self) -> bool:
        """Whether each text comes with a second one."""
        return bool(self.text_pair or self.pair_field)

    @property
    def kind(self) -> str:
        """ "terminal", or the suffix of the output file."""
        return "terminal" if str(self.output) == "terminal" else self.output.suffix

    def method_names(self, *, of_decoder: bool = False) -> tuple[str, ...]:
        """The methods, by their names in the table."""
        try:
            names = method_names(self.method.split(","), TOKEN_METHODS)
        except ValueError as error:
            raise ValueError(f"{error} (jaxcore attribute --methods describes all)") from error
        for name in names if of_decoder else ():
            if name not in SEQUENCE_METHODS:
                raise ValueError(f"{name} is for classifiers and encoders, but {self.model} is a decoder")
        return names

    def chosen_strategy(self) -> Strategy:
        """A decoder's strategy; ValueError for an unknown name or option, or one that needs a second model."""
        strategy = strategy_from_name(self.strategy, **self.decoding.given())
        if strategy.needs_assistant:
            raise ValueError(
                f"--strategy {self.strategy} needs a second model: continue the texts with jaxcore generate, and give "
                "what it writes with --continuation"
            )
        return strategy


def check_options(options: AttributeOptions) -> None:
    """ValueError for options that contradict each other or leave out what is needed; nothing is read."""
    _check_sources(options)
    options.method_names()
    for name in ("window", "report_texts", "max_new_tokens"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1: got {getattr(options, name)}")
    for name in ("num_steps", "num_samples", "batch_tokens", "memory_megabytes"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} must not be negative: got {getattr(options, name)}")
    if options.kind not in ("terminal", ".html", ".jsonl"):
        raise ValueError(f"--output must be terminal, or end in .html or .jsonl: got {options.output}")
    if options.resume and options.kind != ".jsonl":
        raise ValueError(f"--resume goes on with a .jsonl file; {options.output} is made in one go")
    _check_question(options)


def _check_sources(options: AttributeOptions) -> None:
    if not options.model:
        raise ValueError("no model: name its folder or hub id with --model (--methods lists the methods)")
    if bool(options.text) == bool(options.input):
        given = "both" if options.text else "neither"
        raise ValueError(f"give the text with --text, or a file of texts with --input: got {given}")
    for number, text in enumerate(options.text):
        if not text.strip():
            raise ValueError(f"--text is empty (text {number}): give at least one word")
    _check_pairs(options)


def _check_pairs(options: AttributeOptions) -> None:
    if options.text_pair and len(options.text_pair) != len(options.text):
        raise ValueError(
            f"give one --text-pair for each --text: got {len(options.text_pair)} for {len(options.text)} texts"
            + (" (of a file, --pair-field names the second text)" if options.input else "")
        )
    for number, text in enumerate(options.text_pair):
        if not text.strip():
            raise ValueError(f"--text-pair is empty (text {number}): give at least one word")
    if options.pair_field and not options.input:
        raise ValueError("--pair-field is of the records of --input: give second texts with --text-pair")
    if options.pair_field and (options.input.endswith(".txt") or options.pair_field == options.field):
        kind = "a line of text has no fields" if options.input.endswith(".txt") else "it names the field of the text"
        raise ValueError(f"--pair-field {options.pair_field} cannot be read: {kind}")


def _check_question(options: AttributeOptions) -> None:
    if options.similar_to and (options.target or options.versus or options.score):
        raise ValueError(
            "--similar-to explains a similarity, which has no classes: leave --target, --versus, --score out"
        )
    if options.similar_to and options.are_pairs:
        raise ValueError("--similar-to explains the embedding of one text: leave --text-pair and --pair-field out")
    if options.versus and not options.target:
        raise ValueError(f"--versus {options.versus} needs --target, the label that is explained rather than it")
    if options.versus and options.versus == options.target:
        raise ValueError(f"--target and --versus are both {options.target}: name two different labels")
    if options.versus and options.score not in (None, "logit"):
        raise ValueError(f"--versus explains a difference of logits: leave --score {options.score} out")


def attribution_options(options: AttributeOptions, labels: Sequence[str]) -> AttributionOptions:
    """The engine's options for an encoder; ValueError for a label that the model does not have."""
    of_decoder = {
        "--chat": options.chat,
        "--continuation": options.continuation,
        "--contrast": options.contrast,
        "--attributed prompt": options.attributed == "prompt",
        "--level sentence": options.level == "sentence",
    }
    for name, given in of_decoder.items():
        if given:
            raise ValueError(f"{name} is for decoders, which continue a text; {options.model} is an encoder")
    return AttributionOptions(
        methods=options.method_names(),
        score=options.score or "logit",
        target=_class(options.target, labels, "--target"),
        versus=_class(options.versus, labels, "--versus"),
        num_steps=options.num_steps or None,
        num_samples=options.num_samples or None,
        seed=options.seed,
        truncate=options.truncate,
        batch_tokens=options.batch_tokens or None,
        memory_budget=options.memory_megabytes * _MEGABYTE or None,
    )


def continuation_options(options: AttributeOptions, *, batch_size: int) -> ContinuationOptions:
    """The engine's options for a decoder; ValueError for options of classifiers."""
    of_classifier = {
        "--target": options.target,
        "--versus": options.versus,
        "--similar-to": options.similar_to,
        "--truncate": options.truncate,
        "--text-pair": options.text_pair,
        "--pair-field": options.pair_field,
    }
    for name, given in of_classifier.items():
        if given:
            raise ValueError(
                f"{name} is for classifiers and encoders, but {options.model} is a decoder, of which each token of a "
                "continuation is explained: see --continuation and --contrast"
            )
    for name in ("continuation", "contrast"):
        texts = getattr(options, name)
        if texts and len(texts) != len(options.text):
            raise ValueError(f"give one --{name} for each --text: got {len(texts)} for {len(options.text)} texts")
    return ContinuationOptions(
        methods=options.method_names(of_decoder=True),
        score=options.score or "log_probability",
        attributed=options.attributed,
        num_steps=options.num_steps or None,
        num_samples=options.num_samples or None,
        seed=options.seed,
        batch_size=batch_size,
        memory_budget=options.memory_megabytes * _MEGABYTE or None,
    )


def _class(label: str, labels: Sequence[str], option: str) -> int | None:
    """The class of a label; ValueError with the labels that there are."""
    if not label:
        return None
    if label in labels:
        return labels.index(label)
    listed = ", ".join(labels[:_MOST_LABELS]) + (", ..." if len(labels) > _MOST_LABELS else "")
    raise ValueError(f"{option} {label!r} is no label of the model: it has {len(labels)}, {listed}")
