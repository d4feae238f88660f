"""What a training run writes down after every step."""

from __future__ import annotations

from dataclasses import dataclass

WATCHES = 5
"""How often, in a run."""


@dataclass(frozen=True, slots=True)
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
