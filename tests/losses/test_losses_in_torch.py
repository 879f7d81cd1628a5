"""Parity with published formulas run in torch: open_clip's loss, SigLIP's, SimCSE's, and pytorch-metric-learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore import losses

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

N, DIM = 32, 16
RNG = np.random.default_rng(0)
Q, K = (RNG.standard_normal((N, DIM)).astype(np.float32) for _ in range(2))
LABELS = np.repeat(np.arange(8), 4)


def torch_value_and_gradient(function, *arrays):
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    value = function(*tensors)
    value.backward()
    return value.item(), [t.grad.numpy() for t in tensors]


def assert_same(ours, theirs, arrays, tolerance=1e-5):
    value, gradient = jax.value_and_grad(ours, tuple(range(len(arrays))))(*map(jnp.asarray, arrays))
    expected, expected_gradient = torch_value_and_gradient(theirs, *arrays)
    assert float(value) == pytest.approx(expected, rel=tolerance)
    for mine, other in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=tolerance * np.abs(other).max() * 10)


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def test_open_clip_loss():
    """open_clip computes ``logit_scale * image @ text.T`` and averages two cross-entropies."""

    def theirs(q, k, scale):
        logits = scale.exp() * unit(q) @ unit(k).T
        target = torch.arange(N)
        entropy = torch.nn.functional.cross_entropy
        return (entropy(logits, target) + entropy(logits.T, target)) / 2

    def ours(q, k, log_scale):
        return losses.symmetric_info_nce(q, k, temperature=jnp.exp(-log_scale))

    assert_same(ours, theirs, (Q, K, np.float32(np.log(1 / 0.07))))


def test_siglip_loss():
    def theirs(q, k, log_scale, bias):
        logits = log_scale.exp() * unit(q) @ unit(k).T + bias
        sign = 2 * torch.eye(N) - 1
        return -torch.nn.functional.logsigmoid(sign * logits).sum() / N

    def ours(q, k, log_scale, bias):
        return losses.sigmoid_contrastive(q, k, temperature=jnp.exp(-log_scale), bias=bias)

    assert_same(ours, theirs, (Q, K, np.float32(np.log(10)), np.float32(-10)))


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_simcse_with_hard_negatives(weight):
    """cos(h_i, h_j^+) beside cos(h_i, h_j^-), the own negative's logit raised by the weight."""
    hard = RNG.standard_normal((N, DIM)).astype(np.float32)

    def theirs(q, k, z):
        logits = torch.cat([unit(q) @ unit(k).T, unit(q) @ unit(z).T], 1) / 0.05
        logits = logits + torch.cat([torch.zeros(N, N), weight * torch.eye(N)], 1)
        return torch.nn.functional.cross_entropy(logits, torch.arange(N))

    def ours(q, k, z):
        return losses.info_nce(q, k, temperature=0.05, negatives=z[:, None], own_negative_log_weight=weight)

    assert_same(ours, theirs, (Q, K, hard))


def metric_learning():
    return pytest.importorskip("pytorch_metric_learning", reason="the torch extra is not installed")


def pml(loss):
    return lambda q: loss(q, torch.tensor(LABELS))


def test_supervised_contrastive_of_pytorch_metric_learning():
    metric_learning()
    from pytorch_metric_learning.losses import SupConLoss

    ours = lambda q: losses.supervised_contrastive(q, jnp.asarray(LABELS), temperature=0.1)  # noqa: E731
    assert_same(ours, pml(SupConLoss(temperature=0.1)), (Q,))


def test_nt_xent_of_pytorch_metric_learning():
    metric_learning()
    from pytorch_metric_learning.losses import NTXentLoss

    pair_labels = torch.arange(N).repeat(2)

    def theirs(q, k):
        return NTXentLoss(temperature=0.1)(torch.cat([q, k]), pair_labels)

    assert_same(lambda q, k: losses.nt_xent(q, k, temperature=0.1), theirs, (Q, K))


def test_multi_similarity_of_pytorch_metric_learning():
    metric_learning()
    from pytorch_metric_learning.losses import MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    labels = torch.tensor(LABELS)

    def theirs(q):
        mined = MultiSimilarityMiner(epsilon=0.1)(q, labels)
        return MultiSimilarityLoss(alpha=2, beta=50, base=0.5)(q, labels, mined)

    assert_same(lambda q: losses.multi_similarity(q, jnp.asarray(LABELS), mining_margin=0.1), theirs, (Q,))
    theirs_all = pml(MultiSimilarityLoss(alpha=2, beta=50, base=0.5))
    assert_same(lambda q: losses.multi_similarity(q, jnp.asarray(LABELS), mining_margin=None), theirs_all, (Q,))


def test_circle_of_pytorch_metric_learning():
    metric_learning()
    from pytorch_metric_learning.losses import CircleLoss

    ours = lambda q: losses.circle(q, jnp.asarray(LABELS), scale=20.0, margin=0.4)  # noqa: E731
    assert_same(ours, pml(CircleLoss(m=0.4, gamma=20)), (Q,))


@pytest.mark.parametrize("smooth", [False, True])
def test_all_triplets_of_pytorch_metric_learning(smooth):
    metric_learning()
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.reducers import MeanReducer

    theirs = TripletMarginLoss(
        margin=0.0 if smooth else 0.3,
        smooth_loss=smooth,
        distance=LpDistance(normalize_embeddings=False),
        reducer=MeanReducer(),
    )
    margin = None if smooth else 0.3
    assert_same(lambda q: losses.triplet(q, jnp.asarray(LABELS), mining="all", margin=margin), pml(theirs), (Q,))


def test_hardest_triplets_of_pytorch_metric_learning():
    metric_learning()
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner
    from pytorch_metric_learning.reducers import MeanReducer

    distance = LpDistance(normalize_embeddings=False)
    labels = torch.tensor(LABELS)

    def theirs(q):
        mined = BatchHardMiner(distance=distance)(q, labels)
        return TripletMarginLoss(margin=0.2, distance=distance, reducer=MeanReducer())(q, labels, mined)

    assert_same(lambda q: losses.triplet(q, jnp.asarray(LABELS), mining="hard", margin=0.2), theirs, (Q,))
