"""Which spaCy models are packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def is_package_of_model(name: str) -> bool:
    """Whether an installed package holds what `spacy.load` reads; nothing is imported."""
    return any(
        (folder / "meta.json").is_file() and any(folder.glob("*/config.cfg"))
        for folder in package(name)
    )


def package(name: str) -> list[Path]:
    """Return the folders of an installed package, none if there is no such package."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
