"""The options of ``jaxcore attribute``: what may be given together, and what it means for a model with these labels."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Literal

from jaxcore.attribution.method_names import method_names
from jaxcore.distributed import MeshConfig
from jaxcore.evaluation.text_explanation import AttributionOptions, ScoreName

_MEGABYTE = 2**20
_MOST_LABELS = 20


@dataclasses.dataclass(frozen=True)
class AttributeOptions:
    """Options of `jaxcore attribute`."""

    model: str = ""
    """Folder or hub id: a BERT, RoBERTa or DistilBERT sequence classifier, or with --similar-to an encoder of these."""
    text: tuple[str, ...] = ()
    """One or more texts to explain."""
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
    score: ScoreName = "logit"
    """Of the target class."""
    level: Literal["token", "word"] = "token"
    """Scores of tokens, or of words (what white space separates; the sum over a word's tokens)."""
    field: str = "text"
    """The field of a record that holds the text."""
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
    """Temporary memory that a method may take on each device; 0: half of what is free, 2048 on CPU."""
    window: int = 128
    """Texts explained, sorted by length, and written at a time."""
    report_texts: int = 100
    """Texts that a report shows; its averages are over all."""
    max_malformed_rate: float = 0.0
    """Largest share of records without a text; these would be left out."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices of each process along each mesh axis; by default all of them work on different texts."""
    resume: bool = False
    """Go on with a .jsonl output that an earlier, interrupted run of this same command began."""

    @property
    def kind(self) -> str:
        """ "terminal", or the suffix of the output file."""
        return "terminal" if str(self.output) == "terminal" else self.output.suffix

    def method_names(self) -> tuple[str, ...]:
        """The methods, by their names in the table."""
        try:
            return method_names(self.method.split(","))
        except ValueError as error:
            raise ValueError(f"{error} (jaxcore attribute --methods describes all)") from error


def check_options(options: AttributeOptions) -> None:
    """ValueError for options that contradict each other or leave out what is needed; nothing is read."""
    _check_sources(options)
    options.method_names()
    for name in ("window", "report_texts"):
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


def _check_question(options: AttributeOptions) -> None:
    if options.similar_to and (options.target or options.versus or options.score != "logit"):
        raise ValueError(
            "--similar-to explains a similarity, which has no classes: leave --target, --versus, --score out"
        )
    if options.versus and not options.target:
        raise ValueError(f"--versus {options.versus} needs --target, the label that is explained rather than it")
    if options.versus and options.versus == options.target:
        raise ValueError(f"--target and --versus are both {options.target}: name two different labels")
    if options.versus and options.score != "logit":
        raise ValueError(f"--versus explains a difference of logits: leave --score {options.score} out")


def attribution_options(options: AttributeOptions, labels: Sequence[str]) -> AttributionOptions:
    """The engine's options; ValueError for a label that the model does not have."""
    return AttributionOptions(
        methods=options.method_names(),
        score=options.score,
        target=_class(options.target, labels, "--target"),
        versus=_class(options.versus, labels, "--versus"),
        num_steps=options.num_steps or None,
        num_samples=options.num_samples or None,
        seed=options.seed,
        truncate=options.truncate,
        batch_tokens=options.batch_tokens or None,
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
