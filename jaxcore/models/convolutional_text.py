"""A convolutional text encoder with k-max pooling, whose word table also embeds labels."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jaxcore.models.encoder import EncoderOutput, check_token_arrays, masked_mean


@dataclasses.dataclass(frozen=True)
class ConvolutionalTextConfig:
    """Sizes of a `ConvolutionalTextEncoder`."""

    vocab_size: int = 4096
    """Number of token ids."""
    embedding_size: int = 64
    """Width of word vectors."""
    widths: tuple[int, ...] = (3,)
    """Words that a filter spans, each an odd number."""
    num_filters: int = 128
    """Filters of each width."""
    pooled_maxima: int = 1
    """k: largest values over time that are kept of each filter."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute dtype; parameters are float32."""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("vocab_size", "embedding_size", "num_filters", "pooled_maxima")}
        if min(sizes.values()) < 1 or not self.widths:
            raise ValueError(f"sizes must be positive and widths name at least one: got {sizes}, widths {self.widths}")
        if any(width < 1 or width % 2 == 0 for width in self.widths):
            raise ValueError(f"widths must be odd, so that a filter has a middle: got {self.widths}")

    @property
    def output_size(self) -> int:
        """Width of the pooled vector."""
        return len(self.widths) * self.num_filters * self.pooled_maxima


class ConvolutionalTextEncoder(nn.Module):
    """``pooled = relu(kmax_t(sum_j W_j x_{t+j} + b))`` over word vectors x, filters of several widths side by side.

    Called as an `Encoder` is; `last_hidden_state` holds the word vectors. A window stands around every real token;
    beyond the text there are zeros. A text of fewer than k tokens fills up with zeros, as does one without any.
    """

    config: ConvolutionalTextConfig

    def setup(self) -> None:
        config = self.config
        normal = nn.initializers.normal(1 / config.embedding_size**0.5)
        shape = (config.vocab_size, config.embedding_size)
        self.word: Any = self.param("word", nn.with_logical_partitioning(normal, ("vocab", "embed")), shape)
        kernel = nn.with_logical_partitioning(nn.initializers.he_normal(), ("embed", "mlp"))
        bias = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("mlp",))
        self.filters = [
            nn.Dense(
                config.num_filters, dtype=config.dtype, kernel_init=kernel, bias_init=bias, name=f"filters_{width}"
            )
            for width in config.widths
        ]

    def __call__(
        self,
        input_ids: Int[Array, "batch time"],
        attention_mask: Int[Array, "batch time"] | None = None,
        *,
        deterministic: bool = True,
    ) -> EncoderOutput:
        """Embed token ids; `attention_mask` is 1 on real tokens. ValueError on shapes that differ."""
        check_token_arrays(input_ids, attention_mask=attention_mask)
        real = jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.astype(bool)
        vectors = jnp.where(real[..., None], self._lookup(input_ids), 0)
        maxima = [
            self._maxima(dense(_windows(vectors, width)), real)
            for dense, width in zip(self.filters, self.config.widths, strict=True)
        ]
        pooled = jax.nn.relu(jnp.concatenate(maxima, axis=-1))
        return EncoderOutput(last_hidden_state=vectors, pooled=checkpoint_name(pooled, "pooled"))

    def embed_labels(
        self, label_ids: Int[Array, "*labels words"], label_mask: Int[Array, "*labels words"] | None = None
    ) -> Float[Array, "*labels dim"]:
        """The mean of each label's word vectors, from the table that reads the texts."""
        vectors = self._lookup(label_ids)
        flat = vectors.reshape(-1, *vectors.shape[-2:])
        mask = None if label_mask is None else label_mask.reshape(-1, label_mask.shape[-1]).astype(bool)
        return masked_mean(flat, mask).reshape(*label_ids.shape[:-1], vectors.shape[-1])

    def _lookup(self, ids: Array) -> Array:
        return jnp.take(self.word, ids, axis=0, mode="fill").astype(self.config.dtype)

    def _maxima(self, activations: Array, real: Array) -> Array:
        lowest = jnp.finfo(activations.dtype).min
        kept = jnp.where(real[..., None], activations, lowest)
        count = self.config.pooled_maxima
        if count == 1:
            top = jnp.max(kept, axis=1, keepdims=True)
        else:
            missing = max(count - kept.shape[1], 0)
            kept = jnp.pad(kept, ((0, 0), (0, missing), (0, 0)), constant_values=lowest)
            top = jnp.swapaxes(jax.lax.top_k(jnp.swapaxes(kept, 1, 2), count)[0], 1, 2)
        return jnp.where(top > lowest, top, 0).reshape(kept.shape[0], -1)


def _windows(vectors: Float[Array, "batch time dim"], width: int) -> Float[Array, "batch time window"]:
    """The vectors around each token side by side: a convolution as one matrix product, which XLA does fastest."""
    time = vectors.shape[1]
    padded = jnp.pad(vectors, ((0, 0), (width // 2, width // 2), (0, 0)))
    return jnp.concatenate([padded[:, offset : offset + time] for offset in range(width)], axis=-1)
