"""The options of ``jaxcore generate``: where prompts come from, which strategy continues them, where they go."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import tyro

from jaxcore.distributed import MeshConfig
from jaxcore.generation import Strategy, strategy_from_name

_MOST_SEED = 2**32


@dataclasses.dataclass(frozen=True)
class StrategyOptions:
    """Options of decoding strategies; what is not given is the strategy's own default."""

    k: int | None = None
    """Candidates of contrastive search."""
    alpha: float | None = None
    """Weight of contrastive search's penalty; of contrastive decoding, the least share of the best probability."""
    penalise_prompt: bool | None = None
    """Whether contrastive search penalises likeness to the prompt too."""
    num_sampled: int | None = None
    """First tokens that diverse contrastive search samples."""
    temperature: float | None = None
    """Divides the scores of tokens; below 1 sharpens."""
    top_k: int | None = None
    """Draw among so many tokens."""
    top_p: float | None = None
    """Draw from the nucleus of this probability."""
    min_p: float | None = None
    """Draw among tokens so probable relative to the best."""
    typical_p: float | None = None
    """Draw from the typical set of this probability."""
    num_beams: int | None = None
    """Hypotheses that beam search keeps."""
    length_penalty: float | None = None
    """Power of the length that beam search divides log probabilities by."""
    early_stopping: bool | None = None
    """Whether beam search ends as soon as num_beams hypotheses have."""
    beta: float | None = None
    """How much contrastive decoding corrects the model by the amateur."""
    amateur_temperature: float | None = None
    """Divides the amateur's scores."""
    num_draft_tokens: int | None = None
    """Tokens that speculative decoding drafts at a time."""

    def given(self) -> dict[str, Any]:
        """Those that were given."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """Options of `jaxcore generate`."""

    model: str = ""
    """Folder or hub id of a decoder: GPT-2, Llama, Mistral, Qwen 2 or Qwen 3; safetensors."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text to continue."""
    input: str = ""
    """Or prompts of a file: .jsonl, .csv, .tsv or .parquet (records), .txt (one prompt a line), or tfds:NAME/SPLIT."""
    field: str = "text"
    """The field of a record that holds the prompt."""
    chat: bool = False
    """Whether a prompt is a user's message, put into the tokenizer's chat template; otherwise it is continued as it is.
    """
    strategy: str = "greedy"
    """How tokens are chosen; see --strategies."""
    strategies: bool = False
    """List the strategies with their options and end."""
    decoding: Annotated[StrategyOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=StrategyOptions)
    assistant: str = ""
    """Folder or hub id of the second decoder: contrastive decoding's amateur, speculative decoding's draft model."""
    max_new_tokens: int = 64
    """Most tokens of a continuation."""
    vectors: str = ""
    """A file of steering vectors (`jaxcore steer` makes one): generate under them."""
    strength: float = 0.5
    """Of the vectors: length of what is added, in mean lengths of the layer's states; see `jaxcore steer`."""
    num_samples: int = 1
    """Continuations of each prompt; of beam search, its best hypotheses."""
    seed: int = 0
    """Of strategies that draw."""
    stop_text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text that ends a continuation and is one token, such as a line break; in place of the model's ends."""
    stop_tokens: tuple[int, ...] = ()
    """Ids of tokens that end a continuation; by default the ends of the model's generation_config.json, or else of its
    config.json, or else of its tokenizer. Sampling settings of generation_config.json are not used."""
    output: pathlib.Path = pathlib.Path("terminal")
    """"terminal", or one line of JSON per continuation (.jsonl)."""
    tokenizer: str = ""
    """Folder or hub id of the tokenizer; the model's own by default."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters, and in which the model computes."""
    batch_size: int = 16
    """Prompts continued, and written, at a time; each batch draws with a key of its own."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices of each process along each mesh axis; by default all of them continue different prompts. A model larger
    than one device's memory is split by --mesh.data 1 --mesh.fsdp -1."""
    max_malformed_rate: float = 0.0
    """Largest share of records without a text; these would be left out."""
    resume: bool = False
    """Go on with a .jsonl output that an earlier, interrupted run of this same command began."""

    @property
    def writes_lines(self) -> bool:
        """Whether the output is a file."""
        return str(self.output) != "terminal"

    def chosen_strategy(self) -> Strategy:
        """The strategy with its options; ValueError for an unknown name and for options that it does not take."""
        try:
            return strategy_from_name(self.strategy, **self.decoding.given())
        except ValueError as error:
            raise ValueError(f"{error} (jaxcore generate --strategies describes all)") from error


def check_options(options: GenerateOptions) -> None:
    """ValueError for options that contradict each other or leave out what is needed; nothing is read."""
    if not options.model:
        raise ValueError("no model: name its folder or hub id with --model (--strategies lists the strategies)")
    if bool(options.prompt) == bool(options.input):
        given = "both" if options.prompt else "neither"
        raise ValueError(f"give a prompt with --prompt, or a file of prompts with --input: got {given}")
    for number, prompt in enumerate(options.prompt):
        if not prompt.strip():
            raise ValueError(f"empty prompt: --prompt {number} has no word; give at least one")
    for name in ("max_new_tokens", "num_samples", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1: got {getattr(options, name)}")
    if not 0 <= options.seed < _MOST_SEED:
        raise ValueError(f"--seed must be in 0 to {_MOST_SEED - 1}: got {options.seed}")
    if options.writes_lines and options.output.suffix != ".jsonl":
        raise ValueError(f"--output must be terminal, or end in .jsonl: got {options.output}")
    if not abs(options.strength) < float("inf"):
        raise ValueError(f"--strength must be a finite number: got {options.strength}")
    if options.resume and not options.writes_lines:
        raise ValueError("--resume goes on with a .jsonl file: name it with --output")
    needs = options.chosen_strategy().needs_assistant
    if needs and not options.assistant:
        raise ValueError(f"{options.strategy} needs a second model: name its folder or hub id with --assistant")
    if options.assistant and not needs:
        raise ValueError(f"{options.strategy} has no use for --assistant {options.assistant}: leave it out")
