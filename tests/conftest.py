"""Whole DVC projects around tiny models, for the tests that run the pipeline end to end."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forkserver
import pytest
import tiny
from ruamel.yaml import YAML

from tnt.artifacts import sha256_of
from tnt.params import edited

ROOT = Path(__file__).parent.parent
PRELOADED = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.t5.modeling_t5",
    "transformers.models.auto.tokenization_auto",
    "transformers.generation.utils",
    "transformers.modeling_utils",
    "peft",
    "pyarrow.parquet",
    "pydantic",
    "ruamel.yaml",
    "sacrebleu",
    "scipy.stats",
    "rouge_score.rouge_scorer",
    "jinja2",
    "great_expectations",
    "great_expectations.expectations",
    "dvc.cli",
    "dvc.repo",
)
PARAMS = """\
# The tests' project.
runtime: {{threads: 1, device: cpu, autocast: none}}

base:
  source: local       # trained by tests/tiny.py
  name: {name}
  sha256: {sha256}

prompt_sets:
  replies:
    template: "{{input}}"
    chat: true
    shares: {{train: 0.5, validation: 0.15, test: 0.35}}
  summaries:
    template: "{{input}}, in short"
    chat: true
    shares: {{train: 0.5, validation: 0.15, test: 0.35}}
  questions:
    template: "{{input}}?"
    chat: true
    shares: {{train: 0, validation: 0.3, test: 0.7}}

detectors:
  boilerplate: {{kind: phrases, list: data/lists/boilerplate.txt}}
  hedges: {{kind: phrases, list: data/lists/hedges.txt}}

generate:
  max_new_tokens: 14
  batch_size: 32
mask:
  after_negative: end
train:
  epochs: 12
  batch_size: 8
  learning_rate: 1.0e-3
expect:
  max_empty: 0.2
  max_negative_share: 0.9
gate:
  min_drop: 0.5
  min_clean_unchanged: {{replies: 0.5, summaries: 0.5, questions: 0.5}}
  max_ancestor_rise: 0.1

respond:
  max_new_tokens: 14
  batch_size: 32
evaluate:
  prompts: {{replies: [first.jsonl], summaries: [first.jsonl], questions: [first.jsonl]}}
  divergence_prompts: 8
report:
  probe: data/annotations/probe.jsonl

rounds:
  r1:                 # apologies
    parent: base
    detectors: [boilerplate]
    prompts: {{replies: [first.jsonl], summaries: [first.jsonl]}}
  r2:                 # hedging too
    parent: r1
    detectors: [boilerplate, hedges]
    prompts: {{replies: [first.jsonl], summaries: [first.jsonl]}}
"""


@dataclass(frozen=True)
class Project:
    """A git and DVC repository of its own, and what its commands are run with."""

    path: Path
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project."""
        return subprocess.run(
            command, cwd=self.path, env=self.environment, capture_output=True, text=True
        )

    def git(self, *arguments: str) -> str:
        """Run git, which must succeed; return what it prints."""
        return self._succeeds("git", *arguments).stdout.strip()

    def dvc(self, *arguments: str) -> str:
        """Run dvc, which must succeed; return what it prints."""
        return self._succeeds("python", "-m", "dvc", *arguments).stdout

    def tnt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `tnt`, from the project's own copy."""
        return self.run("python", "-c", "from tnt.cli import run; run()", *arguments)

    def command(self, stage: str, name: str = "r1") -> tuple[str, ...]:
        """Return a stage's command for a round on the base, as dvc.yaml has it."""
        definition = YAML(typ="safe").load(self.read("dvc.yaml"))["stages"][stage]
        command = definition.get("do", definition)["cmd"]
        return tuple(command.replace("${key}", name).replace("${item.parent}", "base").split())

    def refusal(self, *command: str) -> str:
        """Run what must fail with one line, progress bars aside; return that line."""
        done = self.run(*command)
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        lines = [line for line in done.stderr.splitlines() if line and "%|" not in line]
        assert len(lines) == 1, done.stderr
        return lines[0]

    def repro(self, *arguments: str) -> set[str]:
        """Run `dvc repro`, which must succeed; return the stages that ran."""
        return set(re.findall(r"Running stage '([^']+)'", self.dvc("repro", *arguments)))

    def read(self, name: str) -> str:
        """Return the text of a file."""
        return (self.path / name).read_text(encoding="utf-8")

    def json(self, name: str) -> Any:
        """Return what a JSON file holds."""
        return json.loads(self.read(name))

    def write(self, name: str, text: str) -> None:
        """Write a file; a link to the cache is replaced, not written through."""
        path = self.path / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text that a file holds once."""
        text = self.read(name)
        assert text.count(old) == 1, f"{name} holds {old!r} {text.count(old)} times"
        self.write(name, text.replace(old, new))

    def params(self) -> contextlib.AbstractContextManager[Any]:
        """Change params.yaml, unchecked."""
        return edited(self.path / "params.yaml", lambda path: None)

    def commit(self) -> None:
        """Commit everything."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "Change")

    def copy(self, path: Path) -> Project:
        """Return a copy of the whole repository, cache and all."""
        subprocess.run(["cp", "-a", self.path, path], check=True)
        return Project(path, self.environment)

    def _succeeds(self, *command: str) -> subprocess.CompletedProcess[str]:
        done = self.run(*command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done


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
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the tiny base models, by kind."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("llama", "t5"):
        tiny.save_base(kind, folder / kind)
    return {kind: folder / kind for kind in ("llama", "t5")}


def lay_out(path: Path, base: Path, environment: dict[str, str]) -> Project:
    """Return a new project whose pipeline never ran."""
    project = Project(path, environment)
    for name in ("tnt", "plugins"):
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, path / name)
    project.write("params.yaml", PARAMS.format(name=base, sha256=sha256_of(base)))
    for seed, prompt_set in enumerate(tiny.TEMPLATES):
        project.write(f"data/prompts/{prompt_set}/first.jsonl", prompt_lines(prompt_set[0], seed))
    project.write("data/lists/boilerplate.txt", "sorry\n")
    project.write("data/lists/hedges.txt", "well, maybe\n")
    project.write("data/annotations/probe.jsonl", "")
    project.write("data/rounds/.gitkeep", "")
    project.git("init", "--quiet")
    project.dvc("init", "--quiet")
    shutil.copy(ROOT / ".dvc/config", path / ".dvc/config")
    return project


def prompt_lines(prefix: str, seed: int, count: int = 40) -> str:
    """Return a prompt file."""
    rows = enumerate(tiny.inputs(count, seed))
    return "".join(json.dumps({"id": f"{prefix}{i:03}", "input": text}) + "\n" for i, text in rows)


@pytest.fixture(scope="session")
def finished_llama(
    tmp_path_factory: pytest.TempPathFactory, bases: dict[str, Path], environment: dict[str, str]
) -> Project:
    """Return a committed project whose two rounds have run; for reading only."""
    return _finished(tmp_path_factory, bases["llama"], environment)


@pytest.fixture(scope="session")
def finished_t5(
    tmp_path_factory: pytest.TempPathFactory, bases: dict[str, Path], environment: dict[str, str]
) -> Project:
    """Return the same with an encoder-decoder model."""
    return _finished(tmp_path_factory, bases["t5"], environment)


def _finished(
    tmp_path_factory: pytest.TempPathFactory, base: Path, environment: dict[str, str]
) -> Project:
    project = lay_out(tmp_path_factory.mktemp(base.name) / "project", base, environment)
    project.repro()
    project.commit()
    return project


@pytest.fixture
def project(finished_llama: Project, tmp_path: Path) -> Project:
    """Return a finished project of the test's own."""
    return finished_llama.copy(tmp_path / "project")


@pytest.fixture(scope="session")
def begun_llama(
    tmp_path_factory: pytest.TempPathFactory, bases: dict[str, Path], environment: dict[str, str]
) -> Project:
    """Return a committed project that has a base and no round; for reading only."""
    project = lay_out(tmp_path_factory.mktemp("begun") / "project", bases["llama"], environment)
    with project.params() as params:
        params["rounds"] = {}
    project.repro()
    project.commit()
    return project


@pytest.fixture(scope="session")
def accepted_llama(finished_llama: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project whose two rounds are accepted; for reading only."""
    project = finished_llama.copy(tmp_path_factory.mktemp("accepted") / "project")
    done = project.tnt("update", "--max-rounds", "2")
    assert done.returncode == 0, done.stderr
    return project


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
    from tnt import check, runs

    def begin(stage: str) -> None:
        if stage == "check":
            with runs.one_line_errors("tnt"):
                check.check()
        _, _, module, *arguments = project.command(stage)
        function = getattr(importlib.import_module(module), module.rpartition(".")[2])
        runs.command(function, arguments)

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
