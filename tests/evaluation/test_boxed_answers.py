"""Boxed answers: braces, spellings by hand, and numbers."""

import pytest

from jaxcore.evaluation.boxed_answers import boxed_answers, final_answer, is_same_answer, normalize_answer


def test_boxes_are_read_by_their_braces():
    text = r"so \boxed{\frac{1}{2}} and \boxed{} or \boxed{x^{2}} but never \boxed{3"
    assert boxed_answers(text) == [r"\frac{1}{2}", "x^{2}"]
    assert final_answer(text) == normalize_answer(r"\frac{1}{2}")
    assert final_answer("no box") is None and final_answer(r"\boxed{4") is None


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        (r" \dfrac{1}{2} ", r"\frac12"),
        (r"\tfrac12", r"\frac12"),
        (r"1{,}000", "1000"),
        (r"25\%", "25"),
        (r"3 \times 10", "3*10"),
        (r"2\cdot\pi", "2*pi"),
        (r"3,5", "3.5"),
        (r"12\text{ cm}", "12cm"),
        (r"October\ 30", "october30"),
        ("X", "x"),
    ],
)
def test_spellings_become_one(answer, normal):
    assert normalize_answer(answer) == normal


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("0.5", r"\frac{1}{2}", True),
        (r"-\frac{1}{2}", "-0.5", True),
        (r"\frac12", r"\dfrac{1}{2}", True),
        (r"\frac{12}{5}", "2.4", True),
        ("19.0", "19", True),
        ("19", "20", False),
        ("x+1", "1+x", False),
        (r"\frac{1}{0}", "1", False),
        ("", "0", False),
    ],
)
def test_equal_numbers_are_the_same_answer(answer, truth, same):
    assert is_same_answer(answer, truth) is same
