r"""Stages `generate` and `respond`: a model answers prompts.

    python -m tnt.stages.generate data/models/base data/rounds/r1/prompts.parquet \
        data/rounds/r1/completions.parquet data/resolved/r1/generate.yaml

`generate` draws what a round learns from, from its parent; `respond` draws what a model is measured
by. The two differ in nothing but their files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic.dataclasses import dataclass

from tnt import models, sampling
from tnt.core import artifacts, validation
from tnt.core.command import command
from tnt.core.expected import ROUND_OFF, between, one_of, suite, true, unique
from tnt.core.params import STRICT, Share
from tnt.core.records import Completion, Prompt
from tnt.core.validation import Expected, Suite
from tnt.models import RuntimeParams, decode
from tnt.sampling import SamplingParams


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class GenerateParams:
    """How completions are drawn, and on what."""

    runtime: RuntimeParams
    sampling: SamplingParams
    max_empty: Share
    """Share of the completions that may be empty."""


def generate(
    model_path: Path, prompts_path: Path, completions_path: Path, *, params: GenerateParams
) -> None:
    """Write the model's completions of the prompts."""
    prompts = artifacts.read(prompts_path, Prompt)
    device = models.use(params.runtime)
    model = models.load(model_path, device=device)
    models.refuse_unknown(model, ((p.prompt_id, p.prompt_ids) for p in prompts))
    tokenizer = models.load_tokenizer(model_path)
    asked = params.sampling.chosen(prompts)
    completions = sampling.complete(model, tokenizer, asked, params.sampling, name=model_path.name)
    suite = completions_suite(
        completions,
        asked,
        [decode(tokenizer, c.completion_ids) for c in completions],
        model=model_path.name,
        samples=params.sampling.samples,
        limits={s: params.sampling.limit(s) for s in {c.prompt_set for c in completions}},
        vocabulary=model.get_input_embeddings().num_embeddings,
        max_empty=params.max_empty,
    )
    validation.validate(suite, completions_path)
    artifacts.write(completions, completions_path, Completion)


def completions_suite(
    rows: Sequence[Completion],
    asked: Sequence[Prompt],
    decoded: Sequence[str],
    *,
    model: str,
    samples: int,
    limits: Mapping[str, int],
    vocabulary: int,
    max_empty: float,
) -> Suite:
    """Return what is expected of completions.

    Args:
        rows: The completions.
        asked: The prompts that must be answered, each as often as there are samples.
        decoded: What each completion's ids decode to.
        model: Whose they are.
        samples: Completions per prompt.
        limits: Prompt set -> most new tokens.
        vocabulary: Number of token ids.
        max_empty: Share that may be empty.
    """
    of = {prompt.prompt_id: prompt for prompt in asked}
    table = [
        {
            "prompt_id": row.prompt_id,
            "sample": row.sample,
            "model": row.model,
            "answers_a_prompt": (prompt := of.get(row.prompt_id)) is not None
            and (prompt.prompt_ids, prompt.input) == (row.prompt_ids, row.input),
            "decodes_to_text": text == row.text,
            "spare_tokens": limits[row.prompt_set] - len(row.completion_ids),
            "known_tokens": all(0 <= token < vocabulary for token in row.completion_ids),
            "empty": not row.text.strip(),
        }
        for row, text in zip(rows, decoded, strict=True)
    ]
    again = "Delete the file and run `dvc repro`, which makes it again."
    return suite(
        "completions",
        ("prompt_id", "sample"),
        table,
        Expected("TableRowCountToBeBetween", "Give the round prompts.", {"min_value": 1}),
        Expected("TableRowCountToEqual", again, {"value": len(asked) * samples}),
        unique(("prompt_id", "sample"), again),
        one_of("sample", list(range(samples)), again),
        one_of("model", [model], again),
        true("answers_a_prompt", again),
        true("decodes_to_text", "The tokenizer changed: run `dvc repro` from `base` on."),
        between("spare_tokens", 0, None, "Check max_new_tokens."),
        true("known_tokens", "Model and tokenizer do not belong together: check `base`."),
        one_of(
            "empty",
            [False],
            "The model answers nothing: check the prompt set's template and chat setting, or raise "
            "expect.max_empty.",
            mostly=max(1 - max_empty - ROUND_OFF, 0),
        ),
    )


if __name__ == "__main__":
    command(generate)
