"""The one training step: gradients, update, bookkeeping, as a single jitted program with donated state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxcore.distributed import batch_sharding, jit_on_mesh, replicated
from jaxcore.training.state import Params, TrainState, state_shardings

Batch = Any
"""A tree of arrays with the same leading axis."""
Gradients = Callable[[Params, Batch, Array], tuple[Float[Array, ""], Params]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def one_shot_gradients(loss: Callable[[Params, Batch, Array], Float[Array, ""]]) -> Gradients:
    """Value and gradient of ``loss(params, batch, key)`` over the whole batch at once."""
    return jax.value_and_grad(loss)


def make_train_step(
    gradients: Gradients, optimizer: optax.GradientTransformation, state: TrainState, mesh: Mesh
) -> TrainStep:
    """``(state, batch) -> (state, metrics)``, jitted with explicit shardings; the state's buffers are donated.

    A step whose loss or gradient norm is not finite changes nothing but `TrainState.nonfinite_step`, and neither
    does any later one: the loop notices without a host transfer in the step, and the last good state survives.

    Args:
        gradients: ``(params, batch, key) -> (loss, gradients)``: `one_shot_gradients` or
            `jaxcore.training.cached_gradients`.
        optimizer: an optax transformation.
        state: concrete or abstract; only its shardings are read.
        mesh: every leaf of a batch is split over its batch axes along the first dimension.

    Returns:
        A jitted function; metrics are the scalars ``loss``, ``gradient_norm`` and ``finite``.
    """

    shardings = state_shardings(state)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        loss, gradient = gradients(state.params, batch, state.step_key)
        gradient = jax.lax.with_sharding_constraint(gradient, shardings.params)
        gradient_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        proceed = finite & (state.nonfinite_step < 0)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        keep = lambda new, old: jnp.where(proceed, new, old)  # noqa: E731
        new_state = TrainState(
            step=state.step + proceed,
            params=jax.tree.map(keep, params, state.params),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            key_data=state.key_data,
            nonfinite_step=jnp.where((state.nonfinite_step < 0) & ~finite, state.step, state.nonfinite_step),
        )
        return new_state, {"loss": loss, "gradient_norm": gradient_norm, "finite": finite}

    return jit_on_mesh(
        train_step,
        mesh,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
