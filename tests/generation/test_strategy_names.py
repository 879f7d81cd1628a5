"""Strategies by name."""

import pytest

from jaxcore.generation import (
    STRATEGIES,
    BeamSearch,
    ContrastiveDecoding,
    ContrastiveSearch,
    Greedy,
    Sampling,
    SpeculativeDecoding,
    strategy_from_name,
    strategy_table,
)


def test_names_and_options():
    for name, options, expected in (
        ("greedy", {}, Greedy()),
        ("contrastive_search", {"k": 4, "alpha": 0.6}, ContrastiveSearch(k=4, alpha=0.6)),
        ("Contrastive-Search", {}, ContrastiveSearch()),
        ("diverse_contrastive_search", {"k": 8}, ContrastiveSearch(k=8, num_sampled=2)),
        ("nucleus", {"temperature": 0.7}, Sampling(temperature=0.7, top_p=0.95)),
        ("top_p", {"top_p": 0.5}, Sampling(top_p=0.5)),
        ("beam search", {"num_beams": 7}, BeamSearch(num_beams=7)),
        ("contrastive_decoding", {"beta": 1.0}, ContrastiveDecoding(beta=1.0)),
        ("contrastive_decoding", {"top_k": 3}, ContrastiveDecoding(chooser=Sampling(top_k=3))),
        (
            "speculative_decoding",
            {"temperature": 0.5, "num_draft_tokens": 6},
            SpeculativeDecoding(chooser=Sampling(temperature=0.5), num_draft_tokens=6),
        ),
    ):
        assert strategy_from_name(name, **options) == expected


def test_every_name_gives_a_strategy_with_the_options_it_lists():
    for name, description, options in strategy_table():
        strategy = strategy_from_name(name)
        assert description and isinstance(strategy, STRATEGIES[name].kind)
        for option in filter(None, options.split(", ")):
            assert (
                hasattr(strategy, option) or hasattr(strategy.chooser, option) or isinstance(strategy.chooser, Greedy)
            )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    (
        ("contrastive_serch", {}, "unknown decoding strategy 'contrastive_serch': did you mean contrastive_search or"),
        ("zzz", {}, "unknown decoding strategy 'zzz': expected one of greedy, sampling"),
        ("greedy", {"temperature": 1.0}, "greedy has no option 'temperature'; its options are: none"),
        ("nucleus", {"k": 1}, "nucleus has no option 'k'; its options are: temperature, top_k"),
        ("contrastive_search", {"k": 0}, "k must be a whole number of 1 or more, got 0"),
        ("speculative", {"top_p": 0.0}, "top_p must be in"),
    ),
    ids=str,
)
def test_what_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        strategy_from_name(name, **options)
