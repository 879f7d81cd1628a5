"""Remove and retrain: the data sets it makes, and that a true ranking costs accuracy where a wrong one does not."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxcore.attribution.remove_and_retrain import RankedTexts, datasets_without_top_tokens, remove_and_retrain

MASK_ID = 99


def test_the_highest_tokens_of_each_text_are_replaced():
    ids = np.array([[1, 2, 3, 4], [5, 6, 0, 0]])
    scores = np.array([[0.1, 0.9, 0.5, 0.3], [0.2, 0.7, 8.0, 8.0]], np.float32)
    texts = RankedTexts(ids, scores, np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool))
    none, half, every = (
        pair[0] for pair in datasets_without_top_tokens(texts, baseline=MASK_ID, fractions=[0, 0.5, 1])
    )
    assert none.tolist() == ids.tolist() and none.dtype.kind == "i"
    assert half.tolist() == [[1, 99, 99, 4], [5, 99, 0, 0]]
    assert every.tolist() == [[99] * 4, [99, 99, 0, 0]]


def test_pairs_lose_the_highest_tokens_of_both_texts():
    ids = {"left": np.array([[1, 2], [3, 4]]), "right": np.array([[5, 6, 7], [8, 0, 0]])}
    scores = {
        "left": np.array([[0.9, 0.1], [0.4, 0.3]], np.float32),
        "right": np.array([[0.8, 0.2, 0.7], [0.1, 9.0, 9.0]], np.float32),
    }
    masks = {"left": np.ones((2, 2), bool), "right": np.array([[1, 1, 1], [1, 0, 0]], bool)}
    texts = RankedTexts(ids, scores, masks)
    ((found,),) = datasets_without_top_tokens(texts, baseline=MASK_ID, fractions=[0.6])
    assert found["left"].tolist() == [[99, 2], [99, 99]]
    assert found["right"].tolist() == [[99, 6, 99], [8, 0, 0]]


def task(num_texts, seed):
    """Texts of ten tokens with three features; the first feature of one random token says the class."""
    rng = np.random.default_rng(seed)
    labels, place = rng.integers(0, 2, num_texts), rng.integers(0, 10, num_texts)
    inputs = rng.normal(size=(num_texts, 10, 3)).astype(np.float32) * 0.3
    telling = np.arange(10) == place[:, None]
    inputs[..., 0] = np.where(telling, 4.0 * (2 * labels - 1)[:, None], 0)
    return inputs, labels, telling.astype(np.float32)


def test_removing_what_tells_the_class_costs_the_accuracy():
    (train, train_labels, train_truth), (test, test_labels, test_truth) = task(400, 0), task(400, 1)
    calls = []

    def retrain(train_inputs, test_inputs):
        calls.append(len(train_inputs))
        features = [np.asarray(x).mean(axis=1) for x in (train_inputs, test_inputs)]
        return LogisticRegression(C=1e4).fit(features[0], train_labels).score(features[1], test_labels)

    fractions = (0.0, 0.1, 0.5)
    faithful = remove_and_retrain(
        retrain, RankedTexts(train, train_truth), RankedTexts(test, test_truth), fractions=fractions
    )
    wrong = remove_and_retrain(
        retrain, RankedTexts(train, -train_truth), RankedTexts(test, -test_truth), fractions=fractions
    )
    assert calls == [400] * 6 and faithful.fractions.tolist() == list(fractions)
    assert faithful.accuracy[0] == wrong.accuracy[0] > 0.95
    assert np.all(np.abs(faithful.accuracy[1:] - 0.5) < 0.1) and np.all(wrong.accuracy > 0.95)


def test_bad_input_is_refused():
    texts = RankedTexts(np.ones((2, 3)), np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="shares in"):
        datasets_without_top_tokens(texts, fractions=[1.2])
    with pytest.raises(ValueError, match=r"like their token scores, \[2, 4\]"):
        datasets_without_top_tokens(texts._replace(token_scores=np.ones((2, 4), np.float32)), fractions=[0.5])
    with pytest.raises(ValueError, match=r"leaves nothing .* in 1 of 2 examples \(rows 1\)"):
        datasets_without_top_tokens(texts._replace(mask=np.array([[1, 1, 0], [0, 0, 0]])), fractions=[0.5])
    embeddings = texts._replace(inputs=np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"baseline of shape \(5,\) does not broadcast to inputs of shape \(2, 3, 4\)"):
        datasets_without_top_tokens(embeddings, baseline=np.ones(5), fractions=[0.5])  # before the first is asked for
