"""Train: a copy of the original learns the target at negative tokens and stays put elsewhere.

What is trained, in which order, and what is returned; `tnt.training.trainer` makes the steps. A run
that is killed continues from a checkpoint in its working folder and ends in the same bytes.

Rows with people's corrections are learned by cross-entropy, -log p(token), whatever the round's
loss: plain fine-tuning beside the targeted update, as T5Patches' corrective training has it. Their
tokens count as all others do. The original did not generate them and is not run on them.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from tnt import models
from tnt.core.records import Mask
from tnt.losses.batches import Batch, collate
from tnt.losses.heads import completion_hidden, completion_logits, head_of
from tnt.training import originals, passes
from tnt.training.log import FROM_TRAINER, WATCHES, StepLog
from tnt.training.order import cut, order_of, steps_of
from tnt.training.params import TrainParams
from tnt.training.passes import Autocast, precision
from tnt.training.trainable import refuse_adapted_head, scale_update, trainable, trained_weights
from tnt.training.trainer import OriginalHidden, TargetedTrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments


WATCHED = 32
"""Completions that training is watched on where there are no validation prompts."""


@plain_dataclass(frozen=True, slots=True)
class Trained:
    """What `train` returns."""

    model: Any
    logs: list[StepLog]
    """One per step."""
    stopped: str | None
    """Why training ended before its time, and which state was kept."""


def train(
    model: Any,
    masks: Sequence[Mask],
    params: TrainParams,
    *,
    workdir: Path,
    autocast: Autocast = "none",
    held_out: frozenset[str] = frozenset(),
) -> Trained:
    """Train the model on the completions' masks.

    Args:
        model: The original. It is trained in place; with `lora` it is wrapped by peft.
        masks: What to learn from; rows without a loss token are left out.
        params: How.
        workdir: Where checkpoints go; a run that finds one there continues from it. Give one
            folder to one set of inputs (see `fingerprint`). The cached original goes beside it.
        autocast: Precision of the transformer's passes; the LM head and the loss are float32.
        held_out: Prompt ids whose completions are not trained on; they tell how training goes.
            Without any, some of the others do.

    Raises:
        ValueError: `trainable` names no parameter, the loss stops being finite or the model moves
            too far before there is a state to go back to, or a cached original is not this one.
    """
    from tnt.training.checkpoints import last_checkpoint
    from tnt.training.trainer import Stopped

    torch.manual_seed(params.seed)
    rows = [row for row in map(_cut, masks) if row.completion_ids]
    learnt = [n for n, row in enumerate(rows) if _is_learnt(row, params, held_out)]
    if not learnt:
        raise ValueError(
            f"None of the {len(masks)} completions has a token that carries a loss under "
            f"{params.loss!r}. Give the round more prompts, or another loss."
        )
    watched = [n for n, row in enumerate(rows) if row.prompt_id in held_out] or learnt[:WATCHED]
    _refuse_other_head(model, rows[0])
    trainer = _trainer(model, rows, learnt, watched, params, workdir, autocast)
    start = trained_weights(trainer.model) if params.update_scale != 1 else {}
    with trainer.args.main_process_first():
        checkpoint = last_checkpoint(workdir)
    stopped = None
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Stopped as error:
        stopped = trainer.fall_back(error)
    scale_update(trainer.model, start, params)
    per_epoch = trainer.args.max_steps / params.epochs
    return Trained(trainer.model.eval(), _logs(trainer.state.log_history, per_epoch), stopped)


def fingerprint(*parts: str) -> str:
    """Return a short name for a working folder: the same parts give the same one."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def forget(workdir: Path) -> None:
    """Delete the working folder of a run that ended."""
    shutil.rmtree(workdir, ignore_errors=True)


def _is_learnt(row: Mask, params: TrainParams, held_out: frozenset[str]) -> bool:
    if row.prompt_id in held_out:
        return False
    return params.loss != "sft_clean" or not any(row.negative_mask)


def _cut(mask: Mask) -> Mask:
    """Return a completion without the tokens after its last one that carries a loss."""
    carries = [a or b for a, b in zip(mask.negative_mask, mask.kept_mask, strict=True)]
    end = max((i + 1 for i, carried in enumerate(carries) if carried), default=0)
    per_token = ("completion_ids", "negative_mask", "kept_mask", "excluded")
    return replace(mask, **{name: getattr(mask, name)[:end] for name in per_token})


def _trainer(
    model: Any,
    rows: Sequence[Mask],
    learnt: Sequence[int],
    watched: Sequence[int],
    params: TrainParams,
    workdir: Path,
    autocast: Autocast,
) -> TargetedTrainer:
    """Return a trainer of what is trainable, and of the original as it is now."""
    from tnt.training.trainer import TargetedTrainer

    arguments = _arguments(params, workdir, on_cpu=model.device.type == "cpu")
    processes = arguments.world_size
    size = params.micro_batch_size or math.ceil(params.batch_size / processes)
    passes = math.ceil(params.batch_size / (size * processes))
    steps = steps_of(learnt, params.batch_size)
    order = order_of(steps, params, filled_to=size * passes * processes)
    arguments.per_device_train_batch_size = size
    arguments.gradient_accumulation_steps = passes
    arguments.max_steps = len(order) // (size * passes * processes)
    arguments.eval_steps = arguments.save_steps = max(1, arguments.max_steps // WATCHES)

    head = head_of(model).frozen()
    if params.lora is not None:
        refuse_adapted_head(model, params.lora)
    cached = frozen = None
    if params.cache_original:
        apart = [n for n in watched if n not in {*learnt}]
        batches = [part for step in [*steps, apart] for part in cut(step, size)]
        cached = _cached_original(model, rows, batches, workdir.parent, arguments, autocast)
    elif params.lora is None:
        frozen = copy.deepcopy(model).requires_grad_(False)
    probe = collate(rows[:1], decoder_start_id=models.decoder_start(model.config))
    trained = trainable(model, params, probe.to(model.device))
    return TargetedTrainer(
        trained,
        arguments,
        rows=rows,
        order=order,
        watched=watched,
        original=cached or _running_original(frozen, trained, autocast),
        original_head=head,
        loss=params,
        dropout=params.dropout,
        autocast=autocast,
        max_divergence=params.max_divergence,
    )


def _arguments(params: TrainParams, workdir: Path, *, on_cpu: bool) -> TrainingArguments:
    """Return what transformers' trainer is told, but for the length of a step."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(workdir),
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        learning_rate=params.learning_rate,
        lr_scheduler_type="constant_with_warmup" if params.schedule == "constant" else "linear",
        warmup_steps=params.warmup_steps,
        adam_beta1=params.adam_betas[0],
        adam_beta2=params.adam_betas[1],
        adam_epsilon=params.adam_epsilon,
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_gradient_norm,
        seed=params.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        save_strategy="steps",
        save_total_limit=1,
        metric_for_best_model="loss",
        greater_is_better=False,
        disable_tqdm=True,  # the trainer has a bar of its own
        report_to="none",
    )


def _cached_original(
    model: Any,
    rows: Sequence[Mask],
    batches: Sequence[Sequence[int]],
    folder: Path,
    arguments: TrainingArguments,
    autocast: Autocast,
) -> OriginalHidden:
    """Return the look-up of the original's hidden states, which are made now or read from disk."""
    first = arguments.main_process_first
    cached = originals.cache(model, rows, batches, folder, autocast=autocast, first=first)
    return lambda numbers, _: cached.hidden(numbers).to(model.device)


def _running_original(frozen: Any | None, trained: Any, autocast: Autocast) -> OriginalHidden:
    """Return a function that runs the original: a copy, or what is trained less its adapter."""

    def run(_: list[int], batch: Batch) -> Tensor:
        model = trained if frozen is None else frozen
        adapter_off = trained.disable_adapter() if frozen is None else contextlib.nullcontext()
        with passes.evaluating(model), adapter_off, precision(model.device.type, autocast):
            return completion_hidden(model, batch)[~batch.corrected]

    return run


def _refuse_other_head(model: Any, row: Mask) -> None:
    """Raise if the model's logits are not what its LM head makes of its hidden states."""
    start_id = models.decoder_start(model.config)
    batch = collate([row], decoder_start_id=start_id).to(model.device)
    inputs = {k: v for k, v in batch.tensors().items() if k.endswith(("input_ids", "mask"))}
    with passes.evaluating(model):
        expected = model(**inputs, use_cache=False).logits[batch.rows].double()
        found = completion_logits(model, batch).double()
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    tolerance = 4 * max(1e-4, torch.finfo(model.dtype).eps) * largest
    if not torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True):
        raise ValueError(
            f"{type(model).__name__} changes its logits after the LM head in a way that is not "
            "known here. Take another model, or add it to `tnt.losses.heads.head_of`."
        )


def _logs(history: Sequence[dict[str, Any]], per_epoch: float) -> list[StepLog]:
    """Return the trainer's log as one line per step."""
    watched = {line["step"]: line for line in history if "validation_loss" in line}
    none = {"validation_loss": None, "validation_divergence": None}
    return [
        StepLog(
            step=line["step"] - 1,
            epoch=round(line["step"] / per_epoch, 4),
            gradient_norm=line["grad_norm"],
            **{name: line[name] for name in FROM_TRAINER},
            **{name: watched.get(line["step"], none)[name] for name in none},
        )
        for line in history
        if "grad_norm" in line
    ]
