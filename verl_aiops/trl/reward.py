"""`verl-aiops train-rm`: a reward model by TRL's RewardTrainer, in a folder that vLLM, SGLang and the rollout hf serve.

The loss is that of Bradley and Terry (1952), ``-log sigmoid(r_chosen - r_rejected - margin)``, with the centring term
``coefficient * (r_chosen + r_rejected)^2`` of Eisenstein et al. (arXiv 2312.09244) where asked for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_aiops.data.repeats import shared_text
from verl_aiops.evaluation.stats.calibration import STATS, Calibration, calibrate, stats_of, write_stats
from verl_aiops.inputs.shown import counted
from verl_aiops.models.card import USE_CLASSIFIER
from verl_aiops.models.weights import MOST_OF_A_FILE
from verl_aiops.trl.extra import (
    TrainingError,
    check_folder,
    last_checkpoint,
    move_into,
    prepare_folder,
    require_trl,
)
from verl_aiops.trl.options import trl_options
from verl_aiops.trl.reward_data import RewardPairs, read_reward_pairs, split_by_group
from verl_aiops.trl.reward_settings import RewardTraining
from verl_aiops.trl.reward_start import chat_tokenizer, load_model, padding_token
from verl_aiops.trl.run import card_of, empty_folder, lora_of, usual_arguments, without_adapter

__all__ = ["RewardTraining", "TrainedRewardModel", "train_reward_model"]

# fields of TRL's configuration that a run decides by itself
SETTLED = {
    "max_length": None,  # what is too long has been left out, and counted
    "logging_steps": 1,
    "save_strategy": "steps",
}
# those that it decides unless they are given
OPEN = {"lr_scheduler_type": "cosine", "gradient_checkpointing": False, "report_to": "none", "save_total_limit": 2}


@dataclass(frozen=True)
class TrainedRewardModel:
    """What came out, and `summary` of it.

    ``val_too_long``: of a validation file of its own; ``held_out_in_training``: those that are trained on too.
    """

    folder: str
    train_pairs: int
    too_long: int
    val_too_long: int
    held_out_in_training: int
    before: Calibration
    after: Calibration
    mean: float
    std: float

    def summary(self) -> str:
        a, b = self.after, self.before
        seen = self.held_out_in_training
        warning = f"  {seen} of the {a.pairs} held-out pairs are in the training data too: they prove nothing"
        return "\n".join(
            [
                f"reward model: {self.folder}",
                f"  data: {counted(self.train_pairs, 'pair')}; left out as too long: {self.too_long} of --data, "
                f"{self.val_too_long} of --val",
                f"  held out: {counted(a.pairs, 'pair')} of {counted(a.groups, 'group')}, {a.ranked} "
                f"(before: {100 * b.accuracy:.1f} %), log-loss {a.log_loss:.3f}, calibration error {a.error:.3f}",
                *([warning] if seen else []),
                f"  raw rewards on held-out data: mean {self.mean:.3f}, standard deviation {self.std:.3f}",
                "use it with",
                f"  +verl_aiops=[grpo_mturn,combined] reward.reward_model.model_path={self.folder}",
            ]
        )


def train_reward_model(settings: RewardTraining, out: str, overwrite: bool = False) -> TrainedRewardModel:
    """Train, measure, write.

    ``out`` gets the merged model with its tokenizer, ``reward_stats.json``, ``calibration.png`` (with matplotlib),
    ``train_log.jsonl``, ``metrics.jsonl`` (the same while it trains), ``adapter/`` (with LoRA) and ``checkpoints/``,
    which may be removed. Called again after a stop,
    it goes on from the last checkpoint.

    Raises:
        TrainingError: TRL is missing; a setting, the model or the folder cannot be used; or the training diverged.
        PreferenceDataError: the data cannot be used.
    """
    require_trl()
    settings.check()
    _more_options(settings)  # what is wrong with them is told before any data is read
    check_folder(out, {}, finished=STATS, overwrite=overwrite)
    tokenizer = chat_tokenizer(settings.model)
    train, held_out = _pairs(settings, tokenizer)
    in_training = held_out.shared_with(train)
    if in_training:
        print(shared_text(in_training, len(held_out)))
    pad = padding_token(tokenizer, train, held_out)
    note = json.loads(json.dumps({**asdict(settings), "data": train.digest(), "val": held_out.digest()}))
    check_folder(out, note, finished=STATS, overwrite=overwrite)
    model = load_model(settings, max(train.longest, held_out.longest))
    folder = prepare_folder(out, note, finished=STATS, overwrite=overwrite)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)  # transformers gives the model the tokenizer's
    trainer = _trainer(settings, folder, tokenizer, model, train)
    before = calibrate(_rewards(trainer, held_out)[0], held_out.groups)
    checkpoint = last_checkpoint(folder)
    if checkpoint:
        print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    made = empty_folder(folder)
    trainer.model = without_adapter(trainer.model, settings, made)  # what is measured is what is written
    margins, rewards = _rewards(trainer, held_out)
    if not np.isfinite(rewards).all():
        raise TrainingError(
            "the training diverged, its rewards are not finite: choose a smaller --lr, with --overwrite"
        )
    result = TrainedRewardModel(
        folder=str(out),
        train_pairs=len(train),
        too_long=train.too_long,
        val_too_long=held_out.too_long,
        held_out_in_training=in_training,
        before=before,
        after=calibrate(margins, held_out.groups),
        mean=float(rewards.mean()),
        std=float(rewards.std()),
    )
    _write(trainer, tokenizer, made, settings, result, rewards, note | {"tokens": train.tokens})
    move_into(folder, made, last=STATS)
    return result


def _pairs(settings: RewardTraining, tokenizer) -> tuple[RewardPairs, RewardPairs]:
    limits = settings.max_length, settings.max_too_long_share, settings.columns
    pairs = read_reward_pairs(list(settings.data), tokenizer, *limits)
    if settings.val:
        return pairs, read_reward_pairs(list(settings.val), tokenizer, *limits)
    train, held_out = split_by_group(pairs, settings.val_share, settings.seed)
    train.too_long = pairs.too_long
    return train, held_out


def _trainer(settings: RewardTraining, folder: Path, tokenizer, model, train: RewardPairs) -> Any:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from verl_aiops.trl.dpo_trainer import MetricsFile

    model.config.pad_token_id = tokenizer.pad_token_id
    columns = {"chosen_ids": train.chosen_ids, "rejected_ids": train.rejected_ids}
    if train.margins is not None or settings.margin:
        columns["margin"] = train.margins or [settings.margin] * len(train)
    steps = settings.epochs * len(train) / (settings.batch_size * settings.grad_accum)
    arguments = RewardConfig(
        **SETTLED,
        **usual_arguments(settings, folder, OPEN, _more_options(settings)),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.grad_accum,
        warmup_steps=round(settings.warmup * steps),
        center_rewards_coefficient=settings.center,
    )
    return RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=lora_of(settings, "SEQ_CLS", modules_to_save=["score"]),
        callbacks=[MetricsFile(folder / "metrics.jsonl", held_out=0)],
    )


def _more_options(settings: RewardTraining) -> dict[str, Any]:
    return trl_options(settings, "RewardConfig", (*SETTLED, "output_dir"))


def _rewards(trainer, pairs: RewardPairs) -> tuple[np.ndarray, np.ndarray]:
    """Reward of chosen minus rejected, shape (pairs,), and all raw rewards, (2 x pairs,), as the model gives them."""
    import torch

    model, device, sequences = trainer.model, trainer.args.device, pairs.conversations
    rewards = np.empty(len(sequences))
    was_training = model.training
    model.eval()
    order = sorted(range(len(sequences)), key=lambda at: len(sequences[at]))
    step = trainer.args.per_device_train_batch_size
    for rows in (order[start : start + step] for start in range(0, len(order), step)):
        width = max(len(sequences[at]) for at in rows)
        ids = torch.full((len(rows), width), model.config.get_text_config().pad_token_id)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for row, at in enumerate(rows):
            ids[row, : len(sequences[at])] = torch.tensor(sequences[at])
            mask[row, : len(sequences[at])] = 1
        with torch.no_grad():
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        rewards[rows] = logits[:, 0].float().cpu().numpy()
    model.train(was_training)
    return rewards[: len(pairs)] - rewards[len(pairs) :], rewards


def _write(
    trainer,
    tokenizer,
    made: Path,
    settings: RewardTraining,
    result: TrainedRewardModel,
    rewards: np.ndarray,
    note: dict,
) -> None:
    trainer.model.config.num_labels = 1
    trainer.model.save_pretrained(made, max_shard_size=MOST_OF_A_FILE)
    tokenizer.save_pretrained(made)
    log = "".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
    (made / "train_log.jsonl").write_text(log, encoding="utf-8")
    stats = {
        **stats_of(rewards, result.after),
        "accuracy_before": result.before.accuracy,
        "log_loss_before": result.before.log_loss,
        "train_pairs": result.train_pairs,
        "train_tokens": note.pop("tokens"),
        "too_long": result.too_long,
        "val_too_long": result.val_too_long,
        "held_out_in_training": result.held_out_in_training,
        "files": {"data": settings.data, "val": settings.val},
        "settings": note,
    }
    figures = {name: value for name, value in asdict(result.after).items() if isinstance(value, int | float)}
    card_of(settings, "reward", figures=figures, use=USE_CLASSIFIER).write(made)
    write_stats(made, stats, result.after, Path(settings.model).name)
