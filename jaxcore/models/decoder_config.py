"""The settings of the transformer decoder families, and what makes them valid."""

import dataclasses
from typing import Any, Literal, get_args

from jaxcore.models.activations import ACTIVATIONS
from jaxcore.models.attention import AttentionImplementation

DecoderArchitecture = Literal["gpt2", "llama", "mistral", "qwen2", "qwen3"]

_ROTARY: dict[str, Any] = {
    "positions": "rotary",
    "norm": "rms",
    "gated": True,
    "activation": "silu",
    "query_key_norm": False,
    "qkv_bias": False,
    "output_bias": False,
    "mlp_bias": False,
    "tied_head": False,
}
DECODER_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "positions": "learned",
        "norm": "layer",
        "gated": False,
        "activation": "gelu_tanh",
        "query_key_norm": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "tied_head": True,
    },
    "llama": _ROTARY,
    "mistral": _ROTARY,
    "qwen2": {**_ROTARY, "qkv_bias": True},
    "qwen3": {**_ROTARY, "query_key_norm": True},
}
"""The choices that make a family, as fields of a `DecoderConfig`:
`DecoderConfig(architecture="llama", **DECODER_FAMILIES["llama"], ...)`. Llama is free in its biases, Qwen 3 in those of
attention (all or none of them); all are free in activation and head."""
_FREE = {
    "llama": ("activation", "tied_head", "qkv_bias", "output_bias", "mlp_bias"),
    "qwen3": ("activation", "tied_head", "qkv_bias", "output_bias"),
}
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those of pretraining; see rotary.py."""

    kind: RopeKind = "default"
    """Which of the published rules."""
    factor: float = 1.0
    """By how much contexts are stretched; 1 or more."""
    original_max_positions: int | None = None
    """Longest context of pretraining, in tokens (llama3, yarn)."""
    low_frequency_factor: float = 1.0
    """llama3: wavelengths above original_max_positions / this are divided by `factor`."""
    high_frequency_factor: float = 4.0
    """llama3: wavelengths below original_max_positions / this stay."""
    beta_fast: float = 32.0
    """yarn: dimensions that turn more often than this over the original context stay."""
    beta_slow: float = 1.0
    """yarn: dimensions that turn less often than this are divided by `factor`."""
    attention_factor: float | None = None
    """yarn: what cosines and sines are multiplied by; None = by the paper's rule, from `factor`."""
    mscale: float | None = None
    """yarn: numerator weight of that rule, where a model sets it together with `mscale_all_dim`."""
    mscale_all_dim: float | None = None
    """yarn: denominator weight of that rule."""
    truncate: bool = True
    """yarn: round the bounds of the ramp to whole dimensions."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(RopeKind):
            raise ValueError(f"rope scaling must be one of {', '.join(get_args(RopeKind))}, got {self.kind!r}")
        if not self.factor >= 1:
            raise ValueError(f"rope scaling factor must be at least 1, got {self.factor}")
        if self.kind in ("llama3", "yarn") and not (self.original_max_positions or 0) >= 1:
            raise ValueError(
                f"rope scaling {self.kind} needs original_max_positions >= 1, got {self.original_max_positions}"
            )
        if self.kind == "llama3" and not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError(
                "rope scaling llama3 needs 0 < low_frequency_factor < high_frequency_factor, got "
                f"{self.low_frequency_factor} and {self.high_frequency_factor}"
            )
        if self.kind == "yarn" and not self.beta_fast >= self.beta_slow > 0:
            raise ValueError(
                f"rope scaling yarn needs beta_fast >= beta_slow > 0, got {self.beta_fast} and {self.beta_slow}"
            )


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and choices of a `Decoder`; the defaults are GPT-2 small.

    decoder_layout.py reads and writes the `config.json` of a published model.
    """

    architecture: DecoderArchitecture = "gpt2"
    """Family: decides the layout of saved weights and which of the choices below are free."""
    vocab_size: int = 50257
    """Number of token ids."""
    num_layers: int = 12
    """Number of transformer blocks."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_heads: int = 12
    """Query heads."""
    num_key_value_heads: int = 12
    """Key and value heads; must divide num_heads (grouped queries)."""
    head_size: int = 64
    """Width of one head."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    max_positions: int = 1024
    """Rows of the position table (gpt2), or the context length that rope scaling starts from."""
    positions: Literal["learned", "rotary"] = "learned"
    """Position table added to the embeddings, or rotation of queries and keys."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling = RopeScaling()
    """Stretching of the rotary wavelengths."""
    norm: Literal["layer", "rms"] = "layer"
    """Layer norm with bias, or root-mean-square norm."""
    norm_epsilon: float = 1e-5
    """Added to the variance (or mean square) in norms."""
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu_tanh"
    """Feed-forward nonlinearity."""
    gated: bool = False
    """Feed-forward `out(activation(gate(x)) * in(x))` instead of `out(activation(in(x)))`."""
    query_key_norm: bool = False
    """Root-mean-square norm of each query and key head before rotation (Qwen 3)."""
    qkv_bias: bool = True
    """Biases of queries, keys and values."""
    output_bias: bool = True
    """Bias of attention's output projection."""
    mlp_bias: bool = True
    """Biases of the feed-forward layers."""
    tied_head: bool = True
    """Logits through the word table, or through a table of their own."""
    sliding_window: int | None = None
    """How many of the latest tokens, itself included, a token attends to; None = all."""
    windowed_layers: tuple[bool, ...] | None = None
    """Which blocks the window holds in; None = in all."""
    embedding_dropout: float = 0.0
    """Dropout on the embeddings, in training."""
    dropout: float = 0.0
    """Dropout on what attention and feed-forward add to the residual, in training."""
    attention_dropout: float = 0.0
    """Dropout on attention weights, in training; fused attention kernels need 0."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    bos_token_id: int | None = None
    """Id that begins a text, where the tokenizer has one."""
    eos_token_ids: tuple[int, ...] = ()
    """Ids that end a text."""
    pad_token_id: int | None = None
    """Id that pads a batch, where the tokenizer has one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute dtype; softmax, norms, rotations and logits are float32 whatever it is."""
    attention_implementation: AttentionImplementation = "auto"
    """Whether attention scores and weights are named ("explicit") or fused kernels run; see grouped_attention.py."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes per block: nothing, everything, or all but the weight matmuls."""
    scan_layers: bool = True
    """Compile one block and loop over it; False unrolls the loop (same parameters, longer compilation)."""

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_choices()
        self._check_family()
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                "num_heads must be a multiple of num_key_value_heads, got "
                f"{self.num_heads} and {self.num_key_value_heads}"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(f"rotary positions need an even head_size, got {self.head_size}")
        if self.rope_scaling.kind == "dynamic" and self.head_size == 2:
            raise ValueError("rope scaling dynamic needs a head_size above 2, got 2")
        if self.positions == "learned" and self.rope_scaling.kind != "default":
            raise ValueError(f"learned positions cannot be stretched by rope scaling {self.rope_scaling.kind!r}")
        if self.windowed_layers is not None and len(self.windowed_layers) != self.num_layers:
            raise ValueError(
                f"windowed_layers must say yes or no for each of the {self.num_layers} layers, "
                f"got {len(self.windowed_layers)} entries"
            )

    def _check_sizes(self) -> None:
        for name in (
            "vocab_size",
            "num_layers",
            "hidden_size",
            "num_heads",
            "num_key_value_heads",
            "head_size",
            "intermediate_size",
            "max_positions",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be positive or None, got {self.sliding_window}")
        if not self.rope_theta > 1:
            raise ValueError(f"rope_theta must exceed 1, got {self.rope_theta}")
        for name in ("initializer_range", "norm_epsilon"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("embedding_dropout", "dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def _check_choices(self) -> None:
        choices = {
            "architecture": get_args(DecoderArchitecture),
            "positions": ("learned", "rotary"),
            "norm": ("layer", "rms"),
            "activation": tuple(ACTIVATIONS),
            "dtype": ("float32", "bfloat16", "float16"),
            "attention_implementation": get_args(AttentionImplementation),
            "remat": ("none", "full", "dots"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    def _check_family(self) -> None:
        """Weights and settings must have a place in the family's published form."""
        family = self.architecture
        for name, value in DECODER_FAMILIES[family].items():
            if name not in _FREE.get(family, ("activation", "tied_head")) and getattr(self, name) != value:
                raise ValueError(
                    f"{family} has {name}={value!r}, got {getattr(self, name)!r}: start from "
                    f"DECODER_FAMILIES[{family!r}], or choose another architecture"
                )
        if family in ("llama", "qwen3") and self.output_bias != self.qkv_bias:
            raise ValueError(f"{family} has both or neither of qkv_bias and output_bias, got only one")
        if family == "gpt2" and (self.num_key_value_heads, self.num_heads * self.head_size) != (
            self.num_heads,
            self.hidden_size,
        ):
            raise ValueError(
                "gpt2 needs num_key_value_heads == num_heads and num_heads * head_size == hidden_size, got "
                f"{self.num_key_value_heads}, {self.num_heads}, {self.head_size} and {self.hidden_size}"
            )
        if self.sliding_window is not None and family in ("gpt2", "llama"):
            raise ValueError(f"{family} has no sliding window, got {self.sliding_window}: use mistral or qwen")
        if self.windowed_layers is not None and (self.sliding_window is None or family not in ("qwen2", "qwen3")):
            raise ValueError(f"windowed_layers is for qwen with a sliding_window, got it for {family}")

    @property
    def group_size(self) -> int:
        """Query heads per key-value head."""
        return self.num_heads // self.num_key_value_heads

    @property
    def context_length(self) -> int:
        """Longest text, in tokens, that the model was made for, rope scaling included."""
        scaling = self.rope_scaling
        if scaling.kind in ("linear", "dynamic"):
            return int(self.max_positions * scaling.factor)
        if scaling.kind == "yarn":
            return max(self.max_positions, int((scaling.original_max_positions or 0) * scaling.factor))
        return self.max_positions
