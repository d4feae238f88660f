r"""Stage `train`: update a copy of the parent so that exactly the negative tokens go.

    python -m tnt.stages.train data/models/base data/rounds/r1/prompts.parquet \
        data/rounds/r1/masks.parquet data/rounds/r1/features.safetensors data/models/r1 \
        data/rounds/r1/training.csv data/resolved/r1/train.yaml

Killed and run again, it continues from its last checkpoint in `work/` and ends in the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from tnt import models, selftest
from tnt.core import artifacts, hashes, validation
from tnt.core.command import command
from tnt.core.expected import FINITE, SHARE, SHARES, number, suite, true
from tnt.core.imports import closure
from tnt.core.params import STRICT
from tnt.core.records import Mask, Prompt
from tnt.core.tables import as_csv
from tnt.core.validation import Expected, Suite
from tnt.losses.heads import head_of
from tnt.models import RuntimeParams
from tnt.patches import artifact
from tnt.patches.neurons import Neurons, attach
from tnt.patches.site import site_of
from tnt.training import features, patch, run
from tnt.training.log import StepLog
from tnt.training.params import TrainParams
from tnt.training.patch import Positions

WORK = Path("work")
ROOT = Path(__file__).parents[2]


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class TrainStageParams:
    """How a round is trained, and on what."""

    runtime: RuntimeParams
    train: TrainParams
    patch: dict[str, str]
    """The patch that is taken instead of one that is trained: path -> sha256."""


def train(
    parent_path: Path,
    prompts_path: Path,
    masks_path: Path,
    features_path: Path,
    model_path: Path,
    log_path: Path,
    *,
    params: TrainStageParams,
) -> None:
    """Write the updated model (or its adapter or patch) and one log line per step."""
    masks = artifacts.read(masks_path, Mask)
    prompts = artifacts.read(prompts_path, Prompt)
    held_out = frozenset(p.prompt_id for p in prompts if p.split == "validation")
    logs: list[StepLog] = []
    if params.patch:
        hashes.refuse_changed(params.patch)
        neurons = artifact.read(Path(*params.patch))
        attach(models.load(parent_path), neurons)
        _save_patch(neurons, model_path, parent_path, log_path.parent)
    elif not any(any(mask.negative_mask) or mask.source == "corrected" for mask in masks):
        print(f"None of the {len(masks)} completions is flagged: {model_path.name} is its parent.")
        _validate_model(models.load(parent_path), model_path, log_path.parent)
        models.copy_parent(parent_path, model_path)
    else:
        device = models.use(params.runtime)
        given = (parent_path, prompts_path, masks_path, features_path)
        inputs = [hashes.sha256_of(path) for path in given]
        code = [hashes.sha256_of(ROOT / path) for path in closure(Path(__file__), ROOT)]
        workdir = WORK / model_path.name / run.fingerprint(*inputs, *code, repr(params))
        original = models.load(parent_path, device=device)
        models.refuse_unknown(
            original, ((m.prompt_id, m.prompt_ids + m.completion_ids) for m in masks)
        )
        if params.train.patch:
            neurons, logs = _patch(original, masks, held_out, features_path, params.train, workdir)
            _save_patch(neurons, model_path, parent_path, log_path.parent)
            attach(original, neurons)
            expected = selftest.logits_of(original, masks)
        else:
            trained = run.train(
                original if params.train.lora else models.in_weights(original),
                masks,
                params.train,
                workdir=workdir,
                autocast=params.runtime.autocast,
                held_out=held_out,
            )
            if trained.stopped:
                print(trained.stopped)
            logs = trained.logs
            expected = selftest.logits_of(trained.model, masks)
            _save_weights(trained.model, model_path, parent_path, log_path.parent)
            del trained
        del original  # so that no two models are held at once
        selftest.refuse_other(model_path, expected, masks)
        run.forget(workdir)
    rows = [asdict(log) for log in logs]
    columns = [field.name for field in fields(StepLog)]
    suite = training_suite(rows, columns)
    validation.validate(suite, log_path)
    rounded = ({k: None if v is None else round(v, 6) for k, v in row.items()} for row in rows)
    artifacts.write_text(as_csv(rounded, columns), log_path)


def _save_patch(neurons: Neurons, path: Path, parent: Path, folder: Path) -> None:
    weights = ((name, bool(t.isfinite().all())) for name, t in neurons.tensors().items())
    validation.validate(model_suite(weights), path, folder)
    models.save_patch(neurons, path, parent=parent.name, sha256=hashes.sha256_of(parent))


def _save_weights(model: Any, path: Path, parent: Path, folder: Path) -> None:
    """Save a trained model, or its adapter alone."""
    _validate_model(model, path, folder)
    tokenizer = models.load_tokenizer(parent)
    if hasattr(model, "peft_config"):
        sha256 = hashes.sha256_of(parent)
        models.save_adapter(model, tokenizer, path, parent=parent.name, sha256=sha256)
    else:
        models.save(model, tokenizer, path)


def _patch(
    original: Any,
    masks: Sequence[Mask],
    held_out: frozenset[str],
    features_path: Path,
    params: TrainParams,
    workdir: Path,
) -> tuple[Neurons, list[StepLog]]:
    """Return a patch that is trained on the completions which are not held out."""
    lengths = [len(mask.completion_ids) for mask in masks]
    seen = features.read(features_path, sum(lengths)).split(lengths)

    def part(*, watched: bool) -> Positions:
        chosen = [n for n, m in enumerate(masks) if (m.prompt_id in held_out) == watched]
        found = features.joined([seen[0][:0], *(seen[n] for n in chosen)])
        return patch.positions(found, [masks[n] for n in chosen])

    learnt, watched = part(watched=False), part(watched=True)
    site, head = site_of(original), head_of(original)
    return patch.train(site, head, learnt, watched, params, workdir=workdir)


def _validate_model(model: Any, path: Path, folder: Path) -> None:
    """Check the weights; the result goes where `compare` finds it."""
    weights = ((name, bool(w.isfinite().all())) for name, w in model.named_parameters())
    validation.validate(model_suite(weights), path, folder)


def training_suite(rows: Sequence[Mapping[str, float | None]], columns: Sequence[str]) -> Suite:
    """Return what is expected of a training log, which is empty where nothing was flagged.

    What starts with `validation_` is measured now and then, and None in between.
    """
    watched = [name for name in columns if name.startswith("validation_")]
    columns = [name for name in columns if name not in watched]
    table = [
        {
            "in_order": row["step"] == number,
            "finite_where_watched": all(
                math.isfinite(value) for name in watched if (value := row[name]) is not None
            ),
            **{name: row[name] for name in columns},
        }
        for number, row in enumerate(rows)
    ]
    diverged = "Lower train.learning_rate or train.negative_weight."
    return suite(
        "training",
        ("step",),
        table,
        true("in_order", "Delete the folder of the round in work/ and run `dvc repro`."),
        true("finite_where_watched", diverged),
        *[
            expected
            for name in columns
            for expected in number(name, SHARE if name in SHARES else FINITE, diverged)
        ],
    )


def model_suite(weights: Iterable[tuple[str, bool]]) -> Suite:
    """Return what is expected of a trained model: `weights` is name, whether it is finite."""
    return suite(
        "model",
        ("weight",),
        [{"weight": name, "finite": finite} for name, finite in weights],
        Expected("TableRowCountToBeBetween", "Train it again.", {"min_value": 1}),
        Expected("ColumnValuesToBeUnique", "Train it again.", {"column": "weight"}),
        true("finite", "Lower train.learning_rate or train.negative_weight."),
    )


if __name__ == "__main__":
    command(train)
