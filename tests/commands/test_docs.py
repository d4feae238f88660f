"""`tnt docs` validates what is there and lays it out for a browser."""

from __future__ import annotations


def test_docs_shows_every_artifact(project):
    done = project.tnt("docs")
    assert (done.returncode, done.stdout) == (0, "Open work/docs/index.html.\n"), done.stderr
    shown = {path.name for path in (project.path / "work/docs/validations").iterdir()}
    kinds = (
        "prompts", "completions", "flags", "rollouts", "masks", "training", "metrics",
        "test_completions",
    )  # fmt: skip
    expected = {f"{name}_{kind}" for name in ("r1", "r2") for kind in kinds}
    assert shown == {"test_prompts", "base_test_completions", *expected}
    index = project.read("work/docs/index.html")
    assert all(name in index for name in expected)
    assert "failed" not in index.lower()
