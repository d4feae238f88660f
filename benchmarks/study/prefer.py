"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) by TRL, for comparison.

    pip install --constraint ../../constraints.txt --editable '../..[study]'
    python prefer.py screen dpo fast 0 preferred/fast.json
    python prefer.py full preferred.json:dpo:first 0 full/dpo.json

A pair is what the base said and was flagged (rejected), and what it says with ban and continue
(chosen), for the same training prompts as the other cells; unflagged completions make no pair.
Trained are the same layers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure
import serve
import train
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from tnt.core import artifacts
from tnt.core.records import Completion, Mask, Prompt


class TokenPairs(DPOTrainer):
    """Takes pairs as tokens, as they were generated, instead of tokenising their texts again."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def main(size: str, *named: str) -> None:
    """Train a cell, ask it, and write what it is like."""
    _, setting, seed, out = train.cell_of(*named)
    model, tokenizer = measure.start()
    of_size = measure.PARAMS["sizes"][size]
    before = measure.cpu_seconds()
    found, generated = pairs(model, tokenizer, of_size, seed)
    regenerated = measure.cpu_seconds()
    steps = optimise(model, tokenizer, found, of_size, setting, seed)
    learnt = measure.cpu_seconds()
    asked = measure.asked(of_size, tokenizer)
    answers = measure.answers(model.eval(), tokenizer, asked)
    base = artifacts.read(Path("base", f"{size}.parquet"), Completion)
    cell = {
        "loss": "dpo",
        "setting": setting,
        "seed": seed,
        "learning_rate": measure.PARAMS["settings"][setting]["learning_rate"],
        "beta": measure.PARAMS["prefer"]["beta"],
        "pairs": len(found),
        "tokens_generated_for_pairs": generated,
        "steps": steps,
        "pairs_cpu_s": regenerated - before,
        "training_cpu_s": learnt - regenerated,
        "serving_cpu_s": measure.cpu_seconds() - learnt,
        "tokens_per_answer": sum(len(c.completion_ids) for c in answers) / len(answers),
        "sets": measure.compared(base, answers),
    }
    measure.write(cell, Path(out))


def pairs(model: Any, tokenizer: Any, size: Mapping[str, Any], seed: int) -> tuple[Dataset, int]:
    """Return the pairs of a size's training prompts, and the tokens generated for them."""
    masks = artifacts.read(measure.ROUND / "masks.parquet", Mask)
    prompts = {p.prompt_id: p for p in artifacts.read(measure.ROUND / "prompts.parquet", Prompt)}
    _, learnt = train.split(masks, size, seed)
    rejected = {row.prompt_id: row.completion_ids for row in learnt if any(row.negative_mask)}
    chosen, generated = serve.ban(model, tokenizer, [prompts[key] for key in sorted(rejected)])
    wrong = measure.flagged(chosen)
    rows = [
        {
            "prompt_ids": c.prompt_ids,
            "chosen_ids": c.completion_ids,
            "rejected_ids": rejected[c.prompt_id],
        }
        for c in chosen
        if (c.prompt_id, c.sample) not in wrong
    ]
    return Dataset.from_list(rows), generated


def optimise(
    model: Any, tokenizer: Any, found: Dataset, size: Mapping[str, Any], setting: str, seed: int
) -> int:
    """Train the model in place; return the number of steps."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(bool(re.search(measure.PARAMS["trainable"], name)))
    arguments = DPOConfig(
        output_dir=str(train.WORK / "dpo"),
        learning_rate=measure.PARAMS["settings"][setting]["learning_rate"],
        beta=measure.PARAMS["prefer"]["beta"],
        num_train_epochs=1,
        per_device_train_batch_size=size["batch_size"],
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=seed,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
    )
    trainer = TokenPairs(model, args=arguments, train_dataset=found, processing_class=tokenizer)
    trainer.train()
    return int(trainer.state.global_step)


if __name__ == "__main__":
    main(*sys.argv[1:])
