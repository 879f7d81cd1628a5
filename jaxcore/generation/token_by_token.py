"""Strategies that choose each token from the next-token scores alone: one call of the model per token."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxcore.generation.bound_model import BoundModel, Prompt, next_log_probs
from jaxcore.generation.progress import Generated, Progress, Run, append, collected, empty_progress
from jaxcore.models import KeyValueCache, fork


@flax.struct.dataclass
class TokenState:
    """Between two tokens."""

    progress: Progress
    tokens: Int[Array, "rows"]
    """The latest token of each row; it goes on being chosen, unseen, in rows that have stopped."""
    caches: tuple[KeyValueCache, ...]
    """Of each model; without the latest token."""


class TokenByToken:
    """A strategy with one method of its own, `choose`."""

    needs_assistant: ClassVar[bool] = False

    @property
    def is_random(self) -> bool:
        raise NotImplementedError

    @property
    def num_extra_positions(self) -> int:
        return 0

    def choose(self, logits: Sequence[Float[Array, "rows vocab"]], key: Key[Array, ""]) -> Int[Array, "rows"]:
        """The next token of each row from the scores of each model."""
        raise NotImplementedError

    def check(self, vocab_size: int, run_length: int, num_samples: int) -> None:
        if num_samples > 1 and not self.is_random:
            raise ValueError(
                f"{type(self).__name__} gives the same text every time: num_samples must be 1, got {num_samples} "
                "(take Sampling, or BeamSearch for several hypotheses)"
            )

    def start(self, models: Sequence[BoundModel], prompts: Sequence[Prompt], run: Run) -> TokenState:
        logits = [
            jnp.repeat(model.logits(prompt.hidden[:, -1]), run.num_samples, axis=0)
            for model, prompt in zip(models, prompts, strict=True)
        ]
        caches = tuple(fork(prompt.cache, run.num_samples, run.max_new_tokens) for prompt in prompts)
        return self._next(logits, caches, run, empty_progress(len(logits[0]), run.max_new_tokens, run))

    def advance(self, models: Sequence[BoundModel], run: Run, state: TokenState) -> TokenState:
        logits, caches = [], []
        for model, cache in zip(models, state.caches, strict=True):
            hidden, cache = model.trunk(state.tokens[:, None], cache)
            logits.append(model.logits(hidden[:, -1]))
            caches.append(cache)
        return self._next(logits, tuple(caches), run, state.progress)

    def _next(self, logits: Sequence[Array], caches: Any, run: Run, progress: Progress) -> TokenState:
        tokens = self.choose(logits, jax.random.fold_in(run.key, progress.steps))
        return TokenState(append(progress, run, tokens, next_log_probs(logits[0], tokens)), tokens, caches)

    def finish(self, run: Run, state: TokenState, batch: int) -> Generated:
        return collected(state.progress, run, batch)
