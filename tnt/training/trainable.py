"""Which weights are trained, and how far the update goes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tnt.losses.batches import Batch
from tnt.losses.heads import completion_hidden
from tnt.training import passes
from tnt.training.params import LoraParams, TrainParams


def trainable(model: Any, params: TrainParams, probe: Batch) -> Any:
    """Freeze what is not trained; wrap the model when the update is an adapter.

    Args:
        model: The original.
        params: What is trained.
        probe: A batch that a model with an adapter must be able to read.
    """
    if params.lora is not None:
        return _adapted(model, params.lora, probe)
    for name, weight in model.named_parameters():
        weight.requires_grad_(params.trainable is None or bool(re.search(params.trainable, name)))
    if not any(weight.requires_grad for weight in model.parameters()):
        names = [name for name, _ in model.named_parameters()]
        raise ValueError(
            f"train.trainable {params.trainable!r} matches no parameter; there are {len(names)}, "
            f"from {names[0]} to {names[-1]}. Correct the expression."
        )
    return model


def _adapted(model: Any, lora: LoraParams, probe: Batch) -> Any:
    """Return the model with an adapter, which as yet does nothing."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        lora_dropout=0.0,
    )
    try:
        adapted = get_peft_model(model, config)
        with passes.evaluating(adapted):
            completion_hidden(adapted, probe)
    except Exception as error:  # peft and the architecture raise whatever they like
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(
            f"An adapter on {lora.target_modules!r} does not fit {type(model).__name__} ({said}). "
            "Name other modules in train.lora.target_modules, like '.*(q_proj|v_proj)', or set "
            "train.lora to null."
        ) from error
    return adapted


def refuse_adapted_head(model: Any, lora: LoraParams) -> None:
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


def trained_weights(model: Any) -> dict[str, Tensor]:
    """Return a copy of every weight that is trained, by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def scale_update(model: Any, start: Mapping[str, Tensor], params: TrainParams) -> None:
    """Pull the trained weights back towards the original; an adapter's update is B A."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if params.lora is not None and name in start and "lora_B" in name:
                weight.mul_(params.update_scale)
            elif params.lora is None and name in start:
                weight.copy_(torch.lerp(start[name], weight, params.update_scale))
