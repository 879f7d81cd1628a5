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
- `graded_pairs`: sentence pairs with a graded similarity; the files of the STS tasks
- `sentence_world`, `word_vectors`: generated sentences of known meaning; PPMI-SVD word vectors
- `sentence_task`: what a sentence encoder trains on and is asked about, from the world or from files
- `labelled_texts`, `word_vocabulary`: texts with a class each and the files they come from; whole words as ids
- `classification_task`: named text classification tasks, of one text or of a pair, in layouts for two kinds of model
- `labelled_text_task`: a text classification task of any labelled file, or of generated opinions
- `row_batches`, `sentence_batches`, `class_batches`, `pair_batches`: epochs of rows; without duplicates, grouped by
  length; P classes x K; anchors with their partners
- `surface_similarity`, `pair_mining`, `propensity`, `pair_selection`: candidate pairs by look and meaning, drawn by
  inverse propensity
- `hard_negatives`: mined by the encoder that is being trained, while it is
- `preference_pairs`, `preference_task`: prompts with a response to prefer and one to avoid, from files, TruthfulQA or
  the language of `two_source_world`; imported by their names
- `length_buckets`: few widths, little padding
- `embedded_prose`, `byte_pair_vocabulary`, `language_model_corpus`, `packing`: real English without a download, a
  vocabulary for it, rows and prompts for language models, several texts per row; imported by their names
- `grounded_texts`, `highlight_queries`, `span_alignments`: outputs with their sources, highlights as queries, what
  people aligned; by their names, with `grounded_answers` (what a generator wrote, read or asked for), `pronoun_world`,
  `grounded_example` and `laquer_release`
- `reasoning_sentences`, `reasoning_trace`, `reasoning_taxonomy`, `reasoning_problems`, `published_traces`: chains of
  thought cut into sentences, what each does, problems to reason about, the released traces of Thought Anchors; by their
  names, with `programmatic_reasoner`, `reasoning_language` (traces of known causes) and `hashed_word_counts`
- `text_augmentation`: second views of texts, imported by its name, as are `titled_texts`, `titled_task`,
  `intent_task`, `prior_files`, `latent_pairs` and `markov_chain`, the worlds of single experiments; `word_vector_files`

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
from jaxcore.data.class_batches import ClassSampler, class_batches
from jaxcore.data.classification_task import (
    ClassificationDataConfig,
    ClassificationTask,
    TaskShape,
    open_classification_task,
    task_shape,
)
from jaxcore.data.evaluation_batches import evaluation_batches, num_evaluation_steps
from jaxcore.data.file_sources import CsvSource, JsonlSource, ParquetSource, TextFolderSource
from jaxcore.data.graded_pairs import GradedPairs, StsFolder, join_pairs, read_sts_folder
from jaxcore.data.hard_negatives import (
    HardNegativeBatches,
    HardNegativeConfig,
    HardNegativeMiner,
    MiningStopped,
    draw_negatives,
)
from jaxcore.data.labelled_text_task import (
    LabelledTextConfig,
    LabelledTextTask,
    TextRows,
    open_labelled_text_task,
)
from jaxcore.data.labelled_texts import (
    LabelledTexts,
    read_labelled_records,
    read_text_label_lines,
    read_tree_sentences,
)
from jaxcore.data.length_buckets import LengthBatch, batches_by_length, choose_widths
from jaxcore.data.pair_batches import PairSampler, pair_batches
from jaxcore.data.pair_mining import (
    Candidates,
    Neighbours,
    duplicate_groups,
    mine_candidates,
    nearest_by_meaning,
    random_pairs,
)
from jaxcore.data.propensity import (
    LogisticPropensity,
    Sampled,
    effective_sample_size,
    fit_logistic_propensity,
    frequency_histogram,
    importance_propensity,
    importance_target_histogram,
    inverse_propensity_logits,
    inverse_propensity_sample,
    propensity_histogram,
    propensity_lookup,
)
from jaxcore.data.records import AUTHOR_FIELDS, Field, MalformedRecord
from jaxcore.data.row_batches import RowSampler, row_batches
from jaxcore.data.sentence_batches import SentenceSampler, sentence_batches
from jaxcore.data.sentence_task import SentenceDataConfig, SentenceTask, open_sentence_task, sentence_vocab_size
from jaxcore.data.sentence_world import SentenceWorld, SentenceWorldConfig
from jaxcore.data.sources import ListSource, Source, TfdsSource, open_source
from jaxcore.data.surface_similarity import (
    SurfaceNeighbours,
    inverse_document_frequency,
    length_gap,
    nearest_by_surface,
    surface_similarity,
)
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
from jaxcore.data.word_vectors import WordVectorOptions, ppmi_svd_vectors
from jaxcore.data.word_vocabulary import frequent_words, number_words, string_of, words_of

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
    "Candidates",
    "Chunker",
    "ClassSampler",
    "ClassificationDataConfig",
    "ClassificationTask",
    "CorpusSampler",
    "CsvSource",
    "DocumentContents",
    "Field",
    "GradedPairs",
    "HardNegativeBatches",
    "HardNegativeConfig",
    "HardNegativeMiner",
    "JsonlSource",
    "LabelledTextConfig",
    "LabelledTextTask",
    "LabelledTexts",
    "LengthBatch",
    "ListSource",
    "LogisticPropensity",
    "MalformedRecord",
    "MiningStopped",
    "Neighbours",
    "PairSampler",
    "ParquetSource",
    "RowSampler",
    "Sampled",
    "SentenceDataConfig",
    "SentenceSampler",
    "SentenceTask",
    "SentenceWorld",
    "SentenceWorldConfig",
    "Source",
    "StsFolder",
    "SurfaceNeighbours",
    "TaskShape",
    "TextFolderSource",
    "TextPool",
    "TextRows",
    "TfdsSource",
    "TokenChunker",
    "TokenizedTexts",
    "TrigramChunker",
    "WordVectorOptions",
    "WorldSampler",
    "attention_mask",
    "author_batches",
    "author_disjoint_split",
    "batches_by_length",
    "build_author_corpus",
    "cached_arrays",
    "choose_widths",
    "chunk_author_stream",
    "class_batches",
    "content_hash",
    "draw_negatives",
    "duplicate_groups",
    "effective_sample_size",
    "evaluation_batches",
    "fit_logistic_propensity",
    "frequency_histogram",
    "frequent_words",
    "hashed_trigrams",
    "importance_propensity",
    "importance_target_histogram",
    "inverse_document_frequency",
    "inverse_propensity_logits",
    "inverse_propensity_sample",
    "join_pairs",
    "length_gap",
    "load_tokenizer",
    "mine_candidates",
    "nearest_by_meaning",
    "nearest_by_surface",
    "num_evaluation_steps",
    "number_words",
    "open_authorship_task",
    "open_classification_task",
    "open_labelled_text_task",
    "open_sentence_task",
    "open_source",
    "pad_rows",
    "pair_batches",
    "ppmi_svd_vectors",
    "propensity_histogram",
    "propensity_lookup",
    "random_pairs",
    "read_labelled_records",
    "read_sts_folder",
    "read_text_label_lines",
    "read_tree_sentences",
    "row_batches",
    "sentence_batches",
    "sentence_vocab_size",
    "string_of",
    "surface_similarity",
    "task_shape",
    "tokenize_texts",
    "tokenizer_fingerprint",
    "train_tokenizer",
    "word_tokenizer",
    "words_of",
    "work_disjoint_split",
    "world_author_batches",
    "world_vocab_size",
]
