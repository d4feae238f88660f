"""The harder behaviour: names and numbers that a summary adds to what it summarises.

    python names.py draw names/completions.parquet names/flags.parquet
    python names.py cell n50 0 names/n50-0.json
    python names.py probe names/probe.json
    python names.py again names/again.json

Each invented name is its own, so what is learnt from one says little about the next. How much is
learnt is therefore measured over the number of annotated completions, from the base's greedy
summaries of all training prompts and then from samples of the same prompts, and from there in
other ways. Beside flag rates stand the probability that the updated model gives to the tokens with
which invented names began in the base's summaries of the test prompts, and the one that it gives
to those with which other words with a capital began.

The probe asks how well one can read from a hidden state of the base, where a word with a capital
comes next inside a sentence, whether that word will be an invented name. Layer 0 is the embedding
of the token before, and knows nothing else.

Again asks what needs no training: the one token that completes a greedy summary's first invented
name is banned and the summary continued, and so on until nothing is flagged; or the summary is
drawn again.
"""

from __future__ import annotations

import math
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
import torch
from scipy.stats import rankdata
from torch import Tensor
from tqdm import tqdm

from tnt import detectors, models, sampling
from tnt.core import artifacts
from tnt.core.records import Completion, Flag, Mask, Prompt
from tnt.detectors import running
from tnt.evaluation import metrics
from tnt.evaluation.divergence import divergence
from tnt.losses.batches import collate
from tnt.masks import flagged
from tnt.masks.flagged import mask_all
from tnt.masks.params import MaskParams
from tnt.models import by_length, decode
from tnt.rollouts.params import RolloutParams
from tnt.rollouts.walk import walk
from tnt.training import run
from tnt.training.params import TrainParams

NAMES = measure.PARAMS["names"]
BY_SIZE = {
    name: own["completions"] for name, own in NAMES["cells"].items() if [*own] == ["completions"]
}
"""The cells that differ in nothing but how much is annotated -> how much that is."""
COMPLETIONS = Path("names/completions.parquet")
FLAGS = Path("names/flags.parquet")
WORK = Path("work/names")
CAPITAL = r"\A [A-Z]"
"""A token with which a word with a capital begins."""

Key = tuple[str, int]
Learn = dict[str, Any]
"""How a cell learns: `names.default` of params.yaml with what the cell has of its own."""


def start() -> tuple[Any, Any]:
    """Return the base and its tokenizer; on a GPU where there is one, in TensorFloat-32."""
    model, tokenizer = measure.start()
    device = models.available_device()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    return model.to(device), tokenizer


def asked(tokenizer: Any) -> dict[str, list[Prompt]]:
    """Return all prompts that ask for a summary, by split."""
    return {
        split: measure.asked({"split": split, "asked": {"summaries": None}}, tokenizer)
        for split in ("train", "validation", "test")
    }


def drawn(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], samples: int, seed: int = 0
) -> list[Completion]:
    """Return greedy completions as sample 0, then as many others at the temperature."""
    greedy = measure.answers(model, tokenizer, prompts)
    params = replace(
        measure.DRAW, samples=samples, temperature=NAMES["temperature"], batch_size=512, seed=seed
    )
    more = sampling.complete(model, tokenizer, prompts, params, name="study")
    return greedy + [replace(c, sample=c.sample + 1) for c in more]


def unsupported() -> dict[str, detectors.Detect]:
    """Return the detector of what the input does not give, by name."""
    return {"entities": detectors.build("entities", {"kind": "entities"})}


def draw(completions: Path, flags: Path) -> None:
    """Write what the base says and what of it is flagged: many samples of training prompts."""
    model, tokenizer = start()
    found: list[Completion] = []
    for split, prompts in asked(tokenizer).items():
        samples = NAMES["samples"] if split == "train" else NAMES["test_samples"]
        found += drawn(model, tokenizer, prompts, samples)
    artifacts.write(found, completions, Completion)
    artifacts.write(running.find_flags(unsupported(), found, title="detect"), flags, Flag)


def cell(name: str, seed: int, out: Path) -> None:
    """Train in one way and write what came of it."""
    learn: Learn = {**NAMES["default"], **NAMES["cells"][name]}
    model, tokenizer = start()
    prompts = asked(tokenizer)
    said = artifacts.read(COMPLETIONS, Completion)
    flags = artifacts.read(FLAGS, Flag)
    watched = masked(said, flags, tokenizer, learn, prompts["validation"])
    watched = [row for row in watched if row.sample == 0][: measure.PARAMS["watched"]]
    rounds, seconds = [], 0.0
    for number in range(1, learn["rounds"] + 1):
        if number > 1:
            samples = math.ceil(learn["completions"] / len(prompts["train"]))
            said = drawn(model, tokenizer, prompts["train"], samples, seed=number)
            flags = running.find_flags(unsupported(), said, title="detect")
        rows = masked(said, flags, tokenizer, learn, prompts["train"])
        learnt = chosen(rows, learn, seed)
        began = time.perf_counter()
        trained = run.train(
            model,
            [*learnt, *watched],
            train_params(learn, len(learnt), seed),
            workdir=WORK / f"{name}-{seed}" / f"round{number}",
            held_out=frozenset(row.prompt_id for row in watched),
        )
        model = trained.model.eval()
        seconds += time.perf_counter() - began
        rounds.append(
            {
                "negative_completions": sum(any(row.negative_mask) for row in learnt),
                "steps": len(trained.logs),
                "stopped": trained.stopped,
            }
        )
        run.forget(WORK / f"{name}-{seed}")
    original, _ = start()
    flagged = [row for row in learnt if any(row.negative_mask)]
    result = {
        "cell": name,
        "seed": seed,
        **learn,
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        "training_s": seconds,
        "of_rounds": rounds,
        "negative_mass_learnt": mass(model, flagged),
        **evaluated(original, model, tokenizer, prompts["test"]),
    }
    measure.write(result, out)


def masked(
    said: Sequence[Completion],
    flags: Sequence[Flag],
    tokenizer: Any,
    learn: Learn,
    prompts: Sequence[Prompt],
) -> list[Mask]:
    """Return the masks of the prompts' completions."""
    wanted = {p.prompt_id for p in prompts}
    params = MaskParams(span_tokens=learn["span_tokens"], after_negative=learn["after_negative"])
    return flagged.mask_all(
        [c for c in said if c.prompt_id in wanted],
        [f for f in flags if f.prompt_id in wanted],
        tokenizer,
        params,
    )


def chosen(rows: Sequence[Mask], learn: Learn, seed: int) -> list[Mask]:
    """Return the completions that are learnt from: greedy ones, then samples, each shuffled.

    Raises:
        ValueError: There are fewer than are asked for.
    """
    shuffled = random.Random(seed)
    prompts = sorted({row.prompt_id for row in rows})
    if learn["prompts"] is not None:
        prompts = shuffled.sample(prompts, learn["prompts"])
    by_sample: dict[int, list[Mask]] = defaultdict(list)
    for row in rows:
        if row.prompt_id in prompts and (any(row.negative_mask) or not learn["flagged_only"]):
            by_sample[row.sample].append(row)
    found = [
        row
        for _, of_sample in sorted(by_sample.items())
        for row in shuffled.sample(of_sample, len(of_sample))
    ]
    if len(found) < learn["completions"]:
        raise ValueError(
            f"{len(found)} completions are annotated, {learn['completions']} are asked for. "
            "Raise names.samples."
        )
    return found[: learn["completions"]]


def train_params(learn: Learn, completions: int, seed: int) -> TrainParams:
    """Return how a round of a cell is trained: in whole epochs, about as many passes as asked."""
    return TrainParams(
        loss=learn["loss"],
        negative_weight=learn["negative_weight"],
        learning_rate=learn["learning_rate"],
        epochs=max(1, learn["passes"] // completions),
        batch_size=8,
        trainable=learn["trainable"],
        seed=seed,
    )


def evaluated(
    original: Any, model: Any, tokenizer: Any, prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """Return what the updated model says, and how likely it finds what the base said."""
    tested = {p.prompt_id for p in prompts}
    base = [c for c in artifacts.read(COMPLETIONS, Completion) if c.prompt_id in tested]
    flags = [f for f in artifacts.read(FLAGS, Flag) if f.prompt_id in tested]
    invented, given = beginnings(base, flags, tokenizer)
    answers = drawn(model, tokenizer, prompts, NAMES["test_samples"], seed=1)
    detect = unsupported()
    was = {(f.prompt_id, f.sample) for f in flags}
    now = measure.flagged(answers, detect)
    greedy = [[c for c in found if c.sample == 0] for found in (base, answers)]
    samples = [[c for c in found if c.sample > 0] for found in (base, answers)]
    kept = divergence(
        original, model, [r for r in given if r.sample == 0], batch_size=32, title="kept"
    )
    return {
        "sampled_before": metrics.flag_rate(samples[0], was),
        "sampled": metrics.flag_rate(samples[1], now),
        "invented_before": mass(original, invented),
        "invented": mass(model, invented),
        "given_before": mass(original, given),
        "given": mass(model, given),
        "beginnings": {"invented": negatives(invented), "given": negatives(given)},
        "divergence": kept.forward,
        "greedy": measure.compared(*greedy, detect)["summaries"],
    }


def beginnings(
    base: Sequence[Completion], flags: Sequence[Flag], tokenizer: Any
) -> tuple[list[Mask], list[Mask]]:
    """Return rows whose negative tokens begin invented names, and rows whose begin other words.

    Those others are unflagged words with a capital, the first of a sentence included.
    """
    params = MaskParams(span_tokens="first", after_negative="keep")
    invented = mask_all(base, flags, tokenizer, params)
    flagged = mask_all(base, flags, tokenizer, replace(params, span_tokens="all"))
    begins = tokens_like(CAPITAL, base, tokenizer)
    given = [
        replace(
            row,
            negative_mask=[
                begins[token] and not hit
                for token, hit in zip(row.completion_ids, row.negative_mask, strict=True)
            ],
        )
        for row in flagged
    ]
    return invented, given


def tokens_like(
    pattern: str, rows: Sequence[Completion] | Sequence[Mask], tokenizer: Any
) -> dict[int, bool]:
    """Return, for each token of the completions, whether a pattern is found in its text."""
    return {
        token: bool(re.search(pattern, decode(tokenizer, [token])))
        for token in {token for row in rows for token in row.completion_ids}
    }


def within_sentences(rows: Sequence[Mask], tokenizer: Any) -> list[Mask]:
    """Return the rows with those negative tokens alone that are capitals inside a sentence."""
    begins = tokens_like(CAPITAL, rows, tokenizer)
    ends = tokens_like(r"[.!?]\Z", rows, tokenizer)
    return [
        replace(
            row,
            negative_mask=[
                negative and begins[token] and i > 0 and not ends[row.completion_ids[i - 1]]
                for i, (token, negative) in enumerate(
                    zip(row.completion_ids, row.negative_mask, strict=True)
                )
            ],
        )
        for row in rows
    ]


def negatives(rows: Sequence[Mask]) -> int:
    """Return how many tokens are negative."""
    return sum(sum(row.negative_mask) for row in rows)


def mass(model: Any, rows: Sequence[Mask]) -> float | None:
    """Return the mean probability of negative tokens behind the base's prefixes."""
    carrying = [row for row in rows if any(row.negative_mask)]
    return divergence(model, model, carrying, batch_size=32, title="negative").negative_mass


def probe(out: Path) -> None:
    """Write how well hidden states of the base say that an invented name begins next."""
    model, tokenizer = start()
    prompts = asked(tokenizer)
    said = artifacts.read(COMPLETIONS, Completion)
    flags = artifacts.read(FLAGS, Flag)
    invented, given = (
        within_sentences(rows, tokenizer) for rows in beginnings(said, flags, tokenizer)
    )
    learn: Learn = {"prompts": None, "flagged_only": False}
    sizes = [*BY_SIZE.values()]
    splits = {p.prompt_id: split for split, of_split in prompts.items() for p in of_split}
    order = chosen(
        [row for row in invented if splits[row.prompt_id] == "train"],
        {**learn, "completions": max(sizes)},
        seed=0,
    )
    by_key = {(row.prompt_id, row.sample): row for row in given}
    layers = (0, NAMES["probe"]["middle"], model.config.num_hidden_layers)
    of_split = {
        "train": order,
        **{
            split: [row for row in invented if splits[row.prompt_id] == split]
            for split in ("validation", "test")
        },
    }
    states = {split: labelled(model, rows, by_key, layers) for split, rows in of_split.items()}
    found = []
    for layer in layers:
        for size in sizes:
            rows = states["train"][layer].of_first(size)
            fits = [fitted(rows, decay) for decay in NAMES["probe"]["decays"]]
            best = max(fits, key=lambda fit: auc(fit, states["validation"][layer]))
            found.append(
                {
                    "layer": layer,
                    "completions": size,
                    "beginnings": len(rows.labels),
                    "invented": int(rows.labels.sum()),
                    "auc_learnt": auc(best, rows),
                    "auc": auc(best, states["test"][layer]),
                }
            )
    measure.write({"probe": found}, out)


class Labelled:
    """Hidden states from which a name comes next [N, d], and whether it is invented [N]."""

    def __init__(self, states: Tensor, labels: Tensor, rows: Tensor) -> None:
        """Keep all three; `rows` says which completion a state is of."""
        self.states, self.labels, self.rows = states, labels, rows

    def of_first(self, completions: int) -> Labelled:
        """Return those of the first completions."""
        found = self.rows < completions
        return Labelled(self.states[found], self.labels[found], self.rows[found])


def labelled(
    model: Any, invented: Sequence[Mask], given: dict[Key, Mask], layers: Sequence[int]
) -> dict[int, Labelled]:
    """Return each layer's states behind which a name begins, in the order of the completions."""
    states: dict[int, dict[int, Tensor]] = {layer: {} for layer in layers}
    labels: dict[int, Tensor] = {}
    lengths = [len(row.prompt_ids) + len(row.completion_ids) for row in invented]
    with torch.inference_mode(), tqdm(total=len(invented), desc="hidden states") as bar:
        for indices in by_length(lengths, 32):
            rows = [invented[i] for i in indices]
            batch = collate(rows).to(model.device)
            hidden = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                output_hidden_states=True,
                logits_to_keep=1,
            ).hidden_states
            begins = {}
            for i, row in zip(indices, rows, strict=True):
                wrong = torch.tensor(row.negative_mask)
                fine = torch.tensor(given[row.prompt_id, row.sample].negative_mask)
                begins[i], labels[i] = wrong | fine, wrong[wrong | fine]
            counts = [len(row.completion_ids) for row in rows]
            for layer in layers:
                of_rows = hidden[layer][batch.rows].cpu().split(counts)
                for i, of_row in zip(indices, of_rows, strict=True):
                    states[layer][i] = of_row[begins[i]]
            bar.update(len(indices))
    order = range(len(invented))
    all_labels = torch.cat([labels[i] for i in order])
    rows_of = torch.cat([torch.full((len(labels[i]),), i) for i in order])
    return {
        layer: Labelled(torch.cat([states[layer][i] for i in order]), all_labels, rows_of)
        for layer in layers
    }


def fitted(rows: Labelled, decay: float) -> Tensor:
    """Return a logistic regression of standardised states, folded into one vector [d]."""
    mean, spread = rows.states.mean(0), rows.states.std(0) + 1e-6
    inputs, targets = (rows.states - mean) / spread, rows.labels.float()
    weight = torch.zeros(inputs.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight + bias
        error = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
        total = error + decay * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return (weight / spread).detach()


def auc(direction: Tensor, rows: Labelled) -> float:
    """Return how often an invented name's state scores above a given name's: 0.5 is chance."""
    ranks = torch.from_numpy(rankdata((rows.states @ direction).numpy()))
    wrong = int(rows.labels.sum())
    fine = len(rows.labels) - wrong
    return float((ranks[rows.labels].sum() - wrong * (wrong + 1) / 2) / (wrong * fine))


def again(out: Path) -> None:
    """Write how many greedy summaries are flagged, at first, after each ban and each new draw."""
    model, tokenizer = start()
    said = artifacts.read(COMPLETIONS, Completion)
    greedy = [c for c in said if c.sample == 0]
    detect = unsupported()
    most = NAMES["most_tries"] + 1
    params = RolloutParams(max_bans=most)
    walked = walk(model, tokenizer, greedy, detect, params, measure.DRAW)
    needed = [sum(map(len, r.banned)) if r.end == "clean" else most for r in walked]
    banned = [sum(bans > allowed for bans in needed) for allowed in range(most)]
    wrong = {(f.prompt_id, f.sample) for f in artifacts.read(FLAGS, Flag)}
    redrawn = [
        sum(all((c.prompt_id, k) in wrong for k in range(draws + 1)) for c in greedy)
        for draws in range(most)
    ]
    measure.write({"summaries": len(greedy), "banned": banned, "redrawn": redrawn}, out)


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "draw":
        draw(*map(Path, given))
    elif what == "probe":
        probe(Path(*given))
    elif what == "again":
        again(Path(*given))
    else:
        cell(given[0], int(given[1]), Path(given[2]))
