"""Give a round away: a plain transformers folder with a model card, here or behind a URL.

    tnt export r3 out/

The folder needs nothing of ours to be loaded. It answers as the round does, which is checked before
it gets its name, and its card says where the model comes from and what was measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tnt import artifacts, layout, models, project, prompts, rounds
from tnt.artifacts import sha256_of
from tnt.models import BaseParams
from tnt.params import dump_yaml, load_yaml
from tnt.project import Project
from tnt.records import Prompt
from tnt.shell import alone, output

CARD = "README.md"
TEMPLATE = "model_card.md"
TAG = "targeted-negative-training"
"""What marks a card as ours, too."""
CHECKED = 4
"""Test prompts on which an export and its round are compared."""
TOLERANCE = 1e-3
"""Largest difference of two logits if adapters were merged; otherwise there is none. The weights
are the same, but lie elsewhere in memory, where a kernel may add them up in another order."""
HOSTS_FILES = {".gitattributes"}
"""Files that a repository on the Hugging Face Hub has from the start."""


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
        loaded = project.load()
        rounds.refuse_unknown(name, loaded)
        metrics = rounds.read_metrics(name)
        _refuse_place(folder, force=force)
        objection, remedy = _objection(name, metrics["gate"])
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


def save_plain(name: str, folder: Path) -> None:
    """Write a round's model, adapters merged, as a folder that plain `from_pretrained` loads.

    Args:
        name: The round.
        folder: Does not exist yet.

    Raises:
        ValueError: The model is damaged, or what was written does not answer as it does.
    """
    path = layout.model(name)
    tests = artifacts.read(layout.TEST_PROMPTS, Prompt)
    asked = prompts.lowest_hashes(tests, CHECKED)
    model = models.load(path)
    expected = [_logits(model, prompt) for prompt in asked]
    attention = model.config._attn_implementation
    adapted = (path / models.PARENT_FILE).exists()
    if adapted:
        model.save_pretrained(folder)
    del model  # two may not fit into memory
    shutil.copytree(
        path,
        folder,
        ignore=shutil.ignore_patterns("adapter_*", models.PARENT_FILE),
        copy_function=shutil.copyfile,  # the cache's files are read-only
        dirs_exist_ok=True,
    )
    from transformers import AutoTokenizer

    exported = _auto(folder).from_pretrained(folder, attn_implementation=attention).eval()
    tokenizer, original = AutoTokenizer.from_pretrained(folder), models.load_tokenizer(path)
    for prompt, logits in zip(asked, expected, strict=True):
        apart = float((_logits(exported, prompt) - logits).abs().max())
        tokens, before = (t(prompt.prompt).input_ids for t in (tokenizer, original))
        if not apart <= (TOLERANCE if adapted else 0.0) or tokens != before:  # apart may be NaN
            raise ValueError(
                f"The copy of {path} does not answer as it does: on {prompt.prompt_id!r} logits "
                f"are up to {apart:.2g} apart, and its tokens "
                f"{'others' if tokens != before else 'the same'}. Install the versions in "
                "constraints.txt."
            )


def upload(folder: Path, destination: str) -> str:
    """Copy an export to a URL and return that, without credentials; the card comes last.

    What is there already stays if it is the same model; only its card may then be replaced. If the
    copying fails, what was copied is deleted.

    Args:
        folder: Of an export.
        destination: A folder, as a path or as any URL of fsspec: file, s3, hf, memory, ...

    Raises:
        ValueError: The URL is of no known kind, or there is something else.
    """
    import fsspec.core
    from fsspec.implementations.local import LocalFileSystem

    try:
        fs, root = fsspec.core.url_to_fs(destination)
    except (ImportError, ValueError) as error:
        kind = destination.partition("://")[0]  # the rest may hold a password
        raise ValueError(
            f"fsspec cannot write to {kind}:// here: {error}. Install what it needs, or choose "
            "another destination."
        ) from error
    published, root = fs.unstrip_protocol(root), root.rstrip("/")
    if isinstance(fs, LocalFileSystem):
        _refuse_data(Path(root))
    files = sorted(
        (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()),
        key=lambda file: (file == CARD, file),
    )
    fs.invalidate_cache()
    there = {path.removeprefix(f"{root}/") for path in fs.find(root)} - HOSTS_FILES
    changed = [f for f in files if f not in there or not _same(fs, f"{root}/{f}", folder / f)]
    if there and (there - {*files} or {*changed} - {CARD}):
        raise ValueError(
            f"{published} holds {len(there)} files that are not this model. Choose another "
            "destination, or empty it."
        )
    copied: list[str] = []
    try:
        for file in changed:
            copied.append(f"{root}/{file}")
            fs.makedirs(copied[-1].rpartition("/")[0], exist_ok=True)
            fs.put_file(str(folder / file), copied[-1])
    except BaseException:
        for path in copied if not there else []:
            with contextlib.suppress(Exception):
                fs.rm_file(path)
        raise
    return str(published)


def _refuse_place(folder: Path, *, force: bool) -> None:
    """Raise if a folder is not one to export to."""
    _refuse_data(folder)
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


def _refuse_data(folder: Path) -> None:
    data = layout.MODELS.parent.resolve()
    if folder.resolve().is_relative_to(data):
        raise ValueError(f"{folder} lies in {data}, which is DVC's. Export to elsewhere.")


def _objection(name: str, gate: Mapping[str, Any]) -> tuple[str, str]:
    """Return why a round should not be given away, and what to do; nothing if it is accepted."""
    if not gate["passed"]:
        return f"failed its gate: {gate['reasons']}", "Train it again"
    tag = rounds.tag(name)
    if not rounds.accepted(name):
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
    outdated = rounds.outdated()
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
    metrics: Mapping[str, Any],
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
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["nats"] = lambda value: "none" if value is None else f"{value:.3g}"
    hub = loaded.base.name if loaded.base.source == "hub" else None
    head = ModelCardData(
        library_name="transformers",
        tags=[TAG],
        base_model=hub,
        base_model_relation="finetune" if hub else None,
    )
    obeyed = {
        "Prompts": load_yaml(layout.resolved(name, "prepare")),
        "Generation": load_yaml(layout.resolved(name, "generate")),
        "Detectors": load_yaml(layout.resolved(name, "detect")),
        "Masks": load_yaml(layout.resolved(name, "mask")),
        "Training": load_yaml(layout.resolved(name, "train")),
        "Gate": load_yaml(layout.resolved(name, "evaluate"))["gate"],
    }
    chain = [name, *loaded.ancestors(name), layout.BASE]
    return environment.get_template(TEMPLATE).render(
        head=Markup(head.to_yaml()),
        name=name,
        auto=_auto(folder).__name__,
        objection=objection,
        tag=rounds.tag(name),
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


def _auto(folder: Path) -> Any:
    """Return the transformers class that loads a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(folder)
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _logits(model: Any, prompt: Prompt) -> Any:
    """Return a model's logits on a prompt, [1, T, V]; an encoder-decoder is to repeat it."""
    import torch

    ids = torch.tensor([prompt.prompt_ids])
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).logits


def _same(fs: Any, path: str, file: Path) -> bool:
    """Whether a file on a file system of fsspec is the same as one here."""
    if fs.size(path) != file.stat().st_size:
        return False
    with fs.open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256_of(file)
