"""Train a patch: a few neurons beside the last MLP, on features of the original alone.

At negative positions the neurons learn the round's loss; at all others a hinge keeps them shut. A
neuron that is shut everywhere has no gradient: so a second hinge keeps one open, if only just, at
every negative position.
One pass of the original gives all that is needed, so a run takes seconds. A run that is killed
continues from its last checkpoint and ends in the same bytes.

Legend: N positions, d width, K neurons, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from tnt.core.artifacts import complete
from tnt.core.records import Mask
from tnt.losses.fused import Fused, fused_losses
from tnt.losses.heads import Head
from tnt.losses.params import LossParams
from tnt.patches.neurons import Neurons
from tnt.patches.site import Features, Site
from tnt.training.log import WATCHES, StepLog
from tnt.training.params import TrainParams

BETAS = (0.9, 0.98)
BIASES, LOGITS = 1 / 100, 1 / 4
"""Steps of b, and of a logit, for a step of 1 in z."""
REACH = 0.5
"""How far a negative position should be within the half space of one neuron, or none may open."""
TYPICAL = 64
"""Positions that tell how large a step is."""
RIDGE, SMALL = 0.1, 1e-5
"""Of the mean of a covariance's diagonal, and of the squares': what is added to it."""
CENTRES_STEPS = 20
MOVED = LossParams(loss="tnff")
"""At kept tokens, KL(original || patched)."""
CHECKPOINT = "patch-run.safetensors"


@dataclass(frozen=True, slots=True)
class Positions:
    """The negative and the kept positions of some completions."""

    negative: Features
    sets: list[list[int]]
    """The tokens that each negative position's target excludes."""
    kept: Features

    def to(self, like: Tensor) -> Positions:
        """Return the positions in another tensor's precision, and where that is."""
        return Positions(self.negative.to(like), self.sets, self.kept.to(like))


def positions(features: Features, masks: Sequence[Mask]) -> Positions:
    """Return what a patch learns from.

    Args:
        features: Of every token of the completions, one completion after the other.
        masks: Of the same completions, in that order.
    """
    negative, kept = (flat(masks, name) for name in ("negative_mask", "kept_mask"))
    sets = [found for mask in masks for found in mask.sets()]
    chosen = [found for found, hit in zip(sets, negative.tolist(), strict=True) if hit]
    return Positions(features[negative], chosen, features[kept])


def flat(masks: Sequence[Mask], name: str) -> Tensor:
    """Return a mask of completions, one after the other, [N] bool."""
    return torch.tensor([hit for mask in masks for hit in getattr(mask, name)], dtype=torch.bool)


def start(learnt: Positions, neurons: int, site: Site, *, seed: int) -> Neurons:
    """Return neurons that tell clusters of negative inputs from the kept ones, and add nothing.

    In the metric of the kept inputs, k-means finds centres among the negative ones; each neuron is
    Fisher's direction of a centre, with z = 1 there and z = -1 at the kept inputs' mean. Where an
    MLP has no biases, c stands for the 1 that a bias goes with, before anything is learned.
    """
    kept, negative = learnt.kept.inputs, learnt.negative.inputs
    mean = kept.mean(0)
    covariance = (kept - mean).T @ (kept - mean) / len(kept)
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance))
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, (negative - mean).T, upper=False).T
    centres = _centres(white, neurons, seed)
    scaled = centres * (2 / centres.square().sum(-1, keepdim=True))
    gates = torch.linalg.solve_triangular(factor.T, scaled.T, upper=True).T
    biases, values = -gates @ mean - 1, torch.zeros_like(gates)
    if site.biased:
        return Neurons(gates, values, biases=biases)
    factor = constant(kept, negative)
    gates = gates + biases[:, None] * factor
    return Neurons(gates, values, factor=factor if site.layout.gated else None)


def constant(*groups: Tensor) -> Tensor:
    """Return c with u c = 1 as nearly as can be at all inputs u, [N, d] -> [d].

    Each group counts alike, however many inputs it has.
    """
    exact = [group.double() for group in groups]
    square = torch.stack([u.T @ u / len(u) for u in exact]).sum(0)
    square += SMALL * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square, torch.stack([u.mean(0) for u in exact]).sum(0)).float()


def _centres(points: Tensor, count: int, seed: int) -> Tensor:
    """Return the centres that k-means finds, at most one for each point."""
    generator = torch.Generator().manual_seed(seed)
    centres = points[torch.randperm(len(points), generator=generator)[:count]]
    for _ in range(CENTRES_STEPS):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        sizes = nearest.bincount(minlength=len(centres))[:, None]
        lost = torch.randint(len(points), (len(centres),), generator=generator)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), points[lost])
    return centres


def train(
    site: Site,
    head: Head,
    learnt: Positions,
    watched: Positions,
    params: TrainParams,
    *,
    workdir: Path,
) -> tuple[Neurons, list[StepLog]]:
    """Return a trained patch, and one line per step.

    Args:
        site: The original's last MLP; only the final norm behind it runs.
        head: The original's LM head.
        learnt: What it learns from.
        watched: What it is watched on.
        params: How.
        workdir: Where the checkpoint lies.

    Raises:
        ValueError: There is no negative position, or the loss stops being finite.
    """
    if not learnt.sets:
        raise ValueError(
            "No completion of a prompt that is trained on is flagged, so there is nothing that a "
            "patch could learn. Give the round more prompts."
        )
    run = _Run(site, head, learnt, watched, params, workdir / CHECKPOINT)
    with tqdm(total=run.steps, initial=len(run.logs), desc="train the patch", unit="step") as bar:
        for step in range(len(run.logs), run.steps):
            run.step(step)
            bar.update()
            if (step + 1) % run.every == 0:
                run.save()
    return run.neurons(), run.logs


class _Run:
    """A training run, at some step."""

    def __init__(
        self,
        site: Site,
        head: Head,
        learnt: Positions,
        watched: Positions,
        params: TrainParams,
        checkpoint: Path,
    ) -> None:
        """Begin, or go on from a checkpoint."""
        assert params.patch is not None, "a patch is trained where the params ask for one"
        self.params, self.patch = params, params.patch
        self.steps = self.patch.steps
        self.every = max(1, self.steps // WATCHES)
        self.site, self.head = site, head.frozen()
        self.learnt, self.watched = (p.to(self.head.weight) for p in (learnt, watched))
        self.checkpoint = checkpoint
        self.logs: list[StepLog] = []
        begun = start(learnt, self.patch.neurons, self.site, seed=params.seed).to(self.head.weight)
        self.factor = begun.factor
        self.weights = {
            name: tensor.clone().requires_grad_()
            for name, tensor in begun.tensors().items()
            if name != "factor"
        }
        self.rates = self._rates()
        self.optimizer = torch.optim.Adam(
            [{"params": [w], "lr": self.rates[name]} for name, w in self.weights.items()],
            betas=BETAS,
        )
        if checkpoint.is_file():
            self._load()

    def _rates(self) -> dict[str, float]:
        """Return Adam's step sizes, in the units of what they move."""
        rate, kept = self.patch.learning_rate, self.learnt.kept
        some = kept[:: max(1, len(kept) // TYPICAL)][:TYPICAL]
        added = torch.zeros_like(some.outputs, requires_grad=True)
        likeliest = self.head.logits(self.site.hidden(some, added)).amax(-1).sum()
        (slopes,) = torch.autograd.grad(likeliest, added)
        a_logit, z = (float(x.abs().sum(-1).median()) for x in (slopes, some.inputs))
        return {"gates": rate / z, "biases": rate * BIASES, "values": rate * LOGITS / a_logit}

    def neurons(self) -> Neurons:
        """Return the patch as it is."""
        weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
        return Neurons(**weights, factor=self.factor)

    def step(self, step: int) -> None:
        """Make one step and write its line."""
        generator = torch.Generator().manual_seed(self.params.seed * 1_000_003 + step)
        order = torch.randperm(len(self.learnt.sets), generator=generator)
        chosen = order[: self.patch.batch_size].tolist()
        now = Neurons(**self.weights, factor=self.factor)
        sets = [self.learnt.sets[i] for i in chosen]
        at_negatives = self._losses(self.params, now, self.learnt.negative[chosen], sets)
        reached = now.reached(self.learnt.kept.inputs)
        opened = torch.relu(reached + self.patch.margin).square().sum() / len(self.learnt.sets)
        missed = torch.relu(REACH - now.reached(self.learnt.negative[chosen].inputs).amax(-1))
        loss = at_negatives.total + self.patch.hinge * opened + missed.square().mean()
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"The loss is {loss.item()} in step {step}. Lower train.patch.learning_rate."
            )
        self.optimizer.zero_grad()
        loss.backward()
        norms = [w.grad.norm() for w in self.weights.values() if w.grad is not None]
        left = 1 - step / self.steps
        for group, name in zip(self.optimizer.param_groups, self.weights, strict=True):
            group["lr"] = self.rates[name] * left
        self.optimizer.step()
        watched = self._watch() if (step + 1) % self.every == 0 else (None, None)
        self.logs.append(
            StepLog(
                step=step,
                epoch=round((step + 1) * len(chosen) / len(self.learnt.sets), 4),
                loss=loss.item(),
                negative_loss=float(at_negatives.losses.mean()) / self.params.negative_weight,
                kept_loss=opened.item(),
                corrected_loss=0.0,
                negative_mass=float(at_negatives.log_probs.exp().mean()),
                gradient_norm=float(torch.stack(norms).norm()),
                learning_rate=self.patch.learning_rate * left,
                validation_loss=watched[0],
                validation_divergence=watched[1],
            )
        )

    def _losses(
        self, loss: LossParams, now: Neurons, features: Features, sets: Sequence[list[int]]
    ) -> Fused:
        """Return the losses of some positions; the ones without a set are kept."""
        hidden = self.site.hidden(features, now.added(features.inputs))
        with torch.no_grad():
            original = self.site.hidden(features, torch.zeros_like(features.outputs))
        largest = max(map(len, sets), default=0) or 1
        rows = [s + (s[:1] or [0]) * (largest - len(s)) for s in sets]
        filled = torch.tensor(rows, dtype=torch.long)
        excluded = filled.to(hidden.device).view(len(sets), largest)
        negative = torch.tensor([bool(s) for s in sets], dtype=torch.bool, device=hidden.device)
        return fused_losses(
            loss, hidden, self.head, original, self.head, excluded[:, 0], negative,
            excluded=excluded, normaliser=max(1, len(sets)),
        )  # fmt: skip

    def _watch(self) -> tuple[float, float]:
        """Return the loss at negative positions, and the divergence at kept ones, of the watched.

        Where no neuron fires nothing moved, and nothing is computed.
        """
        now, watched = self.neurons(), self.watched
        with torch.no_grad():
            loss = self._losses(self.params, now, watched.negative, watched.sets).total
            fired = now.activations(watched.kept.inputs).any(-1)
            moved = self._losses(MOVED, now, watched.kept[fired], [[]] * int(fired.sum())).losses
        return float(loss), float(moved.sum()) / max(1, len(watched.kept))

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {}
        for name, weight in self.weights.items():
            state[name] = weight.detach()
            moments = self.optimizer.state[weight]
            state |= {f"{name}.{key}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
        lines = {"logs": json.dumps([asdict(line) for line in self.logs])}
        with complete(self.checkpoint) as partial:
            save_file({name: tensor.cpu() for name, tensor in state.items()}, partial, lines)

    def _load(self) -> None:
        """Go on from the checkpoint; one that cannot be read is left alone, and overwritten."""
        try:
            with safe_open(self.checkpoint, framework="pt") as file:
                logs = [StepLog(**line) for line in json.loads(file.metadata()["logs"])]
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return
        self.logs = logs
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state[name])
                self.optimizer.state[weight] = {
                    "step": torch.tensor(float(len(logs))),
                    **{key: state[f"{name}.{key}"].to(weight) for key in ("exp_avg", "exp_avg_sq")},
                }
