"""`capture`: a function that also returns its named intermediate values."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
from jax.extend import core
from jaxtyping import Array

from jaxcore.transforms.jaxprs import (
    Loops,
    Outcome,
    Rules,
    Traced,
    activation_name,
    bind,
    evaluate,
    sites,
    trace,
)

Captured: TypeAlias = Array | tuple[Array, ...]
"""The value of a name with one site; for several sites, their values in program order."""


def capture(f: Callable[..., Any], names: str | Iterable[str]) -> Callable[..., tuple[Any, dict[str, Captured]]]:
    """Make `f` also return the values it names with `jax.ad_checkpoint.checkpoint_name`.

        capture(f, names)(*args, **kwargs) == (f(*args, **kwargs), {name: value for name in names})

    The result is an ordinary JAX function: differentiate, vmap, jit and shard it like `f`, whose values,
    gradients and memory behaviour (remat, its policies) it keeps. Wrap it in `jax.jit`: each eager call
    traces anew.

    A value has the shape it has where it is named, with leading axes for what surrounds it, outermost first:

    - scan, fori_loop with a static trip count: the stack over iterations [length, ...]; nested scans
      [outer, inner, ...]. Entry i belongs to slice i of the scanned arrays, also when scanning in reverse.
    - while_loop: the last iteration's value, zeros if there was none (for a name in the condition, the value
      at its last evaluation).
    - cond, switch: the value in the branch taken, zeros where that branch does not have it. Values of
      different branches share a place if their shapes and dtypes agree; otherwise the places follow the
      branch index (for cond, false before true).
    - shard_map: the stack of the devices' local values, one leading axis for each mesh axis over which the
      value varies, in mesh order (`check_vma=False`: for every manual mesh axis).
    - custom_jvp, custom_vjp, custom_vmap: `f`'s own results keep the custom rule. The captured value comes
      from the function's primal code, evaluated beside it, and is differentiated as that code is.
    - a name at several places in the program (a call repeated in Python, `checkpoint_name` of a pytree): a
      tuple in program order. Values that a gradient inside `f` recomputes under remat are not further places.

    Args:
      f: any function that JAX can trace. Arguments that are not arrays reach it unchanged.
      names: the names to capture, or one name.

    Raises:
      ValueError: when called, if a name does not occur in `f` (the message lists those that do), or occurs
        inside a primitive that cannot be entered (for instance a Pallas kernel).
    """
    wanted = _checked(names)

    @functools.wraps(f)
    def captured(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Captured]]:
        traced = trace(f, args, kwargs)
        require_names(traced, wanted, request="capture")
        results, values = _observe(traced.jaxpr, traced.arrays, wanted)
        return traced.assemble(results), values

    return captured


def activation_names(
    f: Callable[..., Any], *args: Any, **kwargs: Any
) -> dict[str, jax.ShapeDtypeStruct | tuple[jax.ShapeDtypeStruct, ...]]:
    """The names that `capture` can deliver from `f(*args, **kwargs)`, with the shapes it would give.

    Nothing is computed; `args` may hold `jax.ShapeDtypeStruct`s. In program order. Names inside primitives
    that cannot be entered are left out.
    """
    traced = trace(f, args, kwargs)
    found = list(sites(traced.jaxpr, _naming(None)))
    hidden = {name for name, obstacle in found if obstacle is not None}
    names = tuple(dict.fromkeys(name for name, _ in found if name not in hidden))
    shapes = jax.eval_shape(lambda *arrays: _observe(traced.jaxpr, arrays, names)[1], *traced.arrays)
    return {name: shapes[name] for name in names}


def require_names(traced: Traced, wanted: Iterable[str], *, request: str) -> None:
    """Raise ValueError if a wanted name does not occur in the traced function."""
    present = dict.fromkeys(name for name, _ in sites(traced.jaxpr, _naming(None)))
    missing = [name for name in wanted if name not in present]
    if missing:
        listed = ", ".join(map(repr, present)) or "none: mark values with jax.ad_checkpoint.checkpoint_name"
        raise ValueError(f"cannot {request} {', '.join(map(repr, missing))}: names that occur are {listed}")


def _checked(names: str | Iterable[str]) -> tuple[str, ...]:
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"an activation's name is a string; got {name!r} of type {type(name).__name__}")
    return tuple(dict.fromkeys(names))


def _naming(wanted: Iterable[str] | None) -> Rules:
    """Rules that record the wanted names (None: every name) and change nothing."""
    chosen = None if wanted is None else frozenset(wanted)

    def label(eqn: core.JaxprEqn) -> str | None:
        name = activation_name(eqn)
        return name if chosen is None or name in chosen else None

    def record(eqn: core.JaxprEqn, operands: Sequence[Any], _: Loops) -> Outcome:
        results = bind(eqn, operands)
        return results, {str(activation_name(eqn)): tuple(results)}

    return Rules(label, record, rewrites=False)


def _observe(jaxpr: Any, arrays: Sequence[Any], names: Iterable[str]) -> tuple[list[Any], dict[str, Captured]]:
    results, records = evaluate(jaxpr, arrays, _naming(names))
    return results, {name: records[name][0] if len(records[name]) == 1 else records[name] for name in names}
