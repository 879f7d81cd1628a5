"""The divergence of the released suppression code, over truncated supports: for comparison with its matrices alone.

Use `jaxcore.attribution.attention_suppression`, which is exact. Here a token that one side's list lacks has a logit of
-1e9: what comes out then is mostly whether the lists differ (1e9 / T nats times the token's probability).
"""

import numpy as np
from jaxtyping import Float
from scipy import special


def truncated_divergence(
    base: Float[np.ndarray, " vocab"],
    masked: Float[np.ndarray, " vocab"],
    *,
    temperature: float = 0.6,
    mass: float = 0.9999,
    most: int = 100,
    fill: float = -1e9,
) -> float:
    """``D_KL(softmax(z / T) || softmax(z' / T))`` over the union of both sides' likeliest tokens, at least 0.

    Args:
        base, masked: logits z and z' of one position.
        temperature: T; supports are chosen at temperature 1.
        mass, most: a side keeps its likeliest tokens up to this probability together, and at most so many.
        fill: logit of a token of the union that a side did not keep.

    Raises:
        ValueError: logits of different shapes, temperature not above 0.

    Source: Bogdan et al. 2025 (Thought Anchors), released code.
    """
    base, masked = np.asarray(base, np.float64), np.asarray(masked, np.float64)
    if base.shape != masked.shape or base.ndim != 1 or not temperature > 0:
        raise ValueError(
            f"expected two arrays [vocab] and a temperature above 0: got {base.shape}, {masked.shape}, {temperature}"
        )
    kept = [_likeliest(logits, mass, most) for logits in (base, masked)]
    union = kept[0] | kept[1]
    log_p, log_q = (
        special.log_softmax(np.where(own, logits, fill)[union] / temperature)
        for own, logits in zip(kept, (base, masked), strict=True)
    )
    return float(max(np.sum(np.exp(log_p) * (log_p - log_q)), 0.0))


def _likeliest(logits: np.ndarray, mass: float, most: int) -> np.ndarray:
    order = np.argsort(-logits, kind="stable")
    before = np.cumsum(special.softmax(logits)[order]) - special.softmax(logits)[order]
    kept = np.zeros(len(logits), bool)
    kept[order[:most][before[:most] < mass]] = True
    return kept
