"""What can be checked before anything runs, in one line each."""

from __future__ import annotations

from pathlib import Path

from tnt import layout, project
from tnt.artifacts import sha256_of
from tnt.params import edited, load_yaml


def check() -> str:
    """Check the params, prompt files and data folders, and the model's context if it is there.

    Raises:
        ValueError: The first thing that is wrong.
    """
    loaded = project.load()
    project.refuse_stray_folders(loaded.rounds)
    tokenizer = context = None
    base = layout.model(layout.BASE)
    if (base / "config.json").is_file():
        from transformers import AutoConfig

        from tnt import models

        tokenizer = models.load_tokenizer(base)
        context = models.context_length(AutoConfig.from_pretrained(base))
    count = project.check_prompts(loaded, tokenizer, context)
    stages = len(project.resolved(loaded))
    found = f"{len(loaded.rounds)} rounds, {count} prompts read, params for {stages} stages"
    return f"{layout.PARAMS} is valid: {found}."


def pin() -> str:
    """Write the hash of a local base model, or the revision of a Hub one, into params.yaml.

    Raises:
        ValueError: The base cannot be reached.
    """
    base = load_yaml(layout.PARAMS).get("base")
    if not isinstance(base, dict) or not isinstance(base.get("name"), str):
        raise ValueError(f"{layout.PARAMS}: base is {base!r}. Give it a source and a name.")
    name = base["name"]
    match base.get("source"):
        case "hub":
            from huggingface_hub import HfApi

            key, value = "revision", str(HfApi().model_info(name).sha)
        case "local":
            key, value = "sha256", sha256_of(Path(name))
        case "package":
            from tnt import models

            key, value = "sha256", models.package_sha256(name, str(base.get("file")))
        case other:
            raise ValueError(f"base.source is {other!r}. Choose hub, local or package.")
    with edited(layout.PARAMS, load_yaml) as params:
        params["base"][key] = value
    return f"{key}: {value}"
