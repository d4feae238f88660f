"""What can be checked before anything runs, in one line each."""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import Annotated, Any

import typer

from tnt.base import BaseParams
from tnt.core.errors import Collected
from tnt.core.hashes import sha256_of
from tnt.core.params import edited, load_yaml
from tnt.core.records import BASE
from tnt.project import checks, explained, layout, resolved, wiring
from tnt.report import probe
from tnt.rounds import staleness
from tnt.rounds.programs import Busy


def command(
    pin: Annotated[bool, typer.Option(help="Write hashes of the models into params.yaml.")] = False,
    explain: Annotated[
        str, typer.Option(metavar="SECTION", help="Show its keys, like gate or train.patch.")
    ] = "",
) -> None:
    """Check params.yaml, the prompt files and the rounds, before anything runs."""
    if explain:
        print(explained.explain(explain))
        return
    if pin:
        print("\n".join(pin_models()))
    print(check())


def check() -> str:
    """Check the params, prompt files and data folders, and the model's context if it is there.

    Raises:
        Faults: What is wrong, params.yaml first: the rest is only looked at where that is valid.
    """
    loaded = checks.load()
    collected, count, note = Collected(), 0, ""
    with collected:
        wiring.refuse_unwired(load_yaml(layout.PIPELINE).get("stages") or {})
    with collected:
        checks.refuse_stray_folders(loaded.rounds)
    with collected:
        count = checks.check_prompts(loaded, *_tokenizer_and_config(loaded.base))
    with collected:
        if loaded.report.probe:
            probe.read({loaded.report.probe: sha256_of(Path(loaded.report.probe))})
    collected.refuse()
    stages = len(resolved.params(loaded))
    if Path(".git").exists():
        try:
            staleness.refuse_outdated()
        except Busy as busy:
            note = f" Whether the accepted rounds are up to date was not checked: {busy}"
    found = f"{len(loaded.rounds)} rounds, {count} prompts read, params for {stages} stages"
    return f"{layout.PARAMS} is valid: {found}.{note}"


def _tokenizer_and_config(params: BaseParams) -> tuple[Any, Any]:
    """Return those of the base as it was made, or else of the folder that it comes from.

    Both are None where neither is there yet.
    """
    source = [Path(params.name)] if params.source == "local" else []
    for folder in [layout.model(BASE), *source]:
        if (folder / "config.json").is_file():
            from transformers import AutoConfig

            from tnt import models

            return models.load_tokenizer(folder), AutoConfig.from_pretrained(folder)
    return None, None


def pin_models() -> list[str]:
    """Write hashes and Hub revisions of the base and of classifiers into params.yaml; return them.

    Raises:
        ValueError: One of them cannot be reached.
    """
    params = load_yaml(layout.PARAMS)
    models: dict[str, Any] = {"base": params.get("base")}
    for name, config in (params.get("detectors") or {}).items():
        if isinstance(config, dict) and config.get("kind") == "classifier":
            models[f"detectors.{name}"] = config
    found = {where: _pinned(where, config) for where, config in models.items()}
    with edited(layout.PARAMS, load_yaml) as params:
        for where, (key, value) in found.items():
            functools.reduce(operator.getitem, where.split("."), params)[key] = value
    return [f"{where}.{key}: {value}" for where, (key, value) in found.items()]


def _pinned(where: str, config: Any) -> tuple[str, str]:
    """Return which key pins a model, and its value."""
    if not isinstance(config, dict) or not isinstance(config.get("name"), str):
        raise ValueError(f"{layout.PARAMS}: {where} is {config!r}. Give it a source and a name.")
    name = config["name"]
    match config.get("source"):
        case "hub":
            from huggingface_hub import HfApi

            try:
                return "revision", str(HfApi().model_info(name).sha)
            except Exception as error:  # the Hub's library has many, for names and the network
                raise ValueError(
                    f"The Hub does not tell the revision of {where}.name {name!r}: "
                    f"{type(error).__name__}: {error}. Check the name and the network."
                ) from error
        case "local":
            return "sha256", sha256_of(Path(name))
        case "package" if where == "base":
            from tnt import base

            return "sha256", base.package_sha256(name, str(config.get("file")))
        case other:
            raise ValueError(f"{where}.source is {other!r}. Choose hub or local (base: package).")
