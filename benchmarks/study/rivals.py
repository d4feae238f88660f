"""What else is done today against words that a model must not say, for comparison.

    python rivals.py means base/means.safetensors
    python rivals.py screen abliteration prompt_12 0 rivalled/abliteration-prompt_12.json
    python rivals.py full rivals.json:ftpo:first 0 full/ftpo.json

- `abliteration`: directional ablation (Arditi et al. 2024, arXiv 2406.11717). The direction in
  which the residual stream differs between what is flagged and what is clean is taken out of every
  matrix that writes to the stream: the embedding, and each layer's o_proj and down_proj.
- `ftpo`: final token preference optimisation (Paech et al. 2025, arXiv 2510.15061), written afresh
  from its description. At the position of a flagged token, what else is likely there is preferred
  to it, by a margin of logits and no more, and all logits are tethered to the original's.
- `heretic`: what `heretic_search.py` had Heretic find, which searches directions and weights of
  directional ablation.

They learn from the replies to the training prompts as the other cells do; none uses summaries.
Directions cost one pass and are those of all replies also in the screening.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import measure
import torch
import train
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize, softplus
from tqdm import tqdm

from tnt.core import artifacts
from tnt.core.records import Completion, Flag, Mask, Rollout
from tnt.losses.batches import collate
from tnt.losses.heads import completion_hidden, head_of
from tnt.masks.flagged import mask_all
from tnt.masks.params import MaskParams
from tnt.models import by_length
from tnt.patches.site import site_of
from tnt.training import features

RIVALS = measure.PARAMS["rivals"]
MEANS = Path("base/means.safetensors")
SEARCHED, FOUND = Path("heretic_search.json"), Path("heretic")
"""What `heretic_search.py` says, and where it leaves its adapters."""
PASSED = 16
"""Completions that are passed at once."""


def main(size: str, *named: str) -> None:
    """Make a rival, ask it, and write what it is like."""
    method, setting, seed, out = train.cell_of(*named)
    of_size, given = measure.PARAMS["sizes"][size], RIVALS[method][setting]
    model, tokenizer = measure.start()
    before = measure.cpu_seconds()
    updated = METHODS[method](model, tokenizer, of_size, given, seed)
    learnt = measure.cpu_seconds()
    answers = measure.answers(updated, tokenizer, measure.asked(of_size, tokenizer))
    base = artifacts.read(Path("base", f"{size}.parquet"), Completion)
    cell = {
        "loss": method,
        "setting": setting,
        "seed": seed,
        **given,
        "preparing_cpu_s": prepared(method),
        "training_cpu_s": learnt - before,
        "serving_cpu_s": measure.cpu_seconds() - learnt,
        "tokens_per_answer": sum(len(c.completion_ids) for c in answers) / len(answers),
        "sets": measure.compared(base, answers),
    }
    measure.write(cell, Path(out))


def prepared(method: str) -> float:
    """Return the CPU seconds of what was done before, for all of a method's settings at once."""
    if method == "abliteration":
        with safe_open(MEANS, framework="pt") as file:
            return float(file.metadata()["cpu_s"])
    if method == "heretic":
        return float(json.loads(SEARCHED.read_text(encoding="utf-8"))["cpu_s"])
    return 0.0


def abliteration(
    model: Any, tokenizer: Any, size: Mapping[str, Any], setting: Mapping[str, Any], seed: int
) -> Any:
    """Take a layer's direction out of all that writes to the residual stream."""
    found = load_file(MEANS)
    clean = found[f"{setting['at']}_clean"][setting["layer"]]
    direction = found[f"{setting['at']}_wrong"][setting["layer"]] - clean
    if setting["orthogonal"]:  # so that what clean answers have in common stays
        direction = direction - (direction @ clean) / (clean @ clean) * clean
    ablate(model, normalize(direction, dim=0))
    return model


def write_means(out: Path) -> None:
    """Write what the residual stream is, on average, where something is flagged and where not.

    Tensors are named by where that is and by kind, each [layers + 1, d]; the first is the
    embedding's. `prompt`: at the last token of prompts with flagged and with clean replies.
    `flagged`: where a flagged token comes next, and where a kept one does.
    """
    model, _ = measure.start()
    before = measure.cpu_seconds()
    given = RIVALS["means"]
    rows: list[Mask] = []
    for wrong in (True, False):
        of_kind = [r for r in learnt_from({"replies": None}, 0) if any(r.negative_mask) == wrong]
        rows += [shortened(row, given["tokens"]) for row in of_kind[: given["replies"]]]
    found = means(model, rows)
    spent = measure.cpu_seconds() - before
    save_file(found, out, metadata={"cpu_s": f"{spent:.1f}"})


def means(model: Any, rows: Sequence[Mask]) -> dict[str, Tensor]:
    """Return the means that `write_means` writes, of some masked completions or rollouts."""
    sums: dict[str, Tensor | float] = defaultdict(float)
    counts: Counter[str] = Counter()
    with torch.no_grad(), tqdm(total=len(rows), desc="pass", unit="reply") as bar:
        for numbers in by_length([len(r.prompt_ids) + len(r.completion_ids) for r in rows], PASSED):
            members = [rows[n] for n in numbers]
            batch = collate(members)
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            passed = model.model(**inputs, output_hidden_states=True, use_cache=False)
            states = torch.stack([states[batch.rows] for states in passed.hidden_states])
            first = torch.tensor([i == 0 for m in members for i in range(len(m.kept_mask))])
            wrong = torch.tensor([any(m.negative_mask) for m in members for _ in m.kept_mask])
            kinds = {
                "prompt_wrong": first & wrong,
                "prompt_clean": first & ~wrong,
                "flagged_wrong": batch.negative,
                "flagged_clean": batch.kept,
            }
            for kind, chosen in kinds.items():
                sums[kind] = sums[kind] + states[:, chosen].sum(1)
                counts[kind] += int(chosen.sum())
            bar.update(len(members))
    return {kind: torch.as_tensor(total) / counts[kind] for kind, total in sums.items()}


def ablate(model: Any, direction: Tensor) -> None:
    """Project a unit vector, [d], out of everything that writes to the residual stream.

    The head reads from it: where it shares the embedding's matrix, it keeps a copy as it was.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    with torch.no_grad():
        embedding.weight -= torch.outer(embedding.weight @ direction, direction)
        for layer in model.model.layers:
            for writes in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                writes -= torch.outer(direction, direction @ writes)


@dataclass(frozen=True, slots=True)
class Preference:
    """At one position, which tokens are preferred to which."""

    chosen: Tensor
    """[C] int64."""
    rejected: int
    original: Tensor
    """The original's logits there, [V]."""


def ftpo(
    model: Any, tokenizer: Any, size: Mapping[str, Any], setting: Mapping[str, Any], seed: int
) -> Any:
    """Train by final token preferences."""
    setting = {**RIVALS["preference"], **setting}
    rows = [row for row in learnt_from(size, seed) if any(row.negative_mask)]
    if setting["at"] == "first":
        rows = at_first_tokens(rows, tokenizer)
    rows = [shortened(row, 1 + max(i for i, s in enumerate(row.sets()) if s)) for row in rows]
    found = zip(rows, preferences(model, rows, setting), strict=True)
    pairs = [(row, of_row) for row, of_row in found if of_row]
    for name, weight in model.named_parameters():
        weight.requires_grad_(bool(re.search(measure.PARAMS["trainable"], name)))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=setting["learning_rate"], weight_decay=0.01)
    order = random.Random(seed)
    steps = range(0, len(pairs), size["batch_size"])
    with tqdm(total=setting["epochs"] * len(steps), desc="ftpo", unit="step") as bar:
        for _ in range(setting["epochs"]):
            order.shuffle(pairs)
            for start in steps:
                batch = pairs[start : start + size["batch_size"]]
                loss = preference_loss(model, batch, setting)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return model


Preferences = list[tuple[int, Preference]]
"""Where in a completion, and what."""


def at_first_tokens(rows: Sequence[Mask], tokenizer: Any) -> list[Mask]:
    """Return rows of the completions as they were, negative where something flagged begins."""
    names = {row.prompt_id for row in rows}
    said = artifacts.read(measure.ROUND / "completions.parquet", Completion)
    flags = artifacts.read(measure.ROUND / "flags.parquet", Flag)
    of_rows = [c for c in said if c.prompt_id in names]
    of_them = [f for f in flags if f.prompt_id in names]
    return mask_all(of_rows, of_them, tokenizer, MaskParams(span_tokens="first"))


def preferences(
    model: Any, rows: Sequence[Mask], setting: Mapping[str, Any]
) -> Iterator[Preferences]:
    """Yield what is preferred at the negative tokens of each row.

    Chosen is what the original finds likely there, at least `min_p` times as likely as the
    likeliest, and what is not negative; where there is nothing of that kind there is no preference.
    The original's logits are those of the round's features: up to its last negative token each row
    is as its rollout.
    """
    rollouts = artifacts.read(measure.ROUND / "rollouts.parquet", Rollout)
    lengths = [len(rollout.completion_ids) for rollout in rollouts]
    seen = features.read(measure.ROUND / "features.safetensors", sum(lengths)).split(lengths)
    of_prompt = {r.prompt_id: given for r, given in zip(rollouts, seen, strict=True)}
    site, head = site_of(model), head_of(model)
    for row in rows:
        asked = [(place, tokens) for place, tokens in enumerate(row.sets()) if tokens]
        given = of_prompt[row.prompt_id][[place for place, _ in asked]]
        with torch.no_grad():
            logits = head.logits(site.hidden(given, torch.zeros_like(given.outputs)))
        yield [
            (place, Preference(chosen, token, original))
            for (place, tokens), original in zip(asked, logits, strict=True)
            for chosen in [likely(original, tokens, setting["min_p"])]
            for token in tokens
            if len(chosen)
        ]


def likely(logits: Tensor, negative: Sequence[int], min_p: float) -> Tensor:
    """Return the tokens that are likely enough and not negative."""
    shares = logits.softmax(-1)
    enough = shares >= min_p * shares.max()
    enough[[*negative]] = False
    return enough.nonzero().flatten()


def preference_loss(
    model: Any, batch: Sequence[tuple[Mask, Preferences]], setting: Mapping[str, Any]
) -> Tensor:
    """Return the mean loss of a batch's preferences."""
    hidden = completion_hidden(model, collate([row for row, _ in batch]))
    starts = accumulate((len(row.completion_ids) for row, _ in batch), initial=0)
    asked = [(s + at, p) for s, (_, found) in zip(starts, batch, strict=False) for at, p in found]
    logits = head_of(model).logits(hidden[[at for at, _ in asked]])
    losses = [of_one(now, p, setting) for now, (_, p) in zip(logits, asked, strict=True)]
    return torch.stack(losses).mean()


def of_one(logits: Tensor, preference: Preference, setting: Mapping[str, Any]) -> Tensor:
    """Return the loss of one preference.

    A chosen token's part is w softplus(margin - gap): the gap is how far its logit is above the
    rejected one's, w falls from 1, where the two are equal, to 0 where the margin is won. The mean
    over the chosen tokens, the squares of what chosen and rejected logits moved beyond `grace`,
    and the squares of what all others moved are added up, each with its weight.
    """
    targets = torch.tensor([*preference.chosen, preference.rejected])
    gaps = logits[preference.chosen] - logits[preference.rejected]
    short = (setting["margin"] - gaps) / setting["margin"]
    preferred = (short.detach().clamp(0, 1) * softplus(setting["margin"] - gaps)).mean()
    moved = logits - preference.original
    beyond = (moved[targets].abs() - setting["grace"]).clamp(min=0)
    others = torch.ones_like(logits, dtype=torch.bool)
    others[targets] = False
    return (
        preferred
        + setting["target_tether"] * (beyond**2).mean()
        + setting["tether"] * (moved[others] ** 2).mean()
    )


def heretic(
    model: Any, tokenizer: Any, size: Mapping[str, Any], setting: Mapping[str, Any], seed: int
) -> Any:
    """Take what the search left."""
    adapted = PeftModel.from_pretrained(model, str(FOUND / setting["trial"]))
    return adapted.merge_and_unload().eval()


METHODS: dict[str, Callable[[Any, Any, Mapping[str, Any], Mapping[str, Any], int], Any]] = {
    "abliteration": abliteration,
    "ftpo": ftpo,
    "heretic": heretic,
}


def shortened(row: Mask, end: int) -> Mask:
    """Return a row's first tokens."""
    return replace(
        row,
        completion_ids=row.completion_ids[:end],
        negative_mask=row.negative_mask[:end],
        kept_mask=row.kept_mask[:end],
        excluded=row.excluded[:end],
    )


def learnt_from(size: Mapping[str, Any], seed: int) -> list[Mask]:
    """Return the masked replies to a size's training prompts."""
    rows = artifacts.read(measure.ROUND / "masks.parquet", Mask)
    _, learnt = train.split(rows, {**size, "summaries": 0}, seed)
    return learnt


if __name__ == "__main__":
    if sys.argv[1] == "means":
        write_means(Path(sys.argv[2]))
    else:
        main(*sys.argv[1:])
