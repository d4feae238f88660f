"""The frozen original, run once: its hidden states at completion tokens, kept in a file.

The original's logits are the same in every epoch, after every interruption and in every experiment
on the same completions. What enters its LM head is V / d times smaller than they are, and as exact.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from tnt import models
from tnt.core.artifacts import complete
from tnt.core.records import Mask
from tnt.losses.batches import collate
from tnt.losses.heads import completion_hidden
from tnt.training.passes import Autocast, evaluating, precision

LAYER = "what enters the LM head"


class CachedOriginal:
    """Hidden states [n, d] of each completion, in a file.

    Any number of processes may read it. Its fingerprint covers all that its bytes depend on.
    """

    def __init__(self, path: Path, fingerprint: str, lengths: Mapping[int, int]) -> None:
        """Open a file that `cache` wrote.

        Args:
            path: The file.
            fingerprint: What it must have been made from, see `fingerprint_of`.
            lengths: Number of each completion -> its tokens, in the file's order.

        Raises:
            ValueError: It is damaged, or made from another model, other completions, another layer.
        """
        remedy = f"Delete {path}; the next run makes it again."
        try:
            self._file = safe_open(path, framework="pt")
            found = self._file.metadata() or {}
            self._hidden = self._file.get_tensor("hidden")
        except Exception as error:
            raise ValueError(f"{path} is damaged ({error}). {remedy}") from error
        if found.get("fingerprint") != fingerprint or found.get("layer") != LAYER:
            raise ValueError(
                f"{path} holds the hidden states of another model, of other completions or of "
                f"another layer: its fingerprint is {found.get('fingerprint', 'missing')[:16]}, "
                f"not {fingerprint[:16]}. {remedy}"
            )
        if found.get("sha256") != _of_states(self._hidden):
            raise ValueError(f"{path} is not what was written: its hash is another. {remedy}")
        ends = itertools.pairwise(itertools.accumulate(lengths.values(), initial=0))
        self._places = {n: slice(*ends_of) for n, ends_of in zip(lengths, ends, strict=True)}

    def hidden(self, numbers: Sequence[int]) -> Tensor:
        """Return the hidden states of some completions, one after the other, [N, d] float32."""
        return torch.cat([self._hidden[:0], *(self._hidden[self._places[n]] for n in numbers)])


def cache(
    model: Any,
    rows: Sequence[Mask],
    batches: Sequence[Sequence[int]],
    folder: Path,
    *,
    autocast: Autocast,
    first: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> CachedOriginal:
    """Run the original over completions, unless there is a file of them; return that file.

    How far a completion is padded changes the last bits of its hidden states. So the original runs
    on the batches that training uses: an unchanged model then has exactly the same hidden states.

    Args:
        model: The original, as it is before training.
        rows: Completions; people's corrections among them share a batch and are not kept.
        batches: Numbers of the rows that go through the model together, each number once.
        folder: Where the file goes; files of other completions or models in it are deleted.
        autocast: Precision of the passes.
        first: Context in which the first of several processes goes ahead of the others.
    """
    asked = [[*batch] for batch in batches if any(_is_said(rows[n]) for n in batch)]
    fingerprint = fingerprint_of(model, rows, asked, autocast=autocast)
    path = folder / f"original-{fingerprint[:16]}.safetensors"
    with first():
        if not path.exists():
            hidden = _run(model, rows, asked, autocast)
            folder.mkdir(parents=True, exist_ok=True)
            for other in folder.glob("original-*.safetensors"):
                other.unlink()
            metadata = {"fingerprint": fingerprint, "layer": LAYER, "sha256": _of_states(hidden)}
            with complete(path) as partial:
                save_file({"hidden": hidden}, partial, metadata)
    said = {n: len(rows[n].completion_ids) for batch in asked for n in batch if _is_said(rows[n])}
    return CachedOriginal(path, fingerprint, said)


def fingerprint_of(
    model: Any, rows: Sequence[Mask], batches: Sequence[Sequence[int]], *, autocast: Autocast
) -> str:
    """Return a hash of all that the hidden states depend on, to the last bit."""
    facts = [torch.__version__, torch.get_num_threads(), model.device.type, autocast]
    facts += [LAYER, model.config._attn_implementation]
    given = [
        [(rows[n].prompt_ids, rows[n].completion_ids, rows[n].source) for n in batch]
        for batch in batches
    ]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    config = model.config.to_diff_dict()
    names = [name for name, _ in tensors]
    return _sha256((t for _, t in tensors), repr([facts, config, names, given]))


def _is_said(row: Mask) -> bool:
    return row.source != "corrected"


def _run(
    model: Any, rows: Sequence[Mask], batches: Sequence[Sequence[int]], autocast: Autocast
) -> Tensor:
    """Return the hidden states of the completions' tokens, batch after batch, [N, d] float32."""
    start_id = models.decoder_start(model.config)
    width = model.get_output_embeddings().weight.shape[1]
    found = [torch.zeros(0, width)]
    total = sum(map(len, batches))
    with evaluating(model), tqdm(total=total, desc="run the original", unit="reply") as bar:
        for numbers in batches:
            batch = collate([rows[n] for n in numbers], decoder_start_id=start_id)
            batch = batch.to(model.device)
            with precision(model.device.type, autocast):
                hidden = completion_hidden(model, batch)
            found.append(hidden[~batch.corrected].float().cpu())
            bar.update(len(numbers))
    return torch.cat(found)


def _of_states(hidden: Tensor) -> str:
    return _sha256([hidden], repr([hidden.shape, hidden.dtype]))


def _sha256(tensors: Any, facts: str = "") -> str:
    digest = hashlib.sha256(facts.encode())
    for tensor in tensors:
        digest.update(
            memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        )
    return digest.hexdigest()
