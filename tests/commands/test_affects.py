"""`tnt affects`: the stages that an edit re-runs, by hand from what reads what."""

from __future__ import annotations

import pytest

EVERY = [
    "base", "prepare_test", "respond_base", "respond@r1", "respond@r2", "compare",
    *(f"{stage}@{r}" for r in ("r1", "r2")
      for stage in ("prepare", "generate", "detect", "rollout", "mask", "train", "evaluate")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("tnt/core/records.py", EVERY),
        ("tnt/base.py", ["base"]),
        ("tnt/training/order.py", ["train@r1", "train@r2"]),
        ("tnt/losses/table.py", ["train@r1", "evaluate@r1", "train@r2", "evaluate@r2"]),
        ("tnt/report/templates/report.css", ["compare"]),
        ("data/lists/hedges.txt", ["compare", "detect@r2", "evaluate@r2"]),
        ("data/prompts/questions/first.jsonl", ["prepare_test", "compare"]),
        ("tnt/commands/affects.py", []),
    ],
)
def test_the_stages_that_read_a_file(finished_llama, file, stages):
    done = finished_llama.tnt("affects", file)
    assert done.returncode == 0, done.stderr
    path, _, found = done.stdout.strip().partition(": ")
    assert path == file
    assert set(found.split(", ")) == set(stages or ["none"])


def test_a_file_that_is_not_there_is_named(finished_llama):
    done = finished_llama.tnt("affects", "tnt/none.py")
    assert done.returncode == 1
    assert done.stderr == (
        "tnt: tnt/none.py is no file of this project. Name one, from the project's root.\n"
    )
