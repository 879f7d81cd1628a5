"""`complete`: from prompts of any length, as texts, token ids or vectors, to continuations, on the host."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from jaxcore.distributed import num_batch_shards
from jaxcore.generation.generate import generate
from jaxcore.generation.option_checks import check_count
from jaxcore.generation.progress import Generated
from jaxcore.generation.prompts import pad_left, prompt_width
from jaxcore.generation.sampling import GREEDY
from jaxcore.generation.strategy import Strategy
from jaxcore.generation.vocabularies import check_tokenizer, ending_tokens
from jaxcore.transforms.intervene import Edit


@dataclasses.dataclass(frozen=True, eq=False)
class Completion:
    """One continuation of a prompt."""

    tokens: list[int]
    """Without padding; the stop token, if one ended it, included."""
    log_probs: Float[np.ndarray, "time"]
    """Of each token under the model, in nats."""
    stopped: bool
    """True if a stop token ended it."""
    score: float
    """As `Generated.scores`."""
    text: str | None
    """Decoded, without special tokens; None without a tokenizer."""


def complete(
    model: Any,
    params: Any,
    prompts: Sequence[Any],
    *,
    max_new_tokens: int,
    tokenizer: Any = None,
    strategy: Strategy = GREEDY,
    key: Key[Array, ""] | None = None,
    stop_tokens: Sequence[int] | None = None,
    num_samples: int = 1,
    batch_size: int | None = None,
    assistant: tuple[Any, Any] | None = None,
    edits: Mapping[str, Edit] | None = None,
    mesh: Mesh | None = None,
) -> list[list[Completion]]:
    """`num_samples` continuations of each prompt, in the prompts' order.

    Prompts of like length go together, padded on the left to one of few widths (`prompt_width`); all batches have the
    same number of rows. So there are few programs, whatever the lengths.

    Args:
        model, params, max_new_tokens, strategy, key, num_samples, assistant, edits, mesh: as in `generate`. Each
            batch draws with its own key, made from `key`. On a mesh batches are filled up until their samples divide
            over its shards.
        prompts: texts (with a tokenizer), sequences of token ids, or arrays (tokens, hidden) of word vectors.
        tokenizer: of transformers; makes ids of texts and texts of continuations.
        stop_tokens: None = the model's, or if it names none the tokenizer's (`ending_tokens`).
        batch_size: most prompts per program run; None = all.

    Raises:
        ValueError: no prompts, an empty prompt, texts without a tokenizer, a tokenizer of another model
            (`check_tokenizer`), and as `generate`.
    """
    if tokenizer is not None:
        check_tokenizer(tokenizer, model.config)
    encoded = _encoded(prompts, tokenizer)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    check_count("max_new_tokens", max_new_tokens)
    shards = 1 if mesh is None else num_batch_shards(mesh)
    rows = min(batch_size or len(encoded), len(encoded))
    shards //= math.gcd(shards, num_samples)  # prompts times samples are what is split
    rows_run = -(-rows // shards) * shards
    contexts = [bound[0].config.context_length for bound in ((model, params), assistant) if bound]
    limit = min(contexts) - max_new_tokens - getattr(strategy, "num_extra_positions", 0)
    stops = ending_tokens(tokenizer, model.config) if stop_tokens is None else tuple(stop_tokens)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    results: list[Any] = [None] * len(encoded)
    for number, start in enumerate(range(0, len(order), rows)):
        chosen = order[start : start + rows]
        filled = [encoded[index] for index in [*chosen, *[chosen[0]] * (rows_run - len(chosen))]]
        padded, mask = pad_left(filled, prompt_width(len(encoded[chosen[-1]]), limit=limit))
        generated = generate(
            model,
            params,
            padded if padded.ndim == 2 else None,
            mask,
            embeddings=padded if padded.ndim == 3 else None,
            strategy=strategy,
            max_new_tokens=max_new_tokens,
            key=None if key is None else jax.random.fold_in(key, number),
            stop_tokens=stops,
            pad_token=model.config.pad_token_id or 0,
            num_samples=num_samples,
            assistant=assistant,
            edits=edits,
            mesh=mesh,
        )
        for index, samples in zip(chosen, unpadded(generated, tokenizer), strict=False):
            results[index] = samples
    return results


def unpadded(generated: Generated, tokenizer: Any = None) -> list[list[Completion]]:
    """Arrays as lists of continuations, by prompt and sample."""
    host = jax.tree.map(np.asarray, generated)

    def completion(place: tuple[int, int]) -> Completion:
        length = int(host.lengths[place])
        tokens = host.tokens[place][:length].tolist()
        text = None if tokenizer is None else tokenizer.decode(tokens, skip_special_tokens=True)
        return Completion(
            tokens, host.log_probs[place][:length], bool(host.stopped[place]), float(host.scores[place]), text
        )

    batch, samples = host.lengths.shape
    return [[completion((row, sample)) for sample in range(samples)] for row in range(batch)]


def _encoded(prompts: Sequence[Any], tokenizer: Any) -> list[np.ndarray]:
    """Token ids or vectors of each prompt."""
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts must be a sequence of at least one prompt, got {prompts!r}")
    if any(isinstance(prompt, str) for prompt in prompts):
        if tokenizer is None:
            raise ValueError("prompts are texts: give a tokenizer, or token ids in their place")
        prompts = [tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts]
    arrays = [np.asarray(prompt) for prompt in prompts]
    for index, array in enumerate(arrays):
        if not array.shape or not len(array):
            raise ValueError(f"empty prompt: prompt {index} has no token; begin it with the model's first token (bos)")
        if array.ndim != arrays[0].ndim or array.ndim > 2:
            raise ValueError("prompts must all be token ids (tokens,) or all vectors (tokens, hidden)")
        if (array.ndim == 1) != np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"prompt {index} must be integer ids (tokens,) or vectors (tokens, hidden): "
                f"got {array.dtype} of shape {array.shape}"
            )
    return arrays
