"""New prompts come in whole, once, in a commit of their own; or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from projects import PARAMS, Project, prompt_lines
from ruamel.yaml import YAML
from transformers import LlamaConfig

from flows.network import is_temporary
from tnt import prompts
from tnt.commands import ingest as ingests
from tnt.commands.ingest import SourceFile, fetch, ingest, parse
from tnt.core import addresses, hashes
from tnt.core.hashes import sha256_of
from tnt.prompts import RawPrompt
from tnt.rounds import programs

DAY = "2026-11-24"
NEW = Path(f"data/prompts/replies/{DAY}.jsonl")
ROWS = [
    {"id": "007", "input": "Kalo mesi", "reference": "yes"},
    {"id": "n2", "input": 'Two\nlines, "quoted"; é 😀\u2028.'},
]
EXPECTED = [RawPrompt("007", "Kalo mesi", "yes"), RawPrompt("n2", ROWS[1]["input"])]


def json_lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def comma_separated(*rows, line_end="\r\n"):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), restval="", lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def parquet(*rows):
    sink = io.BytesIO()
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), sink)
    return sink.getvalue()


def rows_of(name, content):
    return list(parse([SourceFile(name, content)]).rows.values())


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    """Return a project that was never reproduced, so that no dvc.lock is there; to be copied."""
    path = tmp_path_factory.mktemp("laid_out")
    identity = {f"GIT_{who}_{what}": "t@example.org" for who in WHO for what in ("NAME", "EMAIL")}
    project = Project(path, {**os.environ, **identity})
    (path / ".dvc").mkdir()
    project.write(".gitignore", "/.dvc/tmp\n/data/models\n")
    project.write("base/config.json", "{}")
    project.write("params.yaml", PARAMS.format(name="base", sha256=sha256_of(path / "base")))
    for seed, name in enumerate(tiny.TEMPLATES):
        project.write(f"data/prompts/{name}/first.jsonl", prompt_lines(name[0], seed))
    for name in ("boilerplate.txt", "hedges.txt"):
        project.write(f"data/lists/{name}", "sorry\n")
    project.write("data/annotations/probe.jsonl", "")
    project.git("init", "--quiet")
    project.commit()
    return project


WHO = ("AUTHOR", "COMMITTER")


@pytest.fixture
def here(laid_out, tmp_path, monkeypatch):
    """Go to such a project, on a day that stays the same."""
    return enter(laid_out.copy(tmp_path / "project"), monkeypatch)


def enter(project, monkeypatch):
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project.path)
    monkeypatch.setattr(ingests, "today", lambda: DAY)
    return project


@pytest.fixture
def memory():
    """Return a file system in memory, empty."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def state(project):
    """Return all that an ingest could change, but for run logs: files, index, commits."""
    files = {
        str(path): path.read_bytes()
        for path in project.path.rglob("*")
        if path.is_file() and not {".git", ".dvc", "work", "__pycache__"} & {*path.parts}
    }
    return files | {"git": project.git("status", "--porcelain=v2", "--branch", "-uall")}


def refusal(project, source, prompt_set="replies"):
    """Return what ingest says when it refuses, having changed nothing."""
    before = state(project)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the callers match the message
        ingest(str(source), prompt_set)
    assert state(project) == before
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def source_file(project, name, content):
    path = project.path.parent / "source" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


CONTENTS = {
    "a.jsonl": json_lines(*ROWS),
    "a.ndjson": json_lines(*ROWS).replace(b"\n", b"\r\n"),
    "a.JSONL": b"\xef\xbb\xbf" + json_lines(*ROWS) + b"\n  \n",
    "b.jsonl": json_lines(*ROWS).replace(b"\n", b"\r"),
    "a.csv": comma_separated(*ROWS),
    "b.csv": b"\xef\xbb\xbf" + comma_separated(*ROWS, line_end="\n") + b"\n",
    "a.parquet": parquet(*ROWS),
    "a.jsonl.gz": gzip.compress(json_lines(*ROWS)),
    "a.csv.gz": gzip.compress(comma_separated(*ROWS)),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("address", ["{}", "file://{}", "memory://in/{}"])
def test_every_format_gives_the_same_prompts(name, address, tmp_path, memory):
    if address.startswith("memory"):
        memory.pipe(f"/in/{name}", CONTENTS[name])
    else:
        (tmp_path / name).write_bytes(CONTENTS[name])
        name = str(tmp_path / name)
    assert list(parse(fetch(address.format(name))).rows.values()) == EXPECTED


def test_the_new_file_holds_the_prompts(here):
    source = source_file(here, "a.csv", CONTENTS["a.csv"])
    done = ingest(str(source), "replies")
    assert done == ingests.Ingested(NEW, read=2, added=2, known=0, repeated=0, ignored=())
    assert prompts.read_file(NEW) == EXPECTED
    assert source.read_bytes() == CONTENTS["a.csv"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("in", ["A", "B", "C"]),
        ("in/*.jsonl", ["A"]),
        ("in/**/*.csv", ["B", "C"]),
        ("in/deep/b.csv", ["B"]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "memory://"])
def test_folders_and_globs_are_read_in_order(
    prefix, source, expected, tmp_path, memory, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    files = {
        "in/c.csv": comma_separated({"input": "C"}),
        "in/a.jsonl": json_lines({"input": "A"}),
        "in/deep/b.csv": comma_separated({"input": "B"}),
        "in/notes.txt": b"no prompts",
    }
    for name, content in files.items():
        memory.pipe(f"/{name}", content)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    table = parse(fetch(prefix + source))
    assert sorted(row.input for row in table.rows.values()) == expected
    assert list(table.rows) == sorted(table.rows)


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path):
    (tmp_path / "a[1].jsonl").write_bytes(json_lines({"input": "x"}))
    assert [row.input for row in parse(fetch(str(tmp_path / "a[1].jsonl"))).rows.values()] == ["x"]


def test_ids_are_made_from_the_normalised_input():
    [short, long] = [rows_of("a.csv", f"input\n{text}\n".encode()) for text in ("a b", "A  B ")]
    assert short[0].id == long[0].id
    assert len(short[0].id) == 12
    assert set(short[0].id) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([7, 8]), ["7", "8"]),
        (pa.array([7.0, 8.0]), ["7", "8"]),
        (pa.array(["007", "8"]).dictionary_encode(), ["007", "8"]),
    ],
    ids=["integer", "float", "category"],
)
def test_parquet_ids_become_strings(ids, expected):
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ids, "input": ["a", "b"]}), sink)
    assert [row.id for row in rows_of("a.parquet", sink.getvalue())] == expected


def test_a_table_that_pandas_wrote_is_read():
    sink = io.BytesIO()
    frame = pd.DataFrame({"id": [1, None], "input": ["a", "b"], "reference": ["r", None]})
    frame.to_parquet(sink)
    first, second = rows_of("a.parquet", sink.getvalue())
    assert (first.id, first.reference) == ("1", "r")
    assert second == rows_of("a.jsonl", json_lines({"input": "b"}))[0]


@pytest.mark.parametrize("encode", [json_lines, comma_separated, parquet])
def test_other_columns_are_ignored_and_named(encode):
    name = {json_lines: "a.jsonl", comma_separated: "a.csv", parquet: "a.parquet"}[encode]
    table = parse([SourceFile(name, encode({"split": "x", "input": "a", "label": "y"}))])
    assert table.ignored == ("split", "label")
    assert [row.input for row in table.rows.values()] == ["a"]


ALPACA = [
    {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"},
    {"instruction": "Greet somebody.", "input": "", "output": "Hello"},
]
ENCODED = {"a.jsonl": json_lines, "a.csv": comma_separated, "a.parquet": parquet}


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("part", ["instruction", "System", " question "])
def test_columns_that_may_belong_to_the_prompt_are_not_left_out_unasked(name, part):
    row = {part: "Translate.", "input": "Guten Tag", "output": "Good day"}
    file = SourceFile(name, ENCODED[name](row))
    with pytest.raises(
        ValueError, match=rf"a\.\w+, (line|row) \d has \['{part}'\] beside 'input'"
    ) as e:
        parse([file])
    assert f"`--columns {part},input` joins them, `--columns input` leaves them out." in str(
        e.value
    )
    assert parse([file], ["input"]).ignored == (part, "output")


@pytest.mark.parametrize("name", ENCODED)
def test_columns_that_are_named_make_up_the_input(name):
    file = SourceFile(name, ENCODED[name](*ALPACA))
    table = parse([file], ["instruction", "input"])
    assert [r.input for r in table.rows.values()] == ["Translate.\n\nGuten Tag", "Greet somebody."]
    assert table.ignored == ("output",)
    swapped = parse([file], ["input", "instruction"])
    assert next(iter(swapped.rows.values())).input == "Guten Tag\n\nTranslate."
    with pytest.raises(ValueError, match=r"has no 'inptu', only .* with `--columns`"):
        parse([file], ["inptu"])


def test_a_column_that_is_named_and_no_text_is_refused():
    file = SourceFile("a.jsonl", json_lines({"system": "Be kind.", "messages": [{"a": "b"}]}))
    with pytest.raises(ValueError, match=r"line 1: 'input' is \[{'a': 'b'}\]. It must be a t"):
        parse([file], ["system", "messages"])


def test_a_column_that_is_named_twice_is_refused():
    with pytest.raises(ValueError, match="has the column 'task' twice"):
        parse([SourceFile("a.csv", b"task,task\nx,y\n")], ["task"])


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(texts, st.none() | texts), min_size=1), st.booleans())
def test_any_table_of_texts_is_the_same_in_every_format(table, with_ids):
    rows = [{"input": text, "reference": reference} for text, reference in table]
    if with_ids:
        rows = [{"id": f"{i:03}", **row} for i, row in enumerate(rows)]
    first, *others = [
        parse([SourceFile(f"a.{suffix}", encode(*rows))])
        for suffix, encode in (
            ("csv", comma_separated), ("parquet", parquet), ("jsonl", json_lines)
        )
    ]  # fmt: skip
    for other in others:
        assert list(other.rows.values()) == list(first.rows.values())
        assert other.repeated == first.repeated
    assert {row.input for row in first.rows.values()} <= {text for text, _ in table}
    assert len(first.rows) == len({hashes.normalised(text) for text, _ in table})


def test_what_is_known_or_repeated_is_left_out(here):
    [known] = prompts.read_file(Path("data/prompts/summaries/first.jsonl"))[:1]
    rows = [
        {"id": "1", "input": f" {known.input.upper()} "},
        {"id": "2", "input": "Kalo mesi"},
        {"id": "3", "input": "kalo  MESI"},
        {"id": "2", "input": "KALO mesi"},
        {"id": "4", "input": "Silo"},
    ]
    done = ingest(str(source_file(here, "a.jsonl", json_lines(*rows))), "replies")
    assert (done.read, done.added, done.known, done.repeated) == (5, 2, 1, 2)
    assert [row.id for row in prompts.read_file(NEW)] == ["2", "4"]


def test_nothing_new_is_no_file_and_no_commit(here):
    source = source_file(here, "a.jsonl", json_lines(*ROWS))
    ingest(str(source), "replies")
    before = state(here)
    done = ingest(str(source), "summaries")
    assert (done.path, done.added, done.known) == (None, 0, 2)
    assert state(here) == before
    assert "none new" in ingests.sentence(done)


def test_files_of_the_same_day_are_counted(here):
    for number, name in enumerate([f"{DAY}.jsonl", f"{DAY}-2.jsonl", f"{DAY}-3.jsonl"]):
        source = source_file(here, "a.jsonl", json_lines({"input": f"number {number}"}))
        assert ingest(str(source), "replies").path == NEW.with_name(name)


@pytest.mark.parametrize("zone", ["Etc/GMT-14", "Etc/GMT+12"])  # one has another date, always
def test_the_day_is_that_of_greenwich(zone, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        before, found, after = gmt_date(), ingests.today(), gmt_date()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found in (before, after)  # midnight may have passed


def gmt_date():
    return time.strftime("%Y-%m-%d", time.gmtime())


def test_the_commit_holds_the_new_file_and_nothing_of_the_users(here):
    here.write("staged.txt", "staged\n")
    here.git("add", "staged.txt")
    here.write("loose.txt", "loose\n")
    here.edit("params.yaml", "# The tests' project.", "# Changed.")
    before = here.git("status", "--porcelain")
    source = source_file(here, "a.jsonl", json_lines(*ROWS))
    ingest(str(source), "replies", run="nightly\nRun: forged")
    assert here.git("show", "--name-status", "--format=", "HEAD") == f"A\t{NEW}"
    assert here.git("status", "--porcelain") == before
    assert here.git("log", "-1", "--format=%s") == "Ingest 2 prompts into replies"
    assert str(source) in here.git("log", "-1", "--format=%b")
    trailers = here.git("log", "-1", "--format=%(trailers:only,unfold)").splitlines()
    assert trailers == [f"Ingested: {NEW}", "Run: nightly Run: forged"]


def test_what_an_address_holds_of_secrets_is_not_committed(here, memory):
    memory.pipe("/in/a.jsonl", json_lines(*ROWS))
    ingest("memory://user:secret@/in/a.jsonl", "replies", files=fetch("memory://in/a.jsonl"))
    assert "secret" not in here.git("log", "-1", "--format=%B")
    assert "From memory:///.../a.jsonl\n" in here.git("log", "-1", "--format=%B")
    assert addresses.shown("https://u:p@x.org/a.csv?token=t") == "https://x.org/a.csv"
    assert addresses.shown("in/a?.csv") == "in/a?.csv"
    assert addresses.shown("s3://in/a.csv?sig=SECRET") == "s3://in/a.csv"


def test_files_of_one_name_in_several_folders_are_told_apart(memory):
    for folder in "ab":
        memory.pipe(f"/in/{folder}/x.jsonl", json_lines({"input": folder}))
    files = fetch("memory://in")
    assert [file.name for file in files] == ["memory:///.../a/x.jsonl", "memory:///.../b/x.jsonl"]
    assert [row.input for row in parse(files).rows.values()] == ["a", "b"]


def test_an_error_that_repeats_a_password_is_not_told(monkeypatch):
    def refuse(system, paths):
        raise ValueError("Host 'ssw0rd@host' cannot contain '@'")

    monkeypatch.setattr(ingests, "_paths", refuse)
    with pytest.raises(ValueError, match=r"memory://host/f.jsonl cannot be read: ValueError\."):
        fetch("memory://alice:p@ssw0rd@host/f.jsonl")


def test_what_an_address_holds_of_secrets_is_not_in_its_error(monkeypatch):
    def refuse(system, path):
        raise OSError("403, message='Forbidden', url='http://x.org/a.csv?sig=SECRET'")

    monkeypatch.setattr(ingests, "_paths", refuse)
    with pytest.raises(OSError, match="403") as error:
        fetch("memory://in/a.csv?sig=SECRET")
    assert "SECRET" not in str(error.value)


KNOWN_ID = "r000"
REFUSED = {
    "blank input": ("a.csv", b"input\nx\n \n", "line 3: 'input' is ' '"),
    "blank id": ("a.jsonl", json_lines({"id": "", "input": "x"}), "line 1: 'id' is ''"),
    "number as id": ("a.jsonl", json_lines({"id": 5, "input": "x"}), "line 1: 'id' is 5"),
    "number as input": ("a.parquet", parquet({"input": 5}), "row 1: 'input' is 5"),
    "bytes as input": ("a.parquet", parquet({"input": b"x"}), "row 1: 'input' is"),
    "no input": ("a.parquet", parquet({"input": "x"}, {"input": None}), "row 2: 'input' is None"),
    "reference": ("a.jsonl", json_lines({"input": "x", "reference": 5}), "'reference' is 5"),
    "repeated and wrong": (
        "a.jsonl",
        json_lines({"input": "x"}, {"input": "X", "reference": 5}),
        "line 2: 'reference' is 5",
    ),
    "same number as id": (
        "a.jsonl",
        json_lines({"id": "5", "input": "x"}, {"id": 5, "input": "x"}),
        "line 2: 'id' is 5",
    ),
    "missing column": (
        "a.csv",
        b"id,text\n1,x\n",
        "line 2 has no 'input', only ['id', 'text']. Rename the column",
    ),
    "missing key": ("a.jsonl", json_lines({"text": "x"}), "line 1 has no 'input', only ['text']"),
    "column twice": ("a.csv", b"input,input\nx,y\n", "has the column 'input' twice"),
    "key twice": ("a.jsonl", b'{"input": "x", "input": "y"}\n', "line 1 is not JSON"),
    "not JSON": ("a.jsonl", b'{"input": "x"}\n\n{"input": \n', "line 3 is not JSON"),
    "no object": ("a.jsonl", b'"x"\n', "line 1 is '\"x\"', not a JSON object"),
    "surrogate": ("a.jsonl", b'{"input": "\\ud800"}\n', "line 1 is not JSON"),
    "too long": (
        "a.jsonl",
        json_lines({"input": "x"}, {"input": "y" * 1_000_001}),
        f"line 2 has {len(json.dumps({'id': 12 * '0', 'input': ''})) + 1_000_001:,} characters",
    ),
    "too long for CSV": ("a.csv", b"input\n" + b"y" * 1_000_001, "line 2 is not CSV"),
    "cells": ("a.csv", b'id,input\n1,"a\nb"\n2,x,y\n', "line 4 has 3 cells, but there are 2"),
    "open quote": ("a.csv", b'input\nx\n"y\n', "line 3 is not CSV"),
    "not UTF-8": ("a.csv", b"input\n\xff\n", "is not UTF-8"),
    "not Parquet": ("a.parquet", b"PAR1", "is not a readable Parquet file"),
    "not compressed": ("a.csv.gz", b"input\nx\n", "is damaged or cut off"),
    "cut off": ("a.csv.gz", gzip.compress(b"input\nx\n")[:-4], "is damaged or cut off"),
    "empty": ("a.jsonl", b"\n \n", "a.jsonl holds no row. Add one"),
    "header alone": ("a.csv", b"input\n", "a.csv holds no row. Add one"),
    "no rows": ("a.parquet", parquet(), "a.parquet holds no row. Add one"),
    "no column": ("a.parquet", parquet({"text": "x"}), "row 1 has no 'input', only ['text']"),
    "unsupported": ("a.txt", b"x\n", "a.txt is in no supported format. Convert it"),
    "id twice": (
        "a.csv",
        b"id,input\n1,x\n2,z\n1,y\n",
        "line 4: the id '1' stands for another input in",
    ),
    "id known": (
        "a.csv",
        f"id,input\n{KNOWN_ID},x\n".encode(),
        f"line 2: the id '{KNOWN_ID}' stands for another input in data/prompts/replies/first.jsonl",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_a_source_with_a_fault_is_refused_whole(fault, here):
    name, content, message = REFUSED[fault]
    source = source_file(here, name, content)
    said = refusal(here, source)
    assert said.startswith(str(source))
    assert message in said
    assert len(said) < len(str(source)) * 2 + 250
    assert source.read_bytes() == content


def test_one_bad_file_of_a_folder_refuses_the_whole(here):
    source_file(here, "a.jsonl", json_lines({"input": "x"}))
    bad = source_file(here, "b.csv", b"input\n")
    assert refusal(here, bad.parent).startswith(f"{bad} holds no row")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl", "matches no file to read"),
        ("nowhere/*.csv", "matches no file to read"),
        (".", "matches no file to read"),
        ("params.yaml", "is in no supported format"),
        ("nosuch://x/a.csv", "cannot be opened: Protocol not known: nosuch"),
        ("memory://nowhere/a.csv", "matches no file to read"),
    ],
)
def test_a_source_that_is_none_is_refused(source, message, here):
    if source == ".":
        source = str(here.path.parent / "empty")
        Path(source).mkdir()
    assert message in refusal(here, source)


def test_a_file_that_cannot_be_reached_is_refused(here, memory, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("no access to the shelf")

    monkeypatch.setattr(type(memory), "info", refuse)
    said = refusal(here, "memory://in/a.csv")
    assert said.startswith("memory://in/a.csv cannot be read (no access to the shelf). Check")


def test_what_a_network_raises_may_be_tried_again(memory, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("connection lost")

    memory.pipe("/in/a.csv", b"input\nx\n")
    monkeypatch.setattr(type(memory), "open", fail)
    with pytest.raises(OSError, match="RuntimeError: connection lost"):
        fetch("memory://in/a.csv")


def test_an_unknown_prompt_set_is_refused(here):
    source = source_file(here, "a.jsonl", json_lines(*ROWS))
    assert "no prompt set 'reply'. Did you mean 'replies'?" in refusal(here, source, "reply")


def test_a_prompt_too_long_for_the_model_is_refused(here):
    tiny.tokenizer().save_pretrained("data/models/base")
    LlamaConfig(max_position_embeddings=tiny.CONTEXT).save_pretrained("data/models/base")
    fits = tiny.CONTEXT - 14 - len(": ")  # max_new_tokens, the chat template; a token is a byte
    rows = [{"input": "x" * fits}, {"input": "y" * (fits + 1)}]
    source = source_file(here, "a.jsonl", json_lines(*rows))
    said = refusal(here, source)
    assert said.startswith(f"{source}, line 2: 'yyy")
    assert f"has {fits + 3} tokens and may get 14 more" in said
    source.write_bytes(json_lines(*rows[:1]))
    assert ingest(str(source), "replies").added == 1


def test_outside_git_it_is_refused(here):
    shutil.rmtree(here.path / ".git")
    source = source_file(here, "a.jsonl", json_lines(*ROWS))
    with pytest.raises(ValueError, match=r"is no git repository.*`git init` first"):
        ingest(str(source), "replies")
    assert not NEW.exists()


@pytest.mark.parametrize("failing", ["git add", "git commit"])
def test_a_commit_that_fails_leaves_nothing(failing, here):
    if failing == "git add":
        here.write(".gitignore", "/.dvc/tmp\n/data/models\n/data/prompts\n")
        here.commit()
        reason = f"was not ingested: git ignores {NEW}, so that it cannot be committed. Correct"
    else:
        here.write(".git/hooks/pre-commit", "#!/bin/sh\necho not today >&2\nexit 1\n")
        (here.path / ".git/hooks/pre-commit").chmod(0o755)
        reason = "was not ingested: not today. Correct that and ingest it again."
    source = source_file(here, "a.jsonl", json_lines(*ROWS))
    assert reason in refusal(here, source)


def test_an_interrupt_leaves_nothing(here, monkeypatch):
    real = programs.output

    def interrupted(program, *arguments):
        if arguments[0] == "commit":
            raise KeyboardInterrupt
        return real(program, *arguments)

    monkeypatch.setattr(ingests, "output", interrupted)
    before = state(here)
    with pytest.raises(KeyboardInterrupt):
        ingest(str(source_file(here, "a.jsonl", json_lines(*ROWS))), "replies")
    assert state(here) == before


def test_one_at_a_time(here):
    from multiprocessing import get_context

    source = str(source_file(here, "a.jsonl", json_lines(*ROWS)))
    with programs.alone("`dvc repro r1`"), get_context("fork").Pool(1) as pool:
        said = pool.apply(_said_by_another, (source,))
    assert "`dvc repro r1`" in said
    assert not NEW.exists()


def _said_by_another(source):
    programs._lock = None
    with pytest.raises(ValueError, match="Wait for it to end") as refused:
        ingest(source, "replies")
    return str(refused.value)


def test_the_lock_goes_with_the_new_file(project, monkeypatch):
    enter(project, monkeypatch)
    project.write("notes.txt", "not committed\n")
    source = source_file(project, "a.jsonl", json_lines(*ROWS))
    ingest(str(source), "replies")
    committed = project.git("show", "--name-only", "--format=", "HEAD").splitlines()
    assert committed == [str(NEW), "dvc.lock"]
    assert project.git("status", "--porcelain") == "?? notes.txt"
    assert project.repro() == set()


def test_a_lock_of_what_is_not_committed_is_left_alone(project, monkeypatch):
    enter(project, monkeypatch)
    project.edit("params.yaml", "# The tests' project.", "# Changed.")
    before = project.read("dvc.lock")
    ingest(str(source_file(project, "a.jsonl", json_lines(*ROWS))), "replies")
    assert project.git("show", "--name-only", "--format=", "HEAD") == str(NEW)
    assert project.read("dvc.lock") == before


@pytest.mark.parametrize("failing", ["resolve", "commit"])
def test_what_fails_after_the_file_was_written_leaves_the_lock(failing, project, monkeypatch):
    enter(project, monkeypatch)
    if failing == "resolve":
        project.write("data/models/r9/stray.txt", "x\n")
        reason = "r9 belongs to no round"
    else:
        project.write(".git/hooks/pre-commit", "#!/bin/sh\nexit 1\n")  # and says nothing
        (project.path / ".git/hooks/pre-commit").chmod(0o755)
        reason = "was not ingested: `git commit"
    source = source_file(project, "a.jsonl", json_lines(*ROWS))
    assert reason in refusal(project, source)


def test_new_prompts_leave_accepted_rounds_as_they_are(project, monkeypatch):
    assert project.tnt("rounds", "remove", "r2").returncode == 0
    project.repro()
    project.commit()
    assert project.tnt("rounds", "accept", "r1").returncode == 0
    assert project.tnt("rounds", "add", "r2", "--detectors", "hedges").returncode == 0
    project.repro()
    project.commit()
    assert project.tnt("rounds", "accept", "r2").returncode == 0
    before = YAML(typ="safe").load(project.read("dvc.lock"))["stages"]
    rows = [{"input": text} for text in tiny.inputs(20, seed=99)]
    source = source_file(project, "new.csv", comma_separated(*rows))
    enter(project, monkeypatch)
    done = ingest(str(source), "replies")
    assert done.added == 20
    assert project.repro() <= {"resolve"}
    assert project.git("status", "--porcelain") == ""
    after = YAML(typ="safe").load(project.read("dvc.lock"))["stages"]
    assert before.pop("resolve") != after.pop("resolve")
    assert after == before
    assert project.tnt("check").returncode == 0


def test_the_flow_retries_what_may_pass():
    for error, retried in ((ConnectionResetError("network"), True), (ValueError("line 3"), False)):
        assert is_temporary(None, None, SimpleNamespace(data=error)) is retried
