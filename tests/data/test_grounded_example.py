"""The embedded example holds together."""

from jaxcore.attribution.text_spans import overlap
from jaxcore.data.grounded_example import grounded_example


def test_every_highlight_lies_in_its_sentence_and_its_gold_in_the_candidates():
    queries = grounded_example()
    assert len(queries) == 10 and len({query.words() for query in queries}) == 10
    for query in queries:
        [(start, end)] = query.highlight
        assert query.sentence[0] <= start < end <= query.sentence[1]
        for span in query.gold:
            assert any(
                span.document == source.document and overlap(span[1:], source[1:]) for source in query.candidates
            )


def test_every_sentence_of_the_output_has_two_highlights():
    queries = grounded_example()
    counts = [sum(query.sentence == sentence for query in queries) for sentence in queries[0].text.output_sentences]
    assert counts == [2] * 5
