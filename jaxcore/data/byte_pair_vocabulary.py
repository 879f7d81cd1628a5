"""A byte-level byte-pair vocabulary trained on the spot: the kind of tokenizer that decoder language models read.

Unlike `jaxcore.data.train_tokenizer`, whose tokenizers put BERT's special tokens around a text, this one adds nothing
to a text and gives every text back as it was; one token, ``<|endoftext|>``, begins, ends and pads.
"""

import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jaxcore.data.tokenization import load_tokenizer

if TYPE_CHECKING:  # transformers takes more than a second to import
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""Id 0: the first token of a text, the last, and padding, as in GPT-2."""
_SMALLEST = 257
"""256 bytes and the special token."""


def train_byte_pairs(
    texts: Iterable[str], *, vocab_size: int, max_length: int = 1_000_000
) -> "PreTrainedTokenizerFast":
    """A tokenizer whose merges are learnt from `texts`; the same texts give the same one.

    Any text can be written in it, and ``decode(encode(text)) == text``. Spaces belong to the word behind them.

    Args:
        texts: what the merges are counted in; held in memory.
        vocab_size: ids, the 256 bytes and `END_OF_TEXT` included; fewer where the texts have no more pairs.
        max_length: what the tokenizer reports as the longest text of the model, in tokens.

    Raises:
        ValueError: vocab_size below 257, no text at all.

    Source: Sennrich et al. 2016; on bytes, Radford et al. 2019 (GPT-2).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < _SMALLEST:
        raise ValueError(f"vocab_size must be at least {_SMALLEST} (the bytes and {END_OF_TEXT}): got {vocab_size}")
    texts = list(texts)
    if not any(texts):
        raise ValueError("no text to learn byte pairs from: give at least one character")
    backend = Tokenizer(models.BPE())
    splitter: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    decoder: Any = decoders.ByteLevel()
    backend.pre_tokenizer, backend.decoder = splitter, decoder
    trainer: Any = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def load_byte_pairs(directory: str | os.PathLike[str]) -> "PreTrainedTokenizerFast":
    """The tokenizer that ``train_byte_pairs(...).save_pretrained(directory)`` left there.

    Raises:
        ValueError: no such folder, or no tokenizer in it.
    """
    path = pathlib.Path(directory)
    if not (path / "tokenizer.json").is_file():
        raise ValueError(f"no tokenizer.json in {path}: save one there with `save_pretrained`")
    return load_tokenizer(path.absolute())
