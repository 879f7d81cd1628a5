"""What a language model trains on and is asked to continue: rows of documents, and prompts with people's continuations.

By default the embedded prose with a vocabulary learnt from its training part; a file of documents or a published
tokenizer take their place. Documents are split whole, always alike; seeds of runs change models, not texts.
"""

import dataclasses
import json
import pathlib
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcore.data.byte_pair_vocabulary import train_byte_pairs
from jaxcore.data.embedded_prose import ProseDocument, embedded_prose, split_documents
from jaxcore.data.tokenization import attention_mask, load_tokenizer, pad_rows


@dataclasses.dataclass(frozen=True)
class LanguageModelDataConfig:
    """Documents, vocabulary, rows and prompts."""

    path: str = ""
    """A text file with a document per line; empty for the embedded prose."""
    sources: tuple[str, ...] = ("python", "datasets", "docstrings")
    """Parts of the embedded prose."""
    tokenizer: str = ""
    """Folder or hub id; empty learns byte pairs from the training documents."""
    vocab_size: int = 2048
    """Ids of the vocabulary, at most; that of `tokenizer` where one is given."""
    length: int = 64
    """Tokens of a row."""
    prompts: str = ""
    """A JSON list of {prefix_text, reference_text}, or a .tar.gz with ``contrastive_result.json``; empty cuts test
    documents."""
    num_prompts: int = 100
    """Prompts to continue."""
    prefix_tokens: int = 16
    """Tokens of a prompt."""
    new_tokens: int = 48
    """Tokens of a continuation."""
    validation_share: float = 0.05
    """Of the words, for the likelihood."""
    test_share: float = 0.1
    """Of the words, for prompts and isotropy."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "length", "num_prompts", "prefix_tokens", "new_tokens"):
            if getattr(self, name) < (2 if name in ("length", "num_prompts") else 1):
                raise ValueError(f"data.{name} is too small: got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModelCorpus:
    """Rows and prompts in one vocabulary."""

    tokenizer: Any
    train: Mapping[str, np.ndarray]
    """``input_ids`` and ``attention_mask``: pieces of documents, one document per row."""
    validation: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    prefixes: Sequence[Sequence[int]]
    """What is to be continued."""
    references: Sequence[Sequence[int]]
    """How the text really went on."""
    description: str
    """A sentence for the report."""


def open_language_model_corpus(config: LanguageModelDataConfig) -> LanguageModelCorpus:
    """Read, split and tokenise.

    Raises:
        ValueError: no such file, too few documents or prompts, a tokenizer that cannot be loaded.
    """
    documents = _read_documents(config)
    split = split_documents(documents, validation=config.validation_share, test=config.test_share)
    if config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer)
    else:
        tokenizer = train_byte_pairs((d.text for d in split.train), vocab_size=config.vocab_size)
    parts = [[tokenizer(document.text).input_ids for document in part] for part in split]
    rows = [text_rows(part, length=config.length, pad_id=tokenizer.pad_token_id) for part in parts]
    prefixes, references = _read_prompts(config, tokenizer) if config.prompts else _cut_prompts(config, parts[2])
    words = [sum(document.num_words for document in part) for part in split]
    source = config.path or f"embedded prose ({', '.join(config.sources)})"
    return LanguageModelCorpus(
        tokenizer=tokenizer,
        train=rows[0],
        validation=rows[1],
        test=rows[2],
        prefixes=prefixes,
        references=references,
        description=f"{len(documents)} documents of {source}: {words[0]:,} words to train on, {words[1]:,} for the "
        f"likelihood, {words[2]:,} to judge by; {len(tokenizer):,} tokens in the vocabulary; {len(prefixes)} prompts.",
    )


def text_rows(texts: Sequence[Sequence[int]], *, length: int, pad_id: int) -> dict[str, np.ndarray]:
    """Texts cut into rows of `length` tokens, padded on the right; a rest of a single token is left out.

    Raises:
        ValueError: no text of two tokens.
    """
    pieces = [text[start : start + length] for text in texts for start in range(0, len(text), length)]
    pieces = [piece for piece in pieces if len(piece) >= 2]
    if not pieces:
        raise ValueError(f"none of {len(texts)} texts has two tokens")
    ids, lengths = pad_rows(pieces, length=length, pad_id=pad_id)
    return {"input_ids": ids, "attention_mask": attention_mask(lengths, length)}


def _read_documents(config: LanguageModelDataConfig) -> Sequence[ProseDocument]:
    if not config.path:
        return embedded_prose(config.sources)
    lines = _existing(config.path).read_text(encoding="utf-8").splitlines()
    return [ProseDocument(str(number), (line.strip(),)) for number, line in enumerate(lines) if line.strip()]


def _cut_prompts(config: LanguageModelDataConfig, texts: Sequence[Sequence[int]]) -> tuple[list, list]:
    """Windows of the test documents, evenly spread over them."""
    size = config.prefix_tokens + config.new_tokens
    windows = [text[start : start + size] for text in texts for start in range(0, len(text) - size + 1, size)]
    if len(windows) < config.num_prompts:
        raise ValueError(
            f"the test documents give {len(windows)} prompts of {config.prefix_tokens} tokens with {config.new_tokens} "
            f"more, not {config.num_prompts}: lower data.num_prompts or raise data.test_share"
        )
    chosen = [windows[i] for i in np.linspace(0, len(windows) - 1, config.num_prompts).round().astype(int)]
    cut = config.prefix_tokens
    return [window[:cut] for window in chosen], [window[cut:] for window in chosen]


def _read_prompts(config: LanguageModelDataConfig, tokenizer: Any) -> tuple[list, list]:
    """Stored prompts, in the tokenizer's ids; references cut to the new tokens."""
    path = _existing(config.prompts)
    if path.name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(path) as archive:
            names = sorted(name for name in archive.getnames() if name.endswith("contrastive_result.json"))
            if not names:
                raise ValueError(f"no contrastive_result.json in {path}")
            member: Any = archive.extractfile(names[0])
            stored = json.load(member)
    else:
        stored = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(stored, list) or not all({"prefix_text", "reference_text"} <= set(row) for row in stored):
        raise ValueError(f"{path} must hold a list of objects with prefix_text and reference_text")
    if len(stored) < config.num_prompts:
        raise ValueError(f"{path} has {len(stored)} prompts, not {config.num_prompts}: lower data.num_prompts")
    stored = stored[: config.num_prompts]
    prefixes = [tokenizer(row["prefix_text"]).input_ids for row in stored]
    references = [tokenizer(row["reference_text"]).input_ids[: config.new_tokens] for row in stored]
    return prefixes, references


def _existing(name: str) -> pathlib.Path:
    path = pathlib.Path(name)
    if not path.is_file():
        raise ValueError(f"no file at {path} (from {pathlib.Path.cwd()}); check the path")
    return path
