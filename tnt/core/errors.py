"""Errors a person can act on: one line, with the value seen and the remedy."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

OURS = Path(__file__).parents[1]


class Faults(ValueError):
    """Several things that are wrong, a line each."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Take the lines; one that is there already is left out."""
        self.lines = [*dict.fromkeys(lines)]
        super().__init__("\n".join(self.lines))


class Collected:
    """What is found to be wrong, thing by thing, and told together.

    collected = Collected()
    for file in files:
        with collected:
            read(file)      # its ValueError is kept, and the next file is read
    collected.refuse()
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.lines: list[str] = []

    def __enter__(self) -> None:
        """Run the body."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Keep what the body raised, if a person can cause it."""
        if isinstance(error, ValueError):
            self.lines += lines_of(error)
        return isinstance(error, ValueError)

    def refuse(self) -> None:
        """Raise if anything was wrong."""
        if self.lines:
            raise Faults(self.lines)


def lines_of(error: ValueError) -> list[str]:
    """Return what an error says: a line, or for several faults one for each."""
    told = error.lines if isinstance(error, Faults) else [str(error)]
    return [" ".join(line.split()) for line in told]


def nearest(name: object, valid: Iterable[Any]) -> str | None:
    """Return the valid name that is most like a wrong one, if one is."""
    return next(iter(difflib.get_close_matches(str(name), sorted(map(str, valid)), n=1)), None)


def did_you_mean(name: object, valid: Iterable[Any]) -> str:
    """Return ` Did you mean 'x'?`, or the list of what is valid when nothing is near."""
    names = sorted(map(str, valid))
    near = nearest(name, names)
    return f" Did you mean {near!r}?" if near else f" Valid: {', '.join(names) or 'none'}."


def shortened(value: object, length: int = 60) -> str:
    """Return what is shown of a value in an error: the beginning of its repr."""
    shown = repr(value)
    return shown if len(shown) <= length else f"{shown[:length]}..."


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Print what a person can cause (ValueError, OSError), a line each, and exit with status 1.

    TNT_DEBUG=1 in the environment shows the traceback too. A bug shows it always.
    """
    try:
        yield
    except Exception as error:
        expected = isinstance(error, ValueError | OSError) or _is_full_disk(error)
        if os.environ.get("TNT_DEBUG") == "1" or not expected:
            traceback.print_exc()
        if isinstance(error, ValueError):
            sys.exit("\n".join(f"{name}: {line}" for line in lines_of(error)))
        message = " ".join(str(error).split())
        message = f"{type(error).__name__}: {message.rstrip('.')}."
        sys.exit(f"{name}: {message} {_remedy(error)}".rstrip())


def _remedy(error: Exception) -> str:
    """Return what to do about what the system or a bug refuses."""
    file = str(getattr(error, "filename", None) or "")
    if type(error).__name__ == "TemplateNotFound" or (
        isinstance(error, FileNotFoundError) and Path(file).is_relative_to(OURS)
    ):
        return "That file is a part of tnt: install tnt again, or `git checkout tnt` in its clone."
    if isinstance(error, FileNotFoundError | FileExistsError | IsADirectoryError):
        return "Check the name. `dvc checkout` brings back what the pipeline made."
    if isinstance(error, ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno is None
    ):
        return "Check the address and the network."  # libraries of the network give no number
    if isinstance(error, OSError) or _is_full_disk(error):
        return "Check free space and permissions. `dvc checkout --force` restores earlier outputs."
    return ""


def _is_full_disk(error: Exception) -> bool:
    """Whether a writer that has its own exceptions, safetensors or torch, ran out of space."""
    name, message = type(error).__name__, str(error)
    return (name == "SafetensorError" and "I/O" in message) or (
        name == "RuntimeError" and "inline_container" in message
    )
