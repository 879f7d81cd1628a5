"""Contrastive objectives and their companions: arrays in, scalar out.

Every pairwise loss is a reduction of a similarity matrix that never exists as a whole. `jaxcore.losses.pairs` walks it
in blocks, on one device or over a mesh, with exact gradients and in memory linear in the batch; a loss only says what a
pair contributes. Similarities are cosines unless `normalize=False`, are divided by `temperature`, and are accumulated
in float32 whatever the inputs' dtype. Any of them goes under `jaxcore.training.cached_gradients` as it is.

The families of Rethmeier and Augenstein's primer (F1-F8), and what else the papers here need; s is a score or
similarity, l = s / tau, (a, a+) a matching pair, N(a) its negatives:

| family | function | equation |
|---|---|---|
| F1 binary NCE | `binary_nce` | -log sig(s+ - log pN - gamma - log K) - sum_k log(1 - sig(...)) |
| F2 ranking NCE | `ranking_nce`, `weighted_info_nce` | -log e^(s+ - log pN) / sum_k e^(s_k - log pN) |
| F3a InfoNCE, hard negatives | `info_nce` | -l_ii + log sum_j e^l_ij |
| F3b both directions (CLIP) | `symmetric_info_nce` | (F3a of rows + F3a of columns) / 2 |
| F3c two views (SimCLR) | `nt_xent` | F3a over 2n - 2 negatives, self excluded |
| F3d queue (MoCo) | `queue_info_nce`, `Queue`, `momentum_update` | F3a with negatives from earlier batches |
| F3e own hard negative (SimCSE) | `info_nce(own_negative_log_weight=w)` | F3a, + w on a query's own negative |
| several positives | `multi_positive_info_nce` | sum_v F3a(view 1, view v) |
| without the positive below (DCL) | `decoupled_contrastive` | -l_ii + log sum_{j in N(i)} e^l_ij |
| debiased, hardened negatives | `debiased_contrastive` | -log e^l+ / (e^l+ + G), G corrects for class prior, hardness |
| importance weights, IPW | `weighted_info_nce` | F3a with log w_j on negatives, u_i on rows |
| angular margin (ArcCSE) | `angular_margin_info_nce` | F3a with cos(theta_ii + m) |
| pairwise sigmoid (SigLIP) | `sigmoid_contrastive` | sum_ij log(1 + e^(-z_ij (l_ij + b))) |
| F4 supervised (SupCon), memory (XBM) | `supervised_contrastive` | -mean_p l_ip + log sum_{a != i} e^l_ia ("out") |
| what STAR's published code computes | `feature_normalized_contrastive` | F4 with features normalised over the batch |
| input-label, several captions | `cross_supervised_contrastive` | F4 across two sides, both ways |
| class centres (PIR, PriorCLIP) | `cluster_contrastive` | F3b against the other side's class centres |
| F5 margin, triplet | `triplet`, `margin_ranking` | max(0, m + d_ap - d_an): hard, semi-hard, all; soft |
| F5 over tokens (SimCTG) | `token_margin_contrast` | mean max(0, rho - s_ii + s_ij) in a sequence |
| multi-similarity, circle | `multi_similarity`, `circle` | log(1 + sum_p ...), log(1 + sum_n ...), weighted |
| rankers | `pairwise_ranking`, `ranknet`, `listwise_cross_entropy` | on score pairs; on score lists |
| F6 energies | `residual_energy_loss` | BCE on -E against the language model's own samples |
| F7 bounds on information | `info_nce_bound` | log(K + 1) - F2 |
| F7 | `donsker_varadhan_bound`, `jensen_shannon_bound` | E s - log E e^s; -E sp(-s) - E sp(s) |
| F8 replaced tokens | `replaced_token_loss`, `electric_logits`, `replaced_token_targets` | F1 per token |
| F1, F2 scorers | `cosine_scores`, `bilinear_scores`, `joint_scores`, ... (`scorers`) | s(u, v) |
| mixing with other losses | `fixed_mixture`, `learned_mixture` | sum_i w_i L_i; sum_i e^-v_i L_i + max(v_i, 0) |

Language models (`next_token`): `next_token_loss`, `next_token_log_probs`, and from hidden states in chunks of positions
`chunked_next_token_log_probs`. Preferences (`preference`): `direct_preference_loss` (DPO), `log_ratio_preference_loss`.

| without negatives | function |
|---|---|
| alignment, uniformity | `alignment`, `uniformity` |
| redundancy reduction | `barlow_twins`, `vicreg` |
| whitening: ZCA, groups, shuffled groups | `zca_matrix`, `group_whiten`, `shuffled_group_whitening` |
| whitening of finished embeddings | `fit_whitening` |
| kernel joint entropy, mutual information | `kernel_joint_entropy`, `kernel_mutual_information` |
| maximum mean discrepancy | `maximum_mean_discrepancy`, `shuffled_joint_mmd` |
| isotropy | `partition_isotropy`, `mean_cosine_isotropy` |
| effective rank, singular spectrum | `effective_rank`, `singular_spectrum` |

Losses of your own: give `reduce_pairs` a function of a block (`map_similarity_rows` where whole rows are needed).
"""

from jaxcore.losses.distribution_shape import (
    CosinePairs,
    alignment,
    cosine_pairs,
    effective_rank,
    mean_cosine_isotropy,
    partition_isotropy,
    singular_spectrum,
)
from jaxcore.losses.energy import residual_energy_loss
from jaxcore.losses.info_nce import (
    Contrast,
    TwoViews,
    contrast_rows,
    info_nce,
    info_nce_rows,
    nt_xent,
    queue_info_nce,
    symmetric_info_nce,
    two_view_parts,
)
from jaxcore.losses.kernel_terms import (
    kernel_joint_entropy,
    kernel_mutual_information,
    maximum_mean_discrepancy,
    shuffled_joint_mmd,
)
from jaxcore.losses.label_contrast import ClassCentres, class_centres, cluster_contrastive, cross_supervised_contrastive
from jaxcore.losses.memory_queue import Queue, empty_queue, momentum_update, push
from jaxcore.losses.metric_learning import circle, multi_similarity
from jaxcore.losses.mixing import fixed_mixture, init_log_variances, learned_mixture
from jaxcore.losses.multi_positive import multi_positive_info_nce
from jaxcore.losses.next_token import (
    TokenLogProbs,
    chunked_next_token_log_probs,
    counted_targets,
    next_token_log_probs,
    next_token_loss,
)
from jaxcore.losses.noise_contrastive import (
    binary_nce,
    donsker_varadhan_bound,
    info_nce_bound,
    jensen_shannon_bound,
    ranking_nce,
)
from jaxcore.losses.pair_rows import map_similarity_rows
from jaxcore.losses.pairs import Extreme, Reduction, Side, reduce_pairs
from jaxcore.losses.preference import direct_preference_loss, log_ratio_preference_loss
from jaxcore.losses.ranking import listwise_cross_entropy, margin_ranking, pairwise_ranking, ranknet
from jaxcore.losses.redundancy_reduction import VicregComponents, barlow_twins, vicreg, vicreg_components
from jaxcore.losses.replaced_tokens import electric_logits, replaced_token_loss, replaced_token_targets
from jaxcore.losses.scorers import (
    bilinear_scores,
    concat_mlp_scores,
    cosine_scores,
    dot_scores,
    init_bilinear,
    init_concat_mlp,
    init_joint,
    joint_scores,
    mean_product_scores,
)
from jaxcore.losses.sigmoid_contrastive import sigmoid_contrastive
from jaxcore.losses.similarity import unit_vectors
from jaxcore.losses.supervised_contrastive import feature_normalized_contrastive, supervised_contrastive
from jaxcore.losses.token_margin import token_margin_contrast
from jaxcore.losses.triplet import triplet
from jaxcore.losses.uniformity import uniformity
from jaxcore.losses.weighted_negatives import (
    angular_margin_info_nce,
    debiased_contrastive,
    decoupled_contrastive,
    weighted_info_nce,
)
from jaxcore.losses.whitening import (
    Whitening,
    WhiteningStatistics,
    batch_statistics,
    fit_whitening,
    group_whiten,
    shuffled_group_whitening,
    update_statistics,
    zca_matrix,
)

__all__ = [
    "ClassCentres",
    "Contrast",
    "CosinePairs",
    "Extreme",
    "Queue",
    "Reduction",
    "Side",
    "TokenLogProbs",
    "TwoViews",
    "VicregComponents",
    "Whitening",
    "WhiteningStatistics",
    "alignment",
    "angular_margin_info_nce",
    "barlow_twins",
    "batch_statistics",
    "bilinear_scores",
    "binary_nce",
    "chunked_next_token_log_probs",
    "circle",
    "class_centres",
    "cluster_contrastive",
    "concat_mlp_scores",
    "contrast_rows",
    "cosine_pairs",
    "cosine_scores",
    "counted_targets",
    "cross_supervised_contrastive",
    "debiased_contrastive",
    "decoupled_contrastive",
    "direct_preference_loss",
    "donsker_varadhan_bound",
    "dot_scores",
    "effective_rank",
    "electric_logits",
    "empty_queue",
    "feature_normalized_contrastive",
    "fit_whitening",
    "fixed_mixture",
    "group_whiten",
    "info_nce",
    "info_nce_bound",
    "info_nce_rows",
    "init_bilinear",
    "init_concat_mlp",
    "init_joint",
    "init_log_variances",
    "jensen_shannon_bound",
    "joint_scores",
    "kernel_joint_entropy",
    "kernel_mutual_information",
    "learned_mixture",
    "listwise_cross_entropy",
    "log_ratio_preference_loss",
    "map_similarity_rows",
    "margin_ranking",
    "maximum_mean_discrepancy",
    "mean_cosine_isotropy",
    "mean_product_scores",
    "momentum_update",
    "multi_positive_info_nce",
    "multi_similarity",
    "next_token_log_probs",
    "next_token_loss",
    "nt_xent",
    "pairwise_ranking",
    "partition_isotropy",
    "push",
    "queue_info_nce",
    "ranking_nce",
    "ranknet",
    "reduce_pairs",
    "replaced_token_loss",
    "replaced_token_targets",
    "residual_energy_loss",
    "shuffled_group_whitening",
    "shuffled_joint_mmd",
    "sigmoid_contrastive",
    "singular_spectrum",
    "supervised_contrastive",
    "symmetric_info_nce",
    "token_margin_contrast",
    "triplet",
    "two_view_parts",
    "uniformity",
    "unit_vectors",
    "update_statistics",
    "vicreg",
    "vicreg_components",
    "weighted_info_nce",
    "zca_matrix",
]
