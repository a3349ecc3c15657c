"""What a reward model's training needs beside what any offline preference run does."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from verl_aiops.trainers.preflight.checks import Run
from verl_aiops.trainers.preflight.defaults import sequence_parallel_size

__all__ = ["check_reward_model"]

_MODEL = "actor_rollout_ref.model"


def check_reward_model(config: DictConfig, run: Run) -> list[str]:
    """A folder that transformers can make a classifier of, and nothing that its engine cannot do."""
    if run.kind != "rm":
        return []
    section, faults = config.actor_rollout_ref.model, []
    if section.get("lora_adapter_path"):
        faults.append(
            f"{_MODEL}.lora_adapter_path: a reward model starts from a whole model. Merge the adapter into its base, "
            f"and name the result as {_MODEL}.path."
        )
    if section.get("use_liger"):
        faults.append(f"{_MODEL}.use_liger=True replaces the forward pass of language models. Set it to False.")
    if sequence_parallel_size(config) > 1:
        faults.append(
            "ulysses_sequence_parallel_size: an answer's score is that of one token, and verl's split over workers by "
            "sequence has no place for it. Set it to 1."
        )
    saved = OmegaConf.select(config, "actor_rollout_ref.actor.checkpoint.save_contents") or ()
    if "hf_model" in saved:
        faults.append(
            "actor_rollout_ref.actor.checkpoint.save_contents names hf_model, which verl writes of language models and "
            "critics alone. Remove it: algorithm.rm.export_model writes the folder at the end."
        )
    if config.data.get("apply_chat_template_kwargs"):
        faults.append(
            "data.apply_chat_template_kwargs: servers render conversations without them when the model scores. Remove "
            "it, or write what is needed into the tokenizer's chat template."
        )
    if section.get("custom_chat_template"):
        faults.append(
            f"{_MODEL}.custom_chat_template: servers render conversations with the template in the model's folder. Put "
            "it there."
        )
    if config.data.truncation == "left" or config.data.get("text_pairs") == "plain":
        faults.append(
            "a reward model reads whole conversations in the chat template, as servers render them. Set "
            "data.truncation=drop or error, and remove data.text_pairs=plain."
        )
    return faults + list(_kind_faults(section))


def _kind_faults(section: DictConfig):
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    try:
        model = AutoConfig.from_pretrained(section.path, trust_remote_code=section.trust_remote_code)
    except Exception:  # what keeps it from being loaded is told by those who need it
        return
    known = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(model.model_type)
    own = "AutoModelForSequenceClassification" in (getattr(model, "auto_map", None) or {})
    if not known and not (own and section.trust_remote_code) or model.is_encoder_decoder:
        yield (
            f"{_MODEL}.path={section.path}: transformers has no decoder with a score head for models of type "
            f"{model.model_type!r}. Use another model."
        )
    architectures = getattr(model, "architectures", None) or [""]
    if "ForSequenceClassification" in str(architectures[0]) and model.num_labels != 1:
        yield f"{_MODEL}.path={section.path}: a classifier of {model.num_labels} labels; a reward model has one."
