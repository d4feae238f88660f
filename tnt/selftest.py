"""A self-test: does a model say the same however it is asked?

What is measured and what is trained rest on three things. A prompt is answered in a batch as it is
alone. Reading a completion in one pass, as training does, gives at each token what generating it
gave. And the folder that is saved is the model that was there. An architecture or a checkpoint of
which one is not true makes every number wrong and says nothing; this says it, in one line.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tnt import models
from tnt.core.records import Mask
from tnt.losses.batches import collate
from tnt.sampling import SamplingParams, Start, scored

PROMPTS = 4
LENGTH = 8
"""Tokens of a completion; what prompts differ by in their length is some more."""
TOLERANCE = 1e-3
"""Of the largest logit: what rounding may do. Two ways of padding differ by some 1e-6 of it."""
ANOTHER = "Take another model as `base`."


def refuse_unsteady(model: Any, never: Collection[int] = ()) -> list[Mask]:
    """Return how a model answers some prompts; raise if that depends on how it is asked.

    Args:
        model: In evaluation mode.
        never: Tokens that are no part of a text.
    """
    name = type(model).__name__
    prompts = _prompts(model, never)
    params = SamplingParams(max_new_tokens=LENGTH, batch_size=PROMPTS)
    starts = [Start(prompt, [], LENGTH) for prompt in prompts]
    try:
        together = scored(model, starts, params)
        alone = [scored(model, [start], params)[0] for start in starts]
        rows = [Mask.blank(p, ids) for p, (ids, _) in zip(prompts, together, strict=True)]
        at_once = _read(model, rows).split([len(row.completion_ids) for row in rows])
        one_by_one = [_read(model, [row]) for row in rows]
    except Exception as error:  # an architecture raises whatever it likes
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot answer a few prompts ({said}). {ANOTHER}") from error
    generated = [logits for _, logits in together]
    if not all(
        _close(logits[: len(seen)], seen[: len(logits)])
        for logits, (_, seen) in zip(generated, alone, strict=True)
    ):
        raise ValueError(
            f"{name} answers a prompt otherwise in a batch than alone: the padding that makes "
            f"prompts equally long changes it. {ANOTHER}"
        )
    if not all(map(_close, generated, one_by_one)):
        raise ValueError(
            f"{name} generates otherwise than it reads: in one pass over its own answer it gives "
            f"other probabilities, so that nothing could be learned from them. {ANOTHER}"
        )
    if not all(map(_close, at_once, one_by_one)):
        raise ValueError(
            f"{name} reads a completion otherwise in a batch than alone: what stands beside it "
            f"changes it. {ANOTHER}"
        )
    return rows


def logits_of(model: Any, rows: Sequence[Mask]) -> Tensor:
    """Return what a model gives at the tokens of a few rows, for `refuse_other`: [N, V]."""
    return _read(model, rows[:PROMPTS])


def refuse_other(path: Path, expected: Tensor, rows: Sequence[Mask]) -> None:
    """Raise if a folder does not hold the model whose `logits_of` the rows are these."""
    found = logits_of(models.load(path, device=str(expected.device)), rows)
    if not _close(found, expected):
        off = float((found - expected).abs().max())
        raise ValueError(
            f"{path} is not the model that was to be saved there: a logit is off by {off:.1e}. "
            f"transformers does not save and load this architecture whole. {ANOTHER}"
        )


def _prompts(model: Any, never: Collection[int]) -> list[list[int]]:
    """Return prompts of random tokens, of different lengths."""
    size = model.get_input_embeddings().num_embeddings
    known = [token for token in range(size) if token not in {*never, *models.end_ids(model)}]
    generator = torch.Generator().manual_seed(0)
    return [
        [known[i] for i in torch.randint(len(known), (length,), generator=generator).tolist()]
        for length in range(2, 2 + 3 * PROMPTS, 3)
    ]


def _read(model: Any, rows: Sequence[Mask]) -> Tensor:
    """Return the logits at the completion tokens of some rows, read in one pass: [N, V]."""
    batch = collate(rows, decoder_start_id=models.decoder_start(model.config)).to(model.device)
    inputs = {k: v for k, v in batch.tensors().items() if k.endswith(("input_ids", "mask"))}
    with torch.inference_mode():
        logits: Tensor = model(**inputs, use_cache=False).logits[batch.rows]
    return logits


def _close(found: Tensor, expected: Tensor) -> bool:
    largest = float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return torch.allclose(found, expected, rtol=0, atol=TOLERANCE * largest, equal_nan=True)
