"""Propensities of pairs, and sampling by their inverse.

The propensity of a pair is how likely a naive rule would have picked it, as a function of features that should not
matter (how alike two sentences look). Sampling by the inverse propensity, among the pairs that a gate lets through,
makes selection independent of those features.

Features lie in [0, 1] unless `ranges` says otherwise. Tables are estimated on the host; looking up and sampling are JAX
functions that work under `jit`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Ranges = Sequence[tuple[float, float]]

# ---- tables ----------------------------------------------------------------------------------------------


def propensity_histogram(
    features: np.ndarray | Sequence[np.ndarray],
    selection: Float[np.ndarray, "*shape"],
    *,
    num_bins: int | Sequence[int] = 10,
    minimum: float = 0.02,
    ranges: Ranges | None = None,
    valid: Bool[np.ndarray, "*shape"] | None = None,
) -> Float[np.ndarray, "*bins"]:
    """How likely the naive rule picks a pair, by bins of its features.

        e(b) = sum of selection in bin b / number of pairs in bin b,   divided by its maximum, clipped to [minimum, 1]

    Unclipped, one empty bin would give a handful of pairs all the weight. Empty bins get the minimum.

    Args:
        features: One array of any shape, or several of one shape for a table of as many dimensions.
        selection: Of that shape, >= 0: the naive rule's probability of every pair (or 1 for a pair it drew, 0 else).
        num_bins: Bins of each feature.
        minimum: Smallest propensity, in (0, 1].
        ranges: (low, high) of each feature; (0, 1) unless given. Values beyond count for the outer bins.
        valid: Of that shape; False leaves a pair out.

    Returns:
        float32 table, its largest entry 1.

    Raises:
        ValueError: Shapes that do not fit, selection that is negative or nowhere positive, bins or minimum out of
            range, features that are not numbers.

    Source: debcse.md M3.
    """
    arrays = _as_features(features)
    _check_table(num_bins, minimum)
    bins, shape = _host_bins(arrays, num_bins, ranges)
    selection = np.asarray(selection, np.float64)
    if selection.shape != arrays[0].shape:
        raise ValueError(f"selection must have the features' shape {arrays[0].shape}: got {selection.shape}")
    kept = np.ones(selection.shape, bool) if valid is None else np.asarray(valid, bool)
    if not np.all(selection[kept] >= 0) or not np.any(selection[kept] > 0):
        raise ValueError("selection must be >= 0, and positive somewhere; give the naive rule's probabilities")
    size = int(np.prod(shape))
    chosen = np.bincount(bins[kept], weights=selection[kept], minlength=size)
    present = np.bincount(bins[kept], minlength=size)
    rate = np.where(present > 0, chosen / np.maximum(present, 1), 0)
    return _normalized(rate, minimum).reshape(shape)


def frequency_histogram(
    features: np.ndarray | Sequence[np.ndarray],
    *,
    num_bins: int | Sequence[int] = 10,
    minimum: float = 0.02,
    ranges: Ranges | None = None,
) -> Float[np.ndarray, "*bins"]:
    """The propensity under a rule that draws pairs blindly: how often each bin occurs among pairs it drew.

        e(b) = number of pairs in bin b,   divided by its maximum, clipped to [minimum, 1]

    Arguments and errors as for `propensity_histogram`.

    Source: debcse.md M3, negative side.
    """
    arrays = _as_features(features)
    _check_table(num_bins, minimum)
    bins, shape = _host_bins(arrays, num_bins, ranges)
    return _normalized(np.bincount(bins.reshape(-1), minlength=int(np.prod(shape))), minimum).reshape(shape)


def importance_target_histogram(
    surface: Float[np.ndarray, " pairs"],
    meaning: Float[np.ndarray, " pairs"],
    *,
    num_bins: tuple[int, int] = (10, 10),
    ranges: Ranges = ((0.0, 1.0), (-1.0, 1.0)),
    smoothing: float = 1.0,
) -> Float[np.ndarray, "surface_bins meaning_bins"]:
    """The distribution q(phi, psi) of labelled pairs that sampled pairs shall look like.

        q(b) = (pairs in bin b + smoothing) / (all pairs + smoothing x bins)

    Args:
        surface, meaning: [pairs], phi and psi of pairs of one label (entailments, or gold > 4; contradictions or < 2).
        num_bins, ranges: Of phi and psi.
        smoothing: Pseudo-count of every bin; > 0 keeps all weights finite.

    Returns:
        float32 [surface bins, meaning bins], sum 1.

    Raises:
        ValueError: No pairs, arrays of different lengths, smoothing that is not positive.

    Source: debcse.md M3, ``target = supervised``.
    """
    arrays = _as_features((surface, meaning))
    if arrays[0].size == 0:
        raise ValueError("no labelled pairs to estimate a target from; give at least one")
    if not smoothing > 0:
        raise ValueError(f"smoothing must be positive: got {smoothing}")
    bins, shape = _host_bins(arrays, num_bins, ranges)
    counts = np.bincount(bins.reshape(-1), minlength=int(np.prod(shape))) + smoothing
    return (counts / counts.sum()).astype(np.float32).reshape(shape)


def importance_propensity(
    naive: Float[np.ndarray, "*bins"], target: Float[np.ndarray, "*bins"], *, minimum: float = 0.02
) -> Float[np.ndarray, "*bins"]:
    """The table whose inverse is the importance weight q / p, up to a factor.

        e(b) = p(b) / q(b),   divided by its maximum, clipped to [minimum, 1]

    Sampling pairs that follow p by 1 / e gives pairs that follow q, within the clipping.

    Args:
        naive: p >= 0, the distribution of the pairs to choose from (any factor).
        target: q > 0, of the same shape.

    Raises:
        ValueError: Different shapes, a target that is 0 somewhere (smooth it), a minimum out of range.
    """
    _check_table(1, minimum)
    naive, target = np.asarray(naive, np.float64), np.asarray(target, np.float64)
    if naive.shape != target.shape:
        raise ValueError(f"naive and target must be tables of one shape: got {naive.shape} and {target.shape}")
    if not np.all(target > 0) or not np.all(naive >= 0) or not np.any(naive > 0):
        raise ValueError("target must be positive everywhere (smooth it), naive >= 0 and positive somewhere")
    return _normalized(naive / target, minimum)


def propensity_lookup(
    table: Float[Array, "*bins"],
    features: Float[Array, "*shape"] | Sequence[Float[Array, "*shape"]],
    *,
    ranges: Ranges | None = None,
) -> Float[Array, "*shape"]:
    """The table's entry for every pair; features and ranges as when it was made. Works under `jit`.

    Raises:
        ValueError: As many features as the table has dimensions are needed, of one shape.
    """
    arrays: list = [jnp.asarray(x) for x in (features if isinstance(features, (list, tuple)) else [features])]
    table = jnp.asarray(table)
    if len(arrays) != table.ndim or len({x.shape for x in arrays}) != 1:
        raise ValueError(
            f"a table of {table.ndim} dimensions needs as many features of one shape: got {[x.shape for x in arrays]}"
        )
    return table[tuple(_bins(arrays, table.shape, ranges, jnp))]


def _as_features(features: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    several = isinstance(features, (list, tuple))
    arrays = [np.asarray(x, np.float64) for x in (features if several else [features])]
    if len({x.shape for x in arrays}) != 1:
        raise ValueError(f"features must have one shape: got {[x.shape for x in arrays]}")
    if not all(np.isfinite(x).all() for x in arrays):
        raise ValueError("features must be finite numbers; leave out pairs without them")
    return arrays


def _check_table(num_bins: int | Sequence[int], minimum: float) -> None:
    if np.min(num_bins) < 1:
        raise ValueError(f"num_bins must be at least 1: got {num_bins}")
    if not 0 < minimum <= 1:
        raise ValueError(f"minimum must be in (0, 1]: got {minimum}")


def _bins(arrays: Sequence, shape: Sequence[int], ranges: Ranges | None, numpy) -> list:
    """The bin of every value along each dimension; values beyond the range count for the outer bins."""
    ranges = [(0.0, 1.0)] * len(arrays) if ranges is None else ranges
    if len(ranges) != len(arrays) or not all(low < high for low, high in ranges):
        raise ValueError(f"{len(arrays)} ranges (low, high) with low < high are needed: got {list(ranges)}")
    scaled = [
        numpy.floor((numpy.asarray(x, numpy.float32) - numpy.float32(low)) / numpy.float32(high - low) * count)
        for x, count, (low, high) in zip(arrays, shape, ranges, strict=True)
    ]
    return [numpy.clip(x, 0, count - 1).astype(numpy.int32) for x, count in zip(scaled, shape, strict=True)]


def _host_bins(
    arrays: Sequence[np.ndarray], num_bins: int | Sequence[int], ranges: Ranges | None
) -> tuple[Int[np.ndarray, "*shape"], tuple[int, ...]]:
    shape = (num_bins,) * len(arrays) if isinstance(num_bins, int) else tuple(num_bins)
    if len(shape) != len(arrays):
        raise ValueError(f"num_bins must have one number per feature ({len(arrays)}): got {num_bins}")
    return np.ravel_multi_index(_bins(arrays, shape, ranges, np), shape), shape


def _normalized(rate: np.ndarray, minimum: float) -> Float[np.ndarray, "*bins"]:
    return np.clip(rate / rate.max(), minimum, 1).astype(np.float32)


# ---- a smooth propensity of several features -------------------------------------------------------------


class LogisticPropensity(NamedTuple):
    """``e(x) = sigmoid(x . weights + bias) / largest``, clipped to [minimum, 1]."""

    weights: Float[np.ndarray, " features"]
    bias: float
    largest: float
    minimum: float

    def lookup(self, features: Float[Array, "*shape features"]) -> Float[Array, "*shape"]:
        """The propensity of every pair. Works under `jit`."""
        probability = jax.nn.sigmoid(jnp.asarray(features, jnp.float32) @ jnp.asarray(self.weights) + self.bias)
        return jnp.clip(probability / self.largest, self.minimum, 1.0)


def fit_logistic_propensity(
    features: Float[np.ndarray, "*shape features"],
    selection: Float[np.ndarray, "*shape"],
    *,
    minimum: float = 0.02,
    regularization: float = 1.0,
) -> LogisticPropensity:
    """A logistic model of P(selected | features), for more features than a table can have.

    Every pair enters as selected with weight pi and as not selected with weight 1 - pi.

    Args:
        features: Surface similarity, length gap, word-frequency overlap, ...; the last axis.
        selection: pi in [0, 1], the naive rule's probability of every pair.
        minimum: Smallest propensity, in (0, 1].
        regularization: C of scikit-learn, the inverse strength of the L2 penalty on standardised features.

    Raises:
        ValueError: Shapes that do not fit, selection outside [0, 1] or all equal to 0 or 1, a minimum out of range.

    Source: debcse.md M3, ``propensity = logistic``.
    """
    from sklearn.linear_model import LogisticRegression

    _check_table(1, minimum)
    selection = np.asarray(selection, np.float64)
    features = np.asarray(features, np.float64)
    if features.shape[:-1] != selection.shape or features.ndim < 2:
        raise ValueError(f"features must be selection's shape plus one axis: got {features.shape}, {selection.shape}")
    if not np.all((selection >= 0) & (selection <= 1)) or selection.max() == 0 or selection.min() == 1:
        raise ValueError("selection must be probabilities in [0, 1], neither all 0 nor all 1")
    rows, chosen = features.reshape(-1, features.shape[-1]), selection.reshape(-1)
    mean, scale = rows.mean(0), np.maximum(rows.std(0), 1e-6)
    model = LogisticRegression(C=regularization, max_iter=1000).fit(
        np.tile((rows - mean) / scale, (2, 1)),
        np.repeat([1, 0], len(rows)),
        sample_weight=np.concatenate([chosen, 1 - chosen]),
    )
    weights = model.coef_[0] / scale
    bias = float(model.intercept_[0] - mean @ weights)
    largest = float(1 / (1 + np.exp(-(rows @ weights + bias).max())))
    return LogisticPropensity(weights.astype(np.float32), bias, largest, minimum)


# ---- sampling --------------------------------------------------------------------------------------------


class Sampled(NamedTuple):
    """Drawn candidates: `indices` int32 [n, num] into the K, -1 beyond those that pass the gate; `fallback` [n], True
    where none passes."""

    indices: Int[Array, "n num"]
    fallback: Bool[Array, " n"]


def inverse_propensity_sample(
    key: Key[Array, ""], gate: Float[Array, "n k"], propensity: Float[Array, "n k"], num: int
) -> Sampled:
    """`num` different candidates of every anchor, drawn in proportion to ``gate / propensity``.

        the num largest of   log gate_ij - log propensity_ij + Gumbel noise

    The first is a draw from Categorical(w_i), w = gate / propensity; the others continue without replacement. Shapes
    are static, so it runs under `jit` on any device. Draws do not depend on how the rows are split over devices.

    Args:
        key: A PRNG key; draw afresh every epoch.
        gate: [n, K] >= 0; 0 shuts a candidate out.
        propensity: [n, K] > 0, clipped from below (see `propensity_histogram`).
        num: Draws per anchor, 1..K.

    Raises:
        ValueError: Shapes that do not fit, `num` out of range.

    Source: debcse.md M4; Gumbel-top-k: Vieira 2014.
    """
    if gate.ndim != 2 or gate.shape != propensity.shape:
        raise ValueError(f"gate and propensity must both be [n, K]: got {gate.shape} and {propensity.shape}")
    if not 1 <= num <= gate.shape[1]:
        raise ValueError(f"num must be in 1..{gate.shape[1]}, the number of candidates: got {num}")
    logits = inverse_propensity_logits(gate, propensity)
    scores, indices = jax.lax.top_k(logits + jax.random.gumbel(key, gate.shape, jnp.float32), num)
    return Sampled(jnp.where(scores == -jnp.inf, -1, indices), jnp.all(logits == -jnp.inf, axis=1))


def inverse_propensity_logits(
    gate: Float[Array, "*shape"], propensity: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """``log gate - log propensity`` in float32; -inf where the gate is shut."""
    gate, propensity = (jnp.asarray(x).astype(jnp.float32) for x in (gate, propensity))
    opened = gate > 0
    return jnp.where(opened, jnp.log(jnp.where(opened, gate, 1.0)) - jnp.log(propensity), -jnp.inf)


def effective_sample_size(weights: Float[Array, "*shape k"]) -> Float[Array, "*shape"]:
    """``(sum w)^2 / sum w^2`` along the last axis: how many candidates equal weights would spread over; 0 for none."""
    weights = jnp.asarray(weights).astype(jnp.float32)
    weights = weights / jnp.maximum(jnp.max(weights, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    squares = jnp.sum(weights * weights, axis=-1)
    return jnp.where(squares > 0, jnp.sum(weights, axis=-1) ** 2 / jnp.maximum(squares, 1e-30), 0.0)
