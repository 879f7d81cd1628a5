"""A bag-of-words encoder: square roots of token counts through a small perceptron."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxcore.models.activations import gelu_erf
from jaxcore.models.dropout import dropout
from jaxcore.models.encoder import EncoderOutput, check_token_arrays


@dataclasses.dataclass(frozen=True)
class BagOfWordsConfig:
    """Sizes of a `BagOfWordsEncoder`; the defaults are the 248-256-64 of STAR's gate experiment."""

    vocab_size: int = 248
    """Number of token ids; an id outside the range counts for nothing."""
    hidden_sizes: tuple[int, ...] = (256,)
    """Widths of the hidden layers, each followed by GELU."""
    embedding_size: int = 64
    """Width of the pooled vector."""
    dropout: float = 0.0
    """Dropout after each hidden layer, in training."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute dtype; parameters are float32."""

    def __post_init__(self) -> None:
        for name, sizes in (
            ("vocab_size", (self.vocab_size,)),
            ("hidden_sizes", self.hidden_sizes),
            ("embedding_size", (self.embedding_size,)),
        ):
            if any(size < 1 for size in sizes):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


def count_tokens(
    input_ids: Int[Array, "batch time"], attention_mask: Bool[Array, "batch time"] | None, *, vocab_size: int
) -> Float[Array, "batch vocab"]:
    """How often each token id occurs among the real tokens of each row; ids out of range are left out.

    A scatter-add per row. The alternative, summing one-hot vectors, takes eighty times as long on CPU (512 x
    128
    tokens, 248 ids: 24 ms against 0.3).
    """
    counted = (input_ids >= 0) & (input_ids < vocab_size)
    if attention_mask is not None:
        counted &= attention_mask

    def count_row(ids: Int[Array, "time"], counted: Bool[Array, "time"]) -> Float[Array, "vocab"]:
        return jnp.zeros(vocab_size).at[ids].add(counted.astype(jnp.float32), mode="drop")

    return jax.vmap(count_row)(jnp.asarray(input_ids), counted)


class BagOfWordsEncoder(nn.Module):
    """`pooled = W_n gelu(... gelu(W_1 sqrt(counts) + b_1) ...) + b_n`; the order of tokens plays no part.

    Called as an `Encoder` is; `last_hidden_state` is None. Named activations: `token_features` (batch,
    vocab), the square-rooted counts; `mlp_hidden` (batch, width) per hidden layer; `pooled` (batch,
    embedding).
    """

    config: BagOfWordsConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "batch time"],
        attention_mask: Int[Array, "batch time"] | None = None,
        *,
        deterministic: bool = True,
    ) -> EncoderOutput:
        """Embed token ids; `attention_mask` is 1 on real tokens. ValueError on shapes that differ."""
        config = self.config
        check_token_arrays(input_ids, attention_mask=attention_mask)
        mask = None if attention_mask is None else attention_mask.astype(bool)
        counts = count_tokens(input_ids, mask, vocab_size=config.vocab_size)
        x = checkpoint_name(jnp.sqrt(counts).astype(config.dtype), "token_features")
        for index, size in enumerate(config.hidden_sizes):
            x = gelu_erf(self._dense(size, ("vocab" if index == 0 else "embed", "mlp"), f"hidden_{index}")(x))
            x = checkpoint_name(x, "mlp_hidden")
            if not deterministic and config.dropout > 0:
                x = dropout(x, rate=config.dropout, key=self.make_rng("dropout"))
        input_axis = "mlp" if config.hidden_sizes else "vocab"
        pooled = self._dense(config.embedding_size, (input_axis, "embed"), "output")(x)
        return EncoderOutput(last_hidden_state=None, pooled=checkpoint_name(pooled, "pooled"))

    def _dense(self, features: int, axes: tuple[str, str], name: str) -> nn.Dense:
        return nn.Dense(
            features,
            dtype=self.config.dtype,
            kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
            name=name,
        )
