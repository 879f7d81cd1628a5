"""Gradient caching: the exact gradient of a loss over a batch whose encoder activations would never fit."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcore.distributed import RECOMPUTE_SCOPE, constrain_rows
from jaxcore.training.state import Params
from jaxcore.training.step import Batch, Gradients

Encode = Callable[[Params, Batch, Array], Float[Array, "batch dim"]]
BatchLoss = Callable[..., Float[Array, ""]]
"""``(embeddings, batch)``, or ``(embeddings, batch, params)`` for a loss with parameters (a temperature, a head).

Arguments beyond these need defaults.
"""


def cached_gradients(encode: Encode, loss: BatchLoss, *, micro_batch: int) -> Gradients:
    """Gradients of ``loss(encode(params, batch), batch)`` with activations of only `micro_batch` rows alive.

    1. embed all rows without keeping activations; 2. one loss over all embeddings gives ``dL/de``; 3. re-encode each
    micro-batch with the same dropout key and pull its rows of ``dL/de`` back to the parameters; sum. The result is
    the gradient of the whole batch, not an approximation. Both passes are scans: the program's size does not grow.

    Rows are dealt to micro-batches with a stride, so that a batch split over devices needs no communication to be
    cut: each device contributes ``micro_batch / devices`` rows to every micro-batch.

    Args:
        encode: ``(params, rows, key) -> [rows, dim]``; one key per micro-batch, ``fold_in(key, index)``.
        loss: ``(embeddings of all rows, whole batch) -> scalar``, or with the parameters as a third argument, where
            the loss has some of its own: a learnt temperature, a projection head.
        micro_batch: rows encoded at once over all devices; must divide the batch.

    Returns:
        ``(params, batch, key) -> (loss, gradients)`` for `make_train_step`.

    Raises:
        ValueError: (when traced) a batch that `micro_batch` does not divide.

    Source: Gao et al. 2021 (GradCache); Huertas-Tato et al. 2023, released code, without its unreplayed dropout.
    """

    required = [p for p in inspect.signature(loss).parameters.values() if p.default is p.empty]
    takes_params = len(required) > 2

    def gradients(params: Params, batch: Batch, key: Array) -> tuple[Float[Array, ""], Params]:
        num_rows = jax.tree.leaves(batch)[0].shape[0]
        if num_rows % micro_batch:
            raise ValueError(f"micro_batch {micro_batch} does not divide the batch of {num_rows} rows")
        num_chunks = num_rows // micro_batch
        chunks = jax.tree.map(lambda x: _deal(x, num_chunks), batch)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(num_chunks))

        with jax.named_scope(RECOMPUTE_SCOPE):  # for the FLOP count: this pass is the price of the cache
            embeddings = jax.lax.map(lambda chunk: encode(params, *chunk), (chunks, keys))
        collected = _collect(embeddings)
        if takes_params:
            value, (embedding_gradient, start) = jax.value_and_grad(loss, (0, 2))(collected, batch, params)
        else:
            value, embedding_gradient = jax.value_and_grad(loss)(collected, batch)
            start = jax.tree.map(jnp.zeros_like, params)

        def add_chunk(total: Params, chunk: tuple) -> tuple[Params, None]:
            rows, chunk_key, cotangent = chunk
            _, pull_back = jax.vjp(lambda p: encode(p, rows, chunk_key), params)
            return jax.tree.map(jnp.add, total, pull_back(cotangent)[0]), None

        total, _ = jax.lax.scan(add_chunk, start, (chunks, keys, _deal(embedding_gradient, num_chunks)))
        return value, total

    return gradients


def _deal(rows: Array, num_chunks: int) -> Array:
    """[n, ...] -> [chunks, n / chunks, ...]; chunk c holds rows c, c + chunks, c + 2 chunks, ..."""
    return jnp.moveaxis(constrain_rows(rows.reshape(-1, num_chunks, *rows.shape[1:])), 1, 0)


def _collect(chunks: Array) -> Array:
    """The inverse of `_deal`."""
    return constrain_rows(constrain_rows(jnp.moveaxis(chunks, 0, 1)).reshape(-1, *chunks.shape[2:]))
