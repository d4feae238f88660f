r"""Stage `detect`: find unwanted spans in completions.

python -m tnt.stages.detect data/rounds/r1/completions.parquet data/rounds/r1/flags.parquet \
        data/resolved/r1/detect.yaml
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tnt import artifacts, detectors, expectations, validation
from tnt.detectors import DetectorsParams
from tnt.records import Completion, Flag
from tnt.runs import command


def detect(completions_path: Path, flags_path: Path, *, params: DetectorsParams) -> None:
    """Write one row per finding."""
    completions = artifacts.read(completions_path, Completion)
    found, redacting = detectors.build_pinned(params)
    flags = detectors.find_flags(found, completions, title="detect")
    shown = detectors.redacted(redacting, completions)
    texts = {(c.prompt_id, c.sample): c.text for c in shown}
    flags = [replace(f, text=texts[f.prompt_id, f.sample][f.start : f.end]) for f in flags]
    validation.validate(expectations.flags(flags, shown, found), flags_path)
    artifacts.write(flags, flags_path, Flag)


if __name__ == "__main__":
    command(detect)
