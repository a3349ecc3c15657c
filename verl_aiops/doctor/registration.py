"""Whether verl loads the plug-in, which platform it finds, and whether its registries give what we registered."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from verl_aiops.doctor.finding import FAULT, INFO, OK, Finding, error_text
from verl_aiops.doctor.versions import PACKAGE
from verl_aiops.missing import MISSING

__all__ = ["NAMES", "check_names", "check_platform", "check_plugin"]

ENTRY_POINT, PLUGIN = "verl_aiops", "verl_aiops.plugin"
OUT_OF_STEP = "The plug-in is loaded: if no fault above explains this, verl and verl-aiops do not fit together."
MADE_FOR = "Install a verl of the range above; plain verl works as it does without the plug-in."


def check_plugin() -> Iterable[Finding]:
    """Whether ``import verl`` loads ``verl_aiops.plugin``, and if not, the reason, which verl does not show."""
    fault = partial(Finding, "plug-in", FAULT)
    try:
        importlib.import_module("verl")
    except Exception as error:
        yield fault("verl", f"import verl fails: {error_text(error)}", "Mend the versions above or reinstall verl.")
        return
    if PLUGIN in sys.modules:
        yield Finding("plug-in", OK, PLUGIN, "loaded by verl")
        return
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if policy != "auto" and ENTRY_POINT not in [name.strip() for name in policy.split(",")]:
        yield fault(
            PLUGIN,
            f"filtered out by VERL_USE_EXTERNAL_PLUGINS={policy}",
            f"Unset the variable, or add {ENTRY_POINT} to its names.",
        )
    elif not any(point.name == ENTRY_POINT for point in importlib.metadata.entry_points(group="verl.plugins")):
        yield fault(PLUGIN, "no entry point in the group verl.plugins", f"Install {PACKAGE} again with pip.")
    else:
        try:
            importlib.import_module(PLUGIN)
            reason = "verl did not load it, although it can be imported now"
        except Exception as error:
            reason = f"its import fails: {error_text(error)}"
        yield fault(PLUGIN, reason, "verl hides this error and runs on without the plug-in; mend its cause.")


def check_platform(asked: str | None) -> Iterable[Finding]:
    """The platform that verl found. ``asked``: VERL_PLATFORM as it was before verl was imported."""
    from verl.plugin.platform import PlatformRegistry

    from verl_aiops.platform.cpu import existing_ray_address
    from verl_aiops.seam.rollout import get_platform

    how = f"set by VERL_PLATFORM={asked}" if asked else "chosen automatically"
    try:
        platform = get_platform()
    except ValueError as error:
        advice = f"Unset VERL_PLATFORM or set it to one of {', '.join(PlatformRegistry.registered_names())}."
        yield Finding("platform", FAULT, "platform", error_text(error), advice)
        return
    value = f"{platform.vendor_name}, device {platform.device_name}, {how}"
    if platform.is_available():
        yield Finding("platform", OK, "platform", value)
    elif existing_ray_address():
        advice = "A Ray cluster runs, whose other nodes may have one; export VERL_PLATFORM=cpu to train on its CPUs."
        yield Finding("platform", INFO, "platform", f"{value}; this machine has no such device", advice)
    else:
        import torch

        advice = "Install a torch build for the device, or export VERL_PLATFORM=cpu to train on the CPU."
        value += f", but torch {torch.__version__} finds no such device"
        yield Finding("platform", FAULT, "platform", value, advice)


# --- names -----------------------------------------------------------------------------------------------------------


def _adv_estimator(name: str) -> Any:
    from verl_aiops.seam.trainer import get_adv_estimator_fn

    return get_adv_estimator_fn(name)


def _policy_loss(name: str) -> Any:
    from verl_aiops.seam.trainer import get_policy_loss_fn

    return get_policy_loss_fn(name)


def _trainer_mode(name: str) -> Any:
    from verl_aiops.seam.trainer import get_trainer_cls

    return get_trainer_cls(name)


def _engine(name: str) -> Any:
    from verl.workers.engine import EngineRegistry

    return EngineRegistry.get_engine_cls(name, "fsdp2")


def _reward_manager(name: str) -> Any:
    from verl_aiops.seam.reward_loop import get_reward_manager_cls

    return get_reward_manager_cls(name)


def _agent_loop(name: str) -> Any:
    from verl_aiops.seam.rollout import agent_loop

    module, _, loop = agent_loop._agent_loop_registry[name]["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), loop)


def _rollout(name: str) -> Any:
    from verl_aiops.seam.rollout import get_rollout_class, get_rollout_replica_class

    get_rollout_class(name)
    return get_rollout_replica_class(name)


def _platform(name: str) -> Any:
    from verl.plugin.platform import PlatformRegistry

    return PlatformRegistry.get(name)


def _preset(name: str) -> str:
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        compose("ppo_trainer", overrides=[f"+verl_aiops={name}"])
    return f"+verl_aiops={name} composes with verl's ppo_trainer"


# kind, name, how verl resolves it; a name that is added to the package gets one line here
NAMES: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("advantage estimator", "dpo", _adv_estimator),
    ("policy loss", "dpo", _policy_loss),
    ("trainer mode", "dpo", _trainer_mode),
    ("advantage estimator", "rm", _adv_estimator),
    ("policy loss", "rm", _policy_loss),
    ("trainer mode", "rm", _trainer_mode),
    ("advantage estimator", "online_dpo", _adv_estimator),
    ("policy loss", "online_dpo", _policy_loss),
    ("trainer mode", "online_dpo", _trainer_mode),
    ("trainer mode", "aiops_sync", _trainer_mode),
    ("engine", "preference_language_model", _engine),
    ("engine", "reward_model", _engine),
    ("engine", "shared_prompt_language_model", _engine),
    ("engine", "shared_prompt_value_model", _engine),
    ("reward manager", "aiops_mturn", _reward_manager),
    ("reward manager", "aiops_combined", _reward_manager),
    ("agent loop", "aiops_mturn", _agent_loop),
    ("agent loop", "aiops_tools", _agent_loop),
    ("rollout", "hf", _rollout),
    ("platform", "cpu", _platform),
    ("preset", "dpo", _preset),
    ("preset", "rm", _preset),
    ("preset", "online_dpo", _preset),
    ("preset", "grpo_mturn", _preset),
    ("preset", "dr_grpo", _preset),
    ("preset", "ppo_mturn", _preset),
    ("preset", "tools", _preset),
    ("preset", "combined", _preset),
    ("preset", "shared_prompt", _preset),
    ("preset", "kto", _preset),
    ("preset", "cpu", _preset),
)


def check_names() -> Iterable[Finding]:
    """Each name that the package registers: whether verl's registries give it, and give ours."""
    for kind, name, resolve in NAMES:
        fault = partial(Finding, "names", FAULT, f"{kind} {name}")
        cause = "The plug-in must be loaded first, see above." if PLUGIN not in sys.modules else OUT_OF_STEP
        try:
            found, failure = resolve(name), None
        except Exception as error:
            found, failure = None, error_text(error)
        if f"{kind} {name}" in MISSING:
            yield fault(f"could not be put into verl: {MISSING[f'{kind} {name}']}", MADE_FOR)
            continue
        if failure is not None:
            yield fault(f"not resolved: {failure}", cause)
            continue
        if found is None:
            yield fault("not registered", cause)
        elif isinstance(found, str):
            yield Finding("names", OK, f"{kind} {name}", found)
        elif not found.__module__.startswith("verl_aiops."):
            where = f"{found.__module__}.{found.__qualname__}"
            yield fault(f"resolves to {where}", "Another plug-in took the name; filter it: VERL_USE_EXTERNAL_PLUGINS.")
        else:
            yield Finding("names", OK, f"{kind} {name}", f"{found.__module__}.{found.__qualname__}")
    named = {f"{kind} {name}" for kind, name, _ in NAMES}
    for what, reason in MISSING.items():
        if what not in named:
            yield Finding("names", FAULT, what, f"could not be put into verl: {reason}", MADE_FOR)
