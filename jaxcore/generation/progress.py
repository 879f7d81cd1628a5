"""What has been generated so far, and what is handed out at the end; the same for every strategy."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@flax.struct.dataclass
class Run:
    """What a call of `generate` asks for besides model, prompts and strategy."""

    key: Key[Array, ""]
    stop_tokens: Int[Array, "stops"]
    pad_token: Int[Array, ""]
    max_new_tokens: int = flax.struct.field(pytree_node=False)
    num_samples: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Progress:
    """Tokens of every row, growing."""

    tokens: Int[Array, "rows capacity"]
    """The pad token from the row's length on."""
    log_probs: Float[Array, "rows capacity"]
    """Of each token under the model, given all before it; 0 from the row's length on."""
    lengths: Int[Array, "rows"]
    """Tokens generated, a stop token included."""
    stopped: Bool[Array, "rows"]
    """Whether the row has ended with a stop token."""
    steps: Int[Array, ""]
    """Calls of `append` or their like."""


@flax.struct.dataclass
class Generated:
    """Continuations of B prompts, S samples of each, at most T tokens."""

    tokens: Int[Array, "batch samples time"]
    """The pad token behind the end."""
    lengths: Int[Array, "batch samples"]
    """Tokens generated, the stop token included."""
    log_probs: Float[Array, "batch samples time"]
    """`log p(token | prompt, tokens before)` under the model as it is (temperature 1, nothing filtered), in nats; 0
    behind the end."""
    stopped: Bool[Array, "batch samples"]
    """True where a stop token ended the text, False where `max_new_tokens` did."""
    scores: Float[Array, "batch samples"]
    """What samples of a prompt are ordered by in beam search; the sum of `log_probs` in all other strategies."""
    steps: Int[Array, ""]
    """Calls of the model after the prompt was read."""


def empty_progress(rows: int, capacity: int, run: Run) -> Progress:
    """Nothing generated yet."""
    return Progress(
        tokens=jnp.full((rows, capacity), run.pad_token, jnp.int32),
        log_probs=jnp.zeros((rows, capacity), jnp.float32),
        lengths=jnp.zeros(rows, jnp.int32),
        stopped=jnp.zeros(rows, bool),
        steps=jnp.zeros((), jnp.int32),
    )


def append(progress: Progress, run: Run, tokens: Int[Array, "rows"], log_probs: Float[Array, "rows"]) -> Progress:
    """One more token for every row that has not stopped; all of them are equally long."""
    going = ~progress.stopped
    column = (0, progress.steps)
    return dataclasses.replace(
        progress,
        tokens=jax.lax.dynamic_update_slice(progress.tokens, jnp.where(going, tokens, run.pad_token)[:, None], column),
        log_probs=jax.lax.dynamic_update_slice(progress.log_probs, jnp.where(going, log_probs, 0)[:, None], column),
        lengths=progress.lengths + going,
        stopped=progress.stopped | is_stop(tokens, run),
        steps=progress.steps + 1,
    )


def is_stop(tokens: Int[Array, "*shape"], run: Run) -> Bool[Array, "*shape"]:
    """Which tokens end a text."""
    return (tokens[..., None] == run.stop_tokens).any(-1)


def is_unfinished(progress: Progress, run: Run) -> Bool[Array, ""]:
    """Whether any row goes on."""
    return jnp.any(~progress.stopped & (progress.lengths < run.max_new_tokens))


def collected(progress: Progress, run: Run, batch: int) -> Generated:
    """Rows by prompt and sample."""
    time = run.max_new_tokens

    def by_sample(array: Array) -> Array:
        return array.reshape(batch, run.num_samples, *array.shape[1:])

    log_probs = by_sample(progress.log_probs[:, :time])
    return Generated(
        tokens=by_sample(progress.tokens[:, :time]),
        lengths=by_sample(progress.lengths),
        log_probs=log_probs,
        stopped=by_sample(progress.stopped),
        scores=log_probs.sum(-1),
        steps=progress.steps,
    )
