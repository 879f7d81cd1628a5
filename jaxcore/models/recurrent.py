"""A bidirectional LSTM with attention that classifies a text, or a pair of texts."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxcore.distributed import constrain_rows
from jaxcore.models.affine import linear
from jaxcore.models.attention_normalisers import ATTENTION_NORMALISERS, AttentionNormaliser
from jaxcore.models.dropout import dropout
from jaxcore.models.encoder import check_token_arrays
from jaxcore.transforms.jaxprs import typed_like

RecurrentAttention = Literal["additive", "dot", "uniform"]


@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    """Sizes of a `RecurrentClassifier`; the defaults are the BiLSTM of song_of_disagreement.md."""

    vocab_size: int = 30522
    """Number of token ids."""
    embedding_size: int = 300
    """Width of word vectors, D."""
    hidden_size: int = 128
    """Width of each direction, H; a token's hidden state has 2 H entries."""
    num_layers: int = 1
    """Bidirectional layers, one on top of the other."""
    num_classes: int = 2
    """Number of logits, C."""
    inputs: Literal["single", "pair"] = "single"
    """One text, or two that share embeddings, layers and attention."""
    attention: RecurrentAttention = "additive"
    """How hidden states are scored: see `TextAttention`."""
    attention_normaliser: AttentionNormaliser = "softmax"
    """What makes weights of the scores: see `jaxcore.models.attention_normalisers`."""
    attention_size: int = 128
    """Width of the hidden layer of additive attention."""
    trainable_embeddings: bool = True
    """False stops the gradient to the table (not to the vectors looked up in it)."""
    dropout: float = 0.0
    """Dropout on word vectors and between layers, in training."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Compute dtype (float64 needs jax_enable_x64); cells, attention and logits are float32 or wider."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_layers", "num_classes", "attention_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        choices = {
            "inputs": ("single", "pair"),
            "attention": get_args(RecurrentAttention),
            "attention_normaliser": get_args(AttentionNormaliser),
            "dtype": ("float32", "bfloat16", "float16", "float64"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


@flax.struct.dataclass
class RecurrentOutput:
    """Class scores, and the attention weights of each text (0 on padding; those of a text sum to 1)."""

    logits: Float[Array, "batch classes"]
    attention_weights: Float[Array, "batch time"]
    second_attention_weights: Float[Array, "batch second_time"] | None = None


class RecurrentClassifier(nn.Module):
    """Word vectors, a bidirectional LSTM, attention, one linear layer (Neely et al. 2022, Appendix D).

        h_1 ... h_T = BiLSTM(x_1 ... x_T),   c = sum_t alpha_t h_t,   logits = W c + b

    For a pair, both texts are read alike and ``logits = W [c1, c2, |c1 - c2|, c1 * c2] + b``.

    Padding changes nothing, wherever it stands. Named activations: `token_embeddings` (batch, time, D), what
    `classify` takes; `hidden_states` (batch, time, 2 H) of the last layer, 0 on padding; `attention_weights` (batch,
    time); `logits`. With a pair, each of the first three names has two places, first text before second; `text_states`
    (texts * batch, time, 2 H) has the hidden states of both in one, padded to the longer.
    """

    config: RecurrentConfig

    def setup(self) -> None:
        config = self.config
        table = nn.with_logical_partitioning(nn.initializers.normal(config.embedding_size**-0.5), ("vocab", "embed"))
        self.word: Any = self.param("word", table, (config.vocab_size, config.embedding_size), jnp.float32)
        self.layers = [
            BidirectionalLSTM(config.hidden_size, config.dtype, name=f"layer_{index}")
            for index in range(config.num_layers)
        ]
        self.attention = TextAttention(
            config.attention, config.attention_size, config.attention_normaliser, name="attention"
        )
        self.output = nn.Dense(
            config.num_classes,
            dtype=jnp.promote_types(config.dtype, jnp.float32),
            kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", None)),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,)),
            name="output",
        )

    def __call__(
        self,
        input_ids: Int[Array, "batch time"],
        attention_mask: Int[Array, "batch time"] | None = None,
        second_ids: Int[Array, "batch second_time"] | None = None,
        second_mask: Int[Array, "batch second_time"] | None = None,
        *,
        deterministic: bool = True,
    ) -> RecurrentOutput:
        """Classify token ids.

        Args:
            input_ids: an id outside the vocabulary gives NaN, not another word's vector.
            attention_mask: 1 on real tokens, 0 on padding; None = all real.
            second_ids, second_mask: the second text of a pair, of its own length.
            deterministic: False applies dropout, from the rng stream "dropout".

        Raises:
            ValueError: shapes that differ, or a second text where the configuration has none (or the reverse).
        """
        check_token_arrays(input_ids, attention_mask=attention_mask)
        if second_ids is not None:
            check_token_arrays(second_ids, second_mask=second_mask)
        second = None if second_ids is None else self.embed(second_ids)
        return self.classify(self.embed(input_ids), attention_mask, second, second_mask, deterministic=deterministic)

    def embed(self, input_ids: Int[Array, "batch time"]) -> Float[Array, "batch time dim"]:
        """The word vectors that `classify` takes: ``model.apply(variables, ids, method="embed")``."""
        table = self.word if self.config.trainable_embeddings else jax.lax.stop_gradient(self.word)
        return jnp.take(table, input_ids, axis=0, mode="fill").astype(self.config.dtype)

    def classify(
        self,
        embeddings: Float[Array, "batch time dim"],
        attention_mask: Int[Array, "batch time"] | None = None,
        second_embeddings: Float[Array, "batch second_time dim"] | None = None,
        second_mask: Int[Array, "batch second_time"] | None = None,
        *,
        deterministic: bool = True,
    ) -> RecurrentOutput:
        """Classify word vectors: what attribution differentiates. Arguments and errors as of the call on ids."""
        texts = [(embeddings, attention_mask)]
        if (second_embeddings is not None) != (self.config.inputs == "pair"):
            given = "one text" if second_embeddings is None else "two texts"
            raise ValueError(f"inputs={self.config.inputs!r} but {given} given: a 'pair' is two, a 'single' one")
        if second_embeddings is not None:
            texts.append((second_embeddings, second_mask))
        masks = [_as_mask(vectors, mask, self.config.embedding_size) for vectors, mask in texts]
        if len({len(mask) for mask in masks}) > 1:
            raise ValueError(
                f"both texts of a pair must have one batch size, got {[len(mask) for mask in masks]}: give one each"
            )
        vectors = [checkpoint_name(constrain_rows(x.astype(self.config.dtype)), "token_embeddings") for x, _ in texts]
        hidden = self._read(vectors, masks, deterministic)
        weights, contexts = zip(*(self.attention(h, mask) for h, mask in zip(hidden, masks, strict=True)), strict=True)
        context = contexts[0] if len(contexts) == 1 else _compare(*contexts)
        logits = checkpoint_name(self.output(context), "logits")
        return RecurrentOutput(logits, weights[0], weights[1] if len(weights) == 2 else None)

    def _read(self, vectors: list[Array], masks: list[Array], deterministic: bool) -> list[Array]:
        """Hidden states of each text. Both texts of a pair run as one batch: half the sequential steps."""
        longest = max(x.shape[1] for x in vectors)
        x = jnp.concatenate([_pad_time(x, longest) for x in vectors])
        mask = jnp.concatenate([_pad_time(mask, longest) for mask in masks])
        for layer in self.layers:
            x = layer(self._drop(x, deterministic), mask)
        x = checkpoint_name(x, "text_states")
        parts = jnp.split(x, len(vectors))
        return [
            checkpoint_name(part[:, : mask.shape[1]], "hidden_states") for part, mask in zip(parts, masks, strict=True)
        ]

    def _drop(self, x: Array, deterministic: bool) -> Array:
        if deterministic or self.config.dropout == 0:
            return x
        return dropout(x, rate=self.config.dropout, key=self.make_rng("dropout"))


class BidirectionalLSTM(nn.Module):
    """One layer read in both directions; gates i, f, g, o as in Hochreiter & Schmidhuber 1997 with forget gates.

        [i, f, g, o] = W x_t + U h_(t-1) + b
        c_t = sigmoid(f) * c_(t-1) + sigmoid(i) * tanh(g),   h_t = sigmoid(o) * tanh(c_t)

    A token that is not real leaves the state as it is, so the backward direction starts at the last real one. W x is
    one product for all tokens and both directions; only U h remains inside the scan over time.
    """

    hidden_size: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time features"], mask: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time twice_hidden"]:
        """States [forward, backward] of every token, in `dtype`; 0 where the mask is False."""
        size, dtype = self.hidden_size, jnp.dtype(self.dtype)
        kernel = self._param("kernel", ("embed", None, None), (x.shape[-1], 2, 4 * size))
        recurrent = self._param("recurrent_kernel", (None, None, None), (2, size, 4 * size)).astype(dtype)
        bias = self._param("bias", (None, None), (2, 4 * size))
        # Rows stay outermost in the product: were they behind time, a mesh could not keep them split.
        inputs = constrain_rows(
            linear(constrain_rows(x), kernel.reshape(x.shape[-1], -1), bias.reshape(-1), dtype=dtype)
        )
        inputs = jnp.swapaxes(inputs, 0, 1).reshape(x.shape[1], x.shape[0], 2, 4 * size)
        inputs = jnp.stack([inputs[:, :, 0], inputs[::-1, :, 1]], axis=1)  # time, direction, batch, gates
        real = mask.T[:, :, None]
        real = jnp.stack([real, real[::-1]], axis=1)
        wide = jnp.promote_types(dtype, jnp.float32)

        def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = carry
            products = jnp.einsum("dbh,dhg->dbg", hidden, recurrent, preferred_element_type=wide)
            enter, forget, candidate, leave = jnp.split(now[0].astype(wide) + products, 4, axis=-1)
            new_cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            new_hidden = (jax.nn.sigmoid(leave) * jnp.tanh(new_cell)).astype(dtype)
            carry = jnp.where(now[1], new_hidden, hidden), jnp.where(now[1], new_cell, cell)
            return carry, jnp.where(now[1], new_hidden, 0)

        like = inputs[0, :, :, :size]
        start = tuple(typed_like(jnp.zeros(like.shape, kind), like) for kind in (dtype, wide))
        _, states = jax.lax.scan(step, start, (inputs, real))
        return constrain_rows(jnp.swapaxes(jnp.concatenate([states[:, 0], states[::-1, 1]], axis=-1), 0, 1))

    def _param(self, name: str, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> Array:
        """Uniform in +-1/sqrt(H), as PyTorch draws them and as the published runs did."""
        bound = 1 / math.sqrt(self.hidden_size)

        def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return jnp.asarray(self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32))


class TextAttention(nn.Module):
    """``alpha = normaliser(e)`` over the real tokens and ``c = sum_t alpha_t h_t``; nothing else is asked of the text.

    "additive": ``e_t = v' tanh(W h_t + b)`` (Bahdanau et al. 2015 without a query); "dot": ``e_t = q' h_t / sqrt(2 H)``
    with one learned vector q; "uniform": ``e_t = 0``, the mean, which shows what attention is worth. The normaliser is
    softmax, or one whose weights can be 0 (sparsemax, 1.5-entmax), for which DeepLIFT and LRP have no rule. A text
    without real tokens has weights and context 0.
    """

    kind: RecurrentAttention
    size: int
    normaliser: AttentionNormaliser = "softmax"

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "batch time features"], mask: Bool[Array, "batch time"]
    ) -> tuple[Float[Array, "batch time"], Float[Array, "batch features"]]:
        """Weights (float32 or wider) and context."""
        states = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
        weights = ATTENTION_NORMALISERS[self.normaliser](self._scores(states), mask=mask)
        weights = checkpoint_name(weights, "attention_weights")
        return weights, jnp.einsum("bt,bth->bh", weights, states).astype(hidden.dtype)

    def _scores(self, states: Float[Array, "batch time features"]) -> Float[Array, "batch time"]:
        features = states.shape[-1]
        if self.kind == "uniform":
            return jnp.zeros(states.shape[:2], states.dtype)
        if self.kind == "dot":
            query = self._param("query", ("embed",), (features,), features)
            return states @ (query.astype(states.dtype) / math.sqrt(features))
        kernel = self._param("kernel", ("embed", None), (features, self.size), features)
        bias = self._param("bias", (None,), (self.size,), features)
        vector = self._param("vector", (None,), (self.size,), self.size)
        return jnp.tanh(linear(states, kernel, bias, dtype=states.dtype)) @ vector.astype(states.dtype)

    def _param(self, name: str, axes: tuple[str | None, ...], shape: tuple[int, ...], fan_in: int) -> Array:
        init = nn.initializers.normal(fan_in**-0.5)
        return jnp.asarray(self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32))


def with_word_vectors(params: Mapping[str, Any], table: Float[Array, "vocab dim"]) -> dict[str, Any]:
    """The parameters of a `RecurrentClassifier` with its word table replaced by pretrained vectors.

    Args:
        params: the "params" collection, boxed or not; returned without boxes.
        table: [vocab_size, embedding_size], floating point.

    Raises:
        ValueError: a table of another shape than the model's, or of integers.
    """
    unboxed = nn.meta.unbox(dict(params))
    expected, given = unboxed["word"].shape, jnp.shape(table)
    if given != expected:
        raise ValueError(f"the table must be [vocab_size, embedding_size] = {list(expected)}, got {list(given)}")
    if not jnp.issubdtype(jnp.result_type(table), jnp.floating):
        raise ValueError(f"the table must be floating point, got {jnp.result_type(table)}")
    return {**unboxed, "word": jnp.asarray(table, unboxed["word"].dtype)}


def _as_mask(vectors: Array, mask: Array | None, size: int) -> Bool[Array, "batch time"]:
    if vectors.ndim != 3 or vectors.shape[-1] != size or not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise ValueError(
            f"embeddings must be floating point (batch, time, {size}), got {vectors.dtype} of shape {vectors.shape}"
        )
    if mask is None:
        return jnp.ones(vectors.shape[:2], bool)
    if mask.shape != vectors.shape[:2]:
        raise ValueError(f"attention_mask must have the shape {vectors.shape[:2]} of the tokens, got {mask.shape}")
    return mask.astype(bool)


def _pad_time(x: Array, length: int) -> Array:
    return jnp.pad(x, [(0, length - x.shape[1]) if axis == 1 else (0, 0) for axis in range(x.ndim)])


def _compare(first: Float[Array, "batch dim"], second: Float[Array, "batch dim"]) -> Float[Array, "batch features"]:
    return jnp.concatenate([first, second, jnp.abs(first - second), first * second], axis=-1)
