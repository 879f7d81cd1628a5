"""Eager calls that compile once: a program is kept under what it computes, not under the function it was traced from.

Attribution methods make their functions anew in every call (they close over the inputs, the score and its parameters),
so that `jax.jit` would compile anew too. Here every call traces its function, which is quick, and looks the program up
by its text. Arrays that the function closes over are arguments of the program: whatever has changed since the last call
(a model's parameters, a Python option) counts as it is now, and a program that is kept holds no array of its callers.
"""

import collections
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxcore.transforms.held_arrays import bring_out_arrays, text_tells_all

MAX_PROGRAMS = 128
"""Programs kept; the least recently used one is dropped first."""


def run_compiled(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` as one compiled program, compiled once for all calls that compute the same.

    Inside a transformation it is ``jax.jit(function)(*args)``: the program is then part of a larger one.

    Args:
        function: any function that JAX can trace.
        args: pytrees of arrays.
    """
    call = trace_call(function, *args)
    if call.is_eager:
        call = call.with_arrays_as_operands()
        results = kept_executable(call, call.operands)(*call.operands)
    else:
        results = jax.jit(call.function)(*call.operands)
    return jax.tree.unflatten(call.structure, results)


@dataclasses.dataclass(frozen=True)
class TracedCall:
    """A call of a Python function, as the jaxpr of its arguments' leaves."""

    closed: Any
    arguments: list[Any]
    structure: Any
    """Of the result."""

    @property
    def operands(self) -> list[Any]:
        """What the Python function closed over, then its arguments."""
        return [*self.closed.consts, *self.arguments]

    @property
    def is_eager(self) -> bool:
        """Whether the operands have values: no transformation (jit, grad, vmap) is under way."""
        # Inside jit a new constant is a tracer, even where no operand is one.
        return not any(isinstance(value, jax.core.Tracer) for value in (*self.operands, jnp.zeros(())))

    def function(self, *operands: Any) -> list[Any]:
        """The leaves of the result."""
        jaxpr, count = getattr(self.closed, "jaxpr", self.closed), len(self.closed.consts)  # one class from jax 0.12
        return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, operands[:count]))(*operands[count:])

    def with_arrays_as_operands(self) -> "TracedCall":
        """The same call, with what jits inside the function close over among the operands too."""
        return dataclasses.replace(self, closed=bring_out_arrays(self.closed, self.arguments))


def trace_call(function: Callable[..., Any], *args: Any) -> TracedCall:
    """Trace ``function(*args)``; arguments may be `jax.ShapeDtypeStruct`."""
    # A function that jax has not met: of one that it has, it would return the jaxpr of the first call.
    closed, result = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)
    return TracedCall(closed, jax.tree.leaves(args), jax.tree.structure(result))


def kept_executable(call: TracedCall, operands: Sequence[Any], **compiler_options: Any) -> Any:
    """The `jax.stages.Compiled` of ``call.function(*operands)``, that of an equal earlier call if there was one.

    Operands may be described (`jax.ShapeDtypeStruct`) instead of given.
    """
    lowered = jax.jit(call.function).lower(*operands)
    if not text_tells_all(call.closed):
        return lowered.compile(compiler_options)
    key = _key(call, operands, lowered), tuple(sorted(compiler_options.items()))
    with _lock:
        executable = _kept.pop(key, None)
    executable = lowered.compile(compiler_options) if executable is None else executable
    with _lock:
        _kept[key] = executable  # the last is the one used last
        while len(_kept) > MAX_PROGRAMS:
            _kept.popitem(last=False)
    return executable


_kept: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
_lock = threading.Lock()


def _key(call: TracedCall, operands: Sequence[Any], lowered: Any) -> Hashable:
    """Equal for two calls only if the program of either may run with the operands of the other."""
    types = (*call.closed.in_avals, *call.closed.out_avals)  # weak types are not in the text
    places = tuple(getattr(operand, "sharding", None) for operand in operands)
    return hashlib.sha256(lowered.as_text().encode()).digest(), types, places
