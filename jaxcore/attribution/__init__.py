"""Explanation methods: ``method(score, inputs, *, ...) -> attributions`` of the inputs' structure.

A score maps a batch of inputs (any pytree of float arrays [batch, ...]) to one number per example, so anything can be
explained: a class's logit or probability, a contrast ("this class rather than that one"), the similarity of two
embeddings, the value of an inner unit: `jaxcore.attribution.scores`. Methods work on any pure JAX function, need no
hooks and no special layers, and run in chunks that fit a memory budget (`jaxcore.attribution.chunking`). Jit the
call to explain many batches with one compilation.

| kind | methods |
|---|---|
| gradients | `saliency`, `input_x_gradient`, `integrated_gradients`, `expected_gradients` (GradientSHAP), `grad_cam` |
| paths | `path_integrated_gradients`, `polyline_integrated_gradients`, `sequential_integrated_gradients`, |
| | `discretised_integrated_gradients`, `guided_integrated_gradients`, `blur_integrated_gradients` |
| inner layers | `at_layer` (any method), `layer_conductance`, `internal_influence`, `activation_gradient` |
| propagation | `deep_lift`, `deep_shap`, `lrp` (also AttnLRP), `guided_backpropagation`, `deconvnet` |
| perturbation | `feature_ablation`, `occlusion`, `leave_one_span_out`, `feature_permutation`, `lime`, `kernel_shap`, |
| | `shapley_sampling`, `exact_shapley`, `rise`, `value_zeroing` |
| interactions | `integrated_hessians`, `shapley_interaction`, `similarity_pairs` |
| attention | `raw_attention`, `attention_rollout`, `attention_flow`, `gradient_x_attention`, `receiver_scores` |
| combinators | `smoothed`, `smoothed_square`, `noise_variance`, `over_baselines`, `contrastive`, `normalised`, |
| | `chunked`, `at_layer` |
| tokens, words | `sum_over_dims` and its kin, `aggregate_tokens`; by name: `token_scores`, `TOKEN_METHODS` |
| a text's similarity to a target | `attribute_similarity` |
| why this response rather than that | `preference_score`, `preference_margin`, `ResponsePairs`; what follows for |
| | steering: `jaxcore.attribution.steering_directions` |
| each token of a continuation | `sequence_token_scores` (any method), `SequenceScores`, `target_gradients`, |
| | `aggregate_matrix` |

| measure | functions |
|---|---|
| agreement of two explanations | `kendall_tau`, `spearman`, `pearson`, `weighted_kendall`, `kendall_top_k`, |
| | `top_k_overlap`, `top_k_jaccard`, `rank_biased_overlap`, `agreement_matrix` |
| faithfulness to the model | `completeness_error`, `comprehensiveness`, `sufficiency`, `deletion_curve`, |
| | `insertion_curve`, `infidelity`, `max_sensitivity`, `cascading_randomisation`, `remove_and_retrain` |
| plausibility to people | `rationale_auprc`, `token_f1`, `iou_f1`, `simulatability` |

Sentences of a reasoning trace, by the modules' names: `resampling_importance` (answers of rollouts without a sentence),
`attention_suppression` (what is lost when nobody may look at it; as released: `truncated_divergence`),
`receiver_heads`, `head_ablation` (heads that look at few sentences, and the model without them), `sentence_matrices`
(influences between sentences, and their agreement).

A part of a generated text attributed to parts of its sources, by the modules' names: `span_localisation` (from states,
on device), `quoted_sources` (by asking for quotations), `decontextualisation` (a highlight as a claim of its own),
`answer_attempts` (prompts together, unreadable answers again), `text_spans`, `lexical_alignment`.
"""

from jaxcore.attribution.ablation import (
    feature_ablation,
    feature_permutation,
    leave_one_span_out,
    occlusion,
    sliding_spans,
)
from jaxcore.attribution.agreement import (
    AgreementMatrix,
    agreement_matrix,
    kendall_tau,
    pearson,
    spearman,
    weighted_kendall,
)
from jaxcore.attribution.attention import (
    attention_rollout,
    attention_weights,
    gradient_x_attention,
    norm_weighted_attention,
    positive_gradient_x_attention,
    raw_attention,
    receiver_scores,
    rollout_matrix,
)
from jaxcore.attribution.attention_flow import attention_flow
from jaxcore.attribution.cascading_randomisation import RandomisationCheck, cascading_randomisation, redrawn_parameters
from jaxcore.attribution.combinators import (
    Method,
    at_layer,
    chunked,
    contrastive,
    noise_variance,
    normalised,
    over_baselines,
    smoothed,
    smoothed_square,
)
from jaxcore.attribution.deeplift import deep_lift, deep_shap
from jaxcore.attribution.discretised_path import discretised_integrated_gradients
from jaxcore.attribution.embedding_similarity import TokenAttributions, attribute_similarity
from jaxcore.attribution.expected_gradients import expected_gradients
from jaxcore.attribution.faithfulness import (
    PerturbationCurve,
    area_under_curve,
    comprehensiveness,
    deletion_curve,
    insertion_curve,
    sufficiency,
)
from jaxcore.attribution.feature_groups import FeatureGroups, feature_groups, masked_inputs, token_groups
from jaxcore.attribution.gradients import grad_cam, input_x_gradient, saliency
from jaxcore.attribution.guided_backpropagation import deconvnet, guided_backpropagation
from jaxcore.attribution.guided_path import guided_integrated_gradients
from jaxcore.attribution.infidelity import (
    gaussian_perturbation,
    infidelity,
    max_sensitivity,
    scaled_infidelity,
    subset_perturbation,
)
from jaxcore.attribution.input_checks import Baseline, Inputs, Score
from jaxcore.attribution.integrated_gradients import completeness_error, integrated_gradients, quadrature_rule
from jaxcore.attribution.interactions import integrated_hessians, integrated_jacobian, similarity_pairs, value_zeroing
from jaxcore.attribution.layers import (
    activation_gradient,
    internal_influence,
    layer_conductance,
    layer_conductance_by_differences,
)
from jaxcore.attribution.lrp import AlphaBeta, Epsilon, Gamma, lrp
from jaxcore.attribution.method_names import TOKEN_METHODS, token_scores
from jaxcore.attribution.paths import (
    blur_integrated_gradients,
    path_integrated_gradients,
    polyline_integrated_gradients,
    sequential_integrated_gradients,
    straight_line,
)
from jaxcore.attribution.plausibility import iou_f1, rationale_auprc, simulatability, simulation_accuracy, token_f1
from jaxcore.attribution.preference_score import ResponsePairs, preference_margin, preference_score
from jaxcore.attribution.remove_and_retrain import RankedTexts, RetrainedAccuracy, remove_and_retrain
from jaxcore.attribution.rise import rise, rise_over_groups
from jaxcore.attribution.scores import (
    contrast,
    layer_value,
    log_probability,
    logit,
    margin,
    predicted_classes,
    probability,
    similarity,
)
from jaxcore.attribution.sequence_targets import (
    SEQUENCE_METHODS,
    SequenceScores,
    aggregate_matrix,
    sequence_token_scores,
    target_gradients,
)
from jaxcore.attribution.shapley import exact_shapley, shapley_interaction, shapley_sampling
from jaxcore.attribution.surrogates import kernel_shap, lime, ridge_attribution
from jaxcore.attribution.token_aggregation import (
    SegmentScores,
    abs_sum_over_dims,
    aggregate_tokens,
    l2_norm_over_dims,
    mean_over_dims,
    sum_over_dims,
    word_ids_array,
    word_ids_from_offsets,
)
from jaxcore.attribution.top_k_agreement import kendall_top_k, rank_biased_overlap, top_k_jaccard, top_k_overlap

__all__ = [
    "SEQUENCE_METHODS",
    "TOKEN_METHODS",
    "AgreementMatrix",
    "AlphaBeta",
    "Baseline",
    "Epsilon",
    "FeatureGroups",
    "Gamma",
    "Inputs",
    "Method",
    "PerturbationCurve",
    "RandomisationCheck",
    "RankedTexts",
    "ResponsePairs",
    "RetrainedAccuracy",
    "Score",
    "SegmentScores",
    "SequenceScores",
    "TokenAttributions",
    "abs_sum_over_dims",
    "activation_gradient",
    "aggregate_matrix",
    "aggregate_tokens",
    "agreement_matrix",
    "area_under_curve",
    "at_layer",
    "attention_flow",
    "attention_rollout",
    "attention_weights",
    "attribute_similarity",
    "blur_integrated_gradients",
    "cascading_randomisation",
    "chunked",
    "completeness_error",
    "comprehensiveness",
    "contrast",
    "contrastive",
    "deconvnet",
    "deep_lift",
    "deep_shap",
    "deletion_curve",
    "discretised_integrated_gradients",
    "exact_shapley",
    "expected_gradients",
    "feature_ablation",
    "feature_groups",
    "feature_permutation",
    "gaussian_perturbation",
    "grad_cam",
    "gradient_x_attention",
    "guided_backpropagation",
    "guided_integrated_gradients",
    "infidelity",
    "input_x_gradient",
    "insertion_curve",
    "integrated_gradients",
    "integrated_hessians",
    "integrated_jacobian",
    "internal_influence",
    "iou_f1",
    "kendall_tau",
    "kendall_top_k",
    "kernel_shap",
    "l2_norm_over_dims",
    "layer_conductance",
    "layer_conductance_by_differences",
    "layer_value",
    "leave_one_span_out",
    "lime",
    "log_probability",
    "logit",
    "lrp",
    "margin",
    "masked_inputs",
    "max_sensitivity",
    "mean_over_dims",
    "noise_variance",
    "norm_weighted_attention",
    "normalised",
    "occlusion",
    "over_baselines",
    "path_integrated_gradients",
    "pearson",
    "polyline_integrated_gradients",
    "positive_gradient_x_attention",
    "predicted_classes",
    "preference_margin",
    "preference_score",
    "probability",
    "quadrature_rule",
    "rank_biased_overlap",
    "rationale_auprc",
    "raw_attention",
    "receiver_scores",
    "redrawn_parameters",
    "remove_and_retrain",
    "ridge_attribution",
    "rise",
    "rise_over_groups",
    "rollout_matrix",
    "saliency",
    "scaled_infidelity",
    "sequence_token_scores",
    "sequential_integrated_gradients",
    "shapley_interaction",
    "shapley_sampling",
    "similarity",
    "similarity_pairs",
    "simulatability",
    "simulation_accuracy",
    "sliding_spans",
    "smoothed",
    "smoothed_square",
    "spearman",
    "straight_line",
    "subset_perturbation",
    "sufficiency",
    "sum_over_dims",
    "target_gradients",
    "token_f1",
    "token_groups",
    "token_scores",
    "top_k_jaccard",
    "top_k_overlap",
    "value_zeroing",
    "weighted_kendall",
    "word_ids_array",
    "word_ids_from_offsets",
]
