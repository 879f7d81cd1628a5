"""Repetition and diversity by hand, pooled counts, and the published numbers of the published texts."""

import json
import tarfile

import pytest

from jaxcore.evaluation.text_diversity import diversity, mean_length, ngram_counts, repetition

TEXTS = ["a b a b a b", "c d e", "f", ""]


def test_repetition_by_hand():
    assert ngram_counts(TEXTS, 2).different.tolist() == [2, 2, 0, 0]
    assert ngram_counts(TEXTS, 2).total.tolist() == [5, 2, 0, 0]
    assert repetition(TEXTS, 2) == pytest.approx(100 * (1 - 4 / 7))  # pooled: the mean of texts would be 30
    assert repetition(TEXTS, 3) == pytest.approx(100 * (1 - 3 / 5))
    assert repetition(TEXTS, 4) == pytest.approx(100 * (1 - 2 / 3))
    assert diversity(TEXTS) == pytest.approx(100 * (4 / 7) * (3 / 5) * (2 / 3))


def test_the_published_code_leaves_the_last_ngram_out_and_rounds():
    assert ngram_counts(TEXTS, 2, drop_last=True).total.tolist() == [4, 1, 0, 0]
    assert repetition(TEXTS, 2, drop_last=True) == pytest.approx(100 * (1 - 3 / 5))
    assert diversity(TEXTS, decimals=0) == pytest.approx(100 * 0.57 * 0.6 * 0.67)


def test_texts_do_not_share_ngrams_and_white_space_is_all_alike():
    assert repetition(["a b c", "a b c"], 2) == 0
    assert repetition([" a\tb\n\na  b "], 2) == repetition(["a b a b"], 2) == pytest.approx(100 / 3)
    assert repetition(["word"], 2) == 0 and diversity([""]) == 100
    assert mean_length(["a b", "", " c d  e f "]) == 2


PUBLISHED = {"greedy": (5.38, 147.28, (65.04, 61.80, 59.68)), "contrastive": (92.54, 140.72, (4.77, 1.73, 1.11))}
"""Diversity, length and rep-2..4 that came with these files."""


def published(shared_data, name):
    path = shared_data / "generation" / "gpt2_large_webtext.tar.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} beside the project")
    with tarfile.open(path) as archive:
        read = {
            kind: json.load(archive.extractfile(member))
            for member in archive.getmembers()
            for kind in ("_result.json", "_length_result.json")
            if member.name.endswith(f"{name}{kind}") or member.name.endswith(f"{name}_result_diversity_mauve_gen{kind}")
        }
    return read["_result.json"], read["_length_result.json"][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_numbers_of_the_published_texts(shared_data, name):
    rows, scores = published(shared_data, name)
    texts = [row["generated_result"]["0"] for row in rows]
    expected, words, repeated = PUBLISHED[name]
    assert float(scores["diversity_dict"]["prediction_div_mean"]) == expected
    assert diversity(texts, drop_last=True, decimals=2) == pytest.approx(expected, abs=0.006)
    assert 0 < abs(diversity(texts) - diversity(texts, drop_last=True)) < 0.05
    assert mean_length(texts) == pytest.approx(float(scores["gen_length_dict"]["gen_len_list"][0]), abs=5e-4)
    assert mean_length(texts) == pytest.approx(words, abs=6e-3)
    for n, value in zip((2, 3, 4), repeated, strict=True):
        assert repetition(texts, n, drop_last=True) == pytest.approx(value, abs=0.006)
    if name == "greedy":
        references = [row["reference_text"] for row in rows]
        assert diversity(references, drop_last=True, decimals=2) == pytest.approx(93.62, abs=0.006)


def test_each_published_sample_has_its_diversity(shared_data):
    rows, scores = published(shared_data, "nucleus")
    for sample, expected in enumerate(scores["diversity_dict"]["prediction_diversity_list"]):
        texts = [row["generated_result"][str(sample)] for row in rows]
        assert diversity(texts, drop_last=True, decimals=2) == pytest.approx(float(expected), abs=0.006)


def test_bad_input_is_refused():
    for texts in ([], "one text"):
        with pytest.raises(ValueError, match="sequence of at least one text"):
            diversity(texts)
    with pytest.raises(ValueError, match="n must be 1"):
        repetition(TEXTS, 0)
