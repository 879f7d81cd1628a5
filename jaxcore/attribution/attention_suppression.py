"""Attention suppression: what later tokens lose when nobody may look at one sentence, in any layer and head.

Source: Bogdan et al. 2025 (Thought Anchors), masked-attention causal matrix. Divergences here are over the full
vocabulary; the released code keeps the likeliest tokens only and fills in logits of -1e9, so that what its matrix holds
is in part whether two truncated supports differ.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcore.attribution.receiver_heads import sentence_membership
from jaxcore.attribution.sentence_matrices import Matrix, normalised_by_target
from jaxcore.transforms import intervene

SUPPRESSED_SCORE = -1e6
"""Attention score of what may not be looked at: nothing after softmax, and still above what the causal mask forbids, so
that a query which may look at nothing else attends to itself and not to the future."""
DIVERGENCE_FLOOR = 1e-9


def suppressed_divergences(
    model: Any,
    params: Any,
    input_ids: Int[Array, "batch time"],
    attention_mask: Int[Array, "batch time"],
    sources: Int[Array, "batch sources 2"],
    *,
    temperature: float = 0.6,
    chunk_size: int = 8,
    time_block: int = 128,
) -> Float[Array, "batch sources time"]:
    """``KL_t = D_KL(softmax(z_t / T) || softmax(z'_t / T))`` at every token, for each source sentence suppressed.

    z are the model's logits, z' those of a pass in which every attention score to the source's tokens is suppressed
    before the softmax, for all queries. Sources go through the model `chunk_size` at a time and logits are formed for
    `time_block` tokens at a time: no array [sources, time, vocab] exists. Use it under `jax.jit`; on a mesh each
    device takes its rows of the batch, and a long trace may stand in several rows with different sources.

    Args:
        model: a `Decoder` with explicit attention, or any linen module with its `trunk`, `logits` and activation names.
        params: its parameters.
        input_ids, attention_mask: prompts with their chains of thought; padding on either side.
        sources: tokens ``[start, end)`` of each sentence that is suppressed; empty ones pad a row.
        temperature: T; 0.6 as published.
        chunk_size: sources of a row evaluated together.
        time_block: tokens whose logits are formed together.

    Returns:
        Float32 nats; meaningless at padding. A source's own tokens lose their view of themselves, too.

    Raises:
        ValueError: temperature not above 0, sizes below 1, sources of another batch; fused attention.
    """
    if not temperature > 0 or chunk_size < 1 or time_block < 1:
        raise ValueError(
            "temperature must be above 0, chunk_size and time_block at least 1: got "
            f"{temperature}, {chunk_size}, {time_block}"
        )
    batch, time = input_ids.shape
    if sources.ndim != 3 or sources.shape[0] != batch or sources.shape[2] != 2:
        raise ValueError(f"sources must be [{batch}, sources, 2], a start and an end each: got {list(sources.shape)}")
    chunk_size, time_block = min(chunk_size, sources.shape[1]), min(time_block, time)
    variables = {"params": params}

    def states(ids: Array, mask: Array) -> Array:
        return model.apply(variables, ids, mask, method="trunk")[0]

    def logits(hidden: Array) -> Array:
        return model.apply(variables, hidden, method="logits") / temperature

    base = _blocks(states(input_ids, attention_mask), time_block)

    def of_chunk(spans: Int[Array, "batch chunk 2"]) -> Float[Array, "batch chunk time"]:
        places = jnp.arange(time)
        hidden_from_all = (places >= spans[..., :1]) & (places < spans[..., 1:])
        suppressed = hidden_from_all.reshape(-1, time)[:, None, None, :]
        edits = {"attention_scores": lambda scores: jnp.where(suppressed, SUPPRESSED_SCORE, scores)}
        repeated = (jnp.repeat(array, chunk_size, axis=0) for array in (input_ids, attention_mask))
        masked = intervene(states, edits)(*repeated).reshape(batch, chunk_size, time, -1)

        def of_block(block: tuple[Array, Array]) -> Float[Array, "batch chunk block"]:
            log_p, log_q = (jax.nn.log_softmax(logits(hidden)) for hidden in block)
            log_p = log_p[:, None]
            return jnp.maximum(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), 0)

        by_block = jax.lax.map(of_block, (base, _blocks(masked, time_block)))
        return jnp.moveaxis(by_block, 0, 2).reshape(batch, chunk_size, -1)[..., :time]

    count = sources.shape[1]
    padded = jnp.pad(sources, ((0, 0), (0, -count % chunk_size), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(batch, -1, chunk_size, 2), 1, 0)
    found = jnp.moveaxis(jax.lax.map(of_chunk, chunks), 0, 1)
    return found.reshape(batch, -1, time)[:, :count]


def sentence_log_means(
    divergences: Float[Array, "batch sources time"],
    targets: Int[Array, "batch targets 2"],
    *,
    shift: int = -1,
    floor: float = DIVERGENCE_FLOOR,
) -> Float[Array, "batch sources targets"]:
    """``mean_{t in tokens of the target} ln(KL_{t + shift} + floor)``; NaN for padding targets.

    Args:
        shift: logits at t predict token t + 1. -1 credits a divergence to the token that it is about; 0, as in the
            released code, to the one before.

    Raises:
        ValueError: a shift other than 0 or -1.
    """
    if shift not in (0, -1):
        raise ValueError(f"shift must be 0 (as released) or -1 (the predicted token): got {shift}")
    member = sentence_membership(jnp.maximum(targets + shift, 0), divergences.shape[-1])
    means = jnp.einsum("bst,bmt->bsm", jnp.log(divergences + floor), member, precision="highest")
    return jnp.where((targets[..., 1] > targets[..., 0])[:, None], means, jnp.nan)


def suppression_matrix(log_means: Float[np.ndarray, "sources targets"]) -> Matrix:
    """Influences of every sentence on every later one: `log_means` of one trace, normalised by target."""
    return normalised_by_target(log_means)


def _blocks(hidden: Float[Array, "*shape time dim"], size: int) -> Float[Array, "blocks *shape size dim"]:
    """Split along time, the last block filled with zeros."""
    *shape, time, dim = hidden.shape
    padded = jnp.pad(hidden, [(0, 0)] * len(shape) + [(0, -time % size), (0, 0)])
    return jnp.moveaxis(padded.reshape(*shape, -1, size, dim), len(shape), 0)
