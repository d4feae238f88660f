"""What the loss itself holds, by vocabulary and by tokens: ours stays flat where naive grows.

    .venv/bin/python benchmarks/memory.py [--json]

From hidden states and two LM heads to a loss and its gradients, each measurement in a process of
its own: the peak above what is there before, less the gradients that are returned. `ours` is
`tnt.losses.fused`; `naive` forms the logits of all tokens and hands them to `token_losses` of
`tnt.losses.table`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from train_step import FREE_AT_ONCE, memory

VARIANTS = ("naive", "ours")
VOCABULARIES = (8_192, 32_768, 131_072, 262_144)
TOKENS = (128, 512, 2_048)
FIXED = {"vocabulary": 32_768, "tokens": 512}
"""What the one is while the other varies."""
WIDTH = 64


def held(variant: str, vocabulary: int, tokens: int) -> int:
    """Return the bytes, measured in this process."""
    import torch

    from tnt.losses.fused import fused_losses
    from tnt.losses.heads import Head
    from tnt.losses.params import LossParams
    from tnt.losses.table import token_losses

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def step(vocabulary: int, tokens: int) -> int:
        hidden = values(tokens, WIDTH).requires_grad_()
        weight = values(vocabulary, WIDTH).requires_grad_()
        original = values(tokens, WIDTH), values(vocabulary, WIDTH)
        token_ids = torch.randint(vocabulary, (tokens,), generator=generator)
        negative = torch.arange(tokens) % 16 == 0
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        rest = memory("VmRSS")
        if variant == "ours":
            heads = Head(weight), original[0], Head(original[1])
            fused_losses(
                LossParams(loss="tnff"), hidden, *heads, token_ids, negative
            ).total.backward()
        else:
            logits, of_original = hidden @ weight.T, original[0] @ original[1].T
            token_losses(
                LossParams(loss="tnff"), logits, of_original, token_ids, negative
            ).sum().backward()
        assert hidden.grad is not None
        assert weight.grad is not None
        return memory("VmHWM") - rest - hidden.grad.nbytes - weight.grad.nbytes

    step(64, 8)  # what is loaded and allocated once
    return step(vocabulary, tokens)


def measured(variant: str, vocabulary: int, tokens: int) -> int:
    """Return the bytes, measured in a process of its own."""
    command = [sys.executable, __file__, "--work", variant, str(vocabulary), str(tokens)]
    environment = {**os.environ, **FREE_AT_ONCE, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.work:
        variant, vocabulary, tokens = given.work
        print(held(variant, int(vocabulary), int(tokens)))
        return
    found: dict[str, dict[str, dict[int, float]]] = {}
    for name, sizes in (("vocabulary", VOCABULARIES), ("tokens", TOKENS)):
        found[name] = {
            variant: {
                size: round(measured(variant, **{**FIXED, name: size}) / 2**20, 1) for size in sizes
            }
            for variant in VARIANTS
        }
    if given.json:
        print(json.dumps(found))
        return
    for name, by_variant in found.items():
        other = " and ".join(f"{what} {size:,}" for what, size in FIXED.items() if what != name)
        print(f"MiB held by {name}, {other}")
        for variant, by_size in by_variant.items():
            cells = "".join(f"{size:>10,}: {value:>7,.1f}" for size, value in by_size.items())
            print(f"  {variant:<6}{cells}")


if __name__ == "__main__":
    main()
