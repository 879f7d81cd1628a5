"""The settings of the transformer encoder family, and what makes them valid."""

import dataclasses
from typing import Literal, get_args

from jaxcore.models.activations import ACTIVATIONS
from jaxcore.models.attention import AttentionImplementation

Pooler = Literal["cls_tanh", "mean", "mean_linear", "none"]
Architecture = Literal["bert", "roberta", "distilbert"]
OutputTokens = Literal["all", "first"]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and choices of an `Encoder`; the defaults are BERT-base."""

    vocab_size: int = 30522
    """Number of token ids."""
    num_layers: int = 12
    """Number of transformer blocks."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_heads: int = 12
    """Attention heads; must divide hidden_size."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    max_positions: int = 512
    """Rows of the position table (RoBERTa: longest text + position_offset)."""
    num_token_types: int = 2
    """Rows of the token-type table (DistilBERT has none: 0)."""
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu"
    """Feed-forward nonlinearity; "gelu" is the exact one (erf)."""
    norm_epsilon: float = 1e-12
    """Added to the variance in layer norms."""
    dropout: float = 0.1
    """Dropout on embeddings and on what attention and feed-forward add to the residual, in training."""
    attention_dropout: float = 0.1
    """Dropout on attention weights, in training; fused attention kernels need 0."""
    position_offset: int = 0
    """Position id of the first token (RoBERTa: pad_token_id + 1)."""
    pad_token_id: int = 0
    """Id of the padding token; RoBERTa derives position ids from it."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    pooler: Pooler = "cls_tanh"
    """tanh(W h_0 + b), masked mean, masked mean then a linear layer, or no pooled vector."""
    architecture: Architecture = "bert"
    """Family: decides position ids, dropout places and the layout of saved weights."""
    output_tokens: OutputTokens = "all"
    """Tokens whose vectors the last block computes. "first" is for those who read no other (classifiers, cls pooling):
    the last block then costs a sixth, the same numbers come out, and `last_hidden_state` has one token per text."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute dtype; parameters are float32, and softmax, norms and means accumulate in float32."""
    attention_implementation: AttentionImplementation = "auto"
    """Whether attention weights can be captured ("explicit") or fused kernels run; see attention.py."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes per block: nothing, everything, or all but the weight matmuls."""
    scan_layers: bool = True
    """Compile one block and loop over it; False unrolls the loop (same parameters, longer compilation)."""

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_choices()
        self._check_family()

    def _check_sizes(self) -> None:
        for name in (
            "vocab_size",
            "num_layers",
            "hidden_size",
            "num_heads",
            "intermediate_size",
            "max_positions",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in (
            "num_token_types",
            "position_offset",
            "pad_token_id",
            "initializer_range",
            "norm_epsilon",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads, got {self.hidden_size} and {self.num_heads}"
            )
        if self.max_positions <= self.position_offset:
            raise ValueError(
                f"max_positions must exceed position_offset, got {self.max_positions} and {self.position_offset}"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def _check_choices(self) -> None:
        choices = {
            "activation": tuple(ACTIVATIONS),
            "pooler": get_args(Pooler),
            "architecture": get_args(Architecture),
            "output_tokens": get_args(OutputTokens),
            "dtype": ("float32", "bfloat16", "float16"),
            "attention_implementation": get_args(AttentionImplementation),
            "remat": ("none", "full", "dots"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    def _check_family(self) -> None:
        first_position = self.pad_token_id + 1 if self.architecture == "roberta" else 0
        if self.position_offset != first_position:
            raise ValueError(
                f"{self.architecture} numbers positions from {first_position}, got "
                f"position_offset={self.position_offset}: set it to {first_position}"
            )
        if (self.architecture == "distilbert") != (self.num_token_types == 0):
            wanted = (
                "has no token types: set num_token_types=0" if self.architecture == "distilbert" else "needs 1 or more"
            )
            raise ValueError(f"{self.architecture} {wanted}, got num_token_types={self.num_token_types}")
        if self.output_tokens == "first" and self.pooler not in ("cls_tanh", "none"):
            raise ValueError(f"pooler {self.pooler!r} reads all tokens, but output_tokens is 'first': set it to 'all'")
        if self.architecture == "distilbert" and self.norm_epsilon != 1e-12:
            raise ValueError(f"distilbert fixes norm_epsilon at 1e-12, got {self.norm_epsilon}")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def max_length(self) -> int:
        """Longest text, in tokens, that the position table covers."""
        return self.max_positions - self.position_offset
