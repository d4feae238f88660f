"""Errors a person can act on: one line, with the value seen and the remedy."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any


def did_you_mean(name: object, valid: Any) -> str:
    """Return ` Did you mean 'x'?`, or the list of what is valid when nothing is near."""
    names = sorted(map(str, valid))
    near = difflib.get_close_matches(str(name), names, n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Valid: {', '.join(names) or 'none'}."


def shortened(value: object, length: int = 60) -> str:
    """Return what is shown of a value in an error: the beginning of its repr."""
    shown = repr(value)
    return shown if len(shown) <= length else f"{shown[:length]}..."


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Print what a person can cause (ValueError, OSError) as one line and exit with status 1.

    TNT_DEBUG=1 in the environment shows the traceback too. A bug shows it always.
    """
    try:
        yield
    except Exception as error:
        expected = isinstance(error, ValueError | OSError) or _is_full_disk(error)
        if os.environ.get("TNT_DEBUG") == "1" or not expected:
            traceback.print_exc()
        message = " ".join(str(error).split())
        if not isinstance(error, ValueError):
            message = f"{type(error).__name__}: {message.rstrip('.')}."
        if isinstance(error, OSError) or _is_full_disk(error):
            message += " Check free space and permissions."
            message += " `dvc checkout --force` restores earlier outputs."
        sys.exit(f"{name}: {message}")


def _is_full_disk(error: Exception) -> bool:
    """Whether a writer that has its own exceptions, safetensors or torch, ran out of space."""
    name, message = type(error).__name__, str(error)
    return (name == "SafetensorError" and "I/O" in message) or (
        name == "RuntimeError" and "inline_container" in message
    )
