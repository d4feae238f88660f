"""A pickle that shows whether it was opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Pickled:
    """Makes a folder when it is unpickled."""

    path: Path

    def __reduce__(self):  # noqa: D105
        return os.mkdir, (str(self.path),)
