"""A generation read again in one call: all scores, hidden states and attention that the run went through."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcore.generation.bound_model import BoundModel
from jaxcore.generation.generate import as_arguments
from jaxcore.generation.progress import Generated
from jaxcore.generation.request_checks import check_prompts
from jaxcore.transforms import capture
from jaxcore.transforms.intervene import Edit


@flax.struct.dataclass
class Replay:
    """What the model computed; R = batch * samples rows, prompt by prompt, N = width + new tokens."""

    logits: Float[Array, "batch samples time vocab"]
    """Scores that each generated token was chosen from."""
    hidden: Float[Array, "rows tokens hidden"]
    """After the last norm, of prompt and continuation."""
    captured: dict[str, Any]
    """The named activations, as `jaxcore.transforms.capture` gives them: (layers, R, N, ...)."""


def replay(
    model: Any,
    params: Any,
    input_ids: Int[Array, "batch width"] | None,
    attention_mask: Int[Array, "batch width"] | None,
    generated: Generated,
    names: str | Iterable[str] = (),
    *,
    embeddings: Float[Array, "batch width hidden"] | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> Replay:
    """One call of the model over each prompt with its continuation: causal, so it computes what decoding did.

    Decoding keeps no activations; all of them come back here at the price of one forward pass. Values at padding, and
    behind the end of a continuation, mean nothing.

    Args:
        model, params, input_ids, attention_mask, embeddings, edits: as they were given to `generate`.
        generated: its result.
        names: activations to capture (`attention_weights`, `layer_output`, ...).

    Raises:
        ValueError: as `generate` for the prompts; a name that does not occur.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    mask = jnp.asarray(check_prompts(model.config, input_ids, attention_mask, embeddings))
    return _program(
        nn.meta.unbox(params), as_arguments(edits), input_ids, mask, embeddings, generated, model=model, names=names
    )


@functools.partial(jax.jit, static_argnames=("model", "names"))
def _program(
    params: Any, edits: Any, ids: Any, mask: Any, embeddings: Any, generated: Generated, *, model: Any, names: Any
) -> Replay:
    bound = BoundModel(params, edits, model)
    batch, samples, time = generated.tokens.shape
    rows, width = batch * samples, mask.shape[1]
    tokens = generated.tokens.reshape(rows, time)
    real = jnp.arange(time) < generated.lengths.reshape(rows, 1)
    tokens = jnp.where(real, tokens, 0)  # the pad token may be outside the vocabulary

    def whole(prompts: Array, continuations: Array) -> Array:
        return jnp.concatenate([jnp.repeat(prompts, samples, axis=0), continuations], axis=1)

    vectors = None
    if ids is None:
        vectors = whole(embeddings, model.apply({"params": params}, tokens, method="embed"))
    inputs = None if ids is None else whole(ids, tokens)

    def run(inputs: Any, mask: Any, vectors: Any) -> Any:
        return bound.trunk(inputs, None, mask=mask, embeddings=vectors)[0]

    hidden, captured = capture(run, names)(inputs, whole(mask, real.astype(mask.dtype)), vectors)
    logits = bound.logits(hidden[:, width - 1 : -1])
    return Replay(logits.reshape(batch, samples, time, -1), hidden, captured)
