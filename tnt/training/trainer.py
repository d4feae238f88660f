"""transformers' Trainer with the losses of this project: one number divides a whole step.

The sum of a step's token losses is divided by the tokens that carry one in the whole step, all
micro-batches and all processes together, so that how a step is divided changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tnt import models
from tnt.core.artifacts import write_text
from tnt.core.hashes import sha256_of
from tnt.core.records import Mask
from tnt.losses.batches import Batch, collate
from tnt.losses.fused import Fused, fused_losses
from tnt.losses.heads import Head, completion_hidden, head_of
from tnt.losses.params import LossParams
from tnt.losses.table import asks_original
from tnt.training.checkpoints import is_whole, seal
from tnt.training.order import NOTHING
from tnt.training.passes import Autocast, evaluating, precision
from tnt.training.progress import Progress

SUMS = ("negative", "kept", "corrected", "mass", "negatives", "kepts", "corrections")
"""What is added up over a step: losses, probability of the negative tokens, numbers of tokens."""
CORRECTED = LossParams(loss="sft_clean")
"""What a correction is learned by: cross-entropy."""
MOVED = LossParams(loss="tnff")
"""At kept tokens, KL(original || updated)."""
NO_ROW = Mask("", 0, [0], [0], [False], [False], source="corrected")
"""What a micro-batch holds that the order has no row for: one token, which carries no loss.

Each process runs the model in every micro-batch, or the others wait for its gradients forever; and
models cannot run on no row. As a correction it is nothing that the original is asked about.
"""
OriginalHidden = Callable[[list[int], Batch], Tensor]
"""(numbers of a batch's generated completions, the batch) -> what enters the original's head at
their tokens, [N, d]."""


class Stopped(Exception):
    """Training cannot go on; the message is the reason."""


class TargetedTrainer(Trainer):
    """Trains a copy of the original by `fused_losses`, and watches it on other completions."""

    loss_is_scaled_for_ga = True
    model: Any

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        *,
        rows: Sequence[Mask],
        order: Sequence[int],
        watched: Sequence[int],
        original: OriginalHidden,
        original_head: Head,
        loss: LossParams,
        dropout: bool,
        autocast: Autocast,
        max_divergence: float,
    ) -> None:
        """Set the training up.

        Args:
            model: What is trained.
            arguments: How; `per_device_train_batch_size` times `gradient_accumulation_steps` times
                processes is the length of a step in `order`.
            rows: All completions, trained on or watched.
            order: Numbers of the rows, step after step, filled up with `NOTHING`.
            watched: Numbers of the rows that tell how the training goes.
            original: What enters the original's head.
            original_head: Its head.
            loss: The loss and its numbers.
            dropout: Whether the model is trained with its dropout.
            autocast: Precision of the transformer's passes.
            max_divergence: Nats per kept token at which training stops.
        """
        self.rows, self.watched = rows, watched
        self.original, self.original_head = original, original_head
        self.loss = loss
        self.dropout, self.autocast, self.max_divergence = dropout, autocast, max_divergence
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64)
        table = Dataset.from_dict({"number": list(order)})
        arguments._n_gpu = min(1, arguments.n_gpu)  # several take a process each
        super().__init__(
            model, arguments, data_collator=self._collate, train_dataset=table, eval_dataset=table
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(Progress())

    def _collate(self, chosen: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        return self._inputs([row["number"] for row in chosen if row["number"] != NOTHING])

    def _inputs(self, numbers: list[int]) -> dict[str, Tensor]:
        """Return rows as the tensors of a batch."""
        masks = [self.rows[number] for number in numbers] or [NO_ROW]
        start_id = models.decoder_start(self.model.config)
        said = [n for n in numbers if self.rows[n].source != "corrected"]
        return {**collate(masks, decoder_start_id=start_id).tensors(), "said": torch.tensor(said)}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Return the tokens that carry a loss in a step, over all processes."""
        count = sum((batch["negative"] | batch["kept"]).sum() for batch in batch_samples)
        reduced: Tensor = self.accelerator.reduce(torch.as_tensor(count, device=device))
        return reduced

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Return the precision of the passes."""
        return precision(self.model.device.type, self.autocast)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return a micro-batch's part of the step's loss; processes' gradients are averaged."""
        model.train(self.dropout)
        inputs = dict(inputs)
        numbers = inputs.pop("said").tolist()
        batch = Batch(**inputs)
        hidden = completion_hidden(self.model, batch, through=model)
        normaliser = float(num_items_in_batch) / self.accelerator.num_processes
        said = self._said(self.loss, batch, numbers, hidden, normaliser)
        learnt = self._corrected(batch, hidden, normaliser)
        self._add(batch, said, learnt)
        return said.total if learnt is None else said.total + learnt.total

    def _said(
        self,
        loss: LossParams,
        batch: Batch,
        numbers: list[int],
        hidden: Tensor,
        normaliser: float,
    ) -> Fused:
        """Return the losses of what was generated."""
        carries = _carries(batch)
        asked = None
        if asks_original(loss.loss):
            asked = self.original(numbers, batch)[carries[~batch.corrected]]
        return fused_losses(
            loss,
            hidden=hidden[carries],
            head=head_of(self.model),
            original_hidden=asked,
            original_head=self.original_head,
            token_ids=batch.token_ids[carries],
            negative=batch.negative[carries],
            excluded=batch.excluded[carries],
            normaliser=normaliser,
        )

    def _corrected(self, batch: Batch, hidden: Tensor, normaliser: float) -> Fused | None:
        """Return the cross-entropy of corrections, if there are any."""
        corrected = batch.corrected & batch.kept
        if not corrected.any():
            return None
        return fused_losses(
            CORRECTED,
            hidden[corrected],
            head_of(self.model),
            None,
            None,
            batch.token_ids[corrected],
            batch.negative[corrected],
            normaliser=normaliser,
        )

    def _add(self, batch: Batch, said: Fused, learnt: Fused | None) -> None:
        """Add a micro-batch's figures to its step's."""
        negative = batch.negative[_carries(batch)]
        count = int(negative.sum())
        parts = [
            said.losses[negative].sum(),
            said.losses[~negative].sum(),
            0.0 if learnt is None else learnt.losses.sum(),
            said.log_probs[negative].exp().sum(),
            count,
            len(negative) - count,
            0 if learnt is None else len(learnt.losses),
        ]
        self.sums += torch.tensor([float(part) for part in parts], dtype=torch.float64)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to a step's line what its tokens say."""
        if "grad_norm" in logs:
            sums = dict(zip(SUMS, self._step_sums(), strict=True))
            logs = {**logs, **self._means(sums)}
            if not math.isfinite(logs["loss"]):
                raise Stopped(f"the loss is {logs['loss']}")
        super().log(logs, start_time)

    def _step_sums(self) -> list[float]:
        sums = self.accelerator.reduce(self.sums.to(self.args.device)).tolist()
        self.sums.zero_()
        return list(sums)

    def _means(self, sums: dict[str, float]) -> dict[str, float]:
        """Return a step's means, each over the tokens of its kind."""
        negatives, kepts, corrections = (sums[n] for n in ("negatives", "kepts", "corrections"))
        total = sums["negative"] + sums["kept"] + sums["corrected"]
        return {
            "loss": total / (negatives + kepts + corrections),
            "negative_loss": sums["negative"] / self.loss.negative_weight / max(1, negatives),
            "kept_loss": sums["kept"] / max(1, kepts),
            "corrected_loss": sums["corrected"] / max(1, corrections),
            "negative_mass": sums["mass"] / max(1, negatives),
        }

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(norm):
            raise Stopped(f"the gradient norm is {float(norm)}")
        return norm

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return loss and divergence on the watched completions; stop where one is too large."""
        losses, moved = [], []
        size = self.args.per_device_train_batch_size
        with evaluating(self.model), self.compute_loss_context_manager():
            for start in range(0, len(self.watched), size):
                inputs = self._inputs(list(self.watched[start : start + size]))
                numbers = inputs.pop("said").tolist()
                batch = Batch(**inputs).to(self.model.device)
                hidden = completion_hidden(self.model, batch)
                losses.append(self._said(self.loss, batch, numbers, hidden, 1.0).losses)
                if learnt := self._corrected(batch, hidden, 1.0):
                    losses.append(learnt.losses)
                all_moved = self._said(MOVED, batch, numbers, hidden, 1.0).losses
                moved.append(all_moved[batch.kept[_carries(batch)]])
        loss, divergence = (_mean(torch.cat(values)) for values in (losses, moved))
        found = {"validation_loss": loss, "validation_divergence": divergence}
        self.log(dict(found))
        if not math.isfinite(loss):
            raise Stopped(f"the validation loss is {loss}")
        if divergence > self.max_divergence:
            raise Stopped(
                f"kept tokens of the validation completions diverge by {divergence:.3g} nats each, "
                f"more than train.max_divergence {self.max_divergence:g}"
            )
        return {"eval_loss": loss}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder = Path(str(self.args.output_dir)) / name
            write_text(sha256_of(folder), seal(folder))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Say nothing: tied weights are stored once, and a checkpoint was as it was written."""

    def fall_back(self, stopped: Stopped) -> str:
        """Go back to the state with the lowest validation loss; say what happened.

        Raises:
            ValueError: There is no such state.
        """
        what = f"Training stopped after step {self.state.global_step}: {stopped}."
        remedy = "Lower train.learning_rate or train.negative_weight."
        best = self.state.best_model_checkpoint
        if best is None:
            raise ValueError(f"{what} No earlier state is worth keeping. {remedy}")
        if not is_whole(Path(best)):
            raise ValueError(
                f"{what} The best state, {best}, is damaged. Delete {best} and run again."
            )
        self._load_best_model()
        return (
            f"{what} Kept the state after step {self.state.best_global_step}, whose validation "
            f"loss {self.state.best_metric:.4g} is the lowest. {remedy}"
        )


def _carries(batch: Batch) -> Tensor:
    """Return which tokens carry the round's loss, [N] bool."""
    return (batch.negative | batch.kept) & ~batch.corrected


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else 0.0
