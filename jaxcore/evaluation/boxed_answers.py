"""Final answers of mathematical texts: found in ``\\boxed{...}``, brought to one spelling, compared."""

import fractions
import re

_RULES = (
    (r"[dt]frac", "frac"),
    (r"\s+", ""),
    (r"\\%", ""),
    (r"\{,\}", ""),  # 1{,}000
    (r"\\(?:times|cdot)", "*"),
    (r"(\d+)[.,](\d+)", r"\1.\2"),
    (r"\{([^{}]+)\}", r"\1"),  # innermost braces
    (r"\\pi", "pi"),
    (r"([a-z]+)\\+(\d+)", r"\1\2"),  # october\ 30
    (r"\\text", ""),
)
"""In this order, on lower case."""


def boxed_answers(text: str) -> list[str]:
    """The contents of every ``\\boxed{...}`` whose braces close, in order, empty ones left out."""
    found = []
    for match in re.finditer(r"\\boxed\{", text):
        depth, start = 1, match.end()
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                found.append(text[start:place])
                break
    return [answer for answer in found if answer]


def final_answer(text: str) -> str | None:
    """The first boxed answer of a text, normalised; None without one (Bogdan et al. 2025)."""
    answers = boxed_answers(text)
    return normalize_answer(answers[0]) if answers else None


def normalize_answer(answer: str) -> str:
    """One spelling for answers that differ in typography only: ``\\dfrac{1}{2}`` and ``\\frac12``, ``1{,}000``, spaces,
    percent signs, units in ``\\text``, case.

    Source: Bogdan et al. 2025 (Thought Anchors), released code, `normalize_latex`.
    """
    normal = answer.strip().lower()
    for pattern, replacement in _RULES:
        normal = re.sub(pattern, replacement, normal)
    return normal


def is_same_answer(answer: str, truth: str) -> bool:
    """Whether two answers agree once normalised, or are the same number (integer, decimal or ``\\frac``).

    The released code also asks a computer algebra system; expressions that only it finds equal differ here.
    """
    first, second = _number(answer), _number(truth)
    return normalize_answer(answer) == normalize_answer(truth) or (first is not None and first == second)


def _number(answer: str) -> fractions.Fraction | None:
    plain = re.sub(r"\s|\\!|\{,\}|\\left|\\right", "", answer).replace("dfrac", "frac").replace("tfrac", "frac")
    fraction = re.fullmatch(r"(-?)\\frac\{?(-?\d+)\}?\{?(\d+)\}?", plain)
    try:
        if fraction is None:
            return fractions.Fraction(plain)
        sign = -1 if fraction[1] else 1
        both_short = re.fullmatch(r"-?\\frac(\d)(\d)", plain)
        top, bottom = (both_short[1], both_short[2]) if both_short else (fraction[2], fraction[3])
        return sign * fractions.Fraction(int(top), int(bottom))
    except (ValueError, ZeroDivisionError):
        return None
