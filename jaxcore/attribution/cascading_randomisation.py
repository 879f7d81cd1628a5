"""The sanity check of explanations: randomise a model's parameters from the top down, and see the explanation change.

An explanation that stays as it was when the model has forgotten what it learnt does not explain the model.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxcore.attribution.agreement import Measure, spearman

ParameterPath: TypeAlias = str | tuple[str, int]
"""A subtree, "params/pooler", or, where layers are stacked, one entry of its leading axis: ("params/layers", 11)."""


class RandomisationCheck(NamedTuple):
    """Agreement with the original explanation after each stage: [stages, batch], stage s having randomised
    ``paths[: s + 1]``; NaN where the measure is undefined (an explanation became constant)."""

    paths: tuple[ParameterPath, ...]
    agreement: Float[Array, "stages batch"]


def cascading_randomisation(
    explain: Callable[[Any], Float[Array, "batch ..."]],
    params: Any,
    fresh: Any,
    paths: Sequence[ParameterPath],
    *,
    mask: Bool[Array, "batch time"] | None = None,
    measure: Measure = spearman,
) -> RandomisationCheck:
    """Rank correlation of explanations with the original as parameters are randomised, one path more at each stage.

    Stages run one after the other on the host, through one compiled program if `explain` is jitted; there is one copy
    of randomised parameters at a time, so that memory does not grow with the number of stages.

    Args:
        explain: params -> token scores [batch, time], or attributions [batch, ...] of any shape, compared flat. For
            methods whose sign means nothing let it return magnitudes.
        params: the trained parameters.
        fresh: untrained parameters of the same structure and shapes: the model's own initialisation with another key,
            or `redrawn_parameters`.
        paths: from the output down, as in ``["params/pooler", ("params/layers", 1), ("params/layers", 0),
            "params/embeddings"]``.
        mask: True at tokens; padding is not compared.
        measure: any of `jaxcore.attribution.agreement`.

    Raises:
        ValueError: as `cascaded_parameters`; explanations that are not [batch, ...], or whose leading axes are not the
            mask's.

    Source: Adebayo et al. 2018, model parameter randomisation test (cascading).
    """
    stages = cascaded_parameters(params, fresh, paths)  # a wrong path is reported here, before any work
    original, tokens = _flat(explain(params), mask)

    def agreement(randomised: Any) -> Array:
        return measure(original, _flat(explain(randomised), mask)[0], tokens)

    # `map`, because the variable of a loop would keep a stage's parameters while the next ones are made.
    return RandomisationCheck(tuple(paths), jnp.stack(list(map(agreement, stages))))


def cascaded_parameters(params: Any, fresh: Any, paths: Sequence[ParameterPath]) -> Iterator[Any]:
    """The parameters with the first, the first two, ... all of `paths` taken from `fresh`.

    Each stage is made when it is asked for, from `params` and `fresh`; the iterator keeps none.

    Raises:
        ValueError: when called: no paths, one that selects nothing (the message lists what there is) or an entry that
            is not there; `fresh` of another structure or other shapes than `params`.
    """
    if not paths:
        raise ValueError("paths name no parameters: give subtrees from the output down")
    _check_alike(params, fresh)
    selections = [_selected(params, path) for path in paths]
    return (_replaced(params, fresh, selections[:stage]) for stage in range(1, len(paths) + 1))


def redrawn_parameters(params: Any, key: PRNGKeyArray) -> Any:
    """Every array redrawn from a normal distribution of its own mean and standard deviation, independently.

    For models whose initialisation is not at hand; arrays that are constant (unit scales, zero biases) stay.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def redrawn(leaf: Array, leaf_key: Array) -> Array:
        values = jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32))
        noise = jax.random.normal(leaf_key, values.shape, values.dtype)
        return (jnp.mean(values) + jnp.std(values) * noise).astype(leaf.dtype)

    return jax.tree.unflatten(structure, [redrawn(leaf, k) for leaf, k in zip(leaves, keys, strict=True)])


def _selected(params: Any, path: ParameterPath) -> dict[str, int | None]:
    """The names of the arrays under a path, each with the entry of its leading axis, or None for all of it."""
    subtree, entry = path if isinstance(path, tuple) else (path, None)
    shapes = {_name(key_path): jnp.shape(leaf) for key_path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    found = [name for name in shapes if name == subtree or name.startswith(f"{subtree}/")]
    if not found:
        shown = ", ".join(list(shapes)[:12]) + (", ..." if len(shapes) > 12 else "")
        raise ValueError(f"no parameters under {subtree!r}: there are {shown}")
    for name in found:
        length = shapes[name][0] if shapes[name] else 0
        if entry is not None and entry not in range(-length, length):
            raise ValueError(f"{name} has shape {list(shapes[name])}: there is no entry {entry} along its first axis")
    return dict.fromkeys(found, entry)


def _replaced(params: Any, fresh: Any, selections: Sequence[dict[str, int | None]]) -> Any:
    """The parameters with everything that the selections name taken from `fresh`."""

    def choose(key_path: Any, old: Array, new: Array) -> Array:
        name = _name(key_path)
        entries = [selection[name] for selection in selections if name in selection]
        if not entries or None in entries:
            return new if entries else old
        is_new = np.zeros(len(old), bool)
        is_new[np.asarray(entries)] = True
        return jnp.where(is_new.reshape(-1, *(1,) * (old.ndim - 1)), jnp.asarray(new, old.dtype), old)

    return jax.tree_util.tree_map_with_path(choose, params, fresh)


def _check_alike(params: Any, fresh: Any) -> None:
    trained: Any = jax.tree.structure(params)
    given: Any = jax.tree.structure(fresh)
    if trained != given:
        raise ValueError(f"fresh parameters must have the structure of the trained, {trained}: got {given}")
    for (key_path, old), new in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(fresh), strict=True):
        if old.shape != new.shape:
            raise ValueError(f"fresh {_name(key_path)} must be {list(old.shape)}: got {list(new.shape)}")


def _name(key_path: Any) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _flat(explanation: Any, mask: Array | None) -> tuple[Array, Array | None]:
    """An explanation as [batch, values], and the mask of its tokens spread over the values."""
    shape = jnp.shape(explanation)
    if len(shape) < 2 or (mask is not None and shape[:2] != jnp.shape(mask)):
        expected = "[batch, ...]" if mask is None else f"{list(jnp.shape(mask))}, the mask's shape, and more axes"
        raise ValueError(f"explain must return attributions {expected}: got {list(shape)}")
    flat = jnp.reshape(explanation, (shape[0], -1))
    if mask is None:
        return flat, None
    spread = jnp.asarray(mask).astype(bool).reshape(*shape[:2], *(1,) * (len(shape) - 2))
    return flat, jnp.broadcast_to(spread, shape).reshape(flat.shape)
