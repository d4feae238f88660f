r"""Stage `detect`: find unwanted spans in completions.

python -m tnt.stages.detect data/rounds/r1/completions.parquet data/rounds/r1/flags.parquet \
        data/resolved/r1/detect.yaml
"""

from __future__ import annotations

from pathlib import Path

from tnt import artifacts, detectors, expectations, validation
from tnt.detectors import DetectorsParams
from tnt.records import Completion, Flag
from tnt.runs import command


def detect(completions_path: Path, flags_path: Path, *, params: DetectorsParams) -> None:
    """Write one row per finding."""
    completions = artifacts.read(completions_path, Completion)
    found = detectors.build_pinned(params)
    flags = detectors.find_flags(found, completions, redact=params.redact, title="detect")
    validation.validate(expectations.flags(flags, completions, found), flags_path)
    artifacts.write(flags, flags_path, Flag)


if __name__ == "__main__":
    command(detect)
