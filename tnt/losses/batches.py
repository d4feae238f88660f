"""Rows of token ids -> padded batches.

Legend: B sequences, S prompt positions, T positions of the sequence the head sees, N completion
tokens of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tnt.core.records import Mask


@dataclass(frozen=True, slots=True)
class Batch:
    """Masked completions, padded on the right; the flat tensors hold completion tokens only."""

    input_ids: Tensor
    """Causal: prompt and completion, [B, T] int64. Encoder-decoder: the prompt, [B, S]."""
    attention_mask: Tensor
    """1 on real tokens of `input_ids`."""
    rows: Tensor
    """True at positions whose logits predict a completion token, [B, T] bool."""
    token_ids: Tensor
    """The completion tokens, in the order in which `rows` selects, [N] int64."""
    negative: Tensor
    """[N] bool."""
    kept: Tensor
    """[N] bool; a token may be neither negative nor kept, and then carries no loss."""
    corrected: Tensor
    """True at the tokens of people's corrections, which no model generated, [N] bool."""
    excluded: Tensor
    """The set of tokens that is negative at each token, [N, S] int64, filled up with one of its
    own; at tokens that are not negative it says nothing."""
    decoder_input_ids: Tensor | None = None
    """Encoder-decoder: the completion shifted right, [B, T] int64; causal: None."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what there is, by name."""
        named = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: tensor for name, tensor in named if tensor is not None}

    def to(self, device: str | torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


def collate(masks: Sequence[Mask], *, decoder_start_id: int | None = None) -> Batch:
    """Pad masked completions into one batch.

    Args:
        masks: Rows with at least one completion token each.
        decoder_start_id: The decoder's first token in an encoder-decoder model; None for causal.
    """
    causal = decoder_start_id is None
    sequences = [m.prompt_ids + m.completion_ids if causal else m.prompt_ids for m in masks]
    width = max(map(len, sequences))
    input_ids = torch.zeros(len(masks), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for i, sequence in enumerate(sequences):
        input_ids[i, : len(sequence)] = torch.tensor(sequence)
        attention_mask[i, : len(sequence)] = 1

    decoder_input_ids = None
    width = width if causal else max(len(m.completion_ids) for m in masks)
    rows = torch.zeros(len(masks), width, dtype=torch.bool)
    if not causal:
        decoder_input_ids = torch.zeros(len(masks), width, dtype=torch.long)
    for i, m in enumerate(masks):
        start = len(m.prompt_ids) - 1 if causal else 0  # position t predicts token t + 1
        rows[i, start : start + len(m.completion_ids)] = True
        if decoder_input_ids is not None:
            shifted = [decoder_start_id, *m.completion_ids[:-1]]
            decoder_input_ids[i, : len(shifted)] = torch.tensor(shifted)

    def flat(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([x for m in masks for x in getattr(m, name)], dtype=dtype)

    corrected = [m.source == "corrected" for m in masks for _ in m.completion_ids]
    sets = [s or [0] for m in masks for s in m.sets()]
    largest = max(map(len, sets), default=1)
    filled = [s + s[:1] * (largest - len(s)) for s in sets]

    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        decoder_input_ids=decoder_input_ids,
        rows=rows,
        token_ids=flat("completion_ids", torch.long),
        negative=flat("negative_mask", torch.bool),
        kept=flat("kept_mask", torch.bool),
        corrected=torch.tensor(corrected, dtype=torch.bool),
        excluded=torch.tensor(filled, dtype=torch.long).view(-1, largest),
    )
