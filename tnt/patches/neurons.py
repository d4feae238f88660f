"""The neurons of a patch: each fires where its input lies in a half space, and is 0 elsewhere.

They have the form that the last MLP's own neurons have, so that the model's weights can hold them
as they are: a bias only where its matrices have one, a factor only where a gate needs one.

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
    """A patch: what the last MLP gives becomes m + (u c) relu(u w' + b) v."""

    gates: Tensor
    """w: what each neuron looks for, [K, d]."""
    values: Tensor
    """v: what each neuron adds where it fires, [K, d]."""
    biases: Tensor | None = None
    """b, [K]; none where the MLP has none."""
    factor: Tensor | None = None
    """c: u c is about 1 at every position, [d]; none where the MLP has no gate, or has biases."""

    def activations(self, inputs: Tensor) -> Tensor:
        """Return how far each neuron is open, [..., d] -> [..., K]; 0 is shut."""
        return torch.relu(self.reached(inputs))

    def reached(self, inputs: Tensor) -> Tensor:
        """Return z, which is above 0 where a neuron fires, [..., d] -> [..., K]."""
        reached = inputs @ self.gates.T
        return reached if self.biases is None else reached + self.biases

    def added(self, inputs: Tensor) -> Tensor:
        """Return what the patch adds to the MLP's output, [..., d] -> [..., d]."""
        opened = self.activations(inputs)
        if self.factor is not None:
            opened = opened * (inputs @ self.factor)[..., None]
        return opened @ self.values

    def to(self, like: Tensor) -> Neurons:
        """Return the neurons in another tensor's precision, and where that is."""
        return Neurons(**{name: t.to(like) for name, t in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that there are, by name."""
        every = {name: getattr(self, name) for name in self.__slots__}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    def only(self, chosen: list[int]) -> Neurons:
        """Return some of the neurons, as they are."""
        biases = None if self.biases is None else self.biases[chosen]
        return Neurons(self.gates[chosen], self.values[chosen], biases, self.factor)

    def __len__(self) -> int:
        """Return the number of neurons."""
        return len(self.gates)


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
        ValueError: The architecture has no place for it, another width or another form.
    """
    weight = model.get_input_embeddings().weight
    site = site_of(model)
    if not hasattr(model, ATTRIBUTE):
        setattr(model, ATTRIBUTE, Beside(model))
    width = model.get_output_embeddings().weight.shape[1]
    form = site.biased, site.layout.gated and not site.biased
    if neurons.gates.shape[1] != width:
        raise ValueError(
            f"The patch has the width {neurons.gates.shape[1]}, the model {width}: it was made for "
            "another. Train the round again."
        )
    if (neurons.biases is not None, neurons.factor is not None) != form:
        raise ValueError(
            f"The patch has the tensors {', '.join(neurons.tensors())}, which are not those of a "
            f"neuron of {type(model).__name__}: it was made for another. Train the round again."
        )
    getattr(model, ATTRIBUTE).patches.append(neurons.to(weight))


def patches_of(model: Any) -> list[Neurons]:
    """Return the patches that stand beside a model's last MLP, in their order."""
    return [*getattr(model, ATTRIBUTE).patches] if hasattr(model, ATTRIBUTE) else []
