"""The transformer encoder family: BERT, RoBERTa, DistilBERT, MiniLM, as one linen module."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxcore.distributed import constrain_rows
from jaxcore.models.activations import ACTIVATIONS
from jaxcore.models.affine import LayerNorm, Linear, linear
from jaxcore.models.attention import attend
from jaxcore.models.dropout import dropout
from jaxcore.models.encoder_config import EncoderConfig, OutputTokens
from jaxcore.models.layer_stack import fold_layers, stack_layers
from jaxcore.models.token_table import lookup


@flax.struct.dataclass
class EncoderOutput:
    """What an encoder returns: a vector per token and a vector per text, either of which may be absent."""

    last_hidden_state: Float[Array, "batch time hidden"] | None
    pooled: Float[Array, "batch hidden"] | None


def check_token_arrays(input_ids: Int[Array, "batch time"], **others: Array | None) -> None:
    """Raise ValueError unless `input_ids` is an integer (batch, time) array and the others have its shape."""
    if input_ids.ndim != 2 or not jnp.issubdtype(input_ids.dtype, jnp.integer):
        raise ValueError(
            f"input_ids must be an integer array (batch, time), got {input_ids.dtype} of shape {input_ids.shape}"
        )
    for name, array in others.items():
        if array is not None and array.shape != input_ids.shape:
            raise ValueError(f"{name} must have the shape of input_ids {input_ids.shape}, got {array.shape}")


class Encoder(nn.Module):
    """Token ids in, contextual vectors out; post-norm transformer (Devlin et al. 2019; Liu et al. 2019).

        x = norm(word[ids] + position[p] + type[t]);   per block:  x = norm(x + attention(x)),  x = norm(x +
        mlp(x))

    Parameters of the blocks are stacked along a leading axis, whatever `scan_layers` says. `init` returns
    them boxed with logical axis names (`flax.linen.meta.unbox` strips the boxes; `apply` takes either form).
    """

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "batch time"],
        attention_mask: Int[Array, "batch time"] | None = None,
        token_type_ids: Int[Array, "batch time"] | None = None,
        position_ids: Int[Array, "batch time"] | None = None,
        *,
        deterministic: bool = True,
    ) -> EncoderOutput:
        """Encode a batch of texts.

        Args:
            input_ids: token ids; an id outside the vocabulary gives NaN, not another word's vector.
            attention_mask: 1 on real tokens, 0 on padding; None = all real.
            token_type_ids: segment of each token; None = all 0.
            position_ids: None = 0, 1, ... ; RoBERTa counts non-padding tokens from pad_token_id + 1.
            deterministic: False applies dropout, from the rng stream "dropout".

        Raises:
            ValueError: shapes that differ, more tokens than positions, token types given to a model without
                them.
        """
        config = self.config
        check_token_arrays(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids
        )
        if input_ids.shape[1] > config.max_length:
            raise ValueError(f"texts of {input_ids.shape[1]} tokens, but the model has {config.max_length} positions")
        x = Embeddings(config, deterministic, name="embeddings")(input_ids, token_type_ids, position_ids)
        mask = None if attention_mask is None else attention_mask.astype(bool)
        x = self._blocks(x, None if mask is None else mask[:, None, None, :], deterministic)
        pooled = None if config.pooler == "none" else Pooler(config, name="pooler")(x, mask)
        return EncoderOutput(last_hidden_state=x, pooled=pooled)

    def _blocks(self, x: Array, mask: Array | None, deterministic: bool) -> Array:
        """All blocks as one scanned module with stacked parameters; the last one apart where it has less to do."""
        config = self.config
        if config.output_tokens == "all" or self.is_initializing():
            return stack_layers(EncoderLayer, config)(config, deterministic, name="layers")(x, mask)[0]
        stacked, last = nn.meta.unbox(self.get_variable("params", "layers")), config.num_layers - 1
        key = None if deterministic else self.make_rng("dropout")

        def apply(params: Any, x: Array, i: Any, output_tokens: OutputTokens = "all") -> Array:
            rngs = None if key is None else {"dropout": jax.random.fold_in(key, i)}
            block = EncoderLayer(config, deterministic, output_tokens, parent=None)
            return block.apply({"params": params}, x, mask, rngs=rngs)[0]

        x = fold_layers(apply, config, stacked, x, count=last)
        return apply(jax.tree.map(lambda p: p[last], stacked), x, last, "first")


class Embeddings(nn.Module):
    """Sum of word, position and token-type vectors, normalised."""

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, input_ids, token_type_ids, position_ids):
        config = self.config
        if token_type_ids is not None and config.num_token_types == 0:
            raise ValueError(f"{config.architecture} has no token types: leave token_type_ids out")
        words = lookup(self._table("word", config.vocab_size, "vocab"), input_ids, config.dtype)
        x = checkpoint_name(constrain_rows(words), "token_embeddings")
        if position_ids is None:
            position_ids = _position_ids(input_ids, config)
        x += lookup(self._table("position", config.max_positions, "position"), position_ids, config.dtype)
        if config.num_token_types > 0:
            types = self._table("token_type", config.num_token_types, None)
            x += (
                types[0].astype(config.dtype) if token_type_ids is None else lookup(types, token_type_ids, config.dtype)
            )
        x = checkpoint_name(constrain_rows(_norm(config, "norm")(x)), "embeddings")
        return _drop(self, x)

    def _table(self, name: str, rows: int, axis: str | None) -> Any:
        init = nn.initializers.normal(self.config.initializer_range)
        shape = (rows, self.config.hidden_size)
        return self.param(name, nn.with_logical_partitioning(init, (axis, "embed")), shape, jnp.float32)


class EncoderLayer(nn.Module):
    """One post-norm block: self-attention, then feed-forward; each added to its input and normalised."""

    config: EncoderConfig
    deterministic: bool
    output_tokens: OutputTokens = "all"

    @nn.compact
    def __call__(self, x: Float[Array, "batch time hidden"], mask: Bool[Array, "batch 1 1 time"] | None):
        config = self.config
        attended = SelfAttention(config, self.deterministic, self.output_tokens, name="attention")(x, mask)
        x = x[:, : attended.shape[1]]
        if config.architecture != "distilbert":  # which drops attention weights but not attention output
            attended = _drop(self, attended)
        x = constrain_rows(_norm(config, "attention_norm")(x + attended))
        hidden = ACTIVATIONS[config.activation](_dense(config, config.intermediate_size, ("embed", "mlp"), "mlp_in")(x))
        hidden = checkpoint_name(hidden, "mlp_hidden")
        update = checkpoint_name(_dense(config, config.hidden_size, ("mlp", "embed"), "mlp_out")(hidden), "mlp_output")
        x = constrain_rows(_norm(config, "mlp_norm")(x + _drop(self, update)))
        return checkpoint_name(x, "layer_output"), None


class SelfAttention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one matrix product."""

    config: EncoderConfig
    deterministic: bool
    output_tokens: OutputTokens = "all"

    @nn.compact
    def __call__(self, x, mask):
        config = self.config
        queries, keys, values = self._project(x)
        drops = not self.deterministic and config.attention_dropout > 0
        heads = attend(
            queries,
            keys,
            values,
            mask,
            implementation=config.attention_implementation,
            dropout_rate=config.attention_dropout,
            dropout_key=self.make_rng("dropout") if drops else None,
        )
        heads = checkpoint_name(heads, "attention_heads").reshape(*heads.shape[:2], config.hidden_size)
        output = _dense(config, config.hidden_size, ("heads", "embed"), "output")(heads)
        return checkpoint_name(output, "attention_output")

    def _project(self, x: Float[Array, "batch time hidden"]) -> list[Float[Array, "batch time heads head_dim"]]:
        """Queries (of the tokens to compute), keys and values as one 2-D product, or two.

        Heads are the outermost axis of the columns, so that flattening the kernel keeps a sharding by heads.
        """
        config = self.config
        columns = (config.num_heads, 3, config.head_size)
        kernel_init = nn.with_logical_partitioning(_normal(config), ("embed", "heads", None, None))
        kernel: Any = self.param("qkv_kernel", kernel_init, (config.hidden_size, *columns), jnp.float32)
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("heads", None, None))
        bias: Any = self.param("qkv_bias", bias_init, columns, jnp.float32)

        def project(x: Array, kernel: Array, bias: Array) -> list[Array]:
            flat = linear(x, kernel.reshape(config.hidden_size, -1), bias.reshape(-1), dtype=config.dtype)
            parts = flat.reshape(*x.shape[:2], *bias.shape)
            return [part.squeeze(3) for part in jax.lax.split(parts, (1,) * bias.shape[1], axis=3)]

        if self.output_tokens == "all":
            return project(x, kernel, bias)
        return project(x[:, :1], kernel[:, :, :1], bias[:, :1]) + project(x, kernel[:, :, 1:], bias[:, 1:])


class Pooler(nn.Module):
    """One vector per text, by the config's choice."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch time hidden"], mask: Bool[Array, "batch time"] | None):
        config = self.config
        pooled = x[:, 0] if config.pooler == "cls_tanh" else masked_mean(x, mask)
        if config.pooler != "mean":
            pooled = _dense(config, config.hidden_size, ("embed", None), "dense")(pooled)
        if config.pooler == "cls_tanh":
            pooled = jnp.tanh(pooled)
        return checkpoint_name(pooled, "pooled")


def masked_mean(
    x: Float[Array, "batch time hidden"], mask: Bool[Array, "batch time"] | None
) -> Float[Array, "batch hidden"]:
    """Mean of the real tokens' vectors, accumulated in float32; a text without real tokens gives 0."""
    if mask is None:
        return x.mean(1, dtype=jnp.float32).astype(x.dtype)
    weights = mask.astype(jnp.float32)
    total = jnp.einsum("bth,bt->bh", x.astype(jnp.float32), weights)
    return (total / jnp.maximum(weights.sum(1), 1)[:, None]).astype(x.dtype)


def _position_ids(input_ids, config):
    """BERT: 0, 1, ... in every row. RoBERTa: non-padding tokens count from pad + 1; padding sits at pad."""
    if config.architecture != "roberta":
        return jnp.arange(input_ids.shape[1])[None]
    real = (input_ids != config.pad_token_id).astype(jnp.int32)
    return jnp.cumsum(real, 1) * real + config.pad_token_id


def _normal(config):
    return nn.initializers.normal(config.initializer_range)


def _dense(config: EncoderConfig, features: int, axes: tuple[str | None, str | None], name: str) -> Linear:
    return Linear(features, axes, config.dtype, _normal(config), name=name)


def _norm(config: EncoderConfig, name: str) -> LayerNorm:
    return LayerNorm(config.norm_epsilon, config.dtype, name=name)


def _drop(module: Any, x: Array) -> Array:
    """Dropout at the config's rate, from the module's "dropout" stream, when the module is in training."""
    if module.deterministic or module.config.dropout == 0:
        return x
    return dropout(x, rate=module.config.dropout, key=module.make_rng("dropout"))
