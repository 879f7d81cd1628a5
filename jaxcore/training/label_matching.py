"""Texts and labels matched by one network, whatever the labels are: pseudo-labels first, real ones later (CLESS).

Labels are words: those of the text itself in self-supervision, a title in supervision. Texts and labels share one word
table, a perceptron reads both vectors and says whether they fit, and only the sampler knows which kind of label it
sees. That is why what is learned from pseudo-labels can score real labels that were never trained on.

Source: Rethmeier and Augenstein 2022 (CLESS).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jaxtyping import Array, Bool, Float, Int

from jaxcore.data.text_augmentation import rare_word_weights, sample_pseudo_labels
from jaxcore.data.titled_task import TitledTask
from jaxcore.losses.noise_contrastive import binary_nce
from jaxcore.losses.scorers import concat_mlp_scores, init_concat_mlp
from jaxcore.models.convolutional_text import ConvolutionalTextConfig, ConvolutionalTextEncoder


@dataclasses.dataclass(frozen=True)
class LabelMatchingConfig:
    """Sizes of the matcher and of its training."""

    num_steps: int = 400
    """Updates of one training."""
    batch_size: int = 48
    """Texts of a batch."""
    learning_rate: float = 2e-3
    """Of Adam, with cosine decay."""
    num_labels: int = 8
    """Most positive and most negative labels of a text."""
    embedding_size: int = 64
    """Width of word vectors, of texts and labels alike."""
    num_filters: int = 96
    """Filters of the text encoder, three words wide."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the matching perceptron."""


class LabelBatches(NamedTuple):
    """All batches of one training.

    Attributes:
        rows: [S, B] rows of the training texts.
        label_ids, label_mask: [S, B, 2 L, W] words of each text's labels: L positives, then L negatives.
        counted: [S, B, 2 L] which labels take part.
    """

    rows: Int[np.ndarray, "steps batch"]
    label_ids: Int[np.ndarray, "steps batch labels words"]
    label_mask: Int[np.ndarray, "steps batch labels words"]
    counted: Bool[np.ndarray, "steps batch labels"]


def _empty_label_batches(config: LabelMatchingConfig, task: TitledTask, rows: np.ndarray) -> LabelBatches:
    shape = (*rows.shape, 2 * config.num_labels)
    words = np.zeros((*shape, task.config.title_length), np.int32)
    return LabelBatches(rows.astype(np.int32), words, words.copy(), np.zeros(shape, bool))


def pseudo_label_batches(
    config: LabelMatchingConfig, task: TitledTask, rng: np.random.Generator, *, num_labels: int, shuffled: bool = False
) -> LabelBatches:
    """Self-supervision: rare words of a text against words of another text of the batch.

    Args:
        num_labels: positives of each text, and negatives; at most `config.num_labels`.
        shuffled: control; every text gets the words of one other, the same throughout.

    Raises:
        ValueError: more labels than the configuration has room for.
    """
    if not 1 <= num_labels <= config.num_labels:
        raise ValueError(f"num_labels must be in 1..{config.num_labels}: got {num_labels}")
    ids, mask = task.training.input_ids, task.training.attention_mask
    weights = rare_word_weights(ids, mask, vocab_size=task.vocab_size, never=task.special_ids)
    owners = rng.permutation(len(ids)) if shuffled else np.arange(len(ids))
    batches = _empty_label_batches(config, task, _epochs(rng, len(ids), config))
    middle = config.num_labels
    for step, rows in enumerate(batches.rows):
        drawn = sample_pseudo_labels(
            ids[owners[rows]],
            mask[owners[rows]],
            rng,
            num_positives=num_labels,
            num_negatives=num_labels,
            word_weights=weights,
        )
        batches.label_ids[step, :, :num_labels, 0] = drawn.positives
        batches.label_ids[step, :, middle : middle + num_labels, 0] = drawn.negatives
        batches.counted[step, :, :num_labels] = drawn.positive_mask
        batches.counted[step, :, middle : middle + num_labels] = drawn.negative_mask
    batches.label_mask[..., 0] = batches.counted
    return batches


def title_batches(
    config: LabelMatchingConfig, task: TitledTask, rng: np.random.Generator, *, share: float
) -> LabelBatches:
    """Supervision: the title of a text against titles of other texts of the batch; equal titles do not count.

    Args:
        share: share of the training texts whose title may be seen, in (0, 1]; texts are drawn from these.

    Raises:
        ValueError: a share out of range, a batch with too few other texts.
    """
    if not 0 < share <= 1 or config.batch_size <= config.num_labels:
        raise ValueError(
            f"share must be in (0, 1] and batch_size above num_labels: got {share}, {config.batch_size} and "
            f"{config.num_labels}"
        )
    known = rng.permutation(len(task.training))[: max(round(share * len(task.training)), 2)]
    rows = known[rng.integers(0, len(known), (config.num_steps, config.batch_size))]
    batches = _empty_label_batches(config, task, rows)
    titles = task.training.titles[rows]
    for column, shift in [(0, 0)] + [(config.num_labels + k, k + 1) for k in range(config.num_labels)]:
        others = np.roll(titles, shift, axis=1)
        batches.label_ids[:, :, column] = task.title_ids[others]
        batches.label_mask[:, :, column] = task.title_mask[others]
        batches.counted[:, :, column] = (others != titles) | (shift == 0)
    return batches


def _epochs(rng: np.random.Generator, count: int, config: LabelMatchingConfig) -> Int[np.ndarray, "steps batch"]:
    wanted = config.num_steps * config.batch_size
    orders = [rng.permutation(count) for _ in range(-(-wanted // count))]
    return np.concatenate(orders)[:wanted].reshape(config.num_steps, config.batch_size)


def _matcher(config: LabelMatchingConfig, vocab_size: int) -> ConvolutionalTextEncoder:
    return ConvolutionalTextEncoder(
        ConvolutionalTextConfig(
            vocab_size=vocab_size, embedding_size=config.embedding_size, num_filters=config.num_filters
        )
    )


def init_matcher(config: LabelMatchingConfig, vocab_size: int, key: Array) -> Any:
    """Parameters: the encoder with its word table, and the matching perceptron."""
    model, (of_encoder, of_matcher) = _matcher(config, vocab_size), jax.random.split(key)
    matcher = init_concat_mlp(
        of_matcher,
        input_size=model.config.output_size,
        candidate_size=config.embedding_size,
        hidden_sizes=config.hidden_sizes,
    )
    return {"encoder": meta.unbox(model.init(of_encoder, jnp.zeros((1, 2), jnp.int32)))["params"], "matcher": matcher}


@functools.partial(jax.jit, static_argnums=0)
def match_scores(
    config: LabelMatchingConfig, params: Any, ids: Array, mask: Array, label_ids: Array, label_mask: Array
) -> Float[Array, "batch labels"]:
    """How well each label fits each text: ids and mask [B, T], labels [B, C, W], scores [B, C]."""
    model = _matcher(config, params["encoder"]["word"].shape[0])
    variables = {"params": params["encoder"]}
    texts: Any = model.apply(variables, ids, mask)
    labels: Any = model.apply(variables, label_ids, label_mask, method="embed_labels")
    return concat_mlp_scores(params["matcher"], texts.pooled, labels)


@functools.partial(jax.jit, static_argnums=0)
def train_matcher(config: LabelMatchingConfig, params: Any, ids: Array, mask: Array, batches: LabelBatches) -> Any:
    """Binary cross-entropy over the labels that count, as one scan over the batches."""
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.num_steps))
    middle = config.num_labels

    def step(carry: tuple, batch: Any) -> tuple[tuple, None]:
        params, opt_state = carry

        def loss(params: Any) -> Array:
            scores = match_scores(config, params, ids[batch.rows], mask[batch.rows], batch.label_ids, batch.label_mask)
            return binary_nce(
                scores[:, :middle],
                scores[:, middle:],
                noise_correction=False,
                positive_mask=batch.counted[:, :middle],
                negative_mask=batch.counted[:, middle:],
            )

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), batches)
    return params
