"""What offline DPO needs, settled and checked on the driver before Ray starts."""

from __future__ import annotations

import importlib
import os

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from verl_aiops.data.dataset import TRUNCATIONS
from verl_aiops.missing import why_missing
from verl_aiops.settings import settings_of
from verl_aiops.trainers.config import PREFERENCE_MODEL_TYPE, REWARD_MODEL_TYPE, ConfigError
from verl_aiops.trainers.data_settings import PairFiles
from verl_aiops.trainers.preflight.basics import (
    check_adapter,
    check_folder,
    check_keys,
    check_kinds,
    check_model,
    check_numbers,
    check_place,
    check_start,
    check_tokenizer,
    check_widths,
    fill_in,
)
from verl_aiops.trainers.preflight.checks import Check, Run
from verl_aiops.trainers.preflight.classifier import check_reward_model
from verl_aiops.trainers.preflight.defaults import DEFAULTS, data_parallel_size, sequence_parallel_size
from verl_aiops.trainers.preflight.four_bits import check_four_bits
from verl_aiops.trainers.preflight.preference import (
    check_backend,
    check_budget,
    check_mini_batch,
    check_settings,
    check_strategy,
    check_trainer,
    counts,
)

__all__ = ["check_vision", "checks"]

_NAMES = {"dpo": "offline DPO", "rm": "a reward model's training"}
NO_ROLLOUTS = "verl_aiops.trainers.dpo.offline.NoRollouts"


def _check_names(config: DictConfig, run: Run) -> list[str]:
    """Settings of trainers with rollouts."""
    faults, estimator = [], config.algorithm.adv_estimator
    if config.trainer.v1.trainer_mode == run.kind and "algorithm.adv_estimator" in run.given and estimator != run.kind:
        faults.append(
            f"trainer.v1.trainer_mode={run.kind} with algorithm.adv_estimator={estimator}: {_NAMES[run.kind]} "
            f"estimates no advantages. Set algorithm.adv_estimator={run.kind} or remove it."
        )
    epochs = config.actor_rollout_ref.actor.ppo_epochs
    if epochs != 1:
        faults.append(
            f"actor_rollout_ref.actor.ppo_epochs={epochs} repeats rows inside a step. Use trainer.total_epochs and "
            "data.shuffle."
        )
    return faults


def _check_truncation(config: DictConfig, run: Run) -> list[str]:
    if config.data.truncation in TRUNCATIONS:
        return []
    return [f"data.truncation={config.data.truncation!r}: expected one of {', '.join(TRUNCATIONS)}."]


def _check_reading(config: DictConfig, run: Run) -> None:
    """The settings of ``data`` that are ours, each by itself."""
    ours = (of.name for of in settings_of(PairFiles))
    PairFiles.from_section({name: config.data[name] for name in ours if config.data.get(name) is not None})


def _check_train_files(config: DictConfig, run: Run) -> list[str]:
    return _check_files(config, run, "train_files")


def _check_val_files(config: DictConfig, run: Run) -> list[str]:
    return _check_files(config, run, "val_files")


def _check_files(config: DictConfig, run: Run, key: str) -> list[str]:
    """Absolute paths, as the trainer may run in another working directory; verl's example files are no data."""
    value = config.data[key]
    if f"data.{key}" not in run.given and "gsm8k" in str(value):
        value = None
    files = list(value) if isinstance(value, ListConfig | list | tuple) else [value] * (value is not None)
    if not files and key == "train_files":
        return ["data.train_files is not set. Give one or more parquet or JSONL files of pairs."]
    files = [os.path.abspath(os.path.expanduser(str(f))) for f in files]
    if gone := [f"data.{key}: no such file: {path}" for path in files if not os.path.isfile(path)]:
        return gone
    with open_dict(config):
        config.data[key] = files or None
    if files or "trainer.test_freq" not in run.given or config.trainer.test_freq <= 0:
        return []
    return [
        f"trainer.test_freq={config.trainer.test_freq}, but there is nothing to validate on. Give data.val_files, or "
        "remove it."
    ]


def _fill_in(config: DictConfig, run: Run) -> None:
    fill_in(config, run, DEFAULTS, counts(run))


def check_vision(config: DictConfig, run: Run | None = None) -> None:
    """Text pairs on a vision-language model go through its language model alone.

    Raises:
        ConfigError: this verl, or a split over workers, does not let them.
    """
    from transformers import AutoConfig

    section = config.actor_rollout_ref.model
    try:
        model = AutoConfig.from_pretrained(section.path, trust_remote_code=section.trust_remote_code)
    except Exception:  # whatever keeps it from being loaded is told by those who need it
        return
    if getattr(model, "vision_config", None) is None:
        return
    patch = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl", "glm4v": "glm4v"}.get(model.model_type)
    if patch is not None:
        importlib.import_module(f"verl.models.transformers.{patch}")
        if why := why_missing(f"text rows of {'GLM-4V' if patch == 'glm4v' else 'Qwen2-VL'}"):
            raise ConfigError(f"actor_rollout_ref.model.path={section.path}: {why}. Or train a model of text alone.")
    if sequence_parallel_size(config) > 1:
        raise ConfigError(
            f"actor_rollout_ref.model.path={section.path} is a vision-language model ({model.model_type}): text pairs "
            "cannot be split over workers there. Set ulysses_sequence_parallel_size=1, or train a model of text alone."
        )


def _check_batches(config: DictConfig, run: Run) -> list[str]:
    """Batches, mini-batches and micro-batches of whole pairs."""
    faults = []
    actor, ranks = config.actor_rollout_ref.actor, data_parallel_size(config)
    pairs, mini, micro = config.data.train_batch_size, actor.ppo_mini_batch_size, actor.ppo_micro_batch_size_per_gpu
    arithmetic = _arithmetic(config)
    most = config.data.get("train_max_samples") or -1
    if 0 < most < pairs:
        faults.append(f"data.train_max_samples={most} is less than one batch (data.train_batch_size={pairs}).")
    if pairs % mini:
        faults.append(f"{arithmetic}: the first must be a multiple of the second.")
    share, rest = divmod(mini, max(1, ranks))
    if not actor.use_dynamic_bsz and not rest and (micro is None or share % micro):
        faults.append(
            f"{arithmetic}, so {share} pairs each, which actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro} "
            "(in pairs) does not divide."
        )
    return faults


def _arithmetic(config: DictConfig) -> str:
    return (
        f"data.train_batch_size={config.data.train_batch_size} pairs per step, actor_rollout_ref.actor."
        f"ppo_mini_batch_size={config.actor_rollout_ref.actor.ppo_mini_batch_size} pairs per optimizer step, "
        f"{data_parallel_size(config)} data-parallel worker(s)"
    )


def _check_whole_batch(config: DictConfig, run: Run) -> None:
    """Losses that sort over the batch need it in one piece."""
    actor, loss = config.actor_rollout_ref.actor, run.settings.loss_type
    mini, micro = actor.ppo_mini_batch_size, actor.ppo_micro_batch_size_per_gpu
    if run.settings.needs_whole_batch and (actor.use_dynamic_bsz or data_parallel_size(config) > 1 or micro != mini):
        raise ConfigError(
            f"algorithm.dpo.loss_type={loss} sorts over the whole batch, so a split batch would change its result. "
            f"{_arithmetic(config)}: use one worker, actor.use_dynamic_bsz=False and "
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={mini}, or another loss."
        )


def _check_kl(config: DictConfig, run: Run) -> None:
    """The KL is estimated from answer log-probs of our own backends, of which `rows` is not split over workers."""
    rows = run.settings.logprob_backend == "rows"
    if rows and run.settings.estimates_kl and sequence_parallel_size(config) > 1:
        raise ConfigError(
            f"algorithm.dpo.loss_type={run.settings.loss_type} estimates the KL, which cannot be split over workers by "
            "sequence with algorithm.dpo.logprob_backend=rows: set ulysses_sequence_parallel_size=1, shared_prompt, or "
            "another loss."
        )


def _check_train_pairs(config: DictConfig, run: Run) -> list[str]:
    """Read, render and check the first rows of the files with the tokenizer of the run."""
    from verl_aiops.trainers.dpo.pairs import load_pairs

    if run.settings.preflight_rows == 0:
        return []
    batch = config.data.train_batch_size
    rows = max(run.settings.preflight_rows, batch)
    train = load_pairs(config.data, run.tokenizer, "train", limit=rows, dpo=run.settings)
    # rows that were dropped say nothing about a file of which only the beginning was read
    if len(train) < batch and train.report.rows < rows:
        return [
            f"data.train_files hold {len(train)} usable pairs, fewer than one batch (data.train_batch_size={batch})."
        ]
    return []


def _check_val_pairs(config: DictConfig, run: Run) -> None:
    from verl_aiops.trainers.dpo.pairs import load_pairs

    if config.data.val_files and run.settings.preflight_rows:
        load_pairs(config.data, run.tokenizer, "val", limit=run.settings.preflight_rows, dpo=run.settings)


def _choose_trainer(config: DictConfig, run: Run) -> None:
    with open_dict(config):
        config.algorithm.adv_estimator = run.kind
        config.trainer.v1.trainer_mode = run.kind
        config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = NO_ROLLOUTS
        config.actor_rollout_ref.model.model_type = REWARD_MODEL_TYPE if run.kind == "rm" else PREFERENCE_MODEL_TYPE
        if OmegaConf.is_missing(config.actor_rollout_ref.rollout, "name"):
            # verl reads the name even where nothing is rolled out
            config.actor_rollout_ref.rollout.name = "none"
        if not config.data.val_files:
            config.trainer.val_before_train = False
            config.trainer.test_freq = -1


def _check_resume(config: DictConfig, run: Run) -> None:
    """A run that goes on from a checkpoint: the same data, and what else is not as it was."""
    if run.start is None:
        return
    from verl_aiops.trainers.dpo.pairs import check_saved_order, load_pairs, pair_order
    from verl_aiops.trainers.reference.scorer import reference_note, reference_weights
    from verl_aiops.trainers.runs.note import RunNote, run_settings
    from verl_aiops.trainers.runs.resume import settle, start_model

    model, dpo = config.actor_rollout_ref.model, run.settings
    train = load_pairs(config.data, run.tokenizer, "train", dpo=dpo)
    val = load_pairs(config.data, run.tokenizer, "val", dpo=dpo) if config.data.val_files else None
    order = pair_order(train, config.data)
    now = RunNote(
        trainer=run.kind,
        total_steps=config.trainer.total_training_steps or order.steps_per_epoch * config.trainer.total_epochs,
        settings=run_settings(config, run.kind, dpo),
        data=order.state_dict(),
        model=start_model(model, None),
        held_out=val.identity() if val else None,
    )
    weights = reference_weights(model, dpo.reference_path) if dpo.uses_reference else None
    note = reference_note(dpo, weights)
    settle(run.start, now, note, config, dpo, without_note=lambda: check_saved_order(run.start, order))


_READABLE = (check_numbers, check_settings, check_tokenizer, check_reward_model, _check_truncation, _check_reading)
_CHECKS = (
    Check(check_keys, "keys that verl ignores"),
    Check(check_kinds, "texts and sections"),
    Check(check_folder, "the run's folder"),
    Check(check_trainer, "the trainer"),
    Check(_check_names, "the trainer"),
    Check(_check_truncation, "data.truncation"),
    Check(_check_reading, "the columns of data"),
    Check(check_strategy, "the engine"),
    Check(check_numbers, "numbers"),
    Check(check_widths, "numbers"),
    Check(_check_train_files, "data.train_files"),
    Check(_check_val_files, "data.val_files", (check_numbers,)),
    Check(check_model, "the model folder"),
    Check(_fill_in, "defaults"),
    Check(check_place, "the checkpoint to go on from", (check_numbers, check_folder)),
    Check(check_settings, "algorithm.dpo"),
    Check(check_vision, "the model's kind", (check_model,)),
    Check(check_reward_model, "the model's kind", (check_model,)),
    Check(check_adapter, "the adapter"),
    Check(check_four_bits, "the base of the adapters", (check_numbers, check_widths, check_model, check_adapter)),
    Check(check_tokenizer, "the tokenizer", (check_model,)),
    Check(check_backend, "the log-prob backend", (check_numbers, check_settings, check_tokenizer)),
    Check(check_mini_batch, "the mini-batch", (check_numbers, check_strategy)),
    Check(_check_batches, "batch sizes", (check_numbers, check_strategy)),
    Check(_check_whole_batch, "batch sizes", (check_numbers, check_strategy, check_settings)),
    Check(_check_kl, "batch sizes", (check_numbers, check_settings)),
    Check(check_budget, "the token budget", (check_numbers, check_backend)),
    Check(_check_train_pairs, "the rows of data.train_files", (_check_train_files, *_READABLE)),
    Check(_check_val_pairs, "the rows of data.val_files", (_check_val_files, *_READABLE)),
    Check(_choose_trainer, "the trainer", last=True),
    Check(check_start, "the checkpoint to go on from", (check_place,)),
    Check(_check_resume, "what the checkpoint was made with", last=True),
)


def checks(config: DictConfig) -> tuple[Check, ...]:
    """The list of a run, the same for all; what only reward models are checked for finds nothing in others."""
    return _CHECKS
