"""A language model as decoding strategies see it: a module with its parameters and the edits of its activations."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcore.models import KeyValueCache, unstack_cache
from jaxcore.transforms import intervene


@flax.struct.dataclass
class BoundModel:
    """A decoder ready to run.

    The module is a `jaxcore.models.Decoder`, or any linen module with its `trunk`, `logits` and `config`.
    """

    params: Any
    edits: Mapping[str, Any]
    """For each activation an array or a `jax.tree_util.Partial`: what `intervene` takes. Empty = none."""
    module: Any = flax.struct.field(pytree_node=False)
    vocab_size: int | None = flax.struct.field(pytree_node=False, default=None)
    """Ids that it is asked about and gives scores of; None = as many as its table has.

    The tables of a model and its assistant may be padded otherwise. An id beyond this model's table is read as its last
    row and gets the score -inf."""

    @property
    def config(self) -> Any:
        return self.module.config

    def trunk(
        self,
        input_ids: Int[Array, "rows time"] | None,
        cache: KeyValueCache | None,
        *,
        mask: Int[Array, "rows time"] | None = None,
        embeddings: Float[Array, "rows time hidden"] | None = None,
    ) -> tuple[Float[Array, "rows time hidden"], Any]:
        """Hidden states after the last norm, and the cache with the new tokens; the edits in force."""

        def run(params: Any, ids: Any, mask: Any, embeddings: Any, cache: Any) -> Any:
            variables = {"params": params}
            return self.module.apply(variables, ids, mask, embeddings=embeddings, cache=cache, method="trunk")

        edited = intervene(run, self.edits) if self.edits else run
        if input_ids is not None and self._spare_ids > 0:
            input_ids = jnp.minimum(input_ids, self.config.vocab_size - 1)
        return edited(self.params, input_ids, mask, embeddings, cache)

    def logits(self, hidden: Float[Array, "rows hidden"]) -> Float[Array, "rows vocab"]:
        """Float32 scores of the next token."""
        scores = self.module.apply({"params": self.params}, hidden, method="logits")
        spare = self._spare_ids
        if spare > 0:
            return jnp.pad(scores, [*[(0, 0)] * (scores.ndim - 1), (0, spare)], constant_values=-jnp.inf)
        return scores[..., :spare] if spare else scores

    @property
    def _spare_ids(self) -> int:
        """Ids beyond the table; negative where rows of the table are not asked about."""
        return 0 if self.vocab_size is None else self.vocab_size - self.config.vocab_size

    def empty_cache(self, rows: int, capacity: int) -> KeyValueCache:
        """A cache in the form of the parameters: stacked, or one array per block."""
        cache = KeyValueCache.empty(self.config, rows, capacity)
        return unstack_cache(cache) if "0" in self.params["layers"] else cache


@flax.struct.dataclass
class Prompt:
    """What a model has read of a batch of left-padded prompts: the shared prefix of all their continuations."""

    cache: KeyValueCache
    """As wide as the prompts, so that none of it is empty."""
    hidden: Float[Array, "batch width hidden"]
    """After the last norm, of every position; those of padding mean nothing."""

    @property
    def rows(self) -> int:
        return self.cache.rows


def read_prompts(
    model: BoundModel,
    input_ids: Int[Array, "batch width"] | None,
    mask: Int[Array, "batch width"],
    embeddings: Float[Array, "batch width hidden"] | None = None,
) -> Prompt:
    """One call of the trunk over all prompts; no logits are formed."""
    hidden, cache = model.trunk(input_ids, model.empty_cache(*mask.shape), mask=mask, embeddings=embeddings)
    return Prompt(cache=cache, hidden=hidden)


def next_log_probs(logits: Float[Array, "rows vocab"], tokens: Int[Array, "rows"]) -> Float[Array, "rows"]:
    """`log softmax(logits)` at one token per row, without forming the others."""
    return jnp.take_along_axis(logits, tokens[:, None], 1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
