"""Traces of a reasoning model out of what it sampled: of each problem one that ends right and one that ends wrong."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxcore.data.reasoning_problems import ReasoningProblem
from jaxcore.data.reasoning_taxonomy import UNKNOWN, read_labels
from jaxcore.data.reasoning_trace import ReasoningTrace, cut_trace
from jaxcore.evaluation.boxed_answers import final_answer, is_same_answer
from jaxcore.generation.rollouts import Rollout


def choose_traces(
    problems: Sequence[ReasoningProblem],
    attempts: Sequence[Sequence[Rollout]],
    tokenizer: Any,
    *,
    labels: pathlib.Path | None = None,
    max_tokens: int | None = None,
    max_sentences: int | None = 275,
) -> list[ReasoningTrace]:
    """The first right trace and the first wrong one of each problem, where there are such.

    A trace counts if it is finished, has an answer and at least one sentence, and is not too long.

    Args:
        problems, attempts: each problem with its rollouts.
        tokenizer: fast, of transformers: it gives the characters of tokens in the whole text.
        labels: folder with ``PROBLEM_correct.json`` and ``PROBLEM_incorrect.json``, the functions of the sentences;
            None: they are unknown.
        max_tokens, max_sentences: of a trace, its prompt included; None = any. The paper leaves out traces of more than
            275 sentences.

    Raises:
        ValueError: no problem has a trace that counts; labels that do not fit.
    """
    traces: list[ReasoningTrace] = []
    for problem, drawn in zip(problems, attempts, strict=True):
        wanted = {True: "correct", False: "incorrect"}
        for rollout in drawn:
            written = tokenizer.decode(rollout.tokens, skip_special_tokens=True)
            answer = final_answer(written) if rollout.stopped else None
            is_right = answer is not None and is_same_answer(answer, problem.answer)
            if answer is None or is_right not in wanted:
                continue
            name = f"{problem.name}_{wanted[is_right]}"
            trace = _tokenized(problem, name, written, answer, tokenizer)
            if trace is None or len(trace.tokens) > (max_tokens or len(trace.tokens)):
                continue
            if len(trace) <= (max_sentences or len(trace)):
                traces.append(trace if labels is None else _labelled(trace, labels))
                del wanted[is_right]
    if not traces:
        raise ValueError(
            f"none of {len(problems)} problems has a finished trace with an answer, a sentence and at most "
            f"{max_tokens} tokens and {max_sentences} sentences: sample more of each, or allow longer ones"
        )
    return traces


def _tokenized(
    problem: ReasoningProblem, name: str, written: str, answer: str, tokenizer: Any
) -> ReasoningTrace | None:
    """None for a chain of thought that has no boundary of a sentence."""
    text = problem.prompt() + written
    encoded = tokenizer(text, return_offsets_mapping=True)
    tokens = tuple(encoded["input_ids"])
    try:
        sentences, spans = cut_trace(text, tokens, encoded["offset_mapping"])
    except ValueError:
        return None
    unknown = (UNKNOWN,) * len(sentences)
    return ReasoningTrace(name, problem.text, tokens, sentences, spans, unknown, problem.answer, answer)


def _labelled(trace: ReasoningTrace, labels: pathlib.Path) -> ReasoningTrace:
    functions = read_labels(labels / f"{trace.name}.json", count=len(trace))
    return dataclasses.replace(trace, functions=tuple(functions))
