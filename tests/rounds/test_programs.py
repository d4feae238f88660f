import signal
import subprocess
import sys
import threading

import psutil
import pytest

from tnt.rounds import programs

PYTHON = sys.executable


class Interruption(BaseException):
    """Like Prefect's TerminationSignal."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    for key, value in (("user.name", "T"), ("user.email", "t@example.org")):
        subprocess.run(["git", "config", key, value], check=True)
    return tmp_path


def test_a_failure_is_the_last_line(here):
    with pytest.raises(ValueError, match=r"^`git show HEAD:x` failed: fatal: "):
        programs.output("git", "show", "HEAD:x")


def test_a_missing_program_is_named(here, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"^git is not installed\. Install it\.$"):
        programs.output("git", "status")


def test_dvc_runs_in_its_repository_only(here):
    with pytest.raises(ValueError, match=r"is no DVC repository\. Run this in the project's"):
        programs.output("dvc", "status")


def test_an_interrupted_git_leaves_no_lock(here):
    hook = here / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\nsleep 30\n", encoding="utf-8")
    hook.chmod(0o755)
    (here / "a").touch()
    programs.output("git", "add", "a")

    def interrupt(number, frame):
        raise Interruption

    monkey = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(Interruption):
            programs.output("git", "commit", "-m", "a", "--", "a")
    finally:
        signal.signal(signal.SIGALRM, monkey)
    assert not (here / ".git/index.lock").exists()


def test_a_half_written_lock_of_dvc_is_dropped(begun):
    begun.write(".dvc/tmp/rwlock", '{"write": {"data/mod')
    assert programs.output("dvc", "status") == "Data and pipelines are up to date."


def test_every_line_is_logged_and_the_stages_own_error_is_told(begun):
    begun.edit("dvc.yaml", "python -m tnt.stages.base", "python -m tnt.stages.base too many")
    lines = []
    with pytest.raises(ValueError, match=r"^failed to reproduce 'base': .*\. base: takes the arg"):
        programs.reproduce("base", log=lines.append)
    assert "Running stage 'base':" in lines


def test_an_interruption_ends_dvc_and_its_stage(begun, monkeypatch):
    monkeypatch.setattr(sys, "executable", PYTHON)  # processes of its own, not forked ones
    with begun.path.joinpath("dvc.yaml").open("a", encoding="utf-8") as file:
        file.write("  slow:\n    cmd: echo ready && sleep 60\n    always_changed: true\n")

    def interrupt(line):
        if line == "ready":
            raise Interruption

    before = threading.active_count()
    with pytest.raises(Interruption):
        programs.reproduce("slow", log=interrupt)
    here = str(begun.path)
    running = [p for p in psutil.process_iter(["cwd", "cmdline"]) if p.info["cwd"] == here]
    assert [p.info["cmdline"] for p in running if "sleep" in (p.info["cmdline"] or [])] == []
    assert threading.active_count() == before


@pytest.mark.parametrize("there", [True, False])
def test_stages_find_this_python(monkeypatch, there):
    own = str(programs.Path(sys.executable).parent)
    monkeypatch.setenv("PATH", f"/first:{own}" if there else "/first")
    path = programs._environment()["PATH"]
    assert path == (f"/first:{own}" if there else f"{own}:/first")
