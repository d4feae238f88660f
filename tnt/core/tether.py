"""Tie a process to the one that started it, so that a kill leaves nothing running.

    python -m tnt.core.tether dvc repro

runs a Python module as a command that ends with its parent. Stages tie themselves (see
`tnt.stages`), so flow, dvc and stage all end, whichever of them is killed.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

VARIABLE = "TNT_PARENT"
"""In the environment: the process that the next one is to end with."""
PR_SET_PDEATHSIG = 1
POLL_S = 0.5
SHELLS = frozenset({"sh", "bash", "dash", "zsh", "fish", "ksh", "busybox"})


def end_with_parent() -> None:
    """Kill this process as soon as its parent is gone; a shell in between does not count.

    Linux's kernel does it (PR_SET_PDEATHSIG, prctl(2)); elsewhere, and behind a shell, a thread
    looks twice a second. What this process starts can be tied to it in turn.
    """
    parent = _parent()
    os.environ[VARIABLE] = str(os.getpid())
    if parent is None:
        _end()
    elif parent.pid != os.getppid() or not _signalled_by_kernel():
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    elif os.getppid() != parent.pid:  # it ended before the kernel knew
        _end()


def _parent() -> psutil.Process | None:
    """Return the process to end with, None if it is gone."""
    import psutil

    try:
        if VARIABLE in os.environ:
            return psutil.Process(int(os.environ[VARIABLE]))
        return next(p for p in psutil.Process().parents() if p.name().lstrip("-") not in SHELLS)
    except (psutil.NoSuchProcess, StopIteration):
        return None


def _signalled_by_kernel() -> bool:
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) == 0


def _watch(parent: psutil.Process) -> None:
    import psutil

    while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
        threading.Event().wait(POLL_S)
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
