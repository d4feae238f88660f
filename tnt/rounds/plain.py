"""Write a round as a plain transformers folder that answers as the round does."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tnt import models
from tnt.core import artifacts, hashes
from tnt.core.params import load_yaml
from tnt.core.records import BASE, Completion, Mask, Prompt
from tnt.project import layout

CHECKED = 4
"""Test prompts on which an export and its round are compared."""
TOLERANCE = 1e-3
"""Largest difference of two logits if adapters were merged; otherwise there is none. The weights
are the same, but lie elsewhere in memory, where a kernel may add them up in another order."""
BATCH = 16
TIE = 1e-2
"""By how much a token that the round said may be behind the likeliest of an export with a patch in
its weights, where both are as good as equally likely."""


def save_plain(name: str, folder: Path) -> None:
    """Write a round's model as a folder that plain `from_pretrained` loads.

    Adapters are merged and patches written into the weights.

    Args:
        name: The round.
        folder: Does not exist yet.

    Raises:
        ValueError: The model is damaged, or what was written does not answer as it does.
    """
    from tnt.patches.neurons import patches_of

    path = layout.model(name)
    tests = artifacts.read(layout.TEST_PROMPTS, Prompt)
    asked = hashes.lowest_hashes(tests, CHECKED)
    model = models.load(path)
    expected = [_logits(model, prompt) for prompt in asked]
    attention = model.config._attn_implementation
    adapted, patched = (path / models.PARENT_FILE).exists(), bool(patches_of(model))
    if adapted:
        models.in_weights(model).save_pretrained(folder)
    del model  # two may not fit into memory
    shutil.copytree(
        path,
        folder,
        ignore=shutil.ignore_patterns("adapter_*", models.PARENT_FILE, models.PATCH_FILE),
        copy_function=shutil.copyfile,  # the cache's files are read-only
        dirs_exist_ok=True,
    )
    original = models.load_tokenizer(path)
    if patched:
        models.save_tokenizer(original, folder)
    from transformers import AutoTokenizer

    exported = auto(folder).from_pretrained(folder, attn_implementation=attention).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt, logits in zip(asked, expected, strict=True):
        apart = float((_logits(exported, prompt) - logits).abs().max())
        tokens, before = (t(prompt.prompt).input_ids for t in (tokenizer, original))
        alike = patched or apart <= (TOLERANCE if adapted else 0.0)
        if not alike or tokens != before:  # apart may be NaN
            raise ValueError(
                f"The copy of {path} does not answer as it does: on {prompt.prompt_id!r} logits "
                f"are up to {apart:.2g} apart, and its tokens "
                f"{'others' if tokens != before else 'the same'}. Install the versions in "
                "constraints.txt."
            )
    if patched:
        answers = artifacts.read(layout.EVALUATIONS / name / "completions.parquet", Completion)
        _refuse_other_answers(exported, answers, path)


def _refuse_other_answers(exported: Any, answers: Sequence[Completion], path: Path) -> None:
    """Raise unless a model's likeliest token is what a round said, behind every prefix of it.

    Where the round drew its answers, nothing of the kind can be asked.
    """
    import torch
    from tqdm import tqdm

    from tnt.losses.batches import collate
    from tnt.losses.heads import completion_logits

    if load_yaml(layout.resolved(BASE, "respond"))["sampling"]["temperature"]:
        return
    start_id = models.decoder_start(exported.config)
    lengths = [len(answer.completion_ids) for answer in answers]
    other = 0
    with torch.inference_mode(), tqdm(total=len(answers), desc="compare", unit="reply") as bar:
        for numbers in models.by_length(lengths, BATCH):
            rows = [(answers[n].prompt_ids, answers[n].completion_ids) for n in numbers]
            batch = collate([Mask.blank(*row) for row in rows], decoder_start_id=start_id)
            logits = completion_logits(exported, batch)
            said = logits.gather(-1, batch.token_ids[:, None])[:, 0]
            behind = torch.split(logits.amax(-1) - said > TIE, [lengths[n] for n in numbers])
            other += sum(bool(row.any()) for row in behind)
            bar.update(len(numbers))
    if other:
        raise ValueError(
            f"With its patches in its weights {path} is another model: {other} of the "
            f"{len(answers)} test prompts are answered otherwise. Install the versions in "
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
