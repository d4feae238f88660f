"""A language so small that a model's whole distribution over completions fits in one array.

Seven tokens and an end, completions of at most five tokens, no prompt: 2,801 prefixes and 19,608
completions. A completion either ends with `.` or is cut off at the last place. A model is a table
of conditionals, one row per prefix; from it follow, without sampling, the probability of every
completion, both ideals of the method, and the distance of any model from them.

Several models are worked on side by side, one per seed: they share nothing but the arrays.

Legend: S seeds, P prefixes, V = 8 tokens, L the longest completion.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, rms_norm

from tnt.losses.targets import target_log_probs

TOKENS = "abcdefg."
END = TOKENS.index(".")
START = len(TOKENS)
"""What stands for the empty prefix in the model's embeddings."""


@dataclass(frozen=True)
class Tree:
    """All prefixes of completions of up to `length` tokens; token t leads from i to 7 i + t + 1."""

    length: int = 5

    @cached_property
    def prefixes(self) -> list[str]:
        """Every prefix that a token may follow, shortest first, [P]."""
        places = range(self.length)
        return ["".join(p) for n in places for p in itertools.product(TOKENS[:END], repeat=n)]

    @cached_property
    def levels(self) -> list[slice]:
        """Where the prefixes of each length are."""
        ends = [*itertools.accumulate(END**n for n in range(self.length))]
        return [slice(end - END**n, end) for n, end in enumerate(ends)]

    @cached_property
    def depth(self) -> Tensor:
        """Length of each prefix, [P]."""
        return torch.tensor([len(prefix) for prefix in self.prefixes])

    @cached_property
    def path(self) -> Tensor:
        """The prefixes on the way to each prefix, itself last, then the empty one, [P, L]."""
        number = {prefix: i for i, prefix in enumerate(self.prefixes)}
        ways = ([number[p[:n]] for n in range(len(p) + 1)] for p in self.prefixes)
        return torch.tensor([way + [0] * (self.length - len(way)) for way in ways])

    @cached_property
    def last(self) -> Tensor:
        """Last token of each prefix, [P]."""
        return torch.tensor([TOKENS.index(p[-1]) if p else START for p in self.prefixes])

    @cached_property
    def ends(self) -> Tensor:
        """Whether a completion ends with a token at a prefix, [P, V]."""
        ends = torch.zeros(len(self.prefixes), len(TOKENS), dtype=torch.bool)
        ends[:, END] = True
        ends[self.levels[-1]] = True
        return ends

    def log_reach(self, log_probs: Tensor) -> Tensor:
        """Return the log-probability of passing each prefix, [S, P, V] -> [S, P]."""
        found = [log_probs.new_zeros(len(log_probs), 1)]
        for level in self.levels[:-1]:
            found.append((found[-1][..., None] + log_probs[:, level, :END]).flatten(1))
        return torch.cat(found, 1)

    def completions(self, log_probs: Tensor) -> Tensor:
        """Return the log-probability of every completion, [S, completions]."""
        return (self.log_reach(log_probs)[..., None] + log_probs)[:, self.ends]

    def sums(self, completions: Tensor) -> Tensor:
        """Return, of numbers given for each completion, the sum over those that pass, [S, P, V]."""
        found = completions.new_zeros(len(completions), *self.ends.shape)
        found[:, self.ends] = completions
        for level, below in reversed([*itertools.pairwise(self.levels)]):
            passing = found[:, below].sum(-1)
            found[:, level, :END] = passing.unflatten(1, (-1, END))
        return found


# What is unwanted.

BEHAVIOURS: dict[str, Callable[[str, str], bool]] = {
    "token": lambda prefix, token: token == "d",
    "pair": lambda prefix, token: token == "c" and prefix.endswith("b"),
    "context": lambda prefix, token: token == "e" and "a" in prefix,
    "repeat": lambda prefix, token: token == prefix[-1:],
    "short": lambda prefix, token: token == "." and len(prefix) == 1,
}
"""Whether a token, at a prefix, completes what is unwanted; the last two serve the five rounds."""


@dataclass(frozen=True)
class Unwanted:
    """What is flagged: the token that completes the first unwanted thing of a completion."""

    flagged: Tensor
    """[P, V]."""
    clean: Tensor
    """Prefixes without a flag, [P]."""
    completions: Tensor
    """Completions with one, [completions]."""

    @classmethod
    def of(cls, tree: Tree, behaviours: Sequence[str]) -> Unwanted:
        """Return what several behaviours flag together."""
        rules = [BEHAVIOURS[name] for name in behaviours]
        completes = torch.tensor(
            [[any(rule(p, t) for rule in rules) for t in TOKENS] for p in tree.prefixes]
        )
        clean = [torch.ones(1, dtype=torch.bool)]
        for level in tree.levels[:-1]:
            clean.append((clean[-1][:, None] & ~completes[level, :END]).flatten())
        passed = torch.cat(clean)
        return cls(completes & passed[:, None], passed, (completes | ~passed[:, None])[tree.ends])


def token_ideal(original: Tensor, unwanted: Unwanted) -> Tensor:
    """Return the original without the tokens flagged at each prefix, rescaled, [S, P, V]."""
    flagged = unwanted.flagged.expand(original.shape)
    return target_log_probs(original.flatten(0, 1), flagged.flatten(0, 1)).view_as(original)


def sequence_ideal(tree: Tree, original: Tensor, unwanted: Unwanted) -> Tensor:
    """Return the original given that the whole completion is clean, as conditionals, [S, P, V].

    Where no completion is clean any more, the conditionals are those of the original.
    """
    clean = tree.completions(original).exp().masked_fill(unwanted.completions, 0.0)
    passing = tree.sums(clean)
    log_probs = (passing / passing.sum(-1, keepdim=True)).log()
    return torch.where(unwanted.clean[:, None], log_probs, original)


# How far one distribution is from another; all return one number per seed.


def kl(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first || second) of log-probabilities [S, n], infinite where it is."""
    terms = torch.where(torch.isneginf(first), 0.0, first.exp() * (first - second))
    return terms.sum(-1)


def total_variation(first: Tensor, second: Tensor) -> Tensor:
    """Return half the summed difference of probabilities, given in logs, [S, n] -> [S]."""
    return (first.exp() - second.exp()).abs().sum(-1) / 2


def distances(
    tree: Tree, updated: Tensor, original: Tensor, unwanted: Unwanted
) -> dict[str, Tensor]:
    """Return everything that is reported of an updated model, from conditionals [S, P, V].

    - `unwanted`: probability of a completion with a flag
    - `moved`: total variation between updated and original next-token distributions, both without
      the flagged tokens and rescaled, averaged over the clean prefixes that the original passes:
      0 for the token ideal
    - `moved_completions`: total variation between the two distributions over completions, both
      given that the completion is clean: 0 for the sequence ideal
    - `token_forward_kl`, `sequence_forward_kl`: KL(ideal || updated)
    - `token_reverse_kl`, `sequence_reverse_kl`: KL(updated || ideal). It is infinite where unwanted
      mass is left, however little, so this one is of the updated model given a clean completion.
    """
    ours, theirs = tree.completions(updated), tree.completions(original)
    bad = unwanted.completions

    def given_clean(log_probs: Tensor) -> Tensor:
        return log_probs.masked_fill(bad, -torch.inf).log_softmax(-1)

    reach = tree.log_reach(original).masked_fill(~unwanted.clean, -torch.inf).softmax(-1)
    by_prefix = total_variation(token_ideal(updated, unwanted), token_ideal(original, unwanted))
    found = {
        "unwanted": ours.exp().masked_fill(~bad, 0.0).sum(-1),
        "moved": (reach * by_prefix).sum(-1),
        "moved_completions": total_variation(given_clean(ours), given_clean(theirs)),
    }
    ideals = {
        "token": tree.completions(token_ideal(original, unwanted)),
        "sequence": given_clean(theirs),
    }
    for name, ideal in ideals.items():
        found[f"{name}_forward_kl"] = kl(ideal, ours)
        found[f"{name}_reverse_kl"] = kl(given_clean(ours), ideal)
    return found


# The language that the originals learn.

_FOLLOWS = {
    "": {"a": 6, "b": 4, "c": 3, "f": 3, "g": 2, "d": 1},
    "a": {"b": 5, "c": 3, "e": 3, "d": 2, "f": 1},
    "b": {"c": 5, "d": 3, "g": 3, "b": 2, "a": 1},
    "c": {"e": 4, "a": 3, "f": 3, "d": 1, "c": 1},
    "d": {"f": 4, "e": 3, "g": 2, "b": 1},
    "e": {"g": 4, "e": 2, "c": 2, "f": 1, "d": 1},
    "f": {"a": 3, "g": 3, "b": 3, "e": 2, "d": 1},
    "g": {"f": 3, "g": 2, "d": 3, "a": 2, "e": 1},
}


def grammar(tree: Tree) -> Tensor:
    """Return the grammar's conditionals, [P, V].

    A token depends on the one before, on the first (`a` calls for `e`, `b` for `g`, for as long
    as the completion lasts), on whether `c` has been said (then rather not again), and on the
    place (an end grows likelier). Every token is possible everywhere.
    """
    rows = []
    for prefix in tree.prefixes:
        row = dict.fromkeys(TOKENS, 0.05) | _FOLLOWS[prefix[-1:]]
        row["."] = 0.05 if not prefix else len(prefix)
        for first, called in (("a", "e"), ("b", "g")):
            if prefix.startswith(first):
                row[called] *= 3
        if "c" in prefix:
            row["c"] *= 0.2
        rows.append([row[token] for token in TOKENS])
    return torch.tensor(rows, dtype=torch.float64).log().log_softmax(-1)


# The models.


@dataclass(frozen=True)
class Nodes:
    """Prefixes that go through the models together, each one once; with one, all on its way."""

    last: Tensor
    """Last token, [S, n]."""
    depth: Tensor
    """Length, [S, n]."""
    path: Tensor
    """Which nodes of the same seed are on the way to a node, itself last, [S, n, L]."""

    @classmethod
    def of(cls, tree: Tree, wanted: Tensor) -> tuple[Nodes, Tensor]:
        """Return the nodes of the prefixes in [S, P] bool, and each prefix's node, [S, P]."""
        node = wanted.long().cumsum(-1) - 1
        size = int(wanted.sum(-1).max())
        # Seeds with fewer prefixes are filled up with the empty one, which nobody asks for.
        chosen = torch.stack(
            [
                torch.cat([w.nonzero()[:, 0], w.new_zeros(size - int(w.sum())).long()])
                for w in wanted
            ]
        )
        path = torch.stack([n[tree.path[c]] for n, c in zip(node, chosen, strict=True)])
        return cls(tree.last[chosen], tree.depth[chosen], path), node

    @classmethod
    def all(cls, tree: Tree, seeds: int) -> Nodes:
        """Return every prefix, in the tree's order."""
        every = torch.ones(seeds, len(tree.prefixes), dtype=torch.bool)
        return cls.of(tree, every)[0]


class Models(nn.Module):
    """Causal transformers side by side, one per seed, that read a tree of prefixes at once.

    A prefix attends to the prefixes on the way to it, so each is computed once, however many
    completions pass it. Every tensor has the seeds in front: no gradient crosses over.
    """

    def __init__(
        self, seeds: Sequence[int], length: int, width: int = 32, heads: int = 2, layers: int = 2
    ) -> None:
        """Draw weights; a seed's own do not depend on which others there are."""
        super().__init__()
        self.heads = heads
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def weight(rows: int, columns: int, scale: float) -> nn.Parameter:
            drawn = [torch.randn(rows, columns, generator=g) * scale for g in generators]
            return nn.Parameter(torch.stack(drawn))

        even = width**-0.5
        self.tokens = weight(len(TOKENS) + 1, width, 1.0)
        self.places = weight(length, width, 1.0)
        self.layers = nn.ModuleList(
            nn.ParameterDict(
                {
                    "attend": weight(width, 3 * width, even),
                    "join": weight(width, width, even / 2),
                    "up": weight(width, 2 * width, even),
                    "down": weight(2 * width, width, even / 2),
                }
            )
            for _ in range(layers)
        )
        self.head = weight(width, len(TOKENS), even / 2)

    def forward(self, nodes: Nodes) -> Tensor:
        """Return the logits of the token that follows each prefix, [S, n, V]."""
        return _normed(self.last_mlp(nodes)[-1]) @ self.head

    def last_mlp(self, nodes: Nodes) -> tuple[Tensor, Tensor, Tensor]:
        """Return what enters the last MLP, what it gives, and the stream after it, [S, n, d]."""
        x = _rows(self.tokens, nodes.last) + _rows(self.places, nodes.depth)
        beyond = torch.arange(nodes.path.shape[-1]) > nodes.depth[..., None]
        for layer in self.layers:
            query, key, value = (_normed(x) @ layer["attend"]).chunk(3, -1)
            keys, values = (self._split(_rows(each, nodes.path)) for each in (key, value))
            scores = (self._split(query)[:, :, None] * keys).sum(-1)
            scores = scores * keys.shape[-1] ** -0.5
            weights = scores.masked_fill(beyond[..., None], -torch.inf).softmax(2)
            x = x + (weights[..., None] * values).sum(2).flatten(-2) @ layer["join"]
            entering = _normed(x)
            given = gelu(entering @ layer["up"]) @ layer["down"]
            x = x + given
        return entering, given, x

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


def _normed(x: Tensor) -> Tensor:
    return rms_norm(x, x.shape[-1:])


def _rows(table: Tensor, numbers: Tensor) -> Tensor:
    """Return rows of each seed's own table, [S, n, d] and [S, ...] -> [S, ..., d]."""
    seeds = torch.arange(len(table)).view(-1, *[1] * (numbers.ndim - 1))
    return embedding(numbers + seeds * table.shape[1], table.flatten(0, 1))
