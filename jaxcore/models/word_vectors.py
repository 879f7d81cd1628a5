"""The mean of frozen word vectors through one linear layer: a weak encoder that trains in seconds."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jaxcore.models.affine import linear
from jaxcore.models.dropout import dropout
from jaxcore.models.encoder import EncoderOutput, check_token_arrays, masked_mean


@dataclasses.dataclass(frozen=True)
class WordVectorConfig:
    """Sizes of a `WordVectorEncoder`; the defaults are those of the rehearsed experiment of whitenedcse.md."""

    vocab_size: int = 30522
    """Rows of the table."""
    embedding_size: int = 192
    """Width of word vectors and of the pooled vector, D."""
    dropout: float = 0.1
    """Dropout on the features of every word vector and of the pooled vector, in training."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute dtype; parameters are float32."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "embedding_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


class WordVectorEncoder(nn.Module):
    """``pooled = W mean_t x_(w_t) + b``, W the identity at first; the order of words plays no part.

    The table of word vectors x is an argument of every call, not a parameter, and no gradient flows to it. Tokens whose
    row is 0 (special tokens, words too rare to have a vector) are left out of the mean; a text of nothing else gives b.
    Otherwise called as an `Encoder` is; `last_hidden_state` is None. Named activations: `token_embeddings` (batch,
    time, D), `text_mean` (batch, D), `pooled` (batch, D).
    """

    config: WordVectorConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "batch time"],
        attention_mask: Int[Array, "batch time"] | None = None,
        *,
        table: Float[Array, "vocab dim"],
        deterministic: bool = True,
    ) -> EncoderOutput:
        """Embed token ids.

        Args:
            input_ids: an id outside the table counts for nothing.
            attention_mask: 1 on real tokens, 0 on padding; None = all real.
            table: [vocab_size, embedding_size], frozen.
            deterministic: False applies dropout, from the rng stream "dropout".

        Raises:
            ValueError: shapes that differ, or a table of another size than the configuration's.
        """
        config = self.config
        check_token_arrays(input_ids, attention_mask=attention_mask)
        if table.shape != (config.vocab_size, config.embedding_size):
            raise ValueError(
                f"the table must be [vocab_size, embedding_size] = [{config.vocab_size}, {config.embedding_size}], "
                f"got {table.shape}"
            )
        vectors = jnp.take(jax.lax.stop_gradient(table), input_ids, axis=0, mode="fill", fill_value=0)
        vectors = checkpoint_name(vectors.astype(config.dtype), "token_embeddings")
        counted = (vectors != 0).any(-1)
        if attention_mask is not None:
            counted &= attention_mask.astype(bool)
        mean = checkpoint_name(masked_mean(self._drop(vectors, deterministic), counted), "text_mean")
        pooled = self._drop(self._linear(mean), deterministic)
        return EncoderOutput(last_hidden_state=None, pooled=checkpoint_name(pooled, "pooled"))

    def _linear(self, x: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
        size = self.config.embedding_size
        kernel_init = nn.with_logical_partitioning(_identity, ("embed", None))
        kernel = self.param("kernel", kernel_init, (size, size), jnp.float32)
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,))
        bias = self.param("bias", bias_init, (size,), jnp.float32)
        return linear(x, jnp.asarray(kernel), jnp.asarray(bias), dtype=self.config.dtype)

    def _drop(self, x: Array, deterministic: bool) -> Array:
        if deterministic or self.config.dropout == 0:
            return x
        return dropout(x, rate=self.config.dropout, key=self.make_rng("dropout"))


def _identity(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Float[Array, "dim dim"]:
    del key
    return jnp.eye(*shape, dtype=dtype)
