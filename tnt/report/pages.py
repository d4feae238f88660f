"""The Jinja environment of every HTML page: styles and scripts inlined, and nothing else runs."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tnt.evaluation.metrics import percent

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> Environment:
    """Return the environment in which the templates are rendered.

    They may use `asset(name)`, the text of a style sheet or a script; `digest(name)`, its hash as
    a Content-Security-Policy has it; and the filter `percent`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.globals |= {"asset": _asset, "digest": _digest}
    compact = {"ensure_ascii": False, "separators": (",", ":"), "sort_keys": True}
    environment.policies["json.dumps_kwargs"] = compact
    return environment


@cache
def _asset(name: str) -> Markup:
    from markupsafe import Markup

    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))  # our own, and not escaped


def _digest(name: str) -> str:
    found = hashlib.sha256(_asset(name).encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(found).decode("ascii")
