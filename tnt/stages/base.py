"""Stage `base`: fetch the base model and save it as a plain transformers folder.

python -m tnt.stages.base data/models/base data/resolved/base/base.yaml
"""

from __future__ import annotations

from pathlib import Path

from tnt.base import BaseParams, fetch_base
from tnt.core.command import command


def base(model_path: Path, *, params: BaseParams) -> None:
    """Write the base model and its tokenizer."""
    for note in fetch_base(params, model_path):
        print(note)


if __name__ == "__main__":
    command(base)
