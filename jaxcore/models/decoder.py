"""Decoder language models: GPT-2, Llama 3, Mistral, Qwen 2.5, Qwen 3, as one linen module."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxcore.distributed import constrain_rows
from jaxcore.models.activations import ACTIVATIONS
from jaxcore.models.affine import BY_OUTPUTS, LayerNorm, Linear, RMSNorm, as_rows, linear, times_outputs
from jaxcore.models.causal_masks import call_visibility
from jaxcore.models.decoder_config import DecoderConfig
from jaxcore.models.dropout import dropout
from jaxcore.models.encoder import check_token_arrays
from jaxcore.models.grouped_attention import Source, attend_grouped
from jaxcore.models.key_value_cache import KeyValueCache, lineage, write_slots
from jaxcore.models.layer_stack import stack_layers
from jaxcore.models.rotary import rotate, rotations
from jaxcore.models.token_table import check_vocabulary, lookup


@flax.struct.dataclass
class DecoderOutput:
    """What a decoder returns."""

    logits: Float[Array, "batch time vocab"]
    """Float32; scores of the token that follows each token."""
    last_hidden_state: Float[Array, "batch time hidden"]
    """After the last norm: what the logits are a linear map of."""
    cache: KeyValueCache | None
    """The cache given, with the new tokens; None where none was given."""


@flax.struct.dataclass
class Call:
    """What is the same in every block of one call."""

    rotation: tuple[Float[Array, "batch time half"], Float[Array, "batch time half"]] | None
    mask: Bool[Array, "batch 1 time source"]
    window_mask: Bool[Array, "batch 1 time source"] | None
    start: Int[Array, ""] | None
    caching: bool = flax.struct.field(pytree_node=False)
    deterministic: bool = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class LayerState:
    """What differs between the blocks of one call; stacked along a leading axis for all of them."""

    sources: tuple[tuple[Float[Array, "*rows"], Float[Array, "*rows"]], ...]
    """Keys and values of each cache of the lineage that has tokens, outermost first."""
    windowed: Bool[Array, "*layers"] | None
    """Whether the sliding window holds; None where all blocks agree."""


class Decoder(nn.Module):
    """Token ids in, scores of the next token out; pre-norm causal transformer (Radford et al. 2019; Llama 2024).

        x = word[ids] (+ position[p]);   per block:  x = x + attention(norm(x)),  x = x + mlp(norm(x));
        logits = head' norm(x)

    Parameters of the blocks are stacked along a leading axis; `unstack_layers` gives the form that decodes faster.
    `init` returns them boxed with logical axis names. Activations are named as the room's map says.
    """

    config: DecoderConfig

    def setup(self) -> None:
        config = self.config
        self.embeddings = DecoderEmbeddings(config)
        self.layers = stack_layers(DecoderLayer, config, in_axes=(0, nn.broadcast))(config)
        self.final_norm = _norm(config, None)
        if not config.tied_head:
            init = nn.with_logical_partitioning(_normal(config), ("vocab", "embed"))
            self.head = self.param("head", init, (config.vocab_size, config.hidden_size), jnp.float32)

    def __call__(
        self,
        input_ids: Int[Array, "batch time"] | None,
        attention_mask: Int[Array, "batch time"] | None = None,
        *,
        embeddings: Float[Array, "batch time hidden"] | None = None,
        positions: Int[Array, "batch time"] | None = None,
        segment_ids: Int[Array, "batch time"] | None = None,
        cache: KeyValueCache | None = None,
        deterministic: bool = True,
    ) -> DecoderOutput:
        """Scores of the token after each of `input_ids`.

        Args:
            input_ids: token ids; None where `embeddings` are given. Under jit an id outside the vocabulary gives NaN.
            attention_mask: 1 on real tokens, 0 on padding, for the tokens of this call only (the cache knows about
                its own); None = all real. Padding may be left or right; what comes out there means nothing.
            embeddings: word vectors to use in place of the ids' own (`embed` gives those).
            positions: None = each row's real tokens counted from 0 on, those in the cache included; with segments,
                those of each segment.
            segment_ids: which text of a packed row a token belongs to, the tokens of a text next to each other: a
                token sees its own text only. None = one text per row. Not with a cache.
            cache: what came before; the call writes its tokens behind. A call whose T is the whole capacity (prefill
                into a cache of the prompt's length) skips the empty slots altogether. Tokens beyond the capacity give
                NaN where the cache's length is not known while tracing.
            deterministic: False applies dropout, from the rng stream "dropout".

        Raises:
            ValueError: shapes that differ or do not fit the config, an id outside the vocabulary (where ids are
                known), more tokens than the context length or than the cache has slots for, a cache of another
                model or number of rows, a cache together with segments.
        """
        hidden, cache = self.trunk(
            input_ids,
            attention_mask,
            embeddings=embeddings,
            positions=positions,
            segment_ids=segment_ids,
            cache=cache,
            deterministic=deterministic,
        )
        return DecoderOutput(logits=self.logits(hidden), last_hidden_state=hidden, cache=cache)

    def trunk(
        self,
        input_ids: Int[Array, "batch time"] | None,
        attention_mask: Int[Array, "batch time"] | None = None,
        *,
        embeddings: Float[Array, "batch time hidden"] | None = None,
        positions: Int[Array, "batch time"] | None = None,
        segment_ids: Int[Array, "batch time"] | None = None,
        cache: KeyValueCache | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "batch time hidden"], KeyValueCache | None]:
        """`last_hidden_state` and the cache, without logits: `apply(variables, ids, ..., method="trunk")`."""
        config = self.config
        _check_call(config, input_ids, attention_mask, embeddings, positions, segment_ids, cache)
        words: Any = embeddings
        if input_ids is not None:
            words = self.embeddings.words(input_ids)
        real = jnp.ones(words.shape[:2], bool) if attention_mask is None else attention_mask.astype(bool)
        visibility = call_visibility(real, cache, sliding_window=config.sliding_window, segment_ids=segment_ids)
        if positions is None:
            positions = jnp.maximum(visibility.ranks, 0)
        x = self.embeddings(words, positions, deterministic)
        writes_slots = cache is not None and cache.capacity > words.shape[1]
        call = Call(
            rotation=rotations(positions, config) if config.positions == "rotary" else None,
            mask=visibility.everything,
            window_mask=visibility.window,
            start=cache.length if cache is not None and writes_slots else None,
            caching=cache is not None,
            deterministic=deterministic,
        )
        parts = [] if cache is None else lineage(cache)[: None if writes_slots else -1]
        state = LayerState(tuple((part.keys, part.values) for part in parts), _windowed(config))
        x, written = self._blocks(x, state, call)
        hidden = self.final_norm(x)
        if cache is None:
            return hidden, None
        keys, values = written
        filled = cache.length + words.shape[1]
        hidden = jnp.where(filled > cache.capacity, jnp.asarray(jnp.nan, hidden.dtype), hidden)
        return hidden, dataclasses.replace(
            cache,
            keys=_written(cache.keys, keys, cache.length),
            values=_written(cache.values, values, cache.length),
            valid=jax.lax.dynamic_update_slice(cache.valid, real, (0, cache.length)),
            length=filled,
        )

    def logits(self, hidden: Float[Array, "... hidden"]) -> Float[Array, "... vocab"]:
        """Float32 scores of the next token from hidden states: `apply(variables, hidden[:, -1], method="logits")`."""
        dtype = self.config.dtype
        table: Any = self.embeddings.word if self.config.tied_head else self.head
        scores = times_outputs(as_rows(hidden).astype(dtype), jnp.asarray(table).astype(dtype), result_type=jnp.float32)
        return scores.reshape(*hidden.shape[:-1], -1)

    def embed(self, input_ids: Int[Array, "batch time"]) -> Float[Array, "batch time hidden"]:
        """Word vectors, before any position is added: `apply(variables, ids, method="embed")`."""
        check_token_arrays(input_ids)
        check_vocabulary(input_ids, self.config.vocab_size)
        return self.embeddings.words(input_ids)

    def _blocks(self, x: Array, state: LayerState, call: Call) -> Any:
        """All blocks, from stacked or from unstacked parameters."""
        unstacked = None if self.is_initializing() else _unstacked(self.variables["params"]["layers"])
        if unstacked is None:
            return self.layers(x, state, call)
        if not call.deterministic:
            raise ValueError("dropout needs stacked parameters: unstacked ones (unstack_layers) are for inference")
        block = DecoderLayer(self.config, parent=None)
        depth = self.config.num_layers

        def branch(layer: int) -> Any:
            sources = tuple((keys[layer], values[layer]) for keys, values in state.sources)
            own = LayerState(sources, None if state.windowed is None else state.windowed[layer])
            return lambda x: block.apply({"params": unstacked[layer]}, x, own, call)

        branches = [branch(layer) for layer in range(depth)]
        # A scan, so that named activations are stacked and edits get their `step`; in it a branch per block, which
        # reads its own arrays where they lie.
        unroll = 1 if self.config.scan_layers else depth
        return jax.lax.scan(lambda x, layer: jax.lax.switch(layer, branches, x), x, jnp.arange(depth), unroll=unroll)


class DecoderEmbeddings(nn.Module):
    """Word vectors, and learned positions where the model has them."""

    config: DecoderConfig

    def setup(self) -> None:
        config = self.config
        self.word = self._table("word", config.vocab_size, "vocab")
        if config.positions == "learned":
            self.position = self._table("position", config.max_positions, "position")

    def _table(self, name: str, rows: int, axis: str) -> Any:
        init = nn.with_logical_partitioning(_normal(self.config), (axis, "embed"))
        return self.param(name, init, (rows, self.config.hidden_size), jnp.float32)

    def words(self, input_ids: Int[Array, "batch time"]) -> Float[Array, "batch time hidden"]:
        return lookup(self.word, input_ids, self.config.dtype)

    def __call__(self, words: Array, positions: Int[Array, "batch time"], deterministic: bool) -> Array:
        config = self.config
        x = checkpoint_name(constrain_rows(words.astype(config.dtype)), "token_embeddings")
        if config.positions == "learned":
            x = constrain_rows(x + lookup(self.position, positions, config.dtype))
        return _drop(self, checkpoint_name(x, "embeddings"), config.embedding_dropout, deterministic)


class DecoderLayer(nn.Module):
    """One pre-norm block: causal self-attention, then feed-forward; each added to its input."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch time hidden"], state: LayerState, call: Call) -> Any:
        config = self.config
        attention = CausalSelfAttention(config, name="attention")
        attended, written = attention(_norm(config, "attention_norm")(x), state, call)
        x = constrain_rows(x + _drop(self, attended, config.dropout, call.deterministic))
        update = FeedForward(config, name="mlp")(_norm(config, "mlp_norm")(x))
        x = constrain_rows(x + _drop(self, update, config.dropout, call.deterministic))
        return checkpoint_name(x, "layer_output"), written


class FeedForward(nn.Module):
    """`out(f(in(x)))`, or `out(f(gate(x)) * in(x))` (Shazeer 2020)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        config, activation = self.config, ACTIVATIONS[self.config.activation]
        wide = (config.intermediate_size, ("embed", "mlp"), config.mlp_bias)
        hidden = _dense(config, *wide, "in")(x)
        hidden = activation(_dense(config, *wide, "gate")(x)) * hidden if config.gated else activation(hidden)
        hidden = checkpoint_name(hidden, "mlp_hidden")
        output = _dense(config, config.hidden_size, ("mlp", "embed"), config.mlp_bias, "out")(hidden)
        return checkpoint_name(output, "mlp_output")


class CausalSelfAttention(nn.Module):
    """Attention to the caches' tokens and the call's own; also returns the latter's keys and values for the cache."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch time hidden"], state: LayerState, call: Call) -> Any:
        config = self.config
        queries, keys, values = self._project(x)
        if config.query_key_norm:
            queries = RMSNorm(config.norm_epsilon, config.dtype, name="query_norm")(queries)
            keys = RMSNorm(config.norm_epsilon, config.dtype, name="key_norm")(keys)
        if call.rotation is not None:
            queries, keys = rotate(queries, *call.rotation), rotate(keys, *call.rotation)
        keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
        drops = not call.deterministic and config.attention_dropout > 0
        heads = attend_grouped(
            queries,
            keys,
            values,
            _layer_mask(state, call),
            sources=[Source(*source) for source in state.sources],
            start=call.start,
            implementation=config.attention_implementation,
            dropout_rate=config.attention_dropout,
            dropout_key=self.make_rng("dropout") if drops else None,
        )
        heads = checkpoint_name(heads, "attention_heads").reshape(*x.shape[:2], -1)
        output = _dense(config, config.hidden_size, ("heads", "embed"), config.output_bias, "output")(heads)
        return checkpoint_name(output, "attention_output"), (keys, values) if call.caching else None

    def _project(self, x: Float[Array, "batch time hidden"]) -> tuple[Array, Array, Array]:
        """Queries (batch, time, heads, head_size), keys and values, as one 2-D product.

        Columns are ordered by key-value head, and within one: its queries, its key, its value. So flattening the
        kernel keeps a sharding by heads.
        """
        config = self.config
        members = config.group_size
        columns = (config.num_key_value_heads, members + 2, config.head_size)
        by_outputs = self.has_variable("params", BY_OUTPUTS.format("qkv_kernel"))
        kernel: Any
        if by_outputs:
            kernel = self.get_variable("params", BY_OUTPUTS.format("qkv_kernel"))
        else:
            kernel_init = nn.with_logical_partitioning(_normal(config), ("embed", "heads", None, None))
            kernel = self.param("qkv_kernel", kernel_init, (config.hidden_size, *columns), jnp.float32)
            kernel = kernel.reshape(config.hidden_size, -1)
        bias: Any = None
        if config.qkv_bias:
            bias_init = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("heads", None, None))
            bias = jnp.asarray(self.param("qkv_bias", bias_init, columns, jnp.float32)).reshape(-1)
        projected = linear(x, kernel, bias, dtype=config.dtype, by_outputs=by_outputs)
        parts = jax.lax.split(projected.reshape(*x.shape[:2], *columns), (members, 1, 1), axis=3)
        queries = parts[0].reshape(*x.shape[:2], config.num_heads, config.head_size)
        return queries, parts[1].squeeze(3), parts[2].squeeze(3)


def unstack_layers(
    params: Mapping[str, Any], *, by_outputs: bool | None = None, consume: bool = False
) -> dict[str, Any]:
    """Parameters with one subtree per block ("layers/0/...") in place of stacked arrays: the form that decodes fastest.

    Decoding reads every weight once per token. Out of stacked arrays each block's weights are first copied (on CPU,
    in every step), out of separate ones they are read where they lie. The Decoder takes either form, computes the
    same, and names the same activations with the same `step`; unstacked it compiles every block by itself, and has no
    dropout or remat. Give the cache the same form (`unstack_cache`).

    Args:
        by_outputs: store the blocks' kernels transposed, as CPUs read them fastest for few rows
            (`jaxcore.models.affine`); None = on CPU.
        consume: take the stacked arrays out of `params`, dictionaries that are left without blocks: each is freed once
            its blocks have their own, so that beside the result one of them at a time is held in place of all.
    """
    transposes = jax.default_backend() == "cpu" if by_outputs is None else by_outputs
    others = {name: nn.meta.unbox(tree) for name, tree in params.items() if name != "layers"}
    blocks = _unstacked_tree(params["layers"], transposes, consume)
    return {**others, "layers": {str(layer): block for layer, block in enumerate(blocks)}}


def _unstacked_tree(tree: Any, transposes: bool, consume: bool) -> list[dict[str, Any]]:
    """A tree per block, out of one of stacked arrays."""
    found: dict[str, list[Any]] = {}
    for name in list(tree):
        value = tree.pop(name) if consume else tree[name]
        if isinstance(value, Mapping):
            found[name] = _unstacked_tree(value, transposes, consume)
        elif transposes and name in ("kernel", "qkv_kernel"):
            found[BY_OUTPUTS.format(name)] = [part.reshape(len(part), -1).T for part in _blocks_of(value)]
        else:
            found[name] = list(_blocks_of(value))
        if consume:
            jax.block_until_ready(found)  # what is still to be read cannot be freed
    return [dict(zip(found, parts, strict=True)) for parts in zip(*found.values(), strict=True)]


def _blocks_of(stacked: Any) -> Iterator[Array]:
    """Each block's part of an array, boxed or not."""
    stacked = nn.meta.unbox(stacked)
    return (stacked[layer] for layer in range(len(stacked)))


def _unstacked(layers: Mapping[str, Any]) -> list[Any] | None:
    """Parameters by block, in order, if they are in that form."""
    return [layers[str(layer)] for layer in range(len(layers))] if "0" in layers else None


def _written(old: Any, new: Array, start: Int[Array, ""]) -> Any:
    """The caches' arrays with the new slots of all blocks (layers, rows, heads, time, size)."""
    if isinstance(old, tuple):
        return tuple(write_slots(array, new[layer], start) for layer, array in enumerate(old))
    return write_slots(old, new, start)


def _windowed(config: DecoderConfig) -> Bool[Array, "layers"] | None:
    """Per block whether the window holds, where blocks differ."""
    if config.sliding_window is None or config.windowed_layers is None or all(config.windowed_layers):
        return None
    return jnp.asarray(config.windowed_layers)


def _layer_mask(state: LayerState, call: Call) -> Bool[Array, "batch 1 time source"]:
    if call.window_mask is None:
        return call.mask
    return call.window_mask if state.windowed is None else jnp.where(state.windowed, call.window_mask, call.mask)


def _check_call(config, input_ids, attention_mask, embeddings, positions, segment_ids, cache) -> None:
    """Raise ValueError unless the arrays of a call fit each other and the config."""
    if (input_ids is None) == (embeddings is None):
        raise ValueError("give either input_ids or embeddings (with input_ids=None), not both or neither")
    if embeddings is not None:
        if embeddings.ndim != 3 or embeddings.shape[2] != config.hidden_size:
            raise ValueError(
                f"embeddings must be (batch, time, {config.hidden_size}), got an array of shape {embeddings.shape}"
            )
        shape = embeddings.shape[:2]
    else:
        check_token_arrays(input_ids)
        check_vocabulary(input_ids, config.vocab_size)
        shape = input_ids.shape
    arrays = (("attention_mask", attention_mask), ("positions", positions), ("segment_ids", segment_ids))
    for name, array in arrays:
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must have the shape of the tokens {shape}, got {array.shape}")
    if shape[1] > config.context_length:
        raise ValueError(f"texts of {shape[1]} tokens, but the model's context is {config.context_length} tokens")
    if cache is not None:
        if segment_ids is not None:
            raise ValueError("packed texts (segment_ids) are read without a cache: leave one of the two out")
        _check_cache(config, shape, cache)


def _check_cache(config: DecoderConfig, shape: tuple[int, int], cache: KeyValueCache) -> None:
    rows, time = shape
    keys = jax.tree.leaves(cache.keys)[0].shape[-4:]
    if (keys[1], keys[3]) != (config.num_key_value_heads, config.head_size):
        raise ValueError(
            f"the cache holds {keys[1]} key-value heads of size {keys[3]}, but the model has "
            f"{config.num_key_value_heads} of size {config.head_size}"
        )
    if cache.rows != rows:
        raise ValueError(f"the cache has {cache.rows} rows, but {rows} texts were given")
    if time > cache.capacity:
        raise ValueError(f"{time} tokens were given to a cache of {cache.capacity} slots: make one with more")
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(cache)):
        used = int(cache.length)
        if used + time > cache.capacity:
            raise ValueError(
                f"{time} tokens were given to a cache with {used} of {cache.capacity} slots in use: resize it"
            )
        counts = [np.repeat(np.asarray(part.valid).sum(1), rows // part.rows) for part in lineage(cache)]
        longest = int(np.sum(counts, 0).max()) + time
        if longest > config.context_length:
            raise ValueError(f"texts of {longest} tokens, but the model's context is {config.context_length} tokens")


def _normal(config: DecoderConfig) -> nn.initializers.Initializer:
    return nn.initializers.normal(config.initializer_range)


def _dense(config: DecoderConfig, features: int, axes: tuple[str, str], bias: bool, name: str) -> Linear:
    return Linear(features, axes, config.dtype, _normal(config), use_bias=bias, name=name)


def _norm(config: DecoderConfig, name: str | None) -> Any:
    kind = LayerNorm if config.norm == "layer" else RMSNorm
    return kind(config.norm_epsilon, config.dtype, name=name)


def _drop(module: Any, x: Array, rate: float, deterministic: bool) -> Array:
    """Dropout from the module's "dropout" stream, in training."""
    return x if deterministic or rate == 0 else dropout(x, rate=rate, key=module.make_rng("dropout"))
