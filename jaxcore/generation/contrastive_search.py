"""Contrastive search: probable, and unlike what was said before (Su & Collier 2023; Su et al. 2022)."""

from collections.abc import Sequence
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcore.generation.bound_model import BoundModel, Prompt, next_log_probs
from jaxcore.generation.option_checks import check_count, check_fraction
from jaxcore.generation.progress import Generated, Progress, Run, append, collected, empty_progress
from jaxcore.generation.sampling import Sampling
from jaxcore.losses.similarity import unit_vectors
from jaxcore.models import KeyValueCache, adopt, fork


@flax.struct.dataclass
class SearchState:
    """Between two tokens."""

    progress: Progress
    hidden: Float[Array, "rows hidden"]
    """Of the latest token: the next token's scores are a linear map of it."""
    prompt_directions: Float[Array, "batch width hidden"] | None
    """Unit vectors of the prompts' hidden states; None if they are not penalised."""
    prompt_valid: Bool[Array, "batch width"]
    directions: Float[Array, "rows time hidden"]
    """Unit vectors of the generated tokens' hidden states, as many as steps."""
    cache: KeyValueCache


@flax.struct.dataclass
class ContrastiveSearch:
    """The best of the k most probable tokens by probability and novelty.

        x_t = argmax over v in V_k of  (1 - alpha) p(v | x_<t) - alpha max_{j < t} cos(h_v, h_j)

    p is the softmax over the whole vocabulary, V_k its k largest entries, h the hidden state after the last norm, h_v
    that of candidate v at position t, j runs over prompt and generated tokens. Equal scores: the more probable token.
    k = 1 and alpha = 0 are greedy decoding.

    The k candidates of a row are one call of the model, on a cache that they share; that call is also the chosen
    token's, whose keys, values and hidden state are kept. So a token costs one call of k tokens, and no copy.

    With `num_sampled` = s, the first s tokens are sampled from the nucleus `top_p` instead (diverse contrastive search)
    and samples of one prompt differ.

    Raises:
        ValueError: k below 1, alpha outside [0, 1], top_p outside (0, 1], num_sampled below 0.
    """

    k: int = flax.struct.field(pytree_node=False, default=4)
    alpha: float | Array = 0.6
    penalise_prompt: bool = flax.struct.field(pytree_node=False, default=True)
    """False lets j run over the generated tokens alone."""
    num_sampled: int = flax.struct.field(pytree_node=False, default=0)
    top_p: float | Array = 0.95

    needs_assistant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_count("k", self.k)
        check_fraction("alpha", self.alpha)
        if self.num_sampled != 0:
            check_count("num_sampled", self.num_sampled)
        Sampling(top_p=self.top_p)

    @property
    def is_random(self) -> bool:
        return self.num_sampled > 0

    @property
    def num_extra_positions(self) -> int:
        return 0

    def check(self, vocab_size: int, run_length: int, num_samples: int) -> None:
        if self.k > vocab_size:
            raise ValueError(f"k must be at most the {vocab_size} tokens of the vocabulary, got {self.k}")
        if num_samples > 1 and not self.is_random:
            raise ValueError(
                f"contrastive search gives the same text every time: num_samples must be 1, got {num_samples} "
                "(or sample its first tokens: num_sampled)"
            )

    def start(self, models: Sequence[BoundModel], prompts: Sequence[Prompt], run: Run) -> SearchState:
        (prompt,) = prompts
        hidden = jnp.repeat(prompt.hidden[:, -1], run.num_samples, axis=0)
        rows, size = hidden.shape
        return SearchState(
            progress=empty_progress(rows, run.max_new_tokens, run),
            hidden=hidden,
            prompt_directions=unit_vectors(prompt.hidden) if self.penalise_prompt else None,
            prompt_valid=prompt.cache.valid,
            directions=jnp.zeros((rows, run.max_new_tokens, size), jnp.float32),
            cache=fork(prompt.cache, run.num_samples, run.max_new_tokens),
        )

    def advance(self, models: Sequence[BoundModel], run: Run, state: SearchState) -> SearchState:
        (model,) = models
        rows, steps = len(state.hidden), state.progress.steps
        logits = model.logits(state.hidden)
        ids = jax.lax.top_k(logits, self.k)[1].astype(jnp.int32)
        if self.num_sampled:
            ids = self._sampled_first(ids, logits, run, steps)
        probabilities = jnp.exp(jnp.take_along_axis(logits, ids, 1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        hidden, written = model.trunk(ids.reshape(-1, 1), fork(state.cache, self.k, 1))
        hidden = hidden.reshape(rows, self.k, -1)
        directions = unit_vectors(hidden)
        penalty = largest_cosine(directions, state.directions, jnp.arange(run.max_new_tokens) < steps)
        if state.prompt_directions is not None:
            of_prompt = largest_cosine(directions, state.prompt_directions, state.prompt_valid)
            penalty = jnp.maximum(penalty, of_prompt)
        choice = jnp.argmax(contrastive_scores(probabilities, penalty, self.alpha), axis=-1)
        if self.num_sampled:
            choice = jnp.where(steps < self.num_sampled, 0, choice)
        tokens = _chosen(ids, choice)
        return SearchState(
            progress=append(state.progress, run, tokens, next_log_probs(logits, tokens)),
            hidden=_chosen(hidden, choice),
            prompt_directions=state.prompt_directions,
            prompt_valid=state.prompt_valid,
            directions=jax.lax.dynamic_update_slice(
                state.directions, _chosen(directions, choice)[:, None], (0, steps, 0)
            ),
            cache=adopt(written, choice),
        )

    def _sampled_first(self, ids: Array, logits: Array, run: Run, steps: Array) -> Int[Array, "rows k"]:
        """In the first steps, a sampled token in the place of the most probable one."""

        def draw() -> Array:
            return Sampling(top_p=self.top_p).draw(logits, jax.random.fold_in(run.key, steps))

        first = jax.lax.cond(steps < self.num_sampled, draw, lambda: ids[:, 0])
        return ids.at[:, 0].set(first)

    def finish(self, run: Run, state: SearchState, batch: int) -> Generated:
        return collected(state.progress, run, batch)


def contrastive_scores(
    probabilities: Float[Array, "rows k"], penalty: Float[Array, "rows k"], alpha: float | Array
) -> Float[Array, "rows k"]:
    """`(1 - alpha) p(v) - alpha max_j cos(h_v, h_j)` of each candidate."""
    return (1 - alpha) * probabilities - alpha * penalty


def largest_cosine(
    candidates: Float[Array, "rows k hidden"],
    context: Float[Array, "batch positions hidden"],
    valid: Bool[Array, "positions"] | Bool[Array, "batch positions"],
) -> Float[Array, "rows k"]:
    """`max_j cos(h_v, h_j)` over the valid positions j of each candidate's context; -1 where there are none.

    Args:
        candidates: unit vectors; row r belongs to context r // (rows / batch).
        context: unit vectors.
        valid: which positions count.
    """
    rows, k, size = candidates.shape
    batch = context.shape[0]
    cosines = jnp.einsum(
        "bcd,bsd->bcs", candidates.reshape(batch, -1, size), context, preferred_element_type=jnp.float32
    )
    largest = jnp.where(jnp.broadcast_to(valid, context.shape[:2])[:, None], cosines, -1.0).max(-1)
    return largest.reshape(rows, k)


def _chosen(candidates: Array, choice: Int[Array, "rows"]) -> Array:
    """One candidate per row."""
    return candidates[jnp.arange(len(choice)), choice]
