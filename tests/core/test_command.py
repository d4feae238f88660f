"""Stages as commands: their arguments, and the log of what they took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tnt.core import command, runlog


def stage(one_path: Path, other_path: Path) -> None:
    """Obey no params, like `resolve`."""
    other_path.write_text(one_path.read_text())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    Path("a").write_text("text")


def test_what_a_stage_took_is_logged(monkeypatch):
    command.command(stage, ["a", "b"])
    assert Path("b").read_text() == "text"
    monkeypatch.setenv("DVC_STAGE", "stage@r1")
    command.command(stage, ["a", "b"])
    assert list(runlog.last_runs()) == ["stage", "stage@r1"]
    assert set(runlog.last_runs()["stage"]) == {"stage", "cpu_s", "wall_s", "peak_gib", "ended"}


def test_line_of_the_log_that_a_kill_cut_off_is_skipped():
    assert runlog.last_runs() == {}
    command.command(stage, ["a", "b"])
    with runlog.RUNS_FILE.open("a") as file:
        file.write(
            '{"stage": "stage", "cpu_s\n' + json.dumps({"stage": "later", "cpu_s": 1}) + "\n"
        )
    assert list(runlog.last_runs()) == ["stage", "later"]


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "c"]])
def test_wrong_arguments_are_one_line_and_no_run(arguments):
    with pytest.raises(SystemExit, match=r"^stage: takes the arguments ONE_PATH OTHER_PATH, not "):
        command.command(stage, arguments)
    assert runlog.last_runs() == {}
