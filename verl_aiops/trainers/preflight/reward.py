"""What a reward model and its combination with a rule need, checked and completed before Ray starts."""

from __future__ import annotations

import json
import os

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_aiops.rewards.model.combined import CombinedSettings
from verl_aiops.trainers.preflight.defaults import REWARD_MODEL_DEFAULTS, apply_defaults

__all__ = ["COMBINED", "prepare_reward_model", "verl_has_rule"]

COMBINED = "aiops_combined"
TRIAGE_RULE = "pkg://verl_aiops.rewards.aiops_mturn"
VERL_RULE = "pkg://verl.utils.reward_score"
NO_RULE = "pkg://verl_aiops.rewards.model.combined"


def prepare_reward_model(config: DictConfig, given: set[str]) -> tuple[list[str], list[str]]:
    """Complete ``reward.*`` in place.

    Returns:
        one line per key that was filled in, and one sentence per thing that cannot work.
    """
    model = config.reward.reward_model
    lines = apply_defaults(config, given, REWARD_MODEL_DEFAULTS) if model.enable else []
    if faults := _code_faults(config):
        return lines, faults  # nothing of these folders is to be loaded
    if config.reward.reward_manager.name != COMBINED:
        return lines, _without_combination(config)
    faults = []
    settings = None
    try:
        settings = CombinedSettings.from_config(config)
    except ValueError as error:
        faults.append(str(error))
    if settings is not None and settings.uses_rm and not model.enable:
        faults.append(
            f"reward.combined.mode={settings.mode} needs a reward model: set reward.reward_model.enable=True and "
            "reward.reward_model.model_path, or reward.combined.mode=rule_only."
        )
    if model.enable:
        faults += _model_faults(config, settings)
    more, rule_faults = _choose_rule(config, settings)
    return lines + more, faults + rule_faults


def _code_faults(config: DictConfig) -> list[str]:
    """Folders whose tokenizer comes with code: verl's reward loop loads it with ``trust_remote_code=True``, whatever
    the settings say (``verl.experimental.reward_loop.reward_loop``, verl 0.9).
    """
    policy, reward = config.actor_rollout_ref.model, config.reward.reward_model
    if policy.trust_remote_code:
        return []
    places = {"actor_rollout_ref.model.path": policy.tokenizer_path or policy.path}
    if reward.enable:
        places["reward.reward_model.model_path"] = reward.model_path
    return [
        f"{key}={path}: its {file} names code of its own (auto_map), which verl's reward loop would run although "
        "actor_rollout_ref.model.trust_remote_code is False. If you trust that code, set it to True; else take the "
        "auto_map out of the file."
        for key, path in places.items()
        if path and (file := _names_code(os.path.expanduser(str(path))))
    ]


def _names_code(folder: str) -> str | None:
    """The file of a local model folder that says which code loads it."""
    for name in ("tokenizer_config.json", "config.json"):
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                if json.load(file).get("auto_map"):
                    return name
        except (OSError, ValueError, AttributeError, RecursionError):
            continue  # the loader says what is wrong with it
    return None


def _without_combination(config: DictConfig) -> list[str]:
    """What verl makes of a reward model by itself."""
    model, manager = config.reward.reward_model, config.reward.reward_manager.name
    path = config.reward.custom_reward_function.path
    mend = "reward.reward_manager.name=aiops_combined (reward.combined.mode: weighted, gated, rm_only, ...)"
    if not model.enable:
        return []
    if path is not None:
        unused = "aiops_mturn" in path  # a function of the user's own may well ask the server
        said = f"reward.reward_model.enable=True: the rule {path} would never ask the reward model. Set {mend}."
        return [said] if unused else []
    if manager == "aiops_mturn":
        return [
            "reward.reward_model.enable=True: verl would score with the reward model alone and never call the reward "
            f"manager {manager}. Set {mend}."
        ]
    if model.rollout.name == "hf":
        return [f"reward.reward_model.rollout.name=hf: verl itself asks vLLM and SGLang only. Set {mend}."]
    if model.enable_resource_pool:
        return [
            "reward.reward_model.enable_resource_pool=True: verl 0.9 fails with KeyError: 'reward_extra_info' when it "
            f"scores answers with the reward model alone as they come. Set {mend}."
        ]
    return []


def _model_faults(config: DictConfig, settings: CombinedSettings | None) -> list[str]:
    from verl_aiops.rewards.model.client import ENDPOINTS

    model = config.reward.reward_model
    if not model.model_path:
        return ["reward.reward_model.model_path is not set: a folder written by verl-aiops train-rm, or a hub name."]
    faults = []
    server = None if OmegaConf.is_missing(model.rollout, "name") else model.rollout.name
    if server not in ENDPOINTS:
        faults.append(f"reward.reward_model.rollout.name={server}: expected one of {', '.join(ENDPOINTS)}.")
    if model.enable_resource_pool and model.rollout.free_cache_engine:
        faults.append(
            "reward.reward_model.rollout.free_cache_engine=True with reward.reward_model.enable_resource_pool=True: "
            "verl puts the reward model to sleep at start and wakes only one on the trainer's devices. Set "
            "free_cache_engine to False."
        )
    if server == "hf":
        from verl_aiops.rollout.hf.limits import check_reward_server

        faults += check_reward_server(config)
    if settings is not None and settings.uses_rm:
        try:
            settings.first_moments(os.path.expanduser(model.model_path))
        except ValueError as error:
            faults.append(str(error))
    return faults + _tokenizer_faults(config)


def _tokenizer_faults(config: DictConfig) -> list[str]:
    """Whether the model's tokenizer can render a conversation, and how long one may be."""
    from transformers import AutoTokenizer

    from verl_aiops.rewards.model.client import longest_input

    model = config.reward.reward_model
    path = os.path.expanduser(model.model_path)
    trusted = bool(OmegaConf.select(config, "actor_rollout_ref.model.trust_remote_code"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trusted)
    except Exception as error:  # whatever a folder or hub name without a tokenizer raises
        return [f"reward.reward_model.model_path={model.model_path}: its tokenizer cannot be loaded: {error}"]
    if not tokenizer.chat_template:
        return [
            f"reward.reward_model.model_path={model.model_path}: its tokenizer has no chat template, by which answers "
            "are put before the model."
        ]
    room = longest_input(path, model.rollout.max_model_len, trusted)
    longest = config.data.max_prompt_length + config.data.max_response_length
    if room is not None and room < longest:
        return [
            f"the reward model takes {room} tokens (reward.reward_model.rollout.max_model_len, or its positions), less "
            f"than data.max_prompt_length + data.max_response_length = {longest}: long answers would have no score."
        ]
    return []


def _choose_rule(config: DictConfig, settings: CombinedSettings | None) -> tuple[list[str], list[str]]:
    """verl calls the reward manager of a run with a reward model only where a custom function is named."""
    custom = config.reward.custom_reward_function
    if custom.path is not None:
        return [], []
    source = _data_source(config)
    name = "compute_score"
    if source in (None, "aiops_mturn"):
        path = TRIAGE_RULE
    elif settings is not None and settings.mode == "rm_only":
        path, name = NO_RULE, "no_rule"
    elif verl_has_rule(source):
        path, name = VERL_RULE, "default_compute_score"
    else:
        return [], [
            f"reward.combined: no rule for data_source={source}. Set reward.custom_reward_function.path, or "
            "reward.combined.mode=rm_only."
        ]
    with open_dict(config):
        custom.path, custom.name = path, name
    why = "the rule; verl calls a reward manager beside a reward model only where one is named"
    return [f"reward.custom_reward_function.path={path}  ({why})"], []


def _data_source(config: DictConfig) -> str | None:
    from verl_aiops.trainers.preflight.rl import first_rows

    return next((row.get("data_source") for row in first_rows(config, 1)), None)


def verl_has_rule(source: str | None) -> bool:
    """Whether verl has a reward of its own for a ``data_source``."""
    from verl.utils.reward_score import default_compute_score

    try:
        default_compute_score(source, "", "")
    except NotImplementedError:
        return False
    except Exception:  # it has one, which wants a real answer
        return True
    return True
