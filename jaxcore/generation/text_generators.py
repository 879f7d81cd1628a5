"""Texts in, texts out: any language model behind one function of prompts and a seed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from jaxcore.generation.completions import complete
from jaxcore.generation.option_checks import check_count
from jaxcore.generation.prompts import chat_prompt
from jaxcore.generation.sampling import GREEDY
from jaxcore.generation.strategy import Strategy


class TextGenerator(Protocol):
    """Answers prompts, one text each, in order; the same prompts and seed give the same texts.

    A remote service, a model here, or a script.
    """

    def __call__(self, prompts: Sequence[str], seed: int) -> list[str]: ...


def model_generator(
    model: Any,
    params: Any,
    tokenizer: Any,
    *,
    max_new_tokens: int = 256,
    strategy: Strategy = GREEDY,
    batch_size: int = 8,
    mesh: Mesh | None = None,
) -> TextGenerator:
    """A decoder of this project as a generator; each seed is a key of its own.

    Prompts of like length go together, padded on the left to one of few widths (see `complete`); the last batch is
    filled up, so that any number of prompts runs the same programs. Under greedy decoding and beam search an answer
    does not depend on the prompts beside it; what a sampling strategy draws does.

    A tokenizer with a chat template gets each prompt as the one message of a user.

    Args:
        model, params, tokenizer, max_new_tokens, strategy, mesh: as in `complete`.
        batch_size: prompts per program run; 1: one at a time.

    Raises:
        ValueError: a batch size below 1. The generator raises as `complete` does; no prompts give no texts.
    """
    check_count("batch_size", batch_size)
    is_chat = bool(getattr(tokenizer, "chat_template", None))

    def generate(prompts: Sequence[str], seed: int) -> list[str]:
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a sequence of texts: got the one text {prompts[:60]!r}")
        if not len(prompts):
            return []
        filler = [min(prompts, key=len)] * (-len(prompts) % batch_size)
        given = [chat_prompt(tokenizer, text) if is_chat else text for text in (*prompts, *filler)]
        completions = complete(
            model,
            params,
            given,
            max_new_tokens=max_new_tokens,
            tokenizer=tokenizer,
            strategy=strategy,
            key=jax.random.key(seed),
            batch_size=batch_size,
            mesh=mesh,
        )
        return [completion.text or "" for [completion] in completions[: len(prompts)]]

    return generate


def rule_generator(rule: Callable[[str, int], str]) -> TextGenerator:
    """A function of one prompt and a seed as a generator."""
    return lambda prompts, seed: [rule(prompt, seed) for prompt in prompts]


def scripted_generator(answers: Mapping[str, str | Sequence[str]]) -> TextGenerator:
    """Recorded answers by prompt: a text, or one for each seed 0, 1, ... in turn.

    The generator raises ValueError for a prompt that was not recorded.
    """

    def recorded(prompt: str, seed: int) -> str:
        if prompt not in answers:
            raise ValueError(f"no answer was recorded for the prompt {prompt[:60]!r}: there are {len(answers)} others")
        found = answers[prompt]
        return found if isinstance(found, str) else found[seed % len(found)]

    return rule_generator(recorded)
