"""Give a round away: export it and copy the export to a URL.

    tnt publish r3 hf://org/model

Publishing the same model again changes nothing but its card.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tnt.commands import Name
from tnt.commands.export import CARD, export, refuse_data
from tnt.core import addresses
from tnt.core.hashes import sha256_of
from tnt.core.runlog import RUNS_FILE

WORK = RUNS_FILE.parent
HOSTS_FILES = {".gitattributes"}
"""Files that a repository on the Hugging Face Hub has from the start."""


def command(
    name: Name,
    destination: Annotated[str, typer.Argument(help="A folder, or any URL of fsspec.")],
    ungated: Annotated[
        bool, typer.Option(help="Even if it failed its gate or is not accepted.")
    ] = False,
) -> None:
    """Export a round and copy the export to a URL."""
    print(f"Published {name} to {publish(name, destination, ungated=ungated)}.")


def upload(folder: Path, destination: str) -> str:
    """Copy an export to a URL and return that, without credentials; the card comes last.

    What is there already stays if it is the same model; only its card may then be replaced. If the
    copying fails, what was copied is deleted.

    Args:
        folder: Of an export.
        destination: A folder, as a path or as any URL of fsspec: file, s3, hf, memory, ...

    Raises:
        ValueError: The URL is of no known kind, or there is something else.
    """
    import fsspec.core
    from fsspec.implementations.local import LocalFileSystem

    try:
        fs, root = fsspec.core.url_to_fs(destination)
    except (ImportError, ValueError) as error:
        kind = destination.partition("://")[0]  # the rest may hold a password
        said = addresses.told(str(error), destination) or type(error).__name__
        raise ValueError(
            f"fsspec cannot write to {kind}:// here: {said}. Install what it needs, or choose "
            "another destination."
        ) from error
    published, root = addresses.without_secrets(fs.unstrip_protocol(root)), root.rstrip("/")
    if isinstance(fs, LocalFileSystem):
        refuse_data(Path(root))
    files = sorted(
        (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()),
        key=lambda file: (file == CARD, file),
    )
    fs.invalidate_cache()
    there = {path.removeprefix(f"{root}/") for path in fs.find(root)} - HOSTS_FILES
    changed = [f for f in files if f not in there or not _same(fs, f"{root}/{f}", folder / f)]
    if there and (there - {*files} or {*changed} - {CARD}):
        raise ValueError(
            f"{published} holds {len(there)} files that are not this model. Choose another "
            "destination, or empty it."
        )
    copied: list[str] = []
    try:
        for file in changed:
            copied.append(f"{root}/{file}")
            fs.makedirs(copied[-1].rpartition("/")[0], exist_ok=True)
            fs.put_file(str(folder / file), copied[-1])
    except BaseException:
        for path in copied if not there else []:
            with contextlib.suppress(Exception):
                fs.rm_file(path)
        raise
    return published


def publish(
    name: str,
    destination: str,
    *,
    ungated: bool = False,
    copy: Callable[[Path, str], str] = upload,
) -> str:
    """Export a round, copy the export to a URL, and return that.

    Args:
        name: The round.
        destination: Holds nothing, or this same model.
        ungated: Publish a round that failed its gate or is not accepted.
        copy: `upload`, or what tries it again where the network fails.

    Raises:
        ValueError: The round is not to be exported, or the URL is not for it.
    """
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:  # /tmp may lie in memory
        return copy(export(name, Path(scratch) / name, ungated=ungated), destination)


def _same(fs: Any, path: str, file: Path) -> bool:
    """Whether a file on a file system of fsspec is the same as one here."""
    if fs.size(path) != file.stat().st_size:
        return False
    with fs.open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256_of(file)
