"""Export a round as a plain transformers folder with a model card.

    tnt export r3 out/

The folder needs nothing of ours to be loaded. It answers as the round does, which is checked before
it gets its name, and its card says where the model comes from and what was measured.
"""

from __future__ import annotations

import re
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from tnt.base import BaseParams
from tnt.commands import Name
from tnt.core import artifacts
from tnt.core.hashes import sha256_of
from tnt.core.params import dump_yaml, load_yaml
from tnt.core.records import BASE
from tnt.evaluation.round_metrics import Gate, RoundMetrics
from tnt.project import checks, layout
from tnt.project.sections import Project
from tnt.rounds import listed, staleness, trailers, verdicts
from tnt.rounds.plain import auto, save_plain
from tnt.rounds.programs import alone, output

CARD = "README.md"
TEMPLATE = "model_card.md"
TAG = "targeted-negative-training"
"""What marks a card as ours, too."""


def command(
    name: Name,
    folder: Annotated[str, typer.Argument(help="A new or empty folder.")],
    ungated: Annotated[
        bool, typer.Option(help="Even if it failed its gate or is not accepted.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
) -> None:
    """Write a round as a plain transformers folder with a model card."""
    print(f"Exported {name} to {export(name, Path(folder), ungated=ungated, force=force)}.")


def export(name: str, folder: Path, *, ungated: bool = False, force: bool = False) -> Path:
    """Write a round's model, adapters merged, and its card as a folder; return the whole path.

    Args:
        name: The round.
        folder: A new or an empty one.
        ungated: Export a round that failed its gate or is not accepted; its card says so.
        force: Replace an earlier export.

    Raises:
        ValueError: The round is unknown, not evaluated, not accepted, or not what dvc.lock says; or
            the folder holds something or is not for this; or the export answers otherwise.
    """
    folder = folder.resolve()
    with alone(f"`tnt export {name}`"):
        loaded = checks.load()
        listed.refuse_unknown(name, loaded)
        metrics = listed.read_metrics(name)
        _refuse_place(folder, force=force)
        objection, remedy = _objection(name, metrics.gate)
        if objection and not ungated:
            raise ValueError(
                f"The round {name!r} {objection}. {remedy}, or export it all the same: --ungated."
            )
        _refuse_changed(name)
        revision = _revision(folder)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent
        ) as scratch:
            made = Path(scratch, "new")
            save_plain(name, made)
            card = _card(name, loaded, made, metrics, objection=objection, revision=revision)
            artifacts.write_text(card, made / CARD)
            if folder.exists():
                folder.rename(Path(scratch, "old"))
            made.rename(folder)
    return folder


def _refuse_place(folder: Path, *, force: bool) -> None:
    """Raise if a folder is not one to export to."""
    refuse_data(folder)
    if not folder.parent.is_dir():
        raise ValueError(f"{folder.parent} does not exist. Create it, or export to elsewhere.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file. Name a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise ValueError(f"{folder} is not empty. Name another, or replace it: --force.")
        card = folder / CARD
        head = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        known = f"\n- {TAG}\n" in head.partition("\n---\n")[0] + "\n"
        if not known or Path.cwd().is_relative_to(folder):
            raise ValueError(
                f"{folder} holds something else than an earlier export, which is all that --force "
                "replaces. Name another folder, or empty it."
            )


def refuse_data(folder: Path) -> None:
    """Raise if a folder lies among DVC's data."""
    data = layout.MODELS.parent.resolve()
    if folder.resolve().is_relative_to(data):
        raise ValueError(f"{folder} lies in {data}, which is DVC's. Export to elsewhere.")


def _objection(name: str, gate: Gate) -> tuple[str, str]:
    """Return why a round should not be exported, and what to do; nothing if it is accepted."""
    if not gate.passed:
        return f"failed its gate: {gate.reasons}", "Train it again"
    tag = trailers.tag(name)
    if not verdicts.accepted(name):
        return "is not accepted", f"`tnt rounds accept {name}`"
    locked = layout.LOCK.read_text(encoding="utf-8")
    if _locked_model(locked, name) != _locked_model(
        output("git", "show", f"{tag}:./{layout.LOCK}"), name
    ):
        return f"is not the one accepted as {tag}", f"`git checkout {tag}` and `dvc checkout`"
    return "", ""


def _locked_model(lock: str, name: str) -> str | None:
    """Return DVC's hash of a round's model in a dvc.lock, if it is there."""
    stage = YAML(typ="safe").load(lock)["stages"].get(f"train@{name}", {"outs": []})
    hashes = {out["path"]: out["md5"] for out in stage["outs"]}
    return hashes.get(layout.model(name).as_posix())


def _refuse_changed(name: str) -> None:
    """Raise if a round's model, or what was measured of it, is not what dvc.lock says."""
    outdated = staleness.outdated()
    for stage in (f"train@{name}", f"respond@{name}", f"evaluate@{name}"):
        if said := outdated.get(stage):
            raise ValueError(
                f"{stage} is not up to date: {', '.join(said[:3])}. `dvc checkout` restores what "
                f"was changed or deleted, `dvc repro evaluate@{name}` makes it anew."
            )


def _revision(folder: Path) -> dict[str, Any]:
    """Return git's commit, its tags, and whether files other than the export differ from it."""
    own = []
    if folder.is_relative_to(Path.cwd()):
        own = [f":(exclude,literal){folder.relative_to(Path.cwd()).as_posix()}"]
    return {
        "commit": output("git", "rev-parse", "HEAD"),
        "tags": output("git", "tag", "--points-at", "HEAD").split(),
        "dirty": bool(output("git", "status", "--porcelain", "--", ".", *own)),
    }


def _card(
    name: str,
    loaded: Project,
    folder: Path,
    metrics: RoundMetrics,
    *,
    objection: str,
    revision: Mapping[str, Any],
) -> str:
    """Return the model card of an export; no text in it was generated."""
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else _escaped(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["nats"] = lambda value: "none" if value is None else f"{value:.3g}"
    hub = loaded.base.name if loaded.base.source == "hub" else None
    head = ModelCardData(
        library_name="transformers",
        tags=[TAG],
        base_model=hub,
        base_model_relation="finetune" if hub else None,
    )
    obeyed = {
        title: _params_of(name, stage)
        for title, stage in {
            "Prompts": "prepare",
            "Generation": "generate",
            "Detectors": "detect",
            "Masks": "mask",
            "Training": "train",
        }.items()
    }
    obeyed["Gate"] = _params_of(name, "evaluate")["gate"]
    chain = [name, *loaded.ancestors(name), BASE]
    return environment.get_template(TEMPLATE).render(
        head=Markup(head.to_yaml()),
        name=name,
        auto=auto(folder).__name__,
        objection=objection,
        tag=trailers.tag(name),
        chain={link: sha256_of(layout.model(link)) for link in chain},
        source=_source(loaded.base),
        metrics=metrics,
        revision=revision,
        lock=sha256_of(layout.LOCK),
        weights={file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))},
        obeyed={  # nothing gets out of an indented block
            title: Markup(textwrap.indent(dump_yaml(values), "    "))
            for title, values in obeyed.items()
        },
    )


def _params_of(name: str, stage: str) -> dict[str, Any]:
    """Return the params that a stage of a round obeyed, without the code that it ran."""
    values = load_yaml(layout.resolved(name, stage))
    values.pop("code", None)
    return values


def _escaped(text: str) -> str:
    """Return a text as one line of Markdown that says just that, in a table too."""
    return re.sub(r"[\\`*_\[\]<>|~&$#!]", r"\\\g<0>", " ".join(text.split()))


def _source(base: BaseParams) -> str:
    """Return where a base comes from, without the paths of this machine."""
    match base.source:
        case "hub":
            return f"{base.name} on the Hugging Face Hub, revision {base.revision}"
        case "package":
            return f"{base.file} in the Python package {base.name}, sha256 {base.sha256}"
        case "local":
            return f"a local folder, {Path(base.name).name}, sha256 {base.sha256}"
