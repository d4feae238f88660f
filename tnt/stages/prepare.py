r"""Stages `prepare` and `prepare_test`: prompt files -> rendered prompts.

python -m tnt.stages.prepare data/models/base data/rounds/r1/prompts.parquet \
        data/resolved/r1/prepare.yaml
"""

from __future__ import annotations

from pathlib import Path

from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass

from tnt import artifacts, expectations, layout, models, prompts, validation
from tnt.params import STRICT
from tnt.prompts import PromptSetParams, choose
from tnt.records import Prompt, Split
from tnt.runs import command


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class PrepareParams:
    """Which prompts, and how they are rendered."""

    prompt_sets: dict[str, PromptSetParams]
    files: dict[str, dict[str, str]]
    """Prompt set -> file name -> sha256."""
    split: Split
    watched: NonNegativeInt = 0
    """Prompts of each set's validation split beside them, chosen by hash: no round learns from
    what is answered to them, training is watched on it."""


def prepare(base_path: Path, prompts_path: Path, *, params: PrepareParams) -> None:
    """Write the prompts, with the base model's template and tokens."""
    for prompt_set, files in params.files.items():
        folder = layout.PROMPTS / prompt_set
        artifacts.refuse_changed({str(folder / name): pinned for name, pinned in files.items()})
    tokenizer = models.load_tokenizer(base_path)
    rendered = [
        prompts.render(row, prompt_set, params.prompt_sets[prompt_set], tokenizer)
        for prompt_set, row in prompts.read_sets(params.files, layout.PROMPTS)
    ]
    chosen = [prompt for prompt in rendered if prompt.split == params.split]
    if not chosen:
        raise ValueError(
            f"None of the {len(rendered)} prompts falls into the {params.split} split. "
            f"Add prompts or raise prompt_sets.<set>.shares.{params.split}."
        )
    chosen += choose([p for p in rendered if p.split == "validation"], params.watched)
    splits = {p.prompt_id: _split(p, params) for p in chosen}
    suite = expectations.prompts(chosen, splits, params.split, watched=bool(params.watched))
    validation.validate(suite, prompts_path)
    artifacts.write(chosen, prompts_path, Prompt)


def _split(prompt: Prompt, params: PrepareParams) -> Split:
    return prompts.split_of(prompt.input, params.prompt_sets[prompt.prompt_set].shares)


if __name__ == "__main__":
    command(prepare)
