"""How well token attributions find the tokens that are known to matter (an author's style markers, say).

Needs data whose markers are known, such as the generated-author world. Attributions are taken as signed
scores: the higher, the more a token speaks for the target. For methods whose sign means nothing, pass
absolute values.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jaxcore.evaluation.input_checks import binary_labels, finite_array


@dataclass(frozen=True, eq=False)
class MarkerRanking:
    """How attributions rank marker tokens above the others, over the scored documents.

    Attributes:
        auprc, auroc: mean over documents.
        chance: mean prevalence of markers, the expected AUPRC of a random ranking (chance of AUROC is 0.5).
        pooled_auprc, pooled_auroc, pooled_chance: all tokens of the scored documents in one ranking, so that
            the scale of attributions must agree between documents.
        num_documents: how many were scored.
        num_without_markers, num_all_markers: how many were left out because no token, or every token, is a
            marker.
        document_auprc, document_auroc, document_chance: [num_documents].
        documents: [num_documents] their row numbers.
    """

    auprc: float
    auroc: float
    chance: float
    pooled_auprc: float
    pooled_auroc: float
    pooled_chance: float
    num_documents: int
    num_without_markers: int
    num_all_markers: int
    document_auprc: Float[np.ndarray, "documents"] = field(repr=False)
    document_auroc: Float[np.ndarray, "documents"] = field(repr=False)
    document_chance: Float[np.ndarray, "documents"] = field(repr=False)
    documents: Int[np.ndarray, "documents"] = field(repr=False)


@dataclass(frozen=True, eq=False)
class PointingGame:
    """How often the token with the highest attribution is a marker.

    Attributes:
        hit_rate: mean over documents.
        chance: mean prevalence of markers, the hit rate of a random token.
        num_documents: how many were scored.
        num_without_markers, num_all_markers: how many were left out.
        hits: [num_documents], in [0, 1] (fractional only when the highest attribution is shared).
        documents: [num_documents] their row numbers.
    """

    hit_rate: float
    chance: float
    num_documents: int
    num_without_markers: int
    num_all_markers: int
    hits: Float[np.ndarray, "documents"] = field(repr=False)
    documents: Int[np.ndarray, "documents"] = field(repr=False)


def marker_auprc(
    attributions: Float[ArrayLike, "batch tokens"],
    markers: Bool[ArrayLike, "batch tokens"],
    mask: Bool[ArrayLike, "batch tokens"] | None = None,
) -> MarkerRanking:
    """Areas under the precision-recall curve (average precision) and the ROC curve of finding markers.

    `AP = sum_k (R_k - R_{k-1}) P_k` over decreasing attribution thresholds k (equal attributions enter
    together), for every document and pooled. Documents without markers, or with nothing else, are left out
    and counted.

    Args:
        attributions: [B, T] signed scores; values outside `mask` are ignored, NaN included.
        markers: [B, T], 1 where a token is a known marker.
        mask: [B, T], 1 for tokens, 0 for padding and special tokens; all tokens by default.
    Raises:
        ValueError: shapes differ or are not [B, T], NaN at a token, values other than 0 and 1 in markers or
            mask, or no document that can be scored.
    Source: average precision as scikit-learn defines it; the markers are the generated world's (eavae.md, section 8).
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # it takes more than a second to import

    scores, truth, tokens, kept = _checked(attributions, markers, mask)
    rows = [(scores[i][tokens[i]], truth[i][tokens[i]]) for i in kept.documents]
    auprc = np.array([average_precision_score(marker, score) for score, marker in rows])
    auroc = np.array([roc_auc_score(marker, score) for score, marker in rows])
    chance = np.array([marker.mean() for _, marker in rows])
    pooled_scores, pooled_truth = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return MarkerRanking(
        auprc=float(auprc.mean()),
        auroc=float(auroc.mean()),
        chance=float(chance.mean()),
        pooled_auprc=float(average_precision_score(pooled_truth, pooled_scores)),
        pooled_auroc=float(roc_auc_score(pooled_truth, pooled_scores)),
        pooled_chance=float(pooled_truth.mean()),
        num_documents=len(rows),
        num_without_markers=kept.num_without_markers,
        num_all_markers=kept.num_all_markers,
        document_auprc=auprc,
        document_auroc=auroc,
        document_chance=chance,
        documents=kept.documents,
    )


def pointing_game(
    attributions: Float[ArrayLike, "batch tokens"],
    markers: Bool[ArrayLike, "batch tokens"],
    mask: Bool[ArrayLike, "batch tokens"] | None = None,
) -> PointingGame:
    """Share of documents whose most attributed token is a marker (top-1 hit rate).

    When k tokens share the highest attribution and m of them are markers, the hit is m / k, as if one were
    picked at random; constant attributions therefore score chance.

    Args:
        attributions, markers, mask: as in `marker_auprc`.
    Raises:
        ValueError: as `marker_auprc`.
    """
    scores, truth, tokens, kept = _checked(attributions, markers, mask)
    scores, truth, tokens = scores[kept.documents], truth[kept.documents], tokens[kept.documents]
    highest = np.where(tokens, scores, -np.inf)
    first = tokens & (highest == highest.max(axis=1, keepdims=True))
    hits = (first & truth).sum(axis=1) / first.sum(axis=1)
    return PointingGame(
        hit_rate=float(hits.mean()),
        chance=float(((truth & tokens).sum(axis=1) / tokens.sum(axis=1)).mean()),
        num_documents=len(hits),
        num_without_markers=kept.num_without_markers,
        num_all_markers=kept.num_all_markers,
        hits=hits,
        documents=kept.documents,
    )


@dataclass(frozen=True, eq=False)
class _Kept:
    documents: Int[np.ndarray, "documents"]
    num_without_markers: int
    num_all_markers: int


def _checked(
    attributions: Any, markers: Any, mask: Any
) -> tuple[Float[np.ndarray, "B T"], Bool[np.ndarray, "B T"], Bool[np.ndarray, "B T"], _Kept]:
    truth = binary_labels("markers", markers, ndim=2)
    tokens = np.ones_like(truth) if mask is None else binary_labels("mask", mask, ndim=2)
    raw = np.asarray(attributions, dtype=np.float64)
    if not raw.shape == truth.shape == tokens.shape:
        raise ValueError(
            f"attributions, markers and mask must share one shape [documents, tokens], got {raw.shape}, "
            f"{truth.shape} and {tokens.shape}"
        )
    scores = finite_array("attributions (at tokens)", np.where(tokens, raw, 0), ndim=2)
    num_tokens, num_markers = tokens.sum(axis=1), (tokens & truth).sum(axis=1)
    none, every = num_markers == 0, (num_markers == num_tokens) & (num_markers > 0)
    documents = np.flatnonzero(~(none | every))
    if not documents.size:
        raise ValueError(
            f"no document can be scored: of {len(truth)}, {int(none.sum())} hold no marker and "
            f"{int(every.sum())} hold nothing else; check that markers and mask are aligned with the tokens"
        )
    return scores, truth, tokens, _Kept(documents, int(none.sum()), int(every.sum()))
