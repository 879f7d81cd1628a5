"""Real prose that every installation has: what the libraries at hand say of themselves, as documents of paragraphs.

Three sources, each read from installed files: Python's language reference (`pydoc_data`), scikit-learn's descriptions
of its data sets, and the docstrings of scientific libraries (one document per source file, read without importing
them). Tables, code, signatures and lists of parameters are left out. So a language model can be trained on English
without a download; the wording is that of the installed versions.
"""

import dataclasses
import importlib.util
import inspect
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

DOCSTRING_PACKAGES = ("numpy", "scipy", "sklearn", "matplotlib")
"""Dependencies of this project whose docstrings are written as prose."""
_MIN_WORDS = 12
"""A shorter paragraph is a caption or a signature."""
_SENTENCE = re.compile(r"[A-Z][^`|<>\\]*[.:!?]")
_MARKUP = [
    (re.compile(r":(?:\w+:)?[\w-]+:`[~!]?([^`<]*?)(?:\s*<[^`]*>)?`"), r"\1"),  # :class:`Name`, :ref:`text <target>`
    (re.compile(r"``([^`]*)``|`([^`<]*?)(?:\s*<[^`]*>)?`_{0,2}"), r"\1\2"),
    (re.compile(r"\*\*(\S[^*]*)\*\*|\*(\S[^*]*)\*"), r"\1\2"),
    (re.compile(r"\s*\[\d+\]_?"), ""),
]


# All are paired in order, those in the middle of a line too, so that no end of one is taken for a beginning.
_TRIPLE_QUOTED = re.compile(r'(^[ \t]*[rR]?)?"""(.*?)"""', re.MULTILINE | re.DOTALL)
_NOT_PROSE = re.compile(r"\s*(>>>|\.\. |[*=\-~^#+|]{3,}|[-*+•] |\d+[.)] |:\w+)")


@dataclasses.dataclass(frozen=True)
class ProseDocument:
    """A text of paragraphs in their order; a paragraph is one line."""

    name: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)

    @property
    def num_words(self) -> int:
        return sum(paragraph.count(" ") + 1 for paragraph in self.paragraphs)


class ProseSplit(NamedTuple):
    """Documents to train on, to choose by, and to be judged by."""

    train: tuple[ProseDocument, ...]
    validation: tuple[ProseDocument, ...]
    test: tuple[ProseDocument, ...]


def embedded_prose(
    sources: Sequence[str] = ("python", "datasets", "docstrings"), *, min_words: int = 60
) -> tuple[ProseDocument, ...]:
    """The documents of the named sources, in a fixed order; a paragraph that occurs again is left out there.

    Args:
        sources: some of "python", "datasets", "docstrings".
        min_words: documents with fewer words are left out.

    Raises:
        ValueError: no source, or one that is unknown.
    """
    if not sources or set(sources) - set(SOURCES):
        raise ValueError(f"sources must be some of {', '.join(SOURCES)}: got {list(sources)}")
    seen: set[str] = set()
    documents = []
    for source in sources:
        for name, texts in SOURCES[source]():
            fresh = []
            for paragraph in (paragraph for text in texts for paragraph in prose_paragraphs(text)):
                key = re.sub(r"\W+", " ", paragraph.lower())
                if key not in seen:
                    seen.add(key)
                    fresh.append(paragraph)
            documents.append(ProseDocument(f"{source}/{name}", tuple(fresh)))
    return tuple(document for document in documents if document.num_words >= min_words)


def split_documents(
    documents: Sequence[ProseDocument], *, validation: float = 0.05, test: float = 0.1, seed: int = 0
) -> ProseSplit:
    """Whole documents to each part, drawn until a part has its share of the words; each part in the given order.

    Args:
        validation, test: shares of all words, above 0, together below 1.
        seed: of the draw.

    Raises:
        ValueError: shares out of range, fewer than three documents.
    """
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(f"validation and test must be shares above 0, together below 1: got {validation} and {test}")
    if len(documents) < 3:
        raise ValueError(f"a split in three needs three documents: got {len(documents)}")
    words = np.array([document.num_words for document in documents])
    order = np.random.default_rng(seed).permutation(len(documents))
    ends = np.cumsum(words[order]) / words.sum()
    first = max(int(np.searchsorted(ends, test)) + 1, 1)
    second = max(int(np.searchsorted(ends, test + validation)) + 1, first + 1)
    second = min(second, len(documents) - 1)
    first = min(first, second - 1)
    parts = order[second:], order[first:second], order[:first]
    return ProseSplit(*(tuple(documents[i] for i in np.sort(part)) for part in parts))


# ---- sources ---------------------------------------------------------------------------------------------

Texts = Iterator[tuple[str, list[str]]]


def _python_reference() -> Texts:
    """Topics, shortest first: a text that is also part of a longer one belongs to the short one."""
    from pydoc_data.topics import topics

    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        yield name, [topics[name]]


def _dataset_descriptions() -> Texts:
    for path in _package_files("sklearn", "datasets/descr/*.rst"):
        yield path.stem, [path.read_text(encoding="utf-8")]


def _docstrings() -> Texts:
    for package in DOCSTRING_PACKAGES:
        root = _package_root(package)
        for path in _package_files(package, "**/*.py"):
            place = path.relative_to(root)
            if not {"tests", "test", "_tests", "testing", "conftest.py"} & set(place.parts):
                texts = docstrings(path.read_text(encoding="utf-8"))
                if texts:
                    yield f"{package}/{place.with_suffix('').as_posix()}", texts


SOURCES: Mapping[str, Callable[[], Texts]] = {
    "python": _python_reference,
    "datasets": _dataset_descriptions,
    "docstrings": _docstrings,
}
"""Readers of (document name, its texts)."""


def _package_root(package: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"the package {package} is not installed: its texts cannot be read")
    return pathlib.Path(spec.origin).parent


def _package_files(package: str, pattern: str) -> list[pathlib.Path]:
    root = _package_root(package)
    return sorted(root.glob(pattern), key=lambda path: path.relative_to(root).as_posix())


def docstrings(source: str) -> list[str]:
    """The docstrings of a Python source: texts in triple double quotes that begin a line, in order of appearance."""
    return [inspect.cleandoc(found[2]) for found in _TRIPLE_QUOTED.finditer(source) if found[1] is not None]


# ---- paragraphs ------------------------------------------------------------------------------------------


def prose_paragraphs(text: str) -> list[str]:
    """The paragraphs of a text in reStructuredText that are sentences, each on one line, its inline markup taken off.

    A paragraph begins with a capital, ends like a sentence, has at least 12 words, and is written mostly in letters.
    Blocks of code, tables, headings, lists and directives are none.
    """
    paragraphs = (_prose(block) for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")))
    return [paragraph for paragraph in paragraphs if paragraph]


def _prose(block: str) -> str:
    """A block as a paragraph, or nothing."""
    if block.count(" ") + block.count("\n") + 1 < _MIN_WORDS or any(map(_NOT_PROSE.match, block.split("\n"))):
        return ""
    paragraph = " ".join(block.split())
    if not paragraph[:1].isalpha() and paragraph[:1] not in "`*:":
        return ""
    for pattern, plain in _MARKUP:
        paragraph = pattern.sub(plain, paragraph)
    paragraph = re.sub(r"::$", ":", re.sub(r"\s+([,.;:)])(?=\s|$)", r"\1", paragraph.strip()))
    letters = sum(map(str.isalpha, paragraph)) + paragraph.count(" ")
    is_prose = paragraph.count(" ") + 1 >= _MIN_WORDS and letters > 0.9 * len(paragraph)
    return paragraph if is_prose and _SENTENCE.fullmatch(paragraph) else ""
