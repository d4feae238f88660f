"""Whole projects around tiny models: what the end-to-end tests are run in."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
from ruamel.yaml import YAML

from tnt.core.hashes import sha256_of
from tnt.core.params import edited

ROOT = Path(__file__).parent.parent
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
  {{span_tokens: all, after_negative: end}}
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
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", "--reflink=auto", self.path, path], check=True)
        return Project(path, self.environment)

    def _succeeds(self, *command: str) -> subprocess.CompletedProcess[str]:
        done = self.run(*command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done


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
    project.write("data/patches/README.md", "")
    project.write("data/rounds/.gitkeep", "")
    project.git("init", "--quiet")
    project.dvc("init", "--quiet")
    shutil.copy(ROOT / ".dvc/config", path / ".dvc/config")
    return project


def prompt_lines(prefix: str, seed: int, count: int = 40) -> str:
    """Return a prompt file."""
    rows = enumerate(tiny.inputs(count, seed))
    return "".join(json.dumps({"id": f"{prefix}{i:03}", "input": text}) + "\n" for i, text in rows)
