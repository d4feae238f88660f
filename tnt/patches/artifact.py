"""A patch as a file: its tensors and nothing else, small enough for git."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tnt.patches.neurons import Neurons

REMEDY = "Run `dvc checkout`, or train the round again."


def write(neurons: Neurons, path: Path) -> None:
    """Write a patch, in float32."""
    tensors = {name: t.float().cpu().contiguous() for name, t in neurons.tensors().items()}
    save_file(tensors, path, {"format": "tnt patch"})


def read(path: Path) -> Neurons:
    """Return the patch that a file holds.

    Raises:
        ValueError: It cannot be read, its tensors do not fit together, or one is not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = Neurons(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}). {REMEDY}") from error
    count, width = found.gates.shape
    shapes = {
        "gates": (count, width), "values": (count, width), "biases": (count,), "factor": (width,)
    }  # fmt: skip
    for name, tensor in found.tensors().items():
        if tensor.shape != shapes[name] or not tensor.isfinite().all():
            raise ValueError(
                f"{path}: {name} is {[*tensor.shape]}, or not finite. It must be finite and "
                f"{[*shapes[name]]}. {REMEDY}"
            )
    return found
