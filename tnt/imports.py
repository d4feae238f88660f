"""Which local files a Python file reads when it runs: the closure of its imports.

DVC does not follow imports, so a stage has to list its code. A test compares dvc.yaml with this,
and `resolve` pins users' own detectors by it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


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
        for name in _imported(current, root):
            pending += module_files(name, root)
    return sorted(path.relative_to(root.resolve()) for path in found)


def _imported(file: Path, root: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports; `from a import b` gives `a` and `a.b`."""
    package = file.resolve().relative_to(root.resolve()).with_suffix("").parts[:-1]
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
