"""Attention as an explanation: which tokens a token attends to, directly and through the layers below.

Attention weights are [batch, layers, heads, time, source]; row i says where token i looks. `attention_weights` reads
them from any model that names them; scores are [batch, time], one per token. Exact maximum flow: `attention_flow`.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcore.attribution.input_checks import Inputs, Score, check_score, checked_finite, checked_mask
from jaxcore.transforms import activation_names, capture, intervene

Query: TypeAlias = Int[Array, " batch"] | int
"""The token whose attention is explained: one position for all examples (0: [CLS], -1: the last) or one each."""


def attention_weights(
    f: Callable[..., Any], name: str = "attention_weights"
) -> Callable[..., Float[Array, "batch layers heads time source"]]:
    """Make `f` return its attention weights, ``attention_weights(f)(*args, **kwargs) -> [batch, layers, heads, ...]``.

    Layers may be a scan (one named value with leading axes; nested scans are flattened, outermost first), a Python
    loop (several named values) or a single layer. Wrap the result in `jax.jit`: what only `f`'s own output needs is
    then not computed.

    Args:
        f: any JAX function that names weights [batch, heads, time, source] with `jax.ad_checkpoint.checkpoint_name`.
        name: the name of the weights.

    Raises:
        ValueError: when called, if `f` does not name the weights (fused attention kernels have none), or values of
            that name are not [batch, heads, time, source] of one shape.
    """

    @functools.wraps(f)
    def weights(*args: Any, **kwargs: Any) -> Array:
        _require_weights(f, name, *args, **kwargs)
        return _by_layer(capture(f, name)(*args, **kwargs)[1][name])

    return weights


def raw_attention(
    weights: Float[Array, "batch layers heads time source"],
    mask: Bool[Array, "batch source"] | None = None,
    *,
    layer: int = -1,
    query: Query = 0,
) -> Float[Array, "batch source"]:
    """``mean_h A_layer,h[query, j]``: how much one token attends to each, in one layer, averaged over heads.

    Takes any map of the weights' shape, so also what `gradient_x_attention` returns.

    Args:
        weights: attention weights, see `attention_weights`.
        mask: True at tokens; scores elsewhere are set to 0.
        layer: which layer; the last by default.
        query: the token that attends ([CLS] by default), or one position per example.

    Raises:
        ValueError: weights that are not square maps, a layer or query out of range.
    """
    batch, layers, _, time = _sizes(weights)
    if not -layers <= layer < layers:
        raise ValueError(f"layer {layer} is out of range: the weights have {layers} layers, 0 to {layers - 1}")
    rows = jnp.mean(weights[:, layer], axis=1, dtype=_float_of(weights))
    return _masked(_row(rows, _positions(query, batch, time)), mask)


def attention_rollout(
    weights: Float[Array, "batch layers heads time source"],
    mask: Bool[Array, "batch source"] | None = None,
    *,
    query: Query = 0,
) -> Float[Array, "batch source"]:
    """Attention followed through all layers, with residual connections: row `query` of ``B_L ... B_2 B_1``.

        B_l = rownorm(mean_h A_l,h + I),   rollout = B_L B_{L-1} ... B_1

    Only the row asked for is carried, from the last layer to the first, so the cost is O(layers time^2); the whole
    matrix is `rollout_matrix`.

    Args:
        weights, mask, query: as in `raw_attention`.

    Returns:
        Scores [batch, source] that sum to 1 over the tokens (weights of a token on padding are 0).

    Source: Abnar & Zuidema 2020, section 3 (there 0.5 A + 0.5 I, the same for rows that sum to 1).
    """
    batch, _, _, time = _sizes(weights)
    start = jax.nn.one_hot(_positions(query, batch, time), time, dtype=_float_of(weights))

    def descend(row: Array, layer: Array) -> tuple[Array, None]:
        return jnp.einsum("bi,bij->bj", row, residual_attention(layer), precision="highest"), None

    row, _ = jax.lax.scan(descend, start, jnp.moveaxis(weights, 1, 0), reverse=True)
    return _masked(row, mask)


def rollout_matrix(
    weights: Float[Array, "batch layers heads time source"],
) -> Float[Array, "batch time source"]:
    """The rollout of every query at once, ``B_L B_{L-1} ... B_1``; see `attention_rollout`."""
    batch, _, _, time = _sizes(weights)
    identity = jnp.broadcast_to(jnp.eye(time, dtype=_float_of(weights)), (batch, time, time))

    def ascend(below: Array, layer: Array) -> tuple[Array, None]:
        return jnp.matmul(residual_attention(layer), below, precision="highest"), None

    return jax.lax.scan(ascend, identity, jnp.moveaxis(weights, 1, 0))[0]


def residual_attention(
    weights: Float[Array, "*batch heads time source"],
) -> Float[Array, "*batch time source"]:
    """``rownorm(mean_h A_h + I)``: one layer's attention with its residual connection, rows divided by their sum."""
    mean = jnp.mean(weights, axis=-3, dtype=_float_of(weights))
    with_residual = mean + jnp.eye(mean.shape[-1], dtype=mean.dtype)
    return with_residual / jnp.sum(jnp.abs(with_residual), axis=-1, keepdims=True)


def gradient_x_attention(
    score: Score, inputs: Inputs, *, name: str = "attention_weights"
) -> Float[Array, "batch layers heads time source"]:
    """``A * d score / d A``, elementwise: first-order effect on the score of each weight of each head.

    The gradient is that of the weights as they are used, each taken as a free variable (rows need not keep their sum).
    Token scores follow with `raw_attention`, or by summing over what is not wanted.

    Args:
        score: maps inputs to [batch]; its program names its attention weights, see `attention_weights`.
        inputs: a pytree of floating-point arrays [batch, ...].
        name: the name of the weights.

    Raises:
        ValueError: a score that is not [batch] or names no weights, several named values inside loops, gradients that
            are not finite.

    Source: Barkan et al. 2021 (Grad-SAM), without its ReLU.
    """
    check_score(score, inputs)
    weights, gradient = _weights_and_gradient(score, inputs, name)
    return checked_finite(weights * gradient, "gradient_x_attention")


def positive_gradient_x_attention(
    score: Score, inputs: Inputs, *, name: str = "attention_weights"
) -> Float[Array, "batch layers heads time source"]:
    """``A * relu(d score / d A)``: only the weights whose growth raises the score.

    Args and errors as in `gradient_x_attention`. Source: Barkan et al. 2021 (Grad-SAM); Chefer et al. 2021.
    """
    check_score(score, inputs)
    weights, gradient = _weights_and_gradient(score, inputs, name)
    return checked_finite(weights * jax.nn.relu(gradient), "positive_gradient_x_attention")


def receiver_scores(
    weights: Float[Array, "batch layers heads time source"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    proximity: int = 1,
) -> Float[Array, "batch layers heads source"]:
    """How much later tokens attend to a token, per head: ``V_j = mean_{i >= j + proximity} A[i, j]``.

    A head whose scores are concentrated on few tokens is a receiver head. Tokens may be sentences: average the
    weights over each pair of sentences first.

    Args:
        weights: attention weights, see `attention_weights`.
        mask: True at tokens; padding neither gives nor receives.
        proximity: the smallest distance that counts; 1 is all that lies below the diagonal.

    Returns:
        Scores, NaN where no later token exists (the last `proximity` tokens, and padding).

    Source: Bogdan et al. 2025 (Thought Anchors), receiver heads (there proximity 4, on sentences).
    """
    if proximity < 1:
        raise ValueError(f"proximity must be at least 1 (a token is no receiver of its own attention): got {proximity}")
    batch, _, _, time = _sizes(weights)
    tokens = checked_mask(mask, (batch, time))
    later = jnp.arange(time)[:, None] >= jnp.arange(time) + proximity
    pairs = later & tokens[:, :, None] & tokens[:, None, :]
    counts = jnp.sum(pairs, axis=1)[:, None, None, :]
    kept = jnp.where(pairs[:, None, None], weights.astype(_float_of(weights)), 0)
    return jnp.where(counts > 0, jnp.sum(kept, axis=-2) / jnp.maximum(counts, 1), jnp.nan)


def norm_weighted_attention(
    weights: Float[Array, "batch layers heads time source"],
    values: Float[Array, "batch layers heads source dim"],
) -> Float[Array, "batch layers time source"]:
    """``|| sum_h A_h[i, j] f_h(x_j) ||``: the length of what token j adds to token i, not only its weight.

    Computed from the heads' inner products ``<f_h(x_j), f_g(x_j)>``, so that no array [time, source, dim] is formed.

    Args:
        weights: attention weights, see `attention_weights`.
        values: f_h(x_j), each head's value vectors times its part of the output projection.

    Source: Kobayashi et al. 2020 (heads summed before the norm).
    """
    batch, layers, heads, time = _sizes(weights)
    if values.ndim != 5 or values.shape[:4] != (batch, layers, heads, time):
        raise ValueError(
            f"values must be [{batch}, {layers}, {heads}, {time}, dim], one vector per token and head of the weights: "
            f"got {list(values.shape)}"
        )
    dtype = _float_of(weights)
    gram = jnp.einsum("blhsd,blgsd->blshg", values, values, precision="highest", preferred_element_type=dtype)
    weights = weights.astype(dtype)
    mixed = jnp.einsum("blgts,blshg->blhts", weights, gram, precision="highest")
    return jnp.sqrt(jnp.maximum(jnp.sum(weights * mixed, axis=2), 0))


def _weights_and_gradient(score: Score, inputs: Inputs, name: str) -> tuple[Array, Array]:
    _require_weights(score, name, inputs)
    values = capture(score, name)(inputs)[1][name]
    zeros = jax.tree.map(jnp.zeros_like, values)

    def total(additions: Any) -> Array:
        return jnp.sum(intervene(score, {name: _addition(additions)})(inputs))

    gradients = jax.grad(total)(zeros)
    values, gradients = _by_layer(values), _by_layer(gradients)
    dtype = _float_of(values)
    return values.astype(dtype), gradients.astype(dtype)


def _addition(additions: Any) -> Callable[..., Array]:
    """An edit that adds to each named value its own entry: by the loop index, or by order for a Python loop."""
    if not isinstance(additions, tuple):

        def add_slice(value: Array, *, step: Any = ()) -> Array:
            return value + additions[step]

        return add_slice

    order = itertools.cycle(additions)  # a retraced program asks for its places anew, in the same order

    def add_next(value: Array, *, step: Any = None) -> Array:
        if step is not None:
            raise ValueError("attention weights named at several places inside loops cannot be told apart: name one")
        return value + next(order)

    return add_next


def _require_weights(f: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> None:
    names = activation_names(f, *args, **kwargs)
    if name not in names:
        listed = ", ".join(map(repr, names)) or "none"
        raise ValueError(
            f"no attention weights {name!r}: names that occur are {listed}; fused attention kernels keep no weights, "
            "so build the model with attention_implementation='explicit'"
        )
    shapes = [value.shape for value in jax.tree.leaves(names[name])]
    if len({shape[-4:] for shape in shapes}) > 1 or any(len(shape) < 4 for shape in shapes):
        raise ValueError(
            f"attention weights must be [batch, heads, time, source], of one shape in all layers: {name!r} has "
            f"{', '.join(str(list(shape)) for shape in shapes)}"
        )


def _by_layer(captured: Any) -> Array:
    """Captured weights (leading axes for loops; a tuple for several places) as [batch, layers, heads, time, source]."""
    parts = captured if isinstance(captured, tuple) else (captured,)
    stacked = jnp.concatenate([part.reshape(-1, *part.shape[-4:]) for part in parts])
    return jnp.moveaxis(stacked, 0, 1)


def _sizes(weights: Array) -> tuple[int, int, int, int]:
    if weights.ndim != 5 or weights.shape[-1] != weights.shape[-2] or not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(
            "attention weights must be floats [batch, layers, heads, time, time] (see attention_weights): "
            f"got {weights.dtype}{list(weights.shape)}"
        )
    batch, layers, heads, time, _ = weights.shape
    return batch, layers, heads, time


def _positions(query: Query, batch: int, time: int) -> Array:
    if not isinstance(query, jax.core.Tracer):
        known = np.asarray(query)
        if known.shape not in {(), (batch,)} or not np.issubdtype(known.dtype, np.integer):
            raise ValueError(f"query must be one position or one per example, an integer [{batch}]: got {query!r}")
        if known.size and (known.min() < -time or known.max() >= time):
            raise ValueError(f"query {query} is out of range: there are {time} tokens, 0 to {time - 1}")
    positions = jnp.broadcast_to(jnp.asarray(query), (batch,))
    return jnp.where(positions < 0, positions + time, positions)


def _row(maps: Array, positions: Array) -> Array:
    return jnp.take_along_axis(maps, positions[:, None, None], axis=1)[:, 0]


def _masked(scores: Array, mask: Array | None) -> Array:
    return jnp.where(checked_mask(mask, scores.shape), scores, 0)


def _float_of(array: Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)
