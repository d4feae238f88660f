"""Two-layer models with random weights, and masked rows for them."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from tnt.core.records import Mask

EOS = 2


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": EOS,
}
"""The size of a model of any family."""


def llama(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {**SMALL, "max_position_embeddings": 64, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def t5(seed=0):
    """Return a T5 with the attention that `models.load` gives it."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=EOS,
    )
    model = T5ForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    return model


def row(index, prompt_ids, completion_ids, negative=()):
    """Return a mask whose tokens are all kept, except the negative ones."""
    flagged = [i in negative for i in range(len(completion_ids))]
    kept = [not flag for flag in flagged]
    return Mask(f"p/{index}", 0, list(prompt_ids), list(completion_ids), flagged, kept)


def rows(count, *, flagged=(), seed=0):
    """Return random rows of uneven length; the second token of those in `flagged` is negative."""
    generator = torch.Generator().manual_seed(seed)

    def ids(longest):
        length = int(torch.randint(2, longest, (1,), generator=generator))
        return torch.randint(3, 64, (length,), generator=generator).tolist()

    return [row(i, ids(9), ids(12), [1] if i in flagged else []) for i in range(count)]


def greedy_rows(count, *, flagged=()):
    """Return `rows` of `llama` with what it generates itself, eight tokens each."""
    prompts = [mask.prompt_ids for mask in rows(count)]
    model = llama()
    made = []
    for i, prompt_ids in enumerate(prompts):
        output = model.generate(
            input_ids=torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
        )
        completion_ids = output[0, len(prompt_ids) :].tolist()
        made.append(row(i, prompt_ids, completion_ids, [1] if i in flagged else []))
    return made
