"""Run git and dvc as commands."""

from __future__ import annotations

import subprocess
import sys


def output(program: str, *arguments: str) -> str:
    """Return what `git` or `dvc` prints.

    Raises:
        ValueError: It failed; holds its last line.
    """
    interpreter = [sys.executable, "-m"] if program == "dvc" else []
    try:
        done = subprocess.run([*interpreter, program, *arguments], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ValueError(f"{program} is not installed. Install it.") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ValueError(f"`{program} {' '.join(arguments)}` failed: {' '.join(last)}")
    return done.stdout.strip()
