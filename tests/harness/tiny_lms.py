"""A tiny random decoder of any kind that transformers knows."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from verl_aiops.platform.attention import plain_attention

VOCABULARY = 128

_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_EXPERTS |= {"shared_expert_intermediate_size": 16}
_ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
# keys and values from one latent vector
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_LATENT |= {"num_key_value_heads": 4}
_HEADS = {"head_dim": 8}
_OF_KIND = {
    "deepseek_v2": _EXPERTS | _ROUTED | _LATENT,
    "deepseek_v3": _EXPERTS | _ROUTED | _LATENT,
    "dots1": _EXPERTS | _ROUTED | _HEADS,
    "ernie4_5_moe": _EXPERTS | {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    "exaone_moe": _EXPERTS | _HEADS,
    "flex_olmo": _EXPERTS,
    "glm4_moe": _EXPERTS | _ROUTED | _HEADS,
    "glm4_moe_lite": _EXPERTS | _ROUTED | _LATENT,
    "hunyuan_v1_moe": _EXPERTS | _HEADS | {"moe_topk": 2},
    "minimax_m2": _EXPERTS | _HEADS,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, **_HEADS},
    "solar_open": _EXPERTS | _ROUTED | _HEADS,
    "youtu": _LATENT,
    # as far from doing nothing as these can be set
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3},
    "cohere2_moe": _EXPERTS | {"logit_scale": 0.3},
    "gemma2": _HEADS | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
    "gpt_oss": _HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {"logits_scaling": 3.0},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 3.0},
    "granitemoeshared": {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 3.0},
    "hyperclovax": {"logits_scaling": 0.3},
    "nanochat": {"final_logit_softcapping": 2.0},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "seed_oss": {"attention_dropout": 0.0, "residual_dropout": 0.0},
    "vaultgemma": _HEADS | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
    **dict.fromkeys(("cwm", "ernie4_5", "exaone4", "gemma", "gemma3_text", "glm", "glm4", "helium"), _HEADS),
    **dict.fromkeys(("hunyuan_v1_dense", "ministral", "ministral3", "qwen3"), _HEADS),
}


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
    base |= _OF_KIND.get(kind, {})
    return AutoConfig.for_model(kind, **(base | settings))


def tiny_lm(kind="llama", attention=None, **settings):
    """``attention``: transformers' implementation, default that of a model of this kind without flash-attn."""
    config = tiny_config(kind, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = attention or plain_attention(config)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()
