"""What a decoding strategy is, and the one loop that runs it."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import jax

from jaxcore.generation.bound_model import BoundModel, Prompt
from jaxcore.generation.progress import Generated, Progress, Run, is_unfinished


class Strategy(Protocol):
    """How the next tokens are chosen: a frozen pytree of options and four pure functions.

    Options that are numbers may be traced; those that decide a shape or the program's structure are static fields.
    `models` and `prompts` hold the model and, where the strategy asks for it, the assistant behind it.
    """

    needs_assistant: ClassVar[bool]
    """Whether a second model takes part (the draft of speculative, the amateur of contrastive decoding)."""

    @property
    def is_random(self) -> bool:
        """Whether the key has a part in the tokens."""

    @property
    def num_extra_positions(self) -> int:
        """Positions behind the last new token that the models may be asked for."""

    def check(self, vocab_size: int, run_length: int, num_samples: int) -> None:
        """ValueError for options that do not fit the model or the request."""

    def start(self, models: Sequence[BoundModel], prompts: Sequence[Prompt], run: Run) -> Any:
        """The state before the first call of a model; it has a field `progress`."""

    def advance(self, models: Sequence[BoundModel], run: Run, state: Any) -> Any:
        """The state one call of the model later, of the same shapes and dtypes."""

    def finish(self, run: Run, state: Any, batch: int) -> Generated:
        """The result for `batch` prompts."""


def decode(strategy: Strategy, models: Sequence[BoundModel], prompts: Sequence[Prompt], run: Run) -> Generated:
    """Run the strategy until every row has stopped or is full."""

    def goes_on(state: Any) -> Any:
        progress: Progress = state.progress
        return is_unfinished(progress, run)

    state = strategy.start(models, prompts, run)
    state = jax.lax.while_loop(goes_on, lambda state: strategy.advance(models, run, state), state)
    return strategy.finish(run, state, prompts[0].rows)
