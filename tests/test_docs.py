"""Markdown: its lines are short, and what it names is there."""

from __future__ import annotations

import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import typer
from dvc.cli.parser import get_main_parser
from dvc.utils.hydra import apply_overrides
from markdown_it import MarkdownIt
from markdown_it.token import Token

from flows import serve
from tnt import cli, detectors
from tnt.core.params import load_yaml, merge, parse
from tnt.project import checks
from tnt.project.sections import Project

ROOT = Path(__file__).parent.parent
FOLDERS = ("", "data", "data/annotations", "docs", "plugins")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
PRESENT = [path for path in DOCUMENTS if path.name not in ("CHANGELOG.md", "log.md")]
"""What says how things are now; the others may name what is gone."""
WIDTH = 120
FENCED_YAML = ("fence", "yaml")

every = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
present = pytest.mark.parametrize("path", PRESENT, ids=lambda path: str(path.relative_to(ROOT)))


def tokens(path: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8"))


def inline(path: Path) -> Iterator[Token]:
    for token in tokens(path):
        yield from token.children or []


def code(path: Path) -> set[str]:
    """Return what stands between backticks."""
    return {token.content for token in inline(path) if token.type == "code_inline"}


@every
def test_lines_outside_tables_and_code_are_short(path):
    lines = path.read_text(encoding="utf-8").split("\n")
    free = ("table_open", "fence", "code_block")
    blocks = [token.map for token in tokens(path) if token.type in free]
    exempt = {number for start, end in blocks for number in range(start, end)}
    long = [n + 1 for n, line in enumerate(lines) if len(line) > WIDTH and n not in exempt]
    assert long == []


def test_the_readme_can_be_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 180


@every
def test_links_lead_to_files_that_exist(path):
    links = [str(t.attrs.get("href", t.attrs.get("src", ""))) for t in inline(path)]
    links += re.findall(r'(?:src|srcset)="([^"]+)"', path.read_text(encoding="utf-8"))
    files = [link.partition("#")[0] for link in links if "://" not in link]
    assert [file for file in files if not (path.parent / file).exists()] == []


@present
def test_paths_of_code_exist(path):
    text = path.read_text(encoding="utf-8")
    files = set(re.findall(r"\b(?:tnt|tests|flows|benchmarks)/[\w/.]*\.py\b", text))
    assert [file for file in sorted(files) if not (ROOT / file).is_file()] == []


@present
def test_names_of_code_exist(path):
    for dotted in code(path):
        if re.fullmatch(r"(?:tnt|flows)(?:\.\w+)+", dotted):
            pkgutil.resolve_name(dotted)


@present
def test_params_that_are_named_exist(path):
    sections = {name: kind for name, kind in get_type_hints(Project).items() if is_dataclass(kind)}
    for name in code(path):
        found = re.match(r"(\w+)\.(\w+)(?!\.?\w)", name)
        if found and found[1] in sections and found[2] != "json":
            assert found[2] in {field.name for field in fields(sections[found[1]])}, name


def yaml_examples(path: Path) -> list[str]:
    """Return what is YAML in a document: blocks, and what stands between backticks like `a: b`."""
    blocks = [token.content for token in tokens(path) if (token.type, token.info) == FENCED_YAML]
    lines = [text for text in code(path) if re.match(r"\{?[\w.]+: ", text) and ";" not in text]
    return [text.replace("<40-digit commit>", "a" * 40) for text in [*blocks, *lines]]


@present
def test_yaml_that_is_shown_is_read_and_fits(path, tmp_path, monkeypatch):
    """By DVC's reader; sections fit the default project, detectors their kind."""
    write_plugin(tmp_path / "plugins/shouting.py", monkeypatch)
    project = load_yaml(ROOT / "params.yaml")
    for number, text in enumerate(yaml_examples(path)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text, encoding="utf-8")
        example = load_yaml(file)
        for name, value in example.items():
            if isinstance(value, dict) and "kind" in value:
                detectors.parse(name, value)
            nested = {name.partition(".")[2]: value} if "." in name else value
            if (section := name.partition(".")[0]) in get_type_hints(Project) and nested:
                parse(merge(project, {section: nested}), Project, where=text)
        for name, config in (example.get("detectors") or {}).items():
            detectors.parse(name, config)


def command_lines(path: Path) -> list[list[str]]:
    """Return the commands of a document's blocks of commands, without comments."""
    blocks = [token.content for token in tokens(path) if (token.type, token.info) == ("fence", "")]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [
        shlex.split(line, comments=True)
        for line in lines
        if re.match(r"(tnt|dvc|make) [\w-]", line)
    ]


@present
def test_commands_that_are_shown_are_accepted(path):
    for program, *words in command_lines(path):
        if program == "dvc":
            get_main_parser().parse_args(words)
        elif program == "make":
            assert f"\n{words[0]}: " in (ROOT / "Makefile").read_text(encoding="utf-8")
        else:
            group, found = typer.main.get_command(cli.app), words
            while hasattr(group, "commands"):
                group, found = group.commands[found[0]], found[1:]
            group.make_context(program, found)


@present
def test_variants_that_are_shown_are_valid(path, tmp_path, monkeypatch):
    """As `dvc exp run` makes them of the default project."""
    monkeypatch.chdir(ROOT)
    for words in command_lines(path):
        if words[:3] == ["dvc", "exp", "run"]:
            shutil.copy("params.yaml", tmp_path)
            apply_overrides(tmp_path / "params.yaml", words[words.index("-S") + 1 :][:1])
            assert checks.load(tmp_path / "params.yaml") != checks.load()


def test_programs_that_are_shown_are_found_in_a_clean_shell():
    """Once `.venv` is active, as the README says before it names one."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (active,) = (n for n, line in enumerate(lines) if line.startswith(". .venv/bin/activate"))
    assert active < min(n for n, line in enumerate(lines) if re.match("(tnt|dvc) ", line))
    found = "; ".join(f"command -v {name}" for name in ("tnt", "dvc", "prefect", "python"))
    script = f". {sys.prefix}/bin/activate && {found}"
    shell = subprocess.run(
        ["sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert [Path(line).parent for line in shell.stdout.split()] == [Path(sys.prefix) / "bin"] * 4


def test_prefect_asks_the_server_that_is_served_and_starts_none():
    code = (
        "from prefect.settings import get_current_settings as s; "
        "print(s().api.url, s().server.ephemeral.enabled, s().server.analytics_enabled)"
    )
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    asked = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True
    )
    assert asked.stdout.split() == [serve.API, "False", "False"]


def write_plugin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the plugin of docs/detectors.md, where Python finds it."""
    (example,) = (
        token.content
        for token in tokens(ROOT / "docs/detectors.md")
        if token.type == "fence" and token.info == "python"
    )
    path.parent.mkdir()
    path.write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(path.parent.parent)


def test_the_plugin_of_the_docs_is_a_detector(tmp_path, monkeypatch):
    write_plugin(tmp_path / "plugins/shouting.py", monkeypatch)
    (named,) = (text for text in yaml_examples(ROOT / "docs/detectors.md") if "loud:" in text)
    (tmp_path / "params.yaml").write_text(named, encoding="utf-8")
    detect = detectors.build("loud", load_yaml(tmp_path / "params.yaml")["detectors"]["loud"])
    text = "Well. GO AWAY NOW! Please."
    assert [text[s.start : s.end] for s in detect(text, "")] == ["GO AWAY NOW! "]
