"""The page of a run: its facts, its sections, its configuration."""

import dataclasses

from jaxcore.reporting import Headline, Paragraph, Section
from jaxcore.reporting.run_report import configuration_section, write_run_report
from jaxcore.training import Results


@dataclasses.dataclass(frozen=True)
class Options:
    temperature: float = 0.07


def test_the_page_states_the_run_and_leaves_out_what_has_nothing_to_say(tmp_path):
    results = Results("name", "smoke", 17, 123, 65.4, "a device x 3", {"jax": "0.0.1"}, {}, "digest")
    sections = [Section("First", [Paragraph("<b>said</b>")]), None, configuration_section(Options(), note="a note")]
    path = tmp_path / "report.html"
    write_run_report(
        path, results, title="A title", claim="A claim", headline=[Headline("best", "0.9")], sections=sections
    )
    page = path.read_text()
    for text in ("A title", "A claim", "smoke", "17", "123", "65 s", "a device x 3", "0.0.1", "best", "a note"):
        assert text in page, text
    assert "temperature" in page and "&lt;b&gt;said" in page and "<b>said" not in page
