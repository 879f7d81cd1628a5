"""What a method by name is given: a score of token embeddings, the tokens, what stands for none, and its settings."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxcore.attribution.input_checks import Baseline, Score, check_features_left, check_positive, check_score, is_known


class TokenTask(NamedTuple):
    """What a method is given.

    Attributes:
        score: maps embeddings to [batch].
        embeddings: what is attributed to.
        mask: True at tokens.
        baseline: what a token is replaced by, broadcast against one text's [time, dim] or the whole batch.
        baselines: for methods that average over several, [baselines, time, dim].
        key: of random methods.
        num_steps: points on a path; None = the method's own number.
        num_samples: draws, evaluations or permutations; None = the method's own number.
        chunk_size, memory_budget: see `jaxcore.attribution.chunking`.
        vocabulary: word vectors that a text may pass, for the one method whose path goes along them; None = unknown.
    """

    score: Score
    embeddings: Float[Array, "batch time dim"]
    mask: Bool[Array, "batch time"]
    baseline: Baseline
    baselines: Float[Array, "baselines time dim"]
    key: Key[Array, ""]
    num_steps: int | None = None
    num_samples: int | None = None
    chunk_size: int | None = None
    memory_budget: int | None = None
    vocabulary: Float[Array, "words dim"] | None = None

    @property
    def chunks(self) -> dict[str, Any]:
        return {"chunk_size": self.chunk_size, "memory_budget": self.memory_budget}

    def steps(self, default: int) -> dict[str, Any]:
        return {"num_steps": self.num_steps or default, **self.chunks}

    def samples(self, default: int, name: str = "num_samples") -> dict[str, Any]:
        return {name: self.num_samples or default, **self.chunks}


def token_task(
    score: Score,
    embeddings: Float[Array, "batch time dim"],
    mask: Array,
    key: Key[Array, ""],
    baseline: Baseline,
    baselines: Array | None = None,
    *,
    vocabulary: Array | None = None,
    **counts: int | None,
) -> TokenTask:
    """The checked task; ValueError for embeddings, mask, score or counts that no method could use.

    A text without a token is such an error where the mask's values are known (not inside `jax.jit`): rows that only
    fill up a batch must repeat one of its texts.
    """
    check_score(score, embeddings)
    check_positive(**counts)
    if embeddings.ndim != 3 or jnp.shape(mask) != embeddings.shape[:2]:
        raise ValueError(
            f"embeddings must be [batch, time, dim] and the mask [batch, time]: got {list(embeddings.shape)} and "
            f"{list(jnp.shape(mask))}"
        )
    if is_known(mask):
        check_features_left(np.sum(np.asarray(mask) != 0, axis=1))
    example = embeddings.shape[1:]
    if baselines is None:
        if jnp.ndim(baseline) == 3 and jnp.shape(baseline)[0] > 1:
            raise ValueError("a baseline per text cannot stand for `baselines` [baselines, time, dim]: give them too")
        one = jnp.asarray(baseline, embeddings.dtype)
        baselines = one if one.ndim == 3 else one[None]
    baselines = jnp.broadcast_to(baselines, (jnp.shape(baselines)[0] if jnp.ndim(baselines) else 1, *example))
    # Jitted: traced once, however often a method evaluates it, which is most of the time until a program runs.
    settings: Any = {**counts, "vocabulary": vocabulary}
    return TokenTask(jax.jit(score), embeddings, jnp.asarray(mask) != 0, baseline, baselines, key, **settings)
