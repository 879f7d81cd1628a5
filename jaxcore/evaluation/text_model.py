"""A model whose scores of texts are explained: how it reads a text or a pair, and what it says of token embeddings.

A pair is one row of tokens, both texts one after the other, with a number per token that tells them apart
(`TokenRows.segments`): what the tokenizer's template makes of it for a transformer, and for a `RecurrentClassifier`
the tokens of both, each text by itself.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcore.models import Encoder, masked_mean, output_from_embeddings
from jaxcore.models.classifier import EncoderClassifier
from jaxcore.models.recurrent import RecurrentClassifier

if TYPE_CHECKING:  # it takes more than a second to import
    from transformers import PreTrainedTokenizerFast

Text: TypeAlias = str | tuple[str, str]
"""A text, or two for a model that reads pairs."""

_LONGEST = 2**16
"""Tokens that a model without positions is taken to read, where its tokenizer says nothing."""


@dataclasses.dataclass(frozen=True, eq=False)
class TextModel:
    """A model whose scores of texts are explained.

    Attributes:
        model: a classifier, or an encoder, whose attention weights are explicit (attention methods read them).
        params: its parameters.
        tokenizer: its fast tokenizer.
        labels: of the classes; () for an encoder.
        reference: for an encoder, the vector that embeddings are compared with.
    """

    model: EncoderClassifier | Encoder | RecurrentClassifier
    params: Any
    tokenizer: "PreTrainedTokenizerFast"
    labels: tuple[str, ...] = ()
    reference: Float[np.ndarray, " dim"] | None = None

    @property
    def vocab_size(self) -> int:
        return _reader(self.model).vocab_size

    @property
    def pad_token_id(self) -> int:
        reader = _reader(self.model)
        return int(self.tokenizer.pad_token_id) if isinstance(self.model, RecurrentClassifier) else reader.pad_token_id

    def content_free_tokens(self) -> tuple[int, ...]:
        """Tokens without content, padding first: the baselines of methods that average over several."""
        ids = [self.pad_token_id, self.tokenizer.unk_token_id, self.tokenizer.mask_token_id]
        return tuple(dict.fromkeys(i for i in ids if i is not None and i < self.vocab_size))

    def words(self) -> Int[np.ndarray, " words"]:
        """Tokens that a text may hold: all but special ones."""
        return np.setdiff1d(np.arange(self.vocab_size), self.tokenizer.all_special_ids)


class TokenRows(NamedTuple):
    """Texts as a model takes them, padded at the end.

    Attributes:
        ids: of tokens.
        lengths: tokens of each text, or of both texts of a pair.
        segments: for a transformer the tokenizer's token types; for a recurrent model 1 at the second text's tokens.
    """

    ids: Int[Array, "batch time"]
    lengths: Int[Array, " batch"]
    segments: Int[Array, "batch time"]

    @property
    def mask(self) -> Bool[Array, "batch time"]:
        return jnp.arange(self.ids.shape[1]) < self.lengths[:, None]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedText:
    """A text, or a pair, as tokens.

    Attributes:
        text: as given.
        ids, segments: see `TokenRows`.
        offsets: characters [start, end) of each token in its own text; empty at special tokens.
        special: which tokens the tokenizer added.
        second_start: of a pair, the first token of the second text.
        truncated: whether it was cut.
    """

    text: Text
    ids: Int[np.ndarray, " tokens"]
    segments: Int[np.ndarray, " tokens"]
    offsets: Int[np.ndarray, "tokens 2"]
    special: Bool[np.ndarray, " tokens"]
    second_start: int | None
    truncated: bool


def text_limit(explained: TextModel) -> int:
    """Tokens of the longest text, or pair, that the model reads, special ones counted."""
    given = int(explained.tokenizer.model_max_length)
    if isinstance(explained.model, RecurrentClassifier):
        return min(_LONGEST, given)
    return min(_reader(explained.model).max_length, given)


def check_pairs(explained: TextModel, *, are_pairs: bool) -> None:
    """ValueError unless model and tokenizer read what is given: single texts, or pairs."""
    model, tokenizer = explained.model, explained.tokenizer
    if isinstance(model, RecurrentClassifier):
        if (model.config.inputs == "pair") != are_pairs:
            reads, given = ("pairs of texts", "single texts") if are_pairs is False else ("one text", "pairs")
            raise ValueError(f"the model reads {reads} (inputs={model.config.inputs!r}): got {given}")
        return
    if not are_pairs:
        return
    if isinstance(model, Encoder):
        raise ValueError("the model is an encoder, whose embedding is that of one text: a pair is for classifiers")
    added = [tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True)]
    if added[1] <= added[0]:
        raise ValueError(
            f"the tokenizer takes no pairs: it adds {added[0]} special tokens to a text and {added[1]} to a pair, so "
            "nothing tells the two texts apart; take a tokenizer with a template for pairs"
        )


def tokenized(
    explained: TextModel, texts: Sequence[Text], first: int, *, truncate: bool = False
) -> list[TokenizedText]:
    """The texts' tokens.

    Args:
        texts: single ones, or pairs: all alike.
        first: the number of the first text, for messages.
        truncate: cut what is longer than the model reads.

    Raises:
        ValueError: a model or tokenizer that reads no such texts; a text that is empty or too long; ids that the model
            does not have.
    """
    are_pairs = not isinstance(texts[0], str)
    check_pairs(explained, are_pairs=are_pairs)
    limit = text_limit(explained)
    if are_pairs and isinstance(explained.model, RecurrentClassifier):
        sides = [_encoded(explained, side, limit // 2 if truncate else None) for side in zip(*texts, strict=True)]
        found = [_joined(text, *both) for text, *both in zip(texts, *sides, strict=True)]
    else:
        found = _encoded(explained, texts, limit if truncate else None)
    for number, item in enumerate(found, first):
        _check_text(explained, item, number, limit)
    return found


def _encoded(explained: TextModel, texts: Sequence[Text], longest: int | None) -> list[TokenizedText]:
    """Texts, or pairs in the tokenizer's own form."""
    sides: Any = [list(texts)] if isinstance(texts[0], str) else [list(side) for side in zip(*texts, strict=True)]
    encoded = explained.tokenizer(
        *sides, truncation=longest is not None, max_length=longest, return_offsets_mapping=True,
        return_special_tokens_mask=True, verbose=False,
    )  # fmt: skip
    types = encoded.get("token_type_ids", [[0] * len(row) for row in encoded["input_ids"]])  # where it has them
    found = []
    for number, text in enumerate(texts):
        of_text = encoded.sequence_ids(number)
        found.append(
            TokenizedText(
                text,
                np.asarray(encoded["input_ids"][number], np.int32),
                np.asarray(types[number], np.int32),
                np.asarray(encoded["offset_mapping"][number], np.int64).reshape(-1, 2),
                np.asarray(encoded["special_tokens_mask"][number], bool),
                (of_text.index(1) if 1 in of_text else len(of_text)) if len(sides) == 2 else None,
                bool(encoded.encodings[number].overflowing),
            )
        )
    return found


def _joined(text: Text, first: TokenizedText, second: TokenizedText) -> TokenizedText:
    """Two texts that were tokenised by themselves."""
    return TokenizedText(
        text,
        np.concatenate([first.ids, second.ids]),
        np.repeat([0, 1], [len(first.ids), len(second.ids)]).astype(np.int32),
        np.concatenate([first.offsets, second.offsets]),
        np.concatenate([first.special, second.special]),
        len(first.ids),
        first.truncated or second.truncated,
    )


def _check_text(explained: TextModel, item: TokenizedText, number: int, limit: int) -> None:
    split = len(item.ids) if item.second_start is None else item.second_start
    parts = [("", item.special[:split])] if item.second_start is None else []
    if item.second_start is not None:
        parts = [("the first text of pair ", item.special[:split]), ("the second text of pair ", item.special[split:])]
    for name, special in parts:
        if special.all():
            raise ValueError(f"{name or 'text '}{number} is empty: it has no token that could be scored; leave it out")
    name = "text" if item.second_start is None else "pair"
    if len(item.ids) > limit:
        raise ValueError(
            f"{name} {number} has {len(item.ids)} tokens, but the model reads {limit}: split it, or "
            "have it cut (--truncate)"
        )
    if item.ids.max() >= explained.vocab_size:
        raise ValueError(
            f"the tokenizer gives id {item.ids.max()}, but the model has {explained.vocab_size} token "
            "vectors; take the tokenizer that belongs to the model"
        )


# ---- on device -------------------------------------------------------------------------------------------


def word_vectors(model: Any, params: Any) -> Float[Array, "words dim"]:
    """The table that the model looks its tokens up in, in its compute dtype."""
    if isinstance(model, RecurrentClassifier):
        return params["word"].astype(model.config.dtype)
    tree = params["encoder"] if isinstance(model, EncoderClassifier) else params
    return tree["embeddings"]["word"].astype(_reader(model).dtype)


def reading_first_token(model: Any) -> Any:
    """The same function of texts, without what its score does not read: a transformer classifier's head looks at the
    first token alone, so that the last block need not compute the others. Its named activations have one token there.
    """
    if not isinstance(model, EncoderClassifier):
        return model
    encoder = dataclasses.replace(model.config.encoder, output_tokens="first")
    return EncoderClassifier(dataclasses.replace(model.config, encoder=encoder))


def logits_of(
    model: Any, params: Any, embeddings: Float[Array, "batch time dim"], rows: TokenRows
) -> Float[Array, "batch classes"]:
    """A classifier's logits with these token embeddings in place of its own."""
    if not isinstance(model, RecurrentClassifier):
        return _encoder_output(model, params, embeddings, rows).logits
    masks = [rows.mask]
    if (
        model.config.inputs == "pair"
    ):  # padding changes nothing, wherever it stands: each text sees the other as padding
        masks = [rows.mask & (rows.segments == number) for number in (0, 1)]
    arrays = [array for mask in masks for array in (embeddings, mask)]
    output: Any = model.apply({"params": params}, *arrays, method="classify")
    return output.logits


def embedding_of(
    model: Encoder, params: Any, embeddings: Float[Array, "batch time dim"], rows: TokenRows
) -> Float[Array, "batch hidden"]:
    """An encoder's vector of each text: its pooler's, or the mean over tokens."""
    output = _encoder_output(model, params, embeddings, rows)
    return masked_mean(output.last_hidden_state, rows.mask) if output.pooled is None else output.pooled


def _encoder_output(model: Any, params: Any, embeddings: Array, rows: TokenRows) -> Any:
    types = {"token_type_ids": rows.segments} if _reader(model).num_token_types > 1 else {}
    return output_from_embeddings(model, params, embeddings, rows.ids, rows.mask, **types)


def _reader(model: Any) -> Any:
    """The configuration of what looks tokens up."""
    return model.config.encoder if isinstance(model, EncoderClassifier) else model.config
