"""The reasoner's state, its causes, and its probabilities; bags of hashed words beside it."""

import numpy as np
import pytest

from jaxcore.data import programmatic_reasoner as reasoner
from jaxcore.data.hashed_word_counts import hashed_word_counts


def test_the_answer_hangs_on_plan_and_doubt_and_on_no_computation_drawn_anew():
    rng = np.random.default_rng(0)
    agree = {3: [], 1: []}
    for _ in range(40):
        problem = reasoner.draw_problem(rng)
        trace = reasoner.continue_trace(problem, [], rng)
        same_end = [s for s in trace if s.function == "uncertainty_management"]
        for position in agree:
            for _ in range(5):
                other = [*trace[:position], *reasoner.continue_trace(problem, trace[:position], rng)]
                if bool(same_end) == any(s.function == "uncertainty_management" for s in other):
                    agree[position].append(other[-1].value == trace[-1].value)
    assert np.mean(agree[3]) > 0.8 > np.mean(agree[1]) + 0.1


def test_values_are_those_of_the_method_but_for_slips_which_the_check_repairs():
    rng = np.random.default_rng(1)
    slips = repaired = checked = 0
    for _ in range(400):
        problem = reasoner.draw_problem(rng)
        trace = reasoner.continue_trace(problem, [], rng)
        assert len(trace) == reasoner.NUM_SENTENCES and trace[0].plan == -1 < trace[1].plan
        value = problem.start
        for step, place in enumerate((3, 5, 6)):
            plan = trace[place].plan
            value = (value * problem.factors[plan, step] + problem.terms[plan, step]) % reasoner.MODULUS
            assert trace[place].true_value == value and str(trace[place].value) in trace[place].text
        slips += trace[6].value != trace[6].true_value
        if trace[7].text != reasoner._TRUSTED:
            checked += 1
            repaired += trace[7].value == trace[7].true_value
        assert trace[8].value == trace[7].value
    assert 10 < slips < 80 and repaired == checked and 330 < checked < 390


def test_rollouts_keep_what_is_kept():
    rng = np.random.default_rng(2)
    problem = reasoner.draw_problem(rng)
    trace = reasoner.continue_trace(problem, [], rng)
    drawn = reasoner.draw_rollouts(problem, trace, 50, rng)
    assert drawn.answers.shape == drawn.forced.shape == (10, 50)
    assert [len(steps) for steps in drawn.first_steps] == [50] * 9 + [0]
    assert (drawn.answers[-1] == trace[-1].value).all()
    assert {*drawn.first_steps[0]} == {trace[0].text}
    assert np.mean(drawn.forced[-1] == trace[-1].value) > 0.8 and len({*drawn.forced[1]}) > 5


def test_hashed_words_are_alike_as_far_as_they_share_words():
    first, same, half, other, empty = hashed_word_counts(["a b c d", "D c B a!", "a b x y", "p q r s", ". . ."])
    assert first @ same == pytest.approx(1) and first @ half == pytest.approx(0.5) and first @ other == 0
    assert not empty.any() and np.linalg.norm(first) == pytest.approx(1)
    with pytest.raises(ValueError, match="dim must be at least 1"):
        hashed_word_counts(["a"], dim=0)
