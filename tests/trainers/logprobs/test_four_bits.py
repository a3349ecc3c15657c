"""Adapters on 4-bit weights: shared prompts give what rows give. Skipped without bitsandbytes."""

import pytest
import torch
from logprob_pairs import assert_same
from tiny_lms import tiny_lm

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_shared_prompts_and_rows_give_the_same_on_a_base_of_four_bits(kind, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny_lm(kind, hidden_size=64, intermediate_size=64, num_key_value_heads=4).save_pretrained(tmp_path)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=four_bits, dtype=torch.float32)
    if kind == "gemma2":
        base.set_attn_implementation("eager")
    linear = base.model.layers[0].self_attn.q_proj
    assert isinstance(linear, bitsandbytes.nn.Linear4bit) and linear.weight.dtype == torch.uint8
    torch.manual_seed(3)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert_same(model)
