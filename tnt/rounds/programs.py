"""Run git and dvc as commands; one process at a time may run dvc here.

DVC runs as a process of its own: its locks belong to processes, so that two threads of one would
not keep out of each other's way, and only a process can be ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

from tnt.core import tether
from tnt.core.locks import held

FOLDER = Path(".dvc")
LOCK = FOLDER / "tmp" / "tnt.lock"
DVCS_LOCKS = FOLDER / "tmp" / "rwlock"
GIT = (
    "git",
    *("-c", "commit.cleanup=whitespace"),
    *("-c", "commit.gpgSign=false"),
    *("-c", "i18n.commitEncoding=UTF-8"),
    *("-c", "i18n.logOutputEncoding=UTF-8"),
    *("-c", "log.showSignature=false"),
    *("-c", "trailer.separators=:"),
)
"""Git without those settings of a user's that change what is written and read back here, or ask
for something where nobody sees it."""
TERMINATION_S = 10.0
"""What dvc and its stage are given to end before they are killed."""
PROGRESS_S = "30"
"""Seconds between two lines of a progress bar in a log."""


class Busy(ValueError):
    """Another process runs dvc."""


_lock: IO[str] | None = None
"""The lock file while this process holds it."""


@contextlib.contextmanager
def alone(doing: str) -> Iterator[IO[str]]:
    """Keep every other command and flow of tnt from running dvc here; may be nested.

    A dvc that was started inherits the lock, so that it outlives a command that was killed. A
    `dvc repro` by hand takes no part in it; DVC's own locks keep it and ours apart.

    Args:
        doing: What to tell those who find it locked.

    Raises:
        Busy: Another process holds the lock.
        ValueError: There is no DVC repository here.
    """
    global _lock
    if _lock is not None:
        yield _lock
        return
    if not FOLDER.is_dir():
        raise ValueError(f"{Path.cwd()} is no DVC repository. Run this in the project's folder.")
    with contextlib.ExitStack() as stack:
        try:
            _lock = stack.enter_context(held(LOCK, doing=doing))
        except ValueError as error:
            raise Busy(str(error)) from None
        stack.callback(_forget_lock)
        _drop_damaged_lock()
        yield _lock


def output(program: Literal["git", "dvc"], *arguments: str) -> str:
    """Return what `git` or `dvc` prints.

    Raises:
        ValueError: It failed; holds its last line. Or another process runs dvc.
    """
    with alone(f"`dvc {' '.join(arguments)}`") if program == "dvc" else contextlib.nullcontext():
        command = _dvc(arguments) if program == "dvc" else [*GIT, *arguments]
        with _started(command) as process:
            printed, errors = process.communicate()
    if process.returncode:
        raise _failure(program, arguments, (errors or printed).splitlines())
    return printed.strip()


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
    lines = []
    with (
        alone(f"`dvc repro {target}`"),
        _started(_dvc(arguments), stderr=subprocess.STDOUT) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                lines.append(line.strip())
                log(lines[-1])
    if process.returncode:
        raise _failure("dvc", arguments, lines)


@contextlib.contextmanager
def _started(
    command: Sequence[str], stderr: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """Run a program while the body reads what it prints; whatever interrupts that ends it in order.

    Killed at once, git would leave its locks behind, and dvc its stage.
    """
    try:
        process = subprocess.Popen(
            command,
            env=_environment(),
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            pass_fds=(_lock.fileno(),) if _lock and "dvc" in command else (),
        )
    except FileNotFoundError as error:
        raise ValueError(f"{command[0]} is not installed. Install it.") from error
    try:
        yield process
        process.wait()
    except BaseException:  # Prefect's TerminationSignal is no Exception
        _end(process)
        raise


def _forget_lock() -> None:
    global _lock
    _lock = None


def _drop_damaged_lock() -> None:
    """Delete the file of DVC's locks if a kill left it half-written; every dvc would stop at it."""
    for patience in (1.0, 0.0):  # another dvc may be about to have written it
        try:
            json.loads(DVCS_LOCKS.read_bytes())
            return
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(patience)
    DVCS_LOCKS.unlink(missing_ok=True)


def _dvc(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tnt.core.tether", "dvc", *arguments]


def _environment() -> dict[str, str]:
    """Return the environment for git, dvc and its stages: this Python, tied to this process."""
    here = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    if here not in path.split(os.pathsep):
        path = os.pathsep.join([here, path])
    return {
        "TQDM_MININTERVAL": PROGRESS_S,
        "OMP_WAIT_POLICY": "PASSIVE",
        "DVC_NO_ANALYTICS": "1",
        **os.environ,
        "GIT_EDITOR": "true",  # an editor would wait where nobody sees it
        "GIT_TERMINAL_PROMPT": "0",
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
        return Busy(
            f"DVC is busy: process {blocker[1]}, `{blocker[2]}`. Wait for it to end, or end it."
        )
    said = [line for line in lines if line.strip()]
    failed = next((i for i, line in enumerate(said) if line.startswith("ERROR: failed to")), 0)
    if failed:
        return ValueError(f"{said[failed].removeprefix('ERROR: ')}. {said[failed - 1]}")
    return ValueError(f"`{program} {' '.join(arguments)}` failed: {' '.join(said[-1:])}")
