"""Contrastive objectives: arrays in, scalar out.

Every loss here is a sum over rows of a similarity matrix. `jaxcore.losses.pairs` walks that matrix (on one device
or over a mesh, with exact gradients); a loss only says what a row contributes. Similarities are cosines unless
`normalize=False`, are divided by `temperature`, and are accumulated in float32 whatever the inputs' dtype.

| objective | function |
|---|---|
| InfoNCE, one-sided; extra keys as hard negatives | `info_nce` |
| InfoNCE, both directions (CLIP) | `symmetric_info_nce` |
| SupCon, "out" form, any number of positives (STAR) | `supervised_contrastive` |
| what STAR's published code computes instead | `feature_normalized_contrastive` |
"""

from jaxcore.losses.info_nce import info_nce, info_nce_rows, nt_xent, symmetric_info_nce
from jaxcore.losses.pairs import Extreme, Reduction, Side, reduce_pairs
from jaxcore.losses.similarity import unit_vectors
from jaxcore.losses.supervised_contrastive import feature_normalized_contrastive, supervised_contrastive

__all__ = [
    "Extreme",
    "Reduction",
    "Side",
    "feature_normalized_contrastive",
    "info_nce",
    "info_nce_rows",
    "nt_xent",
    "reduce_pairs",
    "supervised_contrastive",
    "symmetric_info_nce",
    "unit_vectors",
]
