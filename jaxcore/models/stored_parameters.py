"""Parameters out of stored tensors, each device's part straight from the file, and stored tensors out of parameters."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcore.distributed import tree_shardings
from jaxcore.models.checkpoint_files import StoredTensor, TensorReader, check_floating
from jaxcore.models.parameter_layout import ParameterLayout

Shardings = Any
"""A mesh, which the parameters' logical axes are mapped to by `jaxcore.distributed`'s rules; one Sharding for all; a
function from path ("layers/mlp_in/kernel") to Sharding; or a tree of them."""


def check_tensors(
    layouts: Mapping[str, ParameterLayout],
    tensors: Mapping[str, StoredTensor],
    unexpected: list[str],
    *,
    directory: pathlib.Path,
    described: str,
    hint: Callable[[str], str] = lambda name: "",
) -> None:
    """Raise ValueError unless every tensor that the layouts need is stored, with its shape, in floating point.

    Args:
        layouts: of the parameters, by path.
        tensors: what is stored, by canonical name.
        unexpected: names among these that the model has no use for; there must be none.
        directory, described: where the tensors lie and what model they should be, for messages.
        hint: how to mend a missing tensor of this name.
    """
    expected = expected_shapes(layouts)
    if missing := [name for name in expected if name not in tensors]:
        raise ValueError(
            f"{directory}: missing tensor {missing[0]} of shape {expected[missing[0]]} ({len(missing)} missing of the "
            f"{len(expected)} that a {described} has: {_some(missing)}){hint(missing[0])}"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{tensors[name].file}: tensor {tensors[name].name} has shape {tensors[name].shape}, "
                f"expected {shape} for a {described}"
            )
        check_floating(tensors[name])
    if unexpected:
        first = tensors[unexpected[0]]
        raise ValueError(
            f"{first.file}: unexpected tensor {first.name} ({len(unexpected)} in all: {_some(unexpected)}); "
            f"a {described} has {len(expected)} tensors: {_some(list(expected))}"
        )


def expected_shapes(layouts: Mapping[str, ParameterLayout]) -> dict[str, tuple[int, ...]]:
    """Shape of every stored tensor that the parameters need, by name."""
    return {piece.tensor: piece.tensor_shape(layout.shape) for layout in layouts.values() for piece in layout.pieces}


def _some(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def sharding_of(sharding: Shardings | None, layouts: Mapping[str, Any], model: nn.Module) -> Callable[[str], Any]:
    """A function from parameter path to sharding (None = default device), whatever form the caller gave."""
    if isinstance(sharding, Mesh):
        boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        sharding = tree_shardings(boxed, sharding)
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return lambda path: sharding
    if callable(sharding):
        return sharding
    by_path = flatten_paths(sharding)
    if wrong := sorted(set(layouts) ^ set(by_path)):
        raise ValueError(f"sharding must have the parameters' tree: {wrong[0]} is in only one of the two")
    return by_path.__getitem__


def read_parameter(reader: TensorReader, layout: ParameterLayout, tensors, dtype: np.dtype, sharding) -> jax.Array:
    """Assemble one parameter, each device's part straight from the file."""

    def read(index: Any) -> np.ndarray:
        bounds = [at.indices(size)[:2] for at, size in zip(index, layout.shape, strict=True)]
        part = np.empty([stop - start for start, stop in bounds], dtype)
        for piece in layout.pieces:
            target = piece.target(layout.shape, bounds)
            if target is not None:
                read_tensor = functools.partial(reader.read, tensors[piece.tensor])
                part[target] = piece.read(read_tensor, layout.shape, bounds)
        return part

    if sharding is None:
        return jnp.asarray(read((slice(None),) * len(layout.shape)))
    return jax.make_array_from_callback(layout.shape, sharding, read)


def stored_tensors(params: Mapping[str, Any], layouts: Mapping[str, ParameterLayout]) -> dict[str, np.ndarray]:
    """Parameters as stored tensors. ValueError, naming the parameter, when they do not fit the layouts."""
    leaves = flatten_paths(params)
    if wrong := sorted(set(layouts) ^ set(leaves)):
        where = "missing from" if wrong[0] in layouts else "unexpected in"
        raise ValueError(f"{wrong[0]} is {where} params (pass variables['params'] of the config's own model)")
    tensors = {}
    for path, layout in layouts.items():
        leaf = leaves[path]
        if leaf.shape != layout.shape:
            raise ValueError(f"parameter {path} has shape {leaf.shape}, expected {layout.shape}")
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            raise ValueError(f"parameter {path} is spread over processes: gather it (replicate) before saving")
        values = np.asarray(leaf)
        for piece in layout.pieces:
            tensors[piece.tensor] = piece.to_tensor(values)
    return tensors


def flatten_paths(tree: Any) -> dict[str, Any]:
    """Leaves by path, "layers/mlp_in/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest_paths(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dictionary that `flatten_paths` flattens."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
