r"""Stages `generate` and `respond`: a model answers prompts.

    python -m tnt.stages.generate data/models/base data/rounds/r1/prompts.parquet \
        data/rounds/r1/completions.parquet data/resolved/r1/generate.yaml

`generate` draws what a round learns from, from its parent; `respond` draws what a model is measured
by. The two differ in nothing but their files.
"""

from __future__ import annotations

from pathlib import Path

from pydantic.dataclasses import dataclass

from tnt import artifacts, expectations, models, sampling, validation
from tnt.alignment import decode
from tnt.expectations import Share
from tnt.models import RuntimeParams
from tnt.params import STRICT
from tnt.prompts import choose
from tnt.records import Completion, Prompt
from tnt.runs import command
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
    completions = sampling.complete(
        model, tokenizer, prompts, params.sampling, name=model_path.name
    )
    suite = expectations.completions(
        completions,
        choose(prompts, params.sampling.max_prompts),
        [decode(tokenizer, c.completion_ids) for c in completions],
        model=model_path.name,
        samples=params.sampling.samples,
        limits={s: params.sampling.limit(s) for s in {c.prompt_set for c in completions}},
        vocabulary=model.get_input_embeddings().num_embeddings,
        max_empty=params.max_empty,
    )
    validation.validate(suite, completions_path)
    artifacts.write(completions, completions_path, Completion)


if __name__ == "__main__":
    command(generate)
