"""The exact benchmark's arithmetic, by hand, and a whole run of it on a tiny language."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import exact
import pytest
import torch
import toy
from toy import END, TOKENS, Models, Nodes, Tree, Unwanted

from tnt.losses.params import LossParams
from tnt.losses.table import token_losses

ROOT = Path(__file__).parents[2]


def random_conditionals(tree, seeds=2):
    generator = torch.Generator().manual_seed(0)
    shape = seeds, len(tree.prefixes), len(TOKENS)
    return torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1)


def table(tree, rows):
    """Conditionals from {prefix: {token: probability}}; other prefixes end at once."""
    found = torch.zeros(1, len(tree.prefixes), len(TOKENS), dtype=torch.float64)
    found[..., END] = 1.0
    for prefix, row in rows.items():
        number = tree.prefixes.index(prefix)
        found[0, number] = torch.tensor([row.get(token, 0.0) for token in TOKENS])
    return found.log()


def test_a_distribution_sums_to_1():
    tree = Tree(4)
    completions = tree.completions(random_conditionals(tree))
    assert completions.shape[1] == sum(7**n for n in range(4)) + 7**4
    torch.testing.assert_close(completions.exp().sum(-1), torch.ones(2, dtype=torch.float64))


def test_sums_over_completions_give_the_conditionals_back():
    tree = Tree(4)
    log_probs = random_conditionals(tree)
    passing = tree.sums(tree.completions(log_probs).exp())
    torch.testing.assert_close(passing.sum(-1), tree.log_reach(log_probs).exp())
    torch.testing.assert_close(passing / passing.sum(-1, keepdim=True), log_probs.exp())


def test_the_token_ideal_rescales_what_is_left():
    tree = Tree(1)
    original = table(tree, {"": {"a": 0.4, "d": 0.3, "b": 0.2, "c": 0.1}})
    ideal = toy.token_ideal(original, Unwanted.of(tree, ["token"])).exp()
    expected = {"a": 4 / 7, "b": 2 / 7, "c": 1 / 7}
    assert ideal[0, 0].tolist() == pytest.approx([expected.get(t, 0.0) for t in TOKENS])


def test_the_ideals_differ_where_a_prefix_changes_the_chance_of_a_flag():
    tree = Tree(2)
    rows = {"": {"a": 0.5, "b": 0.5}, "a": {"d": 0.9, ".": 0.1}, "b": {".": 1.0}}
    original, unwanted = table(tree, rows), Unwanted.of(tree, ["token"])
    token = toy.token_ideal(original, unwanted)
    sequence = toy.sequence_ideal(tree, original, unwanted)
    # P(a) = 0.5 * 0.1 / (0.5 * 0.1 + 0.5), and 1/2: METHOD's example.
    assert token[0, 0].exp()[0].item() == pytest.approx(1 / 2)
    assert sequence[0, 0].exp()[0].item() == pytest.approx(1 / 11)


@pytest.mark.parametrize("behaviours", [["token"], ["pair"], ["context"], list(toy.BEHAVIOURS)])
def test_an_ideal_is_at_no_distance_from_itself(behaviours):
    tree = Tree(4)
    original, unwanted = random_conditionals(tree), Unwanted.of(tree, behaviours)
    ideals = {
        "token": toy.token_ideal(original, unwanted),
        "sequence": toy.sequence_ideal(tree, original, unwanted),
    }
    zero = {
        "token": ("unwanted", "moved", "token_forward_kl", "token_reverse_kl"),
        "sequence": (
            "unwanted", "moved_completions", "sequence_forward_kl", "sequence_reverse_kl",
        ),
    }  # fmt: skip
    for name, ideal in ideals.items():
        found = toy.distances(tree, ideal, original, unwanted)
        for distance in zero[name]:
            assert found[distance].abs().max() < 1e-12, (name, distance)
        assert torch.isfinite(torch.stack([*found.values()])).all()


def test_divergence_from_an_ideal_is_infinite_where_unwanted_mass_is_left():
    tree = Tree(3)
    original, unwanted = random_conditionals(tree), Unwanted.of(tree, ["pair"])
    ideal = tree.completions(toy.token_ideal(original, unwanted))
    assert toy.kl(tree.completions(original), ideal).tolist() == [math.inf, math.inf]
    assert torch.isfinite(toy.kl(ideal, tree.completions(original))).all()


@pytest.mark.parametrize(
    ("behaviour", "completion", "flag"),
    [
        ("token", "adad", 1),
        ("pair", "bcbc", 1),
        ("pair", "cbac", None),
        ("context", "ebae", 3),
        ("context", "eebe", None),
        ("repeat", "abb.", 2),
        ("short", "a.", 1),
        ("short", ".", None),
    ],
)
def test_the_first_token_that_completes_the_unwanted_is_flagged(behaviour, completion, flag):
    tree = Tree(4)
    flagged = Unwanted.of(tree, [behaviour]).flagged
    at = [
        bool(flagged[tree.prefixes.index(completion[:i]), TOKENS.index(token)])
        for i, token in enumerate(completion)
    ]
    assert at == [i == flag for i in range(len(completion))]


def test_removing_one_thing_after_another_is_removing_both():
    tree = Tree(4)
    original = random_conditionals(tree)
    first, second, both = (
        Unwanted.of(tree, names) for names in (["token"], ["pair"], ["token", "pair"])
    )
    joint = tree.completions(toy.token_ideal(original, both))
    for a, b in ((first, second), (second, first)):
        ended = tree.completions(toy.token_ideal(toy.token_ideal(original, a), b))
        torch.testing.assert_close(ended.exp(), joint.exp())


def test_a_prefix_has_the_same_logits_in_every_tree():
    tree = Tree(4)
    models = Models([0, 1], tree.length)
    wanted = torch.zeros(2, len(tree.prefixes), dtype=torch.bool)
    for seed, completion in enumerate(("abc", "ggg")):
        wanted[seed, [tree.prefixes.index(completion[:n]) for n in range(4)]] = True
    wanted[0, tree.prefixes.index("f")] = True  # one node more than the other seed has
    nodes, node = Nodes.of(tree, wanted)
    found, whole = models(nodes), models(Nodes.all(tree, 2))
    for seed, prefix in wanted.nonzero().tolist():
        torch.testing.assert_close(found[seed, node[seed, prefix]], whole[seed, prefix])


def test_a_seed_is_the_same_alone():
    tree = Tree(3)
    together = Models([3, 4], tree.length)(Nodes.all(tree, 2))[1:]
    torch.testing.assert_close(Models([4], tree.length)(Nodes.all(tree, 1)), together)


@pytest.mark.parametrize("loss", sorted({*exact.VARIANTS} - {exact.POOLED}))
def test_weighted_rows_give_the_loss_of_the_samples_one_by_one(loss):
    tree, behaviour = Tree(3), "pair"
    unwanted = Unwanted.of(tree, [behaviour])
    original = random_conditionals(tree, 1)
    generator = torch.Generator().manual_seed(1)
    said = torch.multinomial(tree.completions(original)[0].exp(), 60, True, generator=generator)
    samples = torch.bincount(said, minlength=len(unwanted.completions))[None].double()
    rows = exact.Rows.of(tree, samples, unwanted, loss)
    models = Models([7], tree.length)

    texts = [
        prefix + token
        for prefix, row in zip(tree.prefixes, tree.ends.tolist(), strict=True)
        for token, ends in zip(TOKENS, row, strict=True)
        if ends
    ]
    logits = models(Nodes.all(tree, 1))[0]
    prefixes, tokens, negative = [], [], []
    for text in (texts[i] for i in said):
        at = text.find("bc")
        if loss == "sft_clean" and at >= 0:
            continue
        for place in range(len(text) if at < 0 else at + 2):  # the flag is at `c`
            prefixes.append(tree.prefixes.index(text[:place]))
            tokens.append(TOKENS.index(text[place]))
            negative.append(at >= 0 and place == at + 1)
    assert loss == "sft_clean" or any(negative)
    losses = token_losses(
        LossParams(loss=loss, negative_weight=3.0),
        logits[prefixes],
        original[0, prefixes],
        torch.tensor(tokens),
        torch.tensor(negative),
    )
    found = rows.losses(models, original.float(), loss, 3.0).sum()
    torch.testing.assert_close(found, losses.mean())
    one_by_one = torch.autograd.grad(losses.mean(), models.tokens, retain_graph=True)
    torch.testing.assert_close(
        torch.autograd.grad(found, models.tokens), one_by_one, atol=1e-6, rtol=1e-4
    )


def test_pooled_flags_count_for_every_sample_of_a_prefix():
    tree = Tree(2)
    original = table(tree, {"": {"a": 0.5, "d": 0.3, "b": 0.2}}).clamp(min=-30)
    unwanted = Unwanted.of(tree, ["token"])
    samples = tree.completions(original).exp()
    rows = exact.Rows.of(tree, samples, unwanted, exact.POOLED)
    at_start = rows.prefix == 0
    assert rows.negative[at_start].any(-1).all()
    assert rows.negative[at_start][:, TOKENS.index("d")].all()


@pytest.mark.parametrize("loss", ["tnff", "tnrr"])
@pytest.mark.parametrize("behaviour", ["token", "pair"])
def test_the_limit_is_where_the_gradient_of_endless_samples_is_0(loss, behaviour):
    tree, weight = Tree(3), 10.0
    original, unwanted = random_conditionals(tree, 1), Unwanted.of(tree, [behaviour])
    rows = exact.Rows.of(tree, tree.completions(original).exp(), unwanted, loss)

    def largest_gradient(log_probs):
        leaf = log_probs.clone().requires_grad_()
        losses = token_losses(
            LossParams(loss=loss, negative_weight=weight),
            leaf[rows.seed, rows.prefix],
            original[rows.seed, rows.prefix],
            rows.token,
            rows.negative,
        )
        (gradient,) = torch.autograd.grad((losses * rows.share).sum(), leaf)
        return gradient.abs().max()

    assert largest_gradient(exact.limit(loss, original, unwanted, weight)) < 1e-7
    assert largest_gradient(original) > 1e-3


def test_without_flags_nothing_moves():
    parts = exact.Parts(exact.QUICK, lambda *_, **__: 1.0)
    nothing = Unwanted.of(parts.tree, [])
    updated = parts.update(parts.base, nothing, "tnff", 10.0, count=20)
    for before, after in zip(parts.base.parameters(), updated.parameters(), strict=True):
        assert torch.equal(before, after)


def test_a_quick_run_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/evidence.md", tmp_path / "docs")
    results = tmp_path / "benchmarks/results/exact"
    command = ["exact.py", "--quick", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    exact.main()
    named = sorted([*results.glob("*.csv"), *(tmp_path / "docs").rglob("*.svg")])
    first = {path.name: path.read_text() for path in named if path.stem != "seconds"}
    assert {"grid.csv", "orders.csv", "exact_tradeoff.svg"} <= first.keys()
    (results / "orders.csv").unlink()
    lines = (results / "longer.csv").read_text().splitlines(keepends=True)
    of_a_cell = len(exact.QUICK.seeds) * len([c for c in (*exact.CHECKS, 12) if c <= 12])
    assert len(lines) == 1 + of_a_cell * len(exact.VARIANTS)
    (results / "longer.csv").write_text("".join(lines[:-of_a_cell]))
    monkeypatch.setattr(exact, "document", lambda *_: None)
    exact.main()
    for path in named:
        if path.suffix == ".csv" and path.stem != "seconds":
            assert path.read_text() == first[path.name], path.name


def test_the_best_weight_is_the_one_that_could_have_been_stopped_nearest(tmp_path):
    results = exact.Results(tmp_path)
    distances = {(1.0, 5): 0.3, (1.0, 10): 0.2, (10.0, 5): 0.1, (10.0, 10): 0.9}
    results.rows["grid"] = [
        {
            "loss": "ul",
            "behaviour": "pair",
            "negative_weight": str(weight),
            "step": str(step),
            "token_forward_kl": str(distance),
        }
        for (weight, step), distance in distances.items()
    ]
    assert results.best("ul", ["pair"], early=True) == 10.0
    assert results.best("ul", ["pair"], early=False) == 1.0


def test_results_of_another_setup_are_not_mixed_in(tmp_path):
    exact.Results(tmp_path).belong_to(exact.QUICK)
    exact.Results(tmp_path).belong_to(exact.QUICK)
    with pytest.raises(ValueError, match="another setup"):
        exact.Results(tmp_path).belong_to(exact.Setup())
