"""`tnt docs`: what was validated, as Great Expectations' pages for a browser.

The pages fetch their style sheets from the network; without one they are plain but readable. Their
paths hold the time they were made, so they are no output of a stage.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from tnt import detectors, models, prompts
from tnt.core import artifacts, validation
from tnt.core.artifacts import R
from tnt.core.records import BASE, Completion, Flag, Mask, Prompt, Rollout, Split
from tnt.core.tables import read_numbers
from tnt.core.validation import Suite
from tnt.detectors import redaction
from tnt.models import decode
from tnt.project import checks, layout
from tnt.project.sections import ExpectParams, Project
from tnt.sampling import SamplingParams

FOLDER = Path("work/docs")


def command() -> None:
    """Validate all artifacts anew; build Great Expectations' pages of it in work/docs/."""
    print(f"Open {build()}.")


def build() -> Path:
    """Validate every artifact that holds rows or numbers once more; return the page to open."""
    context = validation.new_context()
    import great_expectations as gx  # the context decides whether it uses the network
    from great_expectations.checkpoint.actions import UpdateDataDocsAction
    from great_expectations.core.run_identifier import RunIdentifier

    shutil.rmtree(FOLDER, ignore_errors=True)
    site = {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(FOLDER.absolute()),
        },
    }
    context.add_data_docs_site(site_name="local", site_config=site)
    show = UpdateDataDocsAction(name="show", site_names=["local"])
    for name, suite in suites(checks.load()):
        definition, gx_suite, frame = validation.batch_definition(suite, name, context)
        validated = gx.ValidationDefinition(
            name=name, data=definition, suite=context.suites.add(gx_suite)
        )
        checkpoint = gx.Checkpoint(
            name=name,
            validation_definitions=[context.validation_definitions.add(validated)],
            actions=[show],
            result_format=validation.result_format(suite),
        )
        context.checkpoints.add(checkpoint).run(
            batch_parameters={"dataframe": frame}, run_id=RunIdentifier(run_name=name)
        )
    return FOLDER / "index.html"


def suites(loaded: Project) -> Iterator[tuple[str, Suite]]:
    """Yield the suite of every artifact that is there, with its name."""
    from tnt.stages import detect, evaluate, mask, prepare, rollout, train

    redacting = {n: detectors.build(n, loaded.detectors[n]) for n in loaded.report.redact}
    test_prompts = _read(layout.TEST_PROMPTS, Prompt)
    if test_prompts:
        split = loaded.evaluate.split
        yield (
            "test_prompts",
            prepare.prompts_suite(test_prompts, _splits(loaded, test_prompts), split),
        )
    for name in [BASE, *loaded.rounds]:
        path = layout.EVALUATIONS / name / "completions.parquet"
        if answers := _read(path, Completion):
            suite = _completions(answers, test_prompts, name, loaded.respond, loaded.expect)
            yield f"{name}_test_completions", suite
    for name, round_ in loaded.rounds.items():
        folder = layout.ROUNDS / name
        asked = _read(folder / "prompts.parquet", Prompt)
        if asked:
            splits = _splits(loaded, asked)
            suite = prepare.prompts_suite(asked, splits, "train", watched=True)
            yield f"{name}_prompts", suite
        completions = _read(folder / "completions.parquet", Completion)
        expect = loaded.section(name, "expect")
        if completions:
            sampling = loaded.section(name, "generate")
            suite = _completions(completions, asked, round_.parent, sampling, expect)
            yield f"{name}_completions", suite
        flags = _read(folder / "flags.parquet", Flag)
        if (folder / "flags.parquet").is_file():
            shown = redaction.redacted(redacting, completions)
            yield f"{name}_flags", detect.flags_suite(flags, shown, round_.detectors)
        rollouts = _read(folder / "rollouts.parquet", Rollout)
        if rollouts:
            most = loaded.section(name, "rollout").max_bans
            yield f"{name}_rollouts", rollout.rollouts_suite(rollouts, completions, most)
        if masks := _read(folder / "masks.parquet", Mask):
            share = (expect.min_negative_share, expect.max_negative_share)
            yield f"{name}_masks", mask.masks_suite(masks, completions, flags, rollouts, share)
        if (log := folder / "training.csv").is_file():
            columns, rows = read_numbers(log)
            yield f"{name}_training", train.training_suite(rows, columns)
        if (found := layout.metrics(name)).is_file():
            yield f"{name}_metrics", evaluate.metrics_suite(artifacts.read_json(found))


def _read(path: Path, record: type[R]) -> list[R]:
    return artifacts.read(path, record) if path.is_file() else []


def _splits(loaded: Project, rows: list[Prompt]) -> dict[str, Split]:
    return {
        row.prompt_id: prompts.split_of(row.input, loaded.prompt_sets[row.prompt_set].shares)
        for row in rows
        if row.prompt_set in loaded.prompt_sets
    }


def _completions(
    rows: list[Completion],
    asked: list[Prompt],
    model: str,
    sampling: SamplingParams,
    expect: ExpectParams,
) -> Suite:
    from transformers import AutoConfig

    from tnt.stages import generate

    base = layout.model(BASE)
    tokenizer = models.load_tokenizer(base)
    config = AutoConfig.from_pretrained(base).get_text_config()
    return generate.completions_suite(
        rows,
        sampling.chosen(asked),
        [decode(tokenizer, row.completion_ids) for row in rows],
        model=model,
        samples=sampling.samples,
        limits={s: sampling.limit(s) for s in {row.prompt_set for row in rows}},
        vocabulary=config.vocab_size,
        max_empty=expect.max_empty,
    )
