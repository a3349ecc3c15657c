"""What a reward model needs of verl, checked and completed before Ray starts."""

from __future__ import annotations

import json
import os

from omegaconf import DictConfig

from verl_aiops.trainers.preflight.checks import Check, Run
from verl_aiops.trainers.preflight.common import COMBINED, is_judge, triage_side
from verl_aiops.trainers.preflight.defaults import apply_defaults
from verl_aiops.trainers.preflight.defaults_rl import REWARD_MODEL_DEFAULTS

__all__ = ["REWARD_MODEL", "check_code", "verl_has_rule"]


def _fill_in(config: DictConfig, run: Run) -> None:
    if config.reward.reward_model.enable:
        run.lines += apply_defaults(config, run.given, REWARD_MODEL_DEFAULTS)


def check_code(config: DictConfig, run: Run) -> list[str]:
    """Where a tokenizer would bring code, nothing of its folder is to be loaded."""
    return _code_faults(config)


def _check_alone(config: DictConfig, run: Run) -> list[str]:
    # a combination with a rule is checked by those who know the rules: `verl_aiops.trainers.triage.combined`
    return [] if config.reward.reward_manager.name == COMBINED else _without_combination(config)


def _check_judge(config: DictConfig, run: Run) -> list[str]:
    if not is_judge(config.reward.custom_reward_function.path):
        return []
    return triage_side().check_judge(config, run)


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
        unused = (
            "aiops_mturn" in path or "aiops_investigation" in path
        )  # a function of the user's own may well ask the server
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


def verl_has_rule(source: str | None) -> bool:
    """Whether verl has a reward of its own for a ``data_source``."""
    from verl_aiops.seam.reward_loop import default_compute_score

    try:
        default_compute_score(source, "", "")
    except NotImplementedError:
        return False
    except Exception:  # it has one, which wants a real answer
        return True
    return True


REWARD_MODEL = (
    Check(_fill_in, "defaults of the reward model"),
    Check(check_code, "code that a tokenizer brings"),
    Check(_check_alone, "the reward model", (check_code,)),
    Check(_check_judge, "the judge"),
)
