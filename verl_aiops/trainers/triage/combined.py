"""A reward model beside a rule, by the reward manager ``aiops_combined``: checked and completed before Ray starts."""

from __future__ import annotations

import os
import re

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_aiops.rewards.model.client import ENDPOINTS, longest_input
from verl_aiops.rewards.model.combined import CombinedSettings
from verl_aiops.rewards.model.transform import read_stats
from verl_aiops.rollout.hf.limits import check_reward_server
from verl_aiops.trainers.preflight.checks import Run
from verl_aiops.trainers.preflight.common import COMBINED, INVESTIGATION, REWARD, first_rows
from verl_aiops.trainers.preflight.reward_model import verl_has_rule
from verl_aiops.trainers.triage.judge import silent

__all__ = ["check_combined", "check_room"]

TRIAGE_RULE = "pkg://verl_aiops.rewards.aiops_mturn"
INVESTIGATION_RULE = "pkg://verl_aiops.rewards.aiops_investigation"
VERL_RULE = "pkg://verl.utils.reward_score"
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+):\d{1,5}")
NO_RULE = "pkg://verl_aiops.rewards.model.combined"


def check_combined(config: DictConfig, run: Run) -> list[str]:
    """The settings of the combination, its reward model, and the rule, chosen by the data where none is named."""
    if config.reward.reward_manager.name != COMBINED:
        return []
    model, settings, faults = config.reward.reward_model, None, []
    try:
        settings = CombinedSettings.from_config(config)
    except ValueError as error:
        faults.append(str(error))
    if settings is not None and settings.uses_rm and not model.enable:
        faults.append(
            f"reward.combined.mode={settings.mode} needs a reward model: set reward.reward_model.enable=True and "
            "reward.reward_model.model_path, or reward.combined.mode=rule_only."
        )
    mode = config.trainer.v1.trainer_mode
    if mode.endswith("_async"):
        faults.append(
            f"trainer.v1.trainer_mode={mode}: answers without a score, and a reward model on the policy's devices, are "
            f"what the trainer of sync looks after for {COMBINED}; verl's own would train on them. Set sync."
        )
    if model.enable:
        faults += _model_faults(config, settings, run)
    more, rule_faults = _choose_rule(config, settings)
    run.lines += more
    return faults + rule_faults


def check_room(config: DictConfig, run: Run) -> list[str]:
    """How long a conversation may be for the reward model."""
    model = config.reward.reward_model
    if config.reward.reward_manager.name != COMBINED or not model.enable:
        return []
    trusted = bool(OmegaConf.select(config, "actor_rollout_ref.model.trust_remote_code"))
    room = longest_input(os.path.expanduser(model.model_path), model.rollout.max_model_len, trusted)
    longest = config.data.max_prompt_length + config.data.max_response_length
    if room is not None and room < longest:
        return [
            f"the reward model takes {room} tokens (reward.reward_model.rollout.max_model_len, or its positions), less "
            f"than data.max_prompt_length + data.max_response_length = {longest}: long answers would have no score."
        ]
    return []


def _model_faults(config: DictConfig, settings: CombinedSettings | None, run: Run) -> list[str]:
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
        faults += check_reward_server(config)
    if settings is not None and settings.uses_rm:
        try:
            settings.first_moments(os.path.expanduser(model.model_path))
        except ValueError as error:
            faults.append(str(error))
    faults += _tokenizer_faults("reward.reward_model.model_path", model.model_path, config)
    return faults + (_member_faults(config, settings, run) if settings is not None else [])


def _member_faults(config: DictConfig, settings: CombinedSettings, run: Run) -> list[str]:
    """Of the members that are served elsewhere: form of the address, tokenizer, numbers to normalise by, room."""
    faults = []
    longest = config.data.max_prompt_length + config.data.max_response_length
    for at, member in enumerate(settings.others):
        where = f"reward.combined.members[{at}]"
        if member.server not in ENDPOINTS:
            faults.append(f"{where}.server={member.server}: expected one of {', '.join(ENDPOINTS)}.")
        if not _ADDRESS.fullmatch(member.address):
            faults.append(f"{where}.address={member.address}: expected host:port, with neither http:// nor a path.")
        elif why := silent(f"http://{member.address}"):
            run.lines.append(
                f"warning: {where} at {member.address} cannot be reached from here ({why}); start it first"
            )
        if found := _tokenizer_faults(f"{where}.path", member.path, config):
            faults += found
            continue
        if settings.normalise == "stored":
            try:
                read_stats(os.path.expanduser(member.path))
            except ValueError as error:
                faults.append(f"{where}: {error}")
        room = longest_input(os.path.expanduser(member.path), None)
        if room is not None and room < longest:
            faults.append(
                f"{where}.path={member.path}: takes {room} tokens, less than data.max_prompt_length + "
                f"data.max_response_length = {longest}: long answers would have no score."
            )
    return faults


def _tokenizer_faults(key: str, folder: str, config: DictConfig) -> list[str]:
    """Whether a model's tokenizer can render a conversation; ``key`` named the folder."""
    from transformers import AutoTokenizer

    trusted = bool(OmegaConf.select(config, "actor_rollout_ref.model.trust_remote_code"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(os.path.expanduser(folder), trust_remote_code=trusted)
    except Exception as error:  # whatever a folder or hub name without a tokenizer raises
        return [f"{key}={folder}: its tokenizer cannot be loaded: {error}"]
    if not tokenizer.chat_template:
        return [f"{key}={folder}: its tokenizer has no chat template, by which answers are put before the model."]
    return []


def _choose_rule(config: DictConfig, settings: CombinedSettings | None) -> tuple[list[str], list[str]]:
    """verl calls the reward manager of a run with a reward model only where a custom function is named."""
    custom = config.reward.custom_reward_function
    if custom.path is not None:
        return [], []
    source = _data_source(config)
    name = "compute_score"
    if source in (None, REWARD):
        path = TRIAGE_RULE
    elif source == INVESTIGATION:
        path = INVESTIGATION_RULE
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
    return next((row.get("data_source") for row in first_rows(config, 1)), None)
