"""The generated world against its formulas (eavae.md section 8), its ground truth against sampled texts."""

import time

import numpy as np
import pytest
from scipy import stats

from jaxcore.data import SPECIAL_TOKENS, AuthorWorld, AuthorWorldConfig
from jaxcore.data.world_words import THEMES


@pytest.fixture(scope="module")
def world() -> AuthorWorld:
    return AuthorWorld(seed=3)


def chi_square_p(observed: np.ndarray, expected: np.ndarray) -> float:
    """p-value of observed counts under expected counts; cells with fewer than five expected are pooled."""
    small = expected < 5
    observed = np.append(observed[~small], observed[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 0
    statistic = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
    return float(stats.chi2.sf(statistic, keep.sum() - 1))


def test_sizes_of_the_paper(world):
    assert world.config.num_words == 248 == len(world.vocabulary) == len(set(world.vocabulary))
    assert (len(world.training_authors), len(world.test_authors)) == (400, 200)
    assert not set(world.training_authors) & set(world.test_authors)
    documents = world.sample_documents(np.array([0, 5]), np.array([1, 2]), np.random.default_rng(0))
    assert documents.shape == (2, 128) and documents.dtype == np.int32


@pytest.mark.parametrize(("author", "topic"), [(0, 0), (399, 7), (599, 19)])
def test_word_frequencies_follow_the_formula(world, author, topic):
    n = 400
    rng = np.random.default_rng(author)
    words = world.sample_documents(np.full(n, author), np.full(n, topic), rng)
    # The mixture, written out here a second time: .35 function, .15 synonyms, .5 content.
    expected = np.zeros(248)
    expected[:40] = 0.35 * world.function_probabilities[author]
    for pair in range(24):
        preference = world.synonym_preferences[author, pair]
        share = 0.15 * world.concept_probabilities[topic, pair]
        expected[40 + 2 * pair] = share * preference
        expected[41 + 2 * pair] = share * (1 - preference)
    expected[88:] = 0.5 * world.content_probabilities[topic]
    np.testing.assert_allclose(world.word_probabilities(author, topic), expected, atol=1e-15)
    observed = np.bincount(words.ravel(), minlength=248)
    assert chi_square_p(observed, expected * n * 128) > 1e-3
    # The test has power: another author's and another topic's distribution are rejected.
    assert chi_square_p(observed, world.word_probabilities((author + 1) % 600, topic) * n * 128) < 1e-6
    assert chi_square_p(observed, world.word_probabilities(author, (topic + 1) % 20) * n * 128) < 1e-6


def test_order_of_words_is_uniform(world):
    words = world.sample_documents(np.zeros(4000, int), np.zeros(4000, int), np.random.default_rng(1))
    for position in (0, 64, 127):
        observed = np.bincount(words[:, position], minlength=248)
        assert chi_square_p(observed, world.word_probabilities(0, 0) * 4000) > 1e-3


def test_parameters_follow_their_priors():
    world = AuthorWorld(AuthorWorldConfig(num_training_authors=3000, num_topics=200), seed=0)
    beta = stats.beta(0.4, 0.4)
    assert stats.kstest(world.synonym_preferences[:, 0], beta.cdf).pvalue > 1e-3
    # Differences of log-odds between two function words of one author: normal, variance 2 x 0.6^2.
    logs = np.log(world.function_probabilities)
    difference = logs[:, 0] - logs[:, 1]
    assert stats.kstest(difference - difference.mean(), stats.norm(0, 0.6 * 2**0.5).cdf).pvalue > 1e-3
    # A coordinate of a symmetric Dirichlet(c) over n is Beta(c, (n - 1) c).
    content = np.maximum(world.content_probabilities[:, 3], 1e-300)
    assert stats.kstest(content, stats.beta(0.05, 159 * 0.05).cdf).pvalue > 1e-3
    assert stats.kstest(world.concept_probabilities[:, 3], stats.beta(0.3, 23 * 0.3).cdf).pvalue > 1e-3


def test_deterministic_and_seeded():
    one, two, other = AuthorWorld(seed=1), AuthorWorld(seed=1), AuthorWorld(seed=2)
    for name in (
        "function_probabilities",
        "synonym_preferences",
        "content_probabilities",
        "favourite_topics",
    ):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert not np.array_equal(getattr(one, name), getattr(other, name))
    assert one.vocabulary == two.vocabulary
    authors, topics = np.arange(6), np.arange(6)
    drawn = [w.sample_documents(authors, topics, np.random.default_rng(9)) for w in (one, two)]
    np.testing.assert_array_equal(*drawn)


def test_topics_are_independent_of_authors_unless_entangled():
    authors = np.repeat(np.arange(40), 500)
    plain = AuthorWorld(seed=0)
    topics = plain.sample_topics(authors, np.random.default_rng(0))
    table = np.histogram2d(authors, topics, bins=(40, 20))[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    entangled = AuthorWorld(AuthorWorldConfig(favourite_probability=0.9), seed=0)
    topics = entangled.sample_topics(authors, np.random.default_rng(0))
    hit = (topics[:, None] == entangled.favourite_topics[authors]).any(axis=1)
    # 0.9 plus the uniform tenth falling on one of 2 of 20 topics; standard error 0.002
    assert abs(hit.mean() - (0.9 + 0.1 * 2 / 20)) < 0.01
    some = entangled.sample_topics(authors, np.random.default_rng(0), topics=np.arange(10, 20))
    assert set(some) == set(range(10, 20))


def test_counterfactual_keeps_the_content_and_changes_the_style(world):
    rng = np.random.default_rng(0)
    contents = world.sample_contents(np.full(300, 4), rng)
    counts = {author: world.render_contents(contents, np.full(300, author), rng) for author in (10, 20)}
    for rendered in counts.values():
        assert (rendered.sum(axis=1) == 128).all()
        back = world.contents_of(rendered)
        np.testing.assert_array_equal(back.function_counts, contents.function_counts)
        np.testing.assert_array_equal(back.concept_counts, contents.concept_counts)
        np.testing.assert_array_equal(back.content_counts, contents.content_counts)
        shuffled = world.shuffle_counts(rendered, rng)
        np.testing.assert_array_equal(world.counts(shuffled), rendered)
    function = {author: rendered[:, :40].sum(axis=0) for author, rendered in counts.items()}
    expected = world.function_probabilities[10] * function[10].sum()
    assert chi_square_p(function[10], expected) > 1e-3
    assert chi_square_p(function[20], expected) < 1e-6


def test_log_odds_identify_the_author(world):
    """Adding up an author's log-odds over a text is a likelihood ratio: it must be positive on average for
    the author's own texts (a Kullback-Leibler divergence) and negative for texts of the population."""
    rng = np.random.default_rng(0)
    for author in (2, 450):
        odds = world.style_log_odds(author)
        assert (odds[88:] == 0).all()
        topics = rng.integers(20, size=400)
        own = world.counts(world.sample_documents(np.full(400, author), topics, rng)) @ odds
        others = world.counts(world.sample_documents(rng.integers(600, size=400), topics, rng)) @ odds
        assert own.mean() > 2 and others.mean() < -2
        # E_population[exp(odds)] = 1 exactly, slot by slot.
        assert np.isclose((np.exp(odds[:40]) * world.function_probabilities.mean(axis=0)).sum(), 1)


def test_markers_are_the_words_an_author_overuses(world):
    author = 7
    markers = world.style_markers(author)
    ratio = world.function_probabilities[author] / world.function_probabilities.mean(axis=0)
    np.testing.assert_array_equal(markers[:40], ratio > 1.5)
    first = world.synonym_preferences[:, 0]
    assert markers[40] == (first[author] > 1.5 * first.mean())
    assert markers[41] == (1 - first[author] > 1.5 * (1 - first).mean())
    assert not markers[88:].any() and 5 < markers.sum() < 50


def test_topic_words_cover_their_topic(world):
    for topic in range(20):
        words = world.topic_words(topic)
        assert not words[:88].any()
        assert world.content_probabilities[topic][words[88:]].sum() > 0.85


def test_text_and_ids_agree(world):
    words = world.sample_documents(np.arange(5), np.arange(5), np.random.default_rng(0))
    tokenizer = world.tokenizer()
    encoded = tokenizer([world.render(row) for row in words])["input_ids"]
    np.testing.assert_array_equal(encoded, world.input_ids(words, start_token=True))
    np.testing.assert_array_equal(world.input_ids(words), np.asarray(encoded)[:, 1:])
    assert len(tokenizer) == world.vocab_size == 248 + len(SPECIAL_TOKENS)
    assert tokenizer.pad_token_id == 0
    markers = world.at_tokens(world.style_markers(3), np.asarray(encoded))
    assert not markers[:, 0].any()
    np.testing.assert_array_equal(markers[:, 1:], world.style_markers(3)[words])


def test_names_of_a_topic_come_from_its_theme(world):
    likeliest = 88 + world.content_probabilities.argmax(axis=1)
    themed = sum(world.vocabulary[likeliest[topic]] in THEMES[name] for topic, name in enumerate(world.topic_names))
    assert themed >= 15


def test_other_sizes(world):
    config = AuthorWorldConfig(
        num_function_words=3, num_synonym_pairs=30, num_content_words=170, num_topics=3, document_length=7
    )
    small = AuthorWorld(config, seed=0)
    assert len(set(small.vocabulary)) == 3 + 60 + 170
    assert small.sample_documents(np.arange(4), np.zeros(4, int), np.random.default_rng(0)).shape == (4, 7)


def test_512_documents_take_milliseconds(world):
    rng = np.random.default_rng(0)
    authors = rng.integers(400, size=512)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        world.sample_documents(authors, world.sample_topics(authors, rng), rng)
        seconds.append(time.perf_counter() - start)
    # 8 ms on a quiet core; a document-by-document loop takes 100 ms. The best of seven: machines are shared.
    assert min(seconds) < 0.04


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_topics": 0}, "num_topics is 0"),
        ({"content_concentration": 0.0}, "content_concentration"),
        ({"function_share": 0.9, "concept_share": 0.2}, "add up to at most 1"),
        ({"favourite_probability": 1.5}, "favourite_probability"),
        ({"num_topics": 1}, "num_favourite_topics 2 exceeds"),
        ({"marker_ratio": 1.0}, "marker_ratio"),
    ],
)
def test_bad_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        AuthorWorldConfig(**setting)


def test_unknown_authors_and_topics_are_named(world):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"authors run from 600 .* 0\.\.599"):
        world.sample_documents(np.array([600]), np.array([0]), rng)
    with pytest.raises(ValueError, match=r"topics run from -1"):
        world.sample_contents(np.array([-1]), rng)
    with pytest.raises(ValueError, match="give one each"):
        world.render_contents(world.sample_contents(np.array([0, 1]), rng), np.array([0]), rng)
