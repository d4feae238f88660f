"""One training step, next to what people would run instead: CPU time and memory as ratios.

    .venv/bin/python benchmarks/train_step.py [--json] [--repeats 9] [--variants sft ours_cached]
    .venv/bin/python benchmarks/train_step.py --round r1 [--json]    # SmolLM2-135M, its completions

Every variant runs in a process of its own, on one thread, through the real training loop of
transformers, on the same batches, each step ending in the optimiser's. The processes take turns,
one step each, so that all meet the same machine; a ratio compares two steps of one turn.

Step memory is the peak above the resting level, at which model, gradients and optimiser state are
present. It is taken from other processes than CPU time: in these, glibc gives every freed tensor
back to the system at once, so that the peak is what was held and not what malloc had kept.

- `sft`: plain fine-tuning with transformers' Trainer, a loss at every token
- `sft_completion_rows`: the same, but only completion tokens reach the LM head and carry a loss
- `naive`: this method the way its authors' code goes about it: both models' logits of all
  positions, one-hot targets, masks that multiply
- `ours`: `tnt.trainer`, the original running in every step; `ours_cached`: from its cached states
- `trl_gkd`: TRL's generalized knowledge distillation from the original, where TRL is installed

Where there is a GPU, `--gpu` reports absolute times of the same steps in bf16 on the shapes of
T5-base and SmolLM2-135M, and the share of the card's peak.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIANTS = ("sft", "sft_completion_rows", "naive", "ours", "ours_cached", "trl_gkd")
WARM_UP = 2
TITLES = {"cpu_to_sft": "CPU time", "memory_to_sft": "step memory"}


@dataclass(frozen=True)
class Shape:
    """A Llama with random weights, and its batches."""

    vocabulary: int = 49_152
    hidden: int = 256
    intermediate: int = 768
    layers: int = 8
    heads: int = 8
    batch: int = 4
    prompt: int = 192
    completion: int = 64
    flagged: int = 4
    """Negative tokens of each completion."""


def random_model(shape: Shape) -> Any:
    """Return a Llama of a shape, always the same: 32.0 million parameters by default."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=max(512, shape.prompt + shape.completion),
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def random_rows(shape: Shape, count: int) -> list[Any]:
    """Return masked completions of random tokens."""
    import torch

    from tnt.records import Mask

    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(3, shape.vocabulary, (length,), generator=generator).tolist()

    negative = [i < shape.flagged for i in range(shape.completion)]
    kept = [not flag for flag in negative]
    return [
        Mask(f"p/{i}", 0, ids(shape.prompt), ids(shape.completion), negative, kept)
        for i in range(count)
    ]


# What runs in a variant's process.


def work(variant: str, shape: Shape, round_name: str | None) -> None:
    """Take a step whenever a line comes in; answer with what it took."""
    import torch

    torch.set_num_threads(1)
    if round_name:
        from tnt import artifacts, models
        from tnt.records import Mask

        model = models.load(Path("data/models/base"))
        masks = artifacts.read(Path(f"data/rounds/{round_name}/masks.parquet"), Mask)
        rows = [m for m in masks if m.source == "generated" and any(m.kept_mask)]
        shape = Shape(batch=8)
    else:
        model, rows = random_model(shape), random_rows(shape, 4 * shape.batch)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_of(variant, model, rows, shape.batch, Path(scratch))
        trainer.add_callback(turns())
        trainer.train()


def turns() -> Any:
    """Return a callback that waits for its turn before every step and reports after it."""
    from transformers import TrainerCallback

    trim = ctypes.CDLL("libc.so.6").malloc_trim

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.rest = 0
            self.wait()

        def wait(self) -> None:
            sys.stdin.readline()
            self.began = time.process_time()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARM_UP - 1:
                trim(0)
                self.rest = memory("VmRSS")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            took = time.process_time() - self.began
            peak = memory("VmHWM") - self.rest
            print(json.dumps({"cpu": took, "memory": peak}), flush=True)
            if state.global_step == WARM_UP:
                trim(0)
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            self.wait()

    return Turns()


def memory(field: str) -> int:
    """Return a line of this process's status, in bytes: VmRSS is now, VmHWM the peak."""
    (found,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found) * 1024


def trainer_of(variant: str, model: Any, rows: list[Any], batch: int, folder: Path) -> Any:
    """Return the variant's trainer; only how it gets to a loss differs."""
    from transformers import TrainingArguments

    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": batch,
        "max_steps": 10_000,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
    }
    arguments = TrainingArguments(**settings)
    if variant.startswith("ours"):
        return our_trainer(model, rows, arguments, cached=variant == "ours_cached")
    trainer = {
        "sft": plain_trainer,
        "sft_completion_rows": completion_rows_trainer,
        "naive": naive_trainer,
        "trl_gkd": gkd_trainer,
    }[variant]
    return trainer(model, rows, arguments)


def our_trainer(model: Any, rows: list[Any], arguments: Any, *, cached: bool) -> Any:
    """Return this project's trainer, as `tnt.training` sets it up."""
    from tnt import originals
    from tnt.heads import completion_hidden, head_of
    from tnt.trainer import TargetedTrainer

    head = head_of(model).frozen()
    if cached:
        size = arguments.per_device_train_batch_size
        folder = Path(arguments.output_dir)
        states = originals.cache(model, rows, folder, batch_size=size, autocast="none")

        def original(numbers: list[int], batch: Any) -> Any:
            return states.hidden(numbers)
    else:
        frozen = copy.deepcopy(model).requires_grad_(False).eval()

        def original(numbers: list[int], batch: Any) -> Any:
            with originals.evaluating(frozen):
                return completion_hidden(frozen, batch)

    return TargetedTrainer(
        model,
        arguments,
        rows=rows,
        order=[*range(len(rows))],
        watched=[],
        original=original,
        original_head=head,
        loss={"loss": "tnff"},
        dropout=False,
        autocast="none",
        max_divergence=1.0,
    )


def plain_trainer(model: Any, rows: list[Any], arguments: Any) -> Any:
    """Return transformers' own, a loss at every token."""
    return of_transformers(model, rows, arguments, labelled="all")


def completion_rows_trainer(model: Any, rows: list[Any], arguments: Any) -> Any:
    """Return transformers' own, with logits and a loss of completion tokens only."""
    from torch.nn.functional import cross_entropy
    from transformers import Trainer

    class CompletionRows(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            predicts = inputs["labels"][:, 1:] != -100
            rows = predicts.new_zeros(inputs["labels"].shape)
            rows[:, :-1] = predicts
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                logits_to_keep=rows,
            ).logits
            targets = inputs["labels"][:, 1:][predicts]
            return cross_entropy(logits.reshape(len(targets), -1).float(), targets)

    return of_transformers(model, rows, arguments, labelled="completion", kind=CompletionRows)


def naive_trainer(model: Any, rows: list[Any], arguments: Any) -> Any:
    """Return the authors' way: see the head of this file."""
    import torch
    from torch.nn.functional import one_hot
    from transformers import Trainer

    original = copy.deepcopy(model).requires_grad_(False).eval()

    class Naive(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            shown = {k: inputs[k] for k in ("input_ids", "attention_mask")}
            logits = model(**shown).logits[:, :-1]
            with torch.no_grad():
                probabilities = original(**shown).logits[:, :-1].softmax(-1)
            negative, kept = inputs["negative"][:, 1:], inputs["kept"][:, 1:]
            unwanted = one_hot(inputs["input_ids"][:, 1:], logits.shape[-1]) * negative[..., None]
            target = probabilities * (1 - unwanted)
            target = target / target.sum(-1, keepdim=True)
            losses = -(target * logits.log_softmax(-1)).sum(-1)
            carries = negative + kept
            return (losses * carries).sum() / carries.sum()

    return of_transformers(model, rows, arguments, labelled="completion", kind=Naive)


def gkd_trainer(model: Any, rows: list[Any], arguments: Any) -> Any:
    """Return TRL's distillation loss in transformers' loop: forward KL from the original."""
    import torch
    from transformers import Trainer
    from trl.experimental.gkd import GKDTrainer

    original = copy.deepcopy(model).requires_grad_(False).eval()

    class Distilled(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            shown = {k: inputs[k] for k in ("input_ids", "attention_mask")}
            logits = model(**shown).logits[:, :-1]
            with torch.no_grad():
                originals = original(**shown).logits[:, :-1]
            labels = inputs["labels"][:, 1:]
            return GKDTrainer.generalized_jsd_loss(logits, originals, labels=labels, beta=0.0)

    return of_transformers(model, rows, arguments, labelled="completion", kind=Distilled)


def of_transformers(
    model: Any, rows: list[Any], arguments: Any, *, labelled: str, kind: Any = None
) -> Any:
    """Return a trainer of transformers on the rows."""
    import torch
    from datasets import Dataset
    from transformers import Trainer

    def collate(chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in chosen)
        padding = {"labels": -100}
        return {
            name: torch.tensor(
                [
                    row[name] + [padding.get(name, 0)] * (width - len(row["input_ids"]))
                    for row in chosen
                ]
            )
            for name in chosen[0]
        }

    table = []
    for row in rows:
        ids, prompt = row.prompt_ids + row.completion_ids, len(row.prompt_ids)
        table.append(
            {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "labels": ids if labelled == "all" else [-100] * prompt + row.completion_ids,
                "negative": [0] * prompt + [int(flag) for flag in row.negative_mask],
                "kept": [0] * prompt + [int(flag) for flag in row.kept_mask],
            }
        )
    read = ("input_ids", "attention_mask", "labels")
    if kind is None:  # the model itself gets every column
        table = [{name: row[name] for name in read} for row in table]
    trainer = (kind or Trainer)(
        model, arguments, data_collator=collate, train_dataset=Dataset.from_list(table)
    )
    trainer.loss_is_scaled_for_ga = True
    return trainer


# What runs in the process that compares.


class Worker:
    """A variant's process."""

    def __init__(self, variant: str, arguments: list[str]) -> None:
        """Start it."""
        command = [sys.executable, __file__, "--work", variant, *arguments]
        threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.said = tempfile.TemporaryFile("w+")  # progress, and why it failed
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env={**os.environ, **threads},
        )

    def step(self) -> dict[str, float]:
        """Let it take a step; return what that took."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"cpu"'):
                found: dict[str, float] = json.loads(line)
                return found
        self.said.seek(0)
        raise SystemExit(f"{self.said.read()}\n{self.process.args} failed.")


def measure(variants: Sequence[str], arguments: list[str], repeats: int) -> dict[str, list[Any]]:
    """Return what every step of every variant took; the variants take turns."""
    workers = {variant: Worker(variant, arguments) for variant in variants}
    found: dict[str, list[Any]] = {variant: [] for variant in variants}
    try:
        for _ in range(WARM_UP + repeats):
            for variant, worker in workers.items():
                found[variant].append(worker.step())
    finally:
        for worker in workers.values():
            worker.process.kill()
    return {variant: steps[WARM_UP:] for variant, steps in found.items()}


def ratios(steps: dict[str, list[Any]], what: str, to: str) -> dict[str, list[float]]:
    """Return each variant's figure over that of `to`, turn by turn."""
    return {
        variant: [own[what] / other[what] for own, other in zip(taken, steps[to], strict=True)]
        for variant, taken in steps.items()
    }


def tables(steps: dict[str, list[Any]]) -> Iterator[str]:
    """Yield the lines to print."""
    for title, what, unit, size in (
        ("CPU time", "cpu", "s", 1.0),
        ("step memory", "memory", "MiB", 2**20),
    ):
        yield f"{title:<22}{unit:>9}{'to sft':>10}{'spread':>18}{'to naive':>10}"
        to_sft = ratios(steps, what, "sft")
        to_naive = ratios(steps, what, "naive") if "naive" in steps else {}
        for variant, values in to_sft.items():
            own = statistics.median(step[what] for step in steps[variant]) / size
            spread = f"{min(values):.3f} to {max(values):.3f}"
            naive = f"{statistics.median(to_naive[variant]):.3f}" if to_naive else ""
            middle = statistics.median(values)
            yield f"{variant:<22}{own:>9.3g}{middle:>10.3f}{spread:>18}{naive:>10}"
        yield ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=9, help="turns that count")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="sft is always among them")
    parser.add_argument("--round", help="train the base model on a round's completions")
    given = parser.parse_args()
    if given.work:
        work(given.work, Shape(), given.round)
        return
    variants = [v for v in VARIANTS if v == "sft" or not given.variants or v in given.variants]
    if "trl_gkd" in variants and not importlib.util.find_spec("trl"):
        variants.remove("trl_gkd")
    arguments = ["--round", given.round] if given.round else []
    steps = measure(variants, arguments, given.repeats)
    if given.json:
        print(
            json.dumps(
                {
                    key: {
                        variant: round(statistics.median(values), 4)
                        for variant, values in ratios(steps, what, "sft").items()
                    }
                    for key, what in (("cpu_to_sft", "cpu"), ("memory_to_sft", "memory"))
                }
            )
        )
    else:
        print("\n".join(tables(steps)))


if __name__ == "__main__":
    main()
