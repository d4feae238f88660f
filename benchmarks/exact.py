"""Every loss against the exact answer, on a language small enough to write its distribution down.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/exact.py              # 45 minutes of one core
    .venv/bin/python benchmarks/exact.py --document                     # figures and tables again
    .venv/bin/python benchmarks/exact.py --quick --folder work/exact    # everything, tiny

A small transformer learns a toy grammar; its own samples are annotated without error, and every row
of `tnt.losses.table.LOSSES` trains it on. What it then says is compared with both ideals, exactly:
see `toy.py` for the language, the ideals and the distances.

- `grid`: losses and negative weights, from 1,000 samples
- `sizes`: from 100 and 10,000, and in expectation (`inf`: every completion, weighted by its
  probability), each loss at its best weight of the grid
- `longer`: twice the steps: had it converged?
- `patch`: a few neurons in place of new weights, trained as the product does (`toy_patch.py`)
- `orders`: one update after another, in either order, and both at once
- `rounds`: five rounds on fresh samples, anchored to the parent or to the base

A sample carries a loss up to its first flag, and the flag is at the token that completes what is
unwanted. Training is full-batch Adam; a prefix that many samples share is computed once and
weighted, which gives the same gradient. Results go to `benchmarks/results/exact/`, a table per
part, written after every cell: killed and run again, it goes on. The last step writes
docs/pictures/ and the tables of docs/evidence.md; a test asks that they agree with the results.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from exact_report import document
from torch import Tensor
from toy import (
    Models,
    Nodes,
    Tree,
    Unwanted,
    distances,
    grammar,
    sequence_ideal,
    token_ideal,
    total_variation,
)
from toy_patch import patched
from tqdm import tqdm

from tnt.losses.params import LossParams
from tnt.losses.table import token_losses
from tnt.losses.targets import with_floor

ROOT = Path(__file__).parent.parent
POOLED = "tnff_pooled"
"""tnff, but a flag counts for all samples that pass the same prefix: a set of negative tokens."""
VARIANTS = ("tnff", "tnrr", "tnrf", "tnfll", "tnrll", "ul", "nl", "sft_clean", POOLED)
EXPECTED = "inf"
CHECKS = (5, 10, 20, 40, 80)
"""Steps after which training could have been stopped early, besides the last."""
HINGES = (0.1, 1.0, 10.0)
"""How dear it is that a gate of a patch opens at a kept prefix."""
Check = Callable[[Models, int, Tensor], None]
"""Called with the models, the steps taken and the training loss of each seed, [S]."""


@dataclass(frozen=True)
class Setup:
    """Everything the figures depend on."""

    length: int = 5
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each its own original and its own samples."""
    behaviours: tuple[str, ...] = ("token", "pair", "context")
    weights: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1_000.0)
    samples: int = 1_000
    sizes: tuple[int, ...] = (100, 10_000)
    expected: tuple[str, ...] = ("context",)
    """Behaviours that are trained on in expectation."""
    longer: str = "context"
    ordered: tuple[str, ...] = ("tnff", POOLED, "tnrr", "tnfll", "ul", "sft_clean")
    rounds: tuple[str, ...] = ("token", "pair", "context", "repeat", "short")
    """What each of the rounds removes on top of those before."""
    steps: int = 200
    learning_rate: float = 3e-3
    """Falls to 0 linearly."""
    grammar_samples: int = 5_000


QUICK = Setup(
    length=3,
    seeds=(0, 1),
    behaviours=("pair",),
    weights=(10.0,),
    samples=50,
    sizes=(20,),
    expected=("pair",),
    longer="pair",
    ordered=("tnff",),
    rounds=("pair", "token"),
    steps=6,
    grammar_samples=100,
)


def limit(loss: str, original: Tensor, unwanted: Unwanted, weight: float) -> Tensor:
    """Return what a loss asks for with endless samples, as conditionals, [S, P, V].

    Of the samples that pass a prefix, a share f is flagged there. They ask for the target q, the
    others for the original o, and the sum of the two losses is least at a mean of q and o with the
    weights w f and 1 - f: the arithmetic one by forward KL, the geometric one by reverse KL. At
    most one token may be flagged at a prefix: of two, each would have a target with the other.
    """
    flagged = unwanted.flagged.expand(original.shape)
    target = token_ideal(original, unwanted)
    f = original.exp().masked_fill(~flagged, 0.0).sum(-1, keepdim=True)
    share = weight * f / (weight * f + 1 - f)
    if loss == "tnff":
        return (share * target.exp() + (1 - share) * original.exp()).log()
    assert loss == "tnrr"
    floored = with_floor(target.flatten(0, 1), flagged.flatten(0, 1), 1e-6).view_as(target)
    return (share * floored + (1 - share) * original).log_softmax(-1)


# One update.


@dataclass(frozen=True)
class Rows:
    """The tokens that carry a loss, all seeds one after another, and the prefixes they follow."""

    nodes: Nodes
    seed: Tensor
    prefix: Tensor
    """Number in the tree, [N]."""
    node: Tensor
    """Number among the seed's nodes, [N]."""
    token: Tensor
    negative: Tensor
    """[N], or [N, V] where flags are pooled."""
    share: Tensor
    """How many of the seed's tokens that carry a loss a row stands for, [N], 1 in sum."""

    @classmethod
    def of(cls, tree: Tree, samples: Tensor, unwanted: Unwanted, variant: str) -> Rows:
        """Return the rows of completions that occur so often, [S, completions]."""
        if variant == "sft_clean":  # drops flagged completions whole
            samples = samples.masked_fill(unwanted.completions, 0.0)
        counts = tree.sums(samples).masked_fill(~unwanted.clean[:, None], 0.0)
        seed, prefix, token = counts.nonzero().unbind(-1)
        nodes, node = Nodes.of(tree, counts.sum(-1) > 0)
        negative = unwanted.flagged[prefix, token]
        if variant == POOLED:
            negative = ((counts > 0) & unwanted.flagged)[seed, prefix]
        share = counts[seed, prefix, token] / counts.sum((1, 2))[seed]
        return cls(nodes, seed, prefix, node[seed, prefix], token, negative, share.float())

    def losses(self, models: Models, original: Tensor, variant: str, weight: float) -> Tensor:
        """Return each row's share of its seed's loss, [N]."""
        losses = token_losses(
            LossParams(loss=variant.removesuffix("_pooled"), negative_weight=weight),
            models(self.nodes)[self.seed, self.node],
            original[self.seed, self.prefix],
            self.token,
            self.negative,
        )
        return losses * self.share

    def by_seed(self, losses: Tensor) -> Tensor:
        """Return the sum of each seed's rows, [N] -> [S]."""
        sums = losses.new_zeros(len(self.nodes.last))
        return sums.index_add(0, self.seed, losses.detach())


def fit(
    models: Models,
    rows: Rows,
    original: Tensor,
    variant: str,
    weight: float,
    steps: int,
    learning_rate: float,
    check: Check = lambda *_: None,
) -> None:
    """Train in place, with checks on the way and at the end."""
    optimiser = torch.optim.Adam(models.parameters(), lr=learning_rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for step in range(steps):
        losses = rows.losses(models, original, variant, weight)
        if step in CHECKS:
            check(models, step, rows.by_seed(losses))
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
        decay.step()
    with torch.no_grad():
        check(models, steps, rows.by_seed(rows.losses(models, original, variant, weight)))


@dataclass(frozen=True)
class Parts:
    """The parts of the benchmark, on one setup and its originals."""

    setup: Setup
    best: Callable[..., float]
    """A loss's best negative weight for behaviours, from the grid."""

    @cached_property
    def tree(self) -> Tree:
        """All prefixes."""
        return Tree(self.setup.length)

    @cached_property
    def every_prefix(self) -> Nodes:
        """The same for the models."""
        return Nodes.all(self.tree, len(self.setup.seeds))

    @cached_property
    def base(self) -> Models:
        """Models of the grammar, each from its own samples of it."""
        models = Models(self.setup.seeds, self.setup.length)
        said = grammar(self.tree).expand(len(self.setup.seeds), -1, -1)
        nothing = Unwanted.of(self.tree, [])
        rows = Rows.of(
            self.tree, self.drawn(said, self.setup.grammar_samples, 0), nothing, "sft_clean"
        )
        unused = torch.zeros(said.shape)
        rate, steps = self.setup.learning_rate, self.setup.steps
        fit(models, rows, unused, "sft_clean", 1.0, steps, rate)
        return models

    def logits(self, models: Models) -> Tensor:
        """Return the logits at every prefix, [S, P, V]."""
        with torch.no_grad():
            return models(self.every_prefix)

    def conditionals(self, models: Models) -> Tensor:
        """Return the log-probabilities at every prefix, [S, P, V], in float64."""
        return self.logits(models).double().log_softmax(-1)

    def drawn(self, log_probs: Tensor, count: int, draw: int) -> Tensor:
        """Return how often each completion comes in so many samples, [S, completions]."""
        found = []
        for seed, each in zip(self.setup.seeds, self.tree.completions(log_probs), strict=True):
            generator = torch.Generator().manual_seed(1_000 * seed + draw)
            drawn = torch.multinomial(each.exp(), count, replacement=True, generator=generator)
            found.append(torch.bincount(drawn, minlength=len(each)))
        return torch.stack(found).double()

    def update(
        self,
        parent: Models,
        unwanted: Unwanted,
        variant: str,
        weight: float,
        *,
        count: int | None = None,
        draw: int = 1,
        anchor: Models | None = None,
        steps: int | None = None,
        check: Check = lambda *_: None,
    ) -> Models:
        """Return models trained on samples of their parents.

        Args:
            parent: What is sampled and trained on.
            unwanted: What is flagged.
            variant: One of `VARIANTS`.
            weight: `negative_weight`.
            count: Samples; None takes every completion, weighted by its probability.
            draw: Which samples.
            anchor: The original of the loss; the parent if None.
            steps: As in the setup if None.
            check: Called where training could have been stopped, and at its end.
        """
        said = self.conditionals(parent)
        samples = self.tree.completions(said).exp()
        if count is not None:
            samples = self.drawn(said, count, draw)
        models = copy.deepcopy(parent)
        fit(
            models,
            Rows.of(self.tree, samples, unwanted, variant),
            self.logits(anchor or parent),
            variant,
            weight,
            steps or self.setup.steps,
            self.setup.learning_rate,
            check,
        )
        return models

    # The parts: each returns one dictionary of numbers per seed, or several.

    def references(self, behaviour: str) -> list[dict[str, Any]]:
        """Return the original, the ideals, and what tnff and tnrr ask for with endless samples."""
        original = self.conditionals(self.base)
        unwanted = Unwanted.of(self.tree, [behaviour])
        ideal = token_ideal(original, unwanted)
        models = {
            "original": original,
            "token_ideal": ideal,
            "sequence_ideal": sequence_ideal(self.tree, original, unwanted),
        }
        for loss in ("tnff", "tnrr"):
            for weight in self.setup.weights:
                models[f"{loss}_{weight:g}"] = limit(loss, original, unwanted, weight)
        return [
            {"model": name, **row}
            for name, model in models.items()
            for row in self._by_seed(distances(self.tree, model, original, unwanted))
        ]

    def measured(
        self,
        behaviour: str,
        variant: str,
        weight: float | None = None,
        count: int | None = None,
        steps: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return the distances of one update, wherever it could have been stopped."""
        if weight is None:
            weight = self.best(variant, [behaviour], early=True)
        original = self.conditionals(self.base)
        unwanted = Unwanted.of(self.tree, [behaviour])

        rows: list[dict[str, Any]] = []

        def check(models: Models, step: int, loss: Tensor) -> None:
            found = distances(self.tree, self.conditionals(models), original, unwanted)
            heads = {"negative_weight": f"{weight:g}", "step": step}
            found["training_loss"] = loss.double()
            rows.extend(heads | row for row in self._by_seed(found))

        self.update(self.base, unwanted, variant, weight, count=count, steps=steps, check=check)
        return rows

    def patch(self, behaviour: str, count: int, hinge: float) -> list[dict[str, Any]]:
        """Return the distances of a patch, and where its gates are open on the originals' ways.

        `open_kept`: of the clean prefixes that the original passes and at which nothing is
        unwanted, the share at which a gate is open. `open_negative`: of the others.
        """
        original = self.conditionals(self.base)
        unwanted = Unwanted.of(self.tree, [behaviour])
        found = patched(
            self.tree, self.base, self.every_prefix, original, unwanted, count=count, hinge=hinge
        )
        logits, opened = (torch.stack(each) for each in zip(*found, strict=True))
        measured = distances(self.tree, logits.double().log_softmax(-1), original, unwanted)
        reach = self.tree.log_reach(original).exp()
        negative = unwanted.flagged.any(-1)
        for name, places in (("kept", ~negative & unwanted.clean), ("negative", negative)):
            there = reach * places
            measured[f"open_{name}"] = (there * opened).sum(-1) / there.sum(-1)
        return self._by_seed(measured)

    def orders(self, variant: str) -> list[dict[str, Any]]:
        """Return how far apart two updates in either order and a joint one end."""
        names = self.setup.rounds[:2]
        first, second, both = (
            Unwanted.of(self.tree, each) for each in (names[:1], names[1:], names)
        )
        weight = self.best(variant, [n for n in names if n in self.setup.behaviours], early=False)

        def then(parent: Models, unwanted: Unwanted, draw: int) -> Models:
            return self.update(
                parent, unwanted, variant, weight, count=self.setup.samples, draw=draw
            )

        ends = {
            "ab": then(then(self.base, first, 1), second, 2),
            "ba": then(then(self.base, second, 1), first, 2),
            "joint": then(self.base, both, 1),
            "again": then(self.base, both, 3),
        }
        original = self.conditionals(self.base)
        said = {name: self.conditionals(models) for name, models in ends.items()}
        completions = {name: self.tree.completions(each) for name, each in said.items()}
        found = {
            f"{a}_{b}": total_variation(completions[a], completions[b])
            for a, b in (("ab", "ba"), ("ab", "joint"), ("ba", "joint"), ("joint", "again"))
        }
        for name in ("ab", "ba", "joint"):
            of = distances(self.tree, said[name], original, both)
            found[f"{name}_unwanted"] = of["unwanted"]
            found[f"{name}_token_forward_kl"] = of["token_forward_kl"]
        return [{"negative_weight": f"{weight:g}"} | row for row in self._by_seed(found)]

    def rounds(self, scenario: str, anchor: str) -> list[dict[str, Any]]:
        """Return where tnff stands after each of five rounds, against the base.

        In `same` every round flags the same behaviour, in `more` everything named so far. Samples
        are always the parent's; the anchor is what kept tokens and targets are compared with.
        Without one nothing is trained: that is where each round's distances start.
        """
        fixed = self.setup.behaviours[-1]
        weight = self.best("tnff", [fixed], early=False)
        original = self.conditionals(self.base)
        parent, rows = self.base, []
        for number in range(1, len(self.setup.rounds) + 1):
            names = self.setup.rounds[:number] if scenario == "more" else [fixed]
            unwanted = Unwanted.of(self.tree, names)
            if anchor != "none":
                parent = self.update(
                    parent,
                    unwanted,
                    "tnff",
                    weight,
                    count=self.setup.samples,
                    draw=number,
                    anchor=self.base if anchor == "base" else None,
                )
            found = distances(self.tree, self.conditionals(parent), original, unwanted)
            heads = {"round": number, "negative_weight": f"{weight:g}"}
            rows += [heads | row for row in self._by_seed(found)]
        return rows

    def _by_seed(self, found: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return a dictionary of numbers for each seed."""
        return [
            {"seed": seed} | {key: values[i].item() for key, values in found.items()}
            for i, seed in enumerate(self.setup.seeds)
        ]


# The cells, and where their results are kept.


@dataclass(frozen=True)
class Cell:
    """A few rows of one table, computed at once."""

    table: str
    key: dict[str, Any]
    """The columns by which its rows are found again."""
    run: Callable[[], list[dict[str, Any]]]


class Results:
    """One CSV file per table; a cell is in it whole or not at all."""

    def __init__(self, folder: Path) -> None:
        """Read what is there."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, list[dict[str, str]]] = {}
        for path in folder.glob("*.csv"):
            with path.open(newline="") as file:
                self.rows[path.stem] = [*csv.DictReader(file)]

    def belong_to(self, setup: Setup) -> None:
        """Write down what the results depend on; refuse to mix with others.

        Raises:
            ValueError: They were made with another setup.
        """
        path = self.folder / "setup.json"
        wanted = json.dumps(asdict(setup), indent=2) + "\n"
        if not path.exists():
            path.write_text(wanted)
        elif path.read_text() != wanted:
            raise ValueError(f"{path} says that its results have another setup. Move them away.")

    def has(self, cell: Cell) -> bool:
        """Whether a cell is done."""
        key = {name: str(value) for name, value in cell.key.items()}
        return any(key.items() <= row.items() for row in self.rows.get(cell.table, ()))

    def add(self, cell: Cell) -> None:
        """Run a cell and keep its rows."""
        start = time.process_time()
        found = [{name: _text(v) for name, v in (cell.key | row).items()} for row in cell.run()]
        self.rows[cell.table] = self.rows.get(cell.table, []) + found
        self._write(f"{cell.table}.csv", self.rows[cell.table])
        seconds = time.process_time() - start
        named = " ".join(map(str, cell.key.values()))
        took = {"table": cell.table, "cell": named, "cpu_seconds": f"{seconds:.1f}"}
        self.rows["seconds"] = [*self.rows.get("seconds", []), took]
        self._write("seconds.csv", self.rows["seconds"])

    def best(self, variant: str, behaviours: Sequence[str], *, early: bool) -> float:
        """Return the weight with the lowest mean KL(token ideal || updated) in the grid.

        Args:
            variant: Of which loss.
            behaviours: Over which the mean is taken.
            early: Take each weight at the step that suits it best, not the last.
        """
        rows = [
            row
            for row in self.rows["grid"]
            if row["loss"] == variant and row["behaviour"] in behaviours
        ]
        last = max(int(row["step"]) for row in rows)
        found: dict[tuple[float, int], list[float]] = {}
        for row in rows:
            at = float(row["negative_weight"]), int(row["step"])
            if early or at[1] == last:
                found.setdefault(at, []).append(float(row["token_forward_kl"]))
        return min(found, key=lambda at: fmean(found[at]))[0]

    def _write(self, name: str, rows: list[dict[str, str]]) -> None:
        partial_path = self.folder / f".{name}.partial"
        with partial_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial_path, self.folder / name)


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def cells(setup: Setup, parts: Parts) -> Iterator[Cell]:
    """Yield all cells; those of the grid come first, for others ask for its best weights."""
    for behaviour in setup.behaviours:
        yield Cell("references", {"behaviour": behaviour}, partial(parts.references, behaviour))
    for behaviour in setup.behaviours:
        for variant in VARIANTS:
            # Without negative tokens there is nothing to weigh.
            for weight in (1.0,) if variant == "sft_clean" else setup.weights:
                key = {"behaviour": behaviour, "loss": variant, "negative_weight": f"{weight:g}"}
                run = partial(parts.measured, behaviour, variant, weight, setup.samples)
                yield Cell("grid", key, run)
    for size in (*setup.sizes, EXPECTED):
        for behaviour in setup.expected if size == EXPECTED else setup.behaviours:
            for variant in VARIANTS:
                count = None if size == EXPECTED else int(size)
                key = {"behaviour": behaviour, "loss": variant, "samples": size}
                run = partial(parts.measured, behaviour, variant, None, count)
                yield Cell("sizes", key, run)
    for behaviour in setup.behaviours:
        for count in (*setup.sizes[:1], setup.samples, *setup.sizes[1:]):
            for hinge in HINGES:
                key = {"behaviour": behaviour, "samples": count, "hinge": f"{hinge:g}"}
                yield Cell("patch", key, partial(parts.patch, behaviour, count, hinge))
    for variant in setup.ordered:
        yield Cell("orders", {"loss": variant}, partial(parts.orders, variant))
    for scenario in ("same", "more"):
        for anchor in ("parent", "base", "none"):
            key = {"scenario": scenario, "anchor": anchor}
            yield Cell("rounds", key, partial(parts.rounds, scenario, anchor))
    for variant in VARIANTS:
        key = {"behaviour": setup.longer, "loss": variant}
        run = partial(parts.measured, setup.longer, variant, None, setup.samples, 2 * setup.steps)
        yield Cell("longer", key, run)


def environment() -> dict[str, str]:
    """Return what the last digits depend on."""
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }


def main() -> None:
    """Run what is missing, then write figures and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny language and few cells")
    parser.add_argument("--document", action="store_true", help="figures and tables only")
    parser.add_argument("--folder", type=Path, default=ROOT, help="holds benchmarks/ and docs/")
    given = parser.parse_args()
    if given.quick and given.folder.resolve() == ROOT.resolve():
        parser.error("--quick would mix with the real results: give it a --folder of its own.")
    torch.set_num_threads(1)
    results = Results(given.folder / "benchmarks/results/exact")
    if not given.document:
        setup = QUICK if given.quick else Setup()
        results.belong_to(setup)
        missing = [
            cell for cell in cells(setup, Parts(setup, results.best)) if not results.has(cell)
        ]
        for cell in tqdm(missing, unit="cell"):
            results.add(cell)
        (results.folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    document(results.folder, given.folder / "docs")


if __name__ == "__main__":
    main()
