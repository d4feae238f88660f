"""The command line: one module per command, and a start that loads only what is needed."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from projects import ROOT, lay_out

from tnt import cli, commands

HEAVY = (
    "altair", "datasets", "dvc", "great_expectations", "pandas", "peft", "prefect", "pyarrow",
    "sacrebleu", "scipy", "spacy", "torch", "transformers",
)  # fmt: skip
LIGHT = (("--help",), ("log",), ("rounds", "list"), ("check",))
CPU_S, TRIES = 0.7, 3
RUN = """
from tnt.cli import run
try:
    run()
except SystemExit as end:
    assert not end.code, end.code
"""
MODULES = (
    "tnt.base", "tnt.cli", "tnt.core.artifacts", "tnt.core.validation", "tnt.detectors.classifier",
    "tnt.detectors.running", "tnt.evaluation.metrics", "tnt.evaluation.params", "tnt.losses.params",
    "tnt.masks.params", "tnt.models", "tnt.project.checks", "tnt.project.resolved", "tnt.sampling",
    "tnt.stages.detect", "tnt.stages.prepare", "tnt.stages.resolve", "tnt.training.params",
)  # fmt: skip


def fresh(code, *arguments, cwd=ROOT, env=None):
    """Run code in an interpreter that has loaded nothing; return the heavy packages it loads."""
    code = f"import sys\n{code}\nprint(*{{*{HEAVY}}} & {{*sys.modules}}, sep=', ', file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.strip()


@pytest.fixture(scope="module")
def unmade(tmp_path_factory):
    """Return a committed project whose pipeline never ran; its Python is not the fork server."""
    folder = tmp_path_factory.mktemp("unmade")
    (folder / "base").mkdir()
    (folder / "base/weights").write_text("none")
    environment = {
        **os.environ,
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
        "GIT_AUTHOR_NAME": "Test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "Test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    project = lay_out(folder / "project", folder / "base", environment)
    checked = project.tnt("check")  # before there is a commit
    assert checked.returncode == 0, checked.stderr
    project.commit()
    return project


def test_each_module_is_a_command_and_each_command_a_module():
    modules = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    assert {*typer.main.get_command(cli.app).commands} == modules


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(commands.__path__)])
def test_a_module_has_a_command_or_a_group(name):
    module = importlib.import_module(f"tnt.commands.{name}")
    assert callable(getattr(module, "command", None)) != isinstance(
        getattr(module, "app", None), typer.Typer
    )


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_what_reads_only_params_and_git_loads_nothing_heavy(unmade, arguments):
    assert fresh(RUN, *arguments, cwd=unmade.path, env=unmade.environment) == ""


@pytest.mark.parametrize("module", MODULES)
def test_a_module_loads_nothing_heavy(module):
    assert fresh(f"import {module}") == ""


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_a_command_starts_at_once(unmade, arguments):
    """CPU time, children included; the best of some, since others may use the machine."""
    command = [sys.executable, "-c", "from tnt.cli import run; run()", *arguments]
    used = []
    while len(used) < TRIES and min(used, default=CPU_S) >= CPU_S:
        process = subprocess.Popen(
            command, cwd=unmade.path, env=unmade.environment, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        used.append(usage.ru_utime + usage.ru_stime)
    assert min(used) < CPU_S
