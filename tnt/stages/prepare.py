r"""Stages `prepare` and `prepare_test`: prompt files -> rendered prompts.

python -m tnt.stages.prepare data/models/base data/rounds/r1/prompts.parquet \
        data/resolved/r1/prepare.yaml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass

from tnt import models, prompts
from tnt.core import artifacts, hashes, validation
from tnt.core.command import command
from tnt.core.expected import between, one_of, suite, true
from tnt.core.hashes import choose
from tnt.core.params import STRICT
from tnt.core.records import Prompt, Split
from tnt.core.validation import Expected, Suite
from tnt.prompts import PromptSetParams


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class PrepareParams:
    """Which prompts, and how they are rendered."""

    prompt_sets: dict[str, PromptSetParams]
    files: dict[str, dict[str, str]]
    """Prompt set -> path -> sha256."""
    split: Split
    watched: NonNegativeInt = 0
    """Prompts of each set's validation split beside them, chosen by hash: no round learns from
    what is answered to them, training is watched on it."""


def prepare(base_path: Path, prompts_path: Path, *, params: PrepareParams) -> None:
    """Write the prompts, with the base model's template and tokens."""
    for pinned in params.files.values():
        hashes.refuse_changed(pinned)
    tokenizer = models.load_tokenizer(base_path)
    files = {prompt_set: map(Path, pinned) for prompt_set, pinned in params.files.items()}
    rendered = [
        prompts.render(row, prompt_set, params.prompt_sets[prompt_set], tokenizer)
        for prompt_set, row in prompts.read_sets(files)
    ]
    chosen = [prompt for prompt in rendered if prompt.split == params.split]
    if not chosen:
        raise ValueError(
            f"None of the {len(rendered)} prompts falls into the {params.split} split. "
            f"Add prompts or raise prompt_sets.<set>.shares.{params.split}."
        )
    chosen += choose([p for p in rendered if p.split == "validation"], params.watched)
    splits = {p.prompt_id: _split(p, params) for p in chosen}
    suite = prompts_suite(chosen, splits, params.split, watched=bool(params.watched))
    validation.validate(suite, prompts_path)
    artifacts.write(chosen, prompts_path, Prompt)


def _split(prompt: Prompt, params: PrepareParams) -> Split:
    return prompts.split_of(prompt.input, params.prompt_sets[prompt.prompt_set].shares)


def prompts_suite(
    rows: Sequence[Prompt],
    splits: Mapping[str, Split],
    split: Split,
    *,
    watched: bool = False,
) -> Suite:
    """Return what is expected of prompts.

    Args:
        rows: The prompts.
        splits: Prompt id -> the split that its text belongs to, computed anew.
        split: The only split that may be in the file,
        watched: but for validation prompts, if this is true.
    """
    table = [
        {
            "prompt_id": row.prompt_id,
            "of_its_set": row.prompt_id.startswith(f"{row.prompt_set}/"),
            "split": row.split,
            "split_of_its_text": splits.get(row.prompt_id, "unknown"),
            "input_characters": len(row.input.strip()),
            "prompt_tokens": len(row.prompt_ids),
        }
        for row in rows
    ]
    allowed = [split, "validation"] if watched else [split]
    leak = f"Only {split} prompts belong here: a round must not see what measures it."
    return suite(
        "prompts",
        ("prompt_id",),
        table,
        Expected("TableRowCountToBeBetween", "Name prompt files with prompts.", {"min_value": 1}),
        Expected("ColumnValuesToBeUnique", "Make the ids unique.", {"column": "prompt_id"}),
        true("of_its_set", "A prompt's id is `<set>/<id>`: delete the file and run `dvc repro`."),
        one_of("split", allowed, leak),
        one_of("split_of_its_text", allowed, leak),
        between("input_characters", 1, None, "Give every prompt an input."),
        between("prompt_tokens", 1, None, "Check the prompt set's template."),
    )


if __name__ == "__main__":
    command(prepare)
