"""LAQuer end to end on a small run: the pipeline, its controls, its report, and people's alignments."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from experiments import laquer
from experiments.__main__ import main
from jaxcore.attribution.decontextualisation import MARKER
from jaxcore.attribution.text_spans import Span
from jaxcore.data import train_tokenizer
from jaxcore.data.grounded_example import grounded_example
from jaxcore.data.grounded_texts import GroundedText, source_document, split_sentences
from jaxcore.data.highlight_queries import HighlightQuery
from jaxcore.data.pronoun_world import pronoun_world
from jaxcore.evaluation import Interrupted, RunValues, judge
from jaxcore.evaluation.entailment import Entailment
from jaxcore.evaluation.finished_items import FinishedLog
from jaxcore.evaluation.span_attribution import attribution_premise
from jaxcore.generation import rule_generator
from jaxcore.models import Decoder, EncoderConfig, save_pretrained
from jaxcore.models.classifier import ClassifierConfig, EncoderClassifier, save_classifier
from jaxcore.training import Preempted, read_metrics

SMOKE = laquer.PRESETS["smoke"]
HASHED = dataclasses.replace(SMOKE, internals=("hash",), num_steps=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("laquer") / "run"
    return path, laquer.run(SMOKE, path)


@pytest.fixture(scope="module")
def hashed():
    """Tasks of the small run and the host of hashed words, for parts by themselves."""
    tasks = laquer.open_tasks(HASHED)
    return tasks, laquer.hash_host(HASHED, laquer.build(HASHED).mesh, tasks)


def test_the_run_directory_holds_what_the_protocol_says(finished):
    path, results = finished
    written = json.loads((path / "results.json").read_text())
    assert written["metrics"] == results.metrics and written["experiment"] == "laquer"
    assert re.fullmatch("[0-9a-f]{64}", results.params_digest)
    assert len(read_metrics(path / "metrics.jsonl")) == SMOKE.num_steps
    for internals in ("hash", "decoder"):
        for task in ("world", "example"):
            assert np.isfinite(results.metrics[f"{task}/{internals}/highlight/f1"])


def test_a_rewritten_highlight_finds_its_source_and_the_raw_one_guesses(finished):
    metrics = finished[1].metrics
    assert metrics["world/hash/best_source/claim"] > 0.85
    assert metrics["world/hash/best_source/highlight"] < 0.65
    assert metrics["world/hash/quoted/f1"] == 1 and metrics["world/hash/quoted/fell_back"] == 0


def test_spans_follow_the_highlight_in_real_text(finished):
    metrics = finished[1].metrics
    assert metrics["example/hash/gain/wrong_highlight"] > 0.5
    assert metrics["example/hash/gain/sentences"] > 0.2 and metrics["example/hash/length_saving"] > 0.5


def test_the_report_shows_highlights_sources_and_claims(finished):
    page = (finished[0] / "report.html").read_text()
    assert "autoais" not in page, "columns without a value are left out"
    for text in (
        "⟦dedicated to the proposition that all men are created equal⟧",
        "aligned by people",
        "wrong_highlight",
    ):
        assert text in page
    assert "rewriting_matters" in page and not re.search(r'(src|href)="https?:', page)


def test_a_resumed_run_ends_like_an_uninterrupted_one(finished, tmp_path):
    config = dataclasses.replace(SMOKE, internals=("decoder",))
    with pytest.raises(Preempted):
        laquer.run(config, tmp_path / "run", tick=lambda step: step == 4)
    resumed = laquer.run(config, tmp_path / "run", resume=True)
    assert resumed.metrics == {name: value for name, value in finished[1].metrics.items() if "/decoder/" in name}


def test_an_evaluation_stopped_anywhere_goes_on_with_what_is_on_disk(finished, nli_folder, tmp_path):
    """Also AutoAIS by a classifier in the run: the entailment stops halfway, then nothing else is computed again."""
    config = dataclasses.replace(HASHED, nli_model=str(nli_folder), queries_at_once=10, prompts_at_once=10)
    folder = tmp_path / "run" / "evaluation" / "world" / "hash"
    with pytest.raises(Interrupted, match="after 20 of"):
        laquer.run(config, tmp_path / "run", tick=lambda step: step == 1 and (folder / "entailment.jsonl").exists())
    done = {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.name != "entailment.jsonl"}
    assert {"highlight.jsonl", "claims.jsonl", "claim.jsonl", "quoted.jsonl"} == set(done)
    resumed = laquer.run(config, tmp_path / "run", resume=True).metrics
    written = {file.name: file.read_bytes().splitlines() for file in folder.iterdir()}
    assert [json.loads(line) for line in written["quoted.jsonl"][1:]]
    whole = {name: value for name, value in finished[1].metrics.items() if "/hash/" in name}
    assert {name: value for name, value in resumed.items() if name in whole} == whole
    judged = dict.fromkeys(json.loads(line)[0] for line in written["entailment.jsonl"][1:])
    assert set(judged) <= {True, False}
    for method in ("sentences", "highlight", "claim", "quoted"):
        assert 0 <= resumed[f"world/hash/{method}/autoais"] <= 1 and f"world/hash/{method}/autoais_claim" in resumed
    assert "autoais_claim" in (tmp_path / "run" / "report.html").read_text()


@pytest.fixture(scope="module")
def nli_folder(tmp_path_factory):
    """A random classifier of pairs with a class for entailment."""
    folder = tmp_path_factory.mktemp("nli")
    tokenizer = train_tokenizer(
        [query.text.output for query in pronoun_world(SMOKE.data.world, seed=0)], vocab_size=300
    )
    sizes = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "max_positions": 512}
    config = ClassifierConfig(EncoderConfig(vocab_size=len(tokenizer), **sizes), num_classes=2)
    params = jax.jit(EncoderClassifier(config).init)(jax.random.key(0), np.ones((1, 4), np.int32))["params"]
    save_classifier(folder, config, params, ["entailment", "other"])
    tokenizer.save_pretrained(folder)
    return folder


def all_words_are_there(premises, hypotheses, *, tick):
    entails = [
        set(h.lower().split()) <= set(re.findall("[a-z]+", p.lower()))
        for p, h in zip(premises, hypotheses, strict=True)
    ]
    return Entailment(np.asarray(entails), np.zeros(len(entails)), np.asarray([len(p) > 400 for p in premises]))


def test_autoais_is_of_the_same_hypotheses_for_every_method(hashed):
    """By an oracle: all sources together have any claim's words, a span has them if it is the right one."""
    (world, _), host = hashed
    few = world._replace(queries=world.queries[:6])
    found = laquer.evaluate_task(HASHED, few, host, "hash", entailment=all_words_are_there)
    metrics, queries = found.metrics, found.queries
    assert metrics["world/hash/sentences/autoais_claim"] == 1 and metrics["world/hash/quoted/autoais_claim"] == 1
    assert metrics["world/hash/quoted/autoais"] == 0, "nobody is called 'she' in the sources"
    claims = laquer.rewritten_claims(HASHED, queries, world.rewrite, FinishedLog(), "")
    premises = [
        attribution_premise(spans, query.text.texts())
        for query, spans in zip(queries, found.attributed["claim"], strict=True)
    ]
    entailed = all_words_are_there(premises, [claim.text for claim in claims], tick=None).entails
    assert metrics["world/hash/claim/autoais_claim"] == np.mean(entailed)
    none = few._replace(queries=[dataclasses.replace(query, candidates=()) for query in few.queries], quote=None)
    metrics = laquer.evaluate_task(HASHED, none, host, "hash", entailment=all_words_are_there).metrics
    assert metrics["world/hash/claim/autoais_claim"] == 0 == metrics["world/hash/claim/premise_cut"]


def answers_and_facts(prompt, seed):
    """Writes the first sentence of every source, and finds each sentence's fact in its own words."""
    if prompt.endswith("Answer: "):
        sources = re.findall(r"^Source \d+: (.*)$", prompt, re.MULTILINE)
        return " ".join(source[slice(*split_sentences(source)[0])] for source in sources)
    return f"- {re.findall(r'Sentence: (.*)', prompt)[-1]}"


def lfqa_config(folder, **data):
    data = dataclasses.replace(HASHED.data, path=str(folder), lfqa=True, **data)
    return dataclasses.replace(HASHED, pretrained="some model", data=data)


def attributed_answers(config):
    """The task of long-form answers and what hashed words find, without the model that the rule stands for."""
    [given] = laquer.open_answers(config)
    task = laquer.answer_task(config, given, rule_generator(answers_and_facts), FinishedLog())
    host = laquer.hash_host(config, laquer.build(HASHED).mesh, [task])
    return task, laquer.evaluate_task(config, task, host, "hash", entailment=all_words_are_there)


def test_answers_to_long_form_questions_are_written_highlighted_and_attributed(tmp_path):
    pages = {
        "u1": "Honey holds little water. Bees carry nectar home. Few microbes survive in honey.",
        "u2": "Ferries cross the fjord at noon. The harbour was built in 1902.",
    }
    (tmp_path / "lfqa_test.json").write_text(json.dumps({"documents": {"q": pages}}))
    task, found = attributed_answers(lfqa_config(tmp_path))
    assert task.queries[0].text.output == "Honey holds little water. Ferries cross the fjord at noon."
    assert [query.words() for query in task.queries] == [
        "Honey holds little water.",
        "Ferries cross the fjord at noon.",
    ]
    texts = task.queries[0].text.texts()
    first, second = ([texts[d][a:b] for d, a, b in spans] for spans in found.attributed["highlight"])
    assert first[0].startswith("Honey holds little water") and second[0].startswith("Ferries cross the fjord at noon")
    assert found.metrics["lfqa/hash/highlight/coverage"] == 1 and found.metrics["lfqa/hash/length_saving"] > 0.3
    assert found.metrics["lfqa/hash/sentences/characters"] == sum(len(text) for text in pages.values()) - 3
    assert not any(name.endswith(("/f1", "best_source/gain")) for name in found.metrics), "nobody has aligned them"


def test_the_published_pages_of_long_form_questions(shared_data):
    task, found = attributed_answers(lfqa_config(shared_data / "laquer", most_queries=2, facts_per_output=3))
    assert task.name == "lfqa" and 2 <= len(task.queries) <= 6
    assert found.metrics["lfqa/hash/highlight/coverage"] > 0.9 and found.metrics["lfqa/hash/length_saving"] > 0.5


def test_answers_of_a_generator_are_a_task_of_a_run(finished, tmp_path, monkeypatch):
    """Read from a file by a run with a pretrained model, whose answers the rule stands for."""
    config = dataclasses.replace(SMOKE.model, vocab_size=400)
    tokenizer = train_tokenizer(["Alma sold clocks."], vocab_size=400, kind="bpe")
    params = jax.jit(Decoder(config).init)(jax.random.key(0), np.ones((1, 2), np.int32))["params"]
    save_pretrained(tmp_path / "model", config, params)
    tokenizer.save_pretrained(tmp_path / "model")
    documents = [{"documentFile": "d", "documentText": ["Alma sold clocks. ", "Frida painted bridges."]}]
    rows = [{"scuSentCharIdx": 0, "scuSentence": "Alma sold clocks.", "documentFile": "d", "docSpanOffsets": [[0, 17]]}]
    record = {"unique_id": "x", "response": "Alma sold clocks.", "documents": documents}
    (tmp_path / "x.json").write_text(json.dumps(record | {"set_of_highlights_in_context": rows}) + "\n")
    monkeypatch.setattr(laquer, "model_generator", lambda *given, **options: rule_generator(answers_and_facts))
    data = dataclasses.replace(SMOKE.data, generations=str(tmp_path / "x.json"))
    config = dataclasses.replace(HASHED, pretrained=str(tmp_path / "model"), data=data)
    metrics = laquer.run(config, tmp_path / "run").metrics
    assert metrics["generations/hash/sentences/characters"] == 18, "only the cited sentence is a candidate"
    assert metrics["generations/hash/highlight/coverage"] == 1
    whole = {name: value for name, value in finished[1].metrics.items() if "/hash/" in name}
    assert {name for name in metrics if not name.startswith("generations/")} == set(whole)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Attribution: generations" in page and "⟦Alma sold clocks.⟧" in page


def test_what_step_a_writes_is_what_step_b_looks_for(hashed):
    """A rewriter that names another woman leads to her sentence: the released code searches for the raw highlight."""
    (world, _), host = hashed
    other = {}
    for query in world.queries:
        documents = query.text.texts()
        sentences = [documents[d][a:b] for d, a, b in query.candidates]
        relation = query.words().split()[1]
        mine = query.text.output.split()[0]
        other[query.text.output] = next(s for s in sentences if relation in s and not s.startswith(mine)).split()[0]

    def rewrite(prompt, seed):
        context, claim = re.findall(r"##CONTEXT##: (.*)\n##CLAIM##: (.*)", prompt)[-1]
        return f"{MARKER} {claim.replace('she', other[context])}"

    task = world._replace(rewrite=rule_generator(rewrite), quote=None)
    found = laquer.evaluate_task(HASHED, task, host, "hash")
    assert found.metrics["world/hash/best_source/claim"] < 0.1
    assert found.metrics["world/hash/best_source/highlight"] > 0.15


def test_unplaced_answers_fall_back_to_everything_and_say_so(hashed):
    (world, _), host = hashed
    few = world._replace(queries=world.queries[:3], quote=rule_generator(lambda *_: "no such words here at all"))
    metrics = laquer.evaluate_task(HASHED, few, host, "hash").metrics
    assert metrics["world/hash/quoted/fell_back"] == 1 and metrics["world/hash/quoted/attempts"] == HASHED.attempts
    assert metrics["world/hash/quoted/characters"] > 300
    assert metrics["world/hash/quoted/characters_without_fall_backs"] == 0


def test_another_highlight_is_of_the_same_sentence():
    queries = grounded_example()
    for query, other in zip(queries, laquer.other_highlights(queries), strict=True):
        assert other != query.highlight and query.sentence[0] <= other[0][0] < query.sentence[1]
    assert laquer.other_highlights(pronoun_world(SMOKE.data.world, seed=0)[:2]) == [None, None]


def test_a_cut_set_ends_with_a_whole_sentence():
    queries = grounded_example()
    assert laquer._first_sentences(queries, 5) == queries[:4] and laquer._first_sentences(queries, 0) == queries
    with pytest.raises(ValueError, match="most_queries 1 holds no whole sentence"):
        laquer._first_sentences(queries, 1)


def test_text_of_documents_and_outputs_is_escaped(tmp_path):
    from jaxcore.reporting import Report, write_report

    document = source_document("<i>d</i>", "Some <b>bold</b> words stand here.")
    text = GroundedText("t", (document,), "A <u>mark</u> here.", ((0, 19),))
    query = HighlightQuery(text, ((2, 13),), (0, 19), tuple(document.spans()), (Span("<i>d</i>", 0, 4),))
    found = laquer.Evaluated({}, {"highlight": [(Span("<i>d</i>", 5, 16),)]}, {}, [query])
    section = laquer.examples_section(SMOKE, "t", found)
    write_report(tmp_path / "page.html", Report("t", sections=[section]))
    page = (tmp_path / "page.html").read_text()
    assert not any(tag in page for tag in ("<b>bold", "<u>mark", "<i>d"))
    assert "&lt;b&gt;bold&lt;/b&gt;" in page and "⟦&lt;u&gt;mark&lt;/u&gt;⟧" in page.replace("⟦A ", "⟦")


@pytest.fixture(scope="module")
def spark(shared_data):
    config = dataclasses.replace(
        HASHED, data=dataclasses.replace(HASHED.data, path=str(shared_data / "laquer"), open_queries=20)
    )
    return config, next(task for task in laquer.open_tasks(config) if task.name == "spark")


def test_the_aligned_sentences_measure_what_laquer_md_says(spark):
    queries = spark[1].queries
    found = laquer.measure(queries, [query.candidates for query in queries]).metrics
    rounded = [round(found[name], 3) for name in ("precision", "recall", "f1")]
    assert (len(queries), rounded, round(found["characters"])) == (1458, [0.208, 0.997, 0.323], 749)


def test_people_s_alignments_are_followed(spark):
    """The first 200 highlights; the criteria of laquer.md on all of them are those of `verify laquer`."""
    config, task = spark
    task = task._replace(queries=task.queries[:200])
    host = laquer.hash_host(config, laquer.build(config).mesh, [task])
    metrics = laquer.evaluate_task(config, task, host, "hash").metrics
    assert metrics["spark/hash/length_saving"] > 0.7
    assert metrics["spark/hash/gain/wrong_highlight"] > 0.12
    assert metrics["spark/hash/no_metadata/f1"] < metrics["spark/hash/no_metadata/f1_within_candidates"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["--internals", "encoder"], "internals 'encoder' needs --encoder"),
        (["--num-steps", "3", "--pretrained", "x"], "a pretrained model is not trained here"),
        (["--layers", "9"], "the decoder has layers 1 to 1: got layers (9,)"),
        (["--data.path", "/does/not/exist"], "no file at /does/not/exist/mds_sents_separation.json"),
        (["--data.released", "/does/not/exist"], "no run at /does/not/exist"),
        (["--data.world.num-sharing", "1"], "num_sharing >= 2"),
        (["--localiser.min-run", "0"], "min_run"),
        (["--data.open-queries", "0"], "open_queries >= 1"),
        (["--data.lfqa", "True"], "data.lfqa needs --data.path"),
        (["--data.generations", "x.json"], "need a model that is prompted: give --pretrained"),
        (["--prompt-batch", "0"], "prompt_batch must be >= 1: got 0"),
        (["--temperature", "-1"], "temperature must be >= 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(fields, message, tmp_path, capsys):
    code = main(["run", "laquer", "--preset", "smoke", *fields, "--run-dir", str(tmp_path / "run")])
    shown = capsys.readouterr()
    assert code == 2 and re.fullmatch(r"error: [^\n]+\n", shown.err), shown.err
    assert message in shown.err and not (tmp_path / "run").exists()


def test_claims_fail_when_the_highlight_is_ignored():
    names = {side.metric for claim in laquer.CLAIMS.claims for side in (claim.value, claim.against) if side}
    runs = {"laquer": [RunValues(dict.fromkeys(names, 0.0))] * 3}
    assert not any(judge(claim, runs).passed for claim in laquer.CLAIMS.claims)


def test_claims_about_files_are_asked_where_they_are_given():
    asked = [claim.name for claim in laquer.CLAIMS.asked_of(laquer.PRESETS["cpu"]).claims]
    assert asked == ["rewriting_matters"]
    given = dataclasses.replace(laquer.PRESETS["cpu"], data=laquer.DataConfig(path="x", released="y"))
    assert len(laquer.CLAIMS.asked_of(given).claims) == 9
