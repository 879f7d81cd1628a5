"""Textbook forms of the pairwise losses on the whole similarity matrix, to be evaluated in float64.

Written from the papers' equations, sharing nothing with the engine. Vectors are normalised here where the loss is one
of cosines.
"""

import jax
import jax.numpy as jnp


def unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def cosines(a, b):
    return unit(a) @ unit(b).T


def log_softmax_diagonal(logits):
    return jnp.diagonal(jax.nn.log_softmax(logits, axis=1)[:, : logits.shape[0]])


def info_nce(p, *, excluded=None):
    logits = cosines(p["q"], p["k"]) / p["temperature"]
    if excluded is not None:
        logits = jnp.where(excluded, -jnp.inf, logits)
    return -jnp.mean(log_softmax_diagonal(logits))


def symmetric(p):
    logits = cosines(p["q"], p["k"]) / p["temperature"]
    return -jnp.mean(log_softmax_diagonal(logits) + log_softmax_diagonal(logits.T)) / 2


def hard_negatives(p, own_weight):
    n = p["q"].shape[0]
    hard = p["hard"].reshape(-1, p["q"].shape[1])
    owner = jnp.repeat(jnp.arange(n), p["hard"].shape[1])
    bonus = jnp.where(owner[None] == jnp.arange(n)[:, None], own_weight, 0.0)
    logits = jnp.concatenate([cosines(p["q"], p["k"]), cosines(p["q"], hard)], axis=1) / p["temperature"]
    logits = logits + jnp.concatenate([jnp.zeros((n, n)), bonus], axis=1)
    return -jnp.mean(log_softmax_diagonal(logits))


def queue(p):
    own = jnp.sum(unit(p["q"]) * jax.lax.stop_gradient(unit(p["k"])), axis=1, keepdims=True)
    logits = jnp.concatenate([own, cosines(p["q"], jax.lax.stop_gradient(p["queue"])) + 0], axis=1) / p["temperature"]
    return -jnp.mean(jax.nn.log_softmax(logits, axis=1)[:, 0])


def two_views(p):
    z = jnp.concatenate([p["q"], p["k"]])
    n = p["q"].shape[0]
    logits = cosines(z, z) / p["temperature"]
    other = jnp.arange(2 * n)[:, None] == (jnp.arange(2 * n)[None] + n) % (2 * n)
    self_pair = jnp.eye(2 * n, dtype=bool)
    return logits, other, self_pair


def _of_pair(matrix, other):
    """The one entry per row that `other` marks."""
    return jnp.sum(jnp.where(other, matrix, 0), axis=1)


def nt_xent(p):
    logits, other, self_pair = two_views(p)
    log_p = jax.nn.log_softmax(jnp.where(self_pair, -jnp.inf, logits), axis=1)
    return -jnp.mean(_of_pair(log_p, other))


def decoupled(p):
    logits, other, self_pair = two_views(p)
    negatives = jax.nn.logsumexp(jnp.where(self_pair | other, -jnp.inf, logits), axis=1)
    return jnp.mean(negatives - _of_pair(logits, other))


def debiased(p, prior, beta):
    logits, other, self_pair = two_views(p)
    count = logits.shape[0] - 2
    e = jnp.where(self_pair | other, 0.0, jnp.exp(logits))
    importance = jnp.where(self_pair | other, 0.0, jnp.exp(beta * logits))
    mean_importance = importance.sum(1) / count
    negative = (importance * e).sum(1) / mean_importance
    positive = jnp.exp(_of_pair(logits, other))
    corrected = (negative - prior * count * positive) / (1 - prior)
    g = jnp.maximum(corrected, count * jnp.exp(-1 / p["temperature"]))
    return jnp.mean(-jnp.log(positive / (positive + g)))


def weighted(p):
    logits = cosines(p["q"], p["k"]) / p["temperature"]
    eye = jnp.eye(logits.shape[0], dtype=bool)
    logits = jnp.where(eye, logits, logits + p["log_weights"][None])
    return -jnp.sum(p["row_weights"] * log_softmax_diagonal(logits)) / jnp.sum(p["row_weights"])


def angular(p, margin):
    s = cosines(p["q"], p["k"])
    eye = jnp.eye(s.shape[0], dtype=bool)
    turned = jnp.cos(jnp.arccos(s) + margin)
    return -jnp.mean(log_softmax_diagonal(jnp.where(eye, turned, s) / p["temperature"]))


def sigmoid(p, items=None):
    n = p["q"].shape[0]
    logits = cosines(p["q"], p["k"]) / p["temperature"] + p["bias"]
    match = jnp.eye(n, dtype=bool) if items is None else items[:, None] == items[None]
    return -jnp.sum(jax.nn.log_sigmoid(jnp.where(match, logits, -logits))) / n


def masks(labels):
    n = labels.shape[0]
    same = labels[:, None] == labels[None]
    return same & ~jnp.eye(n, dtype=bool), ~same


def supervised(p, labels, form):
    s = cosines(p["q"], p["q"]) / p["temperature"]
    positive, _ = masks(labels)
    log_p = jax.nn.log_softmax(jnp.where(jnp.eye(s.shape[0], dtype=bool), -jnp.inf, s), axis=1)
    count = positive.sum(1)
    used = count > 0
    if form == "out":
        rows = -jnp.sum(jnp.where(positive, log_p, 0), axis=1) / jnp.maximum(count, 1)
    else:
        mean = jnp.sum(jnp.where(positive, jnp.exp(log_p), 0), axis=1) / jnp.maximum(count, 1)
        rows = -jnp.log(jnp.where(used, mean, 1))
    return jnp.sum(jnp.where(used, rows, 0)) / used.sum()


def supervised_with_memory(p, labels, memory_labels):
    n = p["q"].shape[0]
    s = cosines(p["q"], jnp.concatenate([p["q"], p["queue"]])) / p["temperature"]
    everyone = jnp.concatenate([labels, memory_labels])
    candidate = (jnp.arange(n)[:, None] != jnp.arange(everyone.shape[0])[None]) & (everyone >= 0)[None]
    positive = candidate & (labels[:, None] == everyone[None])
    log_p = jax.nn.log_softmax(jnp.where(candidate, s, -jnp.inf), axis=1)
    count = positive.sum(1)
    rows = -jnp.sum(jnp.where(positive, log_p, 0), axis=1) / jnp.maximum(count, 1)
    return jnp.sum(rows) / (count > 0).sum()


def multi_similarity(p, labels, epsilon, alpha=2.0, beta=50.0, base=0.5):
    s = cosines(p["q"], p["q"])
    positive, negative = masks(labels)
    if epsilon is not None:
        weakest = jnp.min(jnp.where(positive, s, jnp.inf), axis=1, keepdims=True)
        strongest = jnp.max(jnp.where(negative, s, -jnp.inf), axis=1, keepdims=True)
        positive, negative = positive & (s < strongest + epsilon), negative & (s > weakest - epsilon)
    pull = jnp.log1p(jnp.sum(jnp.where(positive, jnp.exp(-alpha * (s - base)), 0), axis=1)) / alpha
    push = jnp.log1p(jnp.sum(jnp.where(negative, jnp.exp(beta * (s - base)), 0), axis=1)) / beta
    return jnp.mean(pull + push)


def circle(p, labels, gamma, m):
    s = cosines(p["q"], p["q"])
    positive, negative = masks(labels)
    fixed = jax.lax.stop_gradient(s)
    a_p, a_n = jnp.maximum(1 + m - fixed, 0), jnp.maximum(fixed + m, 0)
    pull = jax.nn.logsumexp(jnp.where(positive, -gamma * a_p * (s - 1 + m), -jnp.inf), axis=1)
    push = jax.nn.logsumexp(jnp.where(negative, gamma * a_n * (s - m), -jnp.inf), axis=1)
    return jnp.mean(jax.nn.softplus(pull + push))


def triplet(p, labels, margin, mining, distance):
    x = unit(p["q"]) if distance == "cosine" else p["q"]
    squared = jnp.sum((x[:, None] - x[None]) ** 2, axis=2)
    if distance == "cosine":
        d = 1 - x @ x.T
    elif distance == "squared_euclidean":
        d = squared
    else:
        d = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    positive, negative = masks(labels)
    loss = jax.nn.softplus if margin is None else lambda gap: jnp.maximum(gap + margin, 0)
    if mining == "hard":
        used = positive.any(1) & negative.any(1)
        gap = jnp.max(jnp.where(positive, d, -jnp.inf), 1) - jnp.min(jnp.where(negative, d, jnp.inf), 1)
        return jnp.sum(jnp.where(used, loss(gap), 0)) / used.sum()
    if mining == "all":
        used = positive[:, :, None] & negative[:, None, :]
        return jnp.sum(jnp.where(used, loss(d[:, :, None] - d[:, None, :]), 0)) / used.sum()
    farther = jnp.where(negative[:, None, :] & (d[:, None, :] > d[:, :, None]), d[:, None, :], jnp.inf)
    nearest, farthest = farther.min(2), jnp.where(negative, d, -jnp.inf).max(1, keepdims=True)
    chosen = jnp.where(jnp.isinf(nearest), farthest, nearest)
    return jnp.sum(jnp.where(positive, loss(d - chosen), 0)) / positive.sum()


def cross_supervised(p, query_labels, key_labels):
    logits = cosines(p["q"], p["queue"]) / p["temperature"]
    match = query_labels[:, None] == key_labels[None]

    def one_way(logits, match):
        count = match.sum(1)
        log_p = jax.nn.log_softmax(logits, axis=1)
        return -jnp.sum(jnp.where(match, log_p, 0).sum(1) / jnp.maximum(count, 1)) / (count > 0).sum()

    return (one_way(logits, match) + one_way(logits.T, match.T)) / 2


def cluster(p, labels):
    """PIR's own form: mean vectors by a normalised same-class matrix, then a cross-entropy on the diagonal."""
    same = labels[:, None] == labels[None]
    mean = same / same.sum(1, keepdims=True)
    v, t = unit(p["q"]), unit(p["k"])
    one, two = v @ (mean @ t).T / p["temperature"], t @ (mean @ v).T / p["temperature"]
    return -jnp.mean(log_softmax_diagonal(one) + log_softmax_diagonal(two)) / 2


def uniformity(p, scale):
    x = unit(p["q"])
    i, j = jnp.triu_indices(x.shape[0], 1)
    return jnp.log(jnp.mean(jnp.exp(-scale * jnp.sum((x[i] - x[j]) ** 2, axis=1))))
