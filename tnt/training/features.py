"""One pass of the original: what its last MLP is given, and what comes after, at every token.

The original's part of all that a patch does, so that training it never runs the model again. A
token's position is the one that predicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from tnt import models
from tnt.core.artifacts import MAKE_AGAIN, complete
from tnt.core.records import Mask
from tnt.losses.batches import collate
from tnt.losses.heads import completion_hidden
from tnt.models import by_length
from tnt.patches.site import Features, refuse_unlike, site_of, watched
from tnt.training.passes import Autocast, evaluating, precision

LARGEST = 32
"""Completions that are passed at once, at most."""
Row = tuple[list[int], list[int]]
"""Ids of a prompt, and of what follows it."""


def features(
    model: Any, rows: Sequence[Row], *, batch_size: int, autocast: Autocast, title: str
) -> Features:
    """Return the features of all tokens of some completions, row after row, in float32.

    Args:
        model: A model with a single last MLP.
        rows: Prompts and completions, one token each at least.
        batch_size: Completions that are passed at once.
        autocast: Precision of the passes.
        title: Of the progress bar.

    Raises:
        ValueError: The architecture is not one that a patch can be trained for.
    """
    site, start_id = site_of(model), models.decoder_start(model.config)
    masks = [Mask.blank(*row) for row in rows]
    found: dict[int, Features] = {}
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    with evaluating(model), tqdm(total=len(rows), desc=title, unit="reply") as bar:
        for numbers in by_length(lengths, batch_size):
            batch = collate([masks[n] for n in numbers], decoder_start_id=start_id)
            batch = batch.to(model.device)
            if not found:
                given = {k: v for k, v in batch.tensors().items() if k.endswith(("_ids", "mask"))}
                given.pop("token_ids")
                refuse_unlike(model, site, given)
            with watched(site) as seen, precision(model.device.type, autocast):
                completion_hidden(model, batch)
                kept = {k: x.view(*batch.rows.shape, -1)[batch.rows] for k, x in seen.items()}
            whole = Features(**{name: x.float().cpu() for name, x in kept.items()})
            found |= zip(numbers, whole.split([len(rows[n][1]) for n in numbers]), strict=True)
            bar.update(len(numbers))
    return joined([found[n] for n in range(len(rows))])


def joined(parts: Sequence[Features]) -> Features:
    """Return features one after the other."""
    names = Features.__slots__
    return Features(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def write(found: Features | None, path: Path) -> None:
    """Write features, or that there are none, whole or not at all."""
    tensors = {} if found is None else {n: getattr(found, n) for n in Features.__slots__}
    with complete(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


def read(path: Path, length: int) -> Features:
    """Return the features that `write` wrote.

    Raises:
        ValueError: The file is missing or damaged, or has not as many rows as there are tokens.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = Features(*(file.get_tensor(name) for name in Features.__slots__))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}). {MAKE_AGAIN}") from error
    if len(found) != length:
        raise ValueError(f"{path} is of {len(found)} tokens, not {length}. {MAKE_AGAIN}")
    return found
