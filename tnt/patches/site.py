"""Where a patch goes: a model's last MLP, and what stands between it and the LM head.

Nothing downstream reads the last MLP. So what is added to its output changes the logits of its own
position and nothing else: no key, no value, no later hidden state.

Legend: T positions, d width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

ALTERNATIVE = "Set train.patch to null, and train.lora instead."


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The names that a family of architectures has for the parts; `{last}` is the last layer."""

    mlp: str
    """Module that holds the matrices: the MLP, or the layer itself."""
    norm: str
    """What stands before the LM head."""
    into: tuple[str, ...]
    """Matrices of the first half, in `mlp`: gate and up, both in one, or the only one."""
    out: str
    """Matrix of the second half."""
    gated: bool
    """Whether what comes in is multiplied by a gate."""
    layers: str
    """The list of layers."""
    size: str
    """What the config calls the number of neurons."""
    post: str | None = None
    """A norm over the MLP's output, where the residual is added after it."""
    parts: bool = False
    """Whether the MLP has no module of its own: its halves stand in the layer."""


_LLAMA = Layout(
    mlp="model.layers.{last}.mlp", norm="model.norm", into=("gate_proj", "up_proj"),
    out="down_proj", gated=True, layers="model.layers", size="intermediate_size",
)  # fmt: skip
_T5 = Layout(
    mlp="decoder.block.{last}.layer.2.DenseReluDense", norm="decoder.final_layer_norm",
    into=("wi",), out="wo", gated=False, layers="decoder.block", size="d_ff",
)  # fmt: skip
LAYOUTS = {
    "Gemma 2 and 3, OLMo 2": replace(_LLAMA, post="model.layers.{last}.post_feedforward_layernorm"),
    "Llama, Mistral, Qwen 2 and 3, Gemma, SmolLM": _LLAMA,
    "Phi-3": replace(_LLAMA, into=("gate_up_proj",)),
    "GPT-2": Layout(
        mlp="transformer.h.{last}.mlp", norm="transformer.ln_f", into=("c_fc",), out="c_proj",
        gated=False, layers="transformer.h", size="n_inner",
    ),
    "GPT-NeoX": Layout(
        mlp="gpt_neox.layers.{last}.mlp", norm="gpt_neox.final_layer_norm",
        into=("dense_h_to_4h",), out="dense_4h_to_h", gated=False, layers="gpt_neox.layers",
        size="intermediate_size",
    ),
    "OPT": Layout(
        mlp="model.decoder.layers.{last}", norm="model.decoder.final_layer_norm", into=("fc1",),
        out="fc2", gated=False, layers="model.decoder.layers", size="ffn_dim", parts=True,
    ),
    "T5 v1.1": replace(_T5, into=("wi_0", "wi_1"), gated=True),
    "T5": _T5,
}  # fmt: skip
"""Families of architectures; the first whose modules a model has is taken for its own."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a model's last MLP is given and what comes after it, at some positions."""

    inputs: Tensor
    """What enters the last MLP, after its norm: u, [T, d]."""
    outputs: Tensor
    """What the last MLP gives, [T, d]."""
    stream: Tensor
    """The residual stream that enters the final norm: h, [T, d]."""

    def __getitem__(self, rows: Any) -> Features:
        """Return some of the positions."""
        return Features(self.inputs[rows], self.outputs[rows], self.stream[rows])

    def split(self, lengths: Sequence[int]) -> list[Features]:
        """Return the features in parts of these lengths."""
        parts = (torch.split(getattr(self, name), [*lengths]) for name in self.__slots__)
        return [Features(*part) for part in zip(*parts, strict=True)]

    def to(self, like: Tensor) -> Features:
        """Return the features in another tensor's precision, and where that is."""
        return Features(*(getattr(self, name).to(like) for name in self.__slots__))

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.inputs)


@dataclass(frozen=True, slots=True)
class Site:
    """A model's last MLP."""

    layout: Layout
    entry: Any
    """The module that the MLP's input enters."""
    exit: Any
    """The module that the MLP's output leaves."""
    biased: bool
    """Whether the matrices of the first half have biases."""
    norm: Any
    post: Any | None
    scale: float
    """Of what enters the LM head, after the norm."""

    def hidden(self, features: Features, added: Tensor) -> Tensor:
        """Return what enters the LM head when `added` is added to the MLP's output, [T, d]."""
        stream = features.stream
        if self.post is None:
            moved = stream + added
        else:
            moved = stream + (self.post(features.outputs + added) - self.post(features.outputs))
        hidden: Tensor = self.norm(moved)
        return hidden if self.scale == 1 else hidden * self.scale


def site_of(model: Any) -> Site:
    """Return where a patch goes in a model.

    Raises:
        ValueError: The architecture has no single last MLP whose output only the LM head sees.
    """
    for layout in LAYOUTS.values():
        found = _found(model, layout)
        if found is not None:
            return found
    raise ValueError(
        f"{type(model).__name__} has no single last MLP that a patch could stand beside: its "
        f"layers are none of those known here ({', '.join(LAYOUTS)}). {ALTERNATIVE}"
    )


def _found(model: Any, layout: Layout) -> Site | None:
    """Return the site if the model has all of a layout's modules."""
    try:
        last = len(model.get_submodule(layout.layers)) - 1
        mlp = model.get_submodule(layout.mlp.format(last=last))
        halves = [mlp.get_submodule(name) for name in (*layout.into, layout.out)]
        norm = model.get_submodule(layout.norm)
        post = model.get_submodule(layout.post.format(last=last)) if layout.post else None
    except (AttributeError, TypeError):
        return None
    config = model.config
    return Site(
        layout=layout,
        entry=halves[0] if layout.parts else mlp,
        exit=halves[-1] if layout.parts else mlp,
        biased=halves[0].bias is not None,
        norm=norm,
        post=post,
        scale=config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0,
    )


@contextlib.contextmanager
def watched(site: Site) -> Iterator[dict[str, Tensor]]:
    """Yield what the last pass of the model had at the site: `inputs`, `outputs`, `stream`.

    The outputs are those of the model as it is, its patches included.
    """
    seen: dict[str, Tensor] = {}

    def keep_inputs(_: Any, given: tuple[Tensor, ...]) -> None:
        seen["inputs"] = given[0]

    def keep_outputs(_: Any, __: Any, output: Tensor) -> None:
        seen["outputs"] = output

    def keep_stream(_: Any, given: tuple[Tensor, ...]) -> None:
        seen["stream"] = given[0]

    handles = [
        site.entry.register_forward_pre_hook(keep_inputs),
        site.exit.register_forward_hook(keep_outputs),
        site.norm.register_forward_pre_hook(keep_stream),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def refuse_unlike(model: Any, site: Site, given: dict[str, Any]) -> None:
    """Raise unless a change of the last MLP does to the model what `Site.hidden` says.

    Args:
        model: In evaluation mode.
        site: Its own.
        given: What the model is called with.
    """
    head, entered = model.get_output_embeddings(), []
    watch = head.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad(), watched(site) as seen:
            model(**given, use_cache=False)
            as_it_is = Features(**{name: x.flatten(0, -2) for name, x in seen.items()})
            added = torch.randn(as_it_is.outputs.shape, generator=generator).to(as_it_is.outputs)
            added *= as_it_is.outputs.std()
            change = site.exit.register_forward_hook(
                lambda _, __, output: output + added.view_as(output)
            )
            try:
                model(**given, use_cache=False)
            finally:
                change.remove()
            expected = site.hidden(as_it_is, added)
    finally:
        watch.remove()
    found = entered[-1].flatten(0, -2)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ValueError(
            f"{type(model).__name__} does more after its last MLP than is known here, so a patch "
            f"cannot be trained beside it. {ALTERNATIVE}"
        )
