"""Plain tables, for people and for `grep`, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tnt.core.artifacts import MAKE_AGAIN


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield one line per row, the cells of a column under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> str:
    """Return rows as CSV under a header; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_numbers(path: Path) -> tuple[list[str], list[dict[str, float | None]]]:
    """Return the columns and rows of a CSV file of ours that holds numbers alone, or empty cells.

    Raises:
        ValueError: The file is missing, or a value in it is no number.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Run `dvc repro`, which makes it.")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [
                {name: float(value) if value else None for name, value in row.items()}
                for row in reader
            ]
            return [*(reader.fieldnames or ())], rows
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable table ({error}). {MAKE_AGAIN}") from error
