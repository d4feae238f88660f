"""LM heads: what enters them where they predict completion tokens, and the logits they give.

Legend: N tokens, V vocabulary, d width of the hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tnt.losses.batches import Batch


@dataclass(frozen=True, slots=True)
class Head:
    """An LM head: logits = cap(scale * (hidden @ weight.T + bias)), [N, d] -> [N, V] float32."""

    weight: Tensor
    """[V, d], tied to the embedding or not."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    softcap: float | None = None
    """cap(x) = softcap * tanh(x / softcap), as in Gemma 2; None is no cap."""

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the logits of some rows; half precision is raised to float32 after the product."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.finished(self.affine(hidden, out))

    def affine(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Return hidden @ weight.T + bias; `out` is where to, [N, V]."""
        inputs = hidden.to(self.weight.dtype)
        if out is None:
            product = raised(inputs @ self.weight.T)
            return product if self.bias is None else product + self.bias
        if out.dtype == inputs.dtype:
            torch.mm(inputs, self.weight.T, out=out)
        else:
            out.copy_(inputs @ self.weight.T)
        return out if self.bias is None else out.add_(self.bias)

    def finished(self, affine: Tensor) -> Tensor:
        """Return the logits that an affine map's values stand for."""
        scaled = affine if self.scale == 1 else affine * self.scale
        return scaled if self.softcap is None else self.softcap * (scaled / self.softcap).tanh()

    def frozen(self) -> Head:
        """Return this head as it is now, whatever is trained later."""
        weight, bias = (
            x.detach().clone() if x is not None and x.requires_grad else x
            for x in (self.weight, self.bias)
        )
        assert weight is not None
        return Head(weight, bias, self.scale, self.softcap)


def head_of(model: Any) -> Head:
    """Return the LM head of a transformers or peft model.

    Raises:
        ValueError: The head is not a plain linear layer: an adapter is on it, say.
    """
    layer = model.get_output_embeddings()
    if type(layer).forward is not torch.nn.Linear.forward:
        raise ValueError(
            f"The LM head is a {type(layer).__name__}, not a Linear layer. Leave it out of "
            "train.lora.target_modules; other heads are not supported."
        )
    config = model.config
    extra = getattr(model, "final_logits_bias", None)  # of BART and its relatives
    return Head(
        weight=layer.weight,
        bias=layer.bias if extra is None else extra[0],
        scale=getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def completion_hidden(model: Any, batch: Batch, *, through: Any = None) -> Tensor:
    """Return what enters the LM head where it predicts a batch's completion tokens, [N, d].

    Row n predicts `batch.token_ids[n]`. The head itself does not run; T5's scaling, which comes
    before it, is included.

    Args:
        model: A transformers or peft model.
        batch: Its prompts and completions.
        through: What to call instead of the model: the same, wrapped for data parallelism.
    """
    head = model.get_output_embeddings()
    found: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        found.append(hidden[batch.rows])
        return hidden.new_zeros(len(hidden), 0, len(head.weight))

    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.decoder_input_ids is not None:
        inputs["decoder_input_ids"] = batch.decoder_input_ids
    head.forward = keep
    try:
        (model if through is None else through)(**inputs, use_cache=False)
    finally:
        del head.forward  # back to the class's own
    return found[0]


def completion_logits(model: Any, batch: Batch) -> Tensor:
    """Return the logits that predict a batch's completion tokens, [N, V] float32."""
    return head_of(model).logits(completion_hidden(model, batch))


def raised(values: Tensor) -> Tensor:
    """Return half precision as float32, all else as it is."""
    return values.float() if values.dtype.itemsize < 4 else values
