"""CSV: quoting, empty cells, and numbers that come back as they were written."""

from __future__ import annotations

import pytest

from tnt.core.tables import as_csv, read_numbers


def test_cells_are_quoted_where_they_must_be_and_none_is_empty():
    rows = [{"a": 1, "b": 'x, "y"'}, {"b": "two\nlines", "a": None}]
    assert as_csv(rows, ["a", "b"]) == 'a,b\n1,"x, ""y"""\n,"two\nlines"\n'
    assert as_csv([], ["a", "b"]) == "a,b\n"


def test_a_cell_without_a_column_is_an_error():
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        as_csv([{"a": 1, "b": 2}], ["a"])


def test_numbers_come_back(tmp_path):
    path = tmp_path / "numbers.csv"
    rows = [{"step": 0.0, "loss": 0.123456}, {"step": 1.0, "loss": None}]
    path.write_text(as_csv(rows, ["step", "loss"]), encoding="utf-8")
    assert read_numbers(path) == (["step", "loss"], rows)
    path.write_text(as_csv([], ["step", "loss"]), encoding="utf-8")
    assert read_numbers(path) == (["step", "loss"], [])


@pytest.mark.parametrize("text", ["step\nx\n", "step\n1,2\n", "step,loss\n1,\xff\n"])
def test_what_is_no_table_of_numbers_is_an_error(tmp_path, text):
    path = tmp_path / "numbers.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"numbers\.csv is not a readable table .*`dvc repro`"):
        read_numbers(path)


def test_missing_table_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"none\.csv does not exist\. Run `dvc repro`"):
        read_numbers(tmp_path / "none.csv")
