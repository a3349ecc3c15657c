"""What a run on triage data (GRPO, PPO, ...) is checked for and completed with before Ray starts."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.dpo.adapter import prepare_adapter
from verl_aiops.trainers.preflight.defaults import RL_DEFAULTS, TRIAGE_DEFAULTS, apply_defaults
from verl_aiops.trainers.preflight.reward import COMBINED, prepare_reward_model
from verl_aiops.trainers.rl.packing import pad_where_packing_leaks
from verl_aiops.trainers.rl.second_run import check_second_run
from verl_aiops.trainers.runs.checkpoint_health import find_checkpoint

__all__ = [
    "check_data",
    "check_rollout",
    "check_rounds",
    "first_rows",
    "is_triage_run",
    "prepare_triage",
    "refuse_ignored_keys",
]

REWARD, LOOP, MODE = "aiops_mturn", "aiops_mturn", "aiops_sync"
# groups that verl 0.9 reads from the command line and never looks at again, and where their settings are today
_IGNORED = {
    "custom_reward_function": "reward.custom_reward_function",
    "reward_model": "reward.reward_model (reward.num_workers, reward.reward_manager.name)",
    "sandbox_fusion": "reward.sandbox_fusion",
}


def is_triage_run(config: DictConfig) -> bool:
    """Whether our reward, agent loop or rollout is in use; every other run is left to verl alone."""
    return (
        _ours(OmegaConf.select(config, "reward.custom_reward_function.path"))
        or _ours(OmegaConf.select(config, "custom_reward_function.path"))
        or config.reward.reward_manager.name in (REWARD, COMBINED)
        or config.actor_rollout_ref.rollout.agent.default_agent_loop == LOOP
        or _rollout_name(config) == "hf"
        or _chosen_by_data(config)
    )


def _ours(path: str | None) -> bool:
    return bool(path) and ("verl_aiops" in path or os.path.basename(path) == "aiops_mturn.py")


def _rollout_name(config: DictConfig) -> str | None:
    rollout = config.actor_rollout_ref.rollout
    return None if OmegaConf.is_missing(rollout, "name") else rollout.name


def _files(config: DictConfig, key: str = "train_files") -> list[str]:
    files = config.data.get(key)
    return [os.path.expanduser(str(f)) for f in ([files] if isinstance(files, str) else files or [])]


def _chosen_by_data(config: DictConfig) -> bool:
    """Whether the first rows of the training file name our agent loop; unreadable files are verl's to report."""
    return any(row.get("agent_name") == LOOP for row in first_rows(config, 1))


def first_rows(config: DictConfig, count: int) -> list[dict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in _files(config):
        if not path.endswith(".parquet") or not os.path.isfile(path):
            continue
        try:
            file = pq.ParquetFile(path)
            columns = [c for c in ("agent_name", "data_source", "extra_info") if c in file.schema_arrow.names]
            return next(file.iter_batches(batch_size=count, columns=columns)).to_pylist()
        except (pa.ArrowException, OSError, StopIteration):
            return []
    return []


def _rows_by_rounds(config: DictConfig) -> dict[tuple[str, ...], tuple[str, int]]:
    """For the texts of the later rounds in rows of the training and validation files that our agent loop runs: the
    first row with them, and how many there are.

    Raises:
        ValueError: rounds that are no list of texts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from verl_aiops.rollout.rounds.turns import rounds_of

    found: dict[tuple[str, ...], tuple[str, int]] = {}
    for key in ("train_files", "val_files"):
        for path in _files(config, key):
            if not path.endswith(".parquet") or not os.path.isfile(path):
                continue
            try:
                file = pq.ParquetFile(path)
                wanted = ("agent_name", "extra_info.id", "extra_info.rounds")
                rows = [row for batch in file.iter_batches(columns=wanted) for row in batch.to_pylist()]
            except (pa.ArrowException, OSError):
                continue
            for row in rows:
                if row.get("agent_name", LOOP) == LOOP:
                    info = row.get("extra_info") or {}
                    name = f"data.{key}, row {info.get('id')}"
                    try:
                        rounds = tuple(rounds_of(info))
                    except ValueError as error:
                        raise ValueError(f"{name}: {error}") from None
                    first, count = found.get(rounds, (name, 0))
                    found[rounds] = first, count + 1
    return found


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


def prepare_triage(config: DictConfig, given: set[str]) -> list[str]:
    """Complete and check a run on triage data.

    Returns:
        one line per key that was filled in.

    Raises:
        ConfigError: a setting that cannot work.
    """
    refuse_ignored_keys(config)
    lines = apply_defaults(config, given, (*TRIAGE_DEFAULTS, *RL_DEFAULTS))
    lines += find_checkpoint(config, preference=False)[1]
    lines += prepare_adapter(config, given)
    lines += pad_where_packing_leaks(config, given)
    more, faults = prepare_reward_model(config, given)
    lines += more
    if faults:
        raise ConfigError("\n  ".join(["the reward cannot be computed like this:", *faults]))
    check_rollout(config)
    _check_reward(config)
    _check_group(config)
    lines += check_data(config)
    check_rounds(config)
    if config.trainer.use_v1 and config.trainer.v1.trainer_mode == "sync":
        with open_dict(config):
            config.trainer.v1.trainer_mode = MODE
    check_second_run(config, MODE)
    return lines


def check_rollout(config: DictConfig) -> None:
    """Raises ConfigError if no rollout is named, or ``hf`` is asked for what it cannot do."""
    from verl_aiops.rollout.hf.limits import unsupported

    name = _rollout_name(config)
    if name is None:
        raise ConfigError("actor_rollout_ref.rollout.name is not set: sglang, vllm, or hf (any machine, small models).")
    if name != "hf":
        return
    if wrong := unsupported(config.actor_rollout_ref.rollout, config.actor_rollout_ref.model):
        raise ConfigError("\n  ".join(["the rollout hf cannot do this:", *wrong]))
    if config.trainer.v1.trainer_mode == "separate_async":
        raise ConfigError("trainer.v1.trainer_mode=separate_async: the rollout hf runs beside the trainer. Use sync.")


def _check_reward(config: DictConfig) -> None:
    from verl_aiops.rewards.triage.settings import read_settings

    custom = config.reward.custom_reward_function
    if custom.path is None and config.reward.reward_manager.name != REWARD:
        raise ConfigError(
            "no reward: set reward.custom_reward_function.path=pkg://verl_aiops.rewards.aiops_mturn, or "
            f"reward.reward_manager.name={REWARD}."
        )
    if custom.path is not None and not _ours(custom.path):
        return
    try:
        read_settings(dict(custom.get("reward_kwargs") or {}))
    except ValueError as error:
        raise ConfigError(f"reward.custom_reward_function.reward_kwargs: {error}") from None


def check_data(config: DictConfig) -> list[str]:
    """Every row of the files (`triage_rows`), and what model and reward make of the first (`answer_trial`); prints what
    is worth saying of them.

    Returns:
        one line per key that was filled in.

    Raises:
        ConfigError: rows or files that cannot be used, or a right answer that would earn nothing.
    """
    from verl_aiops.rewards.triage.settings import read_settings
    from verl_aiops.trainers.rl.prompt_counts import PromptCounts
    from verl_aiops.trainers.rl.triage_rows import RowRules, check_rows, first_rows_of

    if OmegaConf.select(config, "data.custom_cls.path") is not None:
        print("verl-aiops: data.custom_cls reads the data, so its rows were not checked", flush=True)
        return []
    custom, manager = config.reward.custom_reward_function, config.reward.reward_manager.name
    truth = _is_triage_rule(custom) or custom.path is None and manager == REWARD
    rules = RowRules(
        truth=truth,
        rewarded=truth or manager in (REWARD, COMBINED),
        evidence_weight=read_settings(dict(custom.get("reward_kwargs") or {})).evidence_weight if truth else 0.0,
        default_loop=config.actor_rollout_ref.rollout.agent.default_agent_loop,
        prompt_key=config.data.get("prompt_key") or "prompt",
    )
    counts = PromptCounts(rules.prompt_key)
    for note in [*check_rows(config, rules, counts), *counts.notes(config)]:
        print(f"verl-aiops: {note}", flush=True)
    return _check_answers(config, first_rows_of(config, rules), truth)


def _check_answers(config: DictConfig, rows: list[dict], truth: bool) -> list[str]:
    from verl_aiops.data.errors import PreferenceDataError
    from verl_aiops.data.kept_text import check_keeps_text
    from verl_aiops.rollout.rounds.stops import stop_ids
    from verl_aiops.trainers.preflight.answer_trial import set_reasoning, try_right_answer
    from verl_aiops.trainers.preflight.entry import load_tokenizer

    model, key = config.actor_rollout_ref.model, config.data.get("prompt_key") or "prompt"
    tokenizer = load_tokenizer(model)
    if model.get("custom_chat_template"):
        tokenizer.chat_template = model.custom_chat_template
    try:
        check_keeps_text(tokenizer, [m["content"] for row in rows for m in row[key] if isinstance(m["content"], str)])
    except PreferenceDataError as error:
        raise ConfigError(f"actor_rollout_ref.model.path={model.path}: {error}") from None
    if not truth:
        return []
    lines = set_reasoning(config, tokenizer)
    if rows:
        try_right_answer(config, tokenizer, stop_ids(model.path, tokenizer), rows[0])
    return lines


def _is_triage_rule(custom: DictConfig) -> bool:
    """Whether the named reward is `rewards.aiops_mturn.compute_score`, not another function of ours or the user's."""
    ours = _ours(custom.path) and os.path.basename(str(custom.path)).split(".")[-1 if "pkg:" in custom.path else 0]
    return ours == REWARD and custom.get("name", "compute_score") == "compute_score"


def _check_group(config: DictConfig) -> None:
    n = config.actor_rollout_ref.rollout.n
    if config.algorithm.adv_estimator.startswith("grpo") and n < 2:
        raise ConfigError(
            f"actor_rollout_ref.rollout.n={n}: GRPO compares the answers to one prompt with each other. Set 2 or more."
        )


def check_rounds(config: DictConfig) -> None:
    """The budgets of the rounds against ``data.max_response_length``, on all instructions of the data."""
    from verl_aiops.rollout.rounds.settings import RoundSettings

    try:
        settings = RoundSettings.from_config(config)
        rows = _rows_by_rounds(config)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    on_sglang = _rollout_name(config) == "sglang"
    if settings.json_schema and on_sglang and config.actor_rollout_ref.rollout.skip_tokenizer_init:
        raise ConfigError(
            "actor_rollout_ref.rollout.custom.aiops_mturn.json_schema=True: SGLang needs its tokenizer for this. Set "
            "actor_rollout_ref.rollout.skip_tokenizer_init=False."
        )
    if not rows:
        return
    from verl_aiops.rollout.rounds.turns import TemplateTurns, round_budgets
    from verl_aiops.trainers.preflight.entry import load_tokenizer

    tokenizer = load_tokenizer(config.actor_rollout_ref.model)
    if template := config.actor_rollout_ref.model.get("custom_chat_template"):
        tokenizer.chat_template = template
    builder = TemplateTurns(tokenizer, chat_template_kwargs=dict(config.data.get("apply_chat_template_kwargs") or {}))
    refused: list[tuple[int, str, str]] = []
    count = 0
    for rounds, (first, same) in rows.items():
        try:
            between = [len(builder.between((text,))) for text in rounds]
        except Exception as error:  # templates raise what they like
            why = " ".join(str(error).split())
            raise ConfigError(f"{first}: its rounds cannot be joined by this model's chat template: {why}") from None
        try:
            round_budgets(config.data.max_response_length, between, settings.round_tokens, settings.answer_tokens)
        except ValueError as error:
            refused.append((sum(between), first, str(error)))
            count += same
    if refused:
        # what makes room for the longest instructions makes room for all
        _, name, why = max(refused)
        more = f" (and {count - 1:,} more of {sum(same for _, same in rows.values()):,} rows)" if count > 1 else ""
        raise ConfigError(f"{name}{more}: {why}")
