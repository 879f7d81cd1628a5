"""The training state: everything that one jitted update reads and writes, and how it is laid over a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.core import meta
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree, UInt

from jaxcore.distributed import replicated, tree_shardings

Params = Any
"""A tree of parameter arrays."""
Initialize = Callable[[Array], Params]


@struct.dataclass
class TrainState:
    """Parameters, optimiser state and position; a checkpoint of it plus the data position resumes exactly.

    Attributes:
        step: number of updates done.
        params: unboxed parameter tree.
        opt_state: optax state.
        key_data: raw data of the run's PRNG key; step k uses ``fold_in(key, k)``, so it never changes.
        nonfinite_step: -1, or the step whose loss or gradient was not finite. From then on updates do nothing, so
            the state stays the last good one however late the host looks.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree[Array]
    key_data: UInt[Array, "words"]
    nonfinite_step: Int[Array, ""]

    @property
    def step_key(self) -> Array:
        """The PRNG key of the update about to be made."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.key_data), self.step)


def abstract_state(initialize: Initialize, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state as `jax.ShapeDtypeStruct` leaves with their shardings; nothing is computed.

    Args:
        initialize: key -> parameters, boxed with logical axes as linen's ``init`` returns them (or plain, which
            are replicated). Optimiser moments follow the parameter they belong to.
    """
    boxed = jax.eval_shape(lambda seed: _new_state(initialize, optimizer, jax.random.key(seed)), 0)
    shardings = tree_shardings(boxed, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        meta.unbox(boxed),
        shardings,
    )


def state_shardings(state: TrainState) -> TrainState:
    """The sharding of every leaf of an abstract or concrete state."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def create_state(
    initialize: Initialize,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    params: Params | None = None,
) -> TrainState:
    """A fresh state, born sharded: no device ever holds more than its own part.

    Args:
        seed: of the run; parameters and every step's randomness derive from it.
        params: pretrained parameters that take the place of the initialised ones (same tree, shapes and dtypes).
    """
    shardings = state_shardings(abstract_state(initialize, optimizer, mesh))

    def build(seed: Array, given: Any) -> TrainState:
        key = jax.random.key(seed)
        initialize_from = initialize if given is None else (lambda _: given)
        return meta.unbox(_new_state(initialize_from, optimizer, key))

    return jax.jit(build, out_shardings=shardings)(jax.device_put(jnp.uint32(seed), replicated(mesh)), params)


def _new_state(initialize: Initialize, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    init_key, run_key = jax.random.split(key)
    params = initialize(init_key)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        key_data=jax.random.key_data(run_key),
        nonfinite_step=jnp.int32(-1),
    )
