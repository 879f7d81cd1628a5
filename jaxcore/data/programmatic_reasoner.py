"""A reasoner that is a program: traces of sentences whose causes of the final answer are known.

It writes, modulo 11: the problem; a plan, one of three methods with probabilities of the problem; a fact; a first
computation by the method; a doubt that changes to another method, or a remark; two more computations; a check that
mostly recomputes and repairs; the answer. Computations have paraphrases, and slip by one now and then. So the answer
hangs on plan and doubt; a computation, drawn anew, nearly always comes to the same. A reasoner that is forced to answer
names the last value that it computed: then computations are all that counts.

Source: the effects are those that Bogdan et al. 2025 (Thought Anchors) report of language models; the program is ours.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MODULUS = 11
SLIP, REPAIR, FORCED_TRUST = 0.03, 0.9, 0.9
"""Probabilities that a computation is off by one, that the check recomputes, that a forced answer is the last value."""

_PLANS = (
    "Let me apply the ladder method and climb from the bottom.",
    "I could instead unroll everything with a telescoping product.",
    "Perhaps counting residues directly suits this problem best.",
)
_FACTS = (
    "Recall that powers repeat with period ten here.",
    "Fermat says every unit raised to ten equals one.",
)
_COMPUTATIONS = (
    ("Climbing one rung yields {}.", "On the ladder we reach {} next.", "The rung above holds {}."),
    ("Unrolling a factor leaves {}.", "The telescoped product becomes {}.", "One cancellation later stands {}."),
    ("Counting residues produces {}.", "Their residue total is {}.", "Directly counted we obtain {}."),
)
_DOUBTS = (
    "Wait, that seems shaky, the ladder would be safer.",
    "Hmm, actually telescoping looks far more reliable.",
    "Hold on, residues should be counted instead.",
)
_REMARK = "Alright, nothing strange so far, moving along."
_TRUSTED = "I will trust this without further ado."
_CHECKED = "Verifying the whole chain once more confirms {}."
NUM_SENTENCES = 9


class Sentence(NamedTuple):
    """A sentence, its function in the trace, and the state after it."""

    text: str
    function: str
    plan: int
    """The method in force; -1 before a plan."""
    value: int
    """The value so far; -1 before a computation."""
    true_value: int
    """What it would be without slips."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What differs between problems."""

    start: int
    plan_probabilities: Float[np.ndarray, " plans"]
    factors: Int[np.ndarray, "plans steps"]
    terms: Int[np.ndarray, "plans steps"]
    doubt_probability: float


def draw_problem(rng: np.random.Generator) -> Problem:
    """A problem; plans are anything from even to nearly determined."""
    return Problem(
        start=int(rng.integers(1, MODULUS)),
        plan_probabilities=rng.dirichlet(np.ones(len(_PLANS))),
        factors=rng.integers(1, MODULUS, (len(_PLANS), 3)),
        terms=rng.integers(0, MODULUS, (len(_PLANS), 3)),
        doubt_probability=float(rng.uniform(0.1, 0.4)),
    )


def continue_trace(problem: Problem, kept: Sequence[Sentence], rng: np.random.Generator) -> list[Sentence]:
    """The sentences that follow those kept, to the answer."""
    sentences = list(kept)
    while len(sentences) < NUM_SENTENCES:
        sentences.append(_next(problem, sentences, rng))
    return sentences[len(kept) :]


def forced_answer(kept: Sequence[Sentence], rng: np.random.Generator) -> int:
    """What the reasoner answers if it is stopped behind `kept`."""
    value = kept[-1].value if kept else -1
    return value if value >= 0 and rng.random() < FORCED_TRUST else int(rng.integers(MODULUS))


class ReasonerRollouts(NamedTuple):
    """What is drawn of a trace at its positions 0, ..., M (at M everything is kept)."""

    answers: Int[np.ndarray, "positions samples"]
    first_steps: list[list[str]]
    """The sentence drawn in place of the trace's own; empty lists at position M."""
    forced: Int[np.ndarray, "positions samples"]


def draw_rollouts(
    problem: Problem, trace: Sequence[Sentence], num_samples: int, rng: np.random.Generator
) -> ReasonerRollouts:
    """`num_samples` rollouts and forced answers at every position of a trace."""
    answers = np.zeros((len(trace) + 1, num_samples), np.int64)
    forced = np.zeros_like(answers)
    first_steps: list[list[str]] = []
    for position in range(len(trace) + 1):
        kept = trace[:position]
        drawn = [continue_trace(problem, kept, rng) for _ in range(num_samples)]
        answers[position] = [(rollout or kept)[-1].value for rollout in drawn]
        first_steps.append([rollout[0].text for rollout in drawn if rollout])
        forced[position] = [forced_answer(kept, rng) for _ in range(num_samples)]
    return ReasonerRollouts(answers, first_steps, forced)


def _next(problem: Problem, before: Sequence[Sentence], rng: np.random.Generator) -> Sentence:
    place = len(before)
    plan, value, true_value = before[-1][2:] if before else (-1, -1, -1)
    if place == 0:
        return Sentence(f"We start from {problem.start} and work modulo eleven.", "problem_setup", -1, -1, -1)
    if place == 1:
        plan = int(np.searchsorted(np.cumsum(problem.plan_probabilities)[:-1], rng.random(), side="right"))
        return Sentence(_PLANS[plan], "plan_generation", plan, value, true_value)
    if place == 2:
        return Sentence(_FACTS[rng.integers(len(_FACTS))], "fact_retrieval", plan, value, true_value)
    if place == 4:
        if rng.random() >= problem.doubt_probability:
            return Sentence(_REMARK, "unknown", plan, value, true_value)
        plan = int(plan + rng.integers(1, len(_PLANS))) % len(_PLANS)
        return Sentence(_DOUBTS[plan], "uncertainty_management", plan, value, true_value)
    if place == 7:
        if rng.random() >= REPAIR:
            return Sentence(_TRUSTED, "self_checking", plan, value, true_value)
        return Sentence(_CHECKED.format(true_value), "self_checking", plan, true_value, true_value)
    if place == 8:
        return Sentence(f"The final answer is \\boxed{{{value}}}.", "final_answer_emission", plan, value, true_value)
    return _computed(problem, place, plan, value, true_value, rng)


def _computed(
    problem: Problem, place: int, plan: int, value: int, true_value: int, rng: np.random.Generator
) -> Sentence:
    step = {3: 0, 5: 1, 6: 2}[place]
    factor, term = int(problem.factors[plan, step]), int(problem.terms[plan, step])
    values = (problem.start, problem.start) if step == 0 else (value, true_value)
    value, true_value = ((v * factor + term) % MODULUS for v in values)
    if rng.random() < SLIP:
        value = (value + 2 * int(rng.integers(2)) - 1) % MODULUS
    text = _COMPUTATIONS[plan][rng.integers(3)].format(value)
    return Sentence(text, "active_computation", plan, value, true_value)
