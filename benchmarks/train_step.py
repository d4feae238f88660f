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
- `ours`: `tnt.training.trainer`, the original in every step; `ours_cached`: its cached states
- `trl_gkd`: TRL's generalized knowledge distillation from the original, where TRL is installed

Where there is a GPU, a table of absolute times follows: steps in bf16 autocast on the shapes of
T5-base and SmolLM2-135M, and the share of what the card reaches in one large matrix product.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import importlib.util
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

VARIANTS = ("sft", "sft_completion_rows", "naive", "ours", "ours_cached", "trl_gkd")
WARM_UP = 2
MEMORY_STEPS = 2
"""Steps whose memory is taken: they are all alike."""
FREE_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


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

    from tnt.core.records import Mask

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
        from tnt import models
        from tnt.core import artifacts
        from tnt.core.records import Mask

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
    from transformers import PrinterCallback, TrainingArguments

    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": model.device.type == "cpu",
        "bf16": model.device.type != "cpu" and not variant.startswith("ours"),
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
    make = {
        "sft": plain_trainer,
        "sft_completion_rows": completion_rows_trainer,
        "naive": naive_trainer,
        "trl_gkd": gkd_trainer,
    }[variant]
    trainer = make(model, rows, arguments)
    trainer.remove_callback(PrinterCallback)
    return trainer


def our_trainer(model: Any, rows: list[Any], arguments: Any, *, cached: bool) -> Any:
    """Return this project's trainer, as `tnt.training` sets it up."""
    from tnt.losses.heads import completion_hidden, head_of
    from tnt.losses.params import LossParams
    from tnt.training import originals, passes
    from tnt.training.trainer import TargetedTrainer

    head = head_of(model).frozen()
    autocast: Any = "none" if model.device.type == "cpu" else "bf16"
    if cached:
        size = arguments.per_device_train_batch_size
        folder = Path(arguments.output_dir)
        batches = [range(len(rows))[i : i + size] for i in range(0, len(rows), size)]
        states = originals.cache(model, rows, batches, folder, autocast=autocast)

        def original(numbers: list[int], batch: Any) -> Any:
            return states.hidden(numbers).to(model.device)
    else:
        frozen = copy.deepcopy(model).requires_grad_(False).eval()

        def original(numbers: list[int], batch: Any) -> Any:
            with passes.evaluating(frozen), passes.precision(model.device.type, autocast):
                return completion_hidden(frozen, batch)

    return TargetedTrainer(
        model,
        arguments,
        rows=rows,
        order=[*range(len(rows))],
        watched=[0],
        original=original,
        original_head=head,
        loss=LossParams(loss="tnff"),
        dropout=False,
        autocast=autocast,
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
        padding = {"labels": -100}

        def padded(name: str) -> torch.Tensor:
            width = max(len(row[name]) for row in chosen)
            ends = ([padding.get(name, 0)] * (width - len(row[name])) for row in chosen)
            return torch.tensor([row[name] + end for row, end in zip(chosen, ends, strict=True)])

        return {name: padded(name) for name in chosen[0]}

    if model.config.is_encoder_decoder:
        table = [
            {
                "input_ids": row.prompt_ids,
                "attention_mask": [1] * len(row.prompt_ids),
                "labels": row.completion_ids,
            }
            for row in rows
        ]
        arguments_of = {"data_collator": collate, "train_dataset": Dataset.from_list(table)}
        return Trainer(model, arguments, **arguments_of)
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

    def __init__(self, variant: str, arguments: list[str], environment: dict[str, str]) -> None:
        """Start it."""
        command = [sys.executable, __file__, "--work", variant, *arguments]
        threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env={**os.environ, **threads, **environment},
        )

    def step(self) -> dict[str, float]:
        """Let it take a step; return what that took."""
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # it ended: its output says why
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"cpu"'):
                found: dict[str, float] = json.loads(line)
                return found
        self.said.seek(0)
        raise SystemExit(f"{self.said.read()}\n{self.process.args} failed.")


def measure(
    variants: Sequence[str], arguments: list[str], repeats: int, environment: dict[str, str]
) -> dict[str, list[Any]]:
    """Return what every step of every variant took; the variants take turns."""
    workers = {variant: Worker(variant, arguments, environment) for variant in variants}
    found: dict[str, list[Any]] = {variant: [] for variant in variants}
    try:
        for _ in range(WARM_UP + repeats):
            for variant, worker in workers.items():
                found[variant].append(worker.step())
    finally:
        for worker in workers.values():
            worker.process.kill()
    return {variant: steps[WARM_UP:] for variant, steps in found.items()}


Figures = dict[str, list[float]]
"""Variant -> a figure of each of its steps, turn by turn."""


def ratios(figures: Figures, to: str) -> Figures:
    """Return each variant's figures over those of `to`, turn by turn."""
    return {
        variant: [own / other for own, other in zip(taken, figures[to], strict=True)]
        for variant, taken in figures.items()
    }


def tables(cpu: Figures, held: Figures) -> Iterator[str]:
    """Yield the lines to print."""
    for title, figures, unit, size in (
        ("CPU time", cpu, "s", 1.0),
        ("step memory", held, "MiB", 2**20),
    ):
        yield f"{title:<22}{unit:>9}{'to sft':>10}{'spread':>18}{'to naive':>10}"
        to_sft = ratios(figures, "sft")
        to_naive = ratios(figures, "naive") if "naive" in figures else {}
        for variant, values in to_sft.items():
            own = statistics.median(figures[variant]) / size
            spread = f"{min(values):.3f} to {max(values):.3f}"
            naive = f"{statistics.median(to_naive[variant]):.3f}" if to_naive else ""
            middle = statistics.median(values)
            yield f"{variant:<22}{own:>9.3g}{middle:>10.3f}{spread:>18}{naive:>10}"
        yield ""


# On a GPU.

CARD_SHAPE = Shape(batch=32)


def t5_base() -> Any:
    """Return a T5 of T5-base's shape with random weights."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=32_128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def smollm2_135m() -> Any:
    """Return a Llama of SmolLM2-135M's shape with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


CARD_MODELS = {"T5-base": t5_base, "SmolLM2-135M": smollm2_135m}


def torch_sees_a_card() -> bool:
    """Whether there is a GPU."""
    import torch

    return torch.cuda.is_available()


def on_card(device: str, models: dict[str, Callable[[], Any]], shape: Shape) -> Iterator[str]:
    """Yield the lines of a table of absolute times."""
    peak = product_flops(device)
    yield f"{'bf16 autocast':<16}{'variant':<14}{'ms a step':>10}{'of the peak':>13}"
    for name, make in models.items():
        for variant in ("sft", "ours", "ours_cached"):
            model = make().to(device)
            seconds = statistics.median(step_seconds(variant, model, shape))
            share = needed_flops(model, shape) / seconds / peak
            yield f"{name:<16}{variant:<14}{seconds * 1000:>10.1f}{share:>13.1%}"
    yield f"peak: {peak / 1e12:.1f} TFLOP/s in a product of two bf16 matrices of 8192 x 8192"


def step_seconds(variant: str, model: Any, shape: Shape, steps: int = 10) -> list[float]:
    """Return the seconds of each step after the warm-up."""
    import torch
    from transformers import TrainerCallback

    rows = random_rows(replace(shape, vocabulary=model.config.vocab_size), 4 * shape.batch)
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            control.should_training_stop = len(ends) > WARM_UP + steps

    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_of(variant, model, rows, shape.batch, Path(scratch))
        trainer.add_callback(Clock())
        trainer.train()
    return [after - before for before, after in itertools.pairwise(ends[WARM_UP:])]


def needed_flops(model: Any, shape: Shape) -> float:
    """Return what a step of plain training needs: 6 a weight and token (Kaplan et al. 2020)."""
    embedding = model.get_input_embeddings().weight
    weights = sum(w.numel() for w in model.parameters()) - embedding.numel()
    tokens = shape.prompt + shape.completion
    if model.config.is_encoder_decoder:  # half of the weights see the prompt, half the completion
        tokens /= 2
    head = embedding.numel() * shape.completion
    return 6.0 * shape.batch * (weights * tokens + head)


def product_flops(device: str) -> float:
    """Return the operations a second that a large matrix product reaches."""
    import torch

    size = 8192 if device == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


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
    taken = measure(variants, arguments, given.repeats, {})
    cpu = {variant: [step["cpu"] for step in steps] for variant, steps in taken.items()}
    taken = measure(variants, arguments, MEMORY_STEPS, FREE_AT_ONCE)
    held = {variant: [step["memory"] for step in steps] for variant, steps in taken.items()}
    if given.json:
        medians = {
            key: {v: round(statistics.median(x), 4) for v, x in ratios(figures, "sft").items()}
            for key, figures in (("cpu_to_sft", cpu), ("memory_to_sft", held))
        }
        print(json.dumps(medians))
        return
    print("\n".join(tables(cpu, held)))
    if torch_sees_a_card():
        print("\n".join(on_card("cuda", CARD_MODELS, CARD_SHAPE)))


if __name__ == "__main__":
    main()
