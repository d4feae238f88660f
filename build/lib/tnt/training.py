"""The trainer: a copy of the original learns the target at negative tokens and stays put elsewhere.

Plain and exact: one optimiser step is the sum of its tokens' losses over their number, whatever the
micro-batches. It resumes from a checkpoint in its working folder and ends in the same bytes.

Rows with people's corrections are learnt by cross-entropy, -log p(token), whatever the round's
loss: plain fine-tuning beside the targeted update, as T5Patches' corrective training has it. Their
tokens count as all others do, and the original, which never said them, is not asked about them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from types import MethodType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm

from tnt import models
from tnt.batching import Batch, collate, completion_logits
from tnt.losses import token_losses
from tnt.models import LoraParams
from tnt.params import STRICT
from tnt.records import Mask

LossName = Literal["tnff", "tnrr", "tnrf", "tnfll", "tnrll", "ul", "nl", "sft_clean"]


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
    """Run the original once and keep its final hidden states, instead of once per epoch."""
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        """Refuse what is no regular expression."""
        try:
            re.compile(self.trainable or "")
        except re.error as error:
            raise ValueError(f"trainable is no regular expression ({error})") from error


OriginalLogits = Callable[[list[Mask], Batch, Tensor], Tensor]
"""(completions, their batch, chosen tokens as [N] bool, none of a correction) -> [M, V]."""


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


def train(
    model: Any,
    masks: Sequence[Mask],
    params: TrainParams,
    *,
    workdir: Path,
    autocast: Literal["none", "bf16"] = "none",
) -> tuple[Any, list[StepLog]]:
    """Return the updated model and one log line per step.

    Args:
        model: The original. It is trained in place; with `lora` it is wrapped by peft.
        masks: What to learn from; rows without a loss token are left out.
        params: How.
        workdir: Where checkpoints go; a run that finds one there continues from it. Give one
            folder to one set of inputs (see `fingerprint`).
        autocast: Precision of the transformer's passes; the LM head and the loss are float32.

    Raises:
        ValueError: `trainable` names no parameter, or the loss stops being finite.
    """
    torch.manual_seed(params.seed)
    masks = [_cut(mask) for mask in masks]
    batches = list(_batches(masks, params))
    start_id = model.config.decoder_start_token_id if models.is_encoder_decoder(model) else None

    def on_device(chosen: Sequence[Mask]) -> Batch:
        return collate(chosen, decoder_start_id=start_id).to(model.device)

    with _exact_head(model):
        usable = [mask for mask in masks if mask.completion_ids]
        generated = [mask for mask in usable if mask.source == "generated"]
        original_logits = _original(model, generated, params, on_device, autocast)
        model = _trainable(model, params)
        model.train(params.dropout)
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            weights,
            lr=params.learning_rate,
            betas=params.adam_betas,
            eps=params.adam_epsilon,
            weight_decay=params.weight_decay,
        )
        start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        first_step, logs = _resume(workdir, model, optimizer)
        with tqdm(total=len(batches), initial=first_step, desc="train", unit="step") as bar:
            for step in range(first_step, len(batches)):
                rate = _learning_rate(step, len(batches), params)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                terms = _accumulate(
                    model, batches[step], original_logits, params, on_device, autocast
                )
                norm = float(torch.nn.utils.clip_grad_norm_(weights, params.max_gradient_norm))
                log = _log(step, len(batches) / params.epochs, terms, norm, rate, params)
                if not torch.isfinite(torch.tensor([log.loss, norm])).all():
                    raise ValueError(
                        f"Training stopped at step {step}: the loss is {log.loss} and the gradient "
                        f"norm {norm}. Lower train.learning_rate or train.negative_weight."
                    )
                optimizer.step()
                optimizer.zero_grad()
                logs.append(log)
                bar.set_postfix(loss=f"{log.loss:.4f}", negative_mass=f"{log.negative_mass:.3f}")
                bar.update()
                if _checkpoint_due(step + 1, len(batches)):
                    _checkpoint(workdir, step + 1, model, optimizer, logs)
    _scale_update(model, start, params)
    return model.eval(), logs


def fingerprint(*parts: str) -> str:
    """Return a short name for a working folder: the same parts give the same one."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _batches(masks: Sequence[Mask], params: TrainParams) -> Iterator[list[Mask]]:
    """Yield the completions of every step of every epoch, shuffled anew each epoch."""
    usable = [m for m in masks if m.completion_ids]
    if params.loss == "sft_clean":
        usable = [m for m in usable if not any(m.negative_mask)]
    if not usable:
        raise ValueError(
            f"None of the {len(masks)} completions has a token that carries a loss under "
            f"{params.loss!r}. Give the round more prompts, or another loss."
        )
    for epoch in range(params.epochs):
        generator = torch.Generator().manual_seed(params.seed * 1_000_003 + epoch)
        order = torch.randperm(len(usable), generator=generator).tolist()
        for start in range(0, len(order), params.batch_size):
            yield [usable[i] for i in order[start : start + params.batch_size]]


def _cut(mask: Mask) -> Mask:
    """Return a completion without the tokens after its last one that carries a loss."""
    carries = [a or b for a, b in zip(mask.negative_mask, mask.kept_mask, strict=True)]
    end = max((i + 1 for i, carried in enumerate(carries) if carried), default=0)
    per_token = ("completion_ids", "negative_mask", "kept_mask")
    return replace(mask, **{name: getattr(mask, name)[:end] for name in per_token})


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


def _scale_update(model: Any, start: dict[str, Tensor], params: TrainParams) -> None:
    """Pull the trained weights back towards the original; an adapter's update is B A."""
    if params.update_scale == 1:
        return
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if params.lora is not None and "lora_B" in name:
                weight.mul_(params.update_scale)
            elif params.lora is None and name in start:
                weight.copy_(torch.lerp(start[name], weight, params.update_scale))


def _accumulate(
    model: Any,
    chosen: list[Mask],
    original_logits: OriginalLogits,
    params: TrainParams,
    on_device: Callable[[Sequence[Mask]], Batch],
    autocast: str,
) -> dict[str, float]:
    """Add up the gradient of one step, micro-batch by micro-batch; return sums for the log."""
    size = params.micro_batch_size or len(chosen)
    total = sum(sum(m.negative_mask) + sum(m.kept_mask) for m in chosen)
    sums = {"negative": 0.0, "kept": 0.0, "corrected": 0.0, "mass": 0.0}
    sums |= {"negatives": 0, "corrections": 0, "total": total}
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        batch = on_device(part)
        carries = (batch.negative | batch.kept) & ~batch.corrected
        negative = batch.negative[carries]
        with _precision(model, autocast):
            logits = completion_logits(model, batch)
        corrected_logits, logits = logits[batch.corrected], logits[carries]
        losses = token_losses(
            params.loss,
            logits,
            original_logits(part, batch, carries),
            batch.token_ids[carries],
            negative,
            negative_weight=params.negative_weight,
            target_floor=params.target_floor,
            nl_cap=params.nl_cap,
        )
        loss = losses.sum()
        if len(corrected_logits):
            corrected = _cross_entropy(corrected_logits, batch.token_ids[batch.corrected])
            loss = loss + corrected.sum()
            sums["corrected"] += float(corrected.detach().sum())
            sums["corrections"] += len(corrected)
        (loss / total).backward()
        with torch.no_grad():
            picked = logits[negative].log_softmax(-1)
            picked = picked.gather(-1, batch.token_ids[carries][negative][:, None])
            sums["mass"] += float(picked.exp().sum())
            sums["negative"] += float(losses[negative].sum())
            sums["kept"] += float(losses[~negative].sum())
            sums["negatives"] += int(negative.sum())
    return sums


def _cross_entropy(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return -log p of each token, [N], by the table's own formula, which needs no original."""
    none = torch.zeros_like(token_ids, dtype=torch.bool)
    return token_losses("sft_clean", logits, logits.detach(), token_ids, none)


def _original(
    model: Any,
    masks: Sequence[Mask],
    params: TrainParams,
    on_device: Callable[[Sequence[Mask]], Batch],
    autocast: str,
) -> OriginalLogits:
    """Return a function that gives the frozen original's logits.

    Either a second copy of the model runs each time, or every completion runs once, now, and only
    the rows that enter the LM head are kept: V / d times smaller than logits, and as exact.
    """
    import copy

    if not params.cache_original:
        frozen = copy.deepcopy(model).eval().requires_grad_(False)

        def run(part: list[Mask], batch: Batch, chosen: Tensor) -> Tensor:
            with torch.no_grad(), _exact_head(frozen), _precision(frozen, autocast):
                return completion_logits(frozen, batch)[chosen]

        return run

    head = copy.deepcopy(model.get_output_embeddings()).requires_grad_(False)
    cached: dict[tuple[str, int], Tensor] = {}
    size = params.micro_batch_size or params.batch_size
    model.eval()
    with torch.no_grad(), tqdm(total=len(masks), desc="run the original", unit="reply") as bar:
        for start in range(0, len(masks), size):
            part = list(masks[start : start + size])
            batch = on_device(part)
            with _precision(model, autocast), _captured(model) as captured:
                logits = completion_logits(model, batch)
            hidden = captured[0]
            hidden = hidden[batch.rows] if hidden.ndim == 3 and len(hidden) == len(part) else hidden
            hidden = hidden.reshape(len(batch.token_ids), -1)
            if start == 0 and not torch.allclose(head(hidden.float()), logits, atol=1e-3):
                raise ValueError(
                    "This model changes its logits after the LM head, so they cannot be cached. "
                    "Set train.cache_original: false."
                )
            pieces = hidden.split([len(m.completion_ids) for m in part])
            for mask, piece in zip(part, pieces, strict=True):
                cached[mask.prompt_id, mask.sample] = piece.clone()
            bar.update(len(part))

    none = head.weight.new_zeros(0, head.weight.shape[1])

    def look_up(part: list[Mask], batch: Batch, chosen: Tensor) -> Tensor:
        hidden = [cached[m.prompt_id, m.sample] for m in part if m.source == "generated"]
        with torch.no_grad():
            return head(torch.cat([none, *hidden]).float())[chosen[~batch.corrected]]

    return look_up


@contextlib.contextmanager
def _captured(model: Any) -> Iterator[list[Tensor]]:
    """Collect what enters the LM head."""
    captured: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: captured.append(inputs[0])
    )
    try:
        yield captured
    finally:
        hook.remove()


@contextlib.contextmanager
def _exact_head(model: Any) -> Iterator[None]:
    """Run the LM head in float32 also under autocast: bf16 logits near 20 are 0.125 nats apart."""
    head = model.get_output_embeddings()

    def exact(self: Any, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return type(self).forward(self, hidden.float())

    head.forward = MethodType(exact, head)  # bound, so that a copy of the model runs its own head
    try:
        yield
    finally:
        del head.forward  # back to the class's own


def _precision(model: Any, autocast: str) -> Any:
    return torch.autocast(model.device.type, torch.bfloat16, enabled=autocast == "bf16")


def _learning_rate(step: int, steps: int, params: TrainParams) -> float:
    warm = min(1.0, (step + 1) / (params.warmup_steps + 1))
    fall = 1.0 if params.schedule == "constant" else 1 - step / steps
    return params.learning_rate * warm * fall


def _log(
    step: int,
    per_epoch: float,
    sums: dict[str, float],
    norm: float,
    rate: float,
    params: TrainParams,
) -> StepLog:
    negatives = sums["negatives"]
    corrections = sums["corrections"]
    kept = sums["total"] - negatives - corrections
    return StepLog(
        step=step,
        epoch=round((step + 1) / per_epoch, 4),
        loss=(sums["negative"] + sums["kept"] + sums["corrected"]) / sums["total"],
        negative_loss=sums["negative"] / params.negative_weight / negatives if negatives else 0.0,
        kept_loss=sums["kept"] / kept if kept else 0.0,
        corrected_loss=sums["corrected"] / corrections if corrections else 0.0,
        negative_mass=sums["mass"] / negatives if negatives else 0.0,
        gradient_norm=norm,
        learning_rate=rate,
    )


def _checkpoint_due(step: int, steps: int) -> bool:
    return step < steps and step % max(1, steps // 5) == 0


def _checkpoint(
    workdir: Path, step: int, model: Any, optimizer: torch.optim.Optimizer, logs: list[StepLog]
) -> None:
    """Write all that the rest of the run depends on, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    partial = workdir / "checkpoint.partial"
    state = {
        "step": step,
        "weights": {n: p.detach() for n, p in model.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "logs": json.dumps([asdict(log) for log in logs]),
    }
    torch.save(state, partial)
    partial.replace(workdir / "checkpoint.pt")


def _resume(
    workdir: Path, model: Any, optimizer: torch.optim.Optimizer
) -> tuple[int, list[StepLog]]:
    """Load the working folder's checkpoint, if there is one; return the next step and the log."""
    path = workdir / "checkpoint.pt"
    if not path.exists():
        return 0, []
    state = torch.load(path, map_location=model.device, weights_only=True)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in state["weights"].items():
            named[name].copy_(weight)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"].cpu())
    return state["step"], [StepLog(**log) for log in json.loads(state["logs"])]


def forget(workdir: Path) -> None:
    """Delete the working folder of a run that ended."""
    shutil.rmtree(workdir, ignore_errors=True)
