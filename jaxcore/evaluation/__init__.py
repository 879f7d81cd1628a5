"""Evaluation: from embeddings, probabilities, and attributions to numbers with intervals, and to verdicts.

    attribution_accuracy   who of N candidates wrote it: centroids, N-way draws, N x S grids, open sets
    verification           same author or not: PAN metrics by year, pair features, one-layer head, abstention
    pan                    reading PAN truth and answer files
    clustering             agglomerative clustering on cosine distance, BCubed, link average precision
    token_attribution      do token attributions find known markers: AUPRC, AUROC, pointing game
    bootstrap              confidence intervals over rows or groups of rows
    authorship             all of that for an authorship task, from the embeddings of its texts
    authorship_explanation tokens behind an attribution, scored against known markers
    claims                 what a paper says in a form that can fail, and the verdict over seeds
    row_map                a jitted function over finite data, padded and sharded
    finished_items         long evaluations item by item, on disk as they are finished; by its name
    entailment             whether a premise entails a hypothesis, by a published classifier; by its name
    steering_bench         directions found on preference pairs, and steering judged; imported by its name
    author_pairs           pairs of texts for verification
    paired_tests           paired t-test and sign-flip permutation test, with a margin
    input_checks           the checks of arguments that all of them share
    sentence_similarity    the STS protocol: Spearman of cosines, by task, "all" aggregation, biases, intervals
    similarity_search      exact top-k and ranks over similarities that are never stored, on any mesh
    retrieval              recall, mR, MRR, MAP, nDCG from ranks
    probes                 linear and nearest-neighbour probes
    partitions             k-means and linkage clusters, and their scores
    text_embedding         texts to vectors, grouped by length, spread over a mesh
    generation_attribution a decoder's continuations, each token explained by those before it
    classifier_instances   texts as attribution sees them, for recurrent and transformer classifiers; by its name
    explainer_agreement    agreement of explainers by groups of pairs, per instance, and its shuffled control
    simulatability         a simulated reader guesses the prediction from what an explanation shows
    control_maps           permuted saliency maps, random spans: negative controls
    text_diversity         rep-n, diversity and length of generated texts
    coherence, isotropy, mauve     of language models and what they write; imported by their names, like text_diversity
    rater_agreement        Fleiss' kappa, means in which every rater counts the same
    explanation_study      human ratings of explanations; the published study of saliency map verbalization
    span_attribution       source spans against people's spans, length, coverage, entailment; by its name, as are
    span_localiser, token_states    requests for attribution in, source spans out; texts to states of tokens
    query_attribution               highlights and what methods attribute to them: length, agreement, AutoAIS
    hashed_words                    states of tokens without training, by the words themselves
    released_attribution   example runs published with LAQuer, computed again
    trace_resampling, trace_attention, sampled_traces, step_similarity     sentences of reasoning traces: what rollouts
                           and attention say about them, traces out of samples, which sentences say the same; by name
    reasoning_categories, dependency_recovery, published_importance     importance by function of a sentence, known
                           dependencies found or not, the released scores analysed again; by name
    boxed_answers          final answers found, normalised, compared; by its name

Metrics take NumPy or JAX arrays, compute on the host in float64, and raise one-line `ValueError`s;
`centroid_attribution`, `anchor_replica_accuracy` and `pair_features` are JAX functions that work under `jit`.
"""

from jaxcore.evaluation.attribution_accuracy import (
    NWayResult,
    anchor_replica_accuracy,
    centroid_attribution,
    macro_f1_open_set,
    nway_grid,
    nway_protocol,
)
from jaxcore.evaluation.author_pairs import sample_author_pairs
from jaxcore.evaluation.authorship import (
    AuthorshipEvaluationConfig,
    AuthorshipMeasurements,
    evaluate_authorship,
)
from jaxcore.evaluation.authorship_explanation import AuthorshipExplanations, explain_queries, query_targets
from jaxcore.evaluation.bootstrap import ConfidenceInterval, bootstrap_interval
from jaxcore.evaluation.claims import Claim, Claims, Measured, RunValues, Verdict, judge, judge_single_run
from jaxcore.evaluation.clustering import (
    BCubed,
    TunedThreshold,
    agglomerative_cosine,
    bcubed,
    cosine_links,
    link_average_precision,
    links_within_classes,
    tune_threshold,
)
from jaxcore.evaluation.control_maps import permuted_scores, random_spans
from jaxcore.evaluation.explainer_agreement import mean_over_pairs, pair_metrics, shuffled_tau
from jaxcore.evaluation.explanation_study import (
    STUDY_DATASETS,
    Rating,
    StudyTable,
    guess_agreement,
    read_study,
    study_files,
    subset_means,
)
from jaxcore.evaluation.paired_tests import PairedTest, paired_permutation_test, paired_t_test
from jaxcore.evaluation.pan import align_answers, read_pan_answers, read_pan_truth
from jaxcore.evaluation.partitions import (
    PartitionScores,
    evaluate_partitions,
    kmeans_clusters,
    linkage_clusters,
    partition_scores,
)
from jaxcore.evaluation.probes import ProbeResult, cross_validated_linear_probe, knn_probe, linear_probe
from jaxcore.evaluation.rater_agreement import fleiss_kappa, mean_over_raters
from jaxcore.evaluation.retrieval import (
    CrossModalEvaluation,
    RetrievalEvaluation,
    evaluate_cross_modal,
    evaluate_retrieval,
    mean_average_precision,
    mean_recall,
    mean_reciprocal_rank,
    ndcg_at_k,
    padded_relevance,
    ranks_from_counts,
    recall_at_k,
    relevant_share_at_k,
    retrieval_intervals,
)
from jaxcore.evaluation.row_map import Interrupted, map_rows
from jaxcore.evaluation.sentence_similarity import (
    PairSimilarities,
    SentencePairs,
    StsEvaluation,
    evaluate_sts,
    partial_spearman,
    pearson,
    similarity_gain_intervals,
    similarity_intervals,
    spearman,
    sts_score,
)
from jaxcore.evaluation.similarity_search import RankCounts, TopK, target_ranks, top_k
from jaxcore.evaluation.simulatability import NaiveBayesReader, fit_reader
from jaxcore.evaluation.text_embedding import EmbeddedWindow, EmbeddingOptions, embed_texts, embed_windows
from jaxcore.evaluation.token_attribution import MarkerRanking, PointingGame, marker_auprc, pointing_game
from jaxcore.evaluation.verification import (
    UnansweredCalibration,
    VerificationHead,
    brier_complement,
    c_at_1,
    calibrate_unanswered,
    f05u,
    f05u_published_2020,
    fit_verification_head,
    pair_features,
    verification_f1,
    verification_metrics,
)

__all__ = [
    "STUDY_DATASETS",
    "AuthorshipEvaluationConfig",
    "AuthorshipExplanations",
    "AuthorshipMeasurements",
    "BCubed",
    "Claim",
    "Claims",
    "ConfidenceInterval",
    "CrossModalEvaluation",
    "EmbeddedWindow",
    "EmbeddingOptions",
    "Interrupted",
    "MarkerRanking",
    "Measured",
    "NWayResult",
    "NaiveBayesReader",
    "PairSimilarities",
    "PairedTest",
    "PartitionScores",
    "PointingGame",
    "ProbeResult",
    "RankCounts",
    "Rating",
    "RetrievalEvaluation",
    "RunValues",
    "SentencePairs",
    "StsEvaluation",
    "StudyTable",
    "TopK",
    "TunedThreshold",
    "UnansweredCalibration",
    "Verdict",
    "VerificationHead",
    "agglomerative_cosine",
    "align_answers",
    "anchor_replica_accuracy",
    "bcubed",
    "bootstrap_interval",
    "brier_complement",
    "c_at_1",
    "calibrate_unanswered",
    "centroid_attribution",
    "cosine_links",
    "cross_validated_linear_probe",
    "embed_texts",
    "embed_windows",
    "evaluate_authorship",
    "evaluate_cross_modal",
    "evaluate_partitions",
    "evaluate_retrieval",
    "evaluate_sts",
    "explain_queries",
    "f05u",
    "f05u_published_2020",
    "fit_reader",
    "fit_verification_head",
    "fleiss_kappa",
    "guess_agreement",
    "judge",
    "judge_single_run",
    "kmeans_clusters",
    "knn_probe",
    "linear_probe",
    "link_average_precision",
    "linkage_clusters",
    "links_within_classes",
    "macro_f1_open_set",
    "map_rows",
    "marker_auprc",
    "mean_average_precision",
    "mean_over_pairs",
    "mean_over_raters",
    "mean_recall",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "nway_grid",
    "nway_protocol",
    "padded_relevance",
    "pair_features",
    "pair_metrics",
    "paired_permutation_test",
    "paired_t_test",
    "partial_spearman",
    "partition_scores",
    "pearson",
    "permuted_scores",
    "pointing_game",
    "query_targets",
    "random_spans",
    "ranks_from_counts",
    "read_pan_answers",
    "read_pan_truth",
    "read_study",
    "recall_at_k",
    "relevant_share_at_k",
    "retrieval_intervals",
    "sample_author_pairs",
    "shuffled_tau",
    "similarity_gain_intervals",
    "similarity_intervals",
    "spearman",
    "sts_score",
    "study_files",
    "subset_means",
    "target_ranks",
    "top_k",
    "tune_threshold",
    "verification_f1",
    "verification_metrics",
]
