"""Second views of texts: what contrastive methods for language do to a text to get a positive, or a negative.

Everything works on rows of token ids [B, T] whose real tokens come first (`attention_mask`), and draws from a
`numpy.random.Generator`, so that the same generator state gives the same views. Three kinds:

- edits of a row (delete, reorder, repeat, cut off, replace words): new ids and mask, real tokens first again. Tokens
  marked `protected` ([CLS], [SEP]) stay, in their order. A text never loses its last token.
- choices of other material (spans of a document, sentences at a distance, words as labels): indices and ids.
- `cut_off_features`, which acts on vectors and is therefore a JAX function with a key.

Whether an edit keeps the meaning is not checked: one replaced word can turn it around. Where that matters, use edits
from a lexicon that says what each replacement is (`replace_words` returns where it replaced), or contrast texts with
labels instead.

Source of the list: Rethmeier and Augenstein 2023 and the methods it surveys, named at each function.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Ids = Int[np.ndarray, "rows length"]


class View(NamedTuple):
    """Edited rows: ids and which of them are real (1, first) or padding (0)."""

    input_ids: Ids
    attention_mask: Ids


# ---- edits of a row --------------------------------------------------------------------------------------


def delete_words(
    input_ids: Ids,
    attention_mask: Ids,
    rng: np.random.Generator,
    *,
    rate: float,
    protected: Bool[np.ndarray, "rows length"] | None = None,
    pad_id: int = 0,
) -> View:
    """Each word goes with probability `rate`, on its own; where all would go, one at random stays.

    Raises:
        ValueError: shapes that do not fit, a rate outside [0, 1].

    Source: Wei and Zou 2019; Wu et al. 2020 (CLEAR).
    """
    real, free = _check_rows(input_ids, attention_mask, protected, rate)
    lots = rng.random(input_ids.shape)
    keep = real & ~(free & (lots < rate))
    luckiest = np.argmax(np.where(real, lots, -1.0), axis=1)
    emptied = ~keep.any(axis=1) & real.any(axis=1)
    keep[emptied, luckiest[emptied]] = True
    return _compact(input_ids, keep, pad_id)


def delete_span(
    input_ids: Ids,
    attention_mask: Ids,
    rng: np.random.Generator,
    *,
    rate: float,
    protected: Bool[np.ndarray, "rows length"] | None = None,
    pad_id: int = 0,
) -> View:
    """One run of ``floor(rate n)`` consecutive words of the n words that may go, at a uniformly drawn place.

    Raises:
        ValueError: shapes that do not fit, a rate outside [0, 1].

    Source: Wu et al. 2020 (CLEAR), span deletion.
    """
    real, free = _check_rows(input_ids, attention_mask, protected, rate)
    count = free.sum(axis=1)
    size = np.clip(np.floor(rate * count).astype(np.int64), 0, np.maximum(real.sum(axis=1) - 1, 0))
    start = np.floor(rng.random(len(input_ids)) * (count - size + 1)).astype(np.int64)
    place = np.cumsum(free, axis=1) - 1
    gone = free & (place >= start[:, None]) & (place < (start + size)[:, None])
    return _compact(input_ids, real & ~gone, pad_id)


def reorder_words(
    input_ids: Ids,
    attention_mask: Ids,
    rng: np.random.Generator,
    *,
    span_length: int = 1,
    protected: Bool[np.ndarray, "rows length"] | None = None,
) -> View:
    """The free words are cut into spans of `span_length`, and the spans shuffled; 1 shuffles words.

    Protected tokens keep their places. ConSERT shuffles position ids instead of tokens: for an encoder whose only
    notion of order is the position table that is the same.

    Raises:
        ValueError: shapes that do not fit, a span shorter than 1.

    Source: Wu et al. 2020 (CLEAR, spans); Yan et al. 2021 (ConSERT, words).
    """
    real, free = _check_rows(input_ids, attention_mask, protected, 0.0)
    if span_length < 1:
        raise ValueError(f"span_length must be at least 1: got {span_length}")
    rows, width = input_ids.shape
    place = np.cumsum(free, axis=1) - 1
    span = np.where(free, place // span_length, width)
    lots = np.concatenate([rng.random((rows, width)), np.full((rows, 1), 2.0)], axis=1)
    # Free words by the lot of their span, then by place; the n-th free slot takes the n-th of them.
    source = np.argsort(np.take_along_axis(lots, span, axis=1), axis=1, kind="stable")
    shuffled = np.take_along_axis(input_ids, source, axis=1)
    moved = np.take_along_axis(shuffled, np.maximum(place, 0), axis=1)
    return View(np.where(free, moved, input_ids).astype(np.int32), real.astype(np.int32))


def repeat_words(
    input_ids: Ids,
    attention_mask: Ids,
    rng: np.random.Generator,
    *,
    rate: float,
    protected: Bool[np.ndarray, "rows length"] | None = None,
    pad_id: int = 0,
) -> View:
    """Some words are said twice: k of them, ``k ~ uniform{0, ..., max(2, floor(rate n))}``, each twice in place.

    Returns:
        Rows of ``T + max(2, floor(rate T))`` ids, whatever was drawn.

    Raises:
        ValueError: shapes that do not fit, a rate outside [0, 1].

    Source: Wu et al. 2022 (ESimCSE), eq. 3; rate 0.32 there.
    """
    real, free = _check_rows(input_ids, attention_mask, protected, rate)
    rows, width = input_ids.shape
    count = free.sum(axis=1)
    most = np.minimum(np.maximum(2, np.floor(rate * count).astype(np.int64)), count)
    chosen = np.floor(rng.random(rows) * (most + 1)).astype(np.int64)
    rank = np.argsort(np.argsort(np.where(free, rng.random((rows, width)), 2.0), axis=1), axis=1)
    twice = free & (rank < chosen[:, None])
    extra = max(2, int(rate * width))
    doubled = np.repeat(input_ids, 2, axis=1)
    keep = np.stack([real, twice], axis=2).reshape(rows, 2 * width)
    view = _compact(doubled, keep, pad_id)
    pad = ((0, 0), (0, max(0, width + extra - 2 * width)))
    return View(
        np.pad(view.input_ids, pad, constant_values=pad_id)[:, : width + extra],
        np.pad(view.attention_mask, pad)[:, : width + extra],
    )


def cut_off_tokens(
    input_ids: Ids,
    attention_mask: Ids,
    rng: np.random.Generator,
    *,
    rate: float,
    replacement_id: int,
    protected: Bool[np.ndarray, "rows length"] | None = None,
) -> View:
    """``floor(rate n)`` of the n free tokens of each row become `replacement_id`, without moving the others.

    With the id of a token whose vector is held at zero this is token cutoff; with [MASK] it is word masking.

    Raises:
        ValueError: shapes that do not fit, a rate outside [0, 1].

    Source: Shen et al. 2020; Yan et al. 2021 (ConSERT).
    """
    real, free = _check_rows(input_ids, attention_mask, protected, rate)
    rank = np.argsort(np.argsort(np.where(free, rng.random(input_ids.shape), 2.0), axis=1), axis=1)
    cut = free & (rank < np.floor(rate * free.sum(axis=1)).astype(np.int64)[:, None])
    return View(np.where(cut, replacement_id, input_ids).astype(np.int32), real.astype(np.int32))


class Lexicon(NamedTuple):
    """Replacements of every token id: those of id w are ``replacements[offsets[w] : offsets[w + 1]]``."""

    offsets: Int[np.ndarray, "vocab_plus_one"]
    replacements: Int[np.ndarray, "entries"]


def make_lexicon(entries: Mapping[int, Sequence[int]], *, vocab_size: int) -> Lexicon:
    """A lexicon (synonyms, antonyms, whatever the mapping holds) over token ids.

    Args:
        entries: id -> ids it may be replaced by; ids without an entry are never replaced.
        vocab_size: number of ids.

    Raises:
        ValueError: an id outside the vocabulary.
    """
    counts = np.zeros(vocab_size, np.int64)
    for word, others in entries.items():
        outside = [i for i in (word, *others) if not 0 <= i < vocab_size]
        if outside:
            raise ValueError(f"the lexicon's entry of {word} names id {outside[0]}: expected 0..{vocab_size - 1}")
        counts[word] = len(others)
    flat = [other for word in sorted(entries) for other in entries[word]]
    return Lexicon(np.concatenate([[0], np.cumsum(counts)]), np.asarray(flat, np.int32))


class Replaced(NamedTuple):
    """Edited rows, and where they were edited."""

    input_ids: Ids
    attention_mask: Ids
    replaced: Bool[np.ndarray, "rows length"]


def replace_words(
    input_ids: Ids,
    attention_mask: Ids,
    rng: np.random.Generator,
    *,
    rate: float,
    lexicon: Lexicon,
    protected: Bool[np.ndarray, "rows length"] | None = None,
) -> Replaced:
    """Lexical edits: each word that has replacements gets one of them, uniformly, with probability `rate`.

    With synonyms the meaning should stay and the edit makes a positive; with antonyms it turns and the edit makes a
    negative. `replaced` is what CLINE's three-way token detection learns to tell.

    Raises:
        ValueError: shapes that do not fit, a rate outside [0, 1], an id that the lexicon does not cover.

    Source: Wu et al. 2020 (CLEAR, synonyms); Wang et al. 2021 (CLINE, synonyms and antonyms).
    """
    real, free = _check_rows(input_ids, attention_mask, protected, rate)
    if input_ids.size and not 0 <= input_ids.min() <= input_ids.max() < len(lexicon.offsets) - 1:
        raise ValueError(
            f"ids run from {input_ids.min()} to {input_ids.max()}: the lexicon covers 0..{len(lexicon.offsets) - 2}"
        )
    first = lexicon.offsets[input_ids]
    count = lexicon.offsets[input_ids + 1] - first
    replaced = free & (count > 0) & (rng.random(input_ids.shape) < rate)
    picked = first + np.floor(rng.random(input_ids.shape) * count).astype(np.int64)
    if not len(lexicon.replacements):
        return Replaced(input_ids.astype(np.int32), real.astype(np.int32), replaced)
    others = lexicon.replacements[np.minimum(picked, len(lexicon.replacements) - 1)]
    return Replaced(np.where(replaced, others, input_ids).astype(np.int32), real.astype(np.int32), replaced)


# ---- other material --------------------------------------------------------------------------------------


class AnchorSpans(NamedTuple):
    """Spans of one document as (start, stop): anchors [A, 2] in reading order, their positives [A, P, 2]."""

    anchors: Int[np.ndarray, "anchors two"]
    positives: Int[np.ndarray, "anchors positives two"]


def sample_anchor_spans(
    num_tokens: int,
    rng: np.random.Generator,
    *,
    num_anchors: int = 2,
    num_positives: int = 2,
    min_span: int = 32,
    max_span: int = 512,
) -> AnchorSpans:
    """Anchors and positives of a document by DeCLUTR's law.

        anchor length   = floor(Beta(4, 2) (max - min)) + min        long ones are likelier
        positive length = floor(Beta(2, 4) (max - min)) + min        short ones are likelier

    Starts of anchors are at least 2 max apart, so no anchor overlaps another, nor a positive of another. A positive
    starts anywhere from its own length before its anchor to the anchor's end: adjacent, overlapping, or inside.

    Args:
        num_tokens: of the document.
        rng: source of randomness.
        num_anchors, num_positives: A, and P of each anchor.
        min_span, max_span: lengths in tokens.

    Raises:
        ValueError: a document shorter than 2 A max_span; lengths that make no sense.

    Source: Giorgi et al. 2021 (DeCLUTR), section 3.1; constants of its code.
    """
    if not 1 <= min_span <= max_span or num_anchors < 1 or num_positives < 1:
        raise ValueError(
            f"expected 1 <= min_span <= max_span and at least one anchor and positive: got {min_span}, {max_span}, "
            f"{num_anchors}, {num_positives}"
        )
    if num_tokens < 2 * num_anchors * max_span:
        raise ValueError(
            f"a document of {num_tokens} tokens is too short for {num_anchors} anchors of up to {max_span}: it needs "
            f"2 x {num_anchors} x {max_span} = {2 * num_anchors * max_span}; leave it out, or lower max_span"
        )
    lengths = np.floor(rng.beta(4, 2, num_anchors) * (max_span - min_span)).astype(np.int64) + min_span
    slack = num_tokens - max_span - 2 * max_span * (num_anchors - 1)
    starts = np.sort(rng.integers(0, slack, num_anchors, endpoint=True)) + 2 * max_span * np.arange(num_anchors)
    stops = starts + lengths
    shape = (num_anchors, num_positives)
    sizes = np.floor(rng.beta(2, 4, shape) * (max_span - min_span)).astype(np.int64) + min_span
    lowest = np.maximum(starts[:, None] - sizes, 0)
    highest = np.minimum(stops[:, None], num_tokens - sizes)
    first = lowest + np.floor(rng.random(shape) * (highest - lowest + 1)).astype(np.int64)
    return AnchorSpans(np.stack([starts, stops], axis=1), np.stack([first, first + sizes], axis=2))


class PseudoLabels(NamedTuple):
    """Words as labels of texts: those of the text itself, those of another text, and which of them count."""

    positives: Int[np.ndarray, "rows positives"]
    positive_mask: Bool[np.ndarray, "rows positives"]
    negatives: Int[np.ndarray, "rows negatives"]
    negative_mask: Bool[np.ndarray, "rows negatives"]


def sample_pseudo_labels(
    input_ids: Ids,
    attention_mask: Ids,
    rng: np.random.Generator,
    *,
    num_positives: int,
    num_negatives: int,
    word_weights: Float[np.ndarray, "vocab"] | None = None,
) -> PseudoLabels:
    """Self-supervision by CLESS: a text's own words are labels that fit, words of another text labels that do not.

    Positives are distinct words of the row, drawn without replacement in proportion to `word_weights`; negatives are
    drawn likewise from another row of the batch (a random cyclic shift), and do not count where the row has the word
    too. A row with too few words leaves the remaining labels masked.

    Args:
        input_ids, attention_mask: [B, T], at least two rows.
        rng: source of randomness.
        num_positives, num_negatives: labels of each text.
        word_weights: [V] non-negative; a weight of 0 keeps an id from being a label ([CLS], [UNK]). See
            `rare_word_weights`; uniform unless given.

    Raises:
        ValueError: shapes that do not fit, a single row, ids beyond the weights.

    Source: Rethmeier and Augenstein 2022 (CLESS), section 3.2.
    """
    real, _ = _check_rows(input_ids, attention_mask, None, 0.0)
    if len(input_ids) < 2:
        raise ValueError("pseudo-labels need words of another text: give at least two rows")
    if num_positives < 1 or num_negatives < 1:
        raise ValueError(f"each text needs a positive and a negative: got {num_positives} and {num_negatives}")
    if word_weights is not None and input_ids.max() >= len(word_weights):
        raise ValueError(f"word_weights cover ids 0..{len(word_weights) - 1}: got id {input_ids.max()}")
    weights = np.ones(int(input_ids.max()) + 1) if word_weights is None else np.asarray(word_weights, np.float64)
    candidates = real & _first_occurrence(input_ids, real) & (weights[input_ids] > 0)
    positives, positive_mask = _draw_words(input_ids, candidates, weights, num_positives, rng)
    others = (np.arange(len(input_ids)) + rng.integers(1, len(input_ids))) % len(input_ids)
    negatives, negative_mask = _draw_words(input_ids[others], candidates[others], weights, num_negatives, rng)
    own = ((negatives[:, :, None] == input_ids[:, None, :]) & real[:, None, :]).any(axis=2)
    return PseudoLabels(positives, positive_mask, negatives, negative_mask & ~own)


def rare_word_weights(
    input_ids: Ids, attention_mask: Ids, *, vocab_size: int, never: Sequence[int] = ()
) -> Float[np.ndarray, "vocab"]:
    """``1 / sqrt(df + 1)`` of every id, df the rows it occurs in: rare words say more of their text.

    Args:
        input_ids, attention_mask: [N, T] all texts.
        vocab_size: length of the table.
        never: ids of weight 0, such as special tokens.

    Raises:
        ValueError: shapes that do not fit, ids beyond the vocabulary.
    """
    real, _ = _check_rows(input_ids, attention_mask, None, 0.0)
    if input_ids.size and input_ids.max() >= vocab_size:
        raise ValueError(f"ids must be below vocab_size {vocab_size}: got {input_ids.max()}")
    counted = real & _first_occurrence(input_ids, real)
    weights = 1 / np.sqrt(np.bincount(input_ids[counted], minlength=vocab_size) + 1.0)
    weights[list(never)] = 0
    return weights


class DistancePairs(NamedTuple):
    """Sentences around sentences, as indices; -1 where the document ends before.

    Attributes:
        distances: [2 k] -k, ..., -1, 1, ..., k.
        targets: [S, 2 k] the sentence at each distance.
        negatives: [S, n] sentences of the same document beyond distance k, then sentences of other documents.
    """

    distances: Int[np.ndarray, "distances"]
    targets: Int[np.ndarray, "sentences distances"]
    negatives: Int[np.ndarray, "sentences negatives"]


def sample_distance_sentences(
    documents: Int[np.ndarray, "sentences"],
    rng: np.random.Generator,
    *,
    max_distance: int = 4,
    num_same_document: int = 2,
    num_random: int = 8,
) -> DistancePairs:
    """What CONPONO asks of every sentence: which sentence stands k before or after it?

    Args:
        documents: [S] document of each sentence, sentences in reading order, documents contiguous.
        rng: source of randomness.
        max_distance: largest distance; 4 in the source.
        num_same_document: hard negatives per sentence, drawn with replacement from its own document beyond
            `max_distance`; -1 where there is none.
        num_random: negatives from other documents, with replacement.

    Raises:
        ValueError: documents that are not contiguous, a single document, distances below 1.

    Source: Iter et al. 2020 (CONPONO), section 3.
    """
    documents = np.asarray(documents)
    changes = np.flatnonzero(np.diff(documents)) + 1
    starts = np.concatenate([[0], changes]).astype(np.int64)
    if documents.ndim != 1 or len(np.unique(documents)) != len(starts):
        raise ValueError("documents must be [sentences] with the sentences of a document next to each other")
    if len(starts) < 2:
        raise ValueError("negatives come from other documents: give at least two")
    if max_distance < 1:
        raise ValueError(f"max_distance must be at least 1: got {max_distance}")
    count = len(documents)
    number = np.searchsorted(starts, np.arange(count), side="right") - 1
    first, last = starts[number], np.concatenate([starts[1:], [count]])[number]
    distances = np.concatenate([np.arange(-max_distance, 0), np.arange(1, max_distance + 1)])
    wanted = np.arange(count)[:, None] + distances
    targets = np.where((wanted >= first[:, None]) & (wanted < last[:, None]), wanted, -1)
    # Far sentences of the document: those before the window, then those after it, numbered through.
    before = np.maximum(np.arange(count) - max_distance - first, 0)
    far = before + np.maximum(last - np.arange(count) - max_distance - 1, 0)
    drawn = np.floor(rng.random((count, num_same_document)) * far[:, None]).astype(np.int64)
    skipped = np.where(drawn < before[:, None], first[:, None], np.arange(count)[:, None] + max_distance + 1)
    same = np.where(far[:, None] > 0, skipped + drawn - np.where(drawn < before[:, None], 0, before[:, None]), -1)
    outside = count - (last - first)
    random = np.floor(rng.random((count, num_random)) * outside[:, None]).astype(np.int64)
    random = np.where(random < first[:, None], random, random + (last - first)[:, None])
    return DistancePairs(distances, targets, np.concatenate([same, random], axis=1))


# ---- vectors ---------------------------------------------------------------------------------------------


def cut_off_features(
    vectors: Float[Array, "batch *time dim"], key: Array, *, rate: float
) -> Float[Array, "batch *time dim"]:
    """Feature cutoff: ``floor(rate D)`` features of each text are 0 at all its tokens.

    Nothing is scaled up in return, as in the source.

    Args:
        vectors: [B, D] or [B, T, D] embeddings.
        key: PRNG key.
        rate: share of features; 0.2 in ConSERT's unsupervised setting.

    Raises:
        ValueError: a single vector, a rate outside [0, 1].

    Source: Shen et al. 2020; Yan et al. 2021 (ConSERT).
    """
    if jnp.ndim(vectors) < 2 or not 0 <= rate <= 1:
        raise ValueError(f"expected vectors [batch, ..., dim] and a rate in [0, 1]: got {jnp.shape(vectors)}, {rate}")
    rows, dim = vectors.shape[0], vectors.shape[-1]
    ranks = jnp.argsort(jax.random.uniform(key, (rows, dim)), axis=1)  # of a random order: a random permutation
    kept = (ranks >= int(rate * dim)).reshape(rows, *(1,) * (vectors.ndim - 2), dim)
    return jnp.where(kept, vectors, 0)


# ---- shared ----------------------------------------------------------------------------------------------


def _check_rows(
    input_ids: np.ndarray, attention_mask: np.ndarray, protected: np.ndarray | None, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens are real, and which of these may be edited."""
    if np.ndim(input_ids) != 2 or not np.issubdtype(input_ids.dtype, np.integer):
        raise ValueError(f"input_ids must be integers [rows, length]: got {np.shape(input_ids)}")
    for name, array in (("attention_mask", attention_mask), ("protected", protected)):
        if array is not None and np.shape(array) != input_ids.shape:
            raise ValueError(f"{name} must have the shape of input_ids {input_ids.shape}: got {np.shape(array)}")
    real = np.asarray(attention_mask).astype(bool)
    if np.any(real[:, 1:] & ~real[:, :-1]):
        raise ValueError("attention_mask must be 1 on the first tokens of a row and 0 after them")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1]: got {rate}")
    return real, real if protected is None else real & ~np.asarray(protected).astype(bool)


def _compact(input_ids: np.ndarray, keep: np.ndarray, pad_id: int) -> View:
    """The kept tokens of each row, in order, at its start."""
    order = np.argsort(~keep, axis=1, kind="stable")
    kept = np.take_along_axis(keep, order, axis=1)
    ids = np.where(kept, np.take_along_axis(input_ids, order, axis=1), pad_id)
    return View(ids.astype(np.int32), kept.astype(np.int32))


def _first_occurrence(input_ids: np.ndarray, real: np.ndarray) -> np.ndarray:
    """True at the first of several equal real ids of a row."""
    shown = np.where(real, input_ids, -1)
    order = np.argsort(shown, axis=1, kind="stable")
    ordered = np.take_along_axis(shown, order, axis=1)
    new = np.ones(shown.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty(shown.shape, bool)
    np.put_along_axis(first, order, new, axis=1)
    return first


def _draw_words(
    input_ids: np.ndarray, candidates: np.ndarray, weights: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`count` candidates of each row without replacement, in proportion to weight: the smallest Exp(1) / weight."""
    arrival = np.full(input_ids.shape, np.inf)
    lots = rng.exponential(size=input_ids.shape)
    arrival[candidates] = lots[candidates] / weights[input_ids[candidates]]
    width = max(count - input_ids.shape[1], 0)
    arrival = np.pad(arrival, ((0, 0), (0, width)), constant_values=np.inf)
    chosen = np.argsort(arrival, axis=1)[:, :count]
    drawn = np.isfinite(np.take_along_axis(arrival, chosen, axis=1))
    words = np.take_along_axis(np.pad(input_ids, ((0, 0), (0, width))), chosen, axis=1)
    return np.where(drawn, words, 0).astype(np.int32), drawn
