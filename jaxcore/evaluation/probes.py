"""What a frozen representation knows of labels: logistic regression on top of it, and its nearest neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxcore.evaluation.bootstrap import ConfidenceInterval, bootstrap_interval
from jaxcore.evaluation.input_checks import class_codes, finite_array, positive_integer, same_length
from jaxcore.evaluation.similarity_search import KEY_BLOCK, QUERY_BLOCK, top_k

PENALTIES = tuple(2.0**power for power in range(2, -4, -1))  # 1 / C over SentEval's grid C = 2^-2 .. 2^3

Labels = Shaped[np.ndarray, "n"] | Sequence


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Accuracy of a probe on rows that it was not fitted on.

    Attributes:
        accuracy: share of correct predictions with its bootstrap interval over test rows. The probe is held fixed:
            the spread over training sets is not in it.
        correct: [n] per test row, for paired tests between representations.
        predictions: [n] predicted labels.
        penalties: the L2 penalty chosen: one for a fixed split, one per fold for cross-validation, none for k-NN.
    """

    accuracy: ConfidenceInterval
    correct: Bool[np.ndarray, "n"]
    predictions: Shaped[np.ndarray, "n"]
    penalties: tuple[float, ...] = ()


def linear_probe(
    train_features: Float[ArrayLike, "n dim"],
    train_labels: Labels,
    test_features: Float[ArrayLike, "t dim"],
    test_labels: Labels,
    *,
    validation: tuple[Float[ArrayLike, "v dim"], Labels] | None = None,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 10,
    max_iterations: int = 1000,
    resamples: int = 2000,
    seed: int = 0,
) -> ProbeResult:
    """Multinomial logistic regression on frozen features, its penalty chosen without the test rows.

    ``min_W,b  sum_i -log softmax(W x_i + b)_{y_i} + penalty / 2 |W|^2``. The penalty of best accuracy on `validation`,
    or in `folds`-fold stratified cross-validation of the training rows without one, wins; the larger on ties. The
    model is then fitted on all training rows, never on validation rows.

    Args:
        train_features, test_features: as they are: scale or standardise beforehand if the penalty should not see it.
        train_labels, test_labels: any sortable type. A test label that training lacks counts as wrong.
        validation: (features, labels) of a development split.
        penalties: the grid, > 0; one value skips the choice.
        folds: of the cross-validation where there is no validation split.
        max_iterations: of L-BFGS.
        resamples, seed: of the interval; the seed also shuffles the folds.
    Raises:
        ValueError: widths or lengths differ, NaN, one class in training, a class with fewer rows than `folds`, an empty
            grid or a penalty <= 0, fewer than two test rows.
    Source: SentEval (logistic regression; development split or cross-validation on the training split).
    """
    features, codes, classes = _labelled("train", train_features, train_labels)
    tested, truth = _test_rows("test", test_features, test_labels, features.shape[1], classes)
    grid = _checked_penalties(penalties)
    if len(grid) == 1:
        best = grid[0]
    elif validation is not None:
        held_out, held_truth = _test_rows("validation", *validation, features.shape[1], classes)
        best = _best_penalty(_grid_correct(features, codes, held_out, held_truth, grid, max_iterations), grid)
    else:
        best = _cross_validated_penalty(features, codes, classes, grid, folds, max_iterations, seed)
    predicted = _fitted_path(features, codes, (best,), max_iterations, tested)[0]
    return _result(predicted, truth, classes, (best,), resamples, seed)


def cross_validated_linear_probe(
    features: Float[ArrayLike, "n dim"],
    labels: Labels,
    *,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 10,
    inner_folds: int = 10,
    max_iterations: int = 1000,
    resamples: int = 2000,
    seed: int = 0,
) -> ProbeResult:
    """`linear_probe` for a set without splits: every row is predicted once, by the fit of the other folds.

    Nested and stratified: within the training rows of each outer fold `inner_folds`-fold cross-validation chooses the
    penalty. Unlike SentEval, whose score is the mean over folds, the accuracy is over rows; with folds of equal size
    the two agree.

    Args:
        features, labels, penalties, max_iterations, resamples, seed: as in `linear_probe`.
        folds: outer folds, 10 in the transfer protocol (MR, CR, SUBJ, MPQA).
        inner_folds: fewer make the choice of the penalty cheaper.
    Raises:
        ValueError: as `linear_probe`; a class with fewer rows than outer or inner folds need.
    Source: SentEval, InnerKFoldClassifier.
    """
    rows, codes, classes = _labelled("features", features, labels)
    grid = _checked_penalties(penalties)
    predicted, chosen = np.empty_like(codes), []
    for kept, held_out in _splits(codes, classes, folds, seed):
        best = grid[0]
        if len(grid) > 1:
            best = _cross_validated_penalty(rows[kept], codes[kept], classes, grid, inner_folds, max_iterations, seed)
        predicted[held_out] = _fitted_path(rows[kept], codes[kept], (best,), max_iterations, rows[held_out])[0]
        chosen.append(best)
    return _result(predicted, codes, classes, tuple(chosen), resamples, seed)


def knn_probe(
    train_features: Float[ArrayLike, "n dim"],
    train_labels: Labels,
    test_features: Float[ArrayLike, "t dim"],
    test_labels: Labels,
    *,
    k: int = 20,
    temperature: float = 0.07,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
    mesh: Mesh | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> ProbeResult:
    """Vote of the k training rows of largest cosine, ``votes_c = sum_{i in kNN, y_i = c} exp(cos_i / temperature)``.

    Neighbours are searched on device in tiles (`similarity_search.top_k`). Equal votes go to the first
    class in sorted order.

    Args:
        train_features, train_labels, test_features, test_labels: as in `linear_probe`; a zero vector has cosine 0.
        k: neighbours, at most the training rows; 20 or 200 in the literature.
        temperature: > 0; small ones follow the nearest neighbour, large ones count heads.
        query_block, key_block, mesh: as in `top_k`.
        resamples, seed: of the interval.
    Raises:
        ValueError: as `linear_probe`; k out of range, temperature <= 0.
    Source: Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination", section 3.4
        (tau = 0.07, k = 200); k = 20 in later self-supervised work.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature!r}")
    features, codes, classes = _labelled("train", train_features, train_labels)
    tested, truth = _test_rows("test", test_features, test_labels, features.shape[1], classes)
    found = top_k(
        tested.astype(np.float32),
        features.astype(np.float32),
        k=k,
        query_block=query_block,
        key_block=key_block,
        mesh=mesh,
    )
    cosines = np.asarray(found.scores, np.float64)
    weights = np.exp((cosines - cosines[:, :1]) / temperature)  # relative to the nearest: nothing overflows
    votes = np.zeros((len(tested), len(classes)))
    np.add.at(votes, (np.arange(len(tested))[:, None], codes[np.asarray(found.indices)]), weights)
    return _result(votes.argmax(axis=1), truth, classes, (), resamples, seed)


# ---- checks ----------------------------------------------------------------------------------------------------


def _labelled(name: str, features: Any, labels: Any) -> tuple[Float[np.ndarray, "n dim"], Int[np.ndarray, "n"], Any]:
    rows = finite_array(f"{name} features", features, ndim=2)
    codes, classes = class_codes(f"{name} labels", labels)
    same_length(**{f"{name} features": rows, f"{name} labels": codes})
    if len(classes) < 2:
        raise ValueError(f"{name} labels hold only the class {classes[0]!r}; a probe needs at least two")
    return rows, codes, classes


def _test_rows(
    name: str, features: Any, labels: Any, width: int, classes: np.ndarray
) -> tuple[Float[np.ndarray, "t dim"], Int[np.ndarray, "t"]]:
    """Features and class codes, -1 for a label that training does not have."""
    rows = finite_array(f"{name} features", features, ndim=2)
    codes, own = class_codes(f"{name} labels", labels)
    same_length(**{f"{name} features": rows, f"{name} labels": codes})
    if rows.shape[1] != width:
        raise ValueError(f"{name} features have width {rows.shape[1]}, training features {width}; embed both alike")
    places = np.minimum(np.searchsorted(classes, own), len(classes) - 1)
    return rows, np.where(classes[places] == own, places, -1)[codes]


def _checked_penalties(penalties: Sequence[float]) -> tuple[float, ...]:
    grid = tuple(sorted((float(penalty) for penalty in penalties), reverse=True))
    if not grid or not all(0 < penalty < np.inf for penalty in grid):
        raise ValueError(f"penalties must be one or more finite numbers > 0, got {tuple(penalties)}")
    return grid


# ---- fitting -----------------------------------------------------------------------------------------------------


def _fitted_path(
    features: Float[np.ndarray, "n dim"],
    codes: Int[np.ndarray, "n"],
    grid: tuple[float, ...],
    max_iterations: int,
    tested: Float[np.ndarray, "t dim"],
) -> list[Int[np.ndarray, "t"]]:
    """Predictions for `tested` along the grid, each fit started from the one before (of larger penalty)."""
    from sklearn.linear_model import LogisticRegression  # it takes more than a second to import

    model = LogisticRegression(max_iter=max_iterations, warm_start=True)
    predictions = []
    for penalty in grid:
        predictions.append(model.set_params(C=1 / penalty).fit(features, codes).predict(tested))
    return predictions


def _grid_correct(
    features: np.ndarray,
    codes: np.ndarray,
    tested: np.ndarray,
    truth: np.ndarray,
    grid: tuple[float, ...],
    max_iterations: int,
) -> Int[np.ndarray, "penalties"]:
    return np.array([(p == truth).sum() for p in _fitted_path(features, codes, grid, max_iterations, tested)])


def _best_penalty(correct: Int[np.ndarray, "penalties"], grid: tuple[float, ...]) -> float:
    return grid[int(np.argmax(correct))]  # the grid falls: of equal ones the largest penalty


def _cross_validated_penalty(
    features: np.ndarray,
    codes: np.ndarray,
    classes: np.ndarray,
    grid: tuple[float, ...],
    folds: int,
    max_iterations: int,
    seed: int,
) -> float:
    correct = np.zeros(len(grid), dtype=np.int64)
    for kept, held_out in _splits(codes, classes, folds, seed):
        correct += _grid_correct(features[kept], codes[kept], features[held_out], codes[held_out], grid, max_iterations)
    return _best_penalty(correct, grid)


def _splits(codes: np.ndarray, classes: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedKFold  # it takes more than a second to import

    folds = positive_integer("folds", folds, minimum=2)
    sizes = np.bincount(codes, minlength=len(classes))
    if sizes.min() < folds:
        raise ValueError(
            f"class {classes[sizes.argmin()]!r} has {sizes.min()} training rows, fewer than {folds} folds; "
            "lower folds or drop the class"
        )
    return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(codes, codes))


def _result(
    predicted: np.ndarray,
    truth: np.ndarray,
    classes: np.ndarray,
    penalties: tuple[float, ...],
    resamples: int,
    seed: int,
) -> ProbeResult:
    correct = predicted == truth
    accuracy = bootstrap_interval(correct.astype(np.float64), resamples=resamples, rng=seed)
    return ProbeResult(accuracy, correct, classes[predicted], penalties)
