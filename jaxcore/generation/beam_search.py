"""Beam search: the likeliest texts, by keeping the best beginnings of each length."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcore.generation.bound_model import BoundModel, Prompt
from jaxcore.generation.option_checks import check_count, check_finite
from jaxcore.generation.progress import Generated, Progress, Run, empty_progress, is_stop
from jaxcore.models import KeyValueCache, fork, take_rows


@flax.struct.dataclass
class Hypotheses:
    """Texts of each prompt, W places."""

    scores: Float[Array, "batch beams"]
    """Best first; -inf in empty places."""
    tokens: Int[Array, "batch beams time"]
    log_probs: Float[Array, "batch beams time"]
    lengths: Int[Array, "batch beams"]
    stopped: Bool[Array, "batch beams"]


@flax.struct.dataclass
class BeamState:
    """Between two tokens."""

    progress: Progress
    """One row per prompt: here `stopped` says that the prompt's search is over."""
    running: Hypotheses
    """Those that have met no stop token; their scores are sums of log probabilities."""
    finished: Hypotheses
    latest: Int[Array, "batch beams"]
    cache: KeyValueCache
    """Of the running ones, without the latest token."""


@flax.struct.dataclass
class BeamSearch:
    """The best of W = `num_beams` hypotheses of each prompt by

        score(x) = sum_t log p(x_t | x_<t) / T^length_penalty          T = its new tokens, the stop token included

    At each length the continuations of the running hypotheses are ranked by their sum. Of the W best, those that end
    with a stop token are finished; the best W that do not run on. At `max_new_tokens` the running ones are finished.

    A prompt's search ends when W are finished and, with `early_stopping=False`, no running one can still beat the worst
    of them: sums only fall, so the bound is the best running sum over the length penalty of the length that is the most
    favourable (the maximal one for a positive penalty, else the next one). True ends it as soon as W are finished.

    `num_samples` of `generate` is how many hypotheses come back, best first, at most W.

    Raises:
        ValueError: num_beams below 1, length_penalty not finite.
    """

    num_beams: int = flax.struct.field(pytree_node=False, default=4)
    length_penalty: float | Array = 1.0
    early_stopping: bool = flax.struct.field(pytree_node=False, default=False)

    needs_assistant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_count("num_beams", self.num_beams)
        check_finite("length_penalty", self.length_penalty)

    @property
    def is_random(self) -> bool:
        return False

    @property
    def num_extra_positions(self) -> int:
        return 0

    def check(self, vocab_size: int, run_length: int, num_samples: int) -> None:
        if num_samples > self.num_beams:
            raise ValueError(f"num_samples must be at most the {self.num_beams} beams, got {num_samples}")

    def start(self, models: Sequence[BoundModel], prompts: Sequence[Prompt], run: Run) -> BeamState:
        (model,), (prompt,) = models, prompts
        batch, beams = prompt.rows, self.num_beams
        nothing = Hypotheses(
            scores=jnp.full((batch, beams), -jnp.inf),
            tokens=jnp.full((batch, beams, run.max_new_tokens), run.pad_token, jnp.int32),
            log_probs=jnp.zeros((batch, beams, run.max_new_tokens), jnp.float32),
            lengths=jnp.zeros((batch, beams), jnp.int32),
            stopped=jnp.zeros((batch, beams), bool),
        )
        state = BeamState(
            progress=empty_progress(batch, 1, run),
            running=dataclasses.replace(nothing, scores=nothing.scores.at[:, 0].set(0)),  # one empty text
            finished=nothing,
            latest=jnp.zeros((batch, beams), jnp.int32),
            cache=fork(prompt.cache, beams, run.max_new_tokens),
        )
        return self._expanded(jnp.repeat(model.logits(prompt.hidden[:, -1]), beams, axis=0), run, state)

    def advance(self, models: Sequence[BoundModel], run: Run, state: BeamState) -> BeamState:
        (model,) = models
        hidden, cache = model.trunk(state.latest.reshape(-1, 1), state.cache)
        return self._expanded(model.logits(hidden[:, -1]), run, dataclasses.replace(state, cache=cache))

    def _expanded(self, logits: Float[Array, "rows vocab"], run: Run, state: BeamState) -> BeamState:
        """The best continuations by one token, sorted into running and finished ones."""
        batch, beams = state.latest.shape
        log_probs = jax.nn.log_softmax(logits).reshape(batch, beams, -1)
        vocab = log_probs.shape[-1]
        sums = (state.running.scores[:, :, None] + log_probs).reshape(batch, -1)
        # Each running text has one continuation per stop token: so many places hold W that run on, if there are any.
        count = min(beams * (1 + len(run.stop_tokens)), sums.shape[1])
        values, places = jax.lax.top_k(sums, count)
        parents, tokens = places // vocab, (places % vocab).astype(jnp.int32)
        stops = is_stop(tokens, run)
        new = self._continued(state, parents, tokens, jnp.take_along_axis(log_probs.reshape(batch, -1), places, 1))
        length = state.progress.steps + 1
        ended = stops & (jnp.arange(count) < beams)
        candidates = dataclasses.replace(
            new, scores=self._penalised(jnp.where(ended, values, -jnp.inf), length), stopped=ended
        )
        over = state.progress.stopped
        pool = _best(_joined(state.finished, candidates), beams)
        finished = jax.tree.map(lambda old, new: jnp.where(_over(over, new), old, new), state.finished, pool)
        running_values, order = jax.lax.top_k(jnp.where(stops, -jnp.inf, values), beams)
        running = dataclasses.replace(_taken(new, order), scores=running_values)
        rows = jnp.arange(batch)[:, None] * beams + jnp.take_along_axis(parents, order, 1)
        progress = dataclasses.replace(
            state.progress,
            steps=length,
            lengths=jnp.full(batch, length),
            stopped=over | self._is_over(running, finished, length, run),
        )
        latest = jnp.take_along_axis(tokens, order, 1)
        return BeamState(progress, running, finished, latest, take_rows(state.cache, rows.reshape(-1)))

    def _continued(self, state: BeamState, parents: Array, tokens: Array, log_probs: Array) -> Hypotheses:
        column, new = (0, 0, state.progress.steps), _taken(state.running, parents)
        return dataclasses.replace(
            new,
            tokens=jax.lax.dynamic_update_slice(new.tokens, tokens[:, :, None], column),
            log_probs=jax.lax.dynamic_update_slice(new.log_probs, log_probs[:, :, None], column),
            lengths=new.lengths + 1,
        )

    def _is_over(self, running: Hypotheses, finished: Hypotheses, length: Array, run: Run) -> Bool[Array, "batch"]:
        worst = finished.scores[:, -1]
        if self.early_stopping:
            return worst > -jnp.inf
        favourable = jnp.where(jnp.asarray(self.length_penalty) > 0, run.max_new_tokens, length + 1)
        return (worst > -jnp.inf) & (self._penalised(running.scores[:, 0], favourable) <= worst)

    def _penalised(self, sums: Array, length: Int[Array, ""]) -> Array:
        return sums / jnp.asarray(length, jnp.float32) ** self.length_penalty

    def finish(self, run: Run, state: BeamState, batch: int) -> Generated:
        length = jnp.asarray(run.max_new_tokens)
        scores = jnp.where(state.progress.stopped[:, None], -jnp.inf, self._penalised(state.running.scores, length))
        left = dataclasses.replace(state.running, scores=scores)
        best = _best(_joined(state.finished, left), run.num_samples)
        return Generated(
            tokens=best.tokens,
            lengths=best.lengths,
            log_probs=best.log_probs,
            stopped=best.stopped,
            scores=best.scores,
            steps=state.progress.steps,
        )


def _joined(first: Hypotheses, second: Hypotheses) -> Hypotheses:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, second)


def _taken(hypotheses: Hypotheses, places: Int[Array, "batch count"]) -> Hypotheses:
    def take(array: Any) -> Array:
        return jnp.take_along_axis(array, places.reshape(*places.shape, *(1,) * (array.ndim - 2)), axis=1)

    return jax.tree.map(take, hypotheses)


def _best(hypotheses: Hypotheses, count: int) -> Hypotheses:
    return _taken(hypotheses, jax.lax.top_k(hypotheses.scores, count)[1])


def _over(over: Bool[Array, "batch"], like: Array) -> Array:
    return over.reshape(-1, *(1,) * (like.ndim - 1))
