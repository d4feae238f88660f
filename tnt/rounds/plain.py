"""Write a round as a plain transformers folder that answers as the round does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tnt import models
from tnt.core import artifacts, hashes
from tnt.core.records import Prompt
from tnt.project import layout

CHECKED = 4
"""Test prompts on which an export and its round are compared."""
TOLERANCE = 1e-3
"""Largest difference of two logits if adapters were merged; otherwise there is none. The weights
are the same, but lie elsewhere in memory, where a kernel may add them up in another order."""


def save_plain(name: str, folder: Path) -> None:
    """Write a round's model, adapters merged, as a folder that plain `from_pretrained` loads.

    Args:
        name: The round.
        folder: Does not exist yet.

    Raises:
        ValueError: The model is damaged, or what was written does not answer as it does.
    """
    path = layout.model(name)
    tests = artifacts.read(layout.TEST_PROMPTS, Prompt)
    asked = hashes.lowest_hashes(tests, CHECKED)
    model = models.load(path)
    expected = [_logits(model, prompt) for prompt in asked]
    attention = model.config._attn_implementation
    adapted = (path / models.PARENT_FILE).exists()
    if adapted:
        model.save_pretrained(folder)
    del model  # two may not fit into memory
    shutil.copytree(
        path,
        folder,
        ignore=shutil.ignore_patterns("adapter_*", models.PARENT_FILE),
        copy_function=shutil.copyfile,  # the cache's files are read-only
        dirs_exist_ok=True,
    )
    from transformers import AutoTokenizer

    exported = auto(folder).from_pretrained(folder, attn_implementation=attention).eval()
    tokenizer, original = AutoTokenizer.from_pretrained(folder), models.load_tokenizer(path)
    for prompt, logits in zip(asked, expected, strict=True):
        apart = float((_logits(exported, prompt) - logits).abs().max())
        tokens, before = (t(prompt.prompt).input_ids for t in (tokenizer, original))
        if not apart <= (TOLERANCE if adapted else 0.0) or tokens != before:  # apart may be NaN
            raise ValueError(
                f"The copy of {path} does not answer as it does: on {prompt.prompt_id!r} logits "
                f"are up to {apart:.2g} apart, and its tokens "
                f"{'others' if tokens != before else 'the same'}. Install the versions in "
                "constraints.txt."
            )


def auto(folder: Path) -> Any:
    """Return the transformers class that loads a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(folder)
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _logits(model: Any, prompt: Prompt) -> Any:
    """Return a model's logits on a prompt, [1, T, V]; an encoder-decoder is to repeat it."""
    import torch

    ids = torch.tensor([prompt.prompt_ids])
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).logits
