"""Receiver heads: attention heads whose later sentences look at few earlier ones, and how they are found.

Attention is averaged over pairs of sentences inside the model, layer by layer, so the maps over tokens of all layers
never exist together. A head's vertical scores say how much later sentences attend to each sentence, their kurtosis how
concentrated that is; the heads of largest mean kurtosis over traces are the receivers.

Source: Bogdan et al. 2025 (Thought Anchors), released code.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jaxcore.attribution.attention import receiver_scores
from jaxcore.transforms import capture, intervene

SENTENCE_ATTENTION = "sentence_attention"


def sentence_membership(spans: Int[Array, "*batch sentences 2"], time: int) -> Float[Array, "*batch sentences time"]:
    """``1 / length`` at the tokens ``[start, end)`` of each sentence, else 0: a product with it is a mean over tokens.

    Sentences of no tokens (start >= end), which pad a batch, are rows of zeros.
    """
    starts, ends = spans[..., 0, None], spans[..., 1, None]
    places = jnp.arange(time)
    inside = (places >= starts) & (places < ends)
    return inside / jnp.maximum(ends - starts, 1)


def sentence_matrix(
    weights: Float[Array, "batch heads time time"], spans: Int[Array, "batch sentences 2"]
) -> Float[Array, "batch heads sentences sentences"]:
    """``B[i, j] = mean of A[t, s] over the tokens t of sentence i and s of sentence j``; NaN for padding sentences.

    The mean is over both axes, so a longer sentence is not attended to more for its length.
    """
    member = sentence_membership(spans, weights.shape[-1])
    means = jnp.einsum("bit,bhts,bjs->bhij", member, weights.astype(jnp.float32), member, precision="highest")
    real = spans[..., 1] > spans[..., 0]
    return jnp.where((real[:, :, None] & real[:, None, :])[:, None], means, jnp.nan)


def with_sentence_attention(
    f: Callable[..., Any], spans: Int[Array, "batch sentences 2"]
) -> Callable[..., tuple[Any, Float[Array, "layers batch heads sentences sentences"]]]:
    """Make `f` return its result and the `sentence_matrix` of every layer and head.

    An edit that changes nothing reduces each layer's weights where they are, and names what `capture` collects.

    Args:
        f: a decoder's call that names its `attention_weights` [batch, heads, time, time] (explicit attention), in a
            scan over layers or layer by layer.

    Raises:
        ValueError: when called, if `f` names no weights (fused attention has none).
    """

    def reduce(weights: Array) -> Array:
        checkpoint_name(sentence_matrix(weights, spans), SENTENCE_ATTENTION)
        return weights

    observed = capture(intervene(f, {"attention_weights": reduce}), SENTENCE_ATTENTION)

    def run(*args: Any, **kwargs: Any) -> tuple[Any, Array]:
        result, captured = observed(*args, **kwargs)
        matrices = captured[SENTENCE_ATTENTION]
        return result, jnp.stack(matrices) if isinstance(matrices, tuple) else matrices

    return run


def vertical_scores(
    matrix: Float[Array, "*shape sentences sentences"],
    *,
    proximity: int = 4,
    drop_first: int = 0,
    drop_last: int = 0,
    depth_control: bool = False,
) -> Float[Array, "*shape sentences"]:
    """``V_j = mean_{i >= j + proximity} B[i, j]``: how much sentences that are not near attend to sentence j.

    Args:
        matrix: of sentences, see `sentence_matrix`; NaN in the rows and columns of padding.
        proximity: a sentence and the next `proximity` - 1 are ignored; published: 4 (calling scripts) and 20.
        drop_first, drop_last: so many scores at each end become NaN (the opening is an attention sink). With padding,
            the end is that of the real sentences.
        depth_control: replace each row by its ranks among the pairs that count, over their number: late rows spread
            their attention over more sentences.

    Returns:
        Scores, NaN where no later sentence counts.

    Raises:
        ValueError: proximity < 1, a matrix that is not square, drops below 0.
    """
    if drop_first < 0 or drop_last < 0:
        raise ValueError(f"drop_first and drop_last must be at least 0: got {drop_first}, {drop_last}")
    *shape, sentences, columns = matrix.shape
    if sentences != columns:
        raise ValueError(f"a matrix of sentences must be square: got {list(matrix.shape)}")
    real = jnp.isfinite(jnp.diagonal(matrix, axis1=-2, axis2=-1))
    if depth_control:
        matrix = _ranks_in_rows(matrix, proximity)
    flat = jnp.where(jnp.isfinite(matrix), matrix, 0).reshape(-1, 1, 1, sentences, sentences)
    scores = receiver_scores(flat, real.reshape(-1, sentences), proximity=proximity).reshape(*shape, sentences)
    places, count = jnp.arange(sentences), real.sum(-1, keepdims=True)
    return jnp.where((places >= drop_first) & (places < count - drop_last), scores, jnp.nan)


def kurtosis(values: Float[Array, "*shape n"]) -> Float[Array, "*shape"]:
    """Fisher's (excess) kurtosis ``m_4 / m_2^2 - 3`` over the last axis, biased, NaN left out.

    NaN for fewer than two values or without spread. Equals ``scipy.stats.kurtosis(..., nan_policy="omit")``.
    """
    counted = jnp.isfinite(values)
    count = jnp.sum(counted, -1)
    mean = jnp.sum(jnp.where(counted, values, 0), -1, keepdims=True) / jnp.maximum(count, 1)[..., None]
    deviations = jnp.where(counted, values - mean, 0)
    # In units of the largest deviation: fourth powers of attention weights underflow in float32.
    scale = jnp.max(jnp.abs(deviations), -1, keepdims=True)
    deviations = deviations / jnp.where(scale > 0, scale, 1)
    second, fourth = (jnp.sum(deviations**power, -1) / jnp.maximum(count, 1) for power in (2, 4))
    return jnp.where((count > 1) & (second > 0), fourth / jnp.where(second > 0, second, 1) ** 2 - 3, jnp.nan)


def top_heads(
    kurtoses: Float[np.ndarray, "traces layers heads"], count: int, *, skip_layers: int = 1
) -> Int[np.ndarray, "count 2"]:
    """(layer, head) of the `count` heads of largest mean kurtosis over traces, best first; ties by place.

    Args:
        kurtoses: of each trace's vertical scores; NaN (a trace too short) is left out of the mean.
        skip_layers: layers at the bottom that are no candidates; published figures leave layer 0 out.

    Raises:
        ValueError: fewer candidates with a kurtosis than `count`.
    """
    means = mean_kurtosis(kurtoses)
    means[:skip_layers] = -np.inf
    ranked = np.where(np.isnan(means), -np.inf, means).reshape(-1)
    candidates = int(np.sum(np.isfinite(ranked)))
    if not 1 <= count <= candidates:
        raise ValueError(f"{count} heads were asked for, but {candidates} have a kurtosis: expected 1 to {candidates}")
    order = np.argsort(-ranked, kind="stable")[:count]
    return np.stack(np.unravel_index(order, means.shape), axis=1).astype(np.int64)


def mean_kurtosis(kurtoses: Float[np.ndarray, "traces layers heads"]) -> Float[np.ndarray, "layers heads"]:
    """Mean over the traces where it is defined; NaN where it is nowhere."""
    kurtoses = np.asarray(kurtoses, np.float64)
    counts = np.sum(~np.isnan(kurtoses), axis=0)
    return np.where(counts > 0, np.nansum(kurtoses, axis=0) / np.maximum(counts, 1), np.nan)


def split_half_reliability(kurtoses: Float[np.ndarray, "traces layers heads"]) -> float:
    """Pearson correlation over heads of the mean kurtosis in even and in odd traces; NaN where it is undefined.

    Raises:
        ValueError: fewer than two traces.
    """
    if len(kurtoses) < 2:
        raise ValueError(f"halves need at least two traces: got {len(kurtoses)}")
    even, odd = (mean_kurtosis(kurtoses[start::2]).reshape(-1) for start in (0, 1))
    kept = np.isfinite(even) & np.isfinite(odd)
    if kept.sum() < 2 or np.ptp(even[kept]) == 0 or np.ptp(odd[kept]) == 0:
        return float("nan")
    return float(np.corrcoef(even[kept], odd[kept])[0, 1])


def _ranks_in_rows(matrix: Array, proximity: int) -> Array:
    """Average ranks (1 = smallest) of the entries j <= i - proximity of each row i, over their number."""
    places = jnp.arange(matrix.shape[-1])
    counts = (places[None, :] <= places[:, None] - proximity) & jnp.isfinite(matrix)

    def of_row(row: Array, counted: Array) -> Array:
        both = counted[:, None] & counted[None, :]
        below = jnp.sum((row[None, :] < row[:, None]) & both, axis=1)
        ties = jnp.sum((row[None, :] == row[:, None]) & both, axis=1)
        return (below + (ties + 1) / 2) / jnp.maximum(counted.sum(), 1)

    flat = matrix.reshape(-1, matrix.shape[-1])
    ranks = jax.lax.map(lambda pair: of_row(*pair), (flat, counts.reshape(flat.shape)), batch_size=64)
    return ranks.reshape(matrix.shape)
