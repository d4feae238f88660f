"""Which local files a Python file reads when it runs: the closure of its imports.

DVC does not follow imports. So `resolve` finds by this what each stage and each plugin runs, and
pins it by hash.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

CODE_ROOT = Path(__file__).resolve().parents[2]
"""Where the package `tnt` lies, in the project or among the installed ones."""


def closure(file: Path, root: Path) -> list[Path]:
    """Return `file` and every file under `root` that it imports, directly or not, sorted.

    Imports inside functions count; packages count with their `__init__.py`. Paths are relative to
    `root`.

    Raises:
        ValueError: A file is no Python that can be read, or a link out of `root`.
    """
    pending, found = [file], set()
    while pending:
        named = pending.pop()
        current = named.resolve()
        if current in found:
            continue
        if not current.is_relative_to(root.resolve()):
            raise ValueError(
                f"{named} is a link to {current}, outside the project, where neither DVC nor a "
                "clone follows it. Put a copy in its place."
            )
        found.add(current)
        for name in _imported(current, root.resolve(), current.stat().st_mtime_ns):
            pending += module_files(name, root)
    return sorted(path.relative_to(root.resolve()) for path in found)


def with_data(files: Iterable[Path], root: Path) -> list[Path]:
    """Return Python files and what their packages hold beside code, like templates, sorted."""
    packages = {file.parent for file in files if (root / file.parent / "__init__.py").is_file()}
    return sorted({*files, *(path for package in packages for path in _data(package, root))})


def _data(package: Path, root: Path) -> Iterator[Path]:
    for path in (root / package).iterdir():
        if path.name.startswith((".", "__pycache__")) or path.name.endswith("~"):
            continue
        if path.is_dir() and not (path / "__init__.py").exists():
            yield from _data(path.relative_to(root), root)
        elif path.is_file() and path.suffix != ".py":
            yield path.relative_to(root)


@functools.cache
def _imported(file: Path, root: Path, written: int) -> tuple[str, ...]:
    """Return the dotted names that a file imports; `from a import b` gives `a` and `a.b`.

    `written` is when the file was written: after an edit it is read again.
    """
    return tuple(_names(file, root))


def _names(file: Path, root: Path) -> Iterator[str]:
    package = file.relative_to(root).with_suffix("").parts[:-1]
    yield ".".join(package)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except (SyntaxError, ValueError) as error:  # not UTF-8, or null bytes
        raise ValueError(f"{file} is no Python that can be read ({error}). Correct it.") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def module_files(name: str, root: Path) -> Iterator[Path]:
    """Yield the local files that importing a dotted name runs: its packages' and its own."""
    parts = name.split(".") if name else []
    for depth in range(1, len(parts) + 1):
        path = root.resolve().joinpath(*parts[:depth])
        for candidate in (path / "__init__.py", path.with_suffix(".py")):
            if candidate.is_file():
                yield candidate
