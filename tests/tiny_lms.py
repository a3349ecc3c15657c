"""A tiny random decoder of any kind that transformers knows."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 128


def tiny_config(kind, **settings):
    base = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind == "mixtral":
        base |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    if kind == "qwen3_moe":
        base |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    if kind in ("glm4", "qwen3", "qwen3_moe"):
        base["head_dim"] = 8
    return AutoConfig.for_model(kind, **(base | settings))


def tiny_lm(kind="llama", attention="sdpa", **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(tiny_config(kind, **settings), attn_implementation=attention).float()
