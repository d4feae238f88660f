"""Locks that end with the process that holds them, and say who that is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

POLL_S = 0.1


@contextlib.contextmanager
def held(path: Path, *, doing: str, wait_s: float = 0.0) -> Iterator[IO[str]]:
    """Hold a lock file while the body runs; yield it, for a child process to inherit.

    Args:
        path: Of the lock file, which stays; what counts is the lock on it (flock(2)).
        doing: What to tell whoever finds it locked.
        wait_s: Seconds to wait for another process to end.

    Raises:
        ValueError: Another process holds it; says which.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + wait_s
        while not _locked(file):
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise ValueError(f"{holder} holds {path}. Wait for it to end, or end it.")
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(f"{doing} (process {os.getpid()})")
        file.flush()
        yield file


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
