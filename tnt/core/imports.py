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
    real_root = root.resolve()
    pending, seen, names, found = [file], set(), set(), set()
    while pending:
        named = pending.pop()
        if named in seen:
            continue
        seen.add(named)
        current = named.resolve()
        if not current.is_relative_to(real_root):
            raise ValueError(
                f"{named} is a link to {current}, outside the project, where neither DVC nor a "
                "clone follows it. Put a copy in its place."
            )
        found.add(current)
        for name in _imported(current, real_root, current.stat().st_mtime_ns):
            if name not in names:
                names.add(name)
                pending += module_files(name, real_root)
    return sorted(path.relative_to(real_root) for path in found)


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
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield every statement, those in others too; expressions, most of a tree, hold no import."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, block, ())
            if isinstance(inner, list):  # the body of a lambda is an expression
                pending += inner


def module_files(name: str, root: Path) -> Iterator[Path]:
    """Yield the local files that importing a dotted name runs: its packages' and its own."""
    path = root
    for part in name.split(".") if name else []:
        path = path / part
        for candidate in (path / "__init__.py", path.with_suffix(".py")):
            if candidate.is_file():
                yield candidate
        if not path.is_dir():  # nothing of it is local, or what is left is defined in a file
            return
