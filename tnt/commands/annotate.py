"""`tnt annotate`: completions out for labelling, annotations in for training."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tnt.annotations.annotation import LABEL, Annotation, Labelled
from tnt.annotations.files import json_lines, read_annotations
from tnt.annotations.label_studio import labelling_config, tasks
from tnt.commands import Name
from tnt.core import artifacts
from tnt.core.errors import did_you_mean
from tnt.core.params import dump_yaml, load_yaml
from tnt.core.records import Completion, Flag
from tnt.project import layout

FORMATS = {"jsonl": "jsonl", "label-studio": "json"}
"""Format -> how its files end."""
FOLDER = Path("work/annotate")
"""Where exports go by default: neither git nor DVC follows it."""


app = typer.Typer(
    help="Send completions out for labelling, and take people's work back.", no_args_is_help=True
)
Force = Annotated[bool, typer.Option(help="Replace the file if it exists.")]


@app.command("export")
def export_for_labelling(
    name: Name,
    to: Annotated[str | None, typer.Option(help="By default a file in work/annotate/.")] = None,
    format: Annotated[str, typer.Option(help="jsonl or label-studio.")] = "jsonl",
    force: Force = False,
) -> None:
    """Write a round's completions for labelling, with its current flags as a start."""
    done = export(name, to=Path(to) if to else None, format=format, force=force)
    print(f"Wrote {done.texts} texts with {done.spans} flags to {done.path}.")
    if format == "label-studio":
        print(f"The labelling interface of the project:\n{labelling_config(done.labels)}")


@app.command("import")
def import_annotations(
    name: Name,
    file: Annotated[str, typer.Argument(help="JSON Lines, or Label Studio's JSON export.")],
    to: Annotated[str, typer.Option(help="A .jsonl file in data/annotations/.")],
    force: Force = False,
) -> None:
    """Check people's annotations of a round's completions and keep them for a detector."""
    found = bring_in(name, Path(file), to=Path(to), force=force)
    corrected = sum(a.corrected is not None for a in found)
    flagged = sum(bool(a.flagged()) for a in found)
    entry = params_entry(Path(to), corrective=bool(corrected))
    print(
        f"Wrote {len(found)} annotations to {to}: {flagged} texts flagged, {len(found) - flagged} "
        f"clean, {corrected} with a correction. Add to params.yaml, and name it in the detectors "
        f"of the round that is to learn from it:\n{entry}"
    )


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported."""

    path: Path
    texts: int
    spans: int
    """Current flags, as a start."""
    labels: list[str]


def export(
    name: str, *, to: Path | None = None, format: str = "jsonl", force: bool = False
) -> Exported:
    """Write a round's completions for labelling, each text once, with its current flags.

    Args:
        name: The round.
        to: The file; None is `work/annotate/<round>.jsonl` or `.json`.
        format: A key of `FORMATS`.
        force: Whether a file that is there may be replaced.

    Raises:
        ValueError: There is no such round, format or completion, or the file is there already.
    """
    if format not in FORMATS:
        raise ValueError(f"The format {format!r} is unknown.{did_you_mean(format, FORMATS)}")
    path = to or FOLDER / f"{name}.{FORMATS[format]}"
    completions = _completions(name)
    spans: dict[tuple[str, int], set[Labelled]] = {}
    flags = layout.ROUNDS / name / "flags.parquet"
    for flag in artifacts.read(flags, Flag) if flags.is_file() else []:
        found = flag.start, flag.end, flag.label or flag.detector
        spans.setdefault((flag.prompt_id, flag.sample), set()).add(found)
    _refuse_existing(path, force)
    unique: dict[tuple[str, str], Annotation] = {}
    for c in completions:
        own = sorted(spans.get((c.prompt_id, c.sample), ()))
        visible = tuple(span for span in own if c.text[span[0] : span[1]].strip())
        annotation = Annotation(c.prompt_id, c.sample, c.input, c.text, visible)
        unique.setdefault((c.input, c.text), annotation)
    annotations = list(unique.values())
    write = tasks if format == "label-studio" else json_lines
    artifacts.write_text(write(annotations), path)
    labels = sorted({label for a in annotations for _, _, label in a.spans} | {LABEL})
    return Exported(path, len(annotations), sum(len(a.spans) for a in annotations), labels)


def bring_in(name: str, file: Path, *, to: Path, force: bool = False) -> list[Annotation]:
    """Check annotations of a round's completions, write them in the canonical form, return them.

    Args:
        name: The round.
        file: JSON Lines or a JSON export of Label Studio.
        to: A `.jsonl` file in `data/annotations/`.
        force: Whether a file that is there may be replaced.

    Raises:
        ValueError: One is about something that the round did not say; nothing is then written.
    """
    if not to.is_relative_to(layout.ANNOTATIONS) or ".." in to.parts or to.suffix != ".jsonl":
        raise ValueError(
            f"The annotations cannot go to {str(to)!r}. Name a file like "
            f"{layout.ANNOTATIONS}/people.jsonl, where detectors may read."
        )
    completions = {(c.prompt_id, c.sample): c for c in _completions(name)}
    annotations = read_annotations(file)
    strange = [
        (annotation, why)
        for annotation in annotations
        if (why := _difference(annotation, completions))
    ]
    if strange:
        annotation, why = strange[0]
        raise ValueError(
            f"{len(strange)} of the {len(annotations)} annotations in {file} are not about what "
            f"{name} says; the first is of {annotation.prompt_id!r}, sample {annotation.sample}, "
            f"{why}. Nothing was written: annotate what `tnt annotate export {name}` writes now."
        )
    _refuse_existing(to, force)
    unique = {(a.prompt_id, a.sample): a for a in annotations}
    annotations = [unique[key] for key in sorted(unique)]
    artifacts.write_text(json_lines(annotations), to)
    return annotations


def params_entry(path: Path, *, corrective: bool) -> str:
    """Return what a detector that reads a file of annotations is in params.yaml."""
    entry: dict[str, Any] = {"kind": "annotations", "file": path.as_posix()}
    if corrective:
        entry["corrective"] = True
    return dump_yaml({"detectors": {path.stem: entry}}).rstrip()


def _completions(name: str) -> list[Completion]:
    rounds = load_yaml(layout.PARAMS).get("rounds") or {}
    if name not in rounds:
        raise ValueError(f"There is no round {name!r}.{did_you_mean(name, rounds)}")
    return artifacts.read(layout.ROUNDS / name / "completions.parquet", Completion)


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise ValueError(f"{path} exists already. Name another file, or replace it with --force.")


def _difference(
    annotation: Annotation, completions: dict[tuple[str, int], Completion]
) -> str | None:
    """Return in what an annotation differs from the completion it names, if in anything."""
    completion = completions.get((annotation.prompt_id, annotation.sample))
    if completion is None:
        return "which is no completion of the round"
    for field in ("input", "text"):
        wanted, found = getattr(completion, field), getattr(annotation, field)
        if wanted != found:
            # Never the words: they may be private.
            pairs = enumerate(itertools.zip_longest(wanted, found))
            first = next(i for i, (one, other) in pairs if one != other)
            return (
                f"whose {field} has {len(wanted)} characters there and {len(found)} in the file, "
                f"and differs from character {first} on"
            )
    return None
