"""Evaluate a jaxpr with rules of one's own, descending into the primitives that hold other jaxprs.

This is the only file that knows primitive names, their parameters, and how these differ between jax 0.10 and
0.12. An interpretation is a `Rules`: which equations it handles and what it does there. `evaluate` binds
every other equation unchanged. An equation that merely contains handled ones (jit, scan, while, cond, remat,
shard_map, custom derivatives) is entered: rebuilt with jax's public function of that name around a recursive
`evaluate`, so that loops stay loops, remat stays remat, and any outer transformation applies as usual. An
equation that contains none is bound as it is and keeps its custom rules. Any other primitive that holds a
handled equation is an error, never silently skipped.

Values need not be arrays: rules with a `lift` may wrap some of them in a pytree (a value beside a reference,
say). Equations without a wrapped operand are then bound as they are, all others are handled or entered.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

Records = dict[str, tuple[Any, ...]]
"""What the rules reported, by label; one entry per site, in program order."""

Outcome = tuple[list[Any], Records]
"""Results of an equation or jaxpr, and what was recorded on the way."""

Loops = tuple[Any, ...]
"""The traced index of every loop around an equation, outermost first."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """One way to interpret a jaxpr.

    label: names an equation that `apply` handles, and returns None for every other equation.
    apply: (equation, operands, loops) -> (results, records). `loops` are the indices of the enclosing loops.
    rewrites: whether `apply` changes values or derivatives. If so, a custom derivative, batching or composite
        rule around a handled equation describes the wrong function and is replaced by the interpretation of
        its body; gradient code inside `f` that recomputes an activation (remat) is interpreted too. If not,
        the rule stays in force for the function's results, its body is interpreted beside it for the records
        alone, and recomputation is not visited.
    lift: for rules whose values may be pytrees instead of arrays: (array or pytree) -> pytree, in the form in
        which it crosses into and out of loops, branches and remat, where all carries and results must keep
        one structure. `label` must then name every equation that `enters` does not; a jit is evaluated in
        place.
    """

    label: Callable[[core.JaxprEqn], str | None]
    apply: Callable[[core.JaxprEqn, Sequence[Any], Loops], Outcome]
    rewrites: bool
    lift: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Traced:
    """A call of a Python function as a jaxpr: `assemble(evaluate(jaxpr, arrays, ...)[0])` is its result."""

    jaxpr: core.ClosedJaxpr
    arrays: list[Any]
    assemble: Callable[[Sequence[Any]], Any]


def trace(f: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Traced:
    """Trace `f(*args, **kwargs)` to a jaxpr.

    Arrays (jax, numpy, ShapeDtypeStruct) anywhere in the arguments are traced; every other leaf (Python
    numbers, flags, strings, modules) reaches `f` as it is. Results that are not jax arrays are returned as
    they are.
    """
    leaves, structure = jax.tree.flatten((tuple(args), dict(kwargs)))
    is_array = [isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct) for leaf in leaves]
    arrays = [leaf for leaf, traced in zip(leaves, is_array, strict=True) if traced]
    outputs: list[Any] = []
    output_structure: Any = None

    def flat(*arrays: Any) -> list[Any]:
        nonlocal outputs, output_structure
        remaining = iter(arrays)
        merged = [next(remaining) if traced else leaf for leaf, traced in zip(leaves, is_array, strict=True)]
        inner_args, inner_kwargs = jax.tree.unflatten(structure, merged)
        results, output_structure = jax.tree.flatten(f(*inner_args, **inner_kwargs))
        outputs = [_COMPUTED if isinstance(leaf, jax.Array) else leaf for leaf in results]
        return [leaf for leaf in results if isinstance(leaf, jax.Array)]

    jaxpr = jax.make_jaxpr(flat)(*arrays)

    def assemble(results: Sequence[Any]) -> Any:
        remaining = iter(results)
        merged = [jnp.asarray(next(remaining)) if leaf is _COMPUTED else leaf for leaf in outputs]
        return jax.tree.unflatten(output_structure, merged)

    return Traced(jaxpr, arrays, assemble)


_COMPUTED = object()  # stands among the outputs for a leaf that the jaxpr computes


def sites(jaxpr: Any, rules: Rules) -> Iterator[tuple[str, str | None]]:
    """The handled equations in and below `jaxpr`, in program order: (label, obstacle).

    The obstacle is a primitive around the equation that cannot be entered, None where `evaluate` reaches it.
    """
    for eqn in _opened(jaxpr)[0].eqns:
        label = rules.label(eqn)
        if label is not None:
            yield label, None
            continue
        primitive = eqn.primitive.name
        for inner in _inner_jaxprs(eqn, rules):
            for inner_label, obstacle in sites(inner, rules):
                yield inner_label, obstacle if primitive in _ENTER else primitive


def evaluate(jaxpr: Any, args: Sequence[Any], rules: Rules, *, loops: Loops = ()) -> Outcome:
    """Evaluate `jaxpr` on `args` under `rules`: its results, and what the rules recorded.

    Raises ValueError where a handled equation lies inside a primitive that cannot be entered.
    """
    jaxpr, consts = _opened(jaxpr)
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    last_use = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if isinstance(v, core.Var)}
    last_use |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if isinstance(v, core.Var)}
    records: Records = {}

    def read(atom: Any) -> Any:
        return values[atom] if isinstance(atom, core.Var) else atom.val

    for i, eqn in enumerate(jaxpr.eqns):
        with _context(eqn):
            results, found = _interpret(eqn, [read(v) for v in eqn.invars], rules, loops)
        values.update(zip(eqn.outvars, results, strict=True))
        for label, entries in found.items():
            records[label] = records.get(label, ()) + entries
        for v in (*eqn.invars, *eqn.outvars):  # an eager evaluation must not keep every intermediate alive
            if isinstance(v, core.Var) and last_use.get(v, i) == i:
                values.pop(v, None)
    return [read(v) for v in jaxpr.outvars], records


def enters(eqn: core.JaxprEqn) -> bool:
    """Whether `evaluate` looks inside the equation's primitive for equations to handle."""
    return eqn.primitive.name in _ENTER


def result_type(eqn: core.JaxprEqn) -> Any:
    """Shape and dtype of the equation's first result."""
    return eqn.outvars[0].aval


def activation_name(eqn: core.JaxprEqn) -> str | None:
    """The name that the equation gives its value by `jax.ad_checkpoint.checkpoint_name`, if it is such."""
    return eqn.params["name"] if eqn.primitive is primitives.name_p else None


def bind(eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Apply the equation's own primitive: what an ordinary evaluation does."""
    results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(results) if eqn.primitive.multiple_results else [results]


def varying_axes(value: Any) -> frozenset[str]:
    """Mesh axes over which a value inside `jax.shard_map` is known to differ between devices."""
    type_ = value if isinstance(value, jax.ShapeDtypeStruct) else jax.typeof(value)
    manual = getattr(type_, "manual_axis_type", None)
    return frozenset(getattr(type_, "vma", None) or ()) if manual is None else frozenset(manual.varying)


def typed_like(value: Any, like: Any) -> Any:
    """The same numbers, with the sharding part of the type of `like` (an array or a ShapeDtypeStruct).

    That is: sharded alike over the mesh's Explicit axes, and marked as varying over the same manual axes,
    which jax requires of both branches of a cond, of a loop's carry, and of a value that takes another's
    place.
    """
    missing = tuple(sorted(varying_axes(like) - varying_axes(value)))
    if missing:
        value = jax.lax.pcast(value, missing, to="varying")
    sharding = like.sharding if isinstance(like, jax.ShapeDtypeStruct) else jax.typeof(like).sharding
    is_explicit = isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types
    return jax.sharding.reshard(value, sharding) if is_explicit else value


def _interpret(eqn: core.JaxprEqn, operands: Sequence[Any], rules: Rules, loops: Loops) -> Outcome:
    if rules.lift is not None and jax.tree_util.all_leaves(operands):
        known = _known_number(eqn, operands)
        return bind(eqn, operands) if known is None else [known], {}
    if rules.label(eqn) is not None:
        return rules.apply(eqn, operands, loops)
    if rules.lift is not None:
        into = _enter_in_place if eqn.primitive is primitives.jit_p else _ENTER[eqn.primitive.name]
        return into(eqn, operands, rules, loops)
    handled = [label for inner in _inner_jaxprs(eqn, rules) for label, _ in sites(inner, rules)]
    if not handled:
        return bind(eqn, operands), {}
    enter = _ENTER.get(eqn.primitive.name)
    if enter is None:
        raise ValueError(
            f"{handled[0]!r} lies inside the primitive {eqn.primitive.name!r}, which cannot be entered "
            f"(these can: {', '.join(sorted(_ENTER))}); move it out of that call, or do not ask for it"
        )
    return enter(eqn, operands, rules, loops)


def _known_number(eqn: core.JaxprEqn, operands: Sequence[Any]) -> np.ndarray | None:
    """A literal number, converted or broadcast: as a numpy array (of one element in memory), which rules can read
    while the program is traced, as they cannot read what is bound under jit."""
    is_number = len(operands) == 1 and np.ndim(operands[0]) == 0 and isinstance(operands[0], _NUMBERS)
    if not is_number or eqn.primitive.name not in ("convert_element_type", "broadcast_in_dim"):
        return None
    type_ = result_type(eqn)
    if eqn.params.get("sharding") is not None or not isinstance(type_.dtype, np.dtype):
        return None
    return np.broadcast_to(np.asarray(operands[0]).astype(type_.dtype), type_.shape)


_NUMBERS = np.ndarray | np.generic | float | int


def _opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    # A ClosedJaxpr wraps a Jaxpr and its constants; since 0.12 there is one class, which has both attributes.
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _inner_jaxprs(eqn: core.JaxprEqn, rules: Rules) -> Iterator[Any]:
    is_recomputation = eqn.primitive is primitives.remat_p and eqn.params["differentiated"]
    if not is_recomputation or rules.rewrites:
        yield from _jaxprs_in(list(eqn.params.values()))


def _jaxprs_in(param: Any) -> Iterator[Any]:
    if isinstance(param, core.Jaxpr | core.ClosedJaxpr):
        yield param
    elif isinstance(param, list | tuple):
        for item in param:
            yield from _jaxprs_in(item)
    elif isinstance(getattr(param, "params", None), dict):  # 0.12: call_hi_primitive's object with .params
        yield from _jaxprs_in(list(param.params.values()))


@contextlib.contextmanager
def _context(eqn: core.JaxprEqn) -> Iterator[None]:
    # What tracing recorded beside the equation: the mesh and compute type in force, and its jax.named_scope.
    scope = str(eqn.source_info.name_stack)
    with eqn.ctx.manager, jax.named_scope(scope) if scope else contextlib.nullcontext():
        yield


def _split(values: Sequence[Any], *sizes: int) -> list[list[Any]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(list(values[start : start + size]))
        start += size
    return [*parts, list(values[start:])]


def _zeros(shape: jax.ShapeDtypeStruct) -> Any:
    return typed_like(jnp.zeros(shape.shape, shape.dtype), shape)


def _is_array(value: Any) -> bool:
    return jax.tree_util.all_leaves([value])


def _crossing(values: Sequence[Any], rules: Rules, lifted: Sequence[bool] | None = None) -> list[Any]:
    """The values as they cross a boundary: pytrees in their lifted form; arrays lifted where `lifted` says so."""
    if rules.lift is None:
        return list(values)
    lifted = lifted if lifted is not None else [False] * len(values)
    return [
        rules.lift(value) if lift or not _is_array(value) else value for value, lift in zip(values, lifted, strict=True)
    ]


def _enter_in_place(eqn: Any, operands: Sequence[Any], rules: Rules, loops: Loops) -> Outcome:
    return evaluate(eqn.params["jaxpr"], operands, rules, loops=loops)


def _enter_jit(eqn: Any, operands: Sequence[Any], rules: Rules, loops: Loops) -> Outcome:
    params = eqn.params

    def run(*args: Any) -> Outcome:
        return evaluate(params["jaxpr"], args, rules, loops=loops)

    def given(shardings: Sequence[Any]) -> list[Any]:
        return [s if isinstance(s, Sharding) else None for s in shardings]

    run.__name__ = params["name"]
    return jax.jit(
        run,
        in_shardings=tuple(given(params["in_shardings"])),
        out_shardings=(given(params["out_shardings"]), None),
        keep_unused=params["keep_unused"],
        compiler_options=dict(params["compiler_options_kvs"]) or None,
    )(*operands)


def _enter_call(eqn: Any, operands: Sequence[Any], rules: Rules, loops: Loops) -> Outcome:
    return evaluate(eqn.params["call_jaxpr"], operands, rules, loops=loops)


def _enter_remat(eqn: Any, operands: Sequence[Any], rules: Rules, loops: Loops) -> Outcome:
    params = eqn.params
    operands = _crossing(operands, rules)

    def run(*args: Any) -> Outcome:
        results, records = evaluate(params["jaxpr"], args, rules, loops=loops)
        return _crossing(results, rules), records

    rematerialised = jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])
    if not params["differentiated"]:
        return rematerialised(*operands)

    # Recomputation inside a gradient that f itself takes: the new equation must carry the same mark, or the
    # compiler would merge it with the forward pass and keep the activations alive.
    def mark(remat: Any, args: Sequence[Any], _: Loops) -> Outcome:
        return bind(remat.replace(params={**remat.params, "differentiated": True}), args), {}

    def label(candidate: core.JaxprEqn) -> str | None:
        return "recomputation" if candidate.primitive is primitives.remat_p else None

    jaxpr, shape = jax.make_jaxpr(rematerialised, return_shape=True)(*operands)
    results, _ = evaluate(jaxpr, jax.tree.leaves(list(operands)), Rules(label, mark, rewrites=True))
    return jax.tree.unflatten(jax.tree.structure(shape), results)


def _enter_scan(eqn: Any, operands: Sequence[Any], rules: Rules, loops: Loops) -> Outcome:
    params = eqn.params
    if "num_consts" in params:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    else:  # 0.12 keeps the three groups of operands as one tree
        num_consts, num_carry, _ = (len(group) for group in params["ft_in"].unpack())
    consts, carry, xs = _split(_crossing(operands, rules), num_consts, num_carry)

    def body(carry: list[Any], slices: tuple[Any, list[Any]]) -> tuple[list[Any], Outcome]:
        index, xs = slices
        results, records = evaluate(params["jaxpr"], [*consts, *carry, *xs], rules, loops=(*loops, index))
        new_carry, ys = _split(results, num_carry)
        return _crossing(new_carry, rules, [not _is_array(c) for c in carry]), (_crossing(ys, rules), records)

    if rules.lift is not None:
        carry = _lifted_carry(lambda carry, xs: body(carry, (jnp.int32(0), xs))[0], carry, xs, rules)

    carry, (ys, records) = jax.lax.scan(
        body,
        carry,
        (jnp.arange(params["length"], dtype=jnp.int32), xs),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys], records


def _lifted_carry(body: Callable[..., list[Any]], carry: list[Any], xs: list[Any], rules: Rules) -> list[Any]:
    """The start of a scan's carry, lifted wherever an iteration turns an array into a pytree."""

    def item(x: Any) -> Any:  # of a loop without iterations, too, whose body is traced all the same
        return jax.lax.index_in_dim(x if len(x) else jnp.zeros((1, *x.shape[1:]), x.dtype), 0, keepdims=False)

    def first(carry: list[Any], xs: list[Any]) -> list[Any]:
        return body(carry, jax.tree.map(item, xs))

    while True:
        after = jax.eval_shape(first, carry, xs)
        grown = [_is_array(before) and not _is_array(now) for before, now in zip(carry, after, strict=True)]
        if not any(grown):
            return carry
        carry = _crossing(carry, rules, grown)


def _enter_while(eqn: Any, operands: Sequence[Any], rules: Rules, loops: Loops) -> Outcome:
    params = eqn.params
    if rules.lift is not None:
        raise ValueError(
            "a while loop depends on the attributed inputs, and nothing can be propagated back through a loop of "
            "unknown length: write it as a scan, or as a fori_loop with fixed bounds"
        )
    cond_consts, body_consts, start = _split(operands, params["cond_nconsts"], params["body_nconsts"])

    def test(index: Any, carry: list[Any]) -> tuple[Any, Records]:
        (go_on,), found = evaluate(params["cond_jaxpr"], [*cond_consts, *carry], rules, loops=(*loops, index))
        return go_on, found

    def body(index: Any, carry: list[Any]) -> Outcome:
        return evaluate(params["body_jaxpr"], [*body_consts, *carry], rules, loops=(*loops, index))

    first = jnp.int32(0)
    none_yet = jax.tree.map(_zeros, jax.eval_shape(body, first, start)[1])
    if not any(sites(params["cond_jaxpr"], rules)):
        _, carry, records = jax.lax.while_loop(
            lambda state: test(state[0], state[1])[0],
            lambda state: (state[0] + 1, *body(state[0], state[1])),
            (first, start, none_yet),
        )
        return carry, records

    # The condition of a while_loop can only answer yes or no, so one that records is evaluated in the body.
    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        carry, found = body(state[0], state[1])
        return (state[0] + 1, carry, found, *test(state[0] + 1, carry))

    state = (first, start, none_yet, *test(first, start))
    _, carry, records, _, test_records = jax.lax.while_loop(lambda state: state[3], advance, state)
    labels = dict.fromkeys([*test_records, *records])
    return carry, {label: test_records.get(label, ()) + records.get(label, ()) for label in labels}


def _enter_cond(eqn: Any, operands: Sequence[Any], rules: Rules, loops: Loops) -> Outcome:
    index, *args = _crossing(operands, rules)
    if not _is_array(index):
        raise ValueError(
            "the branch that a cond or switch takes depends on the attributed inputs, so that there is no one "
            "function to propagate through: select between both branches' values with jnp.where instead"
        )

    def interpreted(jaxpr: Any, lifted: Sequence[bool] | None = None) -> Callable[..., Outcome]:
        def run(*args: Any) -> Outcome:
            results, records = evaluate(jaxpr, args, rules, loops=loops)
            return _crossing(results, rules, lifted), records

        return run

    branches = [interpreted(jaxpr) for jaxpr in eqn.params["branches"]]
    if rules.lift is not None:  # a result is lifted in all branches if it is a pytree in one
        results = [jax.eval_shape(branch, *args)[0] for branch in branches]
        lifted = [not all(map(_is_array, alternatives)) for alternatives in zip(*results, strict=True)]
        branches = [interpreted(jaxpr, lifted) for jaxpr in eqn.params["branches"]]
    slots, places = _align([jax.eval_shape(branch, *args)[1] for branch in branches])

    def filled(branch: Callable[..., Any], place: dict[tuple[str, int], int]) -> Callable[..., Any]:
        def run(*args: Any) -> Outcome:
            results, records = branch(*args)

            def entry(label: str, slot: int, shape: jax.ShapeDtypeStruct) -> Any:
                if (label, slot) not in place:
                    return _zeros(shape)
                return typed_like(records[label][place[label, slot]], shape)

            return results, {
                label: tuple(entry(label, slot, shape) for slot, shape in enumerate(shapes))
                for label, shapes in slots.items()
            }

        return run

    return jax.lax.switch(index, [filled(b, p) for b, p in zip(branches, places, strict=True)], *args)


def _align(
    branches: Sequence[Mapping[str, Sequence[jax.ShapeDtypeStruct]]],
) -> tuple[dict[str, list[jax.ShapeDtypeStruct]], list[dict[tuple[str, int], int]]]:
    """Give the records of all branches one layout: (slots by label, per branch: (label, slot) -> entry).

    A branch's entry takes the first free slot of its label with its shape and dtype, or else a new one.
    """
    slots: dict[str, list[jax.ShapeDtypeStruct]] = {}
    places: list[dict[tuple[str, int], int]] = []
    for records in branches:
        place: dict[tuple[str, int], int] = {}
        for label, entries in records.items():
            shapes = slots.setdefault(label, [])
            for number, entry in enumerate(entries):
                fits = (
                    slot
                    for slot, shape in enumerate(shapes)
                    if (label, slot) not in place and (shape.shape, shape.dtype) == (entry.shape, entry.dtype)
                )
                slot = next(fits, len(shapes))
                if slot == len(shapes):
                    shapes.append(entry)
                else:  # the slot varies wherever one of its entries does
                    shapes[slot] = jax.eval_shape(typed_like, shapes[slot], entry)
                place[label, slot] = number
        places.append(place)
    return slots, places


def _enter_shard_map(eqn: Any, operands: Sequence[Any], rules: Rules, loops: Loops) -> Outcome:
    # A record leaves as the stack of the devices' values: one leading axis for each mesh axis over which it
    # varies, in mesh order. Which axes these are is known once the body has been traced, hence the two
    # passes.
    params = eqn.params
    axes = [axis for axis in params["mesh"].axis_names if axis in params["newly_manual_axes"]]
    operands = _crossing(operands, rules)

    def stacked_over(value: Any) -> PartitionSpec:
        varying = varying_axes(value) if params["check_vma"] else frozenset(axes)
        return PartitionSpec(*(axis for axis in axes if axis in varying))

    def mapped(choose: Callable[[Any], PartitionSpec], specs: Any) -> Callable[..., Any]:
        def run(loops: Loops, *args: Any) -> Outcome:
            results, records = evaluate(params["jaxpr"], args, rules, loops=loops)
            results = _crossing(results, rules)
            found.append(jax.tree.map(stacked_over, records))
            return results, jax.tree.map(lambda v: jnp.expand_dims(v, tuple(range(len(choose(v))))), records)

        return jax.shard_map(
            run,
            mesh=params["mesh"],
            in_specs=(tuple(PartitionSpec() for _ in loops), *params["in_specs"]),
            out_specs=(list(params["out_specs"]), specs),
            axis_names=set(axes),
            check_vma=params["check_vma"],
        )

    found: list[Any] = []
    everywhere = PartitionSpec(*axes)
    jax.eval_shape(mapped(lambda _: everywhere, everywhere), loops, *operands)
    return mapped(stacked_over, found[0])(loops, *operands)


def _enter_ruled(eqn: Any, operands: Sequence[Any], rules: Rules, loops: Loops) -> Outcome:
    # A function that carries a rule of its own (derivative, batching, lowering) beside its one jaxpr.
    (body,) = _inner_jaxprs(eqn, rules)
    results, records = evaluate(body, operands, rules, loops=loops)
    return (results if rules.rewrites else bind(eqn, operands)), records


_ENTER: dict[str, Callable[..., Outcome]] = {
    primitives.jit_p.name: _enter_jit,
    primitives.call_p.name: _enter_call,
    primitives.closed_call_p.name: _enter_call,
    primitives.remat_p.name: _enter_remat,
    primitives.scan_p.name: _enter_scan,
    primitives.while_p.name: _enter_while,
    primitives.cond_p.name: _enter_cond,
    primitives.custom_jvp_call_p.name: _enter_ruled,
    primitives.custom_vjp_call_p.name: _enter_ruled,
    "custom_vmap_call": _enter_ruled,
    "composite": _enter_ruled,
    "shard_map": _enter_shard_map,
}
