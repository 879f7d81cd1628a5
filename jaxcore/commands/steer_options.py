"""The options of ``jaxcore steer``: building steering vectors from preference pairs, or generating under them."""

import dataclasses
import pathlib
from typing import Literal

import tyro

from jaxcore.attribution.preference_score import Reduction
from jaxcore.attribution.steering_directions import Aggregate
from jaxcore.distributed import MeshConfig
from jaxcore.evaluation.steering_bench import SteeringMethod

_MOST_SEED = 2**32


@dataclasses.dataclass(frozen=True)
class SteerOptions:
    """Options of `jaxcore steer`: with --pairs it builds vectors, with --vectors it generates under them."""

    model: str = ""
    """Folder or hub id of a decoder: GPT-2, Llama, Mistral, Qwen 2 or Qwen 3; safetensors."""
    pairs: str = ""
    """Preference pairs to build vectors from: .jsonl, .csv, .tsv or .parquet with prompt, chosen and rejected, or
    TruthfulQA.csv."""
    method: SteeringMethod = "grains"
    """How directions are found: by attribution (grains), from the responses' states (mean_difference; caa, which does
    not keep lengths; icv over all layers; iti at attention heads), or at random of equal length."""
    layers: str = "last"
    """Layers to steer: "all", "last", or numbers such as 12, 3,7 or 10-14; negative ones count from the end."""
    k: int = 10
    """Tokens that grains masks on either side."""
    aggregate: Aggregate = "pca"
    """How grains makes one direction of many: principal component (centred or not), or mean."""
    num_steps: int = 20
    """Points on the path of integrated gradients."""
    reduction: Reduction = "sum"
    """A response's log probability: of all its tokens, or their mean (responses of unequal length)."""
    num_heads: int = 48
    """Attention heads that iti shifts."""
    num_pairs: int = 50
    """Pairs used, drawn by the seed; 0 = all."""
    prompt_field: str = "prompt"
    chosen_field: str = "chosen"
    rejected_field: str = "rejected"
    vectors: str = ""
    """A file of vectors that --pairs has made: generate under them."""
    strength: float = 0.5
    """Length of what is added, in mean lengths of the layer's states (of iti: in standard deviations, usually 5 to 15).
    0 changes nothing, negative steers the other way."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text to continue."""
    input: str = ""
    """Or prompts of a file: .jsonl, .csv, .tsv or .parquet (records), .txt (one prompt a line)."""
    field: str = "text"
    """The field of a record that holds the prompt."""
    chat: bool = False
    """Whether a prompt to continue is a user's message, put into the tokenizer's chat template."""
    max_new_tokens: int = 64
    """Most tokens of a continuation."""
    temperature: float = 0.0
    """Of sampling; 0 takes the likeliest token. Steered and unsteered texts are drawn with the same key."""
    seed: int = 0
    """Of what is drawn: pairs, TruthfulQA's incorrect answers, random directions, tokens."""
    output: pathlib.Path = pathlib.Path("terminal")
    """With --pairs: the file of vectors (.safetensors). With --vectors: "terminal", or a line of JSON per prompt
    (.jsonl)."""
    tokenizer: str = ""
    """Folder or hub id of the tokenizer; the model's own by default."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters, and in which the model computes."""
    batch_size: int = 8
    """Pairs or prompts at a time, over all devices."""
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=1, fsdp=-1))
    """Devices; by default parameters and pairs (or prompts) are split over all of them."""

    @property
    def builds(self) -> bool:
        """Whether vectors are built."""
        return bool(self.pairs)

    @property
    def writes_lines(self) -> bool:
        """Whether texts go to a file."""
        return str(self.output) != "terminal"


def check_options(options: SteerOptions) -> None:
    """ValueError for options that contradict each other or leave out what is needed; nothing is read."""
    if not options.model:
        raise ValueError("no model: name its folder or hub id with --model")
    if bool(options.pairs) == bool(options.vectors):
        given = "both" if options.pairs else "neither"
        raise ValueError(f"give --pairs to build vectors, or --vectors to generate under them: got {given}")
    for name in ("k", "num_steps", "num_heads", "max_new_tokens", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1: got {getattr(options, name)}")
    if not 0 <= options.seed < _MOST_SEED:
        raise ValueError(f"--seed must be in 0 to {_MOST_SEED - 1}: got {options.seed}")
    if options.builds:
        _check_building(options)
    else:
        _check_applying(options)


def _check_building(options: SteerOptions) -> None:
    if options.output.suffix != ".safetensors":
        raise ValueError(f"--output must name the file of vectors, ending in .safetensors: got {options.output}")
    if options.prompt or options.input:
        raise ValueError("prompts are for --vectors: build the vectors first, then generate under them")
    if options.num_pairs < 0:
        raise ValueError(f"--num-pairs must not be negative (0 = all): got {options.num_pairs}")


def _check_applying(options: SteerOptions) -> None:
    if bool(options.prompt) == bool(options.input):
        given = "both" if options.prompt else "neither"
        raise ValueError(f"give a prompt with --prompt, or a file of prompts with --input: got {given}")
    for number, prompt in enumerate(options.prompt):
        if not prompt.strip():
            raise ValueError(f"empty prompt: --prompt {number} has no word; give at least one")
    if options.writes_lines and options.output.suffix != ".jsonl":
        raise ValueError(f"--output must be terminal, or end in .jsonl: got {options.output}")
    if options.temperature < 0:
        raise ValueError(f"--temperature must not be negative: got {options.temperature}")
    if not abs(options.strength) < float("inf"):
        raise ValueError(f"--strength must be a finite number: got {options.strength}")
