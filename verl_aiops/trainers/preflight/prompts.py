"""Checks of runs that generate their answers: the rollout, and the prompts of any task."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf

from verl_aiops.settings import nearest
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight.basics import check_numbers, check_tokenizer
from verl_aiops.trainers.preflight.checks import Check, Look, Run
from verl_aiops.trainers.preflight.common import LOOP, data_files, rollout_name
from verl_aiops.trainers.rl.agent_loops import own_loops
from verl_aiops.trainers.rl.prompt_rows import PromptRules

__all__ = ["PROMPTS", "check_kept_text", "check_looks", "check_rollout", "check_rounds", "look_at_rows", "row_checks"]


def check_rollout(config: DictConfig, run: Run) -> list[str]:
    """A rollout is named that verl has, and ``hf`` is not asked for what it cannot do."""
    from verl_aiops.rollout.hf.limits import unsupported
    from verl_aiops.seam.rollout import base

    name, faults = rollout_name(config), []
    if name is None:
        return ["actor_rollout_ref.rollout.name is not set: sglang, vllm, or hf (any machine, small models)."]
    known = sorted({registered for registered, _ in base._ROLLOUT_REGISTRY})
    if name not in known:
        return [
            f"actor_rollout_ref.rollout.name={name}: no such rollout{nearest(name, known)}. Known: {', '.join(known)}."
        ]
    if name != "hf":
        return []
    if wrong := unsupported(config.actor_rollout_ref.rollout, config.actor_rollout_ref.model):
        faults.append("\n  ".join(["the rollout hf cannot do this:", *wrong]))
    if config.trainer.v1.trainer_mode == "separate_async":
        faults.append("trainer.v1.trainer_mode=separate_async: the rollout hf runs beside the trainer. Use sync.")
    return faults


def check_looks(config: DictConfig, run: Run) -> None:
    """The settings of verl's replay buffer; arguments of a sampler of the user's own are its own.

    Raises:
        ConfigError: one that does not exist, or cannot be.
    """
    from verl_aiops.trainers.rl.looks import LookSettings, has_own_sampler

    if not has_own_sampler(config):
        LookSettings.from_config(config)


def look_at_rows(config: DictConfig, run: Run, rules: PromptRules) -> None:
    """Every row of the files, by ``rules``; prints what is worth saying of them.

    Raises:
        ConfigError: rows or files that cannot be used.
    """
    from verl_aiops.trainers.rl.prompt_counts import PromptCounts
    from verl_aiops.trainers.rl.prompt_rows import check_rows, first_rows_of

    if OmegaConf.select(config, "data.custom_cls.path") is not None:
        print("verl-aiops: data.custom_cls reads the data, so its rows were not checked", flush=True)
        return
    # what is said of batches needs their size
    counts = PromptCounts(rules.prompt_key) if check_numbers not in run.failed else None
    notes = check_rows(config, rules, counts)
    for note in [*notes, *(counts.notes(config) if counts else ())]:
        print(f"verl-aiops: {note}", flush=True)
    run.rules, run.rows = rules, first_rows_of(config, rules)


def _check_prompts(config: DictConfig, run: Run) -> None:
    rules = PromptRules(
        default_loop=config.actor_rollout_ref.rollout.agent.default_agent_loop,
        loops=own_loops(config),
        prompt_key=config.data.get("prompt_key") or "prompt",
    )
    look_at_rows(config, run, rules)


def check_kept_text(config: DictConfig, run: Run) -> None:
    """Whether the tokenizer gives the text of prompts back as it was."""
    from verl_aiops.data.errors import PreferenceDataError
    from verl_aiops.data.kept_text import check_keeps_text

    if run.rows is None:
        return
    key = run.rules.prompt_key
    texts = [m["content"] for row in run.rows for m in row[key] if isinstance(m["content"], str)]
    try:
        check_keeps_text(run.tokenizer, texts)
    except PreferenceDataError as error:
        raise ConfigError(f"actor_rollout_ref.model.path={config.actor_rollout_ref.model.path}: {error}") from None


def row_checks(look: Look) -> tuple[Check, ...]:
    """The checks of rows, which ``look`` reads."""
    return (
        Check(look, "the rows of the data"),
        Check(check_kept_text, "the tokenizer on their text", (look, check_tokenizer)),
    )


# of a run of any task; triage has its own, which know the ground truth
PROMPTS = row_checks(_check_prompts)


def check_rounds(config: DictConfig, run: Run) -> list[str]:
    """The budgets of the rounds against ``data.max_response_length``, on all instructions of the data."""
    from verl_aiops.rollout.rounds.settings import RoundSettings
    from verl_aiops.rollout.rounds.turns import TemplateTurns, round_budgets

    try:
        settings = RoundSettings.from_config(config)
        rows = _rows_by_rounds(config)
    except ValueError as error:
        return [str(error)]
    on_sglang = rollout_name(config) == "sglang"
    if settings.json_schema and on_sglang and config.actor_rollout_ref.rollout.skip_tokenizer_init:
        return [
            "actor_rollout_ref.rollout.custom.aiops_mturn.json_schema=True: SGLang needs its tokenizer for this. Set "
            "actor_rollout_ref.rollout.skip_tokenizer_init=False."
        ]
    if not rows:
        return []
    builder = TemplateTurns(
        run.tokenizer, chat_template_kwargs=dict(config.data.get("apply_chat_template_kwargs") or {})
    )
    refused: list[tuple[int, str, str]] = []
    count = 0
    for rounds, (first, same) in rows.items():
        try:
            between = [len(builder.between((text,))) for text in rounds]
        except Exception as error:  # templates raise what they like
            why = " ".join(str(error).split())
            return [f"{first}: its rounds cannot be joined by this model's chat template: {why}"]
        try:
            round_budgets(config.data.max_response_length, between, settings.round_tokens, settings.answer_tokens)
        except ValueError as error:
            refused.append((sum(between), first, str(error)))
            count += same
    if not refused:
        return []
    # what makes room for the longest instructions makes room for all
    _, name, why = max(refused)
    more = f" (and {count - 1:,} more of {sum(same for _, same in rows.values()):,} rows)" if count > 1 else ""
    return [f"{name}{more}: {why}"]


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
        for path in data_files(config, key):
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
