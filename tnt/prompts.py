"""Prompt files -> prompts: strict reading, the split by hash, templates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from tnt.core import jsonl
from tnt.core.errors import did_you_mean, shortened
from tnt.core.hashes import normalised
from tnt.core.params import STRICT, Share
from tnt.core.records import Prompt, Split

FIELDS = ("id", "input", "reference")
LONGEST = 1_000_000
"""Characters of a line as `line_of` writes it. Many more take minutes to tokenise, only to exceed
any context."""


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class Shares:
    """Which part of a prompt set goes into which split; the three add up to 1."""

    train: Share
    validation: Share
    test: Share

    def __post_init__(self) -> None:
        """Refuse shares that do not add up."""
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            total = self.train + self.validation + self.test
            raise ValueError(f"train, validation and test add up to {total:g}; make it 1")


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class PromptSetParams:
    """How a raw input of one prompt set becomes a prompt."""

    template: str
    """Text around `{input}`."""
    chat: bool
    """Whether the model's chat template is applied."""
    shares: Shares

    def __post_init__(self) -> None:
        """Refuse a template that ignores the input."""
        if "{input}" not in self.template:
            raise ValueError("the template has no '{input}'; say where the input goes")


@plain_dataclass(frozen=True, slots=True)
class RawPrompt:
    """One line of a prompt file."""

    id: str
    input: str
    reference: str | None = None


def read_file(path: Path) -> list[RawPrompt]:
    """Return the prompts of a JSON Lines file.

    Raises:
        ValueError: The file is missing or empty, or a line is broken, incomplete or a duplicate;
            names the file, the line, what is wrong and what to do.
    """
    rows: dict[str, RawPrompt] = {}
    for where, values in jsonl.rows(jsonl.read_text(path), str(path), private=False):
        row = parse_row(values, where)
        if row.id in rows:
            raise ValueError(f"{where}: the id {row.id!r} occurs twice. Rename one.")
        rows[row.id] = row
    if not rows:
        raise ValueError(f"{path} holds no prompt. Add one JSON object a line, or do not list it.")
    return list(rows.values())


def parse_row(values: Mapping[str, Any], where: str) -> RawPrompt:
    """Return the prompt that a line of a prompt file, or a row that is to become one, holds.

    Raises:
        ValueError: A field is unknown, missing or no text, or the line is too long.
    """
    for key in values:
        if key not in FIELDS:
            raise ValueError(f"{where}: unknown key {key!r}.{did_you_mean(key, FIELDS)}")
    for key in ("id", "input"):
        value = values.get(key)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"{where}: {key!r} is {shortened(value)}. It must be a text that is not empty."
            )
    if not isinstance(values.get("reference"), str | None):
        seen = shortened(values["reference"])
        raise ValueError(f"{where}: 'reference' is {seen}. It must be a text.")
    row = RawPrompt(values["id"], values["input"], values.get("reference"))
    if (length := len(line_of(row))) > LONGEST:
        raise ValueError(
            f"{where} has {length:,} characters. No prompt may have more than {LONGEST:,}: "
            "shorten it."
        )
    return row


def line_of(row: RawPrompt) -> str:
    """Return a prompt as its line in a file."""
    values = {name: getattr(row, name) for name in FIELDS}
    held = {name: value for name, value in values.items() if value is not None}
    return json.dumps(held, ensure_ascii=False)


def split_of(text: str, shares: Shares) -> Split:
    """Return an input's split: by hash of its normalised text, so duplicates never straddle."""
    digest = hashlib.sha256(normalised(text).encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < shares.test:
        return "test"
    return "validation" if position < shares.test + shares.validation else "train"


def render(row: RawPrompt, prompt_set: str, params: PromptSetParams, tokenizer: Any) -> Prompt:
    """Return a raw prompt after its template and, where asked for, the chat template.

    Raises:
        ValueError: A chat template is asked for and the model has none.
    """
    text = params.template.replace("{input}", row.input)
    if params.chat:
        if not tokenizer.chat_template:
            raise ValueError(
                f"prompt_sets.{prompt_set}.chat is true, but the model has no chat template. "
                "Set it to false, or take a model that was tuned for chat."
            )
        message = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=not params.chat).input_ids
    return Prompt(
        prompt_id=f"{prompt_set}/{row.id}",
        prompt_set=prompt_set,
        split=split_of(row.input, params.shares),
        input=row.input,
        prompt=text,
        prompt_ids=ids,
        reference=row.reference,
    )


def read_sets(files: Mapping[str, Iterable[Path]]) -> Iterator[tuple[str, RawPrompt]]:
    """Yield (prompt set, raw prompt) of the files of each prompt set.

    Raises:
        ValueError: An id occurs in two files of a set.
    """
    for prompt_set, paths in files.items():
        seen: dict[str, str] = {}
        for path in paths:
            for row in read_file(path):
                if row.id in seen:
                    raise ValueError(
                        f"{path}: the id {row.id!r} is also in {seen[row.id]}. Ids are unique "
                        "within a prompt set: rename one."
                    )
                seen[row.id] = path.name
                yield prompt_set, row
