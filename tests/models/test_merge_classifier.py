"""A reward model's checkpoint as a folder of transformers: the adapter in its weights, the trained score head kept."""

import json

import torch
from safetensors.torch import save_file
from tiny_lms import tiny_config
from transformers import AutoModelForSequenceClassification

from verl_aiops.models.folders import _merge_adapter
from verl_aiops.models.merger import is_classifier


def test_an_adapter_is_merged_into_a_classifier(tmp_path):
    model = AutoModelForSequenceClassification.from_config(tiny_config("llama", num_labels=1)).float()
    model.save_pretrained(tmp_path)
    adapter = tmp_path / "lora_adapter"
    adapter.mkdir()
    # as verl's merger writes it
    named = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(named))
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    size = model.config.hidden_size
    a, b = torch.randn(2, size), torch.randn(size, 2)
    save_file({f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    _merge_adapter(str(tmp_path), trust_remote_code=False)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    before, after = (m.model.layers[0].self_attn.q_proj.weight for m in (model, merged))
    torch.testing.assert_close(after, before + 2.0 * b @ a)
    torch.testing.assert_close(merged.score.weight, model.score.weight)


def test_a_classifier_is_told_by_its_architecture():
    assert is_classifier(["LlamaForSequenceClassification"])
    assert not is_classifier(["LlamaForTokenClassification"]) and not is_classifier(None)
