"""Killed runs of the flow are recovered from; and the benchmark that says so can tell."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from projects import ROOT, Project

CHAOS = ROOT / "benchmarks/chaos.py"
METRICS = "data/evaluations/r1/metrics.json"


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chaos", CHAOS)
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def cached(project, path):
    """Return the objects in DVC's cache that dvc.lock names as an out: of a folder, its list."""
    lock = project.read("dvc.lock").split(f"path: {path}\n", 1)[1]
    md5 = lock.split("md5: ", 2)[1].split()[0]
    return project.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def overwrite(path, content):
    """Replace a file, not what a hard link to it shows."""
    path.unlink()
    path.write_bytes(content)


def half_write(project):
    path = cached(project, "data/rounds/r1/flags.parquet")
    overwrite(path, path.read_bytes()[:-9])


def lose(project):
    cached(project, "data/rounds/r1/flags.parquet").unlink()


def lose_a_part(project):
    part = json.loads(cached(project, "data/models/r1").read_bytes())[0]["md5"]
    (project.path / ".dvc/cache/files/md5" / part[:2] / part[2:]).unlink()


def cut_object(project):
    commit = project.git("rev-parse", "HEAD^{tree}")
    path = project.path / ".git/objects" / commit[:2] / commit[2:]
    overwrite(path, path.read_bytes()[:-9])


def cut_metrics(project):
    project.write(METRICS, project.read(METRICS)[:-9])
    project.git("commit", "--quiet", "--all", "--message", "Accept round r1")


def tag_rejected(project):
    metrics = project.json(METRICS)
    metrics["gate"]["passed"] = False
    project.write(METRICS, json.dumps(metrics))
    project.git("commit", "--quiet", "--all", "--message", "Accept round r1")
    project.git("tag", "round/r1")


DAMAGES = {
    "half an object in DVC's cache": (half_write, "is half-written"),
    "an object missing": (lose, "data/rounds/r1/flags.parquet is not in the cache"),
    "a folder's object missing": (lose_a_part, "which is not there"),
    "half an object in git": (cut_object, "git fsck: "),
    "half a file committed": (cut_metrics, "HEAD: "),
    "a rejected round tagged": (tag_rejected, "round/r1 is tagged and failed its gate"),
    "another commit": (lambda project: project.git("commit", "--allow-empty", "-m", "x"), "['x']"),
}


def test_a_whole_project_has_no_faults(chaos, project: Project):
    assert [*chaos.faults(project, "HEAD")] == []


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_a_fault(chaos, project: Project, damage, said):
    start = project.git("rev-parse", "HEAD")
    damage(project)
    assert any(said in fault for fault in chaos.faults(project, start))


def test_nothing_differs_from_itself(chaos, project: Project):
    assert [*chaos.differences(project, chaos.left(project))] == []


@pytest.mark.parametrize("name", ["dvc.lock", "params.yaml", "data/metrics.json"])
def test_a_byte_more_is_a_difference(chaos, project: Project, name):
    left = chaos.left(project)
    project.write(name, project.read(name) + "\n")
    project.git("commit", "--quiet", "--all", "--message", "Change")
    assert f"{name} differs from the undisturbed run's" in chaos.differences(project, left)


@pytest.mark.slow
def test_a_killed_run_ends_whole_and_the_next_recovers(tmp_path: Path):
    """One kill; docs/robustness.md has twenty."""
    report = tmp_path / "report.json"
    command = [sys.executable, str(CHAOS), "--kills", "1", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [kill] = json.loads(report.read_text(encoding="utf-8"))["kills"]
    assert kill["faults"] == []
