"""Artifacts: the same rows give the same bytes, and a file is whole or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

import pytest

from tnt.core import artifacts, hashes
from tnt.core.hashes import sha256_of
from tnt.core.records import Completion, Flag, Mask, Prompt, Rollout

PROMPTS = [
    Prompt("replies/b", "replies", "train", "héllo 😀", "Reply: héllo 😀", [1, 2, 3], "a réf"),
    Prompt("replies/a", "replies", "test", "line\nbreak\u2028", "x", [], None),
    Prompt("summaries/a", "summaries", "validation", "", "", [49151], ""),
]
FLAGS = [
    Flag("p/1", 0, "d", "é", 0, 2, "ab", 0.1),
    Flag("p/1", 0, "d", "", 0, 2, "ab", 1 / 3),
    Flag("p/0", 1, "d", "", 3, 4, "\U0001f600", 1.0),
]


def test_rows_come_back_as_they_were_sorted_by_key(tmp_path):
    path = tmp_path / "deep" / "er" / "prompts.parquet"
    artifacts.write(PROMPTS, path, Prompt)
    assert artifacts.read(path, Prompt) == [PROMPTS[1], PROMPTS[0], PROMPTS[2]]
    completion = Completion("p/1", 2, "r1", "in", [1], [5, 6], "a\ufffd\x00b", False)
    mask = Mask("p/1", 2, [1], [5, 6], [True, False], [False, False])
    for rows, record in (([completion], Completion), ([mask], Mask), ([], Flag)):
        artifacts.write(rows, path, record)
        assert artifacts.read(path, record) == rows


def test_columns_are_the_fields_and_only_a_reference_may_be_missing():
    ids, bools = (f"list<element: {kind} not null> not null" for kind in ("int32", "bool"))
    text = "string not null"
    completion = (text, "int32 not null", text, text, ids, ids, text, "bool not null")
    sets = f"list<element: {ids}> not null"
    mask = (text, "int32 not null", ids, ids, bools, bools, text, sets)
    rollout = (text, "int32 not null", ids, ids, sets, sets, text)
    prompt = (text, text, text, text, text, ids, "string")
    flag = (text, "int32 not null", text, text, *["int32 not null"] * 2, text, "double not null")
    kinds = {Completion: completion, Mask: mask, Prompt: prompt, Flag: flag, Rollout: rollout}
    for record, expected in kinds.items():
        names = [field.name for field in dataclasses.fields(record)]
        columns = [f"pyarrow.Field<{n}: {k}>" for n, k in zip(names, expected, strict=True)]
        assert [*map(str, artifacts.schema(record))] == columns


def test_same_rows_in_any_order_are_the_same_bytes(tmp_path):
    hashes = set()
    for i, rows in enumerate(itertools.permutations(FLAGS)):
        artifacts.write(rows, tmp_path / f"{i}.parquet", Flag)
        hashes.add(sha256_of(tmp_path / f"{i}.parquet"))
    assert len(hashes) == 1


def test_samples_are_sorted_as_numbers(tmp_path):
    rows = [Completion("p/1", s, "m", "", [1], [2], "", True) for s in (10, 9, 0)]
    artifacts.write(rows, tmp_path / "c.parquet", Completion)
    assert [r.sample for r in artifacts.read(tmp_path / "c.parquet", Completion)] == [0, 9, 10]


def test_other_columns_are_an_error_that_names_both(tmp_path):
    path = tmp_path / "flags.parquet"
    artifacts.write(FLAGS, path, Flag)
    with pytest.raises(ValueError, match=r"flags\.parquet has columns .*'score'.* those of Mask"):
        artifacts.read(path, Mask)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"none\.parquet does not exist\. Run `dvc repro`"):
        artifacts.read(tmp_path / "none.parquet", Flag)


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_truncated_file_is_an_error_that_says_what_to_do(tmp_path, keep):
    path = tmp_path / "f.parquet"
    artifacts.write(FLAGS, path, Flag)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"f\.parquet is not a readable Parquet .* Delete it"):
        artifacts.read(path, Flag)


def test_damaged_middle_is_an_error_or_other_rows_but_no_traceback(tmp_path):
    path = tmp_path / "p.parquet"
    artifacts.write(PROMPTS, path, Prompt)
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Delete it and run"):
        artifacts.read(path, Prompt)


def test_two_rows_with_one_key_are_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "f.parquet"
    with pytest.raises(ValueError, match=r"the same .*\('p/1', 0, 'd', 0, 2, ''\)"):
        artifacts.write([FLAGS[1], FLAGS[0], FLAGS[1]], path, Flag)
    assert list(tmp_path.iterdir()) == []


def test_row_that_does_not_fit_the_schema_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.parquet"
    artifacts.write(FLAGS, path, Flag)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"2147483648|int32"):
        artifacts.write([Flag("p", 0, "d", "", 0, 2**31, "", 1.0)], path, Flag)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def interrupted(path, error):
    before = path.exists()
    with artifacts.complete(path) as partial:
        partial.write_text("half")
        assert path.exists() == before
        raise error


def test_interrupted_write_leaves_nothing_under_the_name(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_keeps_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    artifacts.write_text("old é\n", path)
    with pytest.raises(OSError, match="disk"):
        interrupted(path, OSError("disk full"))
    assert path.read_text(encoding="utf-8") == "old é\n"
    artifacts.write_text("new", path)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_hash_of_a_file_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert hashes.sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_hash_of_a_folder_is_that_of_names_and_contents(tmp_path):
    def folder(name, files):
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return hashes.sha256_of(tmp_path / name)

    files = {"a": "1", "b/c": "2"}
    first = folder("first", files)
    assert folder("same", dict(reversed(files.items()))) == first
    assert folder("ignored", {**files, ".gitignore": "/x"}) == first
    others = [{"a": "1", "b/c": "3"}, {"a": "1", "b/d": "2"}, {"a": "1"}, {"a": "1", "c": "2"}]
    assert len({first, *(folder(f"other{i}", o) for i, o in enumerate(others))}) == 5


def test_hash_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="gone does not exist"):
        hashes.sha256_of(tmp_path / "gone")


def test_data_of_a_round_that_is_not_listed_is_refused(tmp_path):
    for name in ("base", "r1", "r2"):
        artifacts.write_text("", tmp_path / "models" / name / "file")
    (tmp_path / "models/empty").mkdir()
    artifacts.refuse_foreign([tmp_path / "models", tmp_path / "none"], {"r1": "base", "r2": "r1"})
    with pytest.raises(ValueError, match=r"models/r2 belongs .* lists \['r1'\]\).*prune"):
        artifacts.refuse_foreign([tmp_path / "models"], ["r1"])
