"""Augmentations of token rows: what they keep, what they change, the laws they draw from, and what they refuse."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.data import text_augmentation as augment

PAD, CLS, SEP, MASK = 0, 1, 2, 3
LEXICON = augment.make_lexicon({10: (11, 12), 20: (21,)}, vocab_size=200)


def rows_of(lengths, *, width, seed=0, vocab=(10, 200)):
    """Rows of random words between [CLS] and [SEP]; and which tokens are those two."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(lengths), width), PAD, np.int32)
    protected = np.zeros(ids.shape, bool)
    for row, length in enumerate(lengths):
        ids[row, :length] = np.r_[CLS, rng.integers(*vocab, length - 2), SEP]
        protected[row, [0, length - 1]] = True
    return ids, (np.arange(width) < np.asarray(lengths)[:, None]).astype(np.int32), protected


EDITS = {
    "delete_words": lambda i, m, r, p: augment.delete_words(i, m, r, rate=0.4, protected=p),
    "delete_span": lambda i, m, r, p: augment.delete_span(i, m, r, rate=0.4, protected=p),
    "reorder_words": lambda i, m, r, p: augment.reorder_words(i, m, r, protected=p),
    "reorder_spans": lambda i, m, r, p: augment.reorder_words(i, m, r, span_length=3, protected=p),
    "repeat_words": lambda i, m, r, p: augment.repeat_words(i, m, r, rate=0.4, protected=p),
    "cut_off_tokens": lambda i, m, r, p: augment.cut_off_tokens(i, m, r, rate=0.4, replacement_id=MASK, protected=p),
    "replace_words": lambda i, m, r, p: augment.replace_words(i, m, r, rate=0.5, lexicon=LEXICON, protected=p)[:2],
}


@pytest.mark.parametrize("name", EDITS)
@given(lengths=st.lists(st.integers(2, 14), min_size=1, max_size=5), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_every_edit_leaves_well_formed_rows_and_protected_tokens(name, lengths, seed):
    ids, mask, protected = rows_of(lengths, width=14, seed=seed)
    before = ids.copy()
    edited, kept = EDITS[name](ids, mask, np.random.default_rng(seed), protected)
    np.testing.assert_array_equal(ids, before)
    assert edited.dtype == kept.dtype == np.int32 and edited.shape == kept.shape
    np.testing.assert_array_equal(kept, np.sort(kept, axis=1)[:, ::-1])
    assert not np.any(edited[kept == 0])
    for row, count in zip(edited, kept.sum(axis=1), strict=True):
        assert row[0] == CLS and row[count - 1] == SEP
        assert not np.isin(row[1 : count - 1], [CLS, SEP]).any()


@pytest.mark.parametrize("name", EDITS)
def test_the_same_generator_gives_the_same_view_and_another_gives_another(name):
    ids, mask, protected = rows_of([40] * 8, width=40, vocab=(10, 30))
    views = [EDITS[name](ids, mask, np.random.default_rng(seed), protected)[0] for seed in (7, 7, 8)]
    np.testing.assert_array_equal(views[0], views[1])
    assert np.any(views[0] != views[2]) and np.any(views[0][:, :40] != ids)


def is_subsequence(short, long):
    remaining = iter(long)
    return all(token in remaining for token in short)


def test_deleted_words_go_independently_at_their_rate():
    ids, mask, protected = rows_of([102] * 300, width=102)
    edited, kept = augment.delete_words(ids, mask, np.random.default_rng(0), rate=0.3, protected=protected)
    for row, view, count in zip(ids, edited, kept.sum(axis=1), strict=True):
        assert is_subsequence(view[:count], row)
    gone = 102 - kept.sum(axis=1)
    assert gone.mean() == pytest.approx(30, abs=1)
    assert gone.var() == pytest.approx(100 * 0.3 * 0.7, rel=0.3)


def test_a_text_never_loses_its_last_word():
    ids = np.arange(10, 16, dtype=np.int32).reshape(2, 3)
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    for edit in (augment.delete_words, augment.delete_span):
        edited, kept = edit(ids, mask, np.random.default_rng(0), rate=1.0)
        np.testing.assert_array_equal(kept.sum(axis=1), 1)
        assert edited[0, 0] in ids[0] and edited[1, 0] == 13


def test_a_deleted_span_is_one_run_of_the_stated_length_anywhere():
    ids = np.tile(np.arange(100, 110, dtype=np.int32), (2000, 1))
    edited, kept = augment.delete_span(ids, np.ones_like(ids), np.random.default_rng(0), rate=0.39)
    np.testing.assert_array_equal(kept.sum(axis=1), 7)
    starts = []
    for view in edited[:, :7]:
        gone = sorted(set(range(100, 110)) - set(view.tolist()))
        assert gone == list(range(gone[0], gone[0] + 3))
        starts.append(gone[0] - 100)
    assert scipy.stats.chisquare(np.bincount(starts, minlength=8)).pvalue > 1e-3


def test_reordering_permutes_uniformly_and_keeps_spans_whole():
    ids = np.tile(np.arange(100, 103, dtype=np.int32), (6000, 1))
    edited, _ = augment.reorder_words(ids, np.ones_like(ids), np.random.default_rng(0))
    counts = collections.Counter(map(tuple, edited.tolist()))
    assert len(counts) == 6 and scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3
    ids = np.tile(np.arange(100, 108, dtype=np.int32), (50, 1))
    edited, _ = augment.reorder_words(ids, np.ones_like(ids), np.random.default_rng(0), span_length=3)
    for view in edited.tolist():
        assert sorted(view) == list(range(100, 108))
        for span in ([100, 101, 102], [103, 104, 105], [106, 107]):
            place = view.index(span[0])
            assert view[place : place + len(span)] == span


def test_repeated_words_stand_beside_themselves_as_often_as_the_law_says():
    ids = np.tile(np.arange(100, 120, dtype=np.int32), (3000, 1))
    edited, kept = augment.repeat_words(ids, np.ones_like(ids), np.random.default_rng(0), rate=0.32)
    assert edited.shape == (3000, 26)
    extra = kept.sum(axis=1) - 20
    assert scipy.stats.chisquare(np.bincount(extra, minlength=7)).pvalue > 1e-3
    for view, count in zip(edited[:50].tolist(), kept.sum(axis=1), strict=False):
        assert sorted(set(view[:count])) == list(range(100, 120)) and view[:count] == sorted(view[:count])
        assert max(collections.Counter(view[:count]).values()) <= 2


def test_cutoff_replaces_a_fixed_share_without_moving_the_others():
    ids, mask, protected = rows_of([12, 7, 2], width=12)
    edited, kept = augment.cut_off_tokens(
        ids, mask, np.random.default_rng(0), rate=0.3, replacement_id=MASK, protected=protected
    )
    np.testing.assert_array_equal((edited == MASK).sum(axis=1), [3, 1, 0])
    np.testing.assert_array_equal(edited[edited != MASK], ids[edited != MASK])
    np.testing.assert_array_equal(kept, mask)


def test_lexical_edits_take_replacements_from_the_lexicon_only():
    ids = np.tile(np.array([10, 15, 20, 10], np.int32), (4000, 1))
    mask = np.tile([1, 1, 1, 0], (4000, 1))
    edited, _, replaced = augment.replace_words(ids, mask, np.random.default_rng(0), rate=0.5, lexicon=LEXICON)
    np.testing.assert_array_equal(replaced, edited != ids)
    assert replaced[:, [0, 2]].mean() == pytest.approx(0.5, abs=0.02) and not replaced[:, [1, 3]].any()
    counts = np.unique(edited[replaced[:, 0], 0], return_counts=True)
    assert counts[0].tolist() == [11, 12] and scipy.stats.chisquare(counts[1]).pvalue > 1e-3
    nothing = augment.replace_words(
        ids, mask, np.random.default_rng(0), rate=1.0, lexicon=augment.make_lexicon({}, vocab_size=200)
    )
    assert not nothing.replaced.any()


# ---- other material ----------------------------------------------------------------------------------------


@given(
    num_anchors=st.integers(1, 4),
    max_span=st.integers(3, 40),
    extra=st.integers(0, 60),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_anchor_spans_keep_apart_and_positives_touch_their_anchor_alone(num_anchors, max_span, extra, seed):
    length = 2 * num_anchors * max_span + extra
    spans = augment.sample_anchor_spans(
        length, np.random.default_rng(seed), num_anchors=num_anchors, min_span=2, max_span=max_span
    )
    sizes = np.concatenate([spans.anchors, spans.positives.reshape(-1, 2)])
    assert sizes.min() >= 0 and sizes.max() <= length
    assert np.all((np.diff(sizes) >= 2) & (np.diff(sizes) <= max_span))
    for number, (anchor, positives) in enumerate(zip(spans.anchors, spans.positives, strict=True)):
        assert np.all(positives[:, 0] <= anchor[1]) and np.all(positives[:, 1] >= anchor[0])
        for other in np.delete(spans.anchors, number, axis=0):
            assert np.all(np.maximum(positives[:, 0], other[0]) >= np.minimum(positives[:, 1], other[1]))
            assert anchor[1] <= other[0] or other[1] <= anchor[0]


def test_span_lengths_follow_the_two_beta_laws():
    rng = np.random.default_rng(0)
    drawn = [augment.sample_anchor_spans(4096, rng) for _ in range(2000)]
    anchors = np.concatenate([np.diff(spans.anchors).ravel() for spans in drawn])
    positives = np.concatenate([np.diff(spans.positives).ravel() for spans in drawn])
    for lengths, law in ((anchors, scipy.stats.beta(4, 2)), (positives, scipy.stats.beta(2, 4))):
        # Half a token undoes the rounding down, on average.
        assert scipy.stats.kstest((lengths - 32 + 0.5) / 480, law.cdf).pvalue > 1e-3


def test_a_document_of_exactly_the_least_length_serves_and_a_shorter_one_is_refused():
    rng = np.random.default_rng(0)
    augment.sample_anchor_spans(2048, rng)
    with pytest.raises(ValueError, match=r"2047 tokens is too short for 2 anchors of up to 512: it needs .* = 2048"):
        augment.sample_anchor_spans(2047, rng)
    with pytest.raises(ValueError, match="min_span <= max_span"):
        augment.sample_anchor_spans(2048, rng, min_span=600)


def test_pseudo_labels_are_own_words_against_words_of_another_text():
    ids, mask, _ = rows_of([30, 12, 20, 5], width=30, vocab=(10, 40))
    weights = augment.rare_word_weights(ids, mask, vocab_size=40, never=(PAD, CLS, SEP))
    for seed in range(30):
        labels = augment.sample_pseudo_labels(
            ids, mask, np.random.default_rng(seed), num_positives=6, num_negatives=9, word_weights=weights
        )
        owners = set()
        for row in range(4):
            own = set(ids[row][mask[row] > 0].tolist())
            positives = labels.positives[row][labels.positive_mask[row]].tolist()
            negatives = labels.negatives[row][labels.negative_mask[row]].tolist()
            assert len(set(positives)) == len(positives) == min(6, len(own - {CLS, SEP}))
            assert set(positives) <= own - {CLS, SEP} and not set(negatives) & (own | {PAD, CLS, SEP})
            sources = [r for r in range(4) if r != row and set(negatives) <= set(ids[r][mask[r] > 0].tolist())]
            assert sources
            owners.update(sources)
        assert len(owners) >= 2


def test_pseudo_labels_prefer_heavy_words_without_replacement():
    """Two of three words of weights 4, 1, 1: the chance that the heavy one is among them is 1 - 1/6 * 1/5 * 2."""
    ids, mask = np.tile(np.array([10, 11, 12], np.int32), (20000, 1)), np.ones((20000, 3), int)
    weights = np.zeros(13)
    weights[10:] = [4, 1, 1]
    labels = augment.sample_pseudo_labels(
        ids, mask, np.random.default_rng(0), num_positives=2, num_negatives=1, word_weights=weights
    )
    assert (labels.positives == 10).any(axis=1).mean() == pytest.approx(1 - 2 * (1 / 6) * (1 / 5), abs=0.01)
    assert not labels.negative_mask.any()  # every word of another text is a word of the own


def test_rare_words_weigh_more():
    ids = np.array([[5, 5, 6], [5, 7, 0]], np.int32)
    weights = augment.rare_word_weights(ids, np.array([[1, 1, 1], [1, 1, 0]]), vocab_size=9, never=[7])
    np.testing.assert_allclose(weights[[5, 6, 7, 0, 8]], [1 / np.sqrt(3), 1 / np.sqrt(2), 0, 1, 1])


def test_sentences_at_a_distance_by_brute_force():
    documents = np.array([4] * 7 + [1] * 2 + [9] * 12)
    for seed in range(20):
        pairs = augment.sample_distance_sentences(
            documents, np.random.default_rng(seed), max_distance=3, num_same_document=2, num_random=5
        )
        assert pairs.distances.tolist() == [-3, -2, -1, 1, 2, 3]
        for i in range(len(documents)):
            for column, distance in enumerate(pairs.distances):
                j = i + distance
                inside = 0 <= j < len(documents) and documents[j] == documents[i]
                assert pairs.targets[i, column] == (j if inside else -1)
            far = {j for j in range(len(documents)) if documents[j] == documents[i] and abs(i - j) > 3}
            same, random = pairs.negatives[i, :2], pairs.negatives[i, 2:]
            assert set(same.tolist()) <= far if far else np.all(same == -1)
            assert np.all(documents[random] != documents[i]) and random.min() >= 0


def test_every_far_sentence_is_drawn_alike():
    documents = np.array([0] * 9 + [1])
    pairs = augment.sample_distance_sentences(
        documents, np.random.default_rng(0), max_distance=2, num_same_document=6000, num_random=1
    )
    counts = np.bincount(pairs.negatives[4, :6000], minlength=10)
    assert np.flatnonzero(counts).tolist() == [0, 1, 7, 8]
    assert scipy.stats.chisquare(counts[[0, 1, 7, 8]]).pvalue > 1e-3


# ---- vectors -----------------------------------------------------------------------------------------------


def test_feature_cutoff_zeroes_the_same_features_at_all_tokens_of_a_text():
    vectors = jnp.ones((64, 5, 20))
    cut = np.asarray(jax.jit(lambda v, k: augment.cut_off_features(v, k, rate=0.2))(vectors, jax.random.key(0)))
    assert np.all((cut == 0).sum(axis=2) == 4)
    assert np.all(cut == cut[:, :1])
    assert len(np.unique(cut[:, 0], axis=0)) > 50
    assert np.asarray(cut == 0).mean(axis=(0, 1)).min() > 0.05
    assert augment.cut_off_features(jnp.ones((3, 20)), jax.random.key(0), rate=0.2).shape == (3, 20)


# ---- bad input ---------------------------------------------------------------------------------------------

IDS, REAL = np.full((2, 4), 10, np.int32), np.ones((2, 4), np.int32)


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: augment.delete_words(IDS[0], REAL[0], rng(), rate=0.1), r"integers \[rows, length\]"),
        (lambda: augment.delete_words(IDS, REAL[:1], rng(), rate=0.1), "attention_mask must have the shape"),
        (lambda: augment.delete_span(IDS, REAL, rng(), rate=1.5), r"rate must be in \[0, 1\]: got 1.5"),
        (lambda: augment.delete_span(IDS, np.eye(4)[:2], rng(), rate=0.5), "on the first tokens of a row"),
        (lambda: augment.reorder_words(IDS, REAL, rng(), span_length=0), "span_length must be at least 1"),
        (
            lambda: augment.replace_words(IDS + 500, REAL, rng(), rate=0.1, lexicon=LEXICON),
            r"the lexicon covers 0\.\.199",
        ),
        (lambda: augment.make_lexicon({1: (7,)}, vocab_size=5), r"names id 7: expected 0\.\.4"),
        (
            lambda: augment.sample_pseudo_labels(IDS[:1], REAL[:1], rng(), num_positives=1, num_negatives=1),
            "at least two rows",
        ),
        (
            lambda: augment.sample_pseudo_labels(
                IDS, REAL, rng(), num_positives=1, num_negatives=1, word_weights=np.ones(4)
            ),
            r"cover ids 0\.\.3: got id 10",
        ),
        (
            lambda: augment.sample_pseudo_labels(IDS, REAL, rng(), num_positives=0, num_negatives=1),
            "a positive and a negative",
        ),
        (lambda: augment.rare_word_weights(IDS, REAL, vocab_size=5), "below vocab_size 5"),
        (lambda: augment.sample_distance_sentences(np.array([0, 1, 0]), rng()), "next to each other"),
        (lambda: augment.sample_distance_sentences(np.zeros(3, int), rng()), "at least two"),
        (lambda: augment.sample_distance_sentences(np.array([0, 1]), rng(), max_distance=0), "max_distance"),
        (lambda: augment.cut_off_features(jnp.ones(4), jax.random.key(0), rate=0.1), "expected vectors"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
