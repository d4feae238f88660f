"""The progress bar of training."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

SHOWN = ("loss", "negative_mass", "kept_loss", "grad_norm", "validation_divergence")
"""What stands beside the progress bar."""


class Progress(TrainerCallback):
    """One progress bar; the last step is watched as well."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar, at the step that a resumed run goes on from."""
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="train",
            unit="step",
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move it on."""
        self.bar.update()
        if state.global_step == state.max_steps:
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Show the numbers of `SHOWN`."""
        logs = given["logs"]
        shown = {name: f"{logs[name]:.4g}" for name in SHOWN if name in logs}
        if shown:
            self.bar.set_postfix(shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close it."""
        self.bar.close()
