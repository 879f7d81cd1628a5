"""Greedy decoding and sampling: strategies by themselves, and the choosers inside others."""

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxcore.generation.categorical_draws import draw_categorical
from jaxcore.generation.option_checks import check_count, check_positive, check_share
from jaxcore.generation.probability_filters import keep_min_p, keep_top_k, keep_top_p, keep_typical
from jaxcore.generation.token_by_token import TokenByToken


class Chooser(TokenByToken):
    """A strategy that draws the next token from a distribution of its own, made from the model's scores."""

    def distribution(self, logits: Float[Array, "*rows vocab"]) -> Float[Array, "*rows vocab"]:
        """Log probabilities, up to a constant, that tokens are drawn with; -inf at those that never are."""
        raise NotImplementedError

    def draw(self, logits: Float[Array, "rows vocab"], key: Key[Array, ""]) -> Int[Array, "rows"]:
        """A token per row."""
        return draw_categorical(self.distribution(logits), key)

    def choose(self, logits: Sequence[Float[Array, "rows vocab"]], key: Key[Array, ""]) -> Int[Array, "rows"]:
        return self.draw(logits[0], key)


@flax.struct.dataclass
class Greedy(Chooser):
    """The most probable token; among equals the one of lowest id."""

    @property
    def is_random(self) -> bool:
        return False

    def distribution(self, logits: Float[Array, "*rows vocab"]) -> Float[Array, "*rows vocab"]:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)

    def draw(self, logits: Float[Array, "rows vocab"], key: Key[Array, ""]) -> Int[Array, "rows"]:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


GREEDY = Greedy()


@flax.struct.dataclass
class Sampling(Chooser):
    """A token drawn from `softmax(logits / temperature)` after the filters, which act in the order of the fields.

    Each filter sees the distribution that those before it have left, renormalised; see `probability_filters`.

    Raises:
        ValueError: temperature not above 0, top_k below 1, a share outside (0, 1].
    """

    temperature: float | Array = 1.0
    """Above 0; below 1 sharpens."""
    top_k: int | None = flax.struct.field(pytree_node=False, default=None)
    """Keep so many tokens; None = all."""
    top_p: float | Array | None = None
    """Keep the nucleus of this probability; None or 1 = all."""
    min_p: float | Array | None = None
    """Keep tokens so probable relative to the best; None = all."""
    typical_p: float | Array | None = None
    """Keep the typical set of this probability; None or 1 = all."""

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        for name in ("top_p", "min_p", "typical_p"):
            check_share(name, getattr(self, name))

    @property
    def is_random(self) -> bool:
        return True

    def distribution(self, logits: Float[Array, "*rows vocab"]) -> Float[Array, "*rows vocab"]:
        scores = logits / self.temperature
        if self.top_k is not None:
            scores = keep_top_k(scores, self.top_k)
        for keep, share in ((keep_top_p, self.top_p), (keep_min_p, self.min_p), (keep_typical, self.typical_p)):
            if share is not None:
                scores = keep(scores, share)
        return scores


def check_chooser(chooser: Chooser, owner: str) -> None:
    """ValueError unless the `chooser` of another strategy is one."""
    if not isinstance(chooser, Chooser):
        raise ValueError(f"the chooser of {owner} must be Greedy or Sampling, got {type(chooser).__name__}")
