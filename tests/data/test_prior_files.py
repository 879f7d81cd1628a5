"""Priors on disk: read back word by word, found by words and label, and what is refused."""

import json

import numpy as np
import pytest

from jaxcore.data.intent_task import LabelledWords
from jaxcore.data.prior_files import read_priors, write_priors

TEXTS = LabelledWords(
    (("card", "lost"), ("a", "new", "card")), np.array([0, 1]), np.array([1, 0]), np.zeros((2, 4), int)
)
PRIORS = {"cap": np.array([[0.25, 0.75, 0, 0], [0, 1 / 3, 2 / 3, 0]]), "lime": np.eye(4)[:2]}


def test_priors_are_read_back_whatever_the_order_of_the_lines(tmp_path):
    path = tmp_path / "priors.jsonl"
    write_priors(path, TEXTS, PRIORS)
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    assert first == {"id": 0, "words": ["card", "lost"], "label": 0, "r_cap": [0.25, 0.75], "r_lime": [1.0, 0.0]}
    path.write_text("\n".join(reversed(lines)))
    read = read_priors(path, TEXTS, names=("cap", "shap", "lime"))
    assert set(read) == {"cap", "lime"}
    for name, values in read.items():
        np.testing.assert_allclose(values, PRIORS[name], atol=1e-7)


def test_what_does_not_fit_is_named(tmp_path):
    path = tmp_path / "priors.jsonl"
    with pytest.raises(ValueError, match="no file of priors at"):
        read_priors(path, TEXTS, names=("cap",))
    write_priors(path, TEXTS, PRIORS)
    other = TEXTS._replace(labels=np.array([0, 0]))
    with pytest.raises(ValueError, match=r"has no prior for training text 1 \(a new card"):
        read_priors(path, other, names=("cap",))
    path.write_text(path.read_text().replace("[0.25, 0.75]", "[1.0]"))
    with pytest.raises(ValueError, match="r_cap of text 0 has 1 values, not 2"):
        read_priors(path, TEXTS, names=("cap",))
    path.write_text('{"words": ["card"]}\n')
    with pytest.raises(ValueError, match="line 1: expected words, label"):
        read_priors(path, TEXTS, names=("cap",))
