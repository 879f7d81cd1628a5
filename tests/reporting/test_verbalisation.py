"""Verbalisation: sentences, subwords, prompts, generators, citations; and the published study's own texts."""

import csv
import io
import json
import tarfile

import jax
import numpy as np
import pytest

from jaxcore.reporting.saliency_search import Snippet, coverage, coverage_at_k, summarise_runs
from jaxcore.reporting.verbalisation import (
    COVERAGE_TEMPLATES,
    MOVIE_REVIEW,
    NEWS_ARTICLE,
    VARIED_TEMPLATES,
    TemplateSet,
    TextTask,
    check_citations,
    citation_precision,
    cited_strings,
    cited_tokens,
    glue_tokens,
    mask_label,
    prompt_for_generator,
    verbalise,
    verbalise_with,
)

BERT = ["an", "un", "##believ", "##able", "film", ".", "loved", "it"]
ROBERTA = ["An", "Ġun", "believ", "able", "Ġfilm", ".", "Ġloved", "Ġit"]
SENTENCEPIECE = ["▁An", "▁un", "believ", "able", "▁film", ".", "▁loved", "▁it"]


def run(*indices, share=0.5):
    return Snippet(indices, 0.9, share)


@pytest.mark.parametrize("tokens", (BERT, ROBERTA, SENTENCEPIECE))
def test_sentences_name_words_phrases_and_spans(tokens):
    assert verbalise([run(1, 2, 3), run(6, 7), run(3, 4, 5)], tokens) == (
        "The word » unbelievable « is most important for the prediction. "
        "The phrase » loved it « is also salient. The span » able film. « is also salient."
    )
    assert glue_tokens(tokens, (1, 2, 3, 4)) == "unbelievable film"
    assert glue_tokens(tokens, (1, 2, 3, 6)) == "unbelievable … loved"
    assert glue_tokens(tokens).lower() == "an unbelievable film. loved it"


def test_a_single_token_is_a_word_and_nothing_has_its_message():
    assert verbalise([run(4)], BERT) == "The word » film « is most important for the prediction."
    assert verbalise([], BERT) == TemplateSet().nothing
    assert verbalise(summarise_runs(-np.ones((1, 8)))[0], BERT) == TemplateSet().nothing


def test_stated_percentages_are_the_coverage():
    rng = np.random.default_rng(0)
    tokens = [f"w{i}" for i in range(14)]
    scores = rng.normal(size=(6, 14))
    for row, runs in zip(scores, summarise_runs(scores), strict=True):
        text = verbalise(runs, tokens, templates=COVERAGE_TEMPLATES)
        for found, string in zip(runs, cited_strings(text), strict=True):
            mask = np.isin(np.arange(14), found.indices)
            assert string == " ".join(np.array(tokens)[mask])
            assert f"{100 * float(coverage(mask[None], row[None])[0]):.0f} %" in text.split(string)[1]


def test_synonyms_are_drawn_with_their_weights():
    keys = jax.random.split(jax.random.key(0), 400)
    texts = [verbalise([run(4), run(6, 7)], BERT, templates=VARIED_TEMPLATES, key=key) for key in keys[:120]]
    assert texts[0] == verbalise([run(4), run(6, 7)], BERT, templates=VARIED_TEMPLATES, key=keys[0])
    share = {kind: sum(t.startswith(f"The {kind} »") for t in texts) / 120 for kind in ("word", "token", "feature")}
    assert sum(share.values()) == 1 and abs(share["word"] - 0.4) < 0.15 and abs(share["feature"] - 0.3) < 0.15
    assert len({t.split(" for ")[1].split(".")[0] for t in texts}) == 12
    assert verbalise([run(4)], BERT, templates=VARIED_TEMPLATES) == verbalise([run(4)], BERT)


def test_marks_in_the_text_do_not_forge_citations_or_fields():
    tokens = ["»", "{text}", "x", "«", "%s"]
    text = verbalise([run(0, 1, 2, 3, 4)], tokens)
    assert cited_strings(text) == ["› {text} x ‹ %s"]
    with pytest.raises(ValueError, match=r"names the tokens \(9,\), but there are 5"):
        verbalise([run(9)], tokens)
    with pytest.raises(ValueError, match="positive weights"):
        TemplateSet(word=())


def test_the_prompt_says_all_that_the_paper_says_in_order():
    prompt = prompt_for_generator(["[CLS]", *BERT], [0, 0.004, 0.5, 0.25, -0.126, 1, -0.001, 2, 0], "positive")
    assert "[CLS] (0.00) an (0.00) un (0.50) believ (0.25) able (-0.13) film (1.00) . (0.00) loved (2.00)" in prompt
    places = [
        prompt.index(part)
        for part in (
            "Movie review", "[CLS]", "sentiment analyzer has predicted", "how important", "after the prediction",
            "could use the text only", "Explain briefly",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert prompt.count("'positive sentiment'") == 2
    news = prompt_for_generator(["stocks"], [1.0], "Business", task=NEWS_ARTICLE, objective="saliency")
    assert "News article" in news and "'Business topic'" in news and "mattered most" in news
    odd = prompt_for_generator(["{model}", "{label}"], [1, 2], "{label}", task=TextTask())
    assert "{model} (1.00) {label} (2.00)" in odd


def test_any_callable_generates():
    seen = []

    def generate(prompts):
        seen.append(prompts)
        return [f"  text {i} \n" for i in range(len(prompts))]

    texts = verbalise_with(generate, [BERT, ["good"]], [np.arange(8.0), [1.0]], ["positive", "negative"])
    assert texts == ["text 0", "text 1"] and len(seen) == 1
    assert seen[0][1] == prompt_for_generator(["good"], [1.0], "negative", task=MOVIE_REVIEW)
    assert verbalise_with(generate, [], [], []) == [] and len(seen) == 1
    for bad in (lambda prompts: ["one"], lambda prompts: "ab", lambda prompts: [None, "x"], lambda prompts: None):
        with pytest.raises(ValueError, match="generate must give 2 texts"):
            verbalise_with(bad, [["a"], ["b"]], [[1], [2]], ["x", "y"])
    with pytest.raises(ValueError, match="one of each per text"):
        verbalise_with(generate, [["a"]], [[1], [2]], ["x"])
    with pytest.raises(ValueError, match="one score for each"):
        prompt_for_generator(["a"], [1, 2], "x")
    with pytest.raises(ValueError, match="scores must be finite"):
        prompt_for_generator(["a"], [np.nan], "x")
    with pytest.raises(ValueError, match="objective must be one of"):
        prompt_for_generator(["a"], [1], "x", objective="why")


def test_the_label_does_not_leak():
    text = "It said 'Positive sentiment' as positive words outweigh positively odd ones."
    assert mask_label(text, "positive") == (
        "It said '{placeholder}' as {placeholder} words outweigh positively odd ones."
    )
    masked = mask_label("A Sci/Tech topic.", "Sci/Tech", task=NEWS_ARTICLE, placeholder=r"\1")
    assert masked == r"A \1."


@pytest.mark.parametrize(
    ("text", "cited"),
    [
        ("The words » tech industry « and » . « matter.", ["tech industry", "."]),
        ('» the "great" film « only', ['the "great" film']),
        ('words like "great," and “well restored”', ["great,", "well restored"]),
        ("it doesn't use 'can't stop' or 'fun' here", ["can't stop", "fun"]),
        ("predicted '{placeholder}' because \"good\"", ["good"]),
        ('shows "{placeholder} mood" and "great"', ["mood", "great"]),
        ("the dogs' bones and the cats' toys", []),
        ("nothing", []),
    ],
)
def test_citations_follow_their_delimiters(text, cited):
    assert cited_strings(text) == cited


@pytest.mark.parametrize("tokens", (BERT, ROBERTA, SENTENCEPIECE))
def test_cited_tokens(tokens):
    def named(text):
        return np.flatnonzero(cited_tokens(text, tokens)).tolist()

    assert named('"Unbelievable" is it') == [1, 2, 3]  # "is" and "it" stand outside
    assert named("» film. « matters") == [4, 5]
    assert named('"believ" and "loved it,"') == [2, 6, 7]
    assert named('"film" and the punctuation') == [4, 5]
    assert named("no citation of film") == []
    everything = verbalise([run(*range(8))], tokens)
    assert named(everything) == list(range(8))


def test_citation_precision():
    source = "a great historical movie , will not allow a viewer to leave"
    found = check_citations('"great" and "Historical  movie" but not "boring," or "leave."', source)
    assert found.total == 4 and found.absent == ("boring",) and found.precision == 0.75
    assert np.isnan(citation_precision("no quotes", source))


class Study:
    """The files of the human study, read from the archive without unpacking it."""

    def __init__(self, root):
        file = root / "verbalisation" / "smv_human_study.tar.gz"
        if not file.is_file():
            pytest.skip(f"{file} is absent")
        with tarfile.open(file) as archive:
            self.files = {
                member.name.split("/")[-1]: archive.extractfile(member).read().decode("utf-8")
                for member in archive
                if "/eval/" in member.name
            }

    def rows(self, dataset, kind):
        table = csv.DictReader(io.StringIO(self.files[f"{dataset}_SMV-GPT_Eval.csv"]))
        return [row for row in table if row["Type"] == kind]


@pytest.fixture(scope="module")
def study(shared_data):
    return Study(shared_data)


def test_published_texts_cite_as_reported(study):
    """Runs per template and precision of quotes, as recomputed in saliency_verbalization.md."""
    for dataset, runs, precision in (("IMDb", 1.5625, 0.93), ("AGNews", 2.1, 0.97)):
        texts = [row["Explanation"] for row in study.rows(dataset, "SMV")]
        assert np.mean([len(cited_strings(text)) for text in texts]) == runs
        found = [check_citations(row["Explanation"], row["Input Text"]) for row in study.rows(dataset, "GPT")]
        total = sum(one.total for one in found)
        assert abs(1 - sum(len(one.absent) for one in found) / total - precision) < 0.01
    double = [
        check_citations(row["Explanation"].replace("'", "’"), row["Input Text"].replace("'", "’"))
        for row in study.rows("IMDb", "GPT")
    ]
    total = sum(one.total for one in double)
    assert (total - sum(len(one.absent) for one in double), total) == (261, 281)


def test_template_citations_are_words_of_their_text(study):
    cited, tokens = 0, 0
    for dataset in ("IMDb", "AGNews"):
        for row in study.rows(dataset, "SMV"):
            words = row["Input Text"].split()
            mask = cited_tokens(row["Explanation"], words)
            cited += bool(mask.any())
            tokens += mask.mean()
    assert cited >= 198 and tokens / 200 < 0.35  # nearly all 200 cite their text, and little of it


def test_coverage_at_k_reproduces_the_published_coverage(study):
    """The files give coverage@k of two texts on each map: their steps are the shares of the tokens each text cites.

    Put together they say enough of the map to recompute both from it (ranks that neither cites do not count).
    """
    ks = tuple(range(1, 11))
    published = {}
    for kind in ("SMV", "GPT"):
        by_k = json.loads(study.files[f"imdbcov_{kind}.json"])["imdb"]
        published[kind] = np.array([[by_k[str(k)][i] for k in ks] for i in by_k["1"]])
    steps = {kind: np.diff(values, prepend=0, axis=1) for kind, values in published.items()}
    both = (steps["SMV"] > 1e-9) & (steps["GPT"] > 1e-9)
    assert both.sum() > 100
    np.testing.assert_allclose(steps["SMV"][both], steps["GPT"][both], atol=1e-9)
    shares = np.maximum(steps["SMV"], steps["GPT"])
    for rank in range(8, -1, -1):  # a rank that neither cites is at least as strong as the next
        unknown = shares[:, rank] <= 1e-9
        shares[unknown, rank] = shares[unknown, rank + 1]
    rest = np.repeat(np.maximum(1 - shares.sum(1, keepdims=True), 0) / 1000, 1000, 1)
    scores = np.concatenate([rest[:, :500], shares, rest[:, 500:], -np.ones((80, 3))], axis=1)
    for kind, means in (("SMV", (0.213, 0.280, 0.315, 0.353, 0.391)), ("GPT", (0.168, 0.227, 0.254, 0.296, 0.344))):
        cited = np.zeros(scores.shape, bool)
        cited[:, 500:510] = steps[kind] > 1e-9
        got = np.asarray(coverage_at_k(cited, scores, ks))
        np.testing.assert_allclose(got, published[kind], atol=2e-5)
        np.testing.assert_allclose(got.mean(0)[[0, 1, 2, 4, 9]], means, atol=0.0006)
