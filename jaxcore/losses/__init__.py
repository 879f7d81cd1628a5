"""Contrastive objectives: arrays in, scalar out.

Every pairwise loss here is a reduction of a similarity matrix that never exists as a whole. `jaxcore.losses.pairs`
walks that matrix in blocks (on one device or over a mesh, with exact gradients, in memory linear in the batch); a loss
only says what a pair contributes. Similarities are cosines unless `normalize=False`, are divided by `temperature`, and
are accumulated in float32 whatever the inputs' dtype.
"""

from jaxcore.losses.info_nce import (
    Contrast,
    contrast_rows,
    info_nce,
    info_nce_rows,
    nt_xent,
    queue_info_nce,
    symmetric_info_nce,
    two_view_parts,
)
from jaxcore.losses.label_contrast import (
    ClassCentres,
    class_centres,
    cluster_contrastive,
    cross_supervised_contrastive,
)
from jaxcore.losses.metric_learning import circle, multi_similarity
from jaxcore.losses.pair_rows import map_similarity_rows
from jaxcore.losses.pairs import Extreme, Reduction, Side, reduce_pairs
from jaxcore.losses.sigmoid_contrastive import sigmoid_contrastive
from jaxcore.losses.similarity import unit_vectors
from jaxcore.losses.supervised_contrastive import feature_normalized_contrastive, supervised_contrastive
from jaxcore.losses.triplet import triplet
from jaxcore.losses.uniformity import uniformity
from jaxcore.losses.weighted_negatives import (
    angular_margin_info_nce,
    debiased_contrastive,
    decoupled_contrastive,
    weighted_info_nce,
)

__all__ = [
    "ClassCentres",
    "Contrast",
    "Extreme",
    "Reduction",
    "Side",
    "angular_margin_info_nce",
    "circle",
    "class_centres",
    "cluster_contrastive",
    "contrast_rows",
    "cross_supervised_contrastive",
    "debiased_contrastive",
    "decoupled_contrastive",
    "feature_normalized_contrastive",
    "info_nce",
    "info_nce_rows",
    "map_similarity_rows",
    "multi_similarity",
    "nt_xent",
    "queue_info_nce",
    "reduce_pairs",
    "sigmoid_contrastive",
    "supervised_contrastive",
    "symmetric_info_nce",
    "triplet",
    "two_view_parts",
    "uniformity",
    "unit_vectors",
    "weighted_info_nce",
]
