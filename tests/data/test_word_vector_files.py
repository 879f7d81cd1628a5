"""Published word vectors: what is read, what is drawn, and lines that do not fit."""

import gzip

import numpy as np
import pytest

from jaxcore.data.word_vector_files import read_word_vectors, word_table

LINES = "3 2\ncat 1 -2\nthe 0.5 4\ncat 9 9\n"


@pytest.mark.parametrize("header", [True, False])
def test_the_first_vector_of_each_wanted_word_is_read(tmp_path, header):
    text = LINES if header else LINES.split("\n", 1)[1]
    (tmp_path / "x.vec").write_text(text)
    (tmp_path / "x.vec.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("x.vec", "x.vec.gz"):
        found = read_word_vectors(tmp_path / name, {"cat", "dog"}, dim=2)
        assert list(found) == ["cat"] and found["cat"].dtype == np.float32 and found["cat"].tolist() == [1, -2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINES + "dog 1\n", r"x\.vec:5: expected a word and 2 numbers"),
        (LINES.replace("1 -2", "1 x"), r"x\.vec:2: expected a word and 2 numbers"),
        ("dog 1 2\n", "a vector for none of the 1 words"),
        (None, "no file of word vectors at"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "x.vec").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_word_vectors(tmp_path / "x.vec", ["cat"], dim=2)


def test_rows_without_a_vector_are_drawn_like_the_others():
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(400)]
    vectors = {word: rng.normal(3, 0.5, 8) for word in words[:200]}
    table = word_table(words, vectors, num_rows=500, rng=np.random.default_rng(1))
    np.testing.assert_allclose(table[:200], np.stack(list(vectors.values())), rtol=1e-6)
    assert table.shape == (500, 8) and table.dtype == np.float32
    assert abs(table[200:].mean() - 3) < 0.05 and abs(table[200:].std() - 0.5) < 0.05
    with pytest.raises(ValueError, match="400 words do not fit into a table of 10 rows"):
        word_table(words, vectors, num_rows=10, rng=rng)
    with pytest.raises(ValueError, match="none of the 1 words"):
        word_table(["other"], vectors, num_rows=10, rng=rng)
