"""The page of explained continuations: what lights up, by mouse, touch and keyboard; text stays text; lines; tables."""

import html
import json
import re

import numpy as np
import pytest

from jaxcore.evaluation.generation_attribution import (
    Continuation,
    ContinuationExplanation,
    TargetScores,
    by_segment,
)
from jaxcore.reporting.generation_attribution import continuation_lines, generation_page, strongest_table
from jaxcore.reporting.html import write_page

HOSTILE = "<script>document.title='taken'</script>"


def explained(prompt, text, versus=None):
    """Tokens are what white space separates, a special one first; scores are drawn."""
    rng = np.random.default_rng(0)
    places = [(match.start(), match.end()) for match in re.finditer(r"\s*\S+|\s+$", prompt + text)]
    offsets = np.asarray([(0, 0), *places])
    count = sum(start >= len(prompt) for start, _ in places)
    cut = len(offsets) - count
    item = Continuation(prompt, text, tuple(range(len(offsets))), cut, offsets, None, True)
    matrix = rng.normal(size=(count, len(offsets))).astype(np.float32)
    for row in range(count):
        matrix[row, cut + row :] = 0
    drawn = -rng.exponential(size=count).astype(np.float32)
    return ContinuationExplanation(
        continuation=item,
        tokens=("<s>", *((prompt + text)[start:end] for start, end in places)),
        versus=versus,
        special=offsets[:, 0] == offsets[:, 1],
        log_probabilities=drawn,
        versus_log_probabilities=None if versus is None else drawn - 1,
        scores=drawn if versus is None else np.ones(count, np.float32),
        baseline_scores=drawn - 2,
        score="log_probability",
        methods={
            "integrated_gradients": TargetScores(matrix, np.zeros(count, np.float32)),
            "attention": TargetScores(np.abs(matrix), None),
        },
    )


@pytest.fixture(scope="module")
def plain():
    return explained("The committee met. It heard three", " witnesses. They spoke")


@pytest.fixture(scope="module")
def hostile():
    return explained(f"a {HOSTILE} \"b'", f" {HOSTILE} &amp;", versus=(HOSTILE, " \"'>"))


@pytest.fixture(scope="module")
def path(plain, hostile, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "page.html"
    facts = {"model": HOSTILE}
    write_page(
        file, generation_page([plain, hostile], title=HOSTILE, facts=facts, levels=("word", "token", "sentence"))
    )
    return file


def test_text_stays_text_and_the_table_needs_no_script(path, plain):
    text = path.read_text(encoding="utf-8")
    assert text.count("<script>") == 1 and "&lt;script&gt;document.title" in text
    assert "http" not in text.replace("http-equiv", "") and "src=" not in text.replace("script-src", "")
    segments = by_segment(plain, "word")
    row = segments.methods["attention"][0]
    best = segments.sources[int(row.argmax())].strip()
    table = text[text.index("<tbody>") : text.index("</tbody>")]
    assert "witnesses." in table and html.escape(best) in table and f"{row.max():.3f}"[:4] in table
    assert f"{segments.log_probabilities[0]:.3f}" in table


def test_values_in_the_page_are_those_of_the_segments(path, plain):
    text = path.read_text(encoding="utf-8")
    for number, name in enumerate(("integrated_gradients", "attention")):
        written = re.search(rf'data-scores{number}="([^"]*)"', text)[1]
        row = by_segment(plain, "word").methods[name][0]
        np.testing.assert_allclose([float(value) for value in written.split()], row[: len(written.split())], rtol=1e-3)
        assert len(written.split()) == by_segment(plain, "word").num_prompt + 1


def test_lines_hold_the_matrix(plain, hostile):
    segments = by_segment(hostile, "word")
    lines = json.loads(json.dumps(continuation_lines(7, hostile, segments, attributed="prefix")))
    assert [line["method"] for line in lines] == ["integrated_gradients", "attention"]
    line = lines[0]
    assert (line["index"], line["level"], line["generated"], line["attributed"]) == (7, "word", True, "prefix")
    assert line["prompt"] + line["continuation"] == hostile.continuation.prompt + hostile.continuation.text
    assert len(line["sources"]) == len(line["attributions"][0]) and len(line["targets"]) == len(line["attributions"])
    np.testing.assert_array_equal(
        np.asarray(line["attributions"], np.float32), segments.methods["integrated_gradients"]
    )
    assert line["versus"] == list(segments.versus) and lines[1]["completeness_errors"] is None
    assert len(strongest_table(plain, by_segment(plain)).columns) == 4
    table = strongest_table(hostile, segments)
    assert table.columns[2] == "rather than" and table.rows[0][2] == HOSTILE


def test_bad_requests_are_refused(plain):
    with pytest.raises(ValueError, match="no explanations"):
        generation_page([])
    with pytest.raises(ValueError, match="levels must be one or more of token, word, sentence"):
        generation_page([plain], levels=("page",))
    assert "1 more texts are not shown" in generation_page([plain, plain], max_texts=1)


COLOURED = "[...{}.querySelectorAll('.sources > span')].map(s => [s.className, s.style.getPropertyValue('--a')])"
WHY = "document.querySelector('.generation .level:not([hidden]) .why').textContent"
TARGETS = "document.querySelector('.generation .level:not([hidden])').querySelectorAll('.targets > span')"


def test_pointing_at_a_target_lights_up_its_sources(page, path, plain):
    page.open(path, width=1100)
    segments = by_segment(plain, "word")
    level = "document.querySelector('.generation .level:not([hidden])')"

    def check(number, name):
        row = segments.methods[name][number]
        shown = page.evaluate(COLOURED.format(level))
        assert len(shown) == len(row)
        for (kinds, alpha), value in zip(shown, row, strict=True):
            assert ("positive" in kinds, "negative" in kinds) == (value > 0, value < 0)
            assert float(alpha) == pytest.approx(abs(value) / np.abs(row).max(), abs=2e-3)

    check(0, "integrated_gradients")  # the first target, until somebody points
    assert "Why “witnesses.”" in page.evaluate(WHY)
    place = f"(r => [r.left + r.width / 2, r.top + r.height / 2])({TARGETS}[2].getClientRects()[0])"
    x, y = page.evaluate(place)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    check(2, "integrated_gradients")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    check(0, "integrated_gradients")
    page.evaluate(f"{TARGETS}[0].focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight")
    check(1, "integrated_gradients")
    page.evaluate("document.querySelector('[data-method=\"1\"]').click()")
    check(1, "attention")
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.evaluate("new Promise(done => setTimeout(done, 400))")
    check(2, "attention")
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_units_are_switched_and_contrasts_shown(page, path):
    page.open(path, width=1100)
    assert page.evaluate("document.title") == HOSTILE
    page.evaluate("document.querySelector('button[data-level=sentence]').click()")
    shown = (
        "[...document.querySelector('.generation').querySelectorAll('.level:not([hidden])')].map(l => l.dataset.level)"
    )
    assert page.evaluate(shown) == ["sentence"]
    assert page.evaluate(f"[...{TARGETS}].map(s => s.textContent)") == ["witnesses.", "They spoke"]
    second = "document.querySelectorAll('.generation')[1].querySelector('.level:not([hidden]) .why').textContent"
    assert f"rather than “{HOSTILE}”" in page.evaluate(second)


@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_is_loaded_and_nothing_overflows(page, path, width):
    page.open(path, width=width)
    assert page.requests == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.classList.contains('scripted')")
