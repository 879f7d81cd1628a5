"""Ranking losses against loops, torch, and what a ranking loss must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.losses import ranking

RNG = np.random.default_rng(2)
B, C = 5, 6
SCORES = RNG.standard_normal((B, C))
RELEVANCE = RNG.integers(0, 4, (B, C)).astype(np.float64)
RELEVANCE[1] = 2.0  # all alike: no pair
RELEVANCE[2] = 0.0  # nothing relevant
MASK = RNG.random((B, C)) < 0.7
MASK[3] = False
MASK[0, :3] = True


def f32(x):
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("link", ["logistic", "hinge"])
def test_pairs(link):
    higher, lower, mask = SCORES[:3], SCORES[2:], MASK[:3]
    gaps = (higher - lower)[mask]
    losses = np.logaddexp(0, -gaps) if link == "logistic" else np.maximum(0, 0.4 - gaps)
    value = ranking.pairwise_ranking(f32(higher), f32(lower), link=link, margin=0.4, mask=jnp.asarray(mask))
    assert value == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize("link", ["logistic", "hinge"])
def test_ranknet_is_the_mean_over_ordered_pairs(link):
    losses = []
    for b in range(B):
        for i in range(C):
            for j in range(C):
                if MASK[b, i] and MASK[b, j] and RELEVANCE[b, i] > RELEVANCE[b, j]:
                    gap = SCORES[b, i] - SCORES[b, j]
                    losses.append(np.logaddexp(0, -gap) if link == "logistic" else max(0, 1 - gap))
    value = ranking.ranknet(f32(SCORES), f32(RELEVANCE), link=link, mask=jnp.asarray(MASK))
    assert value == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("negatives", ["sum", "hardest"])
def test_margin_ranking(negatives):
    positive, negative = SCORES[:, :2], SCORES[:, 2:]
    kept, against = MASK[:, :2], MASK[:, 2:]
    losses = []
    for b in range(B):
        for p in np.flatnonzero(kept[b]):
            hinges = [max(0, 0.5 - positive[b, p] + negative[b, k]) for k in np.flatnonzero(against[b])]
            losses.append((sum(hinges) if negatives == "sum" else max(hinges, default=0)) if hinges else 0)
    value = ranking.margin_ranking(
        f32(positive),
        f32(negative),
        margin=0.5,
        negatives=negatives,
        positive_mask=jnp.asarray(kept),
        negative_mask=jnp.asarray(against),
    )
    assert value == pytest.approx(np.mean(losses), rel=1e-5)


def test_margin_ranking_agrees_with_torch():
    torch = pytest.importorskip("torch")
    value = ranking.margin_ranking(f32(SCORES[:, :1]), f32(SCORES[:, 1:2]), margin=0.3)
    reference = torch.nn.MarginRankingLoss(margin=0.3)(
        *(torch.tensor(SCORES[:, c]) for c in (0, 1)), torch.ones(B, dtype=torch.float64)
    )
    assert value == pytest.approx(float(reference), rel=1e-5)


@pytest.mark.parametrize("target", ["proportional", "list_net"])
def test_listwise_agrees_with_torch(target):
    torch = pytest.importorskip("torch")
    losses = []
    for b in range(B):
        kept = MASK[b]
        r = torch.tensor(RELEVANCE[b][kept])
        if not kept.any() or (target == "proportional" and r.sum() == 0):
            continue
        t = torch.softmax(r, 0) if target == "list_net" else r / r.sum()
        losses.append(float(torch.nn.functional.cross_entropy(torch.tensor(SCORES[b][kept] / 0.7)[None], t[None])))
    value = ranking.listwise_cross_entropy(
        f32(SCORES), f32(RELEVANCE), target=target, temperature=0.7, mask=jnp.asarray(MASK)
    )
    assert len(losses) >= 3
    assert value == pytest.approx(np.mean(losses), rel=1e-5)


LISTWISE = {
    "ranknet": lambda s, m: ranking.ranknet(s, f32(RELEVANCE), mask=m),
    "proportional": lambda s, m: ranking.listwise_cross_entropy(s, f32(RELEVANCE), mask=m),
    "list_net": lambda s, m: ranking.listwise_cross_entropy(s, f32(RELEVANCE), target="list_net", mask=m),
    "margin": lambda s, m: ranking.margin_ranking(
        s[:, :2], s[:, 2:], margin=0.5, positive_mask=m[:, :2], negative_mask=m[:, 2:]
    ),
}


@pytest.mark.parametrize("name", LISTWISE)
def test_masked_scores_and_a_shift_of_the_list_do_not_matter(name):
    loss, mask = LISTWISE[name], jnp.asarray(MASK)
    expected, reference = jax.value_and_grad(loss)(f32(SCORES), mask)
    value, gradient = jax.value_and_grad(loss)(jnp.where(mask, f32(SCORES), jnp.nan), mask)
    assert value == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradient, reference, atol=1e-7)
    assert loss(f32(SCORES + np.arange(B)[:, None]), mask) == pytest.approx(float(expected), rel=1e-5)
    assert expected > 0.05


@pytest.mark.parametrize("name", LISTWISE)
def test_nothing_left_is_zero(name):
    value, gradient = jax.value_and_grad(LISTWISE[name])(f32(SCORES), jnp.zeros((B, C), bool))
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranking.pairwise_ranking(f32(SCORES), f32(SCORES[:1])), "one shape: got"),
        (lambda: ranking.pairwise_ranking(f32(SCORES), f32(SCORES), link="probit"), 'link must be "logistic" or'),
        (lambda: ranking.pairwise_ranking(f32(SCORES), f32(SCORES), link="hinge", margin=-1), "margin must be >= 0"),
        (lambda: ranking.ranknet(f32(SCORES), f32(RELEVANCE[0])), r"must both be \[batch, candidates\]"),
        (lambda: ranking.ranknet(f32(SCORES), f32(RELEVANCE), mask=jnp.ones(C)), "a mask must have the shape"),
        (lambda: ranking.margin_ranking(f32(SCORES), f32(SCORES), margin=-0.1), "margin must be >= 0"),
        (lambda: ranking.margin_ranking(f32(SCORES[0]), f32(SCORES), margin=0.1), r"\[batch, p\] and \[batch, k\]"),
        (
            lambda: ranking.margin_ranking(f32(SCORES), f32(SCORES), margin=0.1, negatives="all"),
            'negatives must be "sum" or "hardest"',
        ),
        (lambda: ranking.listwise_cross_entropy(f32(SCORES), f32(RELEVANCE), target="x"), "target must be"),
        (lambda: ranking.listwise_cross_entropy(f32(SCORES), f32(RELEVANCE), temperature=0), "temperature"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
