"""Multi-head attention: the one function through which every transformer of the project attends."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from jaxcore.models.dropout import dropout

AttentionImplementation = Literal["auto", "explicit", "fused"]


def attend(
    queries: Float[Array, "batch time heads head_dim"],
    keys: Float[Array, "batch source heads head_dim"],
    values: Float[Array, "batch source heads head_dim"],
    mask: Bool[Array, "batch #heads #time source"] | None,
    *,
    implementation: AttentionImplementation = "auto",
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Float[Array, "batch time heads head_dim"]:
    """Scaled dot-product attention, `softmax(Q K' / sqrt(d) + mask) V` per head (Vaswani et al. 2017, 3.2.1).

    Logits and softmax are float32 whatever the dtype of the arguments. A query that may look at nothing gets
    the plain mean of all values (never NaN), as in transformers.

    Args:
        queries, keys, values: one vector per token and head, all of one dtype.
        mask: True where a query may look at a source token; None = everywhere.
        implementation: "explicit" forms the weights and names them `attention_weights`, so that `capture` and
            `intervene` reach them. "fused" calls `jax.nn.dot_product_attention` (the cuDNN flash kernel on
            NVIDIA GPUs in half precision), whose weights exist nowhere. "auto" is "explicit" on CPU, where it
            is also the faster one, and "fused" elsewhere. Fused kernels have no weight dropout: "auto" falls
            back to "explicit" while it is in force, "fused" refuses.
        dropout_rate: probability of dropping a weight (0 to 1); in force when `dropout_key` is given.
        dropout_key: a `jax.random.key`, or None at inference.

    Raises:
        ValueError: unknown implementation; "fused" with weight dropout in force.
    """
    drops = dropout_key is not None and dropout_rate > 0
    if implementation == "auto":
        implementation = "explicit" if drops or jax.default_backend() == "cpu" else "fused"
    if implementation == "explicit":
        return _explicit(queries, keys, values, mask, dropout_rate if drops else 0.0, dropout_key)
    if implementation != "fused":
        raise ValueError(f"unknown attention implementation {implementation!r}: use 'auto', 'explicit' or 'fused'")
    if drops:
        raise ValueError(
            f"fused attention has no weight dropout, but attention_dropout={dropout_rate}: "
            "set it to 0, or use the implementation 'auto' or 'explicit'"
        )
    return fused_attention(queries, keys, values, mask)


def _explicit(queries, keys, values, mask, dropout_rate, dropout_key):
    """Attention with its weights as a named array of shape (batch, heads, time, source).

    Heads come before time from the start: both products and all their derivatives are then plain batched
    matrix products, where einsums on (batch, time, heads, head_dim) make XLA CPU transpose the larger arrays.
    """
    queries, keys, values = (x.swapaxes(1, 2) for x in (queries, keys, values))
    queries = queries * (1 / math.sqrt(queries.shape[-1]))
    logits = jnp.einsum("bhtd,bhsd->bhts", queries, keys, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, LARGE_NEGATIVE)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    weights = checkpoint_name(weights, "attention_weights")
    if dropout_rate > 0:
        weights = dropout(weights, rate=dropout_rate, key=dropout_key)
    return jnp.einsum("bhts,bhsd->bhtd", weights, values).swapaxes(1, 2)


# Finite, so that a row with nothing to look at stays finite; far below any logit.
LARGE_NEGATIVE = -1e30


def fused_attention(
    queries: Float[Array, "batch time heads head_dim"],
    keys: Float[Array, "batch source groups head_dim"],
    values: Float[Array, "batch source groups head_dim"],
    mask: Bool[Array, "batch #heads #time source"] | None,
) -> Float[Array, "batch time heads head_dim"]:
    """Attention whose weights exist nowhere; heads may share keys and values in equal groups."""
    half = queries.dtype in (jnp.bfloat16, jnp.float16)
    cudnn = half and jax.default_backend() == "gpu" and queries.shape[-1] % 8 == 0
    if mask is not None and cudnn:  # the kernel wants the mask of every query written out
        batch, time, source = queries.shape[0], queries.shape[1], keys.shape[1]
        mask = jnp.broadcast_to(mask, (batch, mask.shape[1], time, source))
    return jax.nn.dot_product_attention(queries, keys, values, mask=mask, implementation="cudnn" if cudnn else None)
