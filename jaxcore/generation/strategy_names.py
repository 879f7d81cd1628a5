"""Strategies by name, with options by keyword: what commands and experiments read."""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from jaxcore.generation.beam_search import BeamSearch
from jaxcore.generation.contrastive_decoding import ContrastiveDecoding
from jaxcore.generation.contrastive_search import ContrastiveSearch
from jaxcore.generation.sampling import Greedy, Sampling
from jaxcore.generation.speculative_decoding import SpeculativeDecoding
from jaxcore.generation.strategy import Strategy


@dataclasses.dataclass(frozen=True)
class NamedStrategy:
    """What a name stands for.

    Attributes:
        description: one line.
        kind: the strategy's class.
        defaults: options that differ from the class's own defaults.
    """

    description: str
    kind: Callable[..., Any]
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options it takes."""
        own = _fields(self.kind)
        return own if "chooser" not in own else (*(n for n in own if n != "chooser"), *_fields(Sampling))


STRATEGIES: dict[str, NamedStrategy] = {
    "greedy": NamedStrategy("the most probable token", Greedy),
    "sampling": NamedStrategy("draws from the model's distribution, filtered as asked for", Sampling),
    "top_k": NamedStrategy("draws among the top_k most probable tokens", Sampling, {"top_k": 50}),
    "nucleus": NamedStrategy("draws from the nucleus of probability top_p", Sampling, {"top_p": 0.95}),
    "min_p": NamedStrategy("draws among tokens at least min_p times as probable as the best", Sampling, {"min_p": 0.1}),
    "typical": NamedStrategy("draws from the typical set of probability typical_p", Sampling, {"typical_p": 0.95}),
    "beam_search": NamedStrategy("the likeliest of num_beams hypotheses", BeamSearch),
    "contrastive_search": NamedStrategy(
        "among the k most probable tokens, the best by probability and unlikeness to what came before",
        ContrastiveSearch,
    ),
    "diverse_contrastive_search": NamedStrategy(
        "contrastive search behind num_sampled tokens drawn from a nucleus", ContrastiveSearch, {"num_sampled": 2}
    ),
    "contrastive_decoding": NamedStrategy(
        "what the model prefers more than an amateur does; options of sampling make it draw", ContrastiveDecoding
    ),
    "speculative_decoding": NamedStrategy(
        "greedy decoding, or with options of sampling that, checked from a draft model's guesses", SpeculativeDecoding
    ),
}
ALIASES = {"top_p": "nucleus", "beam": "beam_search", "contrastive": "contrastive_search",
           "speculative": "speculative_decoding"}  # fmt: skip


def strategy_from_name(name: str, **options: Any) -> Strategy:
    """The strategy of this name: `strategy_from_name("contrastive_search", k=4, alpha=0.6)`.

    Strategies with a `chooser` take the options of `Sampling` in its place; with none of them it is `Greedy`.

    Raises:
        ValueError: an unknown name (the message has the nearest), an option that the strategy does not have, and as
            the strategy.
    """
    named = STRATEGIES[_known_name(name)]
    for option in options:
        if option not in named.options:
            takes = ", ".join(named.options) or "none"
            raise ValueError(f"{name} has no option {option!r}; its options are: {takes}")
    options = named.defaults | options
    own = _fields(named.kind)
    if "chooser" not in own:
        return named.kind(**options)
    drawing = {option: value for option, value in options.items() if option not in own}
    chooser = Sampling(**drawing) if drawing else Greedy()
    return named.kind(**{option: value for option, value in options.items() if option in own}, chooser=chooser)


def strategy_table() -> list[tuple[str, str, str]]:
    """Name, description and options of every strategy."""
    return [(name, named.description, ", ".join(named.options)) for name, named in STRATEGIES.items()]


def _known_name(name: str) -> str:
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    known = {**{key: key for key in STRATEGIES}, **ALIASES}
    if plain in known:
        return known[plain]
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(STRATEGIES)}"
    raise ValueError(f"unknown decoding strategy {name!r}: {meant}")


def _fields(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))
