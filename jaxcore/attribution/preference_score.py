"""How much rather a decoder would give one response to a prompt than another, as a function of the prompt's vectors.

    F(E) = log p(y+ | E) - log p(y- | E),      log p(y | E) = sum_j log p(y_j | E, y_<j)

E are the vectors of the prompt, whatever they stand for: word vectors of tokens, projected patches of an image. So F
is a score for any attribution method:

    pairs = ResponsePairs(prompt_mask, chosen, chosen_mask, rejected, rejected_mask)
    score = preference_score(model, params, pairs)
    integrated_gradients(score, model.apply({"params": params}, prompt_ids, method="embed"), num_steps=20)

Source: Nguyen et al. 2025 (GrAInS), section on attribution; the log probabilities are those of all of a response.
"""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxcore.attribution.input_checks import Score
from jaxcore.losses.next_token import TokenLogProbs, next_token_log_probs
from jaxcore.transforms import capture

Reduction = Literal["sum", "mean"]
Objective = Literal["contrastive", "chosen"]


@struct.dataclass
class ResponsePairs:
    """The responses to a batch of prompts: token ids padded on the right, the prompts themselves on the left."""

    prompt_mask: Int[Array, "batch width"]
    """1 on the prompt's own positions; the last column is always one of them."""
    chosen: Int[Array, "batch length"]
    chosen_mask: Int[Array, "batch length"]
    rejected: Int[Array, "batch length"]
    rejected_mask: Int[Array, "batch length"]

    def stacked(self) -> tuple[Int[Array, "rows length"], Int[Array, "rows length"]]:
        """Responses and their mask, two rows for each prompt: first the chosen, then the rejected one."""
        responses = jnp.stack([self.chosen, self.rejected], axis=1)
        masks = jnp.stack([self.chosen_mask, self.rejected_mask], axis=1)
        rows = 2 * responses.shape[0]
        return responses.reshape(rows, -1), masks.reshape(rows, -1)


def preference_margin(
    model: Any,
    params: Any,
    prompt: Float[Array, "batch width hidden"],
    pairs: ResponsePairs,
    *,
    reduction: Reduction = "sum",
) -> Float[Array, " batch"]:
    """``log p(y+ | prompt) - log p(y- | prompt)`` in nats, by teacher forcing, both responses in one call.

    Args:
        model, params: a `jaxcore.models.Decoder` and its parameters.
        prompt: vectors of the prompts' positions.
        pairs: their responses.
        reduction: "sum" is the log probability of the response, "mean" that per token (responses of unequal length).

    Raises:
        ValueError: arrays that do not fit each other, a prompt padded on the right, an unknown reduction.
    """
    chosen, rejected = _log_probs(model, params, prompt, pairs, reduction)
    return chosen - rejected


def preference_score(
    model: Any,
    params: Any,
    pairs: ResponsePairs,
    *,
    objective: Objective = "contrastive",
    reduction: Reduction = "sum",
) -> Score:
    """The margin as a score of the prompt's vectors, the vectors of the responses held fixed.

    Args:
        objective: "contrastive" is F above; "chosen" is log p(y+ | E) alone, which asks what makes the response
            likely, not what makes it the likelier one.

    Other arguments and errors as for `preference_margin`.
    """
    if objective not in ("contrastive", "chosen"):
        raise ValueError(f"objective must be contrastive or chosen: got {objective!r}")

    def score(prompt: Float[Array, "batch width hidden"]) -> Float[Array, " batch"]:
        chosen, rejected = _log_probs(model, params, prompt, pairs, reduction)
        return chosen - rejected if objective == "contrastive" else chosen

    return score


def sequence_preference_score(model: Any, params: Any, pairs: ResponsePairs, *, reduction: Reduction = "sum") -> Score:
    """The margin as a score of both whole texts' vectors, as the released code has it: ``{"chosen", "rejected"}``.

    Each is [batch, width + length, hidden], prompt and response; an attribution then has a share for the tokens of the
    responses too. `sequence_vectors` gives them.
    """
    width = pairs.prompt_mask.shape[1]

    def score(texts: dict[str, Float[Array, "batch time hidden"]]) -> Float[Array, " batch"]:
        chosen, rejected = (
            _response_log_probs(model, params, texts[name], mask, responses, responses_mask, width, reduction)
            for name, mask, responses, responses_mask in (
                ("chosen", pairs.prompt_mask, pairs.chosen, pairs.chosen_mask),
                ("rejected", pairs.prompt_mask, pairs.rejected, pairs.rejected_mask),
            )
        )
        return chosen - rejected

    return score


def sequence_vectors(
    model: Any, params: Any, prompt: Float[Array, "batch width hidden"], pairs: ResponsePairs
) -> dict[str, Float[Array, "batch time hidden"]]:
    """What `sequence_preference_score` is a function of: prompts followed by the word vectors of each response."""
    return {
        name: jnp.concatenate([prompt, _embed(model, params, responses, prompt)], axis=1)
        for name, responses in (("chosen", pairs.chosen), ("rejected", pairs.rejected))
    }


def response_states(
    model: Any,
    params: Any,
    prompt: Float[Array, "batch width hidden"],
    pairs: ResponsePairs,
    *,
    name: str = "layer_output",
) -> Float[Array, "batch 2 layers ..."]:
    """A named activation of every layer at the last token of prompt and response: chosen first, then rejected.

    "layer_output" is the residual stream behind each block, before the last norm, [batch, 2, layers, hidden];
    "attention_heads" what each head adds up, [batch, 2, layers, heads, head_size].
    """
    responses, responses_mask = pairs.stacked()
    text, mask = _whole(model, params, jnp.repeat(prompt, 2, axis=0), pairs.prompt_mask, responses, responses_mask)
    states = last_states(model, params, text, mask, name=name)
    return states.reshape(prompt.shape[0], 2, *states.shape[1:])


def last_states(
    model: Any,
    params: Any,
    embeddings: Float[Array, "batch time hidden"],
    mask: Int[Array, "batch time"],
    *,
    name: str = "layer_output",
) -> Float[Array, "batch layers ..."]:
    """A named activation of every layer at each text's last real token, in float32."""
    states = _captured(model, params, embeddings, mask, name)
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    index = last.reshape(1, -1, 1, *(1,) * (states.ndim - 3))
    chosen = jnp.take_along_axis(states, index, axis=2)[:, :, 0]
    return jnp.moveaxis(chosen, 0, 1).astype(jnp.float32)


def mean_state_norms(
    model: Any, params: Any, embeddings: Float[Array, "batch time hidden"], mask: Int[Array, "batch time"]
) -> Float[Array, "batch layers"]:
    """Mean Euclidean norm of the residual stream behind each block, over each text's real tokens."""
    norms = jnp.linalg.norm(_captured(model, params, embeddings, mask, "layer_output").astype(jnp.float32), axis=-1)
    real = mask.astype(norms.dtype)
    return (jnp.sum(norms * real, axis=2) / jnp.sum(real, axis=1)).T


def _captured(model: Any, params: Any, embeddings: Array, mask: Array, name: str) -> Array:
    def run(embeddings: Array, mask: Array) -> Array:
        return model.apply({"params": params}, None, mask, embeddings=embeddings, method="trunk")[0]

    return jnp.asarray(capture(run, name)(embeddings, mask)[1][name])


def _log_probs(
    model: Any, params: Any, prompt: Array, pairs: ResponsePairs, reduction: Reduction
) -> tuple[Array, Array]:
    """log p of the chosen and of the rejected responses."""
    check_response_pairs(prompt, pairs)
    responses, responses_mask = pairs.stacked()
    doubled, mask = jnp.repeat(prompt, 2, axis=0), jnp.repeat(pairs.prompt_mask, 2, axis=0)
    text = jnp.concatenate([doubled, _embed(model, params, responses, prompt)], axis=1)
    found = _response_log_probs(model, params, text, mask, responses, responses_mask, prompt.shape[1], reduction)
    return found[0::2], found[1::2]


def _response_log_probs(
    model: Any,
    params: Any,
    text: Float[Array, "rows time hidden"],
    prompt_mask: Int[Array, "rows width"],
    responses: Int[Array, "rows length"],
    responses_mask: Int[Array, "rows length"],
    width: int,
    reduction: Reduction,
) -> Float[Array, " rows"]:
    """log p of responses; the prompt's last token predicts their first, so logits are formed from there on."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be sum or mean: got {reduction!r}")
    mask = jnp.concatenate([prompt_mask, responses_mask], axis=1)
    hidden, _ = model.apply({"params": params}, None, mask, embeddings=text, method="trunk")
    logits = model.apply({"params": params}, hidden[:, width - 1 :], method="logits")
    ids = jnp.pad(responses, ((0, 0), (1, 0)))  # the prompt's last token is the first of these and is not predicted
    found: TokenLogProbs = next_token_log_probs(logits, ids, mask[:, width - 1 :].astype(bool))
    return found.sums() if reduction == "sum" else found.means()


def _whole(model: Any, params: Any, prompt: Array, prompt_mask: Array, responses: Array, responses_mask: Array) -> Any:
    """Vectors and mask of prompts (two rows each) and responses."""
    text = jnp.concatenate([prompt, _embed(model, params, responses, prompt)], axis=1)
    return text, jnp.concatenate([jnp.repeat(prompt_mask, 2, axis=0), responses_mask], axis=1)


def _embed(model: Any, params: Any, ids: Array, like: Array) -> Array:
    return model.apply({"params": params}, ids, method="embed").astype(like.dtype)


def check_response_pairs(prompt: Any, pairs: ResponsePairs) -> None:
    """ValueError unless prompts and responses are of one batch, and prompts are padded on the left."""
    if prompt.ndim != 3 or pairs.prompt_mask.shape != prompt.shape[:2]:
        raise ValueError(
            f"prompts must be vectors [batch, width, hidden] with prompt_mask [batch, width]: got {prompt.shape} and "
            f"{pairs.prompt_mask.shape}"
        )
    shapes = {name: getattr(pairs, name).shape for name in ("chosen", "chosen_mask", "rejected", "rejected_mask")}
    if len(set(shapes.values())) > 1 or len(pairs.chosen.shape) != 2 or pairs.chosen.shape[0] != prompt.shape[0]:
        raise ValueError(f"responses must all be [{prompt.shape[0]}, length], as the prompts are: got {shapes}")
    if isinstance(pairs.prompt_mask, np.ndarray) and not np.all(pairs.prompt_mask[:, -1]):
        row = int(np.flatnonzero(pairs.prompt_mask[:, -1] == 0)[0])
        raise ValueError(f"prompts must be padded on the left: row {row} has padding behind its last token")
