"""Contrastive decoding: what a strong model prefers more than a weak one does (Li et al. 2023)."""

from collections.abc import Sequence
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxcore.generation.option_checks import check_finite, check_positive, check_share
from jaxcore.generation.sampling import Chooser, Greedy, check_chooser
from jaxcore.generation.token_by_token import TokenByToken


@flax.struct.dataclass
class ContrastiveDecoding(TokenByToken):
    """The chooser's token under scores that a second model, the amateur (`assistant`), corrects.

        s(v) = (1 + beta) log p(v) - beta log q(v)   where p(v) >= alpha max_w p(w),   -inf elsewhere

    p is the model's distribution, q the amateur's at `amateur_temperature`. The condition keeps plausible tokens only
    (Li et al. 2023, equation 2); their own score, log p - log q, is the limit of large beta, and beta = 0.5 is what
    O'Brien & Lewis (2023) take for reasoning. beta = 0 is the chooser alone, on the plausible tokens. Tokens that the
    amateur's table does not have are never chosen.

    Raises:
        ValueError: alpha outside (0, 1], beta below 0, amateur_temperature not above 0.
    """

    alpha: float | Array = 0.1
    beta: float | Array = 0.5
    amateur_temperature: float | Array = 1.0
    chooser: Chooser = Greedy()
    """Greedy, or Sampling from `softmax(s)`."""

    needs_assistant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)
        check_finite("beta", self.beta)
        if isinstance(self.beta, int | float) and self.beta < 0:
            raise ValueError(f"beta must not be negative, got {self.beta}")
        check_positive("amateur_temperature", self.amateur_temperature)

    @property
    def is_random(self) -> bool:
        return self.chooser.is_random

    def check(self, vocab_size: int, run_length: int, num_samples: int) -> None:
        check_chooser(self.chooser, type(self).__name__)
        super().check(vocab_size, run_length, num_samples)

    def choose(self, logits: Sequence[Float[Array, "rows vocab"]], key: Key[Array, ""]) -> Int[Array, "rows"]:
        return self.chooser.draw(self.scores(*logits), key)

    def scores(
        self, expert: Float[Array, "rows vocab"], amateur: Float[Array, "rows vocab"]
    ) -> Float[Array, "rows vocab"]:
        """s(v) from both models' logits."""
        log_p = jax.nn.log_softmax(expert)
        log_q = jax.nn.log_softmax(amateur / self.amateur_temperature)
        log_p = jnp.where(log_q > -jnp.inf, log_p, -jnp.inf)
        plausible = log_p >= jnp.log(self.alpha) + log_p.max(-1, keepdims=True)
        return jnp.where(plausible, log_p + self.beta * (log_p - log_q), -jnp.inf)
