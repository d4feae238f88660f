"""What `report.redact` names is blotted out wherever it would be shown."""

from __future__ import annotations

import pyarrow.parquet as pq

from tnt.redaction import BLOT, blot


def test_blot_keeps_length_and_white_space():
    assert blot("call 0161 496, now", [(5, 13)]) == f"call {BLOT * 4} {BLOT * 3}, now"
    assert blot("a b") == f"{BLOT} {BLOT}"
    assert blot("a b", []) == "a b"


def test_findings_are_blotted_out_of_the_report_and_the_flags(project):
    """`sorry` stands in answers, and is put into an input."""
    with project.params() as params:
        params["report"]["redact"] = ["boilerplate"]
    project.repro()
    flags = pq.read_table(project.path / "data/rounds/r1/flags.parquet").to_pylist()
    assert flags
    assert {flag["text"] for flag in flags} == {BLOT * len("sorry")}
    pages = [path.read_text(encoding="utf-8") for path in project.path.glob("data/report/*.html")]
    assert any(BLOT * 5 in page for page in pages)
    assert not any("sorry" in page.lower() for page in pages)
    assert "hedges" in project.read("data/report/r2.html")


def test_what_is_not_redacted_is_shown(finished_llama):
    assert "sorry" in finished_llama.read("data/report/r1.html").lower()


def test_changing_it_runs_nothing_that_loads_a_model(project):
    with project.params() as params:
        params["report"]["redact"] = ["boilerplate"]
    ran = {stage.partition("@")[0] for stage in project.repro()}
    assert ran <= {"resolve", "detect", "mask", "compare"}
