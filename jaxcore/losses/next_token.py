"""Next-token prediction: the log probability a language model gives each token of a text, and its mean as a loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class TokenLogProbs(NamedTuple):
    """Log probabilities of the tokens of texts, the first ones (which nothing predicts) left out."""

    values: Float[Array, "batch targets"]
    """log p(x_t | x_<t) for t = 1 .. T - 1, in nats; 0 where the token does not count."""
    counted: Bool[Array, "batch targets"]
    """Which tokens count."""

    def negative_mean(self) -> Float[Array, ""]:
        """Mean negative log-likelihood over all counted tokens of the batch, in nats; 0 without any."""
        return -jnp.sum(self.values) / jnp.maximum(jnp.sum(self.counted), 1)

    def sums(self) -> Float[Array, " batch"]:
        """Log probability of each text's counted tokens together."""
        return jnp.sum(self.values, axis=1)

    def means(self) -> Float[Array, " batch"]:
        """The same per counted token; 0 for a text without any."""
        return self.sums() / jnp.maximum(jnp.sum(self.counted, axis=1), 1)


def next_token_loss(
    logits: Float[Array, "batch time vocab"],
    input_ids: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    target_mask: Bool[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> Float[Array, ""]:
    """Mean negative log-likelihood of the tokens that count.

        L = - sum_{b, t counted} log p(x_bt | x_b,<t) / N,    log p = z_{t-1}[x_t] - logsumexp(z_{t-1})   in float32

    Pooled over the batch: N counts all its targets, so long texts weigh more. exp(L) is the perplexity.

    Args:
        logits: [B, T, V]; those at position t - 1 predict token t.
        input_ids: [B, T] the tokens that the logits were computed from.
        mask: [B, T], False on padding (left or right); None = `segment_ids > 0`, or all real.
        target_mask: [B, T], True at tokens to be predicted (those of an answer); None = all.
        segment_ids: [B, T], which document of a packed row a token belongs to, 0 on padding. No document predicts the
            first token of another.

    Raises:
        ValueError: shapes that do not fit, ids outside the vocabulary (where they are known).
    """
    return next_token_log_probs(
        logits, input_ids, mask, target_mask=target_mask, segment_ids=segment_ids
    ).negative_mean()


def next_token_log_probs(
    logits: Float[Array, "batch time vocab"],
    input_ids: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    target_mask: Bool[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> TokenLogProbs:
    """Log probability of every token that counts. Arguments and errors as for `next_token_loss`."""
    if jnp.ndim(logits) != 3 or jnp.shape(logits)[:2] != jnp.shape(input_ids):
        raise ValueError(
            "expected logits [batch, time, vocab] and input_ids [batch, time]: got "
            f"{jnp.shape(logits)} and {jnp.shape(input_ids)}"
        )
    counted = counted_targets(input_ids, mask, target_mask=target_mask, segment_ids=segment_ids)
    _check_ids(input_ids, logits.shape[-1])
    values = _log_probs(logits[:, :-1], input_ids[:, 1:])
    return TokenLogProbs(jnp.where(counted, values, 0), counted)


def chunked_next_token_log_probs(
    hidden: Float[Array, "batch time hidden"],
    input_ids: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    to_logits: Callable[[Float[Array, "batch chunk hidden"]], Float[Array, "batch chunk vocab"]],
    chunk: int,
    target_mask: Bool[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> TokenLogProbs:
    """`next_token_log_probs` from hidden states, with logits of only `chunk` positions in memory at once.

    The backward pass forms them again, so it too never holds B T V numbers. Exact; costs the head's product twice.

    Args:
        hidden: [B, T, D] after the last norm.
        to_logits: the head; may close over parameters, and gradients reach them.
        chunk: positions per step, 1 or more.

    Other arguments and errors as for `next_token_loss`; ValueError for a chunk below 1.
    """
    if jnp.ndim(hidden) != 3 or jnp.shape(hidden)[:2] != jnp.shape(input_ids):
        raise ValueError(
            "expected hidden [batch, time, hidden] and input_ids [batch, time]: got "
            f"{jnp.shape(hidden)} and {jnp.shape(input_ids)}"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be 1 or more positions: got {chunk}")
    counted = counted_targets(input_ids, mask, target_mask=target_mask, segment_ids=segment_ids)
    _check_ids(input_ids, jax.eval_shape(to_logits, hidden[:, :1]).shape[-1])
    num_targets = hidden.shape[1] - 1
    chunk = min(chunk, num_targets)
    num_chunks = -(-num_targets // chunk)
    extra = num_chunks * chunk - num_targets

    def cut(rows: Array) -> Array:
        """[B, T - 1, ...] -> [chunks, B, chunk, ...]; batch stays whole, so that a sharding of it does too."""
        padded = jnp.pad(rows, ((0, 0), (0, extra), *((0, 0),) * (rows.ndim - 2)))
        return jnp.moveaxis(padded.reshape(rows.shape[0], num_chunks, chunk, *rows.shape[2:]), 1, 0)

    @jax.checkpoint
    def of_chunk(states: Array, targets: Array) -> Array:
        return _log_probs(to_logits(states), targets)

    _, values = jax.lax.scan(
        lambda carry, part: (carry, of_chunk(*part)), None, (cut(hidden[:, :-1]), cut(input_ids[:, 1:]))
    )
    values = jnp.moveaxis(values, 0, 1).reshape(hidden.shape[0], -1)[:, :num_targets]
    return TokenLogProbs(jnp.where(counted, values, 0), counted)


def counted_targets(
    input_ids: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    target_mask: Bool[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> Bool[Array, "batch targets"]:
    """Which of the tokens 1 .. T - 1 count: real, of the same text as the real token before, and in `target_mask`.

    Arguments and errors as for `next_token_loss`.
    """
    shape = jnp.shape(input_ids)
    if len(shape) != 2 or shape[1] < 2:
        raise ValueError(f"input_ids must be [batch, time] with two or more tokens to predict one: got {shape}")
    for name, array in (("mask", mask), ("target_mask", target_mask), ("segment_ids", segment_ids)):
        if array is not None and jnp.shape(array) != shape:
            raise ValueError(f"{name} must have the shape of input_ids {shape}: got {jnp.shape(array)}")
    real = jnp.ones(shape, bool)
    if mask is not None:
        real = mask.astype(bool)
    elif segment_ids is not None:
        real = segment_ids > 0
    counted = real[:, :-1] & real[:, 1:]
    if segment_ids is not None:
        counted &= segment_ids[:, :-1] == segment_ids[:, 1:]
    if target_mask is not None:
        counted &= target_mask[:, 1:].astype(bool)
    return counted


def _log_probs(logits: Float[Array, "*rows vocab"], targets: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """`log softmax(logits)[target]`. A masked sum, not a gather: a vocabulary split over devices stays split."""
    logits = logits.astype(jnp.float32)
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    return jnp.sum(jnp.where(is_target, logits, 0), axis=-1) - jax.nn.logsumexp(logits, axis=-1)


def _check_ids(input_ids: Array, vocab_size: int) -> None:
    if isinstance(input_ids, jax.core.Tracer) or not getattr(input_ids, "is_fully_addressable", True):
        return
    ids = np.asarray(input_ids)
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise ValueError(f"input_ids must be in 0..{vocab_size - 1}: got {ids.min()}..{ids.max()}")
