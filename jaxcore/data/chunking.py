"""Cutting the works of an author into chunks of a fixed number of tokens (star.md 2.1)."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Int

from jaxcore.data.array_cache import content_hash
from jaxcore.data.tokenization import hashed_trigrams, tokenizer_fingerprint

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast


class Chunker(Protocol):
    """Texts to chunks of ids. `fingerprint` changes whenever the chunks would."""

    max_length: int
    pad_id: int
    vocab_size: int

    def __call__(self, texts: Sequence[str]) -> list[list[Int[np.ndarray, "ids"]]]: ...

    def fingerprint(self) -> str: ...


def chunk_author_stream(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", length: int, *, min_tail: float = 0.25
) -> list[list[Int[np.ndarray, "ids"]]]:
    """The chunks of every text: consecutive runs of its tokens, each with the tokenizer's special tokens
    around it.

    Departs from STAR's published preparation in two points, both named as traps in star.md: there all texts
    of an author are joined before cutting, which cuts posts in the middle and puts two works into one chunk
    (the topic of one then leaks into the views of the other), and only the first chunk gets the start token.
    Here a chunk never crosses works, and every chunk is a complete input.

    Args:
        texts: The works.
        tokenizer: A fast tokenizer.
        length: Most ids in a chunk, special tokens included.
        min_tail: The remainder at a work's end is kept when it fills at least this share of a chunk, or when
            it is all there is.

    Returns:
        For each text its chunks, int32, not padded. A text without tokens has none.

    Raises:
        ValueError: `length` leaves no room beside the special tokens, `min_tail` outside [0, 1].
    """
    return TokenChunker(tokenizer, max_length=length, min_tail=min_tail)(texts)


class TokenChunker:
    """`chunk_author_stream` with its settings bound."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", *, max_length: int, min_tail: float = 0.25) -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")
        self._tokenizer = tokenizer
        self._backend = _bare_backend(tokenizer)
        self._prefix, self._suffix = _surrounding_ids(tokenizer)
        self._body = max_length - len(self._prefix) - len(self._suffix)
        if self._body < 1:
            raise ValueError(
                f"max_length {max_length} leaves no room beside the tokenizer's "
                f"{len(self._prefix) + len(self._suffix)} special tokens; raise it"
            )
        if not 0 <= min_tail <= 1:
            raise ValueError(f"min_tail is {min_tail}; it is a share of a chunk, in [0, 1]")
        self._min_tail = min_tail
        self.max_length = max_length
        self.pad_id: int = tokenizer.pad_token_id
        self.vocab_size = len(tokenizer)

    def __call__(self, texts: Sequence[str]) -> list[list[Int[np.ndarray, "ids"]]]:
        if not len(texts):
            return []
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [
            [
                np.concatenate([self._prefix, body, self._suffix])
                for body in _consecutive(np.asarray(text.ids, np.int32), self._body, self._min_tail)
            ]
            for text in encoded
        ]

    def fingerprint(self) -> str:
        settings = f"{self.max_length} {self._min_tail} {self._prefix.tolist()} {self._suffix.tolist()}"
        return content_hash("token chunks", tokenizer_fingerprint(self._tokenizer), settings)


class TrigramChunker:
    """Chunks of `words_per_chunk` words as the ids of their hashed character trigrams (star.md 8.C: 400,
    4096).

    The ids are a bag: their encoder counts them under the attention mask. `max_length` bounds the trigrams of
    one chunk; 8 characters a word leave room for English.
    """

    def __init__(
        self,
        *,
        words_per_chunk: int = 400,
        buckets: int = 4096,
        max_length: int | None = None,
        min_tail: float = 0.25,
    ) -> None:
        if words_per_chunk < 1:
            raise ValueError(f"words_per_chunk is {words_per_chunk}; it must be at least 1 (400 is the default)")
        if not 0 <= min_tail <= 1:
            raise ValueError(f"min_tail is {min_tail}; it is a share of a chunk, in [0, 1]")
        self._words, self._min_tail = words_per_chunk, min_tail
        self.max_length = 8 * words_per_chunk if max_length is None else max_length
        self.pad_id = 0
        self.vocab_size = buckets

    def __call__(self, texts: Sequence[str]) -> list[list[Int[np.ndarray, "ids"]]]:
        chunks = [hashed_trigrams(self._pieces(text), buckets=self.vocab_size) for text in texts]
        return [[ids[: self.max_length] for ids in of_text if len(ids)] for of_text in chunks]

    def _pieces(self, text: str) -> list[str]:
        words = re.split(r"\s+", text.strip())
        pieces = _consecutive(np.arange(len(words)), self._words, self._min_tail)
        return [" ".join(words[piece[0] : piece[-1] + 1]) for piece in pieces]

    def fingerprint(self) -> str:
        settings = f"{self._words} {self.vocab_size} {self.max_length} {self._min_tail}"
        return content_hash("trigram chunks", settings)


def _consecutive(ids: np.ndarray, length: int, min_tail: float) -> list[np.ndarray]:
    """Consecutive runs of `length`; a shorter last one only if it is the only one or fills `min_tail` of a run."""
    runs = [ids[start : start + length] for start in range(0, len(ids), length)]
    if len(runs) > 1 and len(runs[-1]) < min_tail * length:
        runs.pop()
    return runs


def _bare_backend(tokenizer: "PreTrainedTokenizerFast") -> "tokenizers.Tokenizer":
    """A copy of the Rust tokenizer without truncation and padding: on books, calling it directly takes 0.4 of
    the
    time that the transformers wrapper takes, for the same ids."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _surrounding_ids(
    tokenizer: "PreTrainedTokenizerFast",
) -> tuple[Int[np.ndarray, "prefix"], Int[np.ndarray, "suffix"]]:
    """The special tokens that the tokenizer puts before and after a single text, seen on a short one."""
    special = tokenizer.num_special_tokens_to_add(pair=False)
    encoded = np.asarray(tokenizer("a", return_attention_mask=False)["input_ids"], np.int32)
    bare = np.asarray(tokenizer("a", add_special_tokens=False, return_attention_mask=False)["input_ids"], np.int32)
    for start in range(special + 1):
        if len(bare) and np.array_equal(encoded[start : start + len(bare)], bare):
            return encoded[:start], encoded[start + len(bare) :]
    raise ValueError(
        f"cannot tell which special tokens {type(tokenizer).__name__} puts around a text; use one with a "
        "template of the form PREFIX text SUFFIX"
    )
