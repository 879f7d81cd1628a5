"""NCE objectives against loops in float64, against what they are known to estimate, and against exact bounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxcore.losses import noise_contrastive as nce

RNG = np.random.default_rng(1)
B, P, K = 6, 3, 7
POSITIVE, NEGATIVE = RNG.standard_normal((B, P)) * 2, RNG.standard_normal((B, K)) * 2
LOG_NOISE = -RNG.uniform(0.5, 4, (B, P)), -RNG.uniform(0.5, 4, (B, K))
PARTITION = RNG.standard_normal(B)
KEPT = RNG.random((B, P)) < 0.6, RNG.random((B, K)) < 0.6
KEPT[0][0], KEPT[0][1, 0] = False, True  # row 0 has no positive, row 1 has one
KEPT[1][2] = False  # row 2 has no negative


def log_sigmoid(z):
    return -np.logaddexp(0, -z)


def binary(correction, partition, kept):
    rows = []
    for b in range(B):
        positive, negative = np.flatnonzero(kept[0][b]), np.flatnonzero(kept[1][b])
        if not len(positive):
            continue
        gamma = 0 if partition is None else np.broadcast_to(partition, B)[b]
        ratio = np.log(max(len(negative), 1) / len(positive)) if correction else 0
        total = 0.0
        for p in positive:
            total -= log_sigmoid(POSITIVE[b, p] - correction * LOG_NOISE[0][b, p] - gamma - ratio)
        for k in negative:
            z = NEGATIVE[b, k] - correction * LOG_NOISE[1][b, k] - gamma - ratio
            total -= np.log(1 - 1 / (1 + np.exp(-z)))
        rows.append(total / len(positive))
    return np.mean(rows)


def ranking(correction, reduction, kept):
    rows = []
    for b in range(B):
        s = (POSITIVE[b] - correction * LOG_NOISE[0][b])[kept[0][b]]
        noise = (NEGATIVE[b] - correction * LOG_NOISE[1][b])[kept[1][b]]
        if not len(s):
            continue
        if reduction == "in":
            rows.append(-(logsumexp(s) - logsumexp(np.concatenate([s, noise]))))
        else:
            rows.append(np.mean([-(x - logsumexp(np.append(noise, x))) for x in s]))
    return np.mean(rows)


EVERYTHING = np.ones((B, P), bool), np.ones((B, K), bool)
MASKS = {"all": EVERYTHING, "masked": KEPT}


def in_float32(x):
    return None if x is None else jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("partition", [None, 0.7, PARTITION])
@pytest.mark.parametrize("correction", [False, True])
def test_binary_nce_is_its_equation(correction, partition, masks):
    kept = MASKS[masks]
    value = nce.binary_nce(
        in_float32(POSITIVE),
        in_float32(NEGATIVE),
        noise_correction=correction,
        log_noise_positive=in_float32(LOG_NOISE[0]),
        log_noise_negative=in_float32(LOG_NOISE[1]),
        log_partition=in_float32(partition),
        positive_mask=jnp.asarray(kept[0]),
        negative_mask=jnp.asarray(kept[1]),
    )
    np.testing.assert_allclose(value, binary(correction, partition, kept), rtol=1e-5)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("reduction", ["out", "in"])
@pytest.mark.parametrize("correction", [False, True])
def test_ranking_nce_is_its_equation(correction, reduction, masks):
    kept = MASKS[masks]
    value = nce.ranking_nce(
        in_float32(POSITIVE),
        in_float32(NEGATIVE),
        noise_correction=correction,
        log_noise_positive=in_float32(LOG_NOISE[0]),
        log_noise_negative=in_float32(LOG_NOISE[1]),
        reduction=reduction,
        positive_mask=jnp.asarray(kept[0]),
        negative_mask=jnp.asarray(kept[1]),
    )
    np.testing.assert_allclose(value, ranking(correction, reduction, kept), rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        functools.partial(nce.binary_nce, noise_correction=False),
        functools.partial(nce.ranking_nce, noise_correction=False, reduction="out"),
        functools.partial(nce.ranking_nce, noise_correction=False, reduction="in"),
    ],
)
def test_masked_scores_do_not_matter_whatever_they_are(loss):
    """NaN and infinities under the mask reach neither the value nor any gradient."""
    masks = {"positive_mask": jnp.asarray(KEPT[0]), "negative_mask": jnp.asarray(KEPT[1])}
    clean = [in_float32(POSITIVE), in_float32(NEGATIVE)]
    spoilt = [jnp.where(m, x, bad) for x, m, bad in zip(clean, KEPT, (jnp.nan, jnp.inf), strict=True)]
    value, gradients = jax.value_and_grad(lambda s: loss(*s, **masks))(spoilt)
    expected, expected_gradients = jax.value_and_grad(lambda s: loss(*s, **masks))(clean)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient, reference, kept in zip(gradients, expected_gradients, KEPT, strict=True):
        assert np.isfinite(gradient).all() and not np.any(np.asarray(gradient)[~kept])
        np.testing.assert_allclose(gradient, reference, atol=1e-7)


def test_a_batch_without_positives_is_zero():
    nothing = jnp.zeros((B, P), bool)
    for loss in (nce.binary_nce, nce.ranking_nce):
        scores = in_float32(POSITIVE), in_float32(NEGATIVE)
        value, gradient = jax.value_and_grad(
            lambda p, n, loss=loss: loss(p, n, noise_correction=False, positive_mask=nothing)
        )(*scores)
        assert value == 0 and not np.any(gradient)


# ---- what they estimate: gradients of the exact expectation vanish where theory says ------------------------

SYMBOLS, NOISE_DRAWS = 5, 3
TRUE = RNG.dirichlet(np.ones(SYMBOLS))
NOISE = RNG.dirichlet(np.ones(SYMBOLS))


def expected_gradient(loss, scores):
    """Gradient in the table of scores of E[loss], summed over every draw of datum and noise with its probability."""
    draws = np.stack(np.meshgrid(*[np.arange(SYMBOLS)] * (1 + NOISE_DRAWS), indexing="ij"), -1).reshape(
        -1, 1 + NOISE_DRAWS
    )
    probability = TRUE[draws[:, 0]] * np.prod(NOISE[draws[:, 1:]], axis=1)

    def expectation(table):
        def of_draw(draw):
            s, q = table[draw][None], jnp.log(jnp.asarray(NOISE, jnp.float32))[draw][None]
            return loss(s[:, :1], s[:, 1:], log_noise_positive=q[:, :1], log_noise_negative=q[:, 1:])

        return jnp.sum(jnp.asarray(probability, jnp.float32) * jax.vmap(of_draw)(jnp.asarray(draws)))

    return jax.grad(expectation)(jnp.asarray(scores, jnp.float32))


@pytest.mark.parametrize(
    ("loss", "optimum"),
    [
        (functools.partial(nce.ranking_nce, noise_correction=True), np.log(TRUE) + 3.0),
        (functools.partial(nce.ranking_nce, noise_correction=False), np.log(TRUE / NOISE) - 1.0),
        (functools.partial(nce.binary_nce, noise_correction=True), np.log(TRUE)),
        (functools.partial(nce.binary_nce, noise_correction=True, log_partition=0.8), np.log(TRUE) + 0.8),
        (functools.partial(nce.binary_nce, noise_correction=False), np.log(TRUE / NOISE / NOISE_DRAWS)),
    ],
)
def test_the_optimum_is_where_theory_puts_it(loss, optimum):
    np.testing.assert_allclose(expected_gradient(loss, optimum), 0, atol=2e-6)
    assert np.abs(expected_gradient(loss, np.zeros(SYMBOLS))).max() > 1e-2


def test_binary_optimum_is_normalised_and_ranking_forgets_a_constant():
    assert np.abs(
        expected_gradient(functools.partial(nce.binary_nce, noise_correction=True), np.log(TRUE) + 1)
    ).max() > (1e-2)


# ---- bounds ------------------------------------------------------------------------------------------------


def test_bounds_are_tight_for_the_optimal_critic_and_never_above():
    """A discrete pair: the mutual information and every expectation are exact sums, here as repeated samples."""
    joint = RNG.integers(1, 9, (4, 4)).astype(np.float64)
    joint /= joint.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    information = np.sum(joint * np.log(joint / independent))
    critic = np.log(joint / independent)
    pairs = RNG.choice(16, 400_000, p=joint.ravel()), RNG.choice(16, 400_000, p=independent.ravel())
    scores = [jnp.asarray(critic.ravel()[chosen], jnp.float32) for chosen in pairs]
    assert nce.donsker_varadhan_bound(*scores) == pytest.approx(information, abs=5e-3)
    assert nce.donsker_varadhan_bound(scores[0] + 2, scores[1] + 2) == pytest.approx(information, abs=5e-3)
    wrong = [0.3 * s for s in scores]
    assert nce.donsker_varadhan_bound(*wrong) < information - 0.01
    mean = (joint + independent) / 2
    divergence = (np.sum(joint * np.log(joint / mean)) + np.sum(independent * np.log(independent / mean))) / 2
    assert nce.jensen_shannon_bound(*scores) == pytest.approx(2 * divergence - 2 * np.log(2), abs=3e-3)


def test_info_nce_bound_never_exceeds_its_ceiling():
    perfect = nce.info_nce_bound(jnp.full(8, 50.0), jnp.full((8, K), -50.0))
    assert perfect == pytest.approx(np.log(K + 1), rel=1e-6)
    value = nce.info_nce_bound(in_float32(POSITIVE[:, 0]), in_float32(NEGATIVE))
    losses = [-(s - logsumexp(np.append(n, s))) for s, n in zip(POSITIVE[:, 0], NEGATIVE, strict=True)]
    assert value == pytest.approx(np.log(K + 1) - np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("loss", [nce.binary_nce, nce.ranking_nce])
def test_bfloat16_scores_are_reduced_in_float32(loss):
    scores = [jnp.asarray(x, jnp.bfloat16) for x in (POSITIVE, NEGATIVE)]
    value = loss(*scores, noise_correction=False)
    assert value.dtype == jnp.float32
    assert value == pytest.approx(
        float(loss(*(s.astype(jnp.float32) for s in scores), noise_correction=False)), rel=1e-6
    )


@pytest.mark.parametrize("loss", [nce.binary_nce, nce.ranking_nce])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_correction": True}, "noise_correction needs log_noise_positive"),
        (
            {"noise_correction": True, "log_noise_positive": jnp.zeros((B, P))},
            "noise_correction needs log_noise_negative.*noise_correction=False",
        ),
        ({"log_noise_negative": jnp.zeros((B, 1))}, r"log_noise_negative must have the shape .*\(6, 7\): got \(6, 1\)"),
        ({"positive_mask": jnp.ones((B, K), bool)}, "positive_mask must have the shape"),
        ({"positive": jnp.zeros((B + 1, P))}, "must be \\[batch, p\\] and \\[batch, k\\]"),
        ({"negative": jnp.zeros((B, 0))}, "needs a positive and a negative"),
    ],
)
def test_bad_input(loss, change, message):
    given = {"positive": in_float32(POSITIVE), "negative": in_float32(NEGATIVE), "noise_correction": False, **change}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: loss(given.pop("positive"), given.pop("negative"), **given))


def test_bad_input_of_single_functions():
    with pytest.raises(ValueError, match="log_partition must be a number or one for each of 6 rows"):
        nce.binary_nce(
            in_float32(POSITIVE), in_float32(NEGATIVE), noise_correction=False, log_partition=jnp.zeros(B + 1)
        )
    with pytest.raises(ValueError, match='reduction must be "out" or "in"'):
        nce.ranking_nce(in_float32(POSITIVE), in_float32(NEGATIVE), noise_correction=False, reduction="mean")
    for bound in (nce.donsker_varadhan_bound, nce.jensen_shannon_bound):
        with pytest.raises(ValueError, match="non-empty vectors"):
            bound(jnp.zeros((2, 2)), jnp.zeros(3))
    with pytest.raises(ValueError, match="one score per row"):
        nce.info_nce_bound(jnp.zeros((2, 1)), jnp.zeros((2, 3)))
