"""Read and write the records that travel between stages: one Parquet file per artifact.

The same rows give the same bytes (explicit schema, sorted by key, zstd). A file appears under its
name only when it is complete: it is written beside it first and then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tnt.records import Record

R = TypeVar("R", bound=Record)


def read(path: Path, record: type[R]) -> list[R]:
    """Return the rows of a Parquet file as records.

    Raises:
        ValueError: The file is missing, unreadable, or holds other columns than `record`.
    """
    remedy = "Delete it and run `dvc repro`, which makes it again."
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Run `dvc repro`, which makes it.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({error}). {remedy}") from error
    if not table.schema.equals(record.SCHEMA):
        raise ValueError(
            f"{path} has columns {table.column_names}, not those of {record.__name__} "
            f"({record.SCHEMA.names}). {remedy}"
        )
    return [record(**row) for row in table.to_pylist()]


def write(rows: Sequence[Record], path: Path, record: type[Record]) -> None:
    """Write rows, sorted by key, to a Parquet file.

    Raises:
        ValueError: Two rows have the same key.
    """
    rows = sorted(rows, key=lambda row: [getattr(row, name) for name in record.KEY])
    keys = [tuple(getattr(row, name) for name in record.KEY) for row in rows]
    for key, following in itertools.pairwise(keys):
        if key == following:
            raise ValueError(
                f"Two rows of {path} have the same {record.KEY}: {key}. Make the ids unique."
            )
    names = [field.name for field in fields(record)]
    columns = {name: [getattr(row, name) for row in rows] for name in names}
    table = pa.table(columns, schema=record.SCHEMA)
    with complete(path) as partial:
        pq.write_table(table, partial, compression="zstd")


@contextlib.contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; rename it to `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a text file, whole or not at all."""
    with complete(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Return the hash of a file, or of a folder's file names and contents."""
    if not path.exists():
        raise ValueError(f"{path} does not exist. Check its path in params.yaml.")
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != ".gitignore"):
        digest.update(f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()
