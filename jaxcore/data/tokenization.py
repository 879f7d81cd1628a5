"""Text to token ids: loading and training fast tokenizers, tokenising with a disk cache, hashed character
trigrams."""

import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int

from jaxcore.data.array_cache import cached_arrays, content_hash

if TYPE_CHECKING:  # transformers takes more than a second to import: only what tokenises pays for it
    import tokenizers
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

TokenizerKind = Literal["wordpiece", "bpe", "word"]

_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@dataclasses.dataclass(frozen=True)
class TokenizedTexts:
    """Texts as padded token ids. The arrays may be read-only memory maps of the cache."""

    input_ids: Int[np.ndarray, "texts length"]
    lengths: Int[np.ndarray, "texts"]

    @property
    def attention_mask(self) -> Int[np.ndarray, "texts length"]:
        """1 at tokens, 0 at padding (int32)."""
        return attention_mask(self.lengths, self.input_ids.shape[1])


def attention_mask(lengths: Int[np.ndarray, "rows"], length: int) -> Int[np.ndarray, "rows length"]:
    """1 at the first `lengths[i]` positions of row i, 0 after them (int32)."""
    return (np.arange(length)[None, :] < np.asarray(lengths)[:, None]).astype(np.int32)


def pad_rows(
    rows: Sequence[Sequence[int] | np.ndarray], *, length: int, pad_id: int
) -> tuple[Int[np.ndarray, "rows length"], Int[np.ndarray, "rows"]]:
    """Rows of ids as one int32 array [rows, length], longer ones cut, and the lengths that remain."""
    padded = np.full((len(rows), length), pad_id, np.int32)
    lengths = np.fromiter((min(len(row), length) for row in rows), np.int32, len(rows))
    for index, row in enumerate(rows):
        padded[index, : lengths[index]] = row[: lengths[index]]
    return padded, lengths


def load_tokenizer(path_or_id: str | os.PathLike[str]) -> "PreTrainedTokenizerFast":
    """The fast tokenizer in a local folder (tokenizer.json) or of a hub id; one without padding pads with its
    end.

    Raises:
        ValueError: No such folder or id, no fast tokenizer there, or neither padding nor end token.
    """
    from transformers import AutoTokenizer

    name = os.fspath(path_or_id)
    if name.startswith((".", "/", "~")) and not pathlib.Path(name).expanduser().exists():
        raise ValueError(f"no tokenizer at {name}: no such folder; give a folder with tokenizer.json, or a hub id")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(os.path.expanduser(name), use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"no tokenizer at {name} ({reason}); give a folder with tokenizer.json, or a hub id that can be reached"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"{name} has no fast tokenizer ({type(tokenizer).__name__}); convert it to tokenizer.json")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer {name} has neither a padding nor an end token; set pad_token in its files")
        logger.info("the tokenizer %s has no padding token: its end token is used", name)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, kind: TokenizerKind = "wordpiece", lowercase: bool | None = None
) -> "PreTrainedTokenizerFast":
    """A tokenizer trained on the spot, with BERT's special tokens ([PAD] is id 0), [CLS] before and [SEP]
    after.

    The same texts give the same tokenizer, so that a resumed run reads the same ids.

    Args:
        texts: What it is trained on; held in memory.
        vocab_size: Most ids it may have, special tokens included.
        kind: "wordpiece" (BERT), "bpe" (byte level: no unknown tokens), "word" (words and punctuation marks).
        lowercase: Fold case before splitting; by default True, except for "bpe".

    Raises:
        ValueError: `vocab_size` too small, unknown kind, or no text at all.
    """
    import tokenizers
    from tokenizers import normalizers, pre_tokenizers

    if kind not in ("wordpiece", "bpe", "word"):
        raise ValueError(f"unknown tokenizer kind {kind!r}; choose wordpiece, bpe or word")
    least = len(_SPECIAL_TOKENS) + {"wordpiece": 2, "bpe": 256, "word": 1}[kind]
    if vocab_size < least:
        raise ValueError(f"vocab_size {vocab_size} is too small for a {kind} tokenizer; give at least {least}")
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise ValueError("no text to train a tokenizer on; give at least one word")
    folds = lowercase if lowercase is not None else kind != "bpe"
    normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if folds else [])])
    if kind == "bpe":
        splitter: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        splitter = pre_tokenizers.BertPreTokenizer()

    def start(model: Any) -> "tokenizers.Tokenizer":
        backend = tokenizers.Tokenizer(model)
        backend.normalizer, backend.pre_tokenizer = normalizer, splitter
        return backend

    trainers = {"wordpiece": _train_wordpiece, "bpe": _train_bpe, "word": _train_words}
    return _wrap(trainers[kind](texts, vocab_size, start))


def _train_words(texts: list[str], vocab_size: int, start: Callable) -> "tokenizers.Tokenizer":
    from tokenizers import models, trainers

    backend = start(models.WordLevel(unk_token="[UNK]"))
    trainer: Any = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL_TOKENS.values()), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _train_bpe(texts: list[str], vocab_size: int, start: Callable) -> "tokenizers.Tokenizer":
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = start(models.BPE())
    backend.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _train_wordpiece(texts: list[str], vocab_size: int, start: Callable) -> "tokenizers.Tokenizer":
    """WordPiece by way of the BPE trainer, as `WordPieceTrainer` does it, but reproducibly.

    `WordPieceTrainer` numbers the pieces ##a, ##b, ... in the order of a hash table, breaks ties between
    merges by those numbers, and so gives another vocabulary in every process. Here they are numbered first,
    as if they were special tokens, and the merged vocabulary moves into a model where they are not.
    """
    from tokenizers import decoders, models, trainers

    special = list(_SPECIAL_TOKENS.values())
    learner = start(models.BPE(continuing_subword_prefix="##"))
    alphabet = _alphabet(texts, learner.normalizer, limit=min(1000, (vocab_size - len(special)) // 2))
    trainer: Any = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special, *(f"##{character}" for character in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    backend = start(models.WordPiece(json.loads(learner.to_str())["model"]["vocab"], unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(special)
    return backend


def _alphabet(texts: list[str], normalizer: Any, *, limit: int) -> list[str]:
    """The `limit` most frequent characters but white space, ties by code point, in code point order."""
    counts = np.zeros(0x110000, np.int64)
    for first in range(0, len(texts), 256):  # joined: one count over all code points for many short texts
        text = normalizer.normalize_str("\n".join(texts[first : first + 256]))
        counts += np.bincount(np.frombuffer(text.encode("utf-32-le"), np.uint32), minlength=len(counts))
    present = [point for point in np.flatnonzero(counts).tolist() if not chr(point).isspace()]
    return sorted(chr(point) for point in sorted(present, key=lambda point: (-counts[point], point))[:limit])


def word_tokenizer(
    words: Sequence[str], *, start_token: bool = True, end_token: bool = False, lowercase: bool = False
) -> "PreTrainedTokenizerFast":
    """The whole-word tokenizer with exactly this vocabulary, id = position; split at white space.

    Args:
        words: the vocabulary.
        start_token: [CLS] comes before the words of a text.
        end_token: [SEP] comes after them; with both, a pair is [CLS] first [SEP] second [SEP].
        lowercase: texts are read in lower case.

    Raises:
        ValueError: A special token ([PAD], [UNK], [CLS], [SEP], [MASK]) is missing, or a word occurs twice.
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    missing = [token for token in _SPECIAL_TOKENS.values() if token not in words]
    if missing:
        raise ValueError(f"the vocabulary lacks the special tokens {', '.join(missing)}; put them in front")
    if len(set(words)) != len(words):
        raise ValueError(f"the vocabulary has {len(words) - len(set(words))} words twice; every word needs one id")
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    return _wrap(backend, start_token=start_token, end_token=end_token)


def _wrap(
    backend: "tokenizers.Tokenizer", *, start_token: bool = True, end_token: bool = True
) -> "PreTrainedTokenizerFast":
    """With the special tokens around a text; with both of them, a template for pairs of texts as BERT's."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[CLS]"] * start_token + ["$A"] + ["[SEP]"] * end_token
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join(pieces),
        pair="[CLS] $A [SEP] $B:1 [SEP]:1" if start_token and end_token else None,
        special_tokens=[(token, backend.token_to_id(token)) for token in pieces if token != "$A"],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **_SPECIAL_TOKENS)


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """A hash of everything that decides the ids: the Rust tokenizer's JSON without its padding and truncation
    settings (they change with every call), and the special tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("padding", None)
    state.pop("truncation", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return content_hash(json.dumps(state, sort_keys=True), json.dumps(special, sort_keys=True))


def tokenize_texts(
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_length: int,
    cache_dir: str | os.PathLike[str] | None = None,
) -> TokenizedTexts:
    """Texts as ids with the tokenizer's special tokens, cut and padded to `max_length`.

    With `cache_dir`, the arrays are kept under a hash of the texts, the tokenizer and the settings: a second
    call reads them (memory-mapped) without tokenising.

    Raises:
        ValueError: No texts, an entry that is not a string, `max_length` too short for the special tokens.
    """
    if not len(texts):
        raise ValueError("no texts to tokenise; give at least one")
    wrong = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(f"text {wrong} is {type(texts[wrong]).__name__}, not str; decode or drop it")
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if max_length <= special:
        raise ValueError(f"max_length {max_length} leaves no room beside {special} special tokens; raise it")
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")

    def compute():
        encoded = tokenizer(
            list(texts), truncation=True, max_length=max_length, return_attention_mask=False, verbose=False
        )["input_ids"]
        input_ids, lengths = pad_rows(encoded, length=max_length, pad_id=tokenizer.pad_token_id)
        return {"input_ids": input_ids, "lengths": lengths}, {"texts": len(texts)}

    key = ""
    if cache_dir is not None:
        key = content_hash("texts", tokenizer_fingerprint(tokenizer), str(max_length), *texts)
    arrays, _ = cached_arrays(cache_dir, key, compute)
    return TokenizedTexts(input_ids=arrays["input_ids"], lengths=arrays["lengths"])


def hashed_trigrams(texts: Sequence[str], *, buckets: int = 4096) -> list[Int[np.ndarray, "trigrams"]]:
    """Ids in [0, buckets) of every overlapping character trigram of each text, in order (int32).

    A bag of these is the classic topic-robust authorship feature (star.md 8.C, the negative control). Runs of
    white space count as one blank, so that line wrapping is no feature. The hash is fixed arithmetic on code
    points, the same on every machine and Python version. A text of fewer than three characters has no
    trigram.

    Raises:
        ValueError: `buckets` below 1.
    """
    if buckets < 1:
        raise ValueError(f"buckets is {buckets}; it must be at least 1 (4096 is the default)")
    return [_trigram_ids(re.sub(r"\s+", " ", text).strip(), buckets) for text in texts]


def _trigram_ids(text: str, buckets: int) -> Int[np.ndarray, "trigrams"]:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if len(points) < 3:
        return np.zeros(0, np.int32)
    # A code point needs 21 bits: three of them make one 63-bit number, which the finaliser of
    # splitmix64 (Steele, Lea and Flood 2014) spreads over all bits.
    mixed = points[:-2] << np.uint64(42) | points[1:-1] << np.uint64(21) | points[2:]
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ mixed >> np.uint64(31)) % np.uint64(buckets)).astype(np.int32)
