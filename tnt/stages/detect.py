r"""Stage `detect`: find unwanted spans in completions.

python -m tnt.stages.detect data/rounds/r1/completions.parquet data/rounds/r1/flags.parquet \
        data/resolved/r1/detect.yaml
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from tnt import artifacts, detectors
from tnt.detectors import DetectorsParams
from tnt.records import Completion, Flag
from tnt.runs import command


def detect(completions_path: Path, flags_path: Path, *, params: DetectorsParams) -> None:
    """Write one row per finding."""
    completions = artifacts.read(completions_path, Completion)
    bar = tqdm(completions, desc="detect", unit="completion")
    flags = detectors.find_flags(detectors.build_pinned(params), bar)
    artifacts.write(flags, flags_path, Flag)


if __name__ == "__main__":
    command(detect)
