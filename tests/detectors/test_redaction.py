"""What `report.redact` names is blotted out wherever it would be shown."""

from __future__ import annotations

import pyarrow.parquet as pq

from tnt.core.records import Completion
from tnt.detectors.redaction import BLOT, blot, redacted
from tnt.detectors.span import Span


def test_blot_keeps_length_and_white_space():
    assert blot("call 0161 496, now", [(5, 13)]) == f"call {BLOT * 4} {BLOT * 3}, now"
    assert blot("a b") == f"{BLOT} {BLOT}"
    assert blot("a b", []) == "a b"


def test_findings_are_blotted_out_of_the_report_and_the_flags(project):
    """Even where the round does not ask the detector, and another one flags the same words."""
    project.write("data/lists/words.txt", "sorry\n")
    with project.params() as params:
        params["detectors"]["words"] = {"kind": "phrases", "list": "data/lists/words.txt"}
        params["report"]["redact"] = ["words"]
    project.repro()
    flags = pq.read_table(project.path / "data/rounds/r1/flags.parquet").to_pylist()
    assert {(flag["detector"], flag["text"]) for flag in flags} == {("boilerplate", BLOT * 5)}
    pages = [path.read_text(encoding="utf-8") for path in project.path.glob("data/report/*.html")]
    assert any(BLOT * 5 in page for page in pages)
    assert not any("sorry" in page.lower() for page in pages)
    assert "hedges" in project.read("data/report/r2.html")
    assert project.tnt("docs").returncode == 0
    assert "failed" not in project.read("work/docs/index.html").lower()


def test_what_an_input_gives_is_hidden_in_both():
    """`skip_given` lets a completion say it again; that is no reason to show it."""

    def detect(text, prompt_input):
        start = text.find("Ann")
        return [Span(start, start + 3)] if start >= 0 and "Ann" not in prompt_input else []

    row = Completion("p/1", 0, "base", "Write to Ann.", [1], [2], "Dear Ann,", True)
    [shown] = redacted({"names": detect}, [row])
    assert (shown.input, shown.text) == (f"Write to {BLOT * 3}.", f"Dear {BLOT * 3},")
    assert redacted({}, [row]) == [row]


def test_what_is_not_redacted_is_shown(finished_llama):
    assert "sorry" in finished_llama.read("data/report/r1.html").lower()


def test_changing_it_runs_nothing_that_loads_a_model(project):
    with project.params() as params:
        params["report"]["redact"] = ["boilerplate"]
    ran = {stage.partition("@")[0] for stage in project.repro()}
    assert ran <= {"resolve", "detect", "mask", "compare"}
