"""What every attribution method asks of its score, inputs and baseline; checked once, before compilation."""

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Inputs: TypeAlias = Any
"""A pytree of floating-point arrays [batch, ...]: one array, or several (two texts' embeddings, say)."""

Score: TypeAlias = Callable[[Inputs], Float[Array, " batch"]]
"""Maps inputs to one number per example; example b's number may depend on example b only."""

Baseline: TypeAlias = Any
"""A number for all leaves, or a pytree like the inputs whose leaves broadcast against theirs."""


def check_score(score: Score, inputs: Inputs) -> int:
    """The batch size; ValueError unless `inputs` is a float pytree of one batch and `score` gives [batch]."""
    batch = check_inputs(inputs)
    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    result = jax.eval_shape(score, specs)
    shape = getattr(result, "shape", None)
    if shape != (batch,):
        given = f"shape {shape}" if shape is not None else f"a {type(result).__name__}"
        raise ValueError(
            f"score must return one number per example, [{batch}]: got {given} "
            "(jaxcore.attribution.scores turns class scores into such a score)"
        )
    return batch


def check_inputs(inputs: Inputs) -> int:
    """The batch size; ValueError unless every leaf is a floating-point array [batch, ...]."""
    leaves = jax.tree.leaves(inputs)
    if not leaves:
        raise ValueError("inputs hold no arrays: expected a pytree of arrays [batch, ...]")
    for leaf in leaves:
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise ValueError(f"inputs must be arrays [batch, ...]: got a {type(leaf).__name__}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"inputs must be floating point (attribute embeddings, not token ids): got {leaf.dtype}")
        if leaf.ndim == 0:
            raise ValueError("inputs must be arrays [batch, ...]: got a scalar")
    sizes = sorted({leaf.shape[0] for leaf in leaves})
    if len(sizes) > 1:
        raise ValueError(f"all inputs must have one batch size: got {sizes}")
    return sizes[0]


def broadcast_baseline(baseline: Baseline, inputs: Inputs) -> Inputs:
    """The baseline as a pytree of the inputs' structure, shapes and dtypes; ValueError where it does not broadcast."""
    structure: Any = jax.tree.structure(inputs)
    if isinstance(baseline, int | float | jax.Array | np.ndarray | np.generic) and jnp.ndim(baseline) == 0:
        baseline = jax.tree.unflatten(structure, [baseline] * structure.num_leaves)
    if jax.tree.structure(baseline) != structure:
        raise ValueError(
            f"baseline must be a number or have the structure of the inputs, {structure}: "
            f"got {jax.tree.structure(baseline)}"
        )
    return jax.tree.map(_broadcast, baseline, inputs)


def _broadcast(baseline: Any, inputs: Array) -> Array:
    try:
        return jnp.broadcast_to(jnp.asarray(baseline, inputs.dtype), inputs.shape)
    except ValueError as error:
        raise ValueError(
            f"baseline of shape {jnp.shape(baseline)} does not broadcast to inputs of shape {inputs.shape}"
        ) from error


def checked_mask(mask: Any, shape: tuple[int, ...]) -> Bool[Array, "batch time"]:
    """The mask as booleans of this shape, all True for None; ValueError if it has another."""
    if mask is None:
        return jnp.ones(shape, bool)
    if np.shape(mask) != tuple(shape):
        raise ValueError(f"mask must be {list(shape)}, one entry per token: got {list(np.shape(mask))}")
    return jnp.asarray(mask).astype(bool)


def check_positive(**counts: int | None) -> None:
    """ValueError for a count (num_steps, num_samples, chunk_size; None = not given) below 1 or not a whole number."""
    for name, count in counts.items():
        if count is None:
            continue
        try:
            whole = operator.index(count)
        except TypeError as error:
            raise ValueError(f"{name} must be a whole number: got {count!r}") from error
        if whole < 1:
            raise ValueError(f"{name} must be at least 1: got {count}")


def check_like_inputs(attributions: Inputs, inputs: Inputs) -> None:
    """ValueError unless the attributions have the structure and shapes of the inputs."""
    expected, given = (
        (jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (inputs, attributions)
    )
    if expected != given:
        shapes = [jax.tree.map(lambda leaf: list(jnp.shape(leaf)), tree) for tree in (inputs, attributions)]
        raise ValueError(f"attributions must have the structure and shapes of the inputs, {shapes[0]}: got {shapes[1]}")


def check_features_left(counts: np.ndarray) -> None:
    """ValueError for an example without features; counts [batch] is how many each has."""
    rows = np.flatnonzero(counts == 0)
    if rows.size:
        raise ValueError(
            f"the mask leaves nothing to attribute in {rows.size} of {len(counts)} examples (rows {_shown(rows)}): "
            "every example needs at least one feature"
        )


def is_known(array: Any) -> bool:
    """Whether the values can be looked at: not a tracer, and not spread over other hosts."""
    return not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)


def checked_finite(attributions: Inputs, method: str) -> Inputs:
    """The attributions; ValueError if any is not finite. Under a transformation (jit, grad) they pass unchecked."""
    leaves = jax.tree.leaves(attributions)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return attributions
    broken = [~np.asarray(jax.jit(_finite_rows)(leaf)) for leaf in leaves]
    rows = np.flatnonzero(np.logical_or.reduce(broken))
    if rows.size:
        raise ValueError(
            f"{method} met values that are not finite in {rows.size} of {len(broken[0])} examples "
            f"(rows {_shown(rows)}): "
            "the score or its gradient is NaN or infinite there; look at score(inputs) and score(baseline)"
        )
    return attributions


def _finite_rows(leaf: Array) -> Array:
    return jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))


def _shown(rows: np.ndarray) -> str:
    return ", ".join(map(str, rows[:8])) + (", ..." if rows.size > 8 else "")


def accumulation_dtype(leaf: Array) -> Any:
    """float32, or float64 where the input is: what sums over steps and samples accumulate in."""
    return jnp.promote_types(leaf.dtype, jnp.float32)
