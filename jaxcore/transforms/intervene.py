"""`intervene`: a function run with some of its named intermediate values edited."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from jaxcore.transforms.capture import require_names
from jaxcore.transforms.jaxprs import (
    Loops,
    Outcome,
    Rules,
    activation_name,
    bind,
    evaluate,
    trace,
    typed_like,
)

Edit: TypeAlias = Callable[..., Array] | Array
"""value -> value (with a keyword-only `step` for the loop index), or the array that replaces the value."""


def intervene(f: Callable[..., Any], edits: Mapping[str, Edit]) -> Callable[..., Any]:
    """Make `f` use `edits[name](value)` wherever it names a value with `jax.ad_checkpoint.checkpoint_name`.

        intervene(lambda x: h(checkpoint_name(g(x), "a")), {"a": e})(x) == h(e(g(x)))

    The result is an ordinary JAX function, differentiable with respect to its arguments and to whatever an
    edit closes over. So the gradient with respect to an activation, which layer attribution needs, is

        jax.grad(lambda d: intervene(f, {"a": lambda a: a + d})(x))(zeros)

    Every place that carries the name is edited. Inside a scan the edit is traced once and runs in every
    iteration; an edit with a keyword-only parameter `step` gets the index of the loop around the value (a
    tuple for nested loops, outermost first), as in "layer 3 only": `lambda h, *, step: jnp.where(step == 3,
    new, h)`. For scan it is the index into the scanned arrays (so it agrees with `capture`'s stack, in
    reverse too), for while_loop the number of iterations before. Outside loops `step` is not passed, so it
    needs a default there.

    The edit sees what the code at that place sees: one example under vmap, the device's local value under
    shard_map. An edited value keeps its name: remat policies save it, `capture(intervene(f, ...))` returns
    it, and `intervene(intervene(f, {"a": e1}), {"a": e2})` applies e1, then e2.

    A custom_jvp, custom_vjp or custom_vmap function with an edited value inside is no longer the function
    that its rule describes: its primal code with the edit is evaluated, differentiated and batched. One
    without keeps its rule. If `f` itself takes a gradient, it is edited as the program it is: the values
    used, saved and recomputed in it. To differentiate the edited function, write `grad(intervene(f, edits))`.

    Args:
      f: any function that JAX can trace. Arguments that are not arrays reach it unchanged.
      edits: for each name a function value -> value, or an array that replaces the value.

    Raises:
      ValueError: if an edit is neither; when called, if a name does not occur in `f` (the message lists those
        that do) or lies inside a primitive that cannot be entered, or if an edit changes a value's shape or
        dtype.
    """
    functions = {name: _as_function(name, edit) for name, edit in edits.items()}

    def label(eqn: core.JaxprEqn) -> str | None:
        name = activation_name(eqn)
        return name if name in functions else None

    def apply(eqn: core.JaxprEqn, operands: Sequence[Any], loops: Loops) -> Outcome:
        name = str(activation_name(eqn))
        edited = _conforming(name, functions[name](operands[0], loops), operands[0])
        return bind(eqn, [edited]), {}

    rules = Rules(label, apply, rewrites=True)

    @functools.wraps(f)
    def edited(*args: Any, **kwargs: Any) -> Any:
        traced = trace(f, args, kwargs)
        require_names(traced, functions, request="edit")
        results, _ = evaluate(traced.jaxpr, traced.arrays, rules)
        return traced.assemble(results)

    return edited


def _as_function(name: str, edit: Edit) -> Callable[[Any, Loops], Any]:
    """The edit as (value, loop indices) -> value."""
    if not callable(edit):
        if not isinstance(edit, jax.Array | np.ndarray | np.generic):
            raise ValueError(f"the edit of {name!r} must be a function or an array; got {type(edit).__name__}")
        return lambda value, loops: edit
    parameter = _step_parameter(edit)
    if parameter is None:
        return lambda value, loops: edit(value)

    def stepped(value: Any, loops: Loops) -> Any:
        if loops:
            return edit(value, step=loops[0] if len(loops) == 1 else loops)
        if parameter.default is inspect.Parameter.empty:
            raise ValueError(
                f"the edit of {name!r} takes `step`, but {name!r} occurs outside any loop: give it a default"
            )
        return edit(value)

    return stepped


def _step_parameter(edit: Callable[..., Any]) -> inspect.Parameter | None:
    if isinstance(edit, functools.partial) and "step" in edit.keywords:
        return None  # already decided by whoever built the partial
    try:
        parameter = inspect.signature(edit).parameters.get("step")
    except (TypeError, ValueError):  # a builtin without a signature
        return None
    is_keyword_only = parameter is not None and parameter.kind is inspect.Parameter.KEYWORD_ONLY
    return parameter if is_keyword_only else None


def _conforming(name: str, edited: Any, value: Any) -> Any:
    """The edited value as an array that can stand in for `value`."""
    edited = jnp.asarray(edited)
    if (edited.shape, edited.dtype) != (value.shape, value.dtype):
        raise ValueError(
            f"the edit of {name!r} gives {edited.dtype}{list(edited.shape)} "
            f"where the value is {value.dtype}{list(value.shape)}; shape and dtype must stay the same"
        )
    return typed_like(edited, value)
