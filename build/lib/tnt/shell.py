"""Run git and dvc as commands; one process at a time may run dvc here.

DVC runs as a process of its own: its locks belong to processes, so that two threads of one would
not keep out of each other's way, and only a process can be ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from tnt import tether
from tnt.locks import held

FOLDER = Path(".dvc")
LOCK = FOLDER / "tmp" / "tnt.lock"
TERMINATION_S = 10.0
"""What dvc and its stage are given to end before they are killed."""
PROGRESS_S = "30"
"""Seconds between two lines of a progress bar in a log."""

_lock: IO[str] | None = None
"""The lock file while this process holds it."""


@contextlib.contextmanager
def alone(doing: str, *, wait_s: float = 0.0) -> Iterator[IO[str]]:
    """Keep every other command and flow of tnt from running dvc here; may be nested.

    A dvc that was started inherits the lock, so that it outlives a command that was killed. A
    `dvc repro` by hand takes no part in it; DVC's own locks keep it and ours apart.

    Args:
        doing: What to tell those who are kept waiting.
        wait_s: Seconds to wait for another to end.

    Raises:
        ValueError: Another process holds the lock, or there is no DVC repository here.
    """
    global _lock
    if _lock is not None:
        yield _lock
        return
    if not FOLDER.is_dir():
        raise ValueError(f"{Path.cwd()} is no DVC repository. Run this in the project's folder.")
    with held(LOCK, doing=doing, wait_s=wait_s) as _lock:
        try:
            yield _lock
        finally:
            _lock = None


def output(program: str, *arguments: str) -> str:
    """Return what `git` or `dvc` prints.

    Raises:
        ValueError: It failed; holds its last line. Or another process runs dvc.
    """
    with alone(f"`dvc {' '.join(arguments)}`") if program == "dvc" else contextlib.nullcontext():
        command = _dvc(arguments) if program == "dvc" else [program, *arguments]
        inherited = (_lock.fileno(),) if _lock else ()
        try:
            done = subprocess.run(
                command,
                env=_environment(),
                capture_output=True,
                text=True,
                errors="replace",
                pass_fds=inherited,
            )
        except FileNotFoundError as error:
            raise ValueError(f"{program} is not installed. Install it.") from error
    if done.returncode:
        raise _failure(program, arguments, (done.stderr or done.stdout).splitlines())
    return done.stdout.strip()


def reproduce(target: str, log: Callable[[str], None] = print) -> None:
    """Run `dvc repro TARGET`.

    If it is interrupted, by whatever exception, dvc and its stage are ended first.

    Args:
        target: A stage.
        log: Is given every line that dvc and its stages print.

    Raises:
        ValueError: A stage failed, or another process runs dvc; one sentence.
    """
    arguments = ("repro", target)
    with alone(f"`dvc repro {target}`") as lock:
        process = subprocess.Popen(
            _dvc(arguments),
            env=_environment(),
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )
        lines = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip():
                    lines.append(line.strip())
                    log(lines[-1])
            process.wait()
        except BaseException:  # Prefect's TerminationSignal is no Exception
            _end(process)
            raise
    if process.returncode:
        raise _failure("dvc", arguments, lines)


def _dvc(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tnt.tether", "dvc", *arguments]


def _environment() -> dict[str, str]:
    """Return the environment for dvc and its stages: this Python, tied to this process."""
    here = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    if here not in path.split(os.pathsep):
        path = os.pathsep.join([here, path])
    return {
        "TQDM_MININTERVAL": PROGRESS_S,
        "OMP_WAIT_POLICY": "PASSIVE",
        "DVC_NO_ANALYTICS": "1",
        **os.environ,
        "PATH": path,
        tether.VARIABLE: str(os.getpid()),
    }


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all of its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERMINATION_S)


def _failure(program: str, arguments: Sequence[str], lines: Sequence[str]) -> ValueError:
    """Return what to say: who is in the way, or a stage's own line, or the last one."""
    text = "\n".join(lines)
    if blocker := re.search(r"\(PID (\d+)\): (.+)", text):
        return ValueError(
            f"DVC is busy: process {blocker[1]}, `{blocker[2]}`. Wait for it to end, or end it."
        )
    said = [line for line in lines if line.strip()]
    failed = next((i for i, line in enumerate(said) if line.startswith("ERROR: failed to")), 0)
    if failed:
        return ValueError(f"{said[failed].removeprefix('ERROR: ')}. {said[failed - 1]}")
    return ValueError(f"`{program} {' '.join(arguments)}` failed: {' '.join(said[-1:])}")
