"""Tiny decoders, and references that know nothing of caches: one full forward pass per token, prompt by prompt."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxcore.models import Decoder, DecoderConfig

VOCABULARY = 11
SIZES = {
    "vocab_size": VOCABULARY,
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "num_key_value_heads": 4,
    "head_size": 8,
    "intermediate_size": 40,
    "max_positions": 40,
}
PROMPTS = ((3, 1, 4), (1, 5, 9, 2, 6), (8,))
LENGTH = 24  # what references pad to


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A decoder with its parameters and a forward pass of one compiled shape."""

    model: Decoder
    params: dict
    forward: object

    def full(self, tokens):
        """Logits and last hidden states of one text, or of many equally long ones, as float64.

        Ids beyond the table are read as its last row."""
        rows = np.minimum(np.atleast_2d(np.asarray(tokens)), self.model.config.vocab_size - 1)
        padded = np.zeros((len(rows), LENGTH), np.int32)
        padded[:, : rows.shape[1]] = rows  # what follows a token has no part in it
        logits, hidden = self.forward(self.params, padded)
        end = rows.shape[1]
        logits, hidden = np.asarray(logits[:, :end], np.float64), np.asarray(hidden[:, :end], np.float64)
        return (logits[0], hidden[0]) if np.ndim(tokens) == 1 else (logits, hidden)

    def log_probs(self, tokens):
        """Of what follows the last token."""
        return log_softmax(self.full(tokens)[0][..., -1, :])


def tiny(seed: int, **changes) -> Tiny:
    model = Decoder(DecoderConfig(**{**SIZES, **changes}))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), nn.meta.unbox(shapes)
    )

    @jax.jit
    def forward(params, ids):
        output = model.apply({"params": params}, ids)
        return output.logits, output.last_hidden_state

    return Tiny(model, params, forward)


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def loop(prompt, count, choose, stops=()):
    """Tokens of `choose(tokens so far)`, one by one."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(choose(tokens)))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def greedy_loop(tiny, prompt, count, stops=()):
    return loop(prompt, count, lambda tokens: tiny.log_probs(tokens).argmax(), stops)


def chi_square_p(counts, probabilities):
    """p of the counts under the probabilities; cells of less than 5 expected are merged."""
    counts, expected = np.ravel(counts), np.ravel(probabilities) * np.sum(counts)
    assert counts[expected == 0].sum() == 0, "a token of probability 0 was drawn"
    large = expected >= 5
    observed = np.append(counts[large], counts[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    kept = expected > 0
    return stats.chisquare(observed[kept], expected[kept]).pvalue


def joint_counts(tokens, size=VOCABULARY):
    """How often each sequence occurs, (size, ..., size)."""
    counts = np.zeros((size,) * tokens.shape[1])
    np.add.at(counts, tuple(tokens.T), 1)
    return counts


def joint_probabilities(tiny, prompt, count, distribution):
    """Of all sequences of `count` tokens; `distribution` maps log probabilities to probabilities."""
    joint = distribution(tiny.log_probs(list(prompt)))
    for _ in range(count - 1):
        sequences = np.stack(np.indices(joint.shape), -1).reshape(-1, joint.ndim)
        texts = np.concatenate([np.tile(prompt, (len(sequences), 1)), sequences], 1)
        joint = joint[..., None] * distribution(tiny.log_probs(texts)).reshape(*joint.shape, -1)
    return joint
