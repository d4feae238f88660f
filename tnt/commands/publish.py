"""Copy an export to a URL."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from tnt.commands.export import CARD, refuse_data
from tnt.core.hashes import sha256_of

HOSTS_FILES = {".gitattributes"}
"""Files that a repository on the Hugging Face Hub has from the start."""


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
        raise ValueError(
            f"fsspec cannot write to {kind}:// here: {error}. Install what it needs, or choose "
            "another destination."
        ) from error
    published, root = fs.unstrip_protocol(root), root.rstrip("/")
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
    return str(published)


def _same(fs: Any, path: str, file: Path) -> bool:
    """Whether a file on a file system of fsspec is the same as one here."""
    if fs.size(path) != file.stat().st_size:
        return False
    with fs.open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256_of(file)
