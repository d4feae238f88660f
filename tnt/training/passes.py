"""How a model is run: in which precision, and in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch

Autocast = Literal["none", "bf16"]


def precision(device: str, autocast: Autocast) -> torch.autocast:
    """Return the context in which the transformer's passes run; heads and losses never do."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast == "bf16")


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Run the model without dropout and without gradients."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was)
