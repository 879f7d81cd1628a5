"""Which tokens of a saliency map are worth naming: searches for salient snippets, thresholds, coverage, summaries.

The search-based half of saliency map verbalisation (Feldhus et al. 2023, saliency_verbalization.md); `verbalisation`
puts what it finds into words. Maps are [batch, time], one score per token, with a mask of the real tokens; special
tokens are dropped beforehand, so that the real tokens of a row are one run. Searches and measures are array functions
that work under jit; `Snippet`s are host objects.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Sign = Literal["positive", "negative"]
Scores: TypeAlias = Float[Array, "batch time"]
Mask: TypeAlias = Bool[Array, "batch time"]
Threshold: TypeAlias = Callable[[Scores, Mask], Float[Array, " batch"]]
"""From normalised evidence (see `normalise`) and mask to the value beta that a snippet's mean must exceed."""


@dataclass(frozen=True)
class Snippet:
    """Tokens of one text by index, ascending; their mean normalised evidence, and the coverage they reach together."""

    indices: tuple[int, ...]
    value: float
    coverage: float


def binary_filters(length: int = 5, ones: Sequence[int] = (2, 3)) -> Bool[np.ndarray, "filters length"]:
    """All arrangements of so many ones in a window: 10 + 10 = 20 for the paper's length 5 with two or three."""
    if length < 1 or not ones or min(ones) < 1 or max(ones) > length:
        raise ValueError(f"ones must lie between 1 and the length: got ones {tuple(ones)} and length {length}")
    chosen = [places for count in ones for places in itertools.combinations(range(length), count)]
    filters = np.zeros((len(chosen), length), bool)
    for row, places in zip(filters, chosen, strict=True):
        row[list(places)] = True
    return filters


def centred_spans(length: int = 5) -> Bool[np.ndarray, "filters length"]:
    """Spans of two tokens or more in the middle of a window: [0,1,1,1,0] and [1,1,1,1,1] for the paper's length 5."""
    if length < 2:
        raise ValueError(f"length must be at least 2, so that a span can stand in it: got {length}")
    widths = range(2 + length % 2, length + 1, 2)
    return np.array([np.abs(2 * np.arange(length) - (length - 1)) < width for width in widths])


def normalise(scores: Scores, mask: Mask, *, sign: Sign = "positive") -> Scores:
    """``S^ = +-S / max_t(+-S_t)`` over real tokens, 0 elsewhere; one without evidence of that sign keeps its scale."""
    evidence = jnp.where(mask, _signed(scores, sign), 0)
    largest = jnp.max(jnp.where(mask, evidence, -jnp.inf), axis=1, keepdims=True, initial=-jnp.inf)
    return evidence / jnp.where(largest > 0, largest, 1)


def threshold_mean_top(evidence: Scores, mask: Mask, *, fraction: float = 0.4) -> Float[Array, " batch"]:
    """Mean of the ``floor(fraction * n)`` largest values, of at least one: the paper's "weighted average"."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1]: got {fraction}")
    # A table, because floor(fraction * n) in float32 can fall one short of its value in float64.
    counts = jnp.asarray(np.maximum(1, np.floor(fraction * np.arange(mask.shape[1] + 1))).astype(np.int32))
    count = counts[jnp.sum(mask, axis=1)][:, None]
    ordered = -jnp.sort(jnp.where(mask, -evidence, jnp.inf), axis=1)
    kept = (jnp.arange(mask.shape[1]) < count) & jnp.isfinite(ordered)
    return jnp.sum(jnp.where(kept, ordered, 0), axis=1) / count[:, 0]


def threshold_n_std(evidence: Scores, mask: Mask, *, factor: float = 3.0) -> Float[Array, " batch"]:
    """``factor * std``, the population's and without the mean: what the released code calls "quantile"."""
    return factor * jnp.sqrt(_variance(evidence, mask))


def threshold_variance(evidence: Scores, mask: Mask, *, factor: float = 3.0) -> Float[Array, " batch"]:
    """``factor * variance``, the population's."""
    return factor * _variance(evidence, mask)


def threshold_quantile(evidence: Scores, mask: Mask, *, quantile: float = 0.75) -> Float[Array, " batch"]:
    """The quantile of the real tokens' values, with linear interpolation."""
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be in [0, 1]: got {quantile}")
    return jnp.nan_to_num(jnp.nanquantile(jnp.where(mask, evidence, jnp.nan), quantile, axis=1))


def window_search(
    scores: Scores,
    mask: Mask,
    filters: Bool[Array, "filters length"],
    threshold: Threshold | Float[Array, " batch"] | float = threshold_mean_top,
    *,
    sign: Sign = "positive",
) -> tuple[Bool[Array, "batch filters starts"], Float[Array, "batch filters starts"]]:
    """Every filter at every place: the mean ``c(I) = mean_{t in I} S^_t`` of the tokens I it selects, and its verdict.

    Accepted where no selected token speaks for the other sign and ``c(I) > beta``. The window must lie in the text, the
    last place included. A text shorter than the window stands in its middle, at start 0, and the filter selects those
    of its tokens that are there; so short texts are searched too. Padding changes nothing.

    Args:
        scores: any scale; `normalise` is applied first.
        mask: True on real tokens, which are one run of each row.
        filters: from `binary_filters` or `centred_spans`; L long.
        threshold: beta, on the normalised scale: a function of evidence and mask, or one number per text.
        sign: "negative" searches for evidence against, as strong values of -S.

    Returns:
        accepted and value, [batch, filters, max(time, L) - L + 1].
    """
    length = filters.shape[1]
    evidence = normalise(scores, mask, sign=sign)
    beta = threshold(evidence, mask) if callable(threshold) else threshold
    beta = jnp.broadcast_to(jnp.asarray(beta, evidence.dtype), evidence.shape[:1])
    count, shift = _placement(mask, length)
    padding = max(length - mask.shape[1], 0)
    evidence, mask = (
        jax.vmap(jnp.roll)(jnp.pad(x, ((0, 0), (0, padding))), jnp.asarray(shift)) for x in (evidence, mask)
    )
    starts = mask.shape[1] - length + 1
    sums = partial(_filter_sums, filters=jnp.asarray(filters, evidence.dtype), starts=starts)
    selected = sums(mask.astype(evidence.dtype))
    value = sums(evidence) / jnp.maximum(selected, 1)
    against = sums((evidence < 0).astype(evidence.dtype)) > 0
    inside = jnp.stack([mask[:, j : j + starts] for j in range(length)]).all(0)
    short = (jnp.asarray(count) < length)[:, None]
    placed = jnp.where(short, jnp.arange(starts) == 0, inside)[:, None, :]
    return placed & (selected > 0) & ~against & (value > beta[:, None, None]), value


def coverage(
    index_mask: Bool[Array, "batch time"], scores: Scores, *, sign: Sign = "positive"
) -> Float[Array, " batch"]:
    """``Cov(I) = max(sum_{t in I} S_t / sum_t max(S_t, 0), 0)``: the share of the positive mass that the tokens carry.

    All tokens of I count, its last one included, and no token beside them. 0 for a map without positive mass. Scores
    of padding must be 0.
    """
    evidence = _signed(scores, sign)
    return jnp.maximum(_ratio(jnp.sum(jnp.where(index_mask, evidence, 0), axis=1), _mass(evidence)), 0)


def coverage_at_k(
    cited: Bool[Array, "batch time"], scores: Scores, ks: Sequence[int], *, sign: Sign = "positive"
) -> Float[Array, "batch ks"]:
    """Share of the positive mass in those of the k strongest tokens that a text cites, for each k of `ks`.

    ``sum_{t in top_k, t cited} S_t / sum_t max(S_t, 0)``; only positive scores rank, ties by position.
    """
    if not len(ks) or min(ks) < 1:
        raise ValueError(f"ks must be positive ranks: got {tuple(ks)}")
    evidence = jnp.maximum(_signed(scores, sign), 0)
    order = jnp.argsort(-evidence, axis=1, stable=True)
    gained = jnp.take_along_axis(jnp.where(cited, evidence, 0), order, axis=1)
    reached = jnp.cumsum(gained, axis=1)
    places = np.minimum(np.asarray(ks), evidence.shape[1]) - 1
    return _ratio(reached[:, places], _mass(evidence)[:, None])


def search_snippets(
    scores: Scores,
    filters: Bool[np.ndarray, "filters length"],
    mask: Mask | None = None,
    *,
    threshold: Threshold | Float[Array, " batch"] | float = threshold_mean_top,
    sign: Sign = "positive",
) -> list[list[Snippet]]:
    """The snippets that `window_search` accepts in each text, each set of tokens once, by falling coverage.

    Ties fall by position. Arguments as of `window_search`; `mask` None = all tokens real.

    Raises:
        ValueError: scores that are not finite or not [batch, time]; real tokens that are not one run.
    """
    evidence, real = _checked(scores, mask, sign)
    search = _search_by_rule if callable(threshold) else _search_by_value
    accepted, value = (np.asarray(x) for x in search(scores, real, filters, threshold, sign=sign))
    _, shifts = _placement(real, np.shape(filters)[1])
    found: list[dict[tuple[int, ...], float]] = [{} for _ in evidence]
    places = [np.flatnonzero(row) for row in np.asarray(filters)]
    for row, kind, start in zip(*np.nonzero(accepted), strict=True):
        indices = places[kind] + start - int(shifts[row])
        kept = tuple(int(i) for i in indices if 0 <= i < real.shape[1] and real[row, i])
        found[row].setdefault(kept, float(value[row, kind, start]))
    return [
        _ranked(Snippet(indices, value, _share(row, indices)) for indices, value in snippets.items())
        for row, snippets in zip(evidence, found, strict=True)
    ]


def top_tokens(scores: Scores, mask: Mask | None = None, *, k: int = 5, sign: Sign = "positive") -> list[list[Snippet]]:
    """The total order: the k strongest single tokens of each text with evidence of that sign, ties by position."""
    if k < 1:
        raise ValueError(f"k must be at least 1: got {k}")
    evidence, _ = _checked(scores, mask, sign)
    largest = np.maximum(evidence.max(axis=1, initial=0), np.finfo(np.float64).tiny)
    return [
        [
            Snippet((int(i),), float(row[i] / top), _share(row, (int(i),)))
            for i in np.argsort(-row, kind="stable")[:k]
            if row[i] > 0
        ]
        for row, top in zip(evidence, largest, strict=True)
    ]


def common_snippets(first: Sequence[Snippet], second: Sequence[Snippet]) -> list[Snippet]:
    """The compare search: snippets whose set of tokens both searches of one text found, in the first's order."""
    known = {snippet.indices for snippet in second}
    return [snippet for snippet in first if snippet.indices in known]


def summarise_runs(
    scores: Scores,
    mask: Mask | None = None,
    *,
    length: int = 5,
    ones: Sequence[int] = (2, 3),
    threshold: Threshold | Float[Array, " batch"] | float = threshold_mean_top,
    sign: Sign = "positive",
    top: int = 5,
    quantile: float = 0.75,
) -> list[list[Snippet]]:
    """The summarised explanation (SMV-Templ) of each text: its best runs of adjacent tokens, by falling coverage.

    The `top` candidates of the convolution search, the span search and the total order are united; adjacent tokens
    become maximal runs; those stay whose coverage is at least the `quantile` of all runs' (linear interpolation). Ties
    fall by position; a map without evidence of that sign has no run.

    Raises:
        ValueError: as `search_snippets`; a length that no span fits in.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be in [0, 1]: got {quantile}")
    search = partial(search_snippets, scores, mask=mask, threshold=threshold, sign=sign)
    convolution, spans = search(binary_filters(length, ones)), search(centred_spans(length))
    singles = top_tokens(scores, mask, k=top, sign=sign)
    evidence, _ = _checked(scores, mask, sign)
    return [
        _summary(row, [*a[:top], *b[:top], *c[:top]], quantile)
        for row, a, b, c in zip(evidence, convolution, spans, singles, strict=True)
    ]


def is_verbalisable(
    snippets: Iterable[Snippet], *, num_tokens: int, max_tokens: int = 100, min_coverage: float = 0.1
) -> bool:
    """The paper's filter of instances: fewer than `max_tokens` tokens, and a snippet that covers more than a tenth."""
    return num_tokens < max_tokens and any(snippet.coverage > min_coverage for snippet in snippets)


_search_by_rule = jax.jit(window_search, static_argnames=("threshold", "sign"))
_search_by_value = jax.jit(window_search, static_argnames=("sign",))


def _summary(evidence: np.ndarray, candidates: Sequence[Snippet], quantile: float) -> list[Snippet]:
    named = sorted({index for snippet in candidates for index in snippet.indices})
    runs: list[list[int]] = []
    for index in named:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    if not runs:
        return []
    largest = evidence.max()
    snippets = [Snippet(tuple(run), float(evidence[run].mean() / largest), _share(evidence, run)) for run in runs]
    least = np.quantile([snippet.coverage for snippet in snippets], quantile)
    return _ranked(snippet for snippet in snippets if snippet.coverage >= least)


def _ranked(snippets: Iterable[Snippet]) -> list[Snippet]:
    return sorted(snippets, key=lambda snippet: (-snippet.coverage, snippet.indices))


def _share(evidence: np.ndarray, indices: Sequence[int]) -> float:
    """`coverage` of one set of tokens, on the host in float64."""
    mass = np.maximum(evidence, 0).sum()
    return max(float(evidence[list(indices)].sum() / mass), 0.0) if mass > 0 else 0.0


def _checked(scores: Scores, mask: Mask | None, sign: Sign) -> tuple[np.ndarray, np.ndarray]:
    """Signed evidence in float64, 0 on padding, and the mask."""
    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"scores must be [batch, time], one number per token: got shape {values.shape}")
    real = np.ones(values.shape, bool) if mask is None else np.asarray(mask, bool)
    if real.shape != values.shape:
        raise ValueError(f"mask must have the shape of the scores, {values.shape}: got {real.shape}")
    if not np.isfinite(values[real]).all():
        row = int(np.flatnonzero((~np.isfinite(values) & real).any(1))[0])
        raise ValueError(f"scores must be finite: text {row} has values that are not")
    edges = np.diff(np.pad(real, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    if (broken := np.flatnonzero((edges == 1).sum(1) > 1)).size:
        raise ValueError(
            f"the real tokens of a text must be one run: those of text {int(broken[0])} are not "
            "(drop special tokens from scores and mask first)"
        )
    return np.where(real, values if sign == "positive" else -values, 0), real


def _signed(scores: Scores, sign: Sign) -> Scores:
    if sign not in ("positive", "negative"):
        raise ValueError(f"sign must be 'positive' or 'negative': got {sign!r}")
    return scores if sign == "positive" else -scores


def _placement(mask: Mask | np.ndarray, length: int) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """Real tokens of each text, and how far one shorter than the window moves to stand in the middle of the first."""
    count, first = mask.sum(1), mask.argmax(1)
    return count, ((length - count) // 2 - first) * (count < length)


def _filter_sums(x: Scores, *, filters: Float[Array, "filters length"], starts: int) -> Float[Array, "batch f starts"]:
    windows = jnp.stack([x[:, j : j + starts] for j in range(filters.shape[1])], axis=1)
    return jnp.einsum("bls,fl->bfs", windows, filters, precision=jax.lax.Precision.HIGHEST)


def _variance(evidence: Scores, mask: Mask) -> Float[Array, " batch"]:
    count = jnp.maximum(jnp.sum(mask, axis=1), 1)
    mean = jnp.sum(jnp.where(mask, evidence, 0), axis=1) / count
    return jnp.sum(jnp.where(mask, (evidence - mean[:, None]) ** 2, 0), axis=1) / count


def _mass(evidence: Scores) -> Float[Array, " batch"]:
    return jnp.sum(jnp.maximum(evidence, 0), axis=1)


def _ratio(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)
