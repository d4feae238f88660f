"""Checkpoints that are whole or not there."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tnt.core.hashes import sha256_of


def last_checkpoint(workdir: Path) -> str | None:
    """Return the folder of the last checkpoint that is as it was written, if there is one.

    Others are deleted: the trainer would count them among those it keeps.
    """
    found = [path for path in workdir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    whole = [path for path in found if is_whole(path)]
    for path in {*found} - {*whole}:
        shutil.rmtree(path)
    last = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return str(last) if last else None


def seal(checkpoint: Path) -> Path:
    """Return the file beside a checkpoint that holds its hash, written when it was complete."""
    return checkpoint.with_suffix(".sha256")


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is as it was written."""
    written = seal(checkpoint)
    return written.is_file() and written.read_text(encoding="utf-8") == sha256_of(checkpoint)
