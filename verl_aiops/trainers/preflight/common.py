"""What the checks of every kind of run read: files, first rows, names of ours, the tokenizer."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_aiops.trainers.config import ConfigError

__all__ = [
    "COMBINED",
    "INVESTIGATION",
    "LOOP",
    "LOOPS",
    "MODE",
    "REWARD",
    "SOURCES",
    "TOOLS_LOOP",
    "data_files",
    "first_rows",
    "investigates",
    "is_judge",
    "is_triage_run",
    "load_tokenizer",
    "of_triage",
    "ours",
    "refuse_ignored_keys",
    "rollout_name",
    "triage_side",
]

REWARD, LOOP, MODE, COMBINED = "aiops_mturn", "aiops_mturn", "aiops_sync", "aiops_combined"
# the second task: the name of its data and reward, and that of its agent loop
INVESTIGATION, TOOLS_LOOP = "aiops_investigation", "aiops_tools"
SOURCES, LOOPS = (REWARD, INVESTIGATION), (LOOP, TOOLS_LOOP)
# what runs on triage data have beside the checks of any task. By name, as a run of another task never imports it
_TRIAGE_SIDE = "verl_aiops.trainers.triage.checks"
_JUDGE = ("judge_reward", "judge_reward.py")
# groups that verl 0.9 reads from the command line and never looks at again, and where their settings are today
_IGNORED = {
    "custom_reward_function": "reward.custom_reward_function",
    "reward_model": "reward.reward_model (reward.num_workers, reward.reward_manager.name)",
    "sandbox_fusion": "reward.sandbox_fusion",
}


def is_triage_run(config: DictConfig) -> bool:
    """Whether our reward, agent loop or rollout is in use; every other run is left to verl alone."""
    return _names_triage(config) or rollout_name(config) == "hf" or _chosen_by_data(config)


def of_triage(config: DictConfig) -> bool:
    """Whether a run of online DPO is one on triage data, or with a reward of ours, and not of another task."""
    return _names_triage(config) or any(
        row.get("agent_name") in LOOPS or row.get("data_source") in SOURCES for row in first_rows(config, 1)
    )


def investigates(config: DictConfig) -> bool:
    """Whether a run is one on investigations: by its first row, or by its agent loop where no row names one."""
    row = next(iter(first_rows(config, 1)), {})
    loop = row.get("agent_name", OmegaConf.select(config, "actor_rollout_ref.rollout.agent.default_agent_loop"))
    return row.get("data_source") == INVESTIGATION or loop == TOOLS_LOOP


def triage_side() -> ModuleType:
    """The checks that runs on triage data have beside those of any task."""
    return importlib.import_module(_TRIAGE_SIDE)


def _names_triage(config: DictConfig) -> bool:
    return (
        ours(OmegaConf.select(config, "reward.custom_reward_function.path"))
        or ours(OmegaConf.select(config, "custom_reward_function.path"))
        or config.reward.reward_manager.name in (REWARD, COMBINED)
        or config.actor_rollout_ref.rollout.agent.default_agent_loop in LOOPS
    )


def ours(path: str | None) -> bool:
    """Whether a reward function's path is one of this package's rules, or of the example that older guides name. The
    judge is none: it rewards any task."""
    if is_judge(path):
        return False
    return bool(path) and ("verl_aiops" in str(path) or os.path.basename(str(path)) == "aiops_mturn.py")


def is_judge(path: str | None) -> bool:
    """Whether a reward function's path is that of `rewards.model.judge_reward`."""
    return str(path).endswith(_JUDGE)


def rollout_name(config: DictConfig) -> str | None:
    rollout = config.actor_rollout_ref.rollout
    return None if OmegaConf.is_missing(rollout, "name") else rollout.name


def data_files(config: DictConfig, key: str = "train_files") -> list[str]:
    files = OmegaConf.select(config, f"data.{key}")
    listed = files if isinstance(files, ListConfig | list | tuple) else [files] * bool(files)
    return [os.path.expanduser(str(f)) for f in listed]


def _chosen_by_data(config: DictConfig) -> bool:
    """Whether the first rows of the training file name our agent loop, or of the other where that cannot be read; if
    neither can, it is verl's to report."""
    rows = first_rows(config, 1) or first_rows(config, 1, "val_files")
    return any(row.get("agent_name") in LOOPS for row in rows)


def first_rows(config: DictConfig, count: int, key: str = "train_files") -> list[dict]:
    """``agent_name``, ``data_source`` and ``extra_info`` of the first rows; none where they cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in data_files(config, key):
        if not path.endswith(".parquet") or not os.path.isfile(path):
            continue
        try:
            file = pq.ParquetFile(path)
            columns = [c for c in ("agent_name", "data_source", "extra_info") if c in file.schema_arrow.names]
            return next(file.iter_batches(batch_size=count, columns=columns)).to_pylist()
        except (pa.ArrowException, OSError, StopIteration):
            return []
    return []


def refuse_ignored_keys(config: DictConfig) -> None:
    """Stop a run that sets what verl 0.9 ignores without a word.

    Raises:
        ConfigError: names each such key and today's.
    """
    wrong = []
    for group, today in _IGNORED.items():
        for key in _set_keys(OmegaConf.select(config, group)):
            now = f"{today}.{key}" if "(" not in today else today
            wrong.append(f"{group}.{key} is ignored by verl 0.9: use {now}")
    multi_turn = OmegaConf.select(config, "actor_rollout_ref.rollout.multi_turn")
    if multi_turn is True or (OmegaConf.is_config(multi_turn) and multi_turn.get("enable")):
        wrong.append(
            "actor_rollout_ref.rollout.multi_turn.enable is ignored by verl 0.9: the column agent_name of the data, or "
            f"actor_rollout_ref.rollout.agent.default_agent_loop={LOOP}, chooses the loop that runs several rounds"
        )
    if wrong:
        raise ConfigError("\n  ".join(["settings without effect; remove or rename them:", *wrong]))


def _set_keys(group) -> list[str]:
    """Dotted names of the values in a configuration group that are not None."""
    if not OmegaConf.is_config(group):
        return []
    keys = []
    for key, value in group.items():
        if OmegaConf.is_config(value):
            keys += [f"{key}.{inner}" for inner in _set_keys(value)]
        elif value is not None:
            keys.append(str(key))
    return keys


def load_tokenizer(model: DictConfig):
    """The tokenizer of ``actor_rollout_ref.model``, with the chat template that the run gives it.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from verl.utils import hf_tokenizer

    key = "tokenizer_path" if model.tokenizer_path else "path"
    try:
        tokenizer = hf_tokenizer(model[key], trust_remote_code=model.trust_remote_code)
    except (ImportError, OSError, ValueError) as error:
        what = "" if os.path.isdir(os.path.expanduser(model[key])) else "no such folder, and as a name on the hub "
        raise ConfigError(
            f"actor_rollout_ref.model.{key}={model[key]}: {what}its tokenizer cannot be loaded: "
            + " ".join(str(error).split())
        ) from None
    if template := model.get("custom_chat_template"):
        tokenizer.chat_template = template
    return tokenizer
