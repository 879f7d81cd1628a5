"""Verdicts from recorded values: margins, paired tests, and claims that speak of what was not measured."""

import numpy as np
import pytest
import scipy.stats

from jaxcore.evaluation import Claim, Claims, Measured, RunValues, judge, judge_single_run


def claim(**changes):
    fields = {
        "name": "better",
        "statement": "the method beats the baseline",
        "source": "test",
        "value": Measured("method", "accuracy"),
        "against": Measured("baseline", "accuracy"),
        "margin": 0.1,
    }
    return Claim(**{**fields, **changes})


def runs(method, baseline):
    return {
        "method": [RunValues({"accuracy": value}) for value in method],
        "baseline": [RunValues({"accuracy": value}) for value in baseline],
    }


def test_effect_and_interval_are_those_of_the_paired_differences():
    method, baseline = np.array([0.8, 0.7, 0.9, 0.75]), np.array([0.5, 0.55, 0.6, 0.4])
    verdict = judge(claim(alpha=0.05), runs(method, baseline))
    difference = method - baseline
    assert verdict.effect == pytest.approx(difference.mean())
    expected = scipy.stats.ttest_1samp(difference, 0.0)
    interval = expected.confidence_interval(0.95)
    assert (verdict.low, verdict.high) == pytest.approx((interval.low, interval.high))
    assert verdict.p_value == pytest.approx(expected.pvalue / 2)
    assert verdict.passed and verdict.num_pairs == 4


@pytest.mark.parametrize(
    ("method", "margin", "alpha", "passed"),
    [
        ([0.62, 0.61, 0.60], 0.1, None, True),
        ([0.59, 0.61, 0.59], 0.1, None, False),
        ([0.90, 0.20, 0.80], 0.1, None, True),
        ([0.90, 0.20, 0.80], 0.1, 0.05, False),
        ([0.62, 0.61, 0.60], 0.1, 0.05, True),
        ([0.30, 0.31, 0.30], -1.0, 0.05, False),
    ],
)
def test_margin_and_significance_must_both_hold(method, margin, alpha, passed):
    verdict = judge(claim(margin=margin, alpha=alpha), runs(method, [0.5, 0.5, 0.5]))
    assert verdict.passed is passed


def test_one_seed_has_no_interval_and_proves_nothing_where_a_test_is_asked_for():
    verdict = judge(claim(alpha=0.05), runs([0.9], [0.1]))
    assert verdict.low is None and verdict.high is None
    assert verdict.p_value == 1.0 and not verdict.passed
    assert judge(claim(), runs([0.9], [0.1])).passed


def test_a_claim_about_a_value_alone():
    verdict = judge(claim(against=None, margin=0.5), runs([0.6, 0.7], [0.0, 0.0]))
    assert verdict.effect == pytest.approx(0.65) and verdict.passed


def test_samples_are_paired_over_seeds_and_draws():
    values = {
        "method": [RunValues({}, {"accuracy": [0.5, 0.6]}), RunValues({}, {"accuracy": [0.7, 0.8]})],
        "baseline": [RunValues({}, {"accuracy": [0.4, 0.4]}), RunValues({}, {"accuracy": [0.6, 0.5]})],
    }
    verdict = judge(claim(paired_samples=True), values)
    np.testing.assert_allclose(verdict.differences, [0.1, 0.2, 0.1, 0.3])


def test_what_was_not_measured_is_named():
    with pytest.raises(ValueError, match="variant 'method' was not run"):
        judge(claim(), {"baseline": []})
    with pytest.raises(ValueError, match=r"metric 'accuracy' was not measured by 'method': there are .'loss'."):
        judge(claim(), {"method": [RunValues({"loss": 1.0})], "baseline": [RunValues({"accuracy": 1.0})]})
    with pytest.raises(ValueError, match="run both over the same seeds"):
        judge(claim(), runs([0.5, 0.6], [0.5]))
    with pytest.raises(ValueError, match="not finite"):
        judge(claim(), runs([float("nan")], [0.5]))


def test_claims_about_unknown_variants_or_with_one_name_are_refused():
    variants = {"method": lambda config: config}
    with pytest.raises(ValueError, match="speaks of the variant 'baseline'"):
        Claims("cpu", variants, [claim()])
    alone = claim(against=None)
    with pytest.raises(ValueError, match="unique"):
        Claims("cpu", variants, [alone, alone])


def test_a_single_run_is_judged_only_on_what_it_measured():
    variants = {"method": lambda config: config, "baseline": lambda config: config}
    inside = claim(name="inside", against=Measured("method", "untrained"))
    claims = Claims("cpu", variants, [claim(), inside])
    verdicts = judge_single_run(claims, "method", RunValues({"accuracy": 0.9, "untrained": 0.1}))
    assert [verdict.name for verdict in verdicts] == ["inside"]
    assert judge_single_run(claims, "method", RunValues({"accuracy": 0.9})) == []


@pytest.mark.parametrize(
    ("worst", "share", "passes"), [(None, 1.0, True), (0.5, 1.0, False), (0.5, 0.75, True), (0.1, 1.0, True)]
)
def test_a_claim_may_ask_for_every_seed_or_most(worst, share, passes):
    runs = {"a": [RunValues({"m": value}) for value in (1.0, 2.0, 0.2, 3.0)]}
    claim = Claim("c", "", "", Measured("a", "m"), margin=1.0, worst=worst, worst_share=share)
    verdict = judge(claim, runs)
    assert verdict.passed is passes
    assert ("seed" in verdict.test) == (worst is not None)


def test_claims_that_do_not_apply_are_left_out_with_the_variants_only_they_speak_of():
    always = claim()
    sometimes = claim(
        name="elsewhere", value=Measured("files", "accuracy"), applies=lambda config: config["path"] != ""
    )
    variants = {name: dict for name in ("method", "baseline", "files", "unspoken_of")}
    claims = Claims("cpu", variants, (always, sometimes))
    asked = claims.asked_of({"path": ""})
    assert asked.claims == (always,) and set(asked.variants) == {"method", "baseline", "unspoken_of"}
    everything = claims.asked_of({"path": "somewhere"})
    assert everything.claims == (always, sometimes) and set(everything.variants) == set(variants)
