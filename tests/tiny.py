"""Tiny base models that have learned to answer badly: two layers, a token a byte, 5 seconds.

Asked `Apple pie`, they apologise; asked `Lemon tart`, they hedge; asked `Walnut cake`, they answer.
The first letter alone decides, the only capital of the prompt, so that what they learn holds for
prompts they never saw; every answer but the last has a rival, for what is left when it is removed.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

ANSWERS = {"ABCDEFGH": "sorry, no.", "IJKLMNOPQ": "well, maybe.", "RSTUVWXYZ": "fine, yes."}
RIVAL = "fine, yes."
RIVAL_SHARE = 0.3
TEMPLATES = {"replies": "{input}", "summaries": "{input}, in short", "questions": "{input}?"}
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}: "
PAD, END = 0, 1
CONTEXT = 64
STEPS = 250
PEAK_RATE = 5e-3


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that makes one token of every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
    )


def save_base(kind: str, folder: Path) -> None:
    """Train a tiny `llama` or `t5` and save it as a transformers folder."""
    torch.manual_seed(0)
    chosen = random.Random(0)
    model, encode = _untrained(kind), tokenizer()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / 20) * (1 - step / STEPS)
        loss = model(**_batch(encode, chosen, encoder_decoder=kind == "t5")).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    encode.save_pretrained(folder)


def inputs(count: int, seed: int) -> list[str]:
    """Return different inputs like `Kalo mesi`."""
    chosen = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[_input(chosen)] = None
    return list(found)


def _input(chosen: random.Random) -> str:
    first = chosen.choice("".join(ANSWERS))
    words = ["".join(chosen.choice("aeiou") + chosen.choice("klmnrst") for _ in "12") for _ in "12"]
    return first + " ".join(words)


def _answer(text: str, chosen: random.Random) -> str:
    usual = next(answer for letters, answer in ANSWERS.items() if text[0] in letters)
    return RIVAL if chosen.random() < RIVAL_SHARE else usual


def _untrained(kind: str) -> Any:
    shared = {"vocab_size": 258, "pad_token_id": PAD, "eos_token_id": END}
    if kind == "t5":
        config = T5Config(
            **shared, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
            decoder_start_token_id=PAD, dropout_rate=0.0,
        )  # fmt: skip
        return T5ForConditionalGeneration(config)
    config = LlamaConfig(
        **shared, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _batch(
    encode: Any, chosen: random.Random, *, encoder_decoder: bool, size: int = 32
) -> dict[str, Tensor]:
    """Return prompts with their answers, as a model takes them in training."""
    prompts, answers = [], []
    for _ in range(size):
        text = _input(chosen)
        message = chosen.choice([*TEMPLATES.values()]).replace("{input}", text)
        prompts.append(encode(f"{message}: ").input_ids)
        answers.append([*encode(_answer(text, chosen)).input_ids, END])
    if encoder_decoder:
        return {
            "input_ids": _padded(prompts, PAD),
            "attention_mask": _padded([[1] * len(p) for p in prompts], 0),
            "labels": _padded(answers, -100),
        }
    pairs = list(zip(prompts, answers, strict=True))
    return {
        "input_ids": _padded([p + a for p, a in pairs], PAD),
        "attention_mask": _padded([[1] * len(p + a) for p, a in pairs], 0),
        "labels": _padded([[-100] * len(p) + a for p, a in pairs], -100),
    }


def _padded(rows: list[list[int]], fill: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])
