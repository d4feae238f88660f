"""The params of training."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from tnt.core.params import STRICT
from tnt.losses.params import LossParams


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class LoraParams:
    """A low-rank adapter instead of an update of all weights (Hu et al. 2021, arXiv 2106.09685)."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    """Scale of the adapter is alpha / rank."""
    target_modules: str = "all-linear"
    """peft's `target_modules`: `all-linear`, or a regular expression over module names."""


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class PatchParams:
    """Neurons beside the last MLP instead of an update of weights that are there.

    Each is 0 where its input does not reach it: there the model stays as it was, to the last bit.
    """

    neurons: PositiveInt = 32
    margin: float = 0.0
    """How far below 0 the gates are held at kept tokens; more is stricter."""
    hinge: PositiveFloat = 1.0
    """Weight of what holds the gates shut; less lets more of the fault go, and more else move."""
    steps: PositiveInt = 250
    batch_size: PositiveInt = 64
    """Negative tokens of a step; the kept ones are in every step."""
    learning_rate: PositiveFloat = 0.3
    """How far a step may move what a gate makes of a typical input, which begins at 1 in the middle
    of what should open it and at -1 in the middle of what is kept; what a neuron
    adds may move a logit a quarter as far. So one value serves small models and large ones."""
    file: str | None = None
    """A patch under `data/patches/` that is taken as it is, instead of one that is trained; what
    `tnt patch drop` and `tnt patch merge` write."""


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class TrainParams(LossParams):
    """How a round's model is trained. The defaults are what docs/log.md found best."""

    patch: PatchParams | None = None
    """Neurons beside the last MLP; what follows is for updates of weights, `seed` for both."""
    epochs: PositiveInt = 4
    batch_size: PositiveInt = 8
    """Completions of one optimiser step."""
    micro_batch_size: PositiveInt | None = None
    """Completions of one pass; None is the whole batch. Changes memory, not the result."""
    learning_rate: PositiveFloat = 7e-6
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
    """Run the original once and keep its final hidden states on disk, instead of once per epoch."""
    max_divergence: PositiveFloat = 0.5
    """Nats per kept token of the validation completions at which training stops; what is kept is
    the state with the lowest validation loss before."""
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        """Refuse what is no regular expression, and two kinds of update at once."""
        LossParams.__post_init__(self)
        if self.patch and (self.lora or self.trainable or self.update_scale != 1):
            raise ValueError(
                "patch is given beside lora, trainable or update_scale, which update weights; set "
                "it or them to null"
            )
        if self.patch and self.loss == "sft_clean":
            raise ValueError("loss 'sft_clean' does nothing at negative tokens; with patch, too")
        try:
            re.compile(self.trainable or "")
        except re.error as error:
            raise ValueError(f"trainable is no regular expression ({error})") from error
