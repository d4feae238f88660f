"""Hashes: of files that must not change, and of texts to choose by."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tnt.core.records import Mask, Prompt, Split


def refuse_changed(pinned: Mapping[str, str], root: Path = Path()) -> None:
    """Raise if a file under `root` is not the one that `resolve` pinned, `{path: sha256}`."""
    for path, sha256 in pinned.items():
        if sha256_of(root / path) != sha256:
            raise ValueError(f"{path} changed after it was resolved. Run `dvc repro`.")


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


Keyed = TypeVar("Keyed", Prompt, Mask)


def normalised(text: str) -> str:
    """Return a text without case and extra white space: duplicates are equal then."""
    return " ".join(text.casefold().split())


def choose(prompts: Sequence[Prompt], count: int | None) -> list[Prompt]:
    """Return at most `count` prompts of each split of each prompt set, chosen by hash."""
    groups: dict[tuple[str, Split], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.prompt_set, prompt.split].append(prompt)
    return [prompt for _, group in sorted(groups.items()) for prompt in lowest_hashes(group, count)]


def lowest_hashes(rows: Sequence[Keyed], count: int | None) -> list[Keyed]:
    """Return the `count` rows whose prompt ids have the lowest hashes; all of them for None."""
    return sorted(rows, key=lambda row: hashlib.sha256(row.prompt_id.encode()).hexdigest())[:count]
