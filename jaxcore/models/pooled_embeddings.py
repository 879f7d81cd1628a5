"""The smallest text classifier that has embeddings to explain: pooled word vectors through one hidden layer."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcore.models.affine import Linear


@dataclasses.dataclass(frozen=True)
class PooledClassifierConfig:
    """Sizes of a `PooledClassifier`; the defaults are the student of cap.md, experiment A."""

    vocab_size: int = 256
    """Number of word ids; id 0 is no word: its vector is zero and stays zero."""
    num_classes: int = 12
    """Number of logits."""
    embedding_size: int = 32
    """Width of a word's vector."""
    hidden_size: int = 64
    """Units of the hidden layer (ReLU)."""
    pooling: Literal["mean", "sum"] = "mean"
    """How word vectors become one; the mean is over the words of the text, whatever is left of them."""
    pool_scale: float = 4.0
    """Multiplies the pooled vector."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_classes", "embedding_size", "hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive: got {getattr(self, name)}")
        if self.pool_scale <= 0:
            raise ValueError(f"pool_scale must be positive: got {self.pool_scale}")


class PooledClassifier(nn.Module):
    """``logits = W relu(V s pool_t(e_t) + v) + b``, with e_t the vector of word t and pool a mean or sum over words.

    `embed` and `classify` are its two halves, so that embeddings can be edited in between:
    ``model.apply({"params": params}, ids, method="embed")``.
    """

    config: PooledClassifierConfig

    def setup(self) -> None:
        config = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(config.embedding_size**-0.5), ("vocab", "embed"))
        self.table = self.param("table", init, (config.vocab_size, config.embedding_size), jnp.float32)
        weights = nn.initializers.lecun_normal()
        self.hidden = Linear(config.hidden_size, ("embed", "mlp"), jnp.float32, weights)
        self.output = Linear(config.num_classes, ("mlp", None), jnp.float32, weights)

    def __call__(
        self, input_ids: Int[Array, "batch words"], attention_mask: Int[Array, "batch words"]
    ) -> Float[Array, "batch classes"]:
        """Class scores of texts; `attention_mask` is 1 at words."""
        return self.classify(self.embed(input_ids), attention_mask)

    def embed(self, input_ids: Int[Array, "batch words"]) -> Float[Array, "batch words dim"]:
        """A vector per word; zero for id 0, which no gradient changes."""
        vectors = jnp.take(jnp.asarray(self.table), input_ids, axis=0, mode="fill")
        return jnp.where((input_ids != 0)[..., None], vectors, 0)

    def classify(
        self, embeddings: Float[Array, "batch words dim"], attention_mask: Int[Array, "batch words"]
    ) -> Float[Array, "batch classes"]:
        """Class scores of word vectors; those outside the mask are not looked at."""
        mask = attention_mask.astype(jnp.float32)
        pooled = jnp.einsum("bwd,bw->bd", embeddings, mask)
        if self.config.pooling == "mean":
            pooled = pooled / jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None]
        return self.output(jax.nn.relu(self.hidden(self.config.pool_scale * pooled)))
