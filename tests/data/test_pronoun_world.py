"""The generated world: what it must and must not give away, and its rule-based answers."""

import pytest

from jaxcore.attribution.decontextualisation import decontextualisation_prompt, parse_claim
from jaxcore.attribution.quoted_sources import candidate_texts, quotation_prompt
from jaxcore.data.pronoun_world import (
    PRONOUN,
    PronounWorldConfig,
    pronoun_world,
    quote_most_shared,
    rewrite_pronoun,
)


@pytest.fixture(scope="module")
def queries():
    return pronoun_world(PronounWorldConfig(num_texts=30), seed=1)


def test_a_highlight_fits_three_sentences_and_its_claim_one(queries):
    for query in queries:
        documents = query.text.texts()
        sentences = [documents[d][a:b] for d, a, b in query.candidates]
        pronoun, relation, thing = query.words().split()
        assert pronoun == PRONOUN and len(sentences) == 7
        sharing = [words for words in sentences if relation in words and thing in words]
        assert len(sharing) == 3 and not any(PRONOUN in words.split() for words in sentences)
        entity = query.text.output.split()[0]
        [gold] = query.gold
        assert [words for words in sharing if words.startswith(entity)] == [documents[gold.document][gold[1] : gold[2]]]
        assert sum(words.startswith(entity) for words in sentences) == 2


def test_the_gold_sentence_stands_anywhere(queries):
    places = {query.candidates.index(query.gold[0]) for query in queries}
    assert len(places) == 7


def test_the_seed_decides():
    config = PronounWorldConfig(num_texts=2)
    assert pronoun_world(config, seed=3) == pronoun_world(config, seed=3) != pronoun_world(config, seed=4)


def test_rules_answer_the_prompts(queries):
    query = queries[0]
    answer = rewrite_pronoun(decontextualisation_prompt(query.words(), query.text.output), 0)
    entity = query.text.output.split()[0]
    _, claim = parse_claim(answer)
    assert claim == query.words().replace(PRONOUN, entity)
    documents = query.text.texts()
    sources = [source.text for source in candidate_texts(query.candidates, documents)]
    [gold] = query.gold
    assert quote_most_shared(quotation_prompt(claim, sources), 0) == documents[gold.document][gold.start : gold.end]
    for rule in (rewrite_pronoun, quote_most_shared):
        with pytest.raises(ValueError, match="the prompt has no"):
            rule("nothing", 0)


@pytest.mark.parametrize("fields", [{"num_sharing": 1}, {"num_texts": 0}, {"num_others": 11}])
def test_worlds_that_cannot_be_are_refused(fields):
    with pytest.raises(ValueError, match="num_sharing"):
        PronounWorldConfig(**fields)
