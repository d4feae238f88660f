"""A patch written into plain weights: a last MLP with more neurons, which any engine can run.

A config has one size for the MLPs of all layers, so the other layers get neurons of zeros. A
patch's neuron, (u c) relu(u w + b) v, has the form of the MLP's own, and becomes

    gate = beta w and its bias beta b,  up = c, or a bias of 1,  down = v / beta

so that silu or gelu, steep as it is then, stands for relu.

Legend: d width, I neurons of the model's own, K of its patches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tnt.patches.neurons import Neurons, patches_of
from tnt.patches.site import ALTERNATIVE, Site, site_of

BETA = 1000.0
"""How steep the gates are: at 5 the ones that are shut leak, at 1000 hardly a float can tell."""


def written(model: Any) -> Any:
    """Return a plain model that has the patches beside a model in its weights.

    Args:
        model: With one patch at least; it stays as it is.

    Raises:
        ValueError: The architecture cannot be built with more neurons.
    """
    patches, site = patches_of(model), site_of(model)
    layout = site.layout
    last = layout.mlp.format(last=len(model.get_submodule(layout.layers)) - 1)
    own = model.state_dict()
    size = own[f"{last}.{layout.out}.weight"].numel() // patches[0].gates.shape[1]
    config = copy.deepcopy(model.config)
    setattr(config, layout.size, size + sum(map(len, patches)))
    grown = type(model)(config)
    added = _added(site, patches)
    with torch.no_grad():
        for name, weight in grown.state_dict().items():
            before = own[name]
            if before.shape == weight.shape:
                weight.copy_(before)
                continue
            module, _, kind = name.rpartition(".")
            new = added.get((module.removeprefix(f"{last}."), kind))
            fused = layout.gated and len(layout.into) == 1 and module.endswith(layout.into[0])
            weight.copy_(_joined(before, new, weight.shape, halves=2 if fused else 1))
    if grown.config.to_dict() == model.config.to_dict():
        raise ValueError(f"{type(model).__name__} cannot be built with more neurons. {ALTERNATIVE}")
    grown.generation_config = copy.deepcopy(model.generation_config)
    grown.tie_weights()
    return grown.to(model.device).eval()


def _added(site: Site, patches: Sequence[Neurons]) -> dict[tuple[str, str], Tensor]:
    """Return what the last MLP's matrices get, by their names: a row for each neuron, [K, ...]."""
    layout = site.layout
    gates, values = (torch.cat([getattr(p, name) for p in patches]) for name in ("gates", "values"))
    first = {"weight": BETA * gates}
    up = {"weight": torch.zeros_like(gates)}
    if site.biased:
        first["bias"] = BETA * torch.cat([p.biases for p in patches if p.biases is not None])
        up["bias"] = torch.ones_like(first["bias"])
    elif layout.gated:
        factors = [p.factor.expand(len(p), -1) for p in patches if p.factor is not None]
        up["weight"] = torch.cat(factors)
    if len(layout.into) == 2:
        rows = dict(zip(layout.into, (first, up), strict=True))
    elif layout.gated:  # gate and up in one
        rows = {layout.into[0]: {kind: torch.cat([first[kind], up[kind]]) for kind in first}}
    else:
        rows = {layout.into[0]: first}
    rows[layout.out] = {"weight": values / BETA}
    return {(name, kind): t for name, kinds in rows.items() for kind, t in kinds.items()}


def _joined(before: Tensor, new: Tensor | None, shape: torch.Size, *, halves: int) -> Tensor:
    """Return a matrix or a bias with what it gets behind what it has; None is zeros.

    Args:
        before: As it is.
        new: A row for each neuron.
        shape: What it becomes.
        halves: 2 where gate and up are one matrix, one after the other.
    """
    axis = next(i for i, length in enumerate(shape) if length != before.shape[i])
    count = shape[axis] - before.shape[axis]
    if new is None:
        fill = [*before.shape]
        fill[axis] = count
        new = before.new_zeros(fill)
    elif axis == 1:
        new = new.T
    parts = zip(before.chunk(halves, axis), new.to(before).chunk(halves, axis), strict=True)
    return torch.cat([half for pair in parts for half in pair], axis)
