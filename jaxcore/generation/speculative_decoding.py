"""Speculative decoding: a small model drafts, the model checks all drafts in one call (Leviathan et al. 2023)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxcore.generation.bound_model import BoundModel, Prompt, next_log_probs
from jaxcore.generation.categorical_draws import draw_categorical
from jaxcore.generation.option_checks import check_count
from jaxcore.generation.progress import Generated, Progress, Run, append, collected, empty_progress, is_stop
from jaxcore.generation.sampling import Chooser, Greedy, check_chooser
from jaxcore.models import KeyValueCache, fork


@flax.struct.dataclass
class DraftState:
    """Between two rounds."""

    progress: Progress
    tokens: Int[Array, "rows"]
    """The latest token of each row, which the caches do not hold yet."""
    caches: tuple[KeyValueCache, KeyValueCache]
    """Of the model and of the draft model; row r has its first `progress.lengths[r] - 1` slots in use."""


@flax.struct.dataclass
class SpeculativeDecoding:
    """The tokens of `chooser` with fewer calls of the model: the same ones (Greedy), or as distributed (Sampling).

    A round: the draft model (`assistant`) draws d_1 ... d_n from its distributions q_i, the model gives its p_i in one
    call; both are the chooser's (after temperature and filters). d_i is accepted with probability
    min(1, p_i(d_i) / q_i(d_i)). In place of the first refused one, a token is drawn from max(0, p_i - q_i), normalised,
    and if all are accepted, one more from p_{n+1}. Rows accept as many as they accept, whatever the others do.

    Drafts may reach `num_draft_tokens` positions behind the last new token: the context must have room for them.

    Raises:
        ValueError: num_draft_tokens below 1.
    """

    chooser: Chooser = Greedy()
    num_draft_tokens: int = flax.struct.field(pytree_node=False, default=4)

    needs_assistant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("num_draft_tokens", self.num_draft_tokens)

    @property
    def is_random(self) -> bool:
        return self.chooser.is_random

    @property
    def num_extra_positions(self) -> int:
        return self.num_draft_tokens

    def check(self, vocab_size: int, run_length: int, num_samples: int) -> None:
        check_chooser(self.chooser, type(self).__name__)
        self.chooser.check(vocab_size, run_length, num_samples)

    def start(self, models: Sequence[BoundModel], prompts: Sequence[Prompt], run: Run) -> DraftState:
        capacity = run.max_new_tokens + self.num_draft_tokens
        logits = jnp.repeat(models[0].logits(prompts[0].hidden[:, -1]), run.num_samples, axis=0)
        tokens = self.chooser.draw(logits, jax.random.fold_in(run.key, 0))
        progress = empty_progress(len(logits), capacity + 1, run)
        progress = append(progress, run, tokens, next_log_probs(logits, tokens))
        first, second = (fork(prompt.cache, run.num_samples, capacity) for prompt in prompts)
        return DraftState(progress, tokens, (first, second))

    def advance(self, models: Sequence[BoundModel], run: Run, state: DraftState) -> DraftState:
        draft_key, accept_key, last_key = jax.random.split(jax.random.fold_in(run.key, state.progress.steps), 3)
        count = self.num_draft_tokens
        drafts, log_q, drafted = self._drafts(models[1], state, draft_key)
        asked = jnp.concatenate([state.tokens[:, None], drafts], axis=1)
        hidden, checked = models[0].trunk(asked, fork(state.caches[0], 1, count + 1))
        logits = models[0].logits(hidden)
        probs = jax.nn.softmax(self.chooser.distribution(logits))
        draft_probs = jnp.pad(jax.nn.softmax(log_q), ((0, 0), (0, 1), (0, 0)))  # no draft behind the last one
        accepted = _num_accepted(probs[:, :-1], draft_probs[:, :-1], drafts, accept_key)
        last = self._last(_at(probs, accepted), _at(draft_probs, accepted), last_key)
        block = jnp.where(jnp.arange(count + 1) < accepted[:, None], jnp.pad(drafts, ((0, 0), (0, 1))), last[:, None])
        log_probs = next_log_probs(logits.reshape(-1, logits.shape[-1]), block.reshape(-1)).reshape(block.shape)
        kept = jnp.where(_goes_on(state.progress, run), accepted + 1, 0)
        places = state.progress.lengths - 1
        caches = (write_rows(checked, places, kept), write_rows(drafted, places, kept))
        return DraftState(_extended(state.progress, run, block, log_probs, kept), last, caches)

    def _drafts(self, model: BoundModel, state: DraftState, key: Key[Array, ""]) -> tuple[Array, Array, Any]:
        """Drafts (rows, n), the logits of their distributions (rows, n, vocab), and a cache of latest token and drafts.

        One call more than there are drafts: the last one's keys are needed if it is accepted.
        """

        def step(carry: tuple[Array, KeyValueCache], key: Key[Array, ""]) -> Any:
            tokens, cache = carry
            hidden, cache = model.trunk(tokens[:, None], cache)
            scores = self.chooser.distribution(model.logits(hidden[:, -1]))
            drawn = draw_categorical(scores, key)
            return (drawn, cache), (drawn, scores)

        count = self.num_draft_tokens + 1
        scratch = fork(state.caches[1], 1, count)
        (_, cache), (drawn, scores) = jax.lax.scan(step, (state.tokens, scratch), jax.random.split(key, count))
        return drawn[:-1].swapaxes(0, 1), scores[:-1].swapaxes(0, 1), cache

    def _last(self, probs: Array, draft_probs: Array, key: Key[Array, ""]) -> Int[Array, "rows"]:
        """A token from max(0, p - q)."""
        rest = jnp.maximum(probs - draft_probs, 0)
        # Equal distributions refuse nothing, but for rounding.
        rest = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, probs)
        return draw_categorical(jnp.log(rest), key)

    def finish(self, run: Run, state: DraftState, batch: int) -> Generated:
        return collected(state.progress, run, batch)


def _goes_on(progress: Progress, run: Run) -> Array:
    return ~progress.stopped & (progress.lengths < run.max_new_tokens)


def _num_accepted(
    probs: Float[Array, "rows n vocab"],
    draft_probs: Float[Array, "rows n vocab"],
    drafts: Int[Array, "rows n"],
    key: Key[Array, ""],
) -> Int[Array, "rows"]:
    """How many drafts stand before the first refused one."""
    chosen = drafts[:, :, None]
    p, q = (jnp.take_along_axis(some, chosen, axis=2)[:, :, 0] for some in (probs, draft_probs))
    accepted = jax.random.uniform(key, drafts.shape) * q < p
    return jnp.cumprod(accepted, axis=1).sum(1, dtype=jnp.int32)


def _at(probs: Float[Array, "rows n vocab"], place: Int[Array, "rows"]) -> Float[Array, "rows vocab"]:
    return jnp.take_along_axis(probs, place[:, None, None], axis=1)[:, 0]


def _extended(progress: Progress, run: Run, block: Array, log_probs: Array, kept: Array) -> Progress:
    """The first `kept` tokens of each row's block behind those it has, up to a stop token and the row's full length."""
    places = jnp.arange(block.shape[1])
    stops = is_stop(block, run) & (places < kept[:, None])
    first_stop = jnp.where(stops.any(1), jnp.argmax(stops, axis=1), block.shape[1])
    added = jnp.minimum(jnp.minimum(kept, first_stop + 1), run.max_new_tokens - progress.lengths)
    shown = places < added[:, None]
    write = jax.vmap(lambda row, new, place: jax.lax.dynamic_update_slice(row, new, (place,)))
    return dataclasses.replace(
        progress,
        tokens=write(progress.tokens, jnp.where(shown, block, run.pad_token), progress.lengths),
        log_probs=write(progress.log_probs, jnp.where(shown, log_probs, 0), progress.lengths),
        lengths=progress.lengths + added,
        stopped=progress.stopped | (stops & shown).any(1),
        steps=progress.steps + 1,
    )


def write_rows(cache: KeyValueCache, places: Int[Array, "rows"], kept: Int[Array, "rows"]) -> KeyValueCache:
    """The prefix of a forked `cache` (one sample per row), row r continued at its own slot `places[r]`.

    All slots of `cache` are written there, the first `kept[r]` of them become valid; what is behind them is overwritten
    by the next call.
    """
    parent: Any = cache.prefix
    count, slots = cache.capacity, jnp.arange(parent.capacity)

    def write(old: Array, new: Array) -> Array:
        def one(old: Array, new: Array, place: Array) -> Array:
            return jax.lax.dynamic_update_slice(old, new, (*(0,) * (old.ndim - 2), place, 0))

        return jax.vmap(one, in_axes=(-4, -4, 0), out_axes=-4)(old, new, places)

    in_block = (slots >= places[:, None]) & (slots < places[:, None] + count)
    valid = jnp.where(in_block, slots < (places + kept)[:, None], parent.valid)
    return dataclasses.replace(
        parent,
        keys=jax.tree.map(write, parent.keys, cache.keys),
        values=jax.tree.map(write, parent.values, cache.values),
        valid=valid,
        length=jnp.max(places + kept),
    )
