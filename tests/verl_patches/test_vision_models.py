"""Text pairs on vision-language checkpoints, as verl patches their forward passes."""

import textwrap
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny import make_tokenizer
from transformers import AutoConfig

from verl_aiops import missing
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.dpo.pairs import pair_batch
from verl_aiops.trainers.logprobs import LOGPROB_BACKENDS
from verl_aiops.trainers.logprobs.support import SHARED_PROMPT_MODELS, why_not_shared
from verl_aiops.trainers.preflight.offline import check_vision

TEXT = {
    **{"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0},
    "initializer_range": 0.2,
}
THREE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
QWEN = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
CLIP = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MODELS = {
    "gemma3": (TEXT, CLIP),
    "glm4v": (TEXT | THREE, QWEN),
    "internvl": (TEXT | {"model_type": "qwen2"}, CLIP),
    "llava": (TEXT | {"model_type": "llama"}, CLIP | {"model_type": "clip_vision_model"}),
    "mistral3": (TEXT | {"model_type": "mistral"}, CLIP | {"model_type": "pixtral"}),
    "qwen2_5_vl": (TEXT | THREE, QWEN),
    "qwen2_vl": (TEXT | THREE, {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32}),
    "qwen3_5": (
        TEXT | THREE | DELTA | {"layer_types": ["linear_attention", "full_attention"]},
        QWEN | {"deepstack_visual_indexes": []},
    ),
    "qwen3_vl": (TEXT | THREE, QWEN | {"deepstack_visual_indexes": []}),
    "smolvlm": (TEXT | {"model_type": "llama"}, CLIP),
}
PAIRS = [
    {
        **{
            "prompt_ids": torch.arange(5, end),
            "chosen_ids": torch.arange(20, 26),
            "rejected_ids": torch.arange(30, 35),
        },
        **{"chosen_mask": torch.ones(6), "rejected_mask": torch.ones(5), "weight": 1.0},
    }
    for end in (15, 40)
]


def model_of(kind):
    from verl.utils.model import get_hf_auto_model_class

    text, vision = MODELS[kind]
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision)
    config.architectures = ["AnyForConditionalGeneration"]
    torch.manual_seed(0)
    return get_hf_auto_model_class(hf_config=config).from_config(config, attn_implementation="sdpa").float().eval()


@pytest.fixture
def unpatched():
    """verl patches classes: as they were, afterwards."""
    from transformers.models.glm4v import modeling_glm4v
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
    from transformers.models.qwen2_vl import modeling_qwen2_vl
    from transformers.models.qwen3_5 import modeling_qwen3_5
    from transformers.models.qwen3_vl import modeling_qwen3_vl

    kept = []
    for module in (modeling_glm4v, modeling_qwen2_5_vl, modeling_qwen2_vl, modeling_qwen3_5, modeling_qwen3_vl):
        kept += [
            (c, dict(vars(c))) for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__
        ]
    yield
    for cls, attributes in kept:
        for name, value in attributes.items():
            if callable(value) and vars(cls).get(name) is not value:
                setattr(cls, name, value)


def exact(model):
    rows = []
    for p in PAIRS:
        for answer in (p["chosen_ids"], p["rejected_ids"]):
            logits = model(input_ids=torch.cat([p["prompt_ids"], answer])[None]).logits[0, -len(answer) - 1 : -1]
            rows.append(logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1))
    return torch.cat(rows)


@pytest.mark.parametrize("kind", MODELS)
def test_text_pairs_go_through_the_language_model(kind, unpatched):
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    model = model_of(kind)
    expected = exact(model)
    apply_monkey_patch(model, use_remove_padding=False)
    model.train()  # no dropout in any of them; some want more arguments
    for packed in (False, True):
        batch = pair_batch(PAIRS, mini_pairs=2)
        got = LOGPROB_BACKENDS["rows"](model, batch, packed=packed, device="cpu").values()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    got.sum().backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any("embed_tokens" in name for name in names) and not any("vision" in name for name in names)


@pytest.mark.parametrize(
    "kind, alone", [("gemma3", "Gemma3ForCausalLM"), ("llava", "LlamaForCausalLM"), ("qwen2_5_vl", None)]
)
def test_shared_prompts_are_those_of_the_language_model_in_a_folder_of_its_own(kind, alone):
    config = OmegaConf.create({"actor_rollout_ref": {"model": {}, "actor": {"fsdp_config": {}}}})
    said = why_not_shared(model_of(kind).config, config)
    if alone is None:
        assert said == f"models of type '{kind}' have not been compared with it"
    else:
        assert said.startswith(f"models of type '{kind}' are vision-language models") and f"({alone})" in said


def test_gemmas_language_model_comes_out_of_the_folder_as_the_docs_say(tmp_path):
    from transformers import AutoModelForCausalLM

    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    start = page.index("    from transformers import AutoModelForImageTextToText")
    code = textwrap.dedent(page[start : page.index("\n\n", page.index("\n    whole = "))])
    whole = model_of("gemma3")
    whole.save_pretrained(tmp_path / "whole")
    make_tokenizer().save_pretrained(tmp_path / "whole")
    exec(code, {"folder": str(tmp_path / "whole"), "out": str(tmp_path / "text")})
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    assert text.config.model_type == "gemma3_text" and text.config.model_type in SHARED_PROMPT_MODELS
    assert not any("vision" in name for name, _ in text.named_parameters())
    torch.testing.assert_close(exact(text), exact(whole), rtol=0, atol=1e-5)
    assert (tmp_path / "text" / "tokenizer.json").exists()


@pytest.mark.parametrize("kind", ["gemma3", "llava"])
def test_adapters_are_merged_into_the_whole_checkpoint(kind, tmp_path):
    from peft import LoraConfig, get_peft_model

    from verl_aiops.models.folders import _merge_adapter

    model = model_of(kind)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(tmp_path)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    expected = exact(adapted)
    adapted.save_pretrained(tmp_path / "lora_adapter")
    _merge_adapter(str(tmp_path), False)
    merged = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(exact(merged), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "glm4v"])
def test_where_verls_patch_is_another_such_models_are_refused_before_ray(kind, tmp_path, monkeypatch):
    model_of(kind).config.save_pretrained(tmp_path)
    config = OmegaConf.create(
        {
            "actor_rollout_ref": {
                "model": {"path": str(tmp_path), "trust_remote_code": False},
                "actor": {"ulysses_sequence_parallel_size": 1},
            }
        }
    )
    check_vision(config)
    name = "text rows of GLM-4V" if kind == "glm4v" else "text rows of Qwen2-VL"
    with monkeypatch.context() as patched:
        patched.setitem(missing.MISSING, name, "AttributeError: no _get_input_embeds")
        with pytest.raises(ConfigError, match="no _get_input_embeds.*train a model of text alone"):
            check_vision(config)
    config.actor_rollout_ref.actor.ulysses_sequence_parallel_size = 2
    with pytest.raises(ConfigError, match="vision-language model .*ulysses_sequence_parallel_size=1"):
        check_vision(config)


def test_the_rollout_hf_refuses_what_it_cannot_generate_with_before_ray(tmp_path):
    from hydra import compose, initialize_config_module

    from verl_aiops.rollout.hf.limits import unsupported

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["actor_rollout_ref.rollout.name=hf"]).actor_rollout_ref
    config.model.path = str(tmp_path)
    before = unsupported(config.rollout, config.model)
    model_of("qwen2_5_vl").config.save_pretrained(tmp_path)
    (said,) = set(unsupported(config.rollout, config.model)) - set(before)
    assert "no causal language model of type qwen2_5_vl" in said and "sglang or vllm" in said


def test_verls_own_steps_still_go_through_the_vision_tower():
    """The reason for the replacement; when transformers' output has a mean again, it can go."""
    from verl.models.transformers import glm4v, qwen2_vl

    for module in (glm4v, qwen2_vl):
        theirs = module._get_input_embeds.__wrapped__
        assert theirs.__module__ == module.__name__
    with pytest.raises(AttributeError, match="'mean'"):
        qwen2_vl._get_input_embeds(model_of("qwen2_5_vl").model, torch.tensor([[5, 6, 7]]))
