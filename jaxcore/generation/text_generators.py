"""Text in, text out: any language model behind one function of a prompt and a seed."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax

from jaxcore.generation.completions import complete
from jaxcore.generation.prompts import chat_prompt
from jaxcore.generation.sampling import GREEDY
from jaxcore.generation.strategy import Strategy


class TextGenerator(Protocol):
    """Answers a prompt; the same prompt and seed give the same text. A remote service, a model here, or a script."""

    def __call__(self, prompt: str, seed: int) -> str: ...


def model_generator(
    model: Any, params: Any, tokenizer: Any, *, max_new_tokens: int = 256, strategy: Strategy = GREEDY
) -> TextGenerator:
    """A decoder of this project as a generator; each seed is a key of its own.

    A tokenizer with a chat template gets the prompt as the one message of a user.

    Args:
        model, params, tokenizer, max_new_tokens, strategy: as in `complete`.
    """

    def generate(prompt: str, seed: int) -> str:
        given: Any = prompt
        if getattr(tokenizer, "chat_template", None):
            given = chat_prompt(tokenizer, prompt)
        [[completion]] = complete(
            model,
            params,
            [given],
            max_new_tokens=max_new_tokens,
            tokenizer=tokenizer,
            strategy=strategy,
            key=jax.random.key(seed),
        )
        return completion.text or ""

    return generate


def scripted_generator(answers: Mapping[str, str | Sequence[str]]) -> TextGenerator:
    """Recorded answers by prompt: a text, or one for each seed 0, 1, ... in turn.

    The generator raises ValueError for a prompt that was not recorded.
    """

    def generate(prompt: str, seed: int) -> str:
        if prompt not in answers:
            raise ValueError(f"no answer was recorded for the prompt {prompt[:60]!r}: there are {len(answers)} others")
        recorded = answers[prompt]
        return recorded if isinstance(recorded, str) else recorded[seed % len(recorded)]

    return generate
