"""Linear surrogates of a score around an input: LIME, KernelSHAP, and the ridge regression under both.

Samples stream through sums of ``z z'`` and ``z y``: memory grows with the features, never with the samples. The
systems of all examples are then solved together by Cholesky.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcore.attribution.chunking import chunked_sum
from jaxcore.attribution.compiled_programs import run_compiled
from jaxcore.attribution.feature_groups import Groups, MaskedScore, masked_inputs, masked_score
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    accumulation_dtype,
    check_positive,
    checked_finite,
)
from jaxcore.attribution.shapley import (
    MAX_EXACT_FEATURES,
    present_ranks,
    ranks_of_present,
    row_uniform,
    subset_of_code,
)

Similarity = Literal["inputs", "masks"]

DEFAULT_REGRESSION_BUDGET = 2 * 2**30
"""Bytes that the matrices of a regression may take unless a memory budget is given: they cannot be chunked."""


def lime(
    score: Score,
    inputs: Inputs,
    key: Array,
    *,
    baseline: Baseline = 0.0,
    groups: Groups = None,
    num_samples: int = 1000,
    similarity: Similarity = "inputs",
    kernel_width: float = 1.0,
    alpha: float = 1.0,
    keep_probability: float = 0.5,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """Coefficients of a weighted ridge regression of the score on which features are present.

        z_m ~ Bernoulli(keep_probability),  x_m = x' + z_m (x - x'),  w_m = exp(-(1 - cos_m)^2 / (2 kernel_width^2))
        a = argmin_a min_b sum_m w_m (score(x_m) - b - z_m . a)^2 + alpha |a|^2

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].
        key: a `jax.random.key`.
        baseline: x', broadcast against `inputs`.
        groups: the features, see `jaxcore.attribution.feature_groups`; by default every coordinate by itself.
        num_samples: M, evaluations of the score.
        similarity: what cos_m compares: "inputs", x_m with x over the coordinates of features (flattened, all leaves
            together); "masks", z_m with all ones, which is ``sqrt(share of features kept)``.
        kernel_width: in units of the cosine distance. The authors' text explainer counts that distance times 100 and
            takes 25: "masks" with 0.25.
        alpha: ridge penalty, > 0; the intercept b is not penalised.
        chunk_size: samples evaluated together; by default as many as fit `memory_budget`.
        memory_budget: bytes of temporary memory a chunk may take.

    Returns:
        Coefficients of the inputs' structure and shapes (every coordinate carries its feature's value), in float32
        (float64 for float64 inputs); 0 where there is no feature.

    Raises:
        ValueError: alpha or kernel_width not positive, keep_probability not in (0, 1), unknown similarity, too many
            features for the regression, bad inputs, baseline, groups or score, values that are not finite.

    Source: Ribeiro et al. 2016, "Sparse Linear Explanations"; ridge and cosine kernel on inputs: Neely et al. 2022.
    """
    check_positive(num_samples=num_samples, chunk_size=chunk_size)
    _check_lime(similarity, kernel_width, alpha, keep_probability)
    game = masked_score(score, inputs, baseline, groups)
    _check_regression(game, memory_budget)
    whole = run_compiled(game.whole)

    def term(sample: Array) -> tuple[Array, Array]:
        keep = (row_uniform(jax.random.fold_in(key, sample), game.present.shape) < keep_probability) & game.present
        cosine = _input_cosine(game, keep) if similarity == "inputs" else _mask_cosine(game, keep)
        weight = jnp.exp(-((1 - cosine) ** 2) / (2 * kernel_width**2)).astype(game.dtype)
        # The intercept takes up any shift of z and of the score: near 0 both lose the least to rounding.
        centred = jnp.where(game.present, keep - jnp.asarray(keep_probability, game.dtype), 0)
        design = jnp.concatenate([jnp.ones_like(centred[:, :1]), centred], axis=1)
        return _normal_equations(design, game(keep) - whole, weight)

    gram, moment = chunked_sum(term, jnp.arange(num_samples), chunk_size=chunk_size, memory_budget=memory_budget)
    values = _solve_with_intercept(gram, moment, alpha)
    return game.attributions(values, "lime")


def kernel_shap(
    score: Score,
    inputs: Inputs,
    key: Array,
    *,
    baseline: Baseline = 0.0,
    groups: Groups = None,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """Shapley values as a least-squares fit of the score on subsets of features, weighted by the Shapley kernel.

        phi = argmin sum_S pi(S) (v(S) - v({}) - sum_{f in S} phi_f)^2   subject to   sum_f phi_f = v(all) - v({})
        pi(S) = (n - 1) / (C(n, s) s (n - s)),  s = |S|

    Subsets are drawn from pi (the size first, then its members), each together with its complement. Where `num_samples`
    covers all subsets they are enumerated instead and the result is exact. The constraint holds exactly in either case.
    With fewer samples than features, the fit is the one closest to equal shares.

    Args:
        num_samples: evaluations of the score, rounded up to an even number.
        score, inputs, key, baseline, groups, chunk_size, memory_budget: as in `lime`.

    Returns:
        Shapley values of the inputs' structure and shapes (every coordinate carries its feature's value), in float32
        (float64 for float64 inputs); 0 where there is no feature.

    Raises:
        ValueError: num_samples < 1, too many features for the regression, bad inputs, baseline, groups or score, values
            that are not finite.

    Source: Lundberg & Lee 2017, theorem 2; paired sampling and the constrained solution: Covert & Lee 2021, sections
    3.2 and 3.3.
    """
    check_positive(num_samples=num_samples, chunk_size=chunk_size)
    game = masked_score(score, inputs, baseline, groups)
    _check_regression(game, memory_budget)
    players = jnp.maximum(jnp.sum(game.present, axis=1), 1)
    ends = jnp.asarray([[[True]], [[False]]]) & jnp.ones((1, game.groups.count), bool)
    whole, empty = run_compiled(lambda: jax.vmap(game)(ends))
    change = whole - empty
    enumerates = game.groups.count <= MAX_EXACT_FEATURES and num_samples >= 2**game.groups.count - 2
    draw = _enumerated_subsets(game, players) if enumerates else _paired_subsets(game, players, key)

    def term(index: Array) -> tuple[Array, Array]:
        keep, weight = draw(index)
        share = jnp.sum(keep, axis=1) / players.astype(game.dtype)
        # Equal shares satisfy the constraint; what is fitted is the rest, in directions that sum to 0.
        design = jnp.where(game.present, keep - share[:, None], 0)
        return _normal_equations(design, game(keep) - empty - share * change, weight)

    samples = jnp.arange(2**game.groups.count if enumerates else num_samples + num_samples % 2)
    gram, moment = chunked_sum(term, samples, chunk_size=chunk_size, memory_budget=memory_budget)
    rest = _solve_on_zero_sum(gram, moment, game.present)
    return game.attributions((change / players)[:, None] + rest, "kernel_shap")


def ridge_attribution(
    masks: Float[Array, "batch samples features"] | Bool[Array, "batch samples features"],
    scores: Float[Array, "batch samples"],
    *,
    present: Bool[Array, "batch features"] | Int[Array, "batch features"] | None = None,
    sample_weights: Float[Array, "batch samples"] | None = None,
    alpha: float = 1.0,
) -> Float[Array, "batch features"]:
    """Ridge regression, with intercept, of scores already measured on the masks they were measured under.

        a = argmin_a min_b sum_m w_m (s_m - b - z_m . a)^2 + alpha |a|^2 = (Zc' W Zc + alpha I)^-1 Zc' W sc

    with ``Zc``, ``sc`` centred by their weighted means: what scikit-learn's ``Ridge(alpha)`` fits. For scores that do
    not come from a JAX function (a language model's confidence in a label, say).

    Args:
        masks: z, 1 where a feature (word) was kept.
        scores: s, one per mask.
        present: nonzero at real features; padded ones get exactly 0, whatever their masks say. None = all.
        sample_weights: w, not negative; 0 leaves a padded sample out. None = 1.
        alpha: ridge penalty, > 0.

    Raises:
        ValueError: shapes that do not match, alpha not positive, an example without features, values not finite.

    Source: Zhang et al. 2025 (CAP), eq. 1-4.
    """
    _check_ridge(masks, scores, present, sample_weights, alpha)
    dtype = accumulation_dtype(scores)
    design, targets = jnp.asarray(masks, dtype), jnp.asarray(scores, dtype)
    if present is not None:
        design = jnp.where(jnp.asarray(present)[:, None, :] != 0, design, 0)
    weights = jnp.ones_like(targets) if sample_weights is None else jnp.asarray(sample_weights, dtype)
    total = jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), jnp.finfo(dtype).tiny)
    design = design - jnp.einsum("bm,bmf->bf", weights, design)[:, None] / total[..., None]
    targets = targets - jnp.sum(weights * targets, axis=1, keepdims=True) / total
    gram = jnp.einsum("bm,bmf,bmg->bfg", weights, design, design, precision="highest")
    moment = jnp.einsum("bm,bmf,bm->bf", weights, design, targets, precision="highest")
    return checked_finite(_cholesky_solve(gram + alpha * jnp.eye(gram.shape[-1], dtype=dtype), moment), "ridge")


def _normal_equations(design: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
    """One sample's share of ``Z' W Z`` [batch, features, features] and ``Z' W y`` [batch, features]."""
    weighted = weights[:, None] * design
    return weighted[:, :, None] * design[:, None, :], weighted * targets[:, None]


def _solve_with_intercept(gram: Array, moment: Array, alpha: float) -> Array:
    """Coefficients of a ridge whose column 0 is the unpenalised intercept, which is eliminated first."""
    total, column = gram[:, :1, 0], gram[:, 0, 1:]
    centred = gram[:, 1:, 1:] - column[:, :, None] * column[:, None, :] / total[..., None]
    right = moment[:, 1:] - column * moment[:, :1] / total
    return _cholesky_solve(centred + alpha * jnp.eye(centred.shape[-1], dtype=gram.dtype), right)


def _solve_on_zero_sum(gram: Array, moment: Array, present: Array) -> Array:
    """The least-squares fit of least norm among vectors over an example's features that sum to 0; 0 elsewhere.

        x = (P G P)^+ P m,   P: the projection on vectors that sum to 0

    What too few samples leave open is an eigenvalue 0, seen as one below F eps of the largest. One refinement.
    """
    ones = present.astype(gram.dtype)
    players = jnp.maximum(jnp.sum(ones, axis=1), 1)[:, None]
    size = gram.shape[-1]
    project = jnp.eye(size, dtype=gram.dtype) * ones[:, None] - ones[:, :, None] * ones[:, None] / players[..., None]
    projected = jnp.einsum("bfg,bgh,bhi->bfi", project, gram, project, precision="highest")
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(projected))  # G depends on the subsets alone
    found = values > jnp.max(values, axis=1, keepdims=True) * size * jnp.finfo(gram.dtype).eps
    inverse = jnp.where(found, 1 / jnp.where(found, values, 1), 0)

    def solve(right: Array) -> Array:
        return jnp.einsum("bfv,bv,bgv,bg->bf", vectors, inverse, vectors, right, precision="highest")

    solution = solve(moment)
    solution += solve(moment - jnp.einsum("bfg,bg->bf", gram, solution, precision="highest"))
    return jnp.einsum("bfg,bg->bf", project, solution, precision="highest")


def _cholesky_solve(matrices: Array, right: Array) -> Array:
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrices, lower=True), right[..., None])[..., 0]


def _enumerated_subsets(game: MaskedScore, players: Array):
    """Subset number -> (keep, Shapley kernel); weight 0 for the two ends and for codes beyond an example's features."""
    ranks = present_ranks(game.present)

    def draw(code: Array) -> tuple[Array, Array]:
        keep, size, real = subset_of_code(code, ranks, players)
        proper = real & (size > 0) & (size < players)
        n, s = (jnp.where(proper, number, 2 - k).astype(game.dtype) for k, number in enumerate((players, size)))
        log_choose = jax.lax.lgamma(n + 1) - jax.lax.lgamma(s + 1) - jax.lax.lgamma(n - s + 1)
        return keep, jnp.where(proper, (n - 1) * jnp.exp(-log_choose) / (s * (n - s)), 0)

    return draw


def _paired_subsets(game: MaskedScore, players: Array, key: Array):
    """Sample number -> (keep, 1): a draw from the Shapley kernel for even numbers, then its complement.

    The kernel's sizes have odds 1 / (s (n - s)), which is 1/s + 1/(n - s) up to a factor: s with odds 1/s, and its
    complement. One number per example decides s, one per feature who is in.
    """
    harmonic = jnp.asarray(np.cumsum(1 / np.arange(1, max(game.groups.count, 2))), jnp.float32)
    total = harmonic[jnp.maximum(players - 2, 0)][:, None]

    def draw(sample: Array) -> tuple[Array, Array]:
        batch, count = game.present.shape
        uniform = row_uniform(jax.random.fold_in(key, sample // 2), (batch, count + 1))
        size = 1 + jnp.sum(uniform[:, :1] * total >= harmonic, axis=1, keepdims=True)
        chosen = ranks_of_present(uniform[:, 1:], game.present) < size
        return (chosen ^ (sample % 2 == 1)) & game.present, jnp.ones(batch, game.dtype)

    return draw


def _input_cosine(game: MaskedScore, keep: Array) -> Array:
    """cos(x_m, x) over the coordinates that belong to features; 0 where either is zero."""
    zeros = jax.tree.map(jnp.zeros_like, game.inputs)
    # Coordinates without a feature are the same in every sample and would only dilute the distance.
    everything, nothing = jnp.ones((1, game.groups.count), bool), jnp.zeros((1, game.groups.count), bool)
    fixed = masked_inputs(game.inputs, zeros, game.groups, nothing)
    whole = jax.tree.map(jnp.subtract, masked_inputs(game.inputs, zeros, game.groups, everything), fixed)
    part = jax.tree.map(jnp.subtract, masked_inputs(game.inputs, game.baseline, game.groups, keep), fixed)

    def product(a: Inputs, b: Inputs) -> Array:
        sums = jax.tree.map(
            lambda x, y: jnp.sum((x.astype(game.dtype) * y.astype(game.dtype)).reshape(len(x), -1), axis=1), a, b
        )
        return functools.reduce(jnp.add, jax.tree.leaves(sums))

    norms = product(whole, whole) * product(part, part)
    return jnp.where(norms > 0, product(whole, part) * jax.lax.rsqrt(jnp.where(norms > 0, norms, 1)), 0)


def _mask_cosine(game: MaskedScore, keep: Array) -> Array:
    """cos(z_m, 1) = sqrt(kept / all)."""
    players = jnp.maximum(jnp.sum(game.present, axis=1), 1)
    return jnp.sqrt(jnp.sum(keep, axis=1) / players.astype(game.dtype))


def _check_lime(similarity: str, kernel_width: float, alpha: float, keep_probability: float) -> None:
    if similarity not in ("inputs", "masks"):
        raise ValueError(f"unknown similarity {similarity!r}: expected inputs or masks")
    if kernel_width <= 0:
        raise ValueError(f"kernel_width must be positive: got {kernel_width}")
    _check_alpha(alpha)
    if not 0 < keep_probability < 1:
        raise ValueError(f"keep_probability must lie between 0 and 1: got {keep_probability}")


def _check_alpha(alpha: float) -> None:
    if alpha <= 0:
        raise ValueError(f"alpha must be positive (it keeps the regression solvable): got {alpha}")


def _check_regression(game: MaskedScore, memory_budget: int | None) -> None:
    """ValueError if the regression's own matrices, features x features per example, exceed the budget."""
    (batch, count), budget = game.present.shape, memory_budget or DEFAULT_REGRESSION_BUDGET
    needed = math.prod((batch, count, count, jnp.dtype(game.dtype).itemsize))
    if needed > budget:
        raise ValueError(
            f"a regression on {count} features takes {needed / 2**30:.3g} GiB for {batch} examples, beyond the budget "
            f"of {budget / 2**30:.3g} GiB: group the features (token_groups, patches) or give fewer examples at a time"
        )


def _check_ridge(masks: Array, scores: Array, present: Array | None, weights: Array | None, alpha: float) -> None:
    _check_alpha(alpha)
    if jnp.ndim(masks) != 3 or jnp.shape(scores) != jnp.shape(masks)[:2] or not jnp.shape(masks)[1]:
        raise ValueError(
            f"masks must be [batch, samples, features] and scores [batch, samples]: got {jnp.shape(masks)} "
            f"and {jnp.shape(scores)}"
        )
    if not jnp.issubdtype(jnp.result_type(scores), jnp.floating):
        raise ValueError(f"scores must be floating point: got {jnp.result_type(scores)}")
    batch, samples, features = jnp.shape(masks)
    if weights is not None and jnp.shape(weights) != (batch, samples):
        raise ValueError(f"sample_weights must be [{batch}, {samples}], like the scores: got {jnp.shape(weights)}")
    if present is None:
        return
    if jnp.shape(present) != (batch, features):
        raise ValueError(f"present must be [{batch}, {features}], like the masks' features: got {jnp.shape(present)}")
    if not isinstance(present, jax.core.Tracer) and not bool(jnp.all(jnp.any(jnp.asarray(present) != 0, axis=1))):
        raise ValueError("present leaves nothing to attribute in an example: every example needs at least one feature")
