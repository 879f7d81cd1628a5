"""Which candidates become partners: gates on meaning, propensities from surface, and rules that draw by them.

The rule of debiased selection draws positives by ``gate / propensity``: similar in meaning whatever the surface; and
negatives alike: dissimilar in meaning whatever the surface. The other rules are what it is compared with.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxcore.data.pair_mining import Candidates
from jaxcore.data.propensity import (
    effective_sample_size,
    fit_logistic_propensity,
    frequency_histogram,
    importance_propensity,
    importance_target_histogram,
    inverse_propensity_sample,
    propensity_histogram,
    propensity_lookup,
)

PositiveRule = Literal["twin", "top", "softmax", "uniform", "inverse", "inverted"]
NegativeRule = Literal["none", "uniform", "inverse", "hardest"]
Propensity = Callable[..., Float[Array, "*s"]]
"""(meaning, surface, length gap) of pairs -> propensity."""

_ANCHORS_AT_ONCE = 65_536
_RANGES = ((0.0, 1.0), (-1.0, 1.0))  # of surface and meaning


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """Gates and propensities. The numbers are those of a reconstruction, not the paper's (which are not known)."""

    propensity: Literal["histogram", "logistic"] = "histogram"
    """A table over surface similarity, or a logistic model of surface similarity and length gap."""
    target: Literal["uniform", "supervised"] = "uniform"
    """Selection independent of the surface, or distributed like labelled pairs."""
    num_bins: int = 10
    minimum: float = 0.02
    """Smallest propensity."""
    naive_temperature: float = 0.1
    """The naive rule for positives picks candidate j with probability proportional to exp(meaning / this)."""
    positive_threshold: float | None = None
    """Meaning above which a pair may be positive; by default the 97th percentile of random pairs plus 0.2."""
    negative_threshold: float | None = None
    """Meaning below which a pair may be negative; by default 0.1 less."""
    gate_sharpness: float = 0.0
    """1 / T_g: positives that pass are weighted by exp(sharpness (meaning - 1))."""

    def __post_init__(self) -> None:
        if self.num_bins < 1 or not 0 < self.minimum <= 1 or not self.naive_temperature > 0:
            raise ValueError(
                "selection.num_bins must be at least 1, minimum in (0, 1], naive_temperature positive: got "
                f"{self.num_bins}, {self.minimum}, {self.naive_temperature}"
            )
        if self.propensity == "logistic" and self.target == "supervised":
            raise ValueError("selection.target supervised weights by a histogram: use --selection.propensity histogram")
        given = self.positive_threshold, self.negative_threshold
        if None not in given and given[1] > given[0]:  # type: ignore[operator]
            raise ValueError(f"selection.negative_threshold {given[1]} must not exceed positive_threshold {given[0]}")


class PairFeatures(NamedTuple):
    """Meaning, surface and length gap of pairs, one entry each."""

    meaning: Float[np.ndarray, " pairs"]
    surface: Float[np.ndarray, " pairs"]
    length_gap: Float[np.ndarray, " pairs"]


@dataclasses.dataclass(frozen=True, eq=False)
class Selector:
    """Candidates with what decides among them; `make_draw` draws."""

    config: SelectionConfig
    candidates: Candidates
    positive_threshold: float
    negative_threshold: float
    positive: Propensity
    negative: Propensity


def fit_selector(
    config: SelectionConfig,
    candidates: Candidates,
    random: PairFeatures,
    *,
    labelled_positives: PairFeatures | None = None,
    labelled_negatives: PairFeatures | None = None,
) -> Selector:
    """Thresholds and propensities from the data.

    Positive side: the naive rule takes what the teacher likes, ``pi_i(j) ~ exp(psi_ij / t)`` over the candidates.
    Negative side: it takes random sentences.

    Args:
        candidates: of `mine_candidates`.
        random: features of random pairs.
        labelled_positives, labelled_negatives: features of labelled pairs, for ``target = supervised``.

    Raises:
        ValueError: no random pairs, thresholds that cross, a supervised target without labelled pairs.

    Source: debcse.md M3.
    """
    if not len(random.meaning):
        raise ValueError("random pairs are needed to estimate propensities: got none")
    upper = config.positive_threshold
    if upper is None:
        upper = float(np.percentile(np.asarray(random.meaning, np.float32), 97)) + 0.2
    lower = upper - 0.1 if config.negative_threshold is None else config.negative_threshold
    if lower > upper:
        raise ValueError(f"the negative threshold {lower} exceeds the positive one {upper}; set both")
    if config.target == "supervised":
        if labelled_positives is None or labelled_negatives is None:
            raise ValueError("selection.target supervised needs labelled pairs; use uniform where there are none")
        positive, negative = (_towards(config, candidates, pairs) for pairs in (labelled_positives, labelled_negatives))
    else:
        fit = _histograms if config.propensity == "histogram" else _logistic
        positive, negative = fit(config, candidates, random)
    return Selector(config, candidates, upper, lower, positive, negative)


def naive_selection(
    meaning: Float[np.ndarray, "n k"], valid: Bool[np.ndarray, "n k"], temperature: float
) -> np.ndarray:
    """``pi_i(j) = exp(psi_ij / t) / sum_k exp(psi_ik / t)`` over the valid candidates; float64."""
    logits = np.where(valid, np.asarray(meaning, np.float64) / temperature, -np.inf)
    largest = logits.max(1, keepdims=True, initial=-1e30)
    weights = np.exp(logits - largest)
    return weights / np.maximum(weights.sum(1, keepdims=True), 1e-300)


def _histograms(config: SelectionConfig, candidates: Candidates, random: PairFeatures) -> tuple[Propensity, Propensity]:
    valid = candidates.ids >= 0
    options: dict[str, Any] = {"num_bins": config.num_bins, "minimum": config.minimum}
    selection = naive_selection(candidates.meaning, valid, config.naive_temperature)
    tables = (
        propensity_histogram(candidates.surface, selection, valid=valid, **options),
        frequency_histogram(random.surface, **options),
    )

    def of(table: np.ndarray) -> Propensity:
        return lambda meaning, surface, gap: propensity_lookup(jnp.asarray(table), surface)

    return of(tables[0]), of(tables[1])


def _logistic(config: SelectionConfig, candidates: Candidates, random: PairFeatures) -> tuple[Propensity, Propensity]:
    """P(selected | surface, length gap): of the naive rule among candidates; of random pairs beside the candidates."""
    valid = candidates.ids >= 0
    features = np.stack([candidates.surface[valid], candidates.length_gap[valid]], axis=1).astype(np.float64)
    selection = naive_selection(candidates.meaning, valid, config.naive_temperature)[valid]
    positive = fit_logistic_propensity(features, selection, minimum=config.minimum)
    blind = np.stack([random.surface, random.length_gap], axis=1)
    drawn = np.repeat([1.0, 0.0], [len(blind), len(features)])
    negative = fit_logistic_propensity(np.concatenate([blind, features]), drawn, minimum=config.minimum)
    return (
        lambda meaning, surface, gap: positive.lookup(jnp.stack([surface, gap], -1)),
        lambda meaning, surface, gap: negative.lookup(jnp.stack([surface, gap], -1)),
    )


def _towards(config: SelectionConfig, candidates: Candidates, labelled: PairFeatures) -> Propensity:
    """Weights that make drawn candidates distributed like labelled pairs over (surface, meaning)."""
    valid = candidates.ids >= 0
    bins = (config.num_bins, config.num_bins)
    target = importance_target_histogram(labelled.surface, labelled.meaning, num_bins=bins, ranges=_RANGES)
    offered = importance_target_histogram(
        candidates.surface[valid], candidates.meaning[valid], num_bins=bins, ranges=_RANGES, smoothing=1e-6
    )
    table = importance_propensity(offered, target, minimum=config.minimum)
    return lambda meaning, surface, gap: propensity_lookup(jnp.asarray(table), [surface, meaning], ranges=_RANGES)


# ---- drawing ---------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """One draw. `partners`: int32 [N, 1 + m] rows: the positive (-1: the anchor itself, its twin), then negatives.
    `places`: where they stand among the candidates, -1 where they do not (twins, random replacements)."""

    partners: Int[np.ndarray, "anchors views"]
    places: Int[np.ndarray, "anchors views"]


def make_draw(
    selector: Selector, positives: PositiveRule, negatives: NegativeRule, *, num_negatives: int, seed: int
) -> Callable[[int], Drawn]:
    """The draws of a pair of rules: number -> partners of every anchor, a pure function of seed and number.

    Positives: "twin" (the anchor itself), "top" (largest meaning, ungated), "softmax" (the naive rule), "uniform" (any
    that passes the gate), "inverse" (gate / propensity), "inverted" (gate x propensity: the mistake to avoid). An
    anchor none of whose candidates passes gets its twin. Negatives: "none", "uniform" and "inverse" behind their gate,
    "hardest" (largest meaning, ungated: false negatives); a missing one is replaced by a random anchor.

    Draws are made on the CPU, a block of anchors at a time: candidates stay in host memory.

    Raises:
        ValueError: unknown rules, `num_negatives` out of range.

    Source: debcse.md M4.
    """
    count = 0 if negatives == "none" else num_negatives
    num_anchors, num_candidates = selector.candidates.ids.shape
    if not 0 <= count <= num_candidates or (negatives != "none" and count == 0):
        raise ValueError(f"num_negatives must be in 1..{num_candidates}, the number of candidates: got {num_negatives}")
    for rule, known in ((positives, PositiveRule), (negatives, NegativeRule)):
        if rule not in known.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(known.__args__)}")  # type: ignore[attr-defined]

    def places_of(key: Key[Array, ""], *features: np.ndarray) -> Int[np.ndarray, "block views"]:
        keys = jax.random.split(key)
        chosen = [_positive_places(selector, positives, keys[0], *features)]
        if count:
            chosen.append(_negative_places(selector, negatives, count, keys[1], *features))
        return np.concatenate([np.asarray(places) for places in chosen], axis=1)

    def draw(number: int) -> Drawn:
        key = jax.random.fold_in(jax.random.key(seed), number)
        candidates, parts = selector.candidates, []
        for block, start in enumerate(range(0, num_anchors, _ANCHORS_AT_ONCE)):
            part = slice(start, start + _ANCHORS_AT_ONCE)
            features = (candidates.ids[part] >= 0, candidates.meaning[part], candidates.surface[part])
            parts.append(places_of(jax.random.fold_in(key, block), *features, candidates.length_gap[part]))
        places = np.concatenate(parts)
        partners = np.take_along_axis(candidates.ids, np.maximum(places, 0), 1)
        others = (np.arange(num_anchors)[:, None] + _shifts(seed, number, num_anchors, places.shape[1])) % num_anchors
        others[:, 0] = -1
        return Drawn(np.where(places >= 0, partners, others).astype(np.int32), places)

    return _on_cpu(draw)


def _shifts(seed: int, number: int, num_anchors: int, width: int) -> Int[np.ndarray, "anchors width"]:
    return np.random.default_rng([seed, number]).integers(1, num_anchors, (num_anchors, width))


def _on_cpu(draw: Callable[[int], Drawn]) -> Callable[[int], Drawn]:
    def on_cpu(number: int) -> Drawn:
        try:
            device = jax.local_devices(backend="cpu")[0]
        except RuntimeError:  # JAX was started for an accelerator alone
            return draw(number)
        with jax.default_device(device):
            return draw(number)

    return on_cpu


def _positive_places(
    selector: Selector,
    rule: PositiveRule,
    key: Array,
    valid: np.ndarray,
    meaning: np.ndarray,
    surface: np.ndarray,
    gap: np.ndarray,
) -> Int[Array, "block 1"]:
    if rule == "twin":
        return jnp.full((len(meaning), 1), -1, jnp.int32)
    gate = _positive_gate(selector, valid, meaning)
    if rule == "top":
        return _largest(valid, meaning, 1)
    if rule == "softmax":
        gate = jnp.where(
            valid, jnp.exp((jnp.asarray(meaning, jnp.float32) - 1) / selector.config.naive_temperature), 0.0
        )
    propensity = jnp.ones_like(gate)
    if rule in ("inverse", "inverted"):
        propensity = selector.positive(meaning, surface, gap)
    return _sample(key, gate, 1 / propensity if rule == "inverted" else propensity, 1).indices


def _negative_places(
    selector: Selector,
    rule: NegativeRule,
    count: int,
    key: Array,
    valid: np.ndarray,
    meaning: np.ndarray,
    surface: np.ndarray,
    gap: np.ndarray,
) -> Int[Array, "block count"]:
    if rule == "hardest":
        return _largest(valid, meaning, count)
    gate = jnp.asarray(valid & (meaning.astype(np.float32) < selector.negative_threshold), jnp.float32)
    propensity = selector.negative(meaning, surface, gap) if rule == "inverse" else jnp.ones_like(gate)
    return _sample(key, gate, propensity, count).indices


def _positive_gate(selector: Selector, valid: np.ndarray, meaning: np.ndarray) -> Float[Array, "block k"]:
    cosine = jnp.asarray(meaning, jnp.float32)
    sharpened = jnp.exp(selector.config.gate_sharpness * (cosine - 1))
    return jnp.where(jnp.asarray(valid) & (cosine > selector.positive_threshold), sharpened, 0.0)


_sample = jax.jit(inverse_propensity_sample, static_argnames="num")


@partial(jax.jit, static_argnames="count")
def _largest(valid: Array, meaning: Array, count: int) -> Int[Array, "block count"]:
    scores, places = jax.lax.top_k(jnp.where(valid, meaning, -jnp.inf).astype(jnp.float32), count)
    return jnp.where(scores == -jnp.inf, -1, places)


def selection_statistics(selector: Selector, drawn: Drawn, positives: PositiveRule) -> dict[str, float]:
    """What a draw took, for the report.

        fallback_rate          anchors without a positive that passes (twins by rule count too)
        positive_surface       mean surface similarity of the positives (1 for twins)
        positive_meaning       the same of the teacher's cosine
        negative_surface, false_negative_rate, negative_fallback_rate
                               of the negatives, where there are any; false: meaning above the positive threshold
        effective_sample_size  mean over anchors of (sum w)^2 / sum w^2, for rules that weight candidates

    Source: debcse.md, bias diagnostics (c) and (d).
    """
    candidates = selector.candidates
    place, found = np.maximum(drawn.places, 0), drawn.places >= 0
    meaning, surface = (
        np.take_along_axis(np.asarray(x, np.float64), place, 1) for x in (candidates.meaning, candidates.surface)
    )
    taken = found[:, 0]
    statistics = {
        "fallback_rate": float(1 - taken.mean()),
        "positive_surface": float(np.where(taken, surface[:, 0], 1.0).mean()),
        "positive_meaning": float(np.where(taken, meaning[:, 0], 1.0).mean()),
    }
    if drawn.places.shape[1] > 1 and found[:, 1:].any():
        real = found[:, 1:]
        statistics |= {
            "negative_surface": float(surface[:, 1:][real].mean()),
            "false_negative_rate": float((meaning[:, 1:][real] > selector.positive_threshold).mean()),
            "negative_fallback_rate": float(1 - real.mean()),
        }
    if positives in ("uniform", "inverse", "inverted"):
        statistics["effective_sample_size"] = _mean_sample_size(selector, positives)
    return statistics


def _mean_sample_size(selector: Selector, rule: PositiveRule) -> float:
    """Over the first block of anchors that have any weight."""
    part = slice(0, _ANCHORS_AT_ONCE)
    candidates = selector.candidates
    meaning, surface, gap = candidates.meaning[part], candidates.surface[part], candidates.length_gap[part]
    weights = _positive_gate(selector, candidates.ids[part] >= 0, meaning)
    if rule != "uniform":
        propensity = selector.positive(meaning, surface, gap)
        weights = weights * propensity if rule == "inverted" else weights / propensity
    sizes = np.asarray(effective_sample_size(weights))
    return float(sizes[sizes > 0].mean()) if (sizes > 0).any() else 0.0
