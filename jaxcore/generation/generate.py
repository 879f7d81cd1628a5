"""`generate`: continuations of a padded batch of prompts, one compiled program per shape and kind of strategy."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxcore.distributed import check_batch, num_batch_shards, replicated, replicated_rows, split_rows, under_mesh
from jaxcore.generation.bound_model import BoundModel, read_prompts
from jaxcore.generation.progress import Generated, Run
from jaxcore.generation.request_checks import check_assistant, check_prompts, check_request
from jaxcore.generation.sampling import GREEDY
from jaxcore.generation.strategy import Strategy, decode
from jaxcore.transforms.intervene import Edit


def generate(
    model: Any,
    params: Any,
    input_ids: Int[Array | np.ndarray, "batch width"] | None,
    attention_mask: Int[Array | np.ndarray, "batch width"] | None = None,
    *,
    strategy: Strategy = GREEDY,
    max_new_tokens: int,
    key: Key[Array, ""] | None = None,
    stop_tokens: Sequence[int] = (),
    pad_token: int = 0,
    num_samples: int = 1,
    embeddings: Float[Array | np.ndarray, "batch width hidden"] | None = None,
    assistant: tuple[Any, Any] | None = None,
    edits: Mapping[str, Edit] | None = None,
    mesh: Mesh | None = None,
) -> Generated:
    """Continue each prompt by up to `max_new_tokens` tokens, in `num_samples` samples.

    Prompts are read once; their samples share what was read. The program is compiled once per shape of the prompts,
    `max_new_tokens`, `num_samples`, number of stop tokens, and structure of strategy and edits; parameters, numbers in
    the strategy, arrays in the edits, stop and pad tokens are its arguments. `complete` takes prompts of any length
    and pads them to few widths. Parameters unstacked by `jaxcore.models.unstack_layers` decode faster.

    Under `jax.jit` values (mask, ids) go unchecked; on a mesh that is `jaxcore.distributed.jit_on_mesh`.

    Args:
        model: a `Decoder`.
        params: its parameters, stacked or unstacked.
        input_ids: prompts, padded on the left; None where `embeddings` are given.
        attention_mask: 1 on real tokens, 0 on padding; None = all real.
        strategy: how tokens are chosen.
        max_new_tokens: most tokens of a continuation, 1 or more.
        key: of random strategies.
        stop_tokens: ids of which any ends a continuation; it is part of it.
        pad_token: id that fills the result behind the end.
        num_samples: continuations per prompt; in beam search, hypotheses.
        embeddings: word vectors in place of the prompts' ids.
        assistant: (model, params) of the draft or amateur that the strategy asks for; of the same vocabulary, in a
            table that may be padded otherwise (`jaxcore.generation.vocabularies`).
        edits: of the model's named activations, as for `jaxcore.transforms.intervene`, in force while the prompt is
            read and in every call after it. An edit sees the rows of the call: prompts first, then prompt by prompt all
            samples (candidates, beams). Functions are part of the program; arrays they need should be bound with
            `jax.tree_util.Partial(function, array)`, and then are arguments. The source axis of attention scores has
            the prompt's `width` slots first.
        mesh: outside of `jit`: prompts, or where they are too few their samples, are split over its batch axes; every
            process gives the same ones. Parameters are where they are (``load_pretrained(..., sharding=mesh)`` puts
            each part on its device). Results are whole on every device.

    Raises:
        ValueError: an empty prompt, padding that is not on the left, prompt and new tokens longer than the context,
            counts below 1, a token outside the vocabulary, a random strategy without key, an assistant that is missing,
            superfluous or of another vocabulary, options that do not fit, samples that the mesh cannot share equally.
    """
    mask = check_prompts(model.config, input_ids, attention_mask, embeddings)
    check_request(model.config, mask, strategy, max_new_tokens, num_samples, stop_tokens, key)
    check_assistant(model.config, strategy, assistant, mask, max_new_tokens, given_embeddings=embeddings is not None)
    if mesh is None:
        place = jnp.asarray
    else:
        rows = mask.shape[0]
        check_batch(mesh, rows * num_samples, 1)
        splits = rows % num_batch_shards(mesh) == 0  # else few prompts of many samples: those are split
        place = functools.partial(split_rows if splits else replicated_rows, mesh)
    assistant_model, assistant_params = assistant or (None, None)
    return _program(
        nn.meta.unbox(params),
        nn.meta.unbox(assistant_params),
        as_arguments(edits),
        strategy,
        input_ids if input_ids is None else place(input_ids).astype(jnp.int32),
        place(mask),
        embeddings if embeddings is None else place(embeddings),
        jax.random.key(0) if key is None else key,
        jnp.asarray(stop_tokens, jnp.int32).reshape(-1),
        jnp.asarray(pad_token, jnp.int32),
        model=model,
        assistant_model=assistant_model,
        max_new_tokens=max_new_tokens,
        num_samples=num_samples,
        mesh=mesh,
    )


def as_arguments(edits: Mapping[str, Edit] | None) -> dict[str, Any]:
    """Edits as a pytree: functions in its structure, arrays as its leaves."""

    def argument(edit: Edit) -> Any:
        is_bound = isinstance(edit, jax.tree_util.Partial) or not callable(edit)
        return edit if is_bound else jax.tree_util.Partial(edit)

    return {name: argument(edit) for name, edit in (edits or {}).items()}


@functools.partial(jax.jit, static_argnames=("model", "assistant_model", "max_new_tokens", "num_samples", "mesh"))
def _program(
    params: Any,
    assistant_params: Any,
    edits: Any,
    strategy: Strategy,
    input_ids: Any,
    mask: Any,
    embeddings: Any,
    key: Any,
    stop_tokens: Any,
    pad_token: Any,
    *,
    model: Any,
    assistant_model: Any,
    max_new_tokens: int,
    num_samples: int,
    mesh: Mesh | None,
) -> Generated:
    with under_mesh(mesh):
        models = [BoundModel(params, edits, model)]
        if assistant_model is not None:
            models.append(BoundModel(assistant_params, {}, assistant_model, model.config.vocab_size))
        prompts = [read_prompts(bound, input_ids, mask, embeddings) for bound in models]
        found = decode(strategy, models, prompts, Run(key, stop_tokens, pad_token, max_new_tokens, num_samples))
    return found if mesh is None else jax.lax.with_sharding_constraint(found, replicated(mesh))
