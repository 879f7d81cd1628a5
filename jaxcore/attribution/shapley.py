"""Shapley values and interactions of features: a score's change shared out fairly, exactly or by sampling.

The game is ``v(S) = score(x with the features outside S at their baseline)``. Each example plays it with its own
features, so padding is a player in nobody's game.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcore.attribution.chunking import chunked_sum
from jaxcore.attribution.compiled_programs import run_compiled
from jaxcore.attribution.feature_groups import Groups, MaskedScore, masked_score
from jaxcore.attribution.input_checks import Baseline, Inputs, Score, check_positive, checked_finite

MAX_EXACT_FEATURES = 16
"""Features up to which all subsets are enumerated: 65,536 evaluations of the score."""


def exact_shapley(
    score: Score,
    inputs: Inputs,
    *,
    baseline: Baseline = 0.0,
    groups: Groups = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """Shapley values from all ``2^n`` subsets of the features.

        phi_f = sum_{S without f} |S|! (n - |S| - 1)! / n! * [v(S + f) - v(S)]

    Efficiency: an example's values, counted once per feature, sum to ``score(x) - score(x')``.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].
        baseline: x', broadcast against `inputs`.
        groups: the features, see `jaxcore.attribution.feature_groups`; by default every coordinate by itself.
        chunk_size: subsets evaluated together; by default as many as fit `memory_budget`.
        memory_budget: bytes of temporary memory a chunk may take.

    Returns:
        Attributions of the inputs' structure and shapes (every coordinate carries its feature's value), in float32
        (float64 for float64 inputs); 0 where there is no feature.

    Raises:
        ValueError: more than `MAX_EXACT_FEATURES` features, bad inputs, baseline, groups or score, values that are
            not finite.

    Source: Shapley 1953; Lundberg & Lee 2017, "Classic Shapley Value Estimation".
    """
    check_positive(chunk_size=chunk_size)
    game = masked_score(score, inputs, baseline, groups)
    _check_few(game, "exact_shapley", "use shapley_sampling or kernel_shap")
    players, ranks, empty = jnp.sum(game.present, axis=1), present_ranks(game.present), run_compiled(game.empty)
    table = jnp.asarray(_weights(game.groups.count, order=1), game.dtype)

    def term(code: Array) -> Array:
        keep, size, real = subset_of_code(code, ranks, players)
        inside, outside = table[players, size - 1], table[players, size]
        weights = jnp.where(keep, inside[:, None], -outside[:, None])
        return jnp.where(real, game(keep) - empty, 0)[:, None] * weights

    values = chunked_sum(term, _codes(game), chunk_size=chunk_size, memory_budget=memory_budget)
    return game.attributions(values, "exact_shapley")


def shapley_interaction(
    score: Score,
    inputs: Inputs,
    *,
    baseline: Baseline = 0.0,
    groups: Groups = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "batch features features"]:
    """The Shapley interaction index of every pair of features, from all subsets.

        I_fg = sum_{S without f, g} |S|! (n - |S| - 2)! / (n - 1)! * [v(S + f + g) - v(S + f) - v(S + g) + v(S)]

    What two features do together beyond what each does alone: positive where they reinforce, negative where they are
    redundant, 0 for a score that is additive over them. On the diagonal stands the index of a single feature, which is
    its Shapley value.

    Args and errors: as in `exact_shapley`.

    Returns:
        Symmetric matrices over features in order of their numbers; 0 in rows and columns an example lacks.

    Source: Grabisch & Roubens 1999, definition 1.
    """
    check_positive(chunk_size=chunk_size)
    game = masked_score(score, inputs, baseline, groups)
    _check_few(game, "shapley_interaction", "group the features (token_groups, coarser patches)")
    count = game.groups.count
    players, ranks, empty = jnp.sum(game.present, axis=1), present_ranks(game.present), run_compiled(game.empty)
    single, pair = (jnp.asarray(_weights(count, order=order), game.dtype) for order in (1, 2))
    diagonal = jnp.eye(count, dtype=bool)

    def term(code: Array) -> Array:
        keep, size, real = subset_of_code(code, ranks, players)
        # A subset is some S plus `inside` of the two features; its sign is that of the alternating difference.
        inside = keep[:, :, None].astype(jnp.int32) + keep[:, None, :]
        of_pair = (1 - 2 * (inside % 2)) * pair[players[:, None, None], size[:, None, None] - inside]
        of_one = jnp.where(keep, single[players, size - 1][:, None], -single[players, size][:, None])
        weights = jnp.where(diagonal, of_one[:, :, None], of_pair)
        return jnp.where(real, game(keep) - empty, 0)[:, None, None] * weights

    values = chunked_sum(term, _codes(game), chunk_size=chunk_size, memory_budget=memory_budget)
    both = game.present[:, :, None] & game.present[:, None, :]
    return checked_finite(jnp.where(both, values, 0), "shapley_interaction")


def shapley_sampling(
    score: Score,
    inputs: Inputs,
    key: Array,
    *,
    baseline: Baseline = 0.0,
    groups: Groups = None,
    num_permutations: int = 25,
    antithetic: bool = True,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """Shapley values as the mean marginal contribution over random orders in which the features arrive.

        phi_f ~ 1/P sum_p [v(features up to f in order p) - v(features before f in order p)]

    Unbiased; efficiency holds for every number of permutations. Costs `num_permutations` x features evaluations.

    Args:
        key: a `jax.random.key`.
        num_permutations: P.
        antithetic: every second order is the reverse of the one before it, which removes the part of the variance that
            comes from pairwise interactions.
        score, inputs, baseline, groups, chunk_size, memory_budget: as in `exact_shapley`; a chunk counts evaluations.

    Raises:
        ValueError: num_permutations < 1, and as in `exact_shapley`, for any number of features.

    Source: Castro et al. 2009; Strumbelj & Kononenko 2010; antithetic orders: Mitchell et al. 2022, section 4.1.
    """
    check_positive(num_permutations=num_permutations, chunk_size=chunk_size)
    game = masked_score(score, inputs, baseline, groups)
    count, empty = game.groups.count, run_compiled(game.empty)
    players = jnp.sum(game.present, axis=1, keepdims=True)

    def term(index: Array) -> Array:
        permutation, before = index // count, index % count + 1
        drawn = permutation // 2 if antithetic else permutation
        ranks = random_ranks(jax.random.fold_in(key, drawn), game.present)
        if antithetic:
            ranks = jnp.where(permutation % 2 == 1, players - 1 - ranks, ranks)
        keep = game.present & (ranks < before)
        # v of the first k features is what the k-th adds and what the (k + 1)-th starts from.
        sign = (ranks == before - 1).astype(game.dtype) - (ranks == before)
        return jnp.where(game.present, sign, 0) * (game(keep) - empty)[:, None]

    indices = jnp.arange(num_permutations * count)
    total = chunked_sum(term, indices, chunk_size=chunk_size, memory_budget=memory_budget)
    return game.attributions(total / num_permutations, "shapley_sampling")


def present_ranks(present: Bool[Array, "batch features"]) -> Int[Array, "batch features"]:
    """The place of each feature among those its example has: 0, 1, ...; absent ones get the number of features."""
    return jnp.where(present, jnp.cumsum(present, axis=1) - 1, present.shape[1])


def random_ranks(key: Array, present: Bool[Array, "batch features"]) -> Int[Array, "batch features"]:
    """A uniformly random order of each example's features, as ranks 0, 1, ...; absent ones come last."""
    return ranks_of_present(row_uniform(key, present.shape), present)


def ranks_of_present(
    values: Float[Array, "batch features"], present: Bool[Array, "batch features"]
) -> Int[Array, "batch features"]:
    """The place of each feature's value among its example's, smallest first: 0, 1, ...; absent ones come last."""
    return jnp.argsort(jnp.argsort(jnp.where(present, values, jnp.inf), axis=1), axis=1)


def row_uniform(key: Array, shape: tuple[int, ...]) -> Float[Array, "batch features"]:
    """Uniform numbers, a stream per row: a row's draws depend neither on the batch nor on how far it is padded."""
    return jax.vmap(lambda k: jax.random.uniform(k, shape[1:], jnp.float32))(row_keys(key, shape[0]))


def row_keys(key: Array, batch: int) -> Array:
    """One key per example."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def subset_of_code(
    code: Int[Array, ""], ranks: Int[Array, "batch features"], players: Int[Array, " batch"]
) -> tuple[Bool[Array, "batch features"], Int[Array, " batch"], Bool[Array, " batch"]]:
    """The subset whose members are the set bits of `code`, in each example's own features.

    Returns it with its size, and whether the example has that many features (otherwise it repeats a smaller code).
    """
    keep = ((code >> jnp.minimum(ranks, 31)) & 1).astype(bool) & (ranks < players[:, None])
    return keep, jnp.sum(keep, axis=1), code < (1 << players)


def _codes(game: MaskedScore) -> Int[Array, " subsets"]:
    return jnp.arange(2**game.groups.count, dtype=jnp.int32)


def _weights(count: int, *, order: int) -> np.ndarray:
    """``s! (n - s - k)! / (n - k + 1)!`` for features k = `order`, indexed [n, s]; 0 where S and k do not fit into n.

    Index s = -1 (a subset smaller than what is taken from it) falls on the last column, which is 0.
    """
    table = np.zeros((count + 1, count + 3))
    for players in range(order, count + 1):
        for size in range(players - order + 1):
            factorials = math.factorial(size) * math.factorial(players - size - order)
            table[players, size] = factorials / math.factorial(players - order + 1)
    return table


def _check_few(game: MaskedScore, method: str, remedy: str) -> None:
    if game.groups.count > MAX_EXACT_FEATURES:
        raise ValueError(
            f"{method} evaluates all subsets and takes up to {MAX_EXACT_FEATURES} features: got {game.groups.count}; "
            f"{remedy}"
        )
