"""Data: from files, datasets and generated worlds to batches.

- `sources`, `file_sources`, `records`: records from TFDS, JSONL, CSV, Parquet, text folders, lists
- `tfds_builders`: this project's own TFDS datasets, written and read without TensorFlow
- `tokenization`, `chunking`: text to ids; works to chunks; hashed character trigrams
- `array_cache`: arrays on disk under a content hash
- `authors`: corpora of texts by author; splits by author and by work
- `author_world`, `world_words`: generated authors whose style and topics are known exactly
- `author_batches`: authors x views, shuffled, sharded by process, restorable at any step
- `authorship_task`: what a model trains on and is asked about, from the world or from files
- `evaluation_batches`: finite, padded, masked batches

`AuthorWorldBuilder` and `AuthorTextsBuilder` are imported from `jaxcore.data.tfds_builders`, which loads
TFDS.
"""

from jaxcore.data.array_cache import cached_arrays, content_hash
from jaxcore.data.author_batches import (
    AuthorBatchConfig,
    AuthorBatches,
    CorpusSampler,
    WorldSampler,
    author_batches,
    world_author_batches,
)
from jaxcore.data.author_world import SPECIAL_TOKENS, AuthorWorld, AuthorWorldConfig, DocumentContents
from jaxcore.data.authors import AuthorCorpus, author_disjoint_split, build_author_corpus, work_disjoint_split
from jaxcore.data.authorship_task import (
    NUM_FOLDS,
    AuthorshipDataConfig,
    AuthorshipTask,
    TextPool,
    open_authorship_task,
    world_vocab_size,
)
from jaxcore.data.chunking import Chunker, TokenChunker, TrigramChunker, chunk_author_stream
from jaxcore.data.evaluation_batches import evaluation_batches, num_evaluation_steps
from jaxcore.data.file_sources import CsvSource, JsonlSource, ParquetSource, TextFolderSource
from jaxcore.data.records import AUTHOR_FIELDS, Field, MalformedRecord
from jaxcore.data.sources import ListSource, Source, TfdsSource, open_source
from jaxcore.data.tokenization import (
    TokenizedTexts,
    attention_mask,
    hashed_trigrams,
    load_tokenizer,
    pad_rows,
    tokenize_texts,
    tokenizer_fingerprint,
    train_tokenizer,
    word_tokenizer,
)

__all__ = [
    "AUTHOR_FIELDS",
    "NUM_FOLDS",
    "SPECIAL_TOKENS",
    "AuthorBatchConfig",
    "AuthorBatches",
    "AuthorCorpus",
    "AuthorWorld",
    "AuthorWorldConfig",
    "AuthorshipDataConfig",
    "AuthorshipTask",
    "Chunker",
    "CorpusSampler",
    "CsvSource",
    "DocumentContents",
    "Field",
    "JsonlSource",
    "ListSource",
    "MalformedRecord",
    "ParquetSource",
    "Source",
    "TextFolderSource",
    "TextPool",
    "TfdsSource",
    "TokenChunker",
    "TokenizedTexts",
    "TrigramChunker",
    "WorldSampler",
    "attention_mask",
    "author_batches",
    "author_disjoint_split",
    "build_author_corpus",
    "cached_arrays",
    "chunk_author_stream",
    "content_hash",
    "evaluation_batches",
    "hashed_trigrams",
    "load_tokenizer",
    "num_evaluation_steps",
    "open_authorship_task",
    "open_source",
    "pad_rows",
    "tokenize_texts",
    "tokenizer_fingerprint",
    "train_tokenizer",
    "word_tokenizer",
    "work_disjoint_split",
    "world_author_batches",
    "world_vocab_size",
]
