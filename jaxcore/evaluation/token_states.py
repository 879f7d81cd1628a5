"""Texts in, the states of their tokens out, with each token's place: readers for `span_localiser.localise_texts`."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxcore.attribution.lexical_alignment import words_with_offsets
from jaxcore.data.length_buckets import batches_by_length
from jaxcore.data.tokenization import pad_rows
from jaxcore.distributed import batch_sharding, jit_on_mesh, num_batch_shards
from jaxcore.evaluation.hashed_words import document_frequency_weights, hashed_vectors, mixed_states, word_hash
from jaxcore.evaluation.row_map import map_rows
from jaxcore.evaluation.span_localiser import ReadTexts, TextTokens
from jaxcore.models import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class HashedWordReader:
    """States of `jaxcore.evaluation.hashed_words`: seeded random vectors by the words' first letters.

    Args:
        documents: what words are counted in.
        seed: of the vectors.
        dim: of the vectors.
        mesh: devices.
        batch_tokens: tokens of a batch on each device.

    Raises:
        ValueError: no documents.
    """

    def __init__(self, documents: Sequence[str], *, seed: int, dim: int, mesh: Mesh, batch_tokens: int = 65536) -> None:
        self._counted = [{word_hash(word) for word, *_ in words_with_offsets(text)} for text in documents]
        self._dim, self._mesh, self._batch_tokens = dim, mesh, batch_tokens
        self._vectors = jax.jit(functools.partial(hashed_vectors, jax.random.key(seed), dim=dim))
        self._step = jit_on_mesh(
            lambda vectors, batch: mixed_states(vectors, batch["ids"], batch["ids"] >= 0),
            mesh,
            out_shardings=batch_sharding(mesh),
        )

    def __call__(self, texts: Sequence[str]) -> list[TextTokens]:
        words = [words_with_offsets(text) for text in texts]
        vocabulary: dict[int, int] = {}
        ids = [[vocabulary.setdefault(word_hash(word), len(vocabulary)) for word, *_ in row] for row in words]
        size = 1 << max(10, len(vocabulary).bit_length())  # few sizes: each is a program
        hashes, weights = np.zeros(size, np.uint32), np.zeros(size, np.float32)
        hashes[: len(vocabulary)] = list(vocabulary)
        weights[: len(vocabulary)] = document_frequency_weights(vocabulary, self._counted)
        vectors = self._vectors(hashes, weights)
        places = [np.asarray([place for _, *place in row], int).reshape(-1, 2) for row in words]
        states = _by_length(self._step, vectors, ids, self._dim, self._mesh, self._batch_tokens)
        return [TextTokens(*pair) for pair in zip(places, states, strict=True)]


def remembered(read: ReadTexts) -> ReadTexts:
    """The same reader, which reads every text once, however often it is asked for."""
    known: dict[str, TextTokens] = {}

    def read_new(texts: Sequence[str]) -> list[TextTokens]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, read(new), strict=True) if new else ())
        return [known[text] for text in texts]

    return read_new


class EncoderReader:
    """Last hidden states of an encoder, texts in windows of `max_length` tokens, special tokens left out.

    Args:
        model, params, tokenizer: see `jaxcore.models.load_pretrained`, `jaxcore.data.load_tokenizer`.
        max_length: tokens of a window, special ones included; None = the model's positions.
        mesh: devices.
        batch_tokens: tokens of a batch on each device.
    """

    def __init__(
        self,
        model: Encoder,
        params: Any,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        mesh: Mesh,
        max_length: int | None = None,
        batch_tokens: int = 4096,
    ) -> None:
        self._params, self._tokenizer, self._mesh, self._batch_tokens = params, tokenizer, mesh, batch_tokens
        self._dim = model.config.hidden_size
        self._length = min(max_length or model.config.max_length, model.config.max_length)
        pad = model.config.pad_token_id

        def step(params: Any, batch: Any) -> Array:
            ids = batch["ids"]
            mask = (ids >= 0).astype(jnp.int32)
            return model.apply({"params": params}, jnp.where(ids >= 0, ids, pad), mask).last_hidden_state  # type: ignore[union-attr]

        self._step = jit_on_mesh(step, mesh, out_shardings=batch_sharding(mesh))

    def __call__(self, texts: Sequence[str]) -> list[TextTokens]:
        tokenizer: Any = self._tokenizer
        encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        begin, end = _ends(tokenizer)
        size = self._length - len(begin) - len(end)
        windows, owners = [], []
        for number, ids in enumerate(encoded["input_ids"]):
            for start in range(0, len(ids), size):
                windows.append([*begin, *ids[start : start + size], *end])
                owners.append(number)
        found = _by_length(self._step, self._params, windows, self._dim, self._mesh, self._batch_tokens)
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for owner, states in zip(owners, found, strict=True):
            parts[owner].append(states[len(begin) : len(states) - len(end)])
        nothing = np.zeros((0, self._dim), np.float32)
        return [
            TextTokens(np.asarray(places, int).reshape(-1, 2), np.concatenate(part) if part else nothing)
            for places, part in zip(encoded["offset_mapping"], parts, strict=True)
        ]


def _ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens around a text."""
    whole = tokenizer("a", return_special_tokens_mask=True)
    special = whole["special_tokens_mask"]
    first, last = special.index(0), len(special) - special[::-1].index(0)
    return whole["input_ids"][:first], whole["input_ids"][last:]


def _by_length(
    step: Any,
    params: Any,
    rows: Sequence[Sequence[int]],
    dim: int,
    mesh: Mesh,
    batch_tokens: int,
) -> list[Float[np.ndarray, "tokens dim"]]:
    """``step(params, {"ids"})`` of rows of any length, -1 as padding, in batches of like length."""
    lengths = np.asarray([len(row) for row in rows], int)
    states: list[Any] = [np.zeros((0, dim), np.float32)] * len(rows)
    if not len(rows) or not lengths.max():
        return states
    widths = [16]
    while widths[-1] < lengths.max():
        widths.append(4 * widths[-1])
    shards = num_batch_shards(mesh)
    for batch in batches_by_length(lengths, widths, batch_tokens=batch_tokens, shards=shards):
        ids, _ = pad_rows([rows[index] for index in batch.texts], length=batch.width, pad_id=-1)
        found = map_rows(step, params, {"ids": ids}, batch_size=batch.num_rows, mesh=mesh)
        for index, part in zip(batch.texts, np.asarray(found, np.float32), strict=True):
            states[index] = part[: lengths[index]]
    return states
