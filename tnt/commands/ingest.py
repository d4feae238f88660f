"""Bring new prompts in: from files anywhere to a file of a prompt set, in a commit of its own.

What comes in is checked as a whole before anything is written, and inputs that are known already
are left out. No round learns from the new file before params.yaml names it.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import gzip
import hashlib
import io
import posixpath
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tnt import prompts
from tnt.core import addresses, jsonl
from tnt.core.artifacts import write_text
from tnt.core.errors import did_you_mean, shortened
from tnt.core.hashes import normalised
from tnt.core.records import BASE, Prompt
from tnt.project import checks, layout, sections
from tnt.prompts import FIELDS, RawPrompt
from tnt.rounds.programs import alone, output, reproduce

ID_DIGITS = 12
"""Hexadecimal digits of the hash that a row without an id gets as its id."""
PARTS = {
    "article", "context", "conversation", "conversations", "dialog", "dialogue", "document",
    "documents", "history", "hypothesis", "instruction", "instructions", "message", "messages",
    "passage", "premise", "prompt", "query", "question", "questions", "system", "system_prompt",
    "task", "text", "title",
}  # fmt: skip
"""Names of columns that data sets use for parts of a prompt."""
BAR_AFTER_S = 1.0
SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".csv")
RESOLVED_FROM = (
    layout.LOCK,
    layout.PIPELINE,
    layout.PARAMS,
    layout.PROMPTS,
    layout.LISTS,
    layout.ANNOTATIONS,
    layout.PLUGINS,
    layout.CODE,
)
"""What decides dvc.lock's entry of `resolve`, and dvc.lock itself."""


class SourceRefused(ValueError):
    """A source is none to read from; its sentence holds nothing secret."""


class NothingToRead(SourceRefused):
    """A source holds no file."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that was fetched."""

    name: str
    """Its path, or what may be shown of its address."""
    content: bytes
    """Decompressed."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of all files of a source."""

    rows: dict[str, RawPrompt]
    """By file and line, or row; the first of those with the same normalised input."""
    repeated: int
    """Rows left out, since an earlier one has their input."""
    ignored: tuple[str, ...]
    """Columns that are no part of a prompt."""


@dataclass(frozen=True, slots=True)
class Ingested:
    """What came of a source: `read` is `added`, `known` and `repeated` together."""

    path: Path | None
    """The new prompt file; None if there was nothing new."""
    read: int
    added: int
    known: int
    """Rows whose input a prompt of the project has already, in whatever prompt set."""
    repeated: int
    """Rows whose input an earlier row of the source has."""
    ignored: tuple[str, ...]
    """Columns that are no part of a prompt."""


def command(
    source: Annotated[str, typer.Argument(help="A file, folder, glob or URL.")],
    to: Annotated[str, typer.Option(help="A prompt set.")],
    columns: Annotated[
        str | None,
        typer.Option(help="What makes up an input, in this order: `instruction,input`."),
    ] = None,
) -> None:
    """Bring new prompts into a prompt set, in a commit of its own."""
    named = None if columns is None else [name.strip() for name in columns.split(",")]
    print(sentence(ingest(source, to, columns=named)))


def ingest(
    source: str,
    prompt_set: str,
    *,
    run: str = "by hand",
    files: Sequence[SourceFile] | None = None,
    columns: Sequence[str] | None = None,
) -> Ingested:
    """Write the new prompts of a source to `data/prompts/<set>/<date>.jsonl` and commit that file.

    dvc.lock is brought up to date in the same commit, unless something that decides it is changed
    but not committed. If anything fails, the project is left as it was.

    Args:
        source: A file, folder or glob, on disk or at any address that fsspec knows.
        prompt_set: Where the prompts go.
        run: Who or what asked for it, for the commit message.
        files: What `fetch(source)` returned, if it was called before.
        columns: As of `parse`.

    Raises:
        ValueError: The source or one row of it will not do; or git or DVC failed. One sentence.
    """
    shown = addresses.shown(source)
    with alone(f"ingest of {shown}"):
        _refuse_outside_git()
        loaded = checks.load()
        if prompt_set not in loaded.prompt_sets:
            raise ValueError(
                f"{layout.PARAMS} defines no prompt set {prompt_set!r}."
                f"{did_you_mean(prompt_set, loaded.prompt_sets)}"
            )
        try:
            files = fetch(source) if files is None else files
        except OSError as error:
            raise ValueError(
                f"{shown} cannot be read ({error}). Check its address, your access to it and the "
                "network, and try again."
            ) from error
        table = parse(files, columns)
        new = _new(table, loaded, prompt_set)
        _refuse_long(new, loaded, prompt_set)
        path = None
        if new:
            lines = [prompts.line_of(row) + "\n" for row in new.values()]
            path = _keep("".join(lines), len(lines), prompt_set, shown, run)
        return Ingested(
            path=path,
            read=len(table.rows) + table.repeated,
            added=len(new),
            known=len(table.rows) - len(new),
            repeated=table.repeated,
            ignored=table.ignored,
        )


def sentence(done: Ingested) -> str:
    """Return what came of a source, for people."""
    kept = f"{done.added} written to {done.path}" if done.path else "none new"
    ignored = f"; ignored columns: {', '.join(map(repr, done.ignored))}" if done.ignored else ""
    return (
        f"{done.read} prompts read: {kept}, {done.known} known already, {done.repeated} repeated"
        f"{ignored}."
    )


def fetch(source: str) -> list[SourceFile]:
    """Return the files of a source, whole: one file, those that a glob matches, or a folder's.

    Of a folder, all files of a supported format are read, at any depth, in order of their paths.

    Raises:
        ValueError: There is nothing to read, or not in a supported format.
        OSError: What is there could not be reached; trying again may help.
    """
    import fsspec.core
    from tqdm import tqdm

    shown = addresses.shown(source)
    try:
        system, path = fsspec.core.url_to_fs(source)
    except (ValueError, ImportError) as error:  # no such protocol, or its package is missing
        raise ValueError(
            f"{shown} cannot be opened: {_told(error, source)}. Correct the address, or install "
            "the package that reads it."
        ) from error
    try:
        system.invalidate_cache()  # listings are kept as long as the process lives
        paths = _paths(system, path)
        if not paths:
            raise NothingToRead(
                f"{shown} matches no file to read. Name a file, a folder or a glob of "
                f"{', '.join(SUFFIXES)} files."
            )
        files = list(zip(paths, _names(system, paths), strict=True))
        bar = tqdm(files, desc="read", unit="file", delay=BAR_AFTER_S)
        return [_fetched(system, path, name) for path, name in bar]
    except SourceRefused:
        raise
    except ValueError as error:
        raise ValueError(f"{shown} cannot be read: {_told(error, source)}.") from None
    except Exception as error:  # each protocol's package has its own for a network that fails
        raise OSError(_told(error, source)) from None


def _told(error: Exception, source: str) -> str:
    """Return what a library said of a source, its exception's class alone if that is secret."""
    kind, said = type(error).__name__, addresses.told(str(error).rstrip("."), source)
    if said is None:
        return kind
    return said if isinstance(error, OSError | ValueError | ImportError) else f"{kind}: {said}"


def parse(files: Sequence[SourceFile], columns: Sequence[str] | None = None) -> Table:
    """Return the rows of files, each of which is a prompt by the rules of prompt files.

    A row without an id gets one from its normalised input. Columns other than `id`, `reference`
    and those of the input are ignored.

    Args:
        files: What was fetched.
        columns: What makes up the input, in this order, an empty line between; None is `input`,
            if no other column looks like a part of it.

    Raises:
        ValueError: A file is empty or damaged, a row breaks a rule, a column that may be a part of
            the prompt would be ignored, or two rows have the same id and different inputs; names
            the file and the line, or row.
    """
    rows: dict[str, RawPrompt] = {}
    ignored: dict[str, None] = {}
    for file in files:
        empty = True
        for where, values in _rows(file, columns or ["input"]):
            empty = False
            others = [n for n in values if n not in (*FIELDS, *(columns or ()))]
            if columns is None:
                _refuse_parts(others, where)
            ignored |= dict.fromkeys(others)
            held = {name: values[name] for name in FIELDS if name in values}
            rows[where] = prompts.parse_row(held, where)
        if empty:
            raise ValueError(f"{file.name} holds no row. Add one, or leave the file out.")
    first = _first_of_each(rows)
    return Table(first, len(rows) - len(first), tuple(ignored))


def today() -> str:
    """Return the date, UTC, that new files are named by."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _paths(system: Any, path: str) -> list[str]:
    """Return the files that a path or glob stands for."""
    try:
        kind = system.info(path)["type"]
    except FileNotFoundError as error:
        if error.__cause__ and not isinstance(error.__cause__, FileNotFoundError):
            raise  # over HTTP this is also what a network that fails looks like
        found = system.glob(path, detail=True)
        return sorted(name for name, info in found.items() if info["type"] == "file")
    if kind == "directory":
        return sorted(name for name in system.find(path) if _suffix(name))
    return [path]


def _suffix(name: str) -> str | None:
    """Return the suffix that tells a file's format, or None."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in SUFFIXES else None


def _names(system: Any, paths: list[str]) -> list[str]:
    """Return how files are called: several by what lies below their common folder."""
    from fsspec.implementations.local import LocalFileSystem

    if isinstance(system, LocalFileSystem):
        return paths
    names = [addresses.shown(system.unstrip_protocol(path)) for path in paths]
    if len(paths) == 1:
        return names
    paths = [re.sub("[?#;].*", "", path) for path in paths]
    folder = posixpath.commonpath(paths)
    below = [posixpath.relpath(path, folder) for path in paths]
    return [f"{n.rpartition('/')[0]}/{path}" for n, path in zip(names, below, strict=True)]


def _fetched(system: Any, path: str, name: str) -> SourceFile:
    import fsspec.utils

    if not _suffix(name):
        raise SourceRefused(
            f"{name} is in no supported format. Convert it to one of {', '.join(SUFFIXES)}; each "
            "may be compressed too, as .gz."
        )
    compression = fsspec.utils.infer_compression(name)
    try:
        with system.open(path, "rb", compression=compression) as stream:
            return SourceFile(name, stream.read())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceRefused(f"{name} is damaged or cut off ({error}). Make it again.") from error


def _refuse_parts(others: Sequence[str], where: str) -> None:
    """Raise if a column that would be ignored looks like a part of the prompt."""
    parts = [name for name in others if name.strip().casefold() in PARTS]
    if parts:
        raise ValueError(
            f"{where} has {shortened(parts)} beside 'input', which may belong to the prompt. "
            f"`--columns {','.join([*parts, 'input'])}` joins them, `--columns input` leaves them "
            "out."
        )


def _rows(file: SourceFile, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row of a file stands, and its values, with an id and an input."""
    read = dict.fromkeys((*FIELDS, *columns))
    match _suffix(file.name):
        case ".parquet":
            rows = _parquet_rows(file, read)
        case ".csv":
            rows = _csv_rows(file, read)
        case _:
            rows = jsonl.rows(_text(file), file.name, private=False)
    for where, row in rows:
        if missing := [name for name in columns if name not in row]:
            raise ValueError(
                f"{where} has no {missing[0]!r}, only {shortened([*row])}. Rename the column that "
                "holds the prompts' inputs, or name what makes them up with `--columns`."
            )
        row["input"] = _joined([row[name] for name in columns])
        if row.get("id") is None:
            text = normalised(str(row["input"])).encode()
            row["id"] = hashlib.sha256(text).hexdigest()[:ID_DIGITS]
        yield where, row


def _joined(parts: Sequence[Any]) -> Any:
    """Return one input of several texts, an empty line between; what is no text is left as it is.

    An empty text is no part, as in rows that have an instruction and nothing to apply it to.
    """
    if len(parts) == 1:
        return parts[0]
    said = [part for part in parts if not (part is None or part == "")]
    if all(isinstance(part, str) for part in said):
        return "\n\n".join(said)
    return next(part for part in said if not isinstance(part, str))


def _csv_rows(file: SourceFile, read: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a CSV file; an empty id or reference is none."""
    csv.field_size_limit(prompts.LONGEST)
    reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    header: list[str] = []
    before = 0
    try:
        for cells in reader:
            where, before = f"{file.name}, line {before + 1}", reader.line_num
            if not cells:
                continue
            if not header:
                header = cells
                _refuse_twins(file, header, read)
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{where} has {len(cells)} cells, but there are {len(header)} columns: "
                    f"{shortened(cells)}. Quote cells that hold commas."
                )
            row = dict(zip(header, cells, strict=True))
            yield where, {k: v or None if k in ("id", "reference") else v for k, v in row.items()}
    except csv.Error as error:
        raise ValueError(
            f"{file.name}, line {before + 1} is not CSV ({error}). Correct its quotes."
        ) from error


def _parquet_rows(file: SourceFile, read: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a Parquet file; of columns that are ignored, the names alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(io.BytesIO(file.content))
        names = parquet.schema_arrow.names
        _refuse_twins(file, names, read)
        table = parquet.read(columns=[name for name in names if name in read])
        for i, name in enumerate(table.column_names):
            kind = table.schema.field(name).type
            if name == "id" and any(
                is_number(kind)
                for is_number in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
            ):
                table = table.set_column(i, name, table[name].cast(pa.string()))
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file.name} is not a readable Parquet file ({error}). Make it again."
        ) from error
    others = dict.fromkeys(name for name in names if name not in read)
    for number, row in enumerate(rows, start=1):
        yield f"{file.name}, row {number}", row | others


def _refuse_twins(file: SourceFile, names: Sequence[str], read: Iterable[str]) -> None:
    for name in read:
        if names.count(name) > 1:
            raise ValueError(f"{file.name} has the column {name!r} twice. Rename one.")


def _text(file: SourceFile) -> str:
    return jsonl.decoded(file.content, file.name)


def _first_of_each(rows: Mapping[str, RawPrompt]) -> dict[str, RawPrompt]:
    """Return the first row of each normalised input."""
    first: dict[str, tuple[str, RawPrompt]] = {}
    owners: dict[str, tuple[str, str]] = {}
    for place, row in rows.items():
        text = normalised(row.input)
        owner, input_ = owners.setdefault(row.id, (place, text))
        if input_ != text:
            raise ValueError(
                f"{place}: the id {shortened(row.id)} stands for another input in {owner}. Rename "
                "one, or leave ids out."
            )
        first.setdefault(text, (place, row))
    return dict(first.values())


def _new(table: Table, loaded: sections.Project, prompt_set: str) -> dict[str, RawPrompt]:
    """Return the rows whose inputs no prompt of the project has.

    Those of all prompt sets count: none may be learned from in one and measured in another.
    """
    listed = [loaded.evaluate.prompts, *(round_.prompts for round_ in loaded.rounds.values())]
    paths = {
        layout.PROMPTS / name / file for sets in listed for name in sets for file in sets[name]
    }
    known: set[str] = set()
    owners: dict[str, tuple[Path, str]] = {}
    for path in sorted(paths | {*layout.PROMPTS.glob("*/*.jsonl")}):
        for row in prompts.read_file(path):
            known.add(normalised(row.input))
            if path.parent.name == prompt_set:
                owners.setdefault(row.id, (path, normalised(row.input)))
    for place, row in table.rows.items():
        owner, text = owners.get(row.id, (None, ""))
        if owner and text != normalised(row.input):
            raise ValueError(
                f"{place}: the id {shortened(row.id)} stands for another input in {owner}. Rename "
                "it, or leave ids out."
            )
    return {p: row for p, row in table.rows.items() if normalised(row.input) not in known}


def _refuse_long(rows: Mapping[str, RawPrompt], loaded: sections.Project, prompt_set: str) -> None:
    """Raise if a prompt exceeds the context of the base model, if that is there."""
    base = layout.model(BASE)
    if not rows or not (base / "config.json").is_file():
        return
    from tqdm import tqdm
    from transformers import AutoConfig

    from tnt import models
    from tnt.sampling import refuse_long

    tokenizer, config = models.load_tokenizer(base), AutoConfig.from_pretrained(base)
    params = loaded.prompt_sets[prompt_set]
    bounded = []
    for sampling in (loaded.generate, loaded.respond):
        with contextlib.suppress(ValueError):  # a set that is not drawn from needs no bound
            sampling.limit(prompt_set)
            bounded.append(sampling)

    def complaint(prompt: Prompt) -> str | None:
        try:
            for sampling in bounded:
                refuse_long([prompt], config, sampling)
        except ValueError as error:
            return str(error)
        return None

    empty = prompts.render(RawPrompt("", ""), prompt_set, params, tokenizer)
    copies = params.template.count("{input}")

    def may_be_long(row: RawPrompt) -> bool:
        most = len(empty.prompt_ids) + copies * len(row.input.encode())  # a token a byte
        return complaint(replace(empty, prompt_ids=[0] * most)) is not None

    counted = {place: row for place, row in rows.items() if may_be_long(row)}
    for place, row in tqdm(counted.items(), desc="count tokens", unit="prompt", delay=BAR_AFTER_S):
        if said := complaint(prompts.render(row, prompt_set, params, tokenizer)):
            raise ValueError(f"{place}: {shortened(row.input)}: {said}")


def _refuse_outside_git() -> None:
    try:
        output("git", "rev-parse", "--git-dir")
    except ValueError as error:
        raise ValueError(
            f"{Path.cwd()} is no git repository, which new prompts are committed to ({error}). Run "
            "`git init` first."
        ) from error


def _keep(text: str, count: int, prompt_set: str, source: str, run: str) -> Path:
    """Write and commit a prompt file, with dvc.lock where that can be brought up to date."""
    path = _free_path(prompt_set)
    subject = f"Ingest {count} prompt{'s' * (count != 1)} into {prompt_set}"
    trailers = f"Ingested: {path}\nRun: {' '.join(run.split())}"
    paths, lock = [path], None
    if layout.LOCK.is_file() and not _changes(RESOLVED_FROM):
        paths, lock = [path, layout.LOCK], layout.LOCK.read_bytes()
    try:
        write_text(text, path)
        if lock is not None:
            reproduce("resolve", log=lambda line: None)
        if not output("git", "ls-files", "--others", "--exclude-standard", "--", str(path)):
            raise ValueError(f"git ignores {path}, so that it cannot be committed")
        output("git", "add", "--", str(path))
        message = ["-m", subject, "-m", f"From {source}", "-m", trailers]
        output("git", "commit", "--quiet", *message, "--", *map(str, paths))
    except BaseException as error:
        _undo(path, lock)
        if not isinstance(error, ValueError):
            raise
        said = " ".join(str(error).split())
        reason = (said.rpartition("` failed: ")[2] or said).rstrip(".: ")
        raise ValueError(
            f"{source} was not ingested: {reason}. Correct that and ingest it again."
        ) from error
    return path


def _free_path(prompt_set: str) -> Path:
    """Return the path of a new file: today's, or today's second, third and so on."""
    folder, number = layout.PROMPTS / prompt_set, 1
    path = folder / f"{today()}.jsonl"
    while path.exists():
        number += 1
        path = folder / f"{today()}-{number}.jsonl"
    return path


def _changes(paths: Sequence[Path]) -> str:
    """Return what git has to say about files that are not as the last commit has them."""
    status = ("status", "--porcelain", "--untracked-files=all")
    return output("git", *status, "--", *map(str, paths))


def _undo(path: Path, lock: bytes | None) -> None:
    """Take a prompt file back, and what `resolve` made of it."""
    with contextlib.suppress(ValueError):
        output("git", "rm", "--cached", "--quiet", "--ignore-unmatch", "--", str(path))
    path.unlink(missing_ok=True)
    if lock is not None:
        layout.LOCK.write_bytes(lock)
        with contextlib.suppress(ValueError):  # DVC deletes a stage's outputs before it runs
            output("dvc", "checkout", "--quiet", "--force", str(layout.RESOLVED))
