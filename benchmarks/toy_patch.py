"""A patch beside the toy models' last MLP, trained by the product's own code, for `exact.py`.

Each prefix that a rollout of the token ideal passes is one position: negative with all unwanted
tokens that were drawn and banned there, else kept. So the same prefix never is both, and what is
left of the distance to the ideal is what the gates cannot tell apart, and what no draw showed.

Legend: S seeds, P prefixes, V tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import rms_norm
from toy import Models, Nodes, Tree, Unwanted, token_ideal

from tnt.losses.heads import Head
from tnt.patches.neurons import Neurons
from tnt.patches.site import LAYOUTS, Features, Site
from tnt.training import patch
from tnt.training.params import PatchParams, TrainParams
from tnt.training.patch import Positions


def site() -> Site:
    """Return the toy models' last MLP: plain, like GPT-2's, with biases for the neurons alone."""
    return Site(
        layout=LAYOUTS["GPT-2"],
        entry=None,
        exit=None,
        biased=True,
        norm=lambda x: rms_norm(x, x.shape[-1:]),
        post=None,
        scale=1.0,
    )


def drawn_bans(
    tree: Tree, original: Tensor, unwanted: Unwanted, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return which prefixes `count` rollouts pass, [P], and what was banned there, [P, V] bool.

    Args:
        tree: All prefixes.
        original: Log-probabilities of one seed, [P, V].
        unwanted: What is flagged.
        count: Rollouts.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    ideal = tree.completions(token_ideal(original[None], unwanted))[0].exp()
    drawn = torch.multinomial(ideal, count, replacement=True, generator=generator)
    counts = torch.bincount(drawn, minlength=len(ideal)).double()
    passed = tree.sums(counts[None])[0].sum(-1)
    # A rollout draws from the original at each prefix; what is flagged is banned, and drawn again.
    never = (1 - original.exp()).pow(passed[:, None])
    banned = torch.rand(never.shape, generator=generator, dtype=never.dtype) > never
    return passed > 0, banned & unwanted.flagged & (passed > 0)[:, None]


def patched(
    tree: Tree,
    models: Models,
    every_prefix: Nodes,
    original: Tensor,
    unwanted: Unwanted,
    *,
    count: int,
    hinge: float,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for each seed, a patched model's logits [P, V], and where a gate is open, [P].

    Args:
        tree: All prefixes.
        models: The originals.
        every_prefix: What they read.
        original: Their log-probabilities, [S, P, V].
        unwanted: What is flagged.
        count: Rollouts that the patch learns from.
        hinge: `train.patch.hinge`.
    """
    with torch.no_grad():
        parts = models.last_mlp(every_prefix)
    for seed, (inputs, outputs, stream) in enumerate(zip(*parts, strict=True)):
        features = Features(inputs, outputs, stream)
        passed, banned = drawn_bans(tree, original[seed], unwanted, count, seed)
        negative = banned.any(-1)
        sets = [row.nonzero()[:, 0].tolist() for row in banned[negative]]
        learnt = Positions(features[negative], sets, features[passed & ~negative])
        head = Head(models.head[seed].T.detach())
        neurons = _trained(learnt, head, hinge, seed)
        with torch.no_grad():
            hidden = site().hidden(features, neurons.added(inputs))
            yield head.logits(hidden), (neurons.reached(inputs) > 0).any(-1)


def _trained(learnt: Positions, head: Head, hinge: float, seed: int) -> Neurons:
    params = TrainParams(loss="tnff", seed=seed, patch=PatchParams(hinge=hinge))
    with tempfile.TemporaryDirectory() as folder:
        neurons, _ = patch.train(site(), head, learnt, learnt, params, workdir=Path(folder))
    return neurons
