r"""Stage `detect`: find unwanted spans in completions.

python -m tnt.stages.detect data/rounds/r1/completions.parquet data/rounds/r1/flags.parquet \
        data/resolved/r1/detect.yaml
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tnt.core import artifacts, validation
from tnt.core.command import command
from tnt.core.expected import SHARE, number, one_of, suite, true, unique
from tnt.core.records import Completion, Flag
from tnt.core.validation import Suite
from tnt.detectors import pinned, redaction, running
from tnt.detectors.pinned import DetectorsParams


def detect(completions_path: Path, flags_path: Path, *, params: DetectorsParams) -> None:
    """Write one row per finding."""
    completions = artifacts.read(completions_path, Completion)
    found, redacting = pinned.build_pinned(params)
    flags = running.find_flags(found, completions, title="detect")
    shown = redaction.redacted(redacting, completions)
    texts = {(c.prompt_id, c.sample): c.text for c in shown}
    flags = [replace(f, text=texts[f.prompt_id, f.sample][f.start : f.end]) for f in flags]
    validation.validate(flags_suite(flags, shown, found), flags_path)
    artifacts.write(flags, flags_path, Flag)


def flags_suite(
    rows: Sequence[Flag], completions: Sequence[Completion], names: Iterable[str]
) -> Suite:
    """Return what is expected of flags; there may be none.

    Args:
        rows: The flags.
        completions: What they are about, redacted where the flags are.
        names: The detectors that ran.
    """
    texts = {(c.prompt_id, c.sample): c.text for c in completions}
    table = []
    for row in rows:
        text = texts.get((row.prompt_id, row.sample))
        table.append(
            {
                **{name: getattr(row, name) for name in Flag.KEY},
                "of_a_completion": text is not None,
                "inside_the_text": text is not None and 0 <= row.start < row.end <= len(text),
                "quotes_the_text": text is not None and text[row.start : row.end] == row.text,
                "score": row.score,
            }
        )
    correct = "Correct the detector that is named."
    return suite(
        "flags",
        Flag.KEY,
        table,
        unique(Flag.KEY, correct),
        one_of("detector", sorted(names), "Delete the file and run `dvc repro`."),
        true("of_a_completion", "Run detect on the same completions.parquet."),
        true("inside_the_text", correct),
        true("quotes_the_text", correct),
        *number("score", SHARE, f"{correct} A score is a probability."),
    )


if __name__ == "__main__":
    command(detect)
