"""A first-in-first-out memory of keys, and the slowly moving encoder that fills it.

One step with a queue reads: encode the keys with the target encoder, compute the loss against the queue as it stands,
update the online encoder, move the target (`momentum_update`), and only then `push` the keys, lest a query meet its
own key among the negatives.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree


@struct.dataclass
class Queue:
    """The last keys pushed, in a ring.

    Attributes:
        keys: [Q, dim] float32; empty slots hold zeros.
        labels: [Q] labels or ids that came with the keys; -1 in empty slots.
        position: next slot to be written.
        filled: slots that hold a key, at most Q.
    """

    keys: Float[Array, "size dim"]
    labels: Int[Array, " size"]
    position: Int[Array, ""]
    filled: Int[Array, ""]

    @property
    def log_weights(self) -> Float[Array, " size"]:
        """0 for slots that hold a key and -inf for empty ones: added to logits, it leaves the latter out."""
        return jnp.where(jnp.arange(self.labels.shape[0]) < self.filled, 0.0, -jnp.inf)


def empty_queue(size: int, dim: int) -> Queue:
    """A queue of `size` slots for keys of width `dim`; ValueError unless both are positive."""
    if size < 1 or dim < 1:
        raise ValueError(f"a queue needs a positive size and width: got size {size}, dim {dim}")
    return Queue(
        keys=jnp.zeros((size, dim)),
        labels=jnp.full(size, -1, jnp.int32),
        position=jnp.int32(0),
        filled=jnp.int32(0),
    )


def push(queue: Queue, keys: Float[Array, "batch dim"], labels: Int[Array, " batch"] | None = None) -> Queue:
    """The queue after `keys` took the places of the oldest; wraps around at any position.

    Args:
        queue: as it was.
        keys: [B, dim] with B <= Q; no gradient flows into them.
        labels: [B] non-negative labels or ids; 0 for all where there are none.

    Returns:
        A new queue of the same shapes, under `jit` too.

    Raises:
        ValueError: more keys than slots, another width, labels of another length.

    Source: He et al. 2020 (MoCo), section 3.2; with labels: Wang et al. 2020 (cross-batch memory).
    """
    size, dim = queue.keys.shape
    if jnp.ndim(keys) != 2 or keys.shape[1] != dim:
        raise ValueError(f"the queue holds keys of width {dim}: got {jnp.shape(keys)}, expected [batch, {dim}]")
    if keys.shape[0] > size:
        raise ValueError(f"a queue of {size} cannot take {keys.shape[0]} keys at once: make it at least that large")
    if labels is not None and jnp.shape(labels) != keys.shape[:1]:
        raise ValueError(f"expected a label for each of {keys.shape[0]} keys: got {jnp.shape(labels)}")
    slots = (queue.position + jnp.arange(keys.shape[0])) % size
    labels = jnp.zeros(keys.shape[0], jnp.int32) if labels is None else labels.astype(jnp.int32)
    return Queue(
        keys=queue.keys.at[slots].set(jax.lax.stop_gradient(keys).astype(queue.keys.dtype)),
        labels=queue.labels.at[slots].set(labels),
        position=(queue.position + keys.shape[0]) % size,
        filled=jnp.minimum(queue.filled + keys.shape[0], size),
    )


def momentum_update(target: PyTree[Array], online: PyTree[Array], momentum: float | Float[Array, ""]) -> PyTree[Array]:
    """``theta_target <- m theta_target + (1 - m) theta_online``, leaf by leaf, without gradient.

    Args:
        target, online: parameter trees of one structure.
        momentum: m in [0, 1]; 0.999 in the source.

    Raises:
        ValueError: trees that differ, a momentum out of range.

    Source: He et al. 2020 (MoCo), eq. 2.
    """
    if not isinstance(momentum, jax.core.Tracer) and not 0 <= float(momentum) <= 1:
        raise ValueError(f"momentum must be in [0, 1]: got {momentum}")
    structures: list[Any] = [jax.tree.structure(tree) for tree in (target, online)]
    if structures[0] != structures[1]:
        raise ValueError(f"target and online must be trees of one structure: got {structures[0]} and {structures[1]}")

    def mixed(old: Array, new: Array) -> Array:
        wide = jnp.promote_types(old.dtype, jnp.float32)
        moved = momentum * old.astype(wide) + (1 - momentum) * jax.lax.stop_gradient(new).astype(wide)
        return moved.astype(old.dtype)

    return jax.tree.map(mixed, target, online)
