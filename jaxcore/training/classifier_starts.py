"""What a classifier's training starts from where it is not all random: a published encoder, published word vectors."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jaxtyping import Array

from jaxcore.data.word_vector_files import read_word_vectors, word_table
from jaxcore.models import EncoderConfig, load_pretrained
from jaxcore.models.classifier import EncoderClassifier, with_encoder
from jaxcore.models.recurrent import RecurrentClassifier, with_word_vectors


class Starts(NamedTuple):
    """Parameters of an encoder (None: random), and vectors of words (empty: random)."""

    encoder: Any
    vectors: Mapping[str, np.ndarray]


def read_starts(
    *, pretrained: str, encoder: EncoderConfig, word_vectors: str, words: Collection[str], embedding_size: int
) -> Starts:
    """Published weights and vectors.

    Args:
        pretrained: folder or hub id of an encoder; empty: none.
        encoder: the sizes that it must have.
        word_vectors: a file of word vectors; empty: none.
        words: whose vectors are wanted.
        embedding_size: numbers per vector.

    Raises:
        ValueError: nothing there, an encoder of other sizes, vectors of another length or of none of the words.
    """
    params = None
    if pretrained:
        model, params = load_pretrained(pretrained, config_overrides={"pooler": "none"})
        for field in ("architecture", "num_layers", "hidden_size", "num_heads", "intermediate_size", "max_positions"):
            given, wanted = (getattr(sizes, field) for sizes in (model.config, encoder))
            if given != wanted:
                raise ValueError(f"{pretrained} has {field} {given}, expected the configuration's {wanted}")
    vectors = read_word_vectors(word_vectors, words, dim=embedding_size) if word_vectors else {}
    return Starts(params, vectors)


def starting_params(
    model: EncoderClassifier | RecurrentClassifier,
    initialize: Callable[[Array], Any],
    starts: Starts,
    *,
    words: Sequence[str],
    seed: int,
) -> Any:
    """Parameters of a classifier on the host: the published part of its kind, the rest as `initialize` draws it.

    Args:
        initialize: key -> parameters.
        words: with the ids 0, 1, ... of a recurrent classifier.
        seed: of all that is drawn.

    Returns:
        The parameters; None where nothing published is for this kind of model.
    """
    draw = jax.jit(lambda seed: meta.unbox(initialize(jax.random.key(seed))))
    if isinstance(model, EncoderClassifier):
        return None if starts.encoder is None else with_encoder(jax.device_get(draw(seed)), starts.encoder)
    if not starts.vectors:
        return None
    rng = np.random.default_rng([seed, 14])
    table = word_table(words, starts.vectors, num_rows=model.config.vocab_size, rng=rng)
    return with_word_vectors(jax.device_get(draw(seed)), jnp.asarray(table))
