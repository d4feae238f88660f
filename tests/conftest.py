"""Projects whose pipeline has run, once a test run; and copies for tests that change one."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forkserver
import pytest
import tiny
from projects import Project, lay_out

from tnt.core import locks

MadeOnce = Callable[[str, Callable[[Path], object]], Path]
RunOnce = Callable[[str, Callable[[Path], object]], Project]
PRELOADED = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.t5.modeling_t5",
    "transformers.models.auto.tokenization_auto",
    "transformers.generation.utils",
    "transformers.modeling_utils",
    "transformers.trainer",
    "datasets",
    "peft",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "pydantic.dataclasses",
    "pydantic.type_adapter",
    "ruamel.yaml",
    "sacrebleu.tokenizers.tokenizer_13a",
    "scipy.stats",
    "rouge_score.rouge_scorer",
    "jinja2",
    "altair",
    "vl_convert",
    "typer",
    "great_expectations",
    "great_expectations.expectations",
    "dvc.cachemgr",
    "dvc.cli.parser",
    "dvc.data_cloud",
    "dvc.repo.artifacts",
    "dvc.repo.datasets",
    "dvc.repo.graph",
    "dvc.repo.index",
    "dvc.repo.metrics",
    "dvc.repo.params",
    "dvc.repo.plots",
    "dvc.repo.reproduce",
    "dvc.repo.stage",
    "dvc.repo.status",
    "dvc.repo.trie",
    "dvc.rwlock",
    "dvc.scm",
    "dvc.utils.strictyaml",
    "dvc_data.hashfile.db.local",
    "dvc_data.hashfile.status",
    "dulwich.ignore",
    "dulwich.worktree",
    "networkx",
    "pygit2",
    "rich.console",
    "scmrepo.git",
)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return environment variables with which `python` is the fork server's client."""
    folder = tmp_path_factory.mktemp("environment")
    client = folder / "bin" / "python"
    client.parent.mkdir()
    source = Path(forkserver.__file__).read_text(encoding="utf-8")
    client.write_text(f"#!{sys.executable} -SEs\n{source}", encoding="utf-8")
    client.chmod(0o755)
    settings = {
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
        "FORKSERVER": str(folder / "socket"),
        "GIT_AUTHOR_NAME": "Test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "Test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": os.pathsep.join([str(client.parent), os.environ["PATH"]]),
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment = {**os.environ, **settings}
    command = [sys.executable, forkserver.__file__, settings["FORKSERVER"], *PRELOADED]
    with subprocess.Popen(command, env=environment) as server:
        while not Path(settings["FORKSERVER"]).exists():
            assert server.poll() is None, "the fork server ended"
            time.sleep(0.05)
        yield environment
        server.kill()


@pytest.fixture(scope="session")
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Return a function that makes a folder once a test run, for all workers; for reading only."""
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # each of xdist's workers has a folder in that one
        shared = shared.parent

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path, ready = shared / "made" / name, shared / "made" / f"{name}.ready"
        with locks.held(shared / "made" / f"{name}.lock", doing=f"making {name}", wait_s=3600):
            if not ready.exists():
                shutil.rmtree(path, ignore_errors=True)  # of a worker that failed
                make(path)
                ready.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def bases(made_once: MadeOnce) -> dict[str, Path]:
    """Return the folders of the tiny base models, by kind."""
    return {
        kind: made_once(f"bases/{kind}", functools.partial(tiny.save_base, kind))
        for kind in ("llama", "t5")
    }


@pytest.fixture(scope="session")
def run_once(
    made_once: MadeOnce,
    tmp_path_factory: pytest.TempPathFactory,
    environment: dict[str, str],
) -> RunOnce:
    """Return a function that gives this worker its copy of a project that was made once."""

    def copy(name: str, make: Callable[[Path], object]) -> Project:
        made = Project(made_once(f"projects/{name}", make), environment)
        return made.copy(tmp_path_factory.mktemp(name) / "project")

    return copy


@pytest.fixture(scope="session")
def finished_llama(
    run_once: RunOnce,
    bases: dict[str, Path],
    environment: dict[str, str],
) -> Project:
    """Return a committed project whose two rounds have run; for reading only."""
    return run_once("finished_llama", lambda path: _finish(path, bases["llama"], environment))


@pytest.fixture(scope="session")
def finished_t5(
    run_once: RunOnce,
    bases: dict[str, Path],
    environment: dict[str, str],
) -> Project:
    """Return the same with an encoder-decoder model."""
    return run_once("finished_t5", lambda path: _finish(path, bases["t5"], environment))


def _finish(path: Path, base: Path, environment: dict[str, str]) -> None:
    project = lay_out(path, base, environment)
    project.repro()
    project.commit()


@pytest.fixture
def project(finished_llama: Project, tmp_path: Path) -> Project:
    """Return a finished project of the test's own."""
    return finished_llama.copy(tmp_path / "project")


@pytest.fixture(scope="session")
def begun_llama(
    run_once: RunOnce,
    bases: dict[str, Path],
    environment: dict[str, str],
) -> Project:
    """Return a committed project that has a base and no round; for reading only."""

    def make(path: Path) -> None:
        project = lay_out(path, bases["llama"], environment)
        with project.params() as params:
            params["rounds"] = {}
        project.repro()
        project.commit()

    return run_once("begun_llama", make)


@pytest.fixture(scope="session")
def accepted_llama(run_once: RunOnce, finished_llama: Project) -> Project:
    """Return a project whose two rounds are accepted; for reading only."""

    def make(path: Path) -> None:
        done = finished_llama.copy(path).tnt("update", "--max-rounds", "2")
        assert done.returncode == 0, done.stderr

    return run_once("accepted_llama", make)


@pytest.fixture
def begun(begun_llama: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project of the test's own that has a base and no round, and go there."""
    return _entered(begun_llama.copy(tmp_path / "project"), monkeypatch)


@pytest.fixture
def accepted(accepted_llama: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project of the test's own whose two rounds are accepted, and go there."""
    return _entered(accepted_llama.copy(tmp_path / "project"), monkeypatch)


def _entered(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(project.path)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    python = shutil.which("python", path=project.environment["PATH"])
    monkeypatch.setattr(sys, "executable", python)  # with which tnt runs dvc
    return project


@pytest.fixture
def refused(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Return a function that runs a stage or `check`, here, where it must fail with one line."""
    from tnt.commands import check
    from tnt.core import command, errors

    def begin(stage: str) -> None:
        if stage == "check":
            with errors.one_line_errors("tnt"):
                check.check()
        _, _, module, *arguments = project.command(stage)
        function = getattr(importlib.import_module(module), module.rpartition(".")[2])
        command.command(function, arguments)

    def run(stage: str) -> str:
        monkeypatch.chdir(project.path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            begin(stage)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "Traceback" not in printed.err
        line = str(ended.value)  # what Python prints before it exits with status 1
        assert len(line.splitlines()) == 1
        return line

    return run
