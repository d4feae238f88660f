"""Train: a copy of the original learns the target at negative tokens and stays put elsewhere.

What is trained, in which order, and what is returned; `tnt.trainer` makes the steps. A run that is
killed continues from a checkpoint in its working folder and ends in the same bytes.

Rows with people's corrections are learnt by cross-entropy, -log p(token), whatever the round's
loss: plain fine-tuning beside the targeted update, as T5Patches' corrective training has it. Their
tokens count as all others do, and the original, which never said them, is not asked about them.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from tnt import originals
from tnt.batching import Batch, collate
from tnt.heads import completion_hidden, completion_logits, head_of
from tnt.losses import LossName
from tnt.models import LoraParams
from tnt.originals import Autocast, precision
from tnt.params import STRICT
from tnt.records import Mask

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from tnt.trainer import OriginalHidden, TargetedTrainer


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class TrainParams:
    """How a round's model is trained. The defaults are what docs/log.md found best."""

    loss: LossName = "tnff"
    negative_weight: PositiveFloat = 1.0
    """Multiplies the loss at negative tokens; `alpha` in T5Patches."""
    target_floor: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """Mass of a reverse-KL target on a position's negative tokens."""
    nl_cap: Annotated[float, Field(lt=0)] = -10.3
    """`nl` only: log p is not pushed below this."""
    epochs: PositiveInt
    batch_size: PositiveInt
    """Completions of one optimiser step."""
    micro_batch_size: PositiveInt | None = None
    """Completions of one pass; None is the whole batch. Changes memory, not the result."""
    learning_rate: PositiveFloat
    schedule: Literal["linear", "constant"] = "linear"
    """`linear` falls to 0 over the run."""
    warmup_steps: NonNegativeInt = 0
    adam_betas: tuple[float, float] = (0.9, 0.99)
    adam_epsilon: PositiveFloat = 1e-8
    """Large values let the step vanish with the gradient, as in SGD."""
    weight_decay: NonNegativeFloat = 0.0
    max_gradient_norm: PositiveFloat = 1.0
    trainable: str | None = None
    """Without `lora`: regular expression over names of the parameters to train; None is all."""
    lora: LoraParams | None = None
    update_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the trained update that is applied in the end: original + scale * (trained -
    original), as in WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903). Divergence falls with about
    its square, the fix with less."""
    dropout: bool = False
    """True is the paper's; without it an unchanged model has no loss."""
    cache_original: bool = True
    """Run the original once and keep its final hidden states on disk, instead of once per epoch."""
    max_divergence: PositiveFloat = 0.5
    """Nats per kept token of the validation completions at which training stops; what is kept is
    the state with the lowest validation loss before."""
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        """Refuse what is no regular expression."""
        try:
            re.compile(self.trainable or "")
        except re.error as error:
            raise ValueError(f"trainable is no regular expression ({error})") from error


WATCHED = 32
"""Completions that training is watched on where there are no validation prompts."""
WATCHES = 5
"""How often, in a run."""


@plain_dataclass(frozen=True, slots=True)
class StepLog:
    """One line of training.csv; losses in nats per token of their kind."""

    step: int
    epoch: float
    loss: float
    negative_loss: float
    kept_loss: float
    corrected_loss: float
    """Of the tokens of corrections; 0 in a step that has none."""
    negative_mass: float
    """Mean probability that the updated model gives to the negative tokens."""
    gradient_norm: float
    learning_rate: float
    validation_loss: float | None
    """The loss on completions that are not trained on, where it was measured after the step."""
    validation_divergence: float | None
    """Of their kept tokens, KL(original || updated)."""


FROM_TRAINER = (
    "loss", "negative_loss", "kept_loss", "corrected_loss", "negative_mass", "learning_rate",
)  # fmt: skip
"""What the trainer's lines have under the same names."""


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
    from tnt.trainer import Stopped, last_checkpoint

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
    start = _trained_weights(trainer.model) if params.update_scale != 1 else {}
    with trainer.args.main_process_first():
        checkpoint = last_checkpoint(workdir)
    stopped = None
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Stopped as error:
        stopped = trainer.fall_back(error)
    _scale_update(trainer.model, start, params)
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
    per_token = ("completion_ids", "negative_mask", "kept_mask")
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
    from tnt.trainer import TargetedTrainer

    arguments = _arguments(params, workdir, on_cpu=model.device.type == "cpu")
    processes = arguments.world_size
    size = params.micro_batch_size or math.ceil(params.batch_size / processes)
    passes = math.ceil(params.batch_size / (size * processes))
    steps = _steps(learnt, params.batch_size)
    order = _order(steps, params, filled_to=size * passes * processes)
    arguments.per_device_train_batch_size = size
    arguments.gradient_accumulation_steps = passes
    arguments.max_steps = len(order) // (size * passes * processes)
    arguments.eval_steps = arguments.save_steps = max(1, arguments.max_steps // WATCHES)

    head = head_of(model).frozen()
    if params.lora is not None:
        _refuse_adapted_head(model, params.lora)
    cached = frozen = None
    if params.cache_original:
        apart = [n for n in watched if n not in {*learnt}]
        batches = [part for step in [*steps, apart] for part in _parts(step, size)]
        cached = _cached_original(model, rows, batches, workdir.parent, arguments, autocast)
    elif params.lora is None:
        frozen = copy.deepcopy(model).requires_grad_(False)
    trained = _trainable(model, params)
    return TargetedTrainer(
        trained,
        arguments,
        rows=rows,
        order=order,
        watched=watched,
        original=cached or _running_original(frozen, trained, autocast),
        original_head=head,
        loss={
            "loss": params.loss,
            "negative_weight": params.negative_weight,
            "target_floor": params.target_floor,
            "nl_cap": params.nl_cap,
        },
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


def _steps(learnt: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return the rows of each step of an epoch.

    Who meets in a step is the same in every epoch and for every seed; only the order of the steps
    changes. So the original is asked in the batches in which the updated model is, and experiments
    share what it answered.
    """
    shuffled = torch.randperm(len(learnt), generator=torch.Generator().manual_seed(0)).tolist()
    return [sorted(learnt[i] for i in part) for part in _parts(shuffled, batch_size)]


def _parts(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _order(steps: Sequence[list[int]], params: TrainParams, *, filled_to: int) -> list[int]:
    """Return the rows of all steps of all epochs, each epoch shuffled anew, steps filled up."""
    from tnt.trainer import NOTHING

    order: list[int] = []
    for epoch in range(params.epochs):
        generator = torch.Generator().manual_seed(params.seed * 1_000_003 + epoch)
        for i in torch.randperm(len(steps), generator=generator).tolist():
            order += steps[i] + [NOTHING] * (filled_to - len(steps[i]))
    return order


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
        with originals.evaluating(model), adapter_off, precision(model.device.type, autocast):
            return completion_hidden(model, batch)[~batch.corrected]

    return run


def _trainable(model: Any, params: TrainParams) -> Any:
    """Freeze what is not trained; wrap the model when the update is an adapter."""
    if params.lora is not None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=params.lora.rank,
            lora_alpha=params.lora.alpha,
            target_modules=params.lora.target_modules,
            lora_dropout=0.0,
        )
        return get_peft_model(model, config)
    for name, weight in model.named_parameters():
        weight.requires_grad_(params.trainable is None or bool(re.search(params.trainable, name)))
    if not any(weight.requires_grad for weight in model.parameters()):
        names = [name for name, _ in model.named_parameters()]
        raise ValueError(
            f"train.trainable {params.trainable!r} matches no parameter; there are {len(names)}, "
            f"from {names[0]} to {names[-1]}. Correct the expression."
        )
    return model


def _refuse_adapted_head(model: Any, lora: LoraParams) -> None:
    """Raise if the adapter would sit on the LM head, whose weights are read as they are."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    if lora.target_modules == "all-linear":  # peft leaves the head out
        return
    config = LoraConfig(target_modules=lora.target_modules)
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head and check_target_module_exists(config, name):
            raise ValueError(
                f"The LM head {name!r} would get an adapter: train.lora.target_modules "
                f"{lora.target_modules!r} matches it. Leave it out of the expression."
            )


def _trained_weights(model: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def _scale_update(model: Any, start: Mapping[str, Tensor], params: TrainParams) -> None:
    """Pull the trained weights back towards the original; an adapter's update is B A."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if params.lora is not None and name in start and "lora_B" in name:
                weight.mul_(params.update_scale)
            elif params.lora is None and name in start:
                weight.copy_(torch.lerp(start[name], weight, params.update_scale))


def _refuse_other_head(model: Any, row: Mask) -> None:
    """Raise if the model's logits are not what its LM head makes of its hidden states."""
    start_id = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None
    batch = collate([row], decoder_start_id=start_id).to(model.device)
    inputs = {k: v for k, v in batch.tensors().items() if k.endswith(("input_ids", "mask"))}
    with originals.evaluating(model):
        expected = model(**inputs, use_cache=False).logits[batch.rows].double()
        found = completion_logits(model, batch).double()
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    tolerance = 4 * max(1e-4, torch.finfo(model.dtype).eps) * largest
    if not torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True):
        raise ValueError(
            f"{type(model).__name__} changes its logits after the LM head in a way that is not "
            "known here. Take another model, or add it to `tnt.heads.head_of`."
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
