"""A tiny random model of each family of architectures that a patch can stand beside."""

from __future__ import annotations

import torch
import transformers
from random_models import SMALL

SEEN_BY_T5 = {
    "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": ("Llama", SMALL),
    "llama-biased": ("Llama", {**SMALL, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("Mistral", SMALL),
    "qwen2": ("Qwen2", SMALL),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 8}),
    "gemma": ("Gemma", {**SMALL, "head_dim": 8}),
    "gemma2": ("Gemma2", {**SMALL, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3Text", {**SMALL, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3", SMALL),
    "olmo2": ("Olmo2", SMALL),
    "gpt2": ("GPT2", {
        "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2,
    }),
    "neox": ("GPTNeoX", SMALL),
    "opt": ("OPT", {
        "vocab_size": 64, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32,
        "init_std": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }),
    "t5": ("T5", SEEN_BY_T5),
    "t5-v1.1": ("T5", {
        **SEEN_BY_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    }),
}  # fmt: skip
"""Name -> what transformers calls its classes, and a config."""


def tiny(name, seed=0):
    """Return a random model of a family, in evaluation mode."""
    torch.manual_seed(seed)
    kind, settings = FAMILIES[name]
    config = getattr(transformers, f"{kind}Config")(**settings)
    ends = {"T5": "ForConditionalGeneration", "GPT2": "LMHeadModel", "Gemma3Text": None}
    ending = ends.get(kind, "ForCausalLM")
    model = getattr(transformers, f"{kind}{ending}" if ending else "Gemma3ForCausalLM")(config)
    with torch.no_grad():  # norms with weights and biases of their own, as trained models have
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn(weight.shape))
    return model.eval()
