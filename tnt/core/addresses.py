"""Addresses as they may be shown: in commits, on pages, in errors."""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "..."
_ADDRESS = re.compile(r"[\w.+:-]+://[^\s'\"<>]*")
_WORD = re.compile(r"\w{3,}")


def shown(address: str) -> str:
    """Return an address without what may be secret: its scheme, host and last name are kept.

    `https://me:p@ss/word@host/a/b.jsonl?sig=x` becomes `https://host/.../b.jsonl`. Where an @ may
    be part of a query or of a password the scheme alone is kept. A path on disk stays as it is.
    """
    address = " ".join(address.split())
    scheme, is_address, rest = address.partition("://")
    if not is_address:
        return address
    before, _, place = rest.rpartition("@")
    if re.search(r"[?#;]", before):
        return f"{scheme}://{HIDDEN}"
    place = re.split(r"[?#;]", place, maxsplit=1)[0]
    host, _, path = place.partition("/")
    owner, in_path, _ = before.partition("/")
    if in_path and ":" not in owner:  # no name and password: the @ is part of the path
        host, path = HIDDEN, place
    folder, _, name = path.rpartition("/")
    middle = HIDDEN if folder and host != HIDDEN else None
    return f"{scheme}://" + "/".join(part for part in (host, middle, name) if part is not None)


def without_secrets(address: str) -> str:
    """Return an address whole if nothing in it can be secret, else what is shown of it."""
    return shown(address) if re.search(r"[@?#;]", address) else address


def told(said: str, address: str) -> str | None:
    """Return what a library said about an address, None if it repeats what is hidden of that."""
    said = _ADDRESS.sub(lambda found: shown(found[0]), said.replace(address, shown(address)))
    hidden = _words(address) | _words(unquote(address))
    return None if hidden - _words(shown(address)) & _words(said) else said


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text))
