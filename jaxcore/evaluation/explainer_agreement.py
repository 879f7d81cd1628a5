"""Agreement of explainers in a study: means over groups of pairs, instance by instance, and their negative control."""

import itertools
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxcore.attribution.agreement import AgreementMatrix, kendall_tau
from jaxcore.evaluation.control_maps import permuted_scores

Pair = tuple[str, str]


def mean_over_pairs(matrix: AgreementMatrix, pairs: Sequence[Pair]) -> Float[np.ndarray, " defined"]:
    """The mean agreement of these pairs in each instance, over the pairs that are defined there.

    Instances where none is defined are left out, so that a bootstrap over the result is one over instances.

    Raises:
        ValueError: no pair, or an explainer that the matrix does not have.
    """
    place = {name: index for index, name in enumerate(matrix.names)}
    unknown = [name for pair in pairs for name in pair if name not in place]
    if not pairs or unknown:
        raise ValueError(f"pairs must be of {', '.join(matrix.names)}: got {list(pairs)}")
    per_instance = np.asarray(matrix.per_instance)
    values = np.stack([per_instance[:, place[a], place[b]] for a, b in pairs], axis=1)
    defined = np.isfinite(values)
    counts = defined.sum(axis=1)
    return np.where(defined, values, 0).sum(axis=1)[counts > 0] / counts[counts > 0]


def pair_metrics(matrix: AgreementMatrix) -> dict[str, float]:
    """``tau/A/B`` and ``std/A/B`` of every pair defined somewhere; ``undefined/A/B``, the instances left out."""
    metrics: dict[str, float] = {}
    mean, std, undefined = (np.asarray(values) for values in (matrix.mean, matrix.std, matrix.undefined))
    for (i, a), (j, b) in itertools.combinations(enumerate(matrix.names), 2):
        metrics[f"undefined/{a}/{b}"] = float(undefined[i, j])
        if np.isfinite(mean[i, j]):
            metrics |= {f"tau/{a}/{b}": float(mean[i, j]), f"std/{a}/{b}": float(std[i, j])}
    return metrics


def shuffled_tau(
    scores: Mapping[str, Float[np.ndarray, "instances tokens"]],
    mask: Bool[np.ndarray, "instances tokens"],
    rng: np.random.Generator,
) -> float:
    """The negative control: mean tau-b of each explainer with each other whose scores are permuted in the instance.

    Near 0; what is not comes from the measure, not from agreement.
    """
    shuffled = {name: permuted_scores(values, mask, rng) for name, values in scores.items()}
    pairs = itertools.permutations(scores, 2)
    found = [np.asarray(kendall_tau(*map(jnp.asarray, (scores[a], shuffled[b], mask)))) for a, b in pairs]
    return float(np.nanmean(found))
