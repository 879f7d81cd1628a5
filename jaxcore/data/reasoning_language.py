"""A small language of reasoning traces whose dependencies are known, for language models of a few thousand parameters.

A trace gives two numbers modulo 5, states a plan (one of three rules), computes three values by the rule in force, may
change the rule in between, and ends with the last value as its answer; up to two fillers follow every sentence, about
as long as the others, so that length gives nothing away.

    r_0 = a,   r_k = f_p(r_{k-1}, x_k) mod 5,   x_1 = b, x_2 = a, x_3 = b

A computation depends on the latest plan, the numbers and the previous computation (the first on the numbers in its
place), the answer on the last computation, a filler on nothing. Tokens are phrases, so that traces are readable text
that is cut into sentences like any other. Some traces are broken off behind a sentence and answered at once with the
last value there is, or at random: so a model of the language knows what to do when it is forced to answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

MODULUS = 5
SWITCH_PROBABILITY = 0.4
FORCED_SHARE = 0.15
"""Of training traces that are broken off."""

_PLANS = (" First I add both numbers up", " My plan is doubling before summing", " Let us subtract after tripling")
_SWITCHES = (
    " Wait, plain adding works better",
    " Hmm, I should double first instead",
    " Actually tripling looks right now",
)
_COMPUTATIONS = (" The value becomes", " Now we obtain", " That results in")
_FILLERS = (" Let me think about this slowly", " Okay, here we go again", " Everything seems fine so far")
_GIVEN, _ALSO, _ANSWER, _FORCED = (
    " We are given a =",
    " together with b =",
    " The answer is \\boxed{",
    " So I say \\boxed{",
)

_PAD, OPEN, CLOSE, END = "", "<think>", "</think>", "<end>"
TOKENS: tuple[str, ...] = (
    _PAD, OPEN, CLOSE, END, ".", "}", _GIVEN, _ALSO, _ANSWER, _FORCED,
    *_PLANS, *_SWITCHES, *_COMPUTATIONS, *_FILLERS, *(f" {digit}" for digit in range(MODULUS)),
)  # fmt: skip
"""The vocabulary; id 0 pads."""
_IDS = {token: number for number, token in enumerate(TOKENS)}
PROMPT = (_IDS[OPEN],)
STOP_TOKENS = (_IDS[END],)
FORCED_LEAD_IN = (_IDS[CLOSE], _IDS[_FORCED])
"""Behind a prefix it makes the model answer at once."""
MAX_LENGTH = 64
"""Tokens of the longest trace."""
_MOST_CHOICES = 64
"""That a trace makes."""


class Step(NamedTuple):
    """A sentence of a trace."""

    function: str
    """See `jaxcore.data.reasoning_taxonomy`; fillers are "unknown"."""
    tokens: tuple[int, ...]
    sources: tuple[int, ...]
    """Earlier sentences that it depends on."""


class LanguageTrace(NamedTuple):
    """A whole trace, prompt and end included."""

    tokens: list[int]
    steps: list[Step]
    spans: Int[np.ndarray, "steps 2"]
    """Tokens of each sentence."""

    @property
    def edges(self) -> Bool[np.ndarray, "steps steps"]:
        """[source, target]: the target depends on the source."""
        edges = np.zeros((len(self.steps), len(self.steps)), bool)
        for target, step in enumerate(self.steps):
            edges[list(step.sources), target] = True
        return edges


class LanguageRows(NamedTuple):
    """Traces as what a language model trains on."""

    input_ids: Int[np.ndarray, "rows time"]
    attention_mask: Int[np.ndarray, "rows time"]
    is_computed: Bool[np.ndarray, "rows time"]
    """At the values of computations, which follow from what stands before."""


def apply_rule(plan: int, value: int, operand: int) -> int:
    """``f_p(r, x)``: r + x, 2 r + x, 3 r - x + 1, modulo 5."""
    return ((value + operand), (2 * value + operand), (3 * value - operand + 1))[plan] % MODULUS


def draw_trace(rng: np.random.Generator, *, fillers: bool = True) -> LanguageTrace:
    """A trace of the language."""
    uniforms = iter(rng.random(_MOST_CHOICES))
    steps: list[Step] = []

    def choose(count: int) -> int:
        return int(next(uniforms) * count)

    def say(function: str, words: Sequence[str], sources: Sequence[int] = ()) -> int:
        steps.append(Step(function, tuple(_IDS[word] for word in words), tuple(sources)))
        place = len(steps) - 1
        for _ in range(choose(3) if fillers else 0):
            phrases = [_FILLERS[choose(3)] for _ in range(1 + choose(2))]
            steps.append(Step("unknown", tuple(_IDS[word] for word in (*phrases, ".")), ()))
        return place

    a, b, plan = choose(MODULUS), choose(MODULUS), choose(3)
    switch_after = 1 + choose(2) if next(uniforms) < SWITCH_PROBABILITY else 0
    given = say("problem_setup", (_GIVEN, f" {a}", _ALSO, f" {b}", "."))
    latest_plan = say("plan_generation", (_PLANS[plan], "."))
    value, previous = a, given
    for number, operand in enumerate((b, a, b), start=1):
        value = apply_rule(plan, value, operand)
        words = (_COMPUTATIONS[choose(3)], f" {value}", ".")
        previous = say("active_computation", words, sorted({latest_plan, given, previous}))
        if number == switch_after:
            plan = (plan + 1 + choose(2)) % 3
            latest_plan = say("uncertainty_management", (_SWITCHES[plan], "."))
    say("final_answer_emission", (_ANSWER, f" {value}", "}", "."), (previous,))
    ends = len(PROMPT) + np.cumsum([len(step.tokens) for step in steps])
    spans = np.stack([np.concatenate([[len(PROMPT)], ends[:-1]]), ends], axis=1)
    tokens = [*PROMPT, *(token for step in steps for token in step.tokens), _IDS[CLOSE], *STOP_TOKENS]
    return LanguageTrace(tokens, steps, spans)


def break_off(trace: LanguageTrace, rng: np.random.Generator) -> list[int]:
    """The trace's tokens up to a random sentence, and the answer it is forced to: its last value, or a random one."""
    kept = int(rng.integers(1, len(trace.steps)))
    values = [step.tokens[1] for step in trace.steps[:kept] if step.function == "active_computation"]
    value = values[-1] if values else _IDS[f" {rng.integers(MODULUS)}"]
    return [*trace.tokens[: trace.spans[kept - 1, 1]], *FORCED_LEAD_IN, value, _IDS["}"], *STOP_TOKENS]


def training_rows(count: int, rng: np.random.Generator) -> LanguageRows:
    """Traces padded on the right to `MAX_LENGTH`, some of them broken off.

    Raises:
        ValueError: count < 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1: got {count}")
    traces = [draw_trace(rng) for _ in range(count)]
    texts = [break_off(trace, rng) if rng.random() < FORCED_SHARE else trace.tokens for trace in traces]
    return padded_rows(texts)


def padded_rows(texts: Sequence[Sequence[int]]) -> LanguageRows:
    """Token ids padded on the right to `MAX_LENGTH`."""
    ids = np.zeros((len(texts), MAX_LENGTH), np.int32)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(texts):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    computing = np.isin(ids, [_IDS[phrase] for phrase in _COMPUTATIONS])
    is_computed = np.zeros(ids.shape, bool)
    is_computed[:, 1:] = computing[:, :-1]
    return LanguageRows(ids, mask, is_computed)


def decode(tokens: Sequence[int]) -> str:
    """The text of token ids."""
    return "".join(TOKENS[token] for token in tokens)


def token_offsets(tokens: Sequence[int]) -> Int[np.ndarray, "tokens 2"]:
    """First character of each token in the text, and the one behind its last."""
    ends = np.cumsum([len(TOKENS[token]) for token in tokens], dtype=np.int64)
    return np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)


def label_sentence(sentence: str) -> str:
    """The function of a sentence of this language by the phrase it begins with; "unknown" for fillers and all else.

    Rules for this language and no other: sentences of real traces are labelled by a model, and read from a file.
    """
    rules = {
        "problem_setup": (_GIVEN,),
        "plan_generation": _PLANS,
        "active_computation": _COMPUTATIONS,
        "uncertainty_management": _SWITCHES,
        "final_answer_emission": (_ANSWER,),
    }
    for function, phrases in rules.items():
        if sentence.startswith(tuple(phrase.strip() for phrase in phrases)):
            return function
    return "unknown"
