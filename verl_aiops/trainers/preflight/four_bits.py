"""Adapters on a base in four bits (QLoRA): whether this run can have them, and what they take."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from verl_aiops.files import size_text
from verl_aiops.kernels.four_bits import BYTES, FORMATS, layers_for_four_bits, why_not
from verl_aiops.trainers.preflight.checks import Run

__all__ = ["BASE_FORMAT", "asked", "check_four_bits", "refuse_elsewhere"]

_MODEL, _ACTOR = "actor_rollout_ref.model", "actor_rollout_ref.actor"
BASE_FORMAT = f"{_MODEL}.lora.base_format"
_CRITIC = "critic.model.lora.base_format"
_WHERE = "offline DPO (and KTO, ranked answers, ...) and reward models"
# what moves weights about, or changes them, in ways that layers of four bits do not stand
_OFF = {
    f"{_ACTOR}.fsdp_config.param_offload": "the base takes little enough to stay",
    f"{_ACTOR}.fsdp_config.offload_policy": "the base takes little enough to stay",
    f"{_ACTOR}.fsdp_config.use_torch_compile": "products of four bits are not compiled",
    f"{_ACTOR}.fsdp_config.qat.enable": "it trains quantised weights, which are frozen here",
    f"{_MODEL}.enable_activation_offload": "verl's needs FSDP, which a base in four bits does without",
    f"{_MODEL}.use_liger": "untried with products of four bits",
}


def asked(config: DictConfig) -> bool:
    return bool(OmegaConf.select(config, BASE_FORMAT))


def refuse_elsewhere(config: DictConfig, run: Run | None = None) -> list[str]:
    """Of a run whose trainer would load a whole base, and say nothing."""
    keys = [key for key in (BASE_FORMAT, _CRITIC) if OmegaConf.select(config, key)]
    return [
        f"{key}={OmegaConf.select(config, key)}: adapters on a base in four bits are trained by {_WHERE}, and not in "
        f"this run. Remove {key}."
        for key in keys
    ]


def check_four_bits(config: DictConfig, run: Run) -> list[str]:
    """After the defaults, the adapter and the model folder."""
    if not asked(config):
        return []
    value = OmegaConf.select(config, BASE_FORMAT)
    start = f"{BASE_FORMAT}={value}"
    if value not in FORMATS:
        return [f"{start}: expected one of {', '.join(FORMATS)}, or null for a base as it is."]
    if why := why_not():
        return [f"{start}: {why}; or remove the setting, for LoRA on whole weights."]
    faults = []
    if not config.actor_rollout_ref.model.lora_rank:
        faults.append(f"{start}: a base in four bits is frozen. Set {_MODEL}.lora_rank, 16 or so.")
    workers = config.trainer.n_gpus_per_node * config.trainer.nnodes
    if workers > 1:
        faults.append(
            f"{start} with {workers} workers: layers of four bits are not shared out. Set trainer.n_gpus_per_node=1 "
            "and trainer.nnodes=1, or remove the setting, for LoRA on whole weights."
        )
    for key, reason in _OFF.items():
        if OmegaConf.select(config, key):
            faults.append(f"{start} with {key}={OmegaConf.select(config, key)}: {reason}. Set it to False.")
    dtype = str(OmegaConf.select(config, f"{_ACTOR}.fsdp_config.mixed_precision.param_dtype") or "bf16")
    if dtype in ("fp16", "float16"):
        faults.append(f"{start} with {_ACTOR}.fsdp_config.mixed_precision.param_dtype={dtype}: set bf16 or fp32.")
    if "hf_model" in (OmegaConf.select(config, f"{_ACTOR}.checkpoint.save_contents") or ()):
        faults.append(
            f"{start} with {_ACTOR}.checkpoint.save_contents naming hf_model, which verl writes of whole weights. "
            "Remove it: the model is written at the end, and `verl-aiops eval` and others read checkpoints as they are."
        )
    return faults + _check_layers(config, run, start)


def _check_layers(config: DictConfig, run: Run, start: str) -> list[str]:
    """That most of the model is in layers that can be kept in four bits, and what the base takes then."""
    import torch
    from transformers import AutoConfig

    from verl_aiops.seam.engine import get_hf_auto_model_class

    section = config.actor_rollout_ref.model
    code, instead = {"trust_remote_code": section.trust_remote_code}, "Remove the setting, for LoRA on whole weights."
    try:
        kind = AutoConfig.from_pretrained(section.path, **code)
        with torch.device("meta"):
            model = get_hf_auto_model_class(hf_config=kind).from_config(kind, **code)
    except Exception:  # what keeps it from being loaded is told by those who need it
        return []
    if getattr(kind, "vision_config", None) is not None:
        return [f"{start}: untried with vision-language models ({kind.model_type}). {instead}"]
    every = sum(p.numel() for p in model.parameters())
    small = sum(layer.weight.numel() for layer in layers_for_four_bits(model).values())
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    # one tensor where they are tied
    words = sum({id(p): p.numel() for end in ends if end is not None for p in end.parameters()}.values())
    # a mixture's experts stand in tensors of their own, which are no linear layers
    if small < every - words - small:
        return [
            f"{start}: of {every:,} weights of {section.path} {small:,} are in linear layers, and the rest would stay "
            f"as they are ({kind.model_type}). {instead}"
        ]
    width = 4 if "32" in str(config.actor_rollout_ref.actor.fsdp_config.model_dtype) else 2
    size = size_text(int(small * BYTES + (every - small) * width))
    run.lines.append(f"{start}  ({small:,} of {every:,} weights of the base in four bits: it takes {size})")
    return []
