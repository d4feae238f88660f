"""What became of every round, as git tells it; needs no data, no cache and no working tree.

    for entry in log():
        print(entry.when, entry.round, entry.verdict)

A verdict is a commit with the trailers `Round` and `Verdict` (`git interpret-trailers`); a tag
`round/<name>` alone says that the round was accepted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tnt.project import layout
from tnt.rounds.programs import output
from tnt.rounds.trailers import tag

TRAILERS = ("Round", "Verdict", "Reason", "Run")


DAMAGED = (LookupError, TypeError, AttributeError, ValueError, RecursionError, YAMLError)
"""What a file of another shape than ours raises when it is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One verdict on one round; what the commit lacks or holds damaged is None or empty."""

    when: str
    """When it was committed, UTC, like 2026-01-31T09:30:00Z."""
    round: str
    verdict: str
    """accepted, rejected, rolled back or rebased."""
    reason: str | None
    """Why it was rejected."""
    run: str | None
    """Which run of a flow did it, or `by hand`."""
    tag: str | None
    parent: str | None
    detectors: list[str]
    """The round's own."""
    flag_rates: dict[str, list[float | None]]
    """Detector -> the rates before and after, over the prompt sets that the round learned from."""
    gate: str | None
    """`passed`, or what failed."""
    commit: str
    model: str | None
    """DVC's md5 of the model's folder."""
    lock: str | None
    """sha256 of dvc.lock."""


def log() -> list[Entry]:
    """Return every verdict that HEAD or a round's tag can reach, oldest first.

    Raises:
        ValueError: There is no git repository here, or git cannot read it.
    """
    try:
        # No HEAD is ignored: a repository without a commit has no verdicts either.
        arguments = ("--ignore-missing", "HEAD", f"--glob=refs/tags/{tag('*')}")
        found = output("git", *_LOG, *arguments).split("\0")[:-1]
    except ValueError as error:
        raise ValueError(
            f"{Path.cwd()} has no history to read: {error}. Run this in the project's git "
            "repository."
        ) from error
    records = zip(*[iter(found)] * len(_FIELDS), strict=True)
    with _contents() as content:
        return [
            Entry(
                when=datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                tag=tag(said["round"]) if said["round"] in tags else None,
                commit=commit,
                **said,
                **_state(content, commit, said["round"]),
            )
            for commit, seconds, decoration, *trailers in records
            for tags in [re.findall(rf"tag: refs/tags/{tag('([^,]+)')}", decoration)]
            for said in _verdicts(trailers, tags)
        ]


def is_cut() -> bool:
    """Return whether this is a shallow clone, which lacks the older verdicts."""
    return output("git", "rev-parse", "--is-shallow-repository") == "true"


def _trailer(key: str) -> str:
    return f"%(trailers:key={key},valueonly,unfold)"


_FIELDS = ("%H", "%ct", "%D", *map(_trailer, TRAILERS))
_LOG = (
    "log", "-z", "--date-order", "--reverse", "--no-show-signature", "--encoding=UTF-8",
    "--decorate=full", f"--decorate-refs=refs/tags/{tag('*')}", f"--format={'%x00'.join(_FIELDS)}",
)  # fmt: skip


def _verdicts(trailers: Sequence[str], tags: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what a commit says: its trailers', and what other rounds' tags on it say."""
    values = [text.strip("\n").rpartition("\n")[2] or None for text in trailers]
    said = dict(zip(map(str.lower, TRAILERS), values, strict=True))
    if said["round"] and said["verdict"]:
        yield said
        tags = [name for name in tags if name != said["round"]]
    for name in sorted(tags):
        yield {"round": name, "verdict": "accepted", "reason": None, "run": None}


def _state(content: Callable[[str], bytes | None], commit: str, name: str) -> dict[str, Any]:
    """Return what the files of a commit tell of a round."""

    def read(path: Path) -> bytes | None:
        known = re.fullmatch(r"[\w./-]+", name) and ".." not in name
        return content(f"{commit}:./{path.as_posix()}") if known else None

    parent, detectors = _params(read(layout.PARAMS), name)
    measured = _metrics(read(layout.metrics(name)))
    rates = measured.get("flag_rates", {})
    lock = read(layout.LOCK)
    own = detectors or [*rates]
    return {
        "parent": parent or measured.get("parent"),
        "detectors": own,
        "flag_rates": {detector: rates[detector] for detector in own if detector in rates},
        "gate": measured.get("gate"),
        "model": _model(lock, name),
        "lock": None if lock is None else hashlib.sha256(lock).hexdigest(),
    }


def _params(content: bytes | None, name: str) -> tuple[str | None, list[str]]:
    """Return a round's parent and detectors as params.yaml has them."""
    with contextlib.suppress(*DAMAGED):
        entry = _part(content, "rounds", name)
        return str(entry["parent"]), [str(detector) for detector in entry["detectors"]]
    return None, []


def _metrics(content: bytes | None) -> dict[str, Any]:
    """Return what is shown of metrics.json: parent, flag rates by detector, the gate."""
    with contextlib.suppress(*DAMAGED):
        found = json.loads(content or b"")
        gate = found["gate"]
        return {
            "parent": str(found["parent"]),
            "flag_rates": {
                str(detector): [_rate(change[side]) for side in ("before", "after")]
                for detector, change in found["learned"].items()
            },
            "gate": "passed" if gate["passed"] else str(gate["reasons"]),
        }
    return {}


def _rate(found: dict[str, Any]) -> float | None:
    """Return a flag rate, None where there was nothing to measure."""
    return float(found["rate"]) if found["total"] else None


def _model(lock: bytes | None, name: str) -> str | None:
    """Return the md5 of a round's model as dvc.lock has it."""
    with contextlib.suppress(*DAMAGED):
        for out in _part(lock, "stages", f"train@{name}")["outs"]:
            if out["path"] == layout.model(name).as_posix():
                return str(out["md5"])
    return None


def _part(content: bytes | None, section: str, key: str) -> Any:
    """Return one entry of a section of a YAML file.

    Its own lines are parsed alone where that works: the dvc.lock of 200 rounds has 100,000 others.
    """
    text = (content or b"").decode()
    if key not in text:
        raise LookupError(key)
    yaml = YAML(typ="safe")
    with contextlib.suppress(*DAMAGED):
        body = re.split(rf"^{section}:.*", text, maxsplit=1, flags=re.MULTILINE)[1]
        if end := re.search(r"\n[^\s#]", body):
            body = body[: end.start() + 1]
        indent = re.findall(r"\n( +)[^\s#]", body[:10_000])[0]
        start = body.index(f"\n{indent}{key}:") + 1
        lines = re.compile(rf".*\n(?:(?:{indent} .*| *#.*| *)\n)*").match(f"{body}\n", start)
        assert lines is not None
        return yaml.load(lines[0])[key]
    return yaml.load(text)[section][key]


@contextlib.contextmanager
def _contents() -> Iterator[Callable[[str], bytes | None]]:
    """Yield a function from `<commit>:<path>` to the file's content, None where there is none."""
    pipe = subprocess.PIPE
    command = ["git", "cat-file", "--batch"]
    try:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as git:
            yield functools.partial(_content, git)
    except BrokenPipeError as error:
        raise ValueError("git cannot read its own files. `git fsck` says which.") from error


def _content(git: subprocess.Popen[bytes], name: str) -> bytes | None:
    assert git.stdin is not None
    assert git.stdout is not None
    git.stdin.write(f"{name}\n".encode())
    git.stdin.flush()
    if not (answer := git.stdout.readline()):
        raise BrokenPipeError
    *_, kind, size = answer.split()
    if not size.isdigit():
        return None  # `<name> missing`
    found = git.stdout.read(int(size))
    git.stdout.readline()
    return found if kind == b"blob" else None
