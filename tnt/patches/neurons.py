"""The neurons of a patch: each fires where its input lies in a half space, and is 0 elsewhere.

Legend: T positions, d width, K neurons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tnt.patches.site import site_of

ATTRIBUTE = "tnt_patches"
"""Where a model holds the patches that stand beside its last MLP."""


@dataclass(frozen=True, slots=True)
class Neurons:
    """A patch: what the last MLP gives becomes m + relu(u w' + b) v."""

    gates: Tensor
    """w: what each neuron looks for, [K, d]."""
    biases: Tensor
    """b, [K]."""
    values: Tensor
    """v: what each neuron adds where it fires, [K, d]."""
    constant: Tensor
    """c: u c is about 1 at every position, [d]; stands for the bias in weights that have none."""

    def activations(self, inputs: Tensor) -> Tensor:
        """Return how far each neuron is open, [..., d] -> [..., K]; 0 is shut."""
        return torch.relu(self.reached(inputs))

    def reached(self, inputs: Tensor) -> Tensor:
        """Return z, which is above 0 where a neuron fires, [..., d] -> [..., K]."""
        return inputs @ self.gates.T + self.biases

    def added(self, inputs: Tensor) -> Tensor:
        """Return what the patch adds to the MLP's output, [..., d] -> [..., d]."""
        return self.activations(inputs) @ self.values

    def to(self, like: Tensor) -> Neurons:
        """Return the neurons in another tensor's precision, and where that is."""
        return Neurons(*(t.to(like) for t in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def only(self, chosen: list[int]) -> Neurons:
        """Return some of the neurons, as they are."""
        return Neurons(self.gates[chosen], self.biases[chosen], self.values[chosen], self.constant)

    def __len__(self) -> int:
        """Return the number of neurons."""
        return len(self.biases)


class Beside:
    """Patches beside a model's last MLP, one after the other; its own weights are untouched.

    Where no neuron fires, what is added is 0, and the logits are the model's own to the last bit.
    """

    def __init__(self, model: Any) -> None:
        """Stand beside the model's last MLP."""
        self.patches: list[Neurons] = []
        site = site_of(model)
        site.entry.register_forward_pre_hook(self._see)
        site.exit.register_forward_hook(self._add)
        self._inputs: Tensor | None = None

    def _see(self, _: Any, given: tuple[Tensor, ...]) -> None:
        self._inputs = given[0]

    def _add(self, _: Any, __: Any, output: Tensor) -> Tensor:
        assert self._inputs is not None, "the MLP's output comes after its input"
        for patch in self.patches:
            output = output + patch.added(self._inputs).view_as(output)
        return output


def attach(model: Any, neurons: Neurons) -> None:
    """Put a patch beside a model's last MLP, after those that stand there.

    Raises:
        ValueError: The architecture has no place for it, or another width.
    """
    weight = model.get_input_embeddings().weight
    if not hasattr(model, ATTRIBUTE):
        setattr(model, ATTRIBUTE, Beside(model))
    width = model.get_output_embeddings().weight.shape[1]
    if neurons.gates.shape[1] != width:
        raise ValueError(
            f"The patch has the width {neurons.gates.shape[1]}, the model {width}: it was made for "
            "another. Train the round again."
        )
    getattr(model, ATTRIBUTE).patches.append(neurons.to(weight))


def patches_of(model: Any) -> list[Neurons]:
    """Return the patches that stand beside a model's last MLP, in their order."""
    return [*getattr(model, ATTRIBUTE).patches] if hasattr(model, ATTRIBUTE) else []
