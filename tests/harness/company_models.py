"""Tiny models in which a row could be changed by those beside it."""

from tiny_lms import tiny_lm

EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


SHARED = {"shared_expert_intermediate_size": 16, "shared_intermediate_size": 16}


DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}


MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}


RECURRENT = {
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {**MAMBA, **EXPERTS, **SHARED, "layer_types": ["mamba", "attention"]},
    "jamba": {**EXPERTS, "mamba_d_state": 8, "attn_layer_offset": 1, "attn_layer_period": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 8, "attention": "eager"},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8, "attention": "eager"},
    "minimax": {**EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 16, "head_dim": 8},
    "qwen3_5_text": {**DELTA, "layer_types": ["linear_attention", "full_attention"], "head_dim": 8},
    "qwen3_next": {
        **{**DELTA, **EXPERTS, **SHARED, "head_dim": 8},
        "layer_types": ["linear_attention", "full_attention"],
    },
    "recurrent_gemma": {"lru_width": 32, "num_hidden_layers": 3, "attention": "eager"},
    "rwkv": {"attention_hidden_size": 32, "context_length": 512, "attention": "eager"},
}


LIMIT = 24


LONGROPE = {
    "rope_type": "longrope",
    **{"rope_theta": 10000.0, "partial_rotary_factor": 1.0, "original_max_position_embeddings": LIMIT},
    **{"short_factor": [1.0] * 4, "long_factor": [3.0] * 4},
}


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


ROTARY = {
    "longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": LIMIT}),
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": LIMIT}),
}


def model_of(name):
    if name in ROTARY:
        kind, settings = ROTARY[name]
        return tiny_lm(kind, **settings).eval()
    return tiny_lm(name, **RECURRENT.get(name, {})).eval()
