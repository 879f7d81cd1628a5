"""The published study of saliency map verbalisation comes out to the printed digits."""

import pytest

from jaxcore.reporting.verbalisation_study import analyse_study, study_section


def test_every_number_of_the_table_and_of_coverage_is_reproduced(shared_data):
    study = analyse_study(str(shared_data / "verbalisation" / "smv_human_study.tar.gz"))
    metrics = study.metrics
    assert metrics["study/cells"] == 99 and metrics["study/largest_difference"] <= 0.005 + 1e-9
    assert metrics["study/IMDb/kappa"] == pytest.approx(0.762, abs=5e-4)
    assert metrics["study/AGNews/kappa"] == pytest.approx(0.728, abs=5e-4)
    gap = {
        name: metrics[f"study/IMDb/coverage_gap/{name}"] for name in ("mean", "smallest", "items_above", "items_below")
    }
    assert gap == {
        "mean": pytest.approx(0.052, abs=5e-4),
        "smallest": pytest.approx(0.045, abs=5e-4),
        "items_above": 52,
        "items_below": 28,
    }
    for test in ("permutation", "wilcoxon"):
        assert metrics[f"study/IMDb/coverage_gap/p_{test}"] == pytest.approx(0.002, abs=1e-3)
    ratings, automatic = study_section(study).blocks
    assert ratings.rows == study.rows and len(ratings.rows) == 28
    assert dict(automatic.rows)["IMDb/kappa"] == metrics["study/IMDb/kappa"]


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no folder and no tar archive at study_path /does/not/exist"):
        analyse_study("/does/not/exist")
