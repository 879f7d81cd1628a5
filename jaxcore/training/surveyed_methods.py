"""The methods of a survey as rows of one table: each is a choice for the same six parts, and nothing else.

    1 instances   what makes a pair: two edits of a text, spans of a document, a translation, words as labels
    2 encoders    of texts and of what they are paired with: tied, momentum, a teacher's
    3 scorer      how a pair is scored
    4 negatives   where the other candidates come from
    5 terms       the losses, each a function in `jaxcore.training.method_objectives`, with its weight
    6 mixing      fixed weights, or learned log-variances

`make_instances` makes a method's batch of a `Corpus`; `jaxcore.training.method_objectives` computes its losses.

Rows follow tables M3 of Rethmeier and Augenstein 2023 as rebuilt from the methods' own papers and code. A constant that
no source gave is the field's usual one; what stands in for data that cannot be made here (a translation, a teacher's
vectors) is whatever the corpus holds as ``paired``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxcore.data import text_augmentation as augment
from jaxcore.data.tokenization import pad_rows

Instances = Literal[
    "spans",
    "edits",
    "paired",
    "twins",
    "distances",
    "synonym_or_antonym",
    "text",
    "pseudo_labels",
    "label_texts",
    "classes",
]
Edit = Literal[
    "delete_words", "delete_span", "reorder_words", "reorder_spans", "repeat_words", "cut_off_tokens", "synonyms",
    "crop", "identity", "feature_cutoff",
]  # fmt: skip
Encoders = Literal["tied", "momentum", "teacher", "generator", "word_table"]
Scorer = Literal["cosine", "dot", "bilinear", "mean_product", "joint", "concat_mlp", "negative_energy", "output_table"]
Negatives = Literal[
    "in_batch", "queue", "document_and_random", "antonym", "paired", "vocabulary", "generator", "other_labels"
]


@dataclasses.dataclass(frozen=True)
class Method:
    """A surveyed method.

    Attributes:
        instances, encoders, scorer, negatives: parts 1 to 4.
        terms: part 5, losses by name with their weights.
        mixing: part 6; "log_variances" takes the weights as given and learns the rest.
        edits: of the first and the second view, each a stack applied in order, where instances are "edits".
        temperature: of cosine scores.
        momentum: of the target encoder, where there is one.
        source: where the row comes from.
    """

    instances: Instances
    terms: Mapping[str, float]
    source: str
    encoders: Encoders = "tied"
    scorer: Scorer = "cosine"
    negatives: Negatives = "in_batch"
    mixing: Literal["fixed", "log_variances"] = "fixed"
    edits: tuple[tuple[Edit, ...], tuple[Edit, ...]] = ((), ())
    temperature: float = 0.05
    momentum: float = 0.999


_MLM = {"masked_language_model": 1.0}

SURVEYED_METHODS: Mapping[str, Method] = {
    # ---- input against input
    "declutr": Method("spans", {"nt_xent": 1.0, **_MLM}, "Giorgi et al. 2021; its code"),
    "cert": Method(
        "paired", {"queue_info_nce": 1.0}, "Fang et al. 2020; its code: m 0.999, tau 0.07",
        encoders="momentum", negatives="queue", temperature=0.07,
    ),
    "clear": Method(
        "edits", {"nt_xent": 1.0, **_MLM}, "Wu et al. 2020",
        edits=(("delete_span",), ("synonyms", "reorder_spans")), temperature=0.1,
    ),
    "consert": Method(
        "edits", {"nt_xent": 0.15}, "Yan et al. 2021; its code: feature cutoff 0.2 against shuffling, loss rate 0.15",
        edits=(("feature_cutoff",), ("reorder_words",)), temperature=0.1,
    ),
    "coda": Method(
        "edits", {"queue_both_ways": 1.0, "cross_entropy": 1.0, "consistency": 1.0}, "Qu et al. 2021",
        encoders="momentum", negatives="queue", edits=(("identity",), ("synonyms", "cut_off_tokens")), temperature=0.07,
    ),
    "capt": Method(
        "edits", {"info_nce": 1.0, **_MLM}, "Luo et al. 2020", edits=(("identity",), ("delete_words", "reorder_spans"))
    ),
    "coco_lm": Method(
        "edits", {"info_nce": 1.0, **_MLM, "corrective_language_model": 1.0},
        "Meng et al. 2021: what the generator corrupted against a 90 % crop; copy head 50",
        encoders="generator", edits=(("identity",), ("crop",)), temperature=1.0,
    ),
    "conpono": Method(
        "distances", {"ranking_nce": 1.0, **_MLM}, "Iter et al. 2020; its code: one head per distance",
        scorer="bilinear", negatives="document_and_random",
    ),
    "conpono_margin": Method(
        "distances", {"margin": 1.0, **_MLM}, "Iter et al. 2020; its code, the max-margin variant",
        scorer="bilinear", negatives="document_and_random",
    ),
    "cline": Method(
        "synonym_or_antonym", {"binary_nce": 1.0, **_MLM, "edit_detection": 1.0}, "Wang et al. 2021; its code",
        scorer="mean_product", negatives="antonym", mixing="log_variances",
    ),
    "infoxlm": Method(
        "paired", {"queue_info_nce": 1.0, **_MLM, "translation_language_model": 1.0}, "Chi et al. 2021",
        encoders="momentum", negatives="queue",
    ),
    "simcse": Method("twins", {"info_nce": 1.0}, "Gao et al. 2021; its code"),
    "cpt_text": Method("paired", {"symmetric_info_nce": 1.0}, "Neelakantan et al. 2022: neighbours, learnt tau"),
    "distillation": Method(
        "paired", {"info_nce": 1.0}, "Sun et al. 2020 (CoDIR), Fu et al. 2021 (LRC-BERT): a teacher's states",
        encoders="teacher",
    ),
    "commonsense": Method(
        "paired", {"margin": 1.0}, "Klein and Nabi 2020: twin sentences", scorer="cosine", negatives="paired"
    ),
    # ---- input against label
    "mlm": Method("text", _MLM, "Devlin et al. 2019", scorer="output_table", negatives="vocabulary"),
    "electra": Method(
        "text", {**_MLM, "electra": 50.0}, "Clark et al. 2020a; its code: weight 50, masks 15 %",
        encoders="generator", scorer="negative_energy", negatives="generator",
    ),
    "electric": Method(
        "text", {**_MLM, "electric": 1.0}, "Clark et al. 2020b; its code",
        encoders="generator", scorer="negative_energy", negatives="generator",
    ),
    "cless": Method(
        "pseudo_labels", {"binary_nce": 1.0}, "Rethmeier and Augenstein 2022",
        encoders="word_table", scorer="concat_mlp", negatives="other_labels",
    ),
    "gile": Method(
        "label_texts", {"binary_nce": 1.0}, "Pappas and Henderson 2019",
        encoders="word_table", scorer="joint", negatives="other_labels",
    ),
    "scl": Method(
        "classes", {"cross_entropy": 0.1, "supervised_contrastive": 0.9}, "Gunel et al. 2021: lambda 0.9, tau 0.3",
        temperature=0.3,
    ),
    "label_transfer": Method(
        "label_texts", {"binary_nce": 1.0}, "Zhang et al. 2018, Jiang et al. 2020: label embeddings",
        encoders="word_table", scorer="dot", negatives="other_labels",
    ),
    "entailment_transfer": Method(
        "label_texts", {"binary_nce": 1.0}, "Halder et al. 2020: text and label read together",
        scorer="negative_energy", negatives="other_labels",
    ),
}  # fmt: skip


class Corpus(NamedTuple):
    """What instances are made of; a method that needs a field that is None says so.

    Attributes:
        ids, mask: [N, T] texts (for "spans": documents; for "distances": sentences in reading order).
        paired_ids, paired_mask: [N, T] what each text is paired with: a translation, a neighbour, a twin.
        documents: [N] of "distances".
        classes: [N] labels.
        label_ids, label_mask: [L, W] words of each label.
        synonyms, antonyms: lexicons over token ids.
    """

    ids: Int[np.ndarray, "n length"]
    mask: Int[np.ndarray, "n length"]
    paired_ids: Int[np.ndarray, "n length"] | None = None
    paired_mask: Int[np.ndarray, "n length"] | None = None
    documents: Int[np.ndarray, "n"] | None = None
    classes: Int[np.ndarray, "n"] | None = None
    label_ids: Int[np.ndarray, "labels words"] | None = None
    label_mask: Bool[np.ndarray, "labels words"] | None = None
    synonyms: augment.Lexicon | None = None
    antonyms: augment.Lexicon | None = None


_NEEDS: Mapping[str, tuple[str, ...]] = {
    "paired": ("paired_ids", "paired_mask"),
    "distances": ("documents",),
    "synonym_or_antonym": ("synonyms", "antonyms"),
    "label_texts": ("classes", "label_ids", "label_mask"),
    "classes": ("classes",),
    "synonyms": ("synonyms",),
    "cross_entropy": ("classes",),
    "consistency": ("classes",),
}

NUM_ANCHORS, NUM_POSITIVES = 2, 2
"""Spans of a document in DeCLUTR, and positives of each."""
MAX_DISTANCE = 4
"""Of CONPONO's sentences."""
NUM_LABELS = 4
"""Positive, and negative, labels of a text."""

Batch = dict[str, np.ndarray]


def make_instances(method: Method, corpus: Corpus, rng: np.random.Generator, *, span_length: int = 8) -> Batch:
    """A method's batch: all texts of the corpus, made into instances.

    Args:
        method: a row of `SURVEYED_METHODS`, or one of your own.
        corpus: the texts of the batch.
        rng: source of randomness.
        span_length: longest span of "spans"; documents must hold 2 x `NUM_ANCHORS` of them.

    Returns:
        Arrays whose names `jaxcore.training.method_objectives` reads: always ``first_ids`` and ``first_mask``; mostly
        ``second_ids`` and ``second_mask``.

    Raises:
        ValueError: a corpus without what the method needs, named.
    """
    edits = {edit for stack in method.edits for edit in stack}
    for part in (method.instances, *sorted(edits), *method.terms):
        missing = [name for name in _NEEDS.get(part, ()) if getattr(corpus, name) is None]
        if missing:
            raise ValueError(f"{part} needs {', '.join(missing)} of the corpus: give them")
    makers: Mapping[str, Callable[[], Batch]] = {
        "spans": lambda: _spans(corpus, rng, span_length),
        "edits": lambda: _edited(method, corpus, rng),
        "paired": lambda: _views(corpus, corpus.paired_ids, corpus.paired_mask),
        "twins": lambda: _views(corpus, corpus.ids, corpus.mask),
        "distances": lambda: _distances(corpus, rng),
        "synonym_or_antonym": lambda: _synonym_or_antonym(corpus, rng),
        "text": lambda: _views(corpus, corpus.ids, corpus.mask),
        "pseudo_labels": lambda: _pseudo_labels(corpus, rng),
        "label_texts": lambda: _label_texts(corpus, rng),
        "classes": lambda: _views(corpus, corpus.ids, corpus.mask),
    }
    batch = makers[method.instances]()
    if corpus.classes is not None:
        batch["classes"] = corpus.classes.astype(np.int32)
    return batch


def _views(corpus: Corpus, second_ids: np.ndarray | None, second_mask: np.ndarray | None) -> Batch:
    assert second_ids is not None and second_mask is not None  # checked in make_instances
    return {"first_ids": corpus.ids, "first_mask": corpus.mask, "second_ids": second_ids, "second_mask": second_mask}


def _spans(corpus: Corpus, rng: np.random.Generator, span_length: int) -> Batch:
    anchors, positives = [], []
    for ids, length in zip(corpus.ids, corpus.mask.sum(axis=1), strict=True):
        spans = augment.sample_anchor_spans(
            int(length), rng, num_anchors=NUM_ANCHORS, num_positives=NUM_POSITIVES, min_span=2, max_span=span_length
        )
        anchors += [ids[start:stop] for start, stop in spans.anchors]
        positives += [ids[start:stop] for start, stop in spans.positives.reshape(-1, 2)]
    batch = {}
    for side, rows in (("first", anchors), ("second", positives)):
        batch[f"{side}_ids"], lengths = pad_rows(rows, length=span_length, pad_id=0)
        batch[f"{side}_mask"] = (np.arange(span_length) < lengths[:, None]).astype(np.int32)
    return batch


def _edited(method: Method, corpus: Corpus, rng: np.random.Generator) -> Batch:
    views = []
    for stack in method.edits:
        view = augment.View(corpus.ids, corpus.mask)
        for edit in stack:
            view = _EDITS[edit](view, corpus, rng)
        views.append(view)
    (first, first_mask), (second, second_mask) = views
    return {"first_ids": first, "first_mask": first_mask, "second_ids": second, "second_mask": second_mask}


def _crop(view: augment.View, corpus: Corpus, rng: np.random.Generator) -> augment.View:
    """The first or last tenth goes."""
    lengths = view.attention_mask.sum(axis=1)
    gone = lengths // 10
    start = np.where(rng.random(len(lengths)) < 0.5, gone, 0)
    rows = [ids[a : a + n] for ids, a, n in zip(view.input_ids, start, lengths - gone, strict=True)]
    ids, kept = pad_rows(rows, length=view.input_ids.shape[1], pad_id=0)
    return augment.View(ids, (np.arange(ids.shape[1]) < kept[:, None]).astype(np.int32))


def _synonyms(view: augment.View, corpus: Corpus, rng: np.random.Generator) -> augment.View:
    assert corpus.synonyms is not None
    return augment.View(*augment.replace_words(*view, rng, rate=0.3, lexicon=corpus.synonyms)[:2])


_EDITS: Mapping[str, Callable[[augment.View, Corpus, np.random.Generator], augment.View]] = {
    "identity": lambda view, corpus, rng: view,
    "feature_cutoff": lambda view, corpus, rng: view,  # acts on vectors, in the objective
    "delete_words": lambda view, corpus, rng: augment.delete_words(*view, rng, rate=0.3),
    "delete_span": lambda view, corpus, rng: augment.delete_span(*view, rng, rate=0.3),
    "reorder_words": lambda view, corpus, rng: augment.reorder_words(*view, rng),
    "reorder_spans": lambda view, corpus, rng: augment.reorder_words(*view, rng, span_length=3),
    "repeat_words": lambda view, corpus, rng: augment.repeat_words(*view, rng, rate=0.3),
    "cut_off_tokens": lambda view, corpus, rng: augment.cut_off_tokens(*view, rng, rate=0.15, replacement_id=0),
    "synonyms": _synonyms,
    "crop": _crop,
}


def _distances(corpus: Corpus, rng: np.random.Generator) -> Batch:
    """Every sentence, one distance at which it has a neighbour, that neighbour, and others; as rows of the batch."""
    assert corpus.documents is not None
    pairs = augment.sample_distance_sentences(corpus.documents, rng, max_distance=MAX_DISTANCE, num_random=6)
    lots = np.where(pairs.targets >= 0, rng.random(pairs.targets.shape), -1.0)
    chosen = np.argmax(lots, axis=1)
    rows = np.arange(len(chosen))
    return {
        "first_ids": corpus.ids,
        "first_mask": corpus.mask,
        "relation": chosen.astype(np.int32),
        "positive_rows": np.maximum(pairs.targets[rows, chosen], 0)[:, None].astype(np.int32),
        "positive_mask": (pairs.targets[rows, chosen] >= 0)[:, None],
        "negative_rows": np.maximum(pairs.negatives, 0).astype(np.int32),
        "negative_mask": pairs.negatives >= 0,
    }


def _synonym_or_antonym(corpus: Corpus, rng: np.random.Generator) -> Batch:
    assert corpus.synonyms is not None and corpus.antonyms is not None
    synonym = augment.replace_words(corpus.ids, corpus.mask, rng, rate=0.4, lexicon=corpus.synonyms)
    antonym = augment.replace_words(corpus.ids, corpus.mask, rng, rate=0.2, lexicon=corpus.antonyms)
    return _views(corpus, synonym.input_ids, synonym.attention_mask) | {
        "negative_ids": antonym.input_ids,
        "negative_mask": antonym.attention_mask,
        "second_kinds": synonym.replaced.astype(np.int32),
        "negative_kinds": 2 * antonym.replaced.astype(np.int32),
    }


def _pseudo_labels(corpus: Corpus, rng: np.random.Generator) -> Batch:
    drawn = augment.sample_pseudo_labels(
        corpus.ids, corpus.mask, rng, num_positives=NUM_LABELS, num_negatives=NUM_LABELS
    )
    words = np.concatenate([drawn.positives, drawn.negatives], axis=1)[..., None]
    counted = np.concatenate([drawn.positive_mask, drawn.negative_mask], axis=1)
    return _views(corpus, corpus.ids, corpus.mask) | {
        "label_ids": words,
        "label_mask": counted[..., None].astype(np.int32),
        "label_counted": counted,
    }


def _label_texts(corpus: Corpus, rng: np.random.Generator) -> Batch:
    """The label of each text, once, and labels of other texts; a label that is the text's own does not count."""
    assert corpus.classes is not None and corpus.label_ids is not None and corpus.label_mask is not None
    count = len(corpus.classes)
    others = corpus.classes[(np.arange(count)[:, None] + np.arange(1, NUM_LABELS + 1)) % count]
    labels = np.concatenate([np.repeat(corpus.classes[:, None], NUM_LABELS, axis=1), others], axis=1)
    first = np.arange(NUM_LABELS) == 0
    counted = np.concatenate([np.tile(first, (count, 1)), others != corpus.classes[:, None]], axis=1)
    return _views(corpus, corpus.ids, corpus.mask) | {
        "label_ids": corpus.label_ids[labels],
        "label_mask": corpus.label_mask[labels].astype(np.int32),
        "label_counted": counted,
    }
