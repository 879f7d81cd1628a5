"""What is explained: functions that turn a model's outputs into a score, one number per example.

    score = probability(predict, predicted_classes(predict, inputs))
    integrated_gradients(score, inputs)

`predict` maps inputs to class scores (logits) [batch, classes]; a target is one class for all examples or one per
example, [batch]. A contrastive score asks "why this class rather than that one?".
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcore.attribution.input_checks import Inputs, Score
from jaxcore.transforms import capture

Predict: TypeAlias = Callable[[Inputs], Float[Array, "batch classes"]]
Target: TypeAlias = Int[Array, " batch"] | int


def predicted_classes(predict: Predict, inputs: Inputs) -> Int[Array, " batch"]:
    """The class with the largest logit of each example: the target that explanations of a prediction take."""
    return jnp.argmax(_class_scores(predict, inputs), axis=-1)


def logit(predict: Predict, target: Target) -> Score:
    """``z_c``: the target's own logit."""
    return lambda inputs: _chosen(_class_scores(predict, inputs), target)


def probability(predict: Predict, target: Target) -> Score:
    """``softmax(z)_c``."""
    return lambda inputs: _chosen(jax.nn.softmax(_class_scores(predict, inputs), axis=-1), target)


def log_probability(predict: Predict, target: Target) -> Score:
    """``log softmax(z)_c``."""
    return lambda inputs: _chosen(jax.nn.log_softmax(_class_scores(predict, inputs), axis=-1), target)


def contrast(predict: Predict, target: Target, versus: Target) -> Score:
    """``z_c - z_c'``: why the target rather than the other class (the log-odds of one against the other)."""

    def score(inputs: Inputs) -> Array:
        logits = _class_scores(predict, inputs)
        return _chosen(logits, target) - _chosen(logits, versus, name="versus")

    return score


def margin(predict: Predict, target: Target) -> Score:
    """``z_c - max_{k != c} z_k``: why the target rather than the strongest other class, at each point of a path."""

    def score(inputs: Inputs) -> Array:
        logits = _class_scores(predict, inputs)
        if logits.shape[-1] < 2:
            raise ValueError(f"a margin is over other classes: expected scores of at least 2, got {logits.shape}")
        chosen = jax.nn.one_hot(_target(target, logits), logits.shape[-1], dtype=bool)
        return _chosen(logits, target) - jnp.max(jnp.where(chosen, -jnp.inf, logits), axis=-1)

    return score


def similarity(encode: Callable[[Inputs], Float[Array, "batch dim"]], vectors: Float[Array, "batch dim"]) -> Score:
    """``cos(encode(x), v)``: the similarity of each example's embedding to a vector, [batch, dim] or [dim].

    A zero embedding or vector has similarity 0.
    """

    def score(inputs: Inputs) -> Array:
        embeddings = encode(inputs)
        if embeddings.ndim != 2 or vectors.shape[-1] != embeddings.shape[-1]:
            raise ValueError(
                f"encode must give [batch, {vectors.shape[-1]}], the width of the vectors: got {embeddings.shape}"
            )
        return jnp.sum(_unit(embeddings) * _unit(jnp.broadcast_to(vectors, embeddings.shape)), axis=-1)

    return score


def layer_value(
    f: Callable[[Inputs], Any], name: str, select: Callable[[Array], Float[Array, " batch"]]
) -> Callable[[Inputs], Float[Array, " batch"]]:
    """A named activation inside `f` as the score: ``select(activation)`` gives one number per example.

    ``layer_value(model, "layer_output", lambda h: h[3, :, 0, 17])``: unit 17 at the first token after layer 3 (the
    leading axis is that of the scan over layers, see `jaxcore.transforms.capture`).
    """
    run = capture(f, name)
    return lambda inputs: select(jnp.asarray(run(inputs)[1][name]))


def _unit(vectors: Array) -> Array:
    squares = jnp.sum(vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32)) ** 2, axis=-1, keepdims=True)
    return jnp.where(squares > 0, vectors * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)


def _class_scores(predict: Predict, inputs: Inputs) -> Array:
    logits = predict(inputs)
    if getattr(logits, "ndim", None) != 2:
        raise ValueError(
            f"predict must return class scores [batch, classes]: got {getattr(logits, 'shape', type(logits).__name__)}"
        )
    return logits


def _chosen(values: Array, target: Target, name: str = "target") -> Array:
    return jnp.take_along_axis(values, _target(target, values, name)[:, None], axis=-1)[:, 0]


def _target(target: Target, values: Array, name: str = "target") -> Array:
    """The target as [batch]; ValueError if it is out of range (checked where its value is known)."""
    batch, classes = values.shape
    given: Any = target if isinstance(target, jax.core.Tracer) else np.asarray(target)
    if given.shape not in {(), (batch,)} or not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be one class or one per example, an integer [{batch}]: got {given.dtype}{list(given.shape)}"
        )
    if isinstance(given, np.ndarray) and given.size and (given.min() < 0 or given.max() >= classes):
        outside = given[(given < 0) | (given >= classes)].ravel()[0]
        raise ValueError(f"{name} {outside} is out of range: the model has {classes} classes, 0 to {classes - 1}")
    return jnp.broadcast_to(jnp.asarray(given), (batch,))
