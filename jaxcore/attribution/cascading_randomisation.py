"""The sanity check of explanations: randomise a model's parameters from the top down, and see the explanation change.

An explanation that stays as it was when the model has forgotten what it learnt does not explain the model.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
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

    Stages run one after the other on the host, through one compiled program if `explain` is jitted.

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
    stages = list(cascaded_parameters(params, fresh, paths))  # so that a wrong path is reported before any work
    original, tokens = _flat(explain(params), mask)
    agreement = [measure(original, _flat(explain(randomised), mask)[0], tokens) for randomised in stages]
    return RandomisationCheck(tuple(paths), jnp.stack(agreement))


def cascaded_parameters(params: Any, fresh: Any, paths: Sequence[ParameterPath]) -> Iterator[Any]:
    """The parameters with the first, the first two, ... all of `paths` taken from `fresh`.

    Raises:
        ValueError: no paths, one that selects nothing (the message lists what there is) or an entry that is not there;
            `fresh` of another structure or other shapes than `params`.
    """
    if not paths:
        raise ValueError("paths name no parameters: give subtrees from the output down")
    _check_alike(params, fresh)
    for path in paths:
        params = _replaced(params, fresh, path)
        yield params


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


def _replaced(params: Any, fresh: Any, path: ParameterPath) -> Any:
    subtree, entry = path if isinstance(path, tuple) else (path, None)
    selected = []

    def choose(key_path: Any, old: Array, new: Array) -> Array:
        name = _name(key_path)
        if name != subtree and not name.startswith(f"{subtree}/"):
            return old
        if entry is not None and (old.ndim == 0 or not -old.shape[0] <= entry < old.shape[0]):
            raise ValueError(f"{name} has shape {list(old.shape)}: there is no entry {entry} along its first axis")
        selected.append(name)
        return new if entry is None else jnp.asarray(old).at[entry].set(new[entry])

    replaced = jax.tree_util.tree_map_with_path(choose, params, fresh)
    if not selected:
        names = [_name(key_path) for key_path, _ in jax.tree_util.tree_leaves_with_path(params)]
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise ValueError(f"no parameters under {subtree!r}: there are {shown}")
    return replaced


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
