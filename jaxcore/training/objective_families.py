"""The families of contrastive objectives on text pairs, side by side: one table, one way to train each.

A batch holds texts as two halves and the title each stands under. A family says which two views it makes of that, and
what it does with their vectors; everything else (encoder, batches, optimiser, number of updates) is the same for all,
so that a difference between two rows of a comparison is a difference between objectives. Constants are those of the
family's source, not tuned here.
"""

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxcore.distributed import batch_sharding, jit_on_mesh, replicated, shard_local_batch
from jaxcore.losses import (
    angular_margin_info_nce,
    circle,
    cluster_contrastive,
    debiased_contrastive,
    decoupled_contrastive,
    info_nce,
    multi_similarity,
    nt_xent,
    queue_info_nce,
    sigmoid_contrastive,
    supervised_contrastive,
    symmetric_info_nce,
    triplet,
    uniformity,
)
from jaxcore.losses.distribution_shape import alignment
from jaxcore.losses.memory_queue import Queue, empty_queue, momentum_update, push
from jaxcore.losses.noise_contrastive import binary_nce, donsker_varadhan_bound, jensen_shannon_bound
from jaxcore.losses.ranking import margin_ranking
from jaxcore.losses.redundancy_reduction import barlow_twins, vicreg
from jaxcore.losses.scorers import cosine_scores
from jaxcore.training.gradient_cache import cached_gradients
from jaxcore.training.state import Params, TrainState, state_shardings
from jaxcore.training.step import Gradients, make_train_step, one_shot_gradients

ViewKind = Literal["halves", "twins", "text_and_title"]
"""halves: the two halves of a text. twins: one half twice, told apart by dropout alone. text_and_title: the first half
and the title."""


class Views(NamedTuple):
    """Vectors of both views of every text, and the number of its title."""

    first: Float[Array, "n dim"]
    second: Float[Array, "n dim"]
    labels: Int[Array, " n"]


class Family(NamedTuple):
    """An objective, and the one thing said of it that a comparison can check.

    Attributes:
        views: what a positive pair is.
        loss: ``(views, mesh) -> scalar``; None where the family has a training step of its own, or none at all.
        statement: what its source, or the survey, says of it.
        metric, against: the statement holds where this family's metric is no worse than that of the family named.
    """

    views: ViewKind
    loss: Callable[[Views, Mesh | None], Float[Array, ""]] | None
    statement: str = ""
    metric: str = "recall_at_1"
    against: str = ""


_TAU = 0.05  # SimCSE and DeCLUTR; the other InfoNCE-like rows take it too, so that they differ in form alone


def _both(views: Views) -> Float[Array, "2n dim"]:
    return jnp.concatenate([views.first, views.second])


def _twice(labels: Int[Array, " n"]) -> Int[Array, " 2n"]:
    return jnp.concatenate([labels, labels])


def _pairs(views: Views) -> Int[Array, " 2n"]:
    """A label of its own for every text: its two views are positives of each other alone."""
    return _twice(jnp.arange(views.labels.shape[0]))


def _candidates(views: Views, *, temperature: float = 1.0) -> tuple[Array, Array, Array]:
    """Scores of each first view with its partner [n, 1] and with all second views [n, n], and which of these count."""
    scores = cosine_scores(views.first, views.second, temperature=temperature)
    return jnp.diagonal(scores)[:, None], scores, ~jnp.eye(scores.shape[0], dtype=bool)


def _binary_matching(views: Views, mesh: Mesh | None) -> Array:
    positive, negative, others = _candidates(views, temperature=_TAU)
    return binary_nce(positive, negative, noise_correction=False, negative_mask=others)


def _margin(negatives: Literal["sum", "hardest"]) -> Callable[[Views, Mesh | None], Array]:
    def loss(views: Views, mesh: Mesh | None) -> Array:
        positive, negative, others = _candidates(views)
        return margin_ranking(positive, negative, margin=0.2, negatives=negatives, negative_mask=others)

    return loss


def _bound(bound: Callable[[Array, Array], Array]) -> Callable[[Views, Mesh | None], Array]:
    """Minus a bound on mutual information, over the pairs of the batch: the n (n - 1) others stand for independence."""

    def loss(views: Views, mesh: Mesh | None) -> Array:
        positive, scores, _ = _candidates(views, temperature=_TAU)
        count = scores.shape[0]
        # Without its first entry, a flat n x n matrix in rows of n + 1 ends every row with a diagonal entry.
        others = scores.reshape(-1)[1:].reshape(count - 1, count + 1)[:, :-1]
        return -bound(positive[:, 0], others.reshape(-1))

    return loss


def _alignment_and_uniformity(views: Views, mesh: Mesh | None) -> Array:
    spread = uniformity(views.first, mesh=mesh) + uniformity(views.second, mesh=mesh)
    return alignment(views.first, views.second) + spread / 2


FAMILIES: Mapping[str, Family] = {
    "untrained": Family("halves", None),
    "simcse": Family(
        "twins",
        lambda v, mesh: info_nce(v.first, v.second, temperature=_TAU, mesh=mesh),
        "dropout twins alone, without any pair, are better than no training",
        "spearman",
        "untrained",
    ),
    "info_nce": Family(
        "halves",
        lambda v, mesh: info_nce(v.first, v.second, temperature=_TAU, mesh=mesh),
        "pairs from the text teach more than dropout twins",
        against="simcse",
    ),
    "symmetric_info_nce": Family(
        "halves",
        lambda v, mesh: symmetric_info_nce(v.first, v.second, temperature=_TAU, mesh=mesh),
        "both directions are no worse than one",
        against="info_nce",
    ),
    "nt_xent": Family(
        "halves",
        lambda v, mesh: nt_xent(v.first, v.second, temperature=_TAU, mesh=mesh),
        "2n - 2 negatives are no worse than n - 1",
        against="info_nce",
    ),
    "momentum_queue": Family(
        "halves", None, "old keys from a queue serve as negatives in place of the batch", against="simcse"
    ),
    "decoupled": Family(
        "halves",
        lambda v, mesh: decoupled_contrastive(v.first, v.second, temperature=_TAU, mesh=mesh),
        "the positive out of the denominator helps small batches",
        against="nt_xent",
    ),
    "debiased": Family(
        "halves",
        lambda v, mesh: debiased_contrastive(v.first, v.second, temperature=_TAU, positive_prior=0.02, mesh=mesh),
        "correcting for false negatives helps",
        "spearman",
        "nt_xent",
    ),
    "hard_negatives": Family(
        "halves",
        lambda v, mesh: debiased_contrastive(
            v.first, v.second, temperature=_TAU, positive_prior=0.02, concentration=0.5, mesh=mesh
        ),
        "harder negatives counting for more helps",
        against="debiased",
    ),
    "angular_margin": Family(
        "halves",
        lambda v, mesh: angular_margin_info_nce(v.first, v.second, temperature=_TAU, margin=jnp.pi / 18, mesh=mesh),
        "a margin in the angle helps",
        against="info_nce",
    ),
    "supervised_contrastive": Family(
        "halves",
        lambda v, mesh: supervised_contrastive(_both(v), _twice(v.labels), temperature=0.07, mesh=mesh),
        "labels pull whole classes together",
        "spearman",
        "nt_xent",
    ),
    "cluster_contrastive": Family(
        "halves",
        lambda v, mesh: cluster_contrastive(v.first, v.second, v.labels, temperature=0.07, mesh=mesh),
        "class centres do what pairs within a class do",
        "spearman",
        "supervised_contrastive",
    ),
    "label_embedding": Family(
        "text_and_title",
        lambda v, mesh: info_nce(v.first, v.second, temperature=_TAU, items=v.labels, mesh=mesh),
        "contrasting texts with label texts ranks labels better than contrasting texts",
        "title_mrr",
        "info_nce",
    ),
    "sigmoid": Family(
        "halves",
        lambda v, mesh: sigmoid_contrastive(v.first, v.second, temperature=0.1, bias=-10.0, mesh=mesh),
        "independent yes-or-no questions are no worse than a softmax",
        against="info_nce",
    ),
    "binary_matching": Family(
        "halves", _binary_matching, "independent uncorrected decisions beat no training", against="untrained"
    ),
    "margin_sum": Family(
        "halves", _margin("sum"), "a margin over all negatives beats no training", against="untrained"
    ),
    "margin_hardest": Family(
        "halves", _margin("hardest"), "the hardest negative is enough (VSE++)", against="margin_sum"
    ),
    "triplet": Family(
        "halves",
        lambda v, mesh: triplet(_both(v), _pairs(v), margin=0.2, mining="semi_hard", distance="cosine", mesh=mesh),
        "semi-hard triplets beat no training",
        against="untrained",
    ),
    "multi_similarity": Family(
        "halves",
        lambda v, mesh: multi_similarity(_both(v), _pairs(v), mesh=mesh),
        "weighing pairs by three similarities beats triplets",
        against="triplet",
    ),
    "circle": Family(
        "halves",
        lambda v, mesh: circle(_both(v), _pairs(v), mesh=mesh),
        "pulling each pair by its distance from the optimum beats triplets",
        against="triplet",
    ),
    "jensen_shannon": Family(
        "halves", _bound(jensen_shannon_bound), "the bound need not be tight to teach", against="donsker_varadhan"
    ),
    "donsker_varadhan": Family(
        "halves", _bound(donsker_varadhan_bound), "the tighter bound beats no training", against="untrained"
    ),
    "alignment_uniformity": Family(
        "halves",
        _alignment_and_uniformity,
        "optimising alignment and uniformity directly is no worse than InfoNCE",
        against="info_nce",
    ),
    "barlow_twins": Family(
        "halves",
        lambda v, mesh: barlow_twins(v.first, v.second),
        "no negatives are needed (redundancy reduction)",
        against="simcse",
    ),
    "vicreg": Family(
        "halves",
        lambda v, mesh: vicreg(v.first, v.second),
        "no negatives are needed (variance, covariance)",
        against="simcse",
    ),
}


def family_views(kind: ViewKind, batch: Mapping[str, Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Ids and mask of both views of a batch of `jaxcore.data.titled_task.HalvesSampler`."""
    first, second = ((batch[f"{side}_ids"], batch[f"{side}_mask"]) for side in ("first", "second"))
    if kind == "halves":
        return first, second
    if kind == "text_and_title":
        return first, (batch["title_ids"], batch["title_mask"])
    even = (jnp.arange(first[0].shape[0]) % 2 == 0)[:, None]  # by turns, so that both halves are seen
    twin = jnp.where(even, first[0], second[0]), jnp.where(even, first[1], second[1])
    return twin, twin


def family_gradients(name: str, model: Any, mesh: Mesh | None, *, micro_batch: int = 0) -> Gradients:
    """Loss and gradients of a family's objective, for `jaxcore.training.make_train_step`.

    Args:
        name: a key of `FAMILIES` with a loss.
        model: an encoder, as `jaxcore.models.Encoder`.
        mesh: over which the loss spreads its pairs.
        micro_batch: rows encoded at once by gradient caching; 0 encodes the whole batch.

    Raises:
        ValueError: unknown name, or a family without a loss of this form.
    """
    family = FAMILIES.get(name)
    loss_of_views = None if family is None else family.loss
    if family is None or loss_of_views is None:
        known = ", ".join(known for known, family in FAMILIES.items() if family.loss is not None)
        raise ValueError(f"no family {name!r} with a loss of its batch alone: expected one of {known}")

    def encode(params: Params, batch: Any, key: Array) -> Float[Array, "rows both"]:
        views, keys = family_views(family.views, batch), jax.random.split(key)
        return jnp.concatenate([_encode(model, params, *v, k) for v, k in zip(views, keys, strict=True)], axis=1)

    def loss(vectors: Float[Array, "rows both"], batch: Any) -> Float[Array, ""]:
        first, second = jnp.split(vectors, 2, axis=1)
        return loss_of_views(Views(first, second, batch["labels"]), mesh)

    if micro_batch:
        return cached_gradients(encode, loss, micro_batch=micro_batch)
    return one_shot_gradients(lambda params, batch, key: loss(encode(params, batch, key), batch))


def _encode(model: Any, params: Params, ids: Array, mask: Array, key: Array) -> Float[Array, "rows dim"]:
    output = model.apply({"params": params}, ids, mask, deterministic=False, rngs={"dropout": key})
    return output.pooled.astype(jnp.float32)


def train_family(
    name: str,
    model: Any,
    optimizer: optax.GradientTransformation,
    start: TrainState,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    *,
    micro_batch: int = 0,
    momentum: float = 0.99,
    queue_batches: int = 4,
) -> tuple[Params, float]:
    """A family trained from a given state on given batches: nothing but its objective tells it from another.

    Args:
        name: a key of `FAMILIES`; "untrained" returns the parameters of `start`.
        model, optimizer, start: encoder, optimiser, and the state of step 0, which is left as it is.
        batches: this process's batches of `HalvesSampler`.
        mesh: of state and batches.
        micro_batch: as for `family_gradients`.
        momentum, queue_batches: of the family with a memory; batches that its queue holds.

    Returns:
        Parameters, and the mean seconds of a step after the first, which compiles (0 where there is no second).

    Raises:
        ValueError: unknown family.
        FloatingPointError: a last loss that is not finite.
    """
    state = jax.tree.map(jnp.copy, start)
    if name == "untrained":
        return state.params, 0.0
    memory, step = None, None
    clock, count, measured = 0.0, 0, {"loss": np.zeros(())}
    for batch in batches:
        rows = shard_local_batch(mesh, {key: value for key, value in batch.items() if key != "example_ids"})
        if step is None:
            step, memory = _family_step(name, model, optimizer, state, rows, mesh, micro_batch, momentum, queue_batches)
        state, memory, measured = step(state, memory, rows)
        count += 1
        if count == 1:
            jax.block_until_ready(state)
            clock = time.perf_counter()
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - clock) / (count - 1) if count > 1 else 0.0
    if not np.isfinite(float(measured["loss"])):
        raise FloatingPointError(f"the loss of {name} is not finite after {count} steps: {float(measured['loss'])}")
    return state.params, seconds


def _family_step(
    name: str,
    model: Any,
    optimizer: Any,
    state: Any,
    rows: Any,
    mesh: Mesh,
    micro_batch: int,
    momentum: float,
    size: int,
) -> tuple[Any, Any]:
    """``(state, memory, batch) -> (state, memory, metrics)`` of any family, and the memory it starts with."""
    if name == "momentum_queue":
        ids, mask = family_views("halves", rows)[0]
        keys = jax.eval_shape(functools.partial(_encode, model), state.params, ids, mask, state.step_key)
        memory = empty_memory(state.params, mesh, size=size * ids.shape[0], dim=keys.shape[1])
        return make_queue_step(model, optimizer, state, mesh, momentum=momentum), memory
    train = make_train_step(family_gradients(name, model, mesh, micro_batch=micro_batch), optimizer, state, mesh)

    def step(state: Any, memory: None, batch: Any) -> tuple[Any, None, Any]:
        state, metrics = train(state, batch)
        return state, None, metrics

    return step, None


LOWER_IS_BETTER = ("alignment", "uniformity")
"""Metrics of a family that are better the lower they are."""


def family_claim_rows(metrics: Mapping[str, float]) -> list[tuple[str, str, str, float, str, float, str]]:
    """Family x claim: what is said of each family, the two numbers that decide, and whether they bear it out.

    Args:
        metrics: ``families/NAME/METRIC`` of one run; families that were not measured have no row.
    """
    rows = []
    for name, family in FAMILIES.items():
        own, other = (metrics.get(f"families/{side}/{family.metric}") for side in (name, family.against))
        if own is not None and other is not None:
            holds = own <= other if family.metric in LOWER_IS_BETTER else own >= other
            rows.append((name, family.statement, family.metric, own, family.against, other, "yes" if holds else "no"))
    return rows


# ---- the family with a memory ----------------------------------------------------------------------------


@struct.dataclass
class Memory:
    """What momentum contrast keeps beside the training state: the slow encoder and its past keys."""

    target: Params
    queue: Queue


def empty_memory(params: Params, mesh: Mesh, *, size: int, dim: int) -> Memory:
    """The online parameters as target, and no keys."""
    queue = jax.device_put(empty_queue(size, dim), replicated(mesh))
    return Memory(target=jax.tree.map(jnp.copy, params), queue=queue)


def make_queue_step(
    model: Any, optimizer: optax.GradientTransformation, state: TrainState, mesh: Mesh, *, momentum: float
) -> Callable[[TrainState, Memory, Any], tuple[TrainState, Memory, dict[str, Array]]]:
    """One jitted update of momentum contrast: ``(state, memory, batch) -> (state, memory, {"loss": ...})``.

    First halves are queries, second halves keys of the target encoder, and all negatives come from the queue; the keys
    are pushed after the loss. While the queue is empty there is nothing to contrast with and the loss is 0.

    Args:
        model: an encoder.
        optimizer: of the online encoder.
        state: concrete or abstract; only its shardings are read.
        mesh: of batch and queue.
        momentum: m of the target; 0.999 in the source, whose runs are 10^5 updates long.

    Source: He et al. 2020 (MoCo), algorithm 1; Fang et al. 2020 (CERT).
    """
    shardings = state_shardings(state)

    def step(state: TrainState, memory: Memory, batch: Any) -> tuple[TrainState, Memory, dict[str, Array]]:
        first, second = family_views("halves", batch)
        of_queries, of_keys = jax.random.split(state.step_key)
        keys = jax.lax.stop_gradient(_encode(model, memory.target, *second, of_keys))

        def loss(params: Params) -> Array:
            queries, queue = _encode(model, params, *first, of_queries), memory.queue
            return queue_info_nce(
                queries, keys, queue.keys, temperature=_TAU, queue_log_weights=queue.log_weights, mesh=mesh
            )

        value, gradient = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        memory = Memory(momentum_update(memory.target, params, momentum), push(memory.queue, keys))
        moved = TrainState(state.step + 1, params, opt_state, state.key_data, state.nonfinite_step)  # type: ignore[call-arg]
        return moved, memory, {"loss": value}

    whole: Any = replicated(mesh)
    memory_shardings = Memory(target=shardings.params, queue=whole)
    return jit_on_mesh(
        step,
        mesh,
        in_shardings=(shardings, memory_shardings, batch_sharding(mesh)),
        out_shardings=(shardings, memory_shardings, whole),
        donate_argnums=(0, 1),
    )
