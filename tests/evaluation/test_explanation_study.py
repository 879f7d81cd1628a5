"""Means of subsets and agreement of guesses by hand, and reading of the published files' format."""

import json

import pytest

from jaxcore.evaluation import Rating, StudyTable, fleiss_kappa, guess_agreement, read_study, study_files, subset_means
from jaxcore.evaluation.explanation_study import study_coverage_at_k

QUESTIONS = "How helpful was it?,How easy was it?,What does the model predict?"
FILES = {
    "IMDb_SMV-GPT_Eval.csv": "ID,Pred,True,Type\n1,pos,pos,GPT\n2,neg,pos,GPT\n,,,\n",
    "IMDb_cov_sum_dict.csv": "id,coverage\n1,0.2\n2,0.6\n",
    "IMDb_G0_Anno0.csv": f"ID,Explanation,{QUESTIONS}\n1,,5,6,Positive sentiment\n2,a text,3,4,neg\n2,,,,\n",
    "IMDb_G1_Anno4.csv": f"ID,Type,Explanation,{QUESTIONS}\n1,GPT,a text,7,7,neg\n",
    "imdbcov_GPT.json": json.dumps({"imdb": {str(k): {"b": k / 10, "a": 0.0} for k in range(1, 11)}}),
}


def test_ratings_are_averaged_by_annotator_first():
    table = StudyTable(
        [Rating(0, "1", "HM", "pos", 1, 1)] * 3 + [Rating(1, "2", "HM", "", 7, 5), Rating(1, "2", "SMV", "neg", 2, 2)],
        {"1": "pos", "2": "neg"}, {"1": "pos", "2": "pos"}, {"1": 0.2, "2": 0.6},
    )  # fmt: skip
    assert subset_means(table, "all", "HM") == (50.0, 4.0, 3.0)
    assert subset_means(table, "high_coverage", "HM") == (0.0, 7.0, 5.0)
    assert subset_means(table, "model_wrong", "SMV") == (100.0, 2.0, 2.0)
    assert subset_means(table, "simulation_wrong", "SMV") is None


def test_agreement_is_over_items_and_representations_without_blank_guesses():
    ratings = [("1", "HM", "pos"), ("1", "HM", "pos"), ("1", "HM", ""), ("1", "SMV", "neg"), ("1", "SMV", "pos"),
               ("2", "HM", "neg"), ("2", "HM", "neg")]  # fmt: skip
    table = StudyTable(
        [Rating(n, item, kind, guess, 1, 1) for n, (item, kind, guess) in enumerate(ratings)],
        {"1": "pos", "2": "neg"}, {"1": "pos", "2": "neg"}, {"1": 0.5, "2": 0.5},
    )  # fmt: skip
    assert guess_agreement(table) == pytest.approx(fleiss_kappa([[0, 2], [1, 1], [2, 0]]))


def test_files_of_the_study_are_read(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
    files = study_files(str(tmp_path))
    table = read_study(files, "IMDb")
    assert table.ratings == [
        Rating(0, "1", "HM", "pos", 5, 6), Rating(0, "2", "SMV", "neg", 3, 4), Rating(4, "1", "GPT", "neg", 7, 7)
    ]  # fmt: skip
    assert table.predicted == {"1": "pos", "2": "neg"} and table.true == {"1": "pos", "2": "pos"}
    assert table.coverage == {"1": 0.2, "2": 0.6}
    coverage = study_coverage_at_k(files, "IMDb", "GPT")
    assert coverage.shape == (2, 10) and coverage[:, 2].tolist() == [0.0, 0.3], "items by name"
    with pytest.raises(ValueError, match="hold no imdbcov_SMV"):
        study_coverage_at_k(files, "IMDb", "SMV")
    with pytest.raises(ValueError, match="the study has the datasets IMDb, AGNews"):
        read_study(files, "SST")


def test_what_is_no_study_is_named(tmp_path):
    with pytest.raises(ValueError, match="no folder and no tar archive at study_path /does/not/exist"):
        study_files("/does/not/exist")
    with pytest.raises(ValueError, match="lacks IMDb_SMV-GPT_Eval"):
        study_files(str(tmp_path))
