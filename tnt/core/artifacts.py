"""Read and write the records that travel between stages: one Parquet file per artifact.

The same rows give the same bytes (explicit schema, sorted by key, zstd). A file appears under its
name only when it is complete: it is written beside it first and then renamed. Its pages have check
sums, without which one changed byte in five would be read as other rows.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from tnt.core.records import BASE, End, Flag, Record, Source, Split

if TYPE_CHECKING:
    import pyarrow as pa

R = TypeVar("R", bound=Record)
MAKE_AGAIN = "Delete it and run `dvc repro`, which makes it again."


def read(path: Path, record: type[R]) -> list[R]:
    """Return the rows of a Parquet file as records.

    Raises:
        ValueError: The file is missing, unreadable, or holds other columns than `record`; or it
            holds no row, which only flags may come to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ValueError(f"{path} does not exist. Run `dvc repro`, which makes it.")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is not a readable Parquet file ({error}). {MAKE_AGAIN}"
        ) from error
    wanted = schema(record)
    if not table.schema.equals(wanted):
        seen, expected = table.column_names, wanted.names
        if seen == expected:
            seen, expected = [*map(str, table.schema)], [*map(str, wanted)]
        raise ValueError(
            f"{path} has columns {seen}, not those of {record.__name__} ({expected}). {MAKE_AGAIN}"
        )
    if not table.num_rows and record is not Flag:
        raise ValueError(f"{path} holds no {record.__name__.lower()}. {MAKE_AGAIN}")
    return [record(**row) for row in table.to_pylist()]


def write(rows: Sequence[Record], path: Path, record: type[Record]) -> None:
    """Write rows, sorted by key, to a Parquet file.

    Raises:
        ValueError: Two rows have the same key, or a value does not fit its column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sorted(rows, key=lambda row: [getattr(row, name) for name in record.KEY])
    keys = [tuple(getattr(row, name) for name in record.KEY) for row in rows]
    for key, following in itertools.pairwise(keys):
        if key == following:
            raise ValueError(
                f"Two rows of {path} have the same {record.KEY}: {key}. Make the ids unique."
            )
    wanted = schema(record)
    columns = [_column([getattr(row, f.name) for row in rows], f, path) for f in wanted]
    table = pa.table(columns, schema=wanted)
    with complete(path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def schema(record: type[R]) -> pa.Schema:
    """Return the columns of a record's file, in the order of its fields.

    Integers have 32 bits, floats 64. Nothing may be missing but what is `... | None`.
    """
    import pyarrow as pa

    ids, bools = (
        pa.list_(pa.field("element", inner, nullable=False)) for inner in (pa.int32(), pa.bool_())
    )
    sets = pa.list_(pa.field("element", ids, nullable=False))
    optional = str | None
    types: dict[Any, pa.DataType] = {
        **dict.fromkeys((str, Split, Source, End, optional), pa.string()),
        **{int: pa.int32(), float: pa.float64(), bool: pa.bool_()},
        **{list[int]: ids, list[bool]: bools, list[list[int]]: sets},
    }
    hints = get_type_hints(record)
    return pa.schema(
        [
            pa.field(field.name, types[hints[field.name]], nullable=hints[field.name] == optional)
            for field in fields(record)
        ]
    )


def _column(values: list[Any], field: pa.Field, path: Path) -> pa.Array:
    import pyarrow as pa

    try:
        column = pa.array(values, field.type)
        if column.null_count and not field.nullable:
            raise pa.ArrowInvalid(f"{column.null_count} of {len(values)} values are missing")
    except (pa.ArrowException, UnicodeEncodeError) as error:  # the latter: half a surrogate pair
        raise ValueError(
            f"{path} was not written: column {field.name!r} does not fit {field.type} ({error}). "
            "Correct what made it."
        ) from error
    return column


@contextlib.contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; rename it to `path` when the block succeeds.

    What a killed process left half-written under such a name is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.partial"):
        left.unlink(missing_ok=True)
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


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Return the object that a JSON file of ours holds.

    Raises:
        ValueError: The file is missing, unreadable, or holds no object with these keys.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Run `dvc repro`, which makes it.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}). {MAKE_AGAIN}") from error
    if not isinstance(found, dict) or not found.keys() >= {*keys}:
        raise ValueError(f"{path} is no object with the keys {', '.join(keys)}. {MAKE_AGAIN}")
    return found


def foreign(folders: Iterable[Path], names: Iterable[str]) -> list[Path]:
    """Return the folders in `folders` that belong to the base or a round not in `names`.

    An empty one does not count: `git checkout` and `dvc checkout` leave such behind.
    """
    owners = {BASE, *names}
    return sorted(
        path
        for folder in folders
        for path in folder.glob("*")
        if path.name not in owners and path.is_dir() and any(path.iterdir())
    )


def refuse_foreign(folders: Iterable[Path], names: Iterable[str]) -> None:
    """Raise if there is data of a round that is not in `names`, those that params.yaml lists."""
    names = [*names]
    for path in foreign(folders, names):
        raise ValueError(
            f"{path} belongs to no round in params.yaml (which lists {names}). `tnt rounds prune` "
            "deletes such folders; the cache keeps what was in them."
        )
