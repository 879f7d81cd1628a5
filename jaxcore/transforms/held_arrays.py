"""Arrays that a program holds inside, brought out to where they are operands.

`jax.make_jaxpr` returns what a function closes over beside the jaxpr, except for what an inner `jax.jit` closes over:
jax leaves that in the inner jaxpr, and in compiled code it becomes a constant. For a model's parameters that means a
copy in the program, and a program that serves no other parameters.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives
from jax.sharding import Sharding

from jaxcore.transforms.jaxprs import Loops, Outcome, Rules, evaluate, sites


def bring_out_arrays(closed: Any, operands: Sequence[Any]) -> Any:
    """The closed jaxpr with all that its inner jits close over among its own `consts`.

    Such a jit is written out in place. One with shardings of its own stays as it is, and so do its arrays.

    Args:
        closed: a closed jaxpr, of a program that is to be run (custom derivatives around such a jit are lost).
        operands: what it takes: arrays or `jax.ShapeDtypeStruct`.
    """

    def label(eqn: core.JaxprEqn) -> str | None:
        return "jit" if _is_plain_jit(eqn) and _holds_arrays(eqn) else None

    def write_out(eqn: core.JaxprEqn, operands: Sequence[Any], loops: Loops) -> Outcome:
        return evaluate(eqn.params["jaxpr"], operands, rules, loops=loops)

    rules = Rules(label, write_out, rewrites=True)
    if not any(True for _ in sites(closed, rules)):
        return closed
    return jax.make_jaxpr(lambda *operands: evaluate(closed, operands, rules)[0])(*operands)


def text_tells_all(closed: Any) -> bool:
    """Whether programs of equal text compute the same: this one calls no function of the host and holds no arrays."""

    def label(eqn: core.JaxprEqn) -> str | None:
        has_literal = any(isinstance(v, core.Literal) and jnp.ndim(v.val) > 0 for v in eqn.invars)
        return "untold" if has_literal or "callback" in eqn.primitive.name or _has_consts(eqn) else None

    effects = getattr(closed, "jaxpr", closed).effects
    return not effects and not any(True for _ in sites(closed, Rules(label, _only_sought, rewrites=True)))


def _holds_arrays(eqn: core.JaxprEqn) -> bool:
    def label(inner: core.JaxprEqn) -> str | None:
        return "holder" if _has_consts(inner) else None

    inside = sites(eqn.params["jaxpr"], Rules(label, _only_sought, rewrites=True))
    return _has_consts(eqn) or any(True for _ in inside)


def _has_consts(eqn: core.JaxprEqn) -> bool:
    return eqn.primitive is primitives.jit_p and bool(eqn.params["jaxpr"].consts)


def _is_plain_jit(eqn: core.JaxprEqn) -> bool:
    if eqn.primitive is not primitives.jit_p:
        return False
    shardings = (*eqn.params["in_shardings"], *eqn.params["out_shardings"])
    return not any(isinstance(sharding, Sharding) for sharding in shardings)


def _only_sought(*_: Any) -> Outcome:
    raise NotImplementedError("these equations are looked for, never evaluated")
