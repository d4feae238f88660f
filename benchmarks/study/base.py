"""The base's own answers, which every cell of a size is compared with.

python base.py screen base/screen.parquet
"""

from __future__ import annotations

import sys
from pathlib import Path

import measure

from tnt.core import artifacts
from tnt.core.records import Completion


def main(size: str, out: Path) -> None:
    """Write the answers."""
    model, tokenizer = measure.start()
    asked = measure.asked(measure.PARAMS["sizes"][size], tokenizer)
    artifacts.write(measure.answers(model, tokenizer, asked), out, Completion)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
