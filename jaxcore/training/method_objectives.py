"""The losses of `jaxcore.training.surveyed_methods`, one short function a term, and the step that trains on them.

A term reads a `Forward`: the method, an encoder, parameters, memory and batch of the step. What two terms share (which
tokens are masked, what the generator puts there) follows from the step's key, so they agree without passing it on.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.core import meta
from jaxtyping import Array, Bool, Float, Int

from jaxcore.data.text_augmentation import cut_off_features
from jaxcore.losses import (
    binary_nce,
    electric_logits,
    fixed_mixture,
    info_nce,
    init_log_variances,
    learned_mixture,
    margin_ranking,
    momentum_update,
    nt_xent,
    push,
    queue_info_nce,
    ranking_nce,
    replaced_token_loss,
    replaced_token_targets,
    scorers,
    supervised_contrastive,
    symmetric_info_nce,
)
from jaxcore.models import Encoder
from jaxcore.training.objective_families import Memory
from jaxcore.training.surveyed_methods import MAX_DISTANCE, NUM_POSITIVES, Method

MASK_RATE = 0.15
"""Share of tokens that masked language models and generators predict."""
_DISTANCE_WEIGHTS = (0.1, 0.25, 0.5, 1.0, 1.0, 0.5, 0.25, 0.1)  # CONPONO's code, from -4 to 4
_COPY_WEIGHT = 50.0  # COCO-LM's copy head
_MASK_ID = 3


class Forward(NamedTuple):
    """All that a term may look at."""

    method: Method
    model: Encoder
    params: Any
    memory: Memory
    batch: Mapping[str, Array]
    key: Array

    def pooled(self, ids: Array, mask: Array, *, stream: int, params: Any = None) -> Float[Array, "n dim"]:
        """A vector per text; dropout is decided by the step's key and `stream`."""
        return self._encode(ids, mask, stream, params).pooled

    def hidden(self, ids: Array, mask: Array, *, stream: int, params: Any = None) -> Float[Array, "n time dim"]:
        """A vector per token."""
        return self._encode(ids, mask, stream, params).last_hidden_state

    def _encode(self, ids: Array, mask: Array, stream: int, params: Any) -> Any:
        rngs = {"dropout": jax.random.fold_in(self.key, stream)}
        chosen = self.params["encoder"] if params is None else params
        return self.model.apply({"params": chosen}, ids, mask, deterministic=False, rngs=rngs)

    def first(self, *, params: Any = None) -> Float[Array, "n dim"]:
        """Vectors of the first views, as the generator corrupted them where there is one."""
        generated = self.method.encoders == "generator"
        ids = _generated(self)[0] if generated else self.batch["first_ids"]
        vectors = self.pooled(ids, self.batch["first_mask"], stream=1, params=params)
        if "feature_cutoff" in self.method.edits[0]:
            vectors = cut_off_features(vectors, jax.random.fold_in(self.key, 3), rate=0.2)
        return vectors

    def second(self) -> Float[Array, "n dim"]:
        """Vectors of the second views: of the target encoder where there is one, averaged over a span's positives."""
        slow = self.method.encoders in ("momentum", "teacher")
        params = jax.lax.stop_gradient(self.memory.target) if slow else None
        vectors = self.pooled(self.batch["second_ids"], self.batch["second_mask"], stream=2, params=params)
        if self.method.instances == "spans":
            vectors = jnp.mean(vectors.reshape(-1, NUM_POSITIVES, vectors.shape[1]), axis=1)
        return vectors


# ---- contrast of vectors ---------------------------------------------------------------------------------


def _info_nce(forward: Forward) -> Array:
    return info_nce(forward.first(), forward.second(), temperature=forward.method.temperature)


def _symmetric_info_nce(forward: Forward) -> Array:
    return symmetric_info_nce(forward.first(), forward.second(), temperature=jnp.exp(forward.params["log_temperature"]))


def _nt_xent(forward: Forward) -> Array:
    return nt_xent(forward.first(), forward.second(), temperature=forward.method.temperature)


def _against_queue(forward: Forward, queries: Array, keys: Array) -> Array:
    queue = forward.memory.queue
    weights, tau = queue.log_weights, forward.method.temperature
    return queue_info_nce(queries, keys, queue.keys, temperature=tau, queue_log_weights=weights)


def _queue_info_nce(forward: Forward) -> Array:
    return _against_queue(forward, forward.first(), forward.second())


def _queue_both_ways(forward: Forward) -> Array:
    other = forward.pooled(forward.batch["second_ids"], forward.batch["second_mask"], stream=4)
    return (_queue_info_nce(forward) + _against_queue(forward, other, forward.first(params=forward.memory.target))) / 2


def _supervised_contrastive(forward: Forward) -> Array:
    return supervised_contrastive(forward.first(), forward.batch["classes"], temperature=forward.method.temperature)


# ---- contrast of scored candidates -----------------------------------------------------------------------


class Candidates(NamedTuple):
    """Scores of positives and negatives, and which of them count."""

    positive: Float[Array, "n p"]
    negative: Float[Array, "n k"]
    positive_mask: Bool[Array, "n p"]
    negative_mask: Bool[Array, "n k"]


def _candidates(forward: Forward) -> Candidates:
    batch, instances = forward.batch, forward.method.instances
    if "label_ids" in batch:
        scores, middle = _label_scores(forward), batch["label_ids"].shape[1] // 2
        counted = batch["label_counted"]
        return Candidates(scores[:, :middle], scores[:, middle:], counted[:, :middle], counted[:, middle:])
    first = forward.first()
    if instances == "distances":
        rows = jnp.concatenate([batch["positive_rows"], batch["negative_rows"]], axis=1)
        scores = scorers.bilinear_scores(forward.params["scorer"], first, first[rows], relation=batch["relation"])
        return Candidates(scores[:, :1], scores[:, 1:], batch["positive_mask"], batch["negative_mask"])
    if instances == "synonym_or_antonym":
        antonyms = forward.pooled(batch["negative_ids"], batch["negative_mask"], stream=5)
        scores = scorers.mean_product_scores(first, jnp.stack([forward.second(), antonyms], axis=1))
    else:  # the text itself, seen through other dropout, against its twin
        again = forward.pooled(batch["first_ids"], batch["first_mask"], stream=5)
        scores = scorers.cosine_scores(first, jnp.stack([again, forward.second()], axis=1))
    every = jnp.ones((scores.shape[0], 1), bool)
    return Candidates(scores[:, :1], scores[:, 1:], every, every)


def _label_scores(forward: Forward) -> Float[Array, "n labels"]:
    batch, scorer = forward.batch, forward.method.scorer
    ids, mask = batch["label_ids"], batch["label_mask"]
    if scorer == "negative_energy":
        return _read_together(forward, ids, mask)
    words = forward.params["encoder"]["embeddings"]["word"][ids]
    weights = mask[..., None].astype(words.dtype)
    labels = jnp.sum(words * weights, axis=2) / jnp.maximum(jnp.sum(weights, axis=2), 1)
    if scorer == "dot":
        return scorers.dot_scores(forward.first(), labels)
    score = {"joint": scorers.joint_scores, "concat_mlp": scorers.concat_mlp_scores}[scorer]
    return score(forward.params["scorer"], forward.first(), labels)


def _read_together(forward: Forward, ids: Int[Array, "n labels words"], mask: Array) -> Float[Array, "n labels"]:
    """``-E`` of text and label as one text."""
    texts = forward.batch["first_ids"], forward.batch["first_mask"]
    shape = (*ids.shape[:2], texts[0].shape[1])
    joined, real = (
        jnp.concatenate([label, jnp.broadcast_to(text[:, None], shape)], axis=2).reshape(-1, ids.shape[2] + shape[2])
        for label, text in zip((ids, mask), texts, strict=True)
    )
    vectors = forward.pooled(joined, real, stream=6)
    return (vectors @ forward.params["output"]["kernel"] + forward.params["output"]["bias"]).reshape(ids.shape[:2])


def _by_distance(loss: Callable[[Candidates], Array], forward: Forward) -> Array:
    """The weighted mean over distances, each with the sentences asked for it."""
    candidates, weights = _candidates(forward), jnp.asarray(_DISTANCE_WEIGHTS)

    def at(distance: Array) -> Array:
        asked = (forward.batch["relation"] == distance)[:, None]
        return loss(candidates._replace(positive_mask=candidates.positive_mask & asked))

    return jnp.sum(weights * jax.vmap(at)(jnp.arange(2 * MAX_DISTANCE))) / jnp.sum(weights)


def _ranking_nce(forward: Forward) -> Array:
    def loss(candidates: Candidates) -> Array:
        positive, negative, positive_mask, negative_mask = candidates
        return ranking_nce(
            positive, negative, noise_correction=False, positive_mask=positive_mask, negative_mask=negative_mask
        )

    return _by_distance(loss, forward)


def _margin(forward: Forward) -> Array:
    def loss(candidates: Candidates) -> Array:
        return margin_ranking(*candidates[:2], margin=1.0, negatives="hardest", **_masks(candidates))

    return _by_distance(loss, forward) if forward.method.instances == "distances" else loss(_candidates(forward))


def _binary_nce(forward: Forward) -> Array:
    candidates = _candidates(forward)
    return binary_nce(*candidates[:2], noise_correction=False, **_masks(candidates))


def _masks(candidates: Candidates) -> dict[str, Array]:
    return {"positive_mask": candidates.positive_mask, "negative_mask": candidates.negative_mask}


# ---- tokens ----------------------------------------------------------------------------------------------


def _token_logits(params: Any, hidden: Float[Array, "n time dim"]) -> Float[Array, "n time vocab"]:
    return hidden.astype(jnp.float32) @ params["embeddings"]["word"].T


def _masked(forward: Forward, ids: Array, mask: Array) -> Bool[Array, "n time"]:
    return (jax.random.uniform(jax.random.fold_in(forward.key, 10), ids.shape) < MASK_RATE) & mask.astype(bool)


def _cloze(forward: Forward, ids: Array, mask: Array) -> tuple[Float[Array, "n time vocab"], Bool[Array, "n time"]]:
    """Log-probabilities at every position with some masked, of the generator where there is one; and which are."""
    masked = _masked(forward, ids, mask)
    params = forward.params["generator" if forward.method.encoders == "generator" else "encoder"]
    hidden = forward.hidden(jnp.where(masked, _MASK_ID, ids), mask, stream=11, params=params)
    return jax.nn.log_softmax(_token_logits(params, hidden)), masked


def _mean_over(losses: Array, counted: Array) -> Array:
    return jnp.sum(losses, where=counted) / jnp.maximum(jnp.sum(counted), 1)


def _masked_language_model(forward: Forward) -> Array:
    ids = forward.batch["first_ids"]
    log_probabilities, masked = _cloze(forward, ids, forward.batch["first_mask"])
    return -_mean_over(jnp.take_along_axis(log_probabilities, ids[..., None], axis=2)[..., 0], masked)


def _translation_language_model(forward: Forward) -> Array:
    """Text and translation as one text, so that a masked word can be read off the other language."""
    ids, mask = (jnp.concatenate([forward.batch[f"{s}_{k}"] for s in ("first", "second")], 1) for k in ("ids", "mask"))
    log_probabilities, masked = _cloze(forward, ids, mask)
    return -_mean_over(jnp.take_along_axis(log_probabilities, ids[..., None], axis=2)[..., 0], masked)


def _generated(forward: Forward) -> tuple[Array, Array, Array]:
    """The first views with masked tokens sampled anew, which were masked, and log q of what stands there now.

    One sample a step, and no gradient from the discriminator to the generator.
    """
    ids = forward.batch["first_ids"]
    log_probabilities, masked = jax.lax.stop_gradient(_cloze(forward, ids, forward.batch["first_mask"]))
    sampled = jax.random.categorical(jax.random.fold_in(forward.key, 12), log_probabilities)
    tokens = jnp.where(masked, sampled, ids)
    return tokens, masked, jnp.take_along_axis(log_probabilities, tokens[..., None], axis=2)[..., 0]


def _detector(forward: Forward, tokens: Array) -> Float[Array, "n time"]:
    hidden = forward.hidden(tokens, forward.batch["first_mask"], stream=13)
    return hidden @ forward.params["output"]["kernel"] + forward.params["output"]["bias"]


def _electra(forward: Forward) -> Array:
    tokens, masked, _ = _generated(forward)
    targets = replaced_token_targets(forward.batch["first_ids"], tokens, masked, rule="electra")
    return replaced_token_loss(_detector(forward, tokens), targets, mask=forward.batch["first_mask"].astype(bool))


def _electric(forward: Forward) -> Array:
    tokens, masked, log_noise = _generated(forward)
    targets = replaced_token_targets(forward.batch["first_ids"], tokens, masked, rule="electric")
    logits = electric_logits(_detector(forward, tokens), log_noise, mask_rate=MASK_RATE)
    return replaced_token_loss(logits, targets, mask=forward.batch["first_mask"].astype(bool))


def _corrective_language_model(forward: Forward) -> Array:
    """Say the original of every token: copy what stands there, or correct it."""
    original, real = forward.batch["first_ids"], forward.batch["first_mask"].astype(bool)
    tokens, masked, _ = _generated(forward)
    hidden = forward.hidden(tokens, forward.batch["first_mask"], stream=13)
    copy = hidden @ forward.params["output"]["kernel"] + forward.params["output"]["bias"]
    log_words = jax.nn.log_softmax(_token_logits(forward.params["encoder"], hidden))
    log_corrected = jnp.take_along_axis(log_words, original[..., None], axis=2)[..., 0] + jax.nn.log_sigmoid(-copy)
    log_copied = jnp.where(tokens == original, jax.nn.log_sigmoid(copy), -jnp.inf)
    correction = -_mean_over(jnp.logaddexp(log_corrected, log_copied), masked)
    return correction + _COPY_WEIGHT * replaced_token_loss(copy, (tokens == original).astype(jnp.int32), mask=real)


def _edit_detection(forward: Forward) -> Array:
    """Was each token of an edited text kept, replaced by a synonym, or by an antonym?"""
    losses = []
    for side, stream in (("second", 14), ("negative", 15)):
        mask = forward.batch[f"{side}_mask"]
        hidden = forward.hidden(forward.batch[f"{side}_ids"], mask, stream=stream)
        logits = hidden @ forward.params["edits"]["kernel"] + forward.params["edits"]["bias"]
        kinds = optax.softmax_cross_entropy_with_integer_labels(logits, forward.batch[f"{side}_kinds"])
        losses.append(_mean_over(kinds, mask.astype(bool)))
    return (losses[0] + losses[1]) / 2


# ---- classes ---------------------------------------------------------------------------------------------


def _class_logits(forward: Forward, vectors: Array) -> Float[Array, "n classes"]:
    return vectors @ forward.params["classes"]["kernel"] + forward.params["classes"]["bias"]


def _both_class_logits(forward: Forward) -> list[Array]:
    """Of the text, and of its edited view where there is one."""
    vectors = [forward.first()]
    if forward.method.instances == "edits":
        second = forward.pooled(forward.batch["second_ids"], forward.batch["second_mask"], stream=16)
        vectors.append(second)
    return [_class_logits(forward, v) for v in vectors]


def _cross_entropy(forward: Forward) -> Array:
    entropies = [
        jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, forward.batch["classes"]))
        for logits in _both_class_logits(forward)
    ]
    return jnp.sum(jnp.stack(entropies))


def _consistency(forward: Forward) -> Array:
    """Jensen-Shannon divergence of the classes of both views."""
    first, second = (jax.nn.log_softmax(logits) for logits in _both_class_logits(forward))
    middle = jnp.logaddexp(first, second) - jnp.log(2.0)
    parts = [jnp.sum(jnp.exp(p) * (p - middle), axis=1) for p in (first, second)]
    return jnp.mean(parts[0] + parts[1]) / 2


TERMS: Mapping[str, Callable[[Forward], Float[Array, ""]]] = {
    "info_nce": _info_nce,
    "symmetric_info_nce": _symmetric_info_nce,
    "nt_xent": _nt_xent,
    "queue_info_nce": _queue_info_nce,
    "queue_both_ways": _queue_both_ways,
    "supervised_contrastive": _supervised_contrastive,
    "ranking_nce": _ranking_nce,
    "margin": _margin,
    "binary_nce": _binary_nce,
    "masked_language_model": _masked_language_model,
    "translation_language_model": _translation_language_model,
    "electra": _electra,
    "electric": _electric,
    "corrective_language_model": _corrective_language_model,
    "edit_detection": _edit_detection,
    "cross_entropy": _cross_entropy,
    "consistency": _consistency,
}


# ---- a method as a training step -------------------------------------------------------------------------


def init_method(method: Method, model: Encoder, key: Array, *, num_classes: int = 2) -> Any:
    """Parameters of a method: the encoder, and what its parts add (scorer, heads, generator, mixture).

    Raises:
        ValueError: a term that does not exist.
    """
    unknown = set(method.terms) - set(TERMS)
    if unknown:
        raise ValueError(f"unknown terms {sorted(unknown)}: expected some of {', '.join(TERMS)}")
    of_encoder, of_generator, of_scorer, of_heads = jax.random.split(key, 4)
    size = model.config.hidden_size

    def encoder(key: Array) -> Any:
        return meta.unbox(model.init(key, jnp.zeros((1, 2), jnp.int32)))["params"]

    def head(width: int | None) -> dict[str, Array]:
        shape = (size,) if width is None else (size, width)
        return {"kernel": jax.random.normal(of_heads, shape) / size**0.5, "bias": jnp.zeros(shape[1:])}

    params: dict[str, Any] = {"encoder": encoder(of_encoder)}
    sizes = {"input_size": size, "candidate_size": size}
    if method.scorer == "bilinear":
        params["scorer"] = scorers.init_bilinear(of_scorer, num_relations=2 * MAX_DISTANCE, **sizes)
    elif method.scorer == "joint":
        params["scorer"] = scorers.init_joint(of_scorer, joint_size=size, **sizes)
    elif method.scorer == "concat_mlp":
        params["scorer"] = scorers.init_concat_mlp(of_scorer, hidden_sizes=(2 * size,), **sizes)
    if method.encoders == "generator":
        params["generator"] = encoder(of_generator)
    if method.scorer == "negative_energy" or "corrective_language_model" in method.terms:
        params["output"] = head(None)
    if "edit_detection" in method.terms:
        params["edits"] = head(3)
    if "cross_entropy" in method.terms:
        params["classes"] = head(num_classes)
    if "symmetric_info_nce" in method.terms:
        params["log_temperature"] = jnp.log(method.temperature)
    if method.mixing == "log_variances":
        params["log_variances"] = init_log_variances(method.terms)
    return params


def method_losses(
    method: Method, model: Encoder, params: Any, memory: Memory, batch: Mapping[str, Array], key: Array
) -> dict[str, Float[Array, ""]]:
    """Every term of a method on a batch of `make_instances`, unweighted."""
    forward = Forward(method, model, params, memory, batch, key)
    return {name: TERMS[name](forward) for name in method.terms}


def make_method_step(
    method: Method, model: Encoder, optimizer: optax.GradientTransformation
) -> Callable[[Any, Any, Memory, Mapping[str, Array], Array], tuple[Any, Any, Memory, dict[str, Array]]]:
    """One update: ``(params, opt_state, memory, batch, key) -> (params, opt_state, memory, losses)``, to be jitted.

    The target encoder follows the online one by the method's momentum (a teacher's stays), and its keys enter the queue
    after the loss.
    """

    def step(params: Any, opt_state: Any, memory: Memory, batch: Mapping[str, Array], key: Array) -> tuple:
        def total(params: Any) -> tuple[Array, dict[str, Array]]:
            terms = method_losses(method, model, params, memory, batch, key)
            if method.mixing == "log_variances":
                return learned_mixture(terms, params["log_variances"]), terms
            return fixed_mixture(terms, method.terms), terms

        gradients, terms = jax.grad(total, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        moved = optax.apply_updates(params, updates)
        if method.encoders == "momentum":
            keys = Forward(method, model, params, memory, batch, key).second()
            target = momentum_update(memory.target, moved["encoder"], method.momentum)
            memory = Memory(target, push(memory.queue, keys))
        return moved, opt_state, memory, terms

    return step
