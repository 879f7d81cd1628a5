"""The reasoning page: hostile text stays text, the script shows what the matrices say, nothing is requested."""

import html
import json
import re

import numpy as np
import pytest

from jaxcore.reporting import Link, Report, Section, render_report
from jaxcore.reporting.reasoning_graph import (
    GraphSentence,
    ReasoningGraph,
    render_reasoning_page,
    strongest_influences,
    write_reasoning_page,
)

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">'\"&\u2028\x00"


def graph(title="A trace", count=6):
    rng = np.random.default_rng(0)
    functions = ["problem_setup", "plan_generation", "active_computation", "uncertainty_management", "self_checking"]
    sentences = [
        GraphSentence(
            f"Sentence {HOSTILE} {i}", functions[i % 5], None if i == 3 else float(i),
            [(f"Instead {HOSTILE}", 7), ("or this", 2)], note=HOSTILE,
        )
        for i in range(count)
    ]  # fmt: skip
    matrix = np.where(np.triu(np.ones((count, count)), 1) > 0, rng.normal(size=(count, count)), np.nan)
    matrix[1, count - 1], matrix[-2, count - 1] = 9.0, -5.0
    return ReasoningGraph(title, HOSTILE, sentences, {f"suppression {HOSTILE}": matrix, "resampling": -matrix}, HOSTILE)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("reasoning") / "reasoning.html"
    write_reasoning_page(file, HOSTILE, [graph(HOSTILE), graph("Second", 4)], note=HOSTILE)
    return file


def test_hostile_text_is_escaped_everywhere(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("<script>") == 1 and text.count("</script>") == 1
    assert "<img" not in text and 'onerror="' not in text and "\x00" not in text
    assert text.count("document.title=&#39;taken&#39;") > 10
    data = re.findall(r'data-graph="([^"]*)"', text)
    first, second = (json.loads(html.unescape(item)) for item in data)
    assert first["steps"][2]["text"].startswith("Sentence </script>") and len(second["steps"]) == 4


def test_without_the_script_every_sentence_is_there_with_its_function(path):
    text = re.sub(r"<script>.*</script>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert text.count('class="step"') == 10 and text.count("plan generation") == 1 + 2
    assert "http://" not in text and "https://" not in text


def test_the_strongest_influences_are_kept_in_both_directions():
    matrix = np.full((5, 5), np.nan)
    matrix[0, 1:] = [0.1, 0.2, 0.3, 0.4]
    matrix[1:4, 4] = [-0.9, 0.0, 0.05]
    found = {(source, target): value for source, target, value in strongest_influences(matrix, count=1)}
    assert found == {(0, 1): 0.1, (0, 2): 0.2, (0, 3): 0.3, (0, 4): 0.4, (1, 4): -0.9, (3, 4): 0.05}
    assert len(strongest_influences(np.triu(np.ones((30, 30)), 1), count=3)) < 30 * 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReasoningGraph("t", "", [], {}), "no sentence"),
        (lambda: ReasoningGraph("t", "", [GraphSentence("a", "planning")], {}), "no such function"),
        (lambda: ReasoningGraph("t", "", [GraphSentence("a", "unknown", -1.0)], {}), "importance -1.0"),
        (lambda: ReasoningGraph("t", "", [GraphSentence("a", "unknown")], {"s": np.zeros((2, 2))}), r"\[1, 1\]"),
        (lambda: render_reasoning_page("t", []), "at least one trace"),
        (lambda: Link("elsewhere", "../secrets.html"), "plain name"),
        (lambda: Link("elsewhere", "https:page"), "plain name"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_report_links_to_the_page_beside_it():
    page = render_report(Report("t", sections=[Section("s", [Link("<b>see</b>", "reasoning.html")])]))
    assert '<a href="reasoning.html">&lt;b&gt;see&lt;/b&gt;</a>' in page


def test_clicking_a_sentence_shows_its_tree_and_its_resamples(page, path):
    page.open(path, width=1280)
    assert page.evaluate("document.title") != "taken"
    assert page.requests == [path.as_uri()]
    page.evaluate("window.steps = [...document.querySelectorAll('.trace:not([hidden]) .step')]")
    assert page.evaluate("steps.length") == 6, "one trace at a time"
    assert page.evaluate("document.querySelectorAll('.trace:not([hidden]) .arcs path').length") >= 6
    page.evaluate("steps[5].click()")
    panel = "document.querySelector('.trace:not([hidden]) .detail')"
    numbers = page.evaluate(
        f"[...{panel}.querySelectorAll('.tree > li > button .count')].map(e => Number(e.textContent))"
    )
    assert numbers[:2] == [9, -5] and len(numbers) == 3
    depth = page.evaluate(f"{panel}.querySelectorAll('.tree > li > ul > li').length")
    assert depth > 0 and page.evaluate(f"{panel}.querySelectorAll('.tree ul ul').length") == 0
    assert page.evaluate(f"{panel}.querySelector('.resamples li').textContent").startswith("7 ×Instead </script>")
    assert page.evaluate(f"{panel}.querySelectorAll('img, script').length") == 0
    assert page.evaluate("[...document.querySelectorAll('.trace:not([hidden]) .arcs path.near')].length") >= 3
    # The tree's first entry is sentence 1: going there shows nothing above but sentence 0.
    page.evaluate(f"{panel}.querySelector('.tree button').click()")
    assert page.evaluate("steps.map(s => s.getAttribute('aria-pressed')).indexOf('true')") == 1


def test_choices_change_trace_method_direction_and_number(page, path):
    page.open(path, width=1280)
    change = """(id, value) => {
        const choice = document.getElementById(id);
        choice.value = value;
        choice.dispatchEvent(new Event(choice.type === 'range' ? 'input' : 'change'));
    }"""
    page.evaluate(
        f"window.change = {change}; window.panel = () => document.querySelector('.trace:not([hidden]) .detail')"
    )
    page.evaluate(
        "document.querySelectorAll('.trace:not([hidden]) .step')[5].click(); change('method-choice', 'resampling')"
    )
    first = "Number(panel().querySelector('.tree > li > button .count').textContent)"
    assert page.evaluate(first) == -9
    page.evaluate("change('top-choice', 1)")
    assert page.evaluate("panel().querySelectorAll('.tree > li').length") == 1
    page.evaluate("change('direction-choice', 'out')")
    assert page.evaluate("panel().querySelectorAll('.tree > li').length") == 0, "nothing hangs on the last sentence"
    page.evaluate("change('trace-choice', 1)")
    assert page.evaluate("document.querySelectorAll('.trace:not([hidden]) .step').length") == 4
    assert page.evaluate("panel().hidden")


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_width(page, path, width, scheme):
    page.open(path, width=width, scheme=scheme)
    page.evaluate("document.querySelector('.trace:not([hidden]) .step').click()")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
