"""The world of sentences: same seed, same text; meaning as graded; surface and meaning apart; splits apart."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

from jaxcore.data.graded_pairs import normalized
from jaxcore.data.sentence_world import PAIR_KINDS, ROLES, SentenceWorld, SentenceWorldConfig, meaning_similarity
from jaxcore.data.word_vectors import WordVectorOptions, ppmi_svd_vectors

WEIGHTS = dict(zip(ROLES, (1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25), strict=True))
CONFIG = SentenceWorldConfig(
    num_concepts=600,
    num_topics=30,
    num_sentences=8000,
    num_development_pairs=800,
    num_test_pairs=600,
    num_training_pairs=300,
)


@pytest.fixture(scope="module")
def world():
    return SentenceWorld(CONFIG, seed=3)


def meaning(world, sentence):
    """Role -> concept, read off the words: every content word names its concept, every concept its role."""
    number = {word: i for i, word in enumerate(world.vocabulary)}
    concepts = [world.concept_of_word[number[word]] for word in sentence.split()]
    found = [concept for concept in concepts if concept >= 0]
    roles = {ROLES[world.role_of_concept[concept]]: concept for concept in found}
    assert len(roles) == len(found), "a role is filled once"
    return roles


def gold_by_hand(first, second):
    roles = first.keys() | second.keys()
    shared = sum(WEIGHTS[role] for role in roles if first.get(role) == second.get(role))
    return 5 * shared / sum(WEIGHTS[role] for role in roles)


def jaccard(first, second):
    a, b = set(first.split()), set(second.split())
    return len(a & b) / len(a | b)


def test_the_same_seed_gives_the_same_sentences_and_another_seed_others(world):
    again, other = SentenceWorld(CONFIG, seed=3), SentenceWorld(CONFIG, seed=4)
    assert again.texts == world.texts and again.vocabulary == world.vocabulary
    assert again.test.first == world.test.first
    np.testing.assert_array_equal(again.development.gold, world.development.gold)
    assert not set(other.texts) & set(world.texts)


def test_gold_is_the_equation_applied_to_the_words_of_the_sentences(world):
    for pairs in (world.development, world.training_pairs):
        by_hand = [
            gold_by_hand(meaning(world, a), meaning(world, b)) for a, b in zip(pairs.first, pairs.second, strict=True)
        ]
        np.testing.assert_allclose(pairs.gold, by_hand, atol=1e-12)


def test_meaning_similarity_by_hand():
    first = np.array([[1, 2, 3, -1, -1, -1, 4, -1]])
    second = np.array([[1, 2, 9, 8, -1, -1, 4, -1]])
    shared, either = 1 + 1 + 0.25, 1 + 1 + 1 + 0.5 + 0.25
    np.testing.assert_allclose(meaning_similarity(first, second), [5 * shared / either])


def test_no_two_splits_share_a_sentence_and_training_sentences_are_distinct(world):
    splits = [set(world.texts)] + [
        set(pairs.sentences()) for pairs in (world.development, world.test, world.training_pairs)
    ]
    assert len(splits[0]) == len(world.texts) == CONFIG.num_sentences
    assert sum(map(len, splits)) == len(set.union(*splits))
    assert all(normalized(text) == text for text in world.texts)
    sizes = [len(p) for p in (world.development, world.test, world.training_pairs)]
    assert sizes == [800, 600, 300]


def test_shared_words_tell_little_of_shared_meaning(world):
    pairs = world.development
    overlap = np.array([jaccard(a, b) for a, b in zip(pairs.first, pairs.second, strict=True)])
    assert abs(spearmanr(overlap, pairs.gold).statistic) < 0.3
    kinds = np.array(pairs.subset)
    assert set(kinds) == set(PAIR_KINDS)
    mean = {kind: (overlap[kinds == kind].mean(), pairs.gold[kinds == kind].mean()) for kind in PAIR_KINDS}
    assert np.all(pairs.gold[kinds == "paraphrase"] == 5)
    assert mean["look-alike"][0] > mean["paraphrase"][0] + 0.1, "look-alikes share more words"
    assert mean["look-alike"][1] < 3 < mean["paraphrase"][1], "and less meaning"
    assert mean["unrelated"][1] < 1
    # Paraphrases say it in other words: most have some content word that differs.
    rephrased = [
        meaning(world, a) == meaning(world, b) and a != b for a, b in zip(pairs.first, pairs.second, strict=True)
    ]
    assert np.mean(np.array(rephrased)[kinds == "paraphrase"]) == 1


def test_length_is_independent_of_meaning(world):
    pairs = world.development
    gap = [abs(len(a.split()) - len(b.split())) for a, b in zip(pairs.first, pairs.second, strict=True)]
    paraphrases = np.array(gap)[np.array(pairs.subset) == "paraphrase"]
    assert paraphrases.mean() > 0.7, "sentences of one meaning differ in length"
    assert abs(spearmanr(gap, pairs.gold).statistic) < 0.25


def test_co_occurrence_gives_vectors_in_which_synonyms_meet_and_frequency_shows(world):
    number = {word: i for i, word in enumerate(world.vocabulary)}
    rows = [[number[word] for word in text.split()] for text in world.texts]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    counted = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], counted[i, : len(row)] = row, True
    vectors = ppmi_svd_vectors(
        ids, counted, vocab_size=len(world.vocabulary), dim=64, options=WordVectorOptions(min_count=10)
    )
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    sentences = np.stack([unit[row].mean(0) for row in rows[:2000]])
    sentences /= np.linalg.norm(sentences, axis=1, keepdims=True)
    cosines = (sentences @ sentences.T)[np.triu_indices(2000, 1)]
    assert cosines.mean() > 0.2, "anisotropic: unrelated sentences are alike"
    present = np.linalg.norm(vectors, axis=1) > 0
    concept = np.where(present, world.concept_of_word, -1)
    first, second = zip(
        *[tuple(np.flatnonzero(concept == c)[:2]) for c in range(600) if (concept == c).sum() >= 2], strict=True
    )
    centred = unit - unit[present].mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    synonyms = (centred[list(first)] * centred[list(second)]).sum(1)
    strangers = (centred[list(first)] * np.roll(centred[list(second)], 1, axis=0)).sum(1)
    assert len(synonyms) > 200 and synonyms.mean() > strangers.mean() + 0.25


def test_the_vocabulary_has_the_size_the_configuration_promises(world):
    assert len(set(world.vocabulary)) == len(world.vocabulary) == CONFIG.num_words
    concepts, counts = np.unique(world.concept_of_word[world.concept_of_word >= 0], return_counts=True)
    assert len(concepts) == 600 and set(counts) == {2, 3, 4}
    assert set(" ".join(world.texts).split()) <= set(world.vocabulary)


def test_unrelated_text_only_when_asked():
    config = dataclasses.replace(CONFIG, num_sentences=2000, related_share=0.0)
    overlaps = []
    for share in (0.0, 1.0):
        world = SentenceWorld(dataclasses.replace(config, related_share=share), seed=0)
        meanings = [frozenset(meaning(world, text).items()) for text in world.texts]
        overlaps.append(len(meanings) - len(set(meanings)))
    assert overlaps[1] > 150 and overlaps[0] < overlaps[1] / 4, "paraphrases of training sentences are in the corpus"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_concepts": 10}, "num_concepts is 10; it must be at least 50"),
        ({"max_synonyms": 1}, "max_synonyms is 1; it must be at least 2"),
        ({"num_test_pairs": 1}, "num_test_pairs is 1"),
        ({"num_registers": 5, "num_topics": 4}, r"num_topics is 4; it must be at least 5 \(num_registers\)"),
        ({"related_share": 1.5}, r"related_share is 1.5; it must be in \[0, 1\]"),
        ({"function_rate": 3.0}, r"function_rate is 3.0; it must be in \[0, 2\]"),
        ({"topicality": float("nan")}, "topicality is nan; it must not be negative"),
    ],
)
def test_worlds_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SentenceWorldConfig(**changes)
