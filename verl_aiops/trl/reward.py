"""`verl-aiops train-rm`: a reward model by TRL's RewardTrainer, in a folder that vLLM, SGLang and the rollout hf serve.

The loss is that of Bradley and Terry (1952), ``-log sigmoid(r_chosen - r_rejected - margin)``, with the centring term
``coefficient * (r_chosen + r_rejected)^2`` of Eisenstein et al. (arXiv 2312.09244) where asked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_aiops.trl.calibration import Calibration, calibrate, plot_calibration
from verl_aiops.trl.extra import CHECKPOINTS, TrainingError, last_checkpoint, move_into, prepare_folder, require_trl
from verl_aiops.trl.reward_data import RewardPairs, read_reward_pairs, split_by_group

__all__ = ["RewardTraining", "TrainedRewardModel", "train_reward_model"]

STATS = "reward_stats.json"


@dataclass(frozen=True)
class RewardTraining:
    """What decides the result of a run.

    Attributes:
        data, val: preference files; without ``val`` the share ``val_share`` of the groups is held out.
        model: folder or hub name of the model to start from; its tokenizer needs a chat template.
        epochs, lr, batch_size, grad_accum, warmup: of the optimizer; batches count pairs.
        max_length: tokens of a conversation; ``max_too_long_share`` of the pairs may have more and are left out.
        lora_rank, lora_alpha: of all linear layers; rank 0 trains all weights. The score head is trained in any case.
        center: coefficient of the centring term, or None.
        margin: lead that every chosen answer should have, unless the file has a column ``margin``.
        seed: of the score head, the order of pairs, and the split.
        dtype: of the weights that are loaded and written; on a GPU float32 weights are trained under bfloat16 autocast.
        device: ``auto``, ``cpu`` or ``cuda``.
        save_steps: steps between checkpoints, from which a stopped run goes on.
    """

    data: tuple[str, ...]
    model: str
    val: tuple[str, ...] = ()
    val_share: float = 0.1
    epochs: float = 1.0
    lr: float = 1e-4
    batch_size: int = 8
    grad_accum: int = 1
    warmup: float = 0.05
    max_length: int = 2048
    max_too_long_share: float = 0.1
    lora_rank: int = 16
    lora_alpha: int = 32
    center: float | None = 0.01
    margin: float = 0.0
    seed: int = 0
    dtype: str = "float32"
    device: str = "auto"
    save_steps: int = 50

    def check(self) -> None:
        """Raises TrainingError for a value that cannot work."""
        for name in ("epochs", "lr", "max_length", "lora_alpha", "save_steps", "batch_size", "grad_accum"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number above 0")
        for name in ("val_share", "max_too_long_share", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a share from 0 to 1")
        for name, value in (("lora-rank", self.lora_rank), ("margin", self.margin), ("center-rewards", self.center)):
            if value is not None and value < 0:
                raise TrainingError(f"--{name} {value}: expected a number, 0 or more")


@dataclass(frozen=True)
class TrainedRewardModel:
    """What came out, and `summary` of it."""

    folder: str
    train_pairs: int
    too_long: int
    before: Calibration
    after: Calibration
    mean: float
    std: float

    def summary(self) -> str:
        a, b = self.after, self.before
        return "\n".join(
            [
                f"reward model: {self.folder}",
                f"  trained on {self.train_pairs} pairs; {self.too_long} left out as too long",
                f"  held out: {a.pairs} pairs, {100 * a.accuracy:.1f} % "
                f"[{100 * a.accuracy_low:.1f}, {100 * a.accuracy_high:.1f}] ranked right "
                f"(before: {100 * b.accuracy:.1f} %), log-loss {a.log_loss:.3f}, calibration error {a.error:.3f}",
                f"  raw rewards on held-out data: mean {self.mean:.3f}, standard deviation {self.std:.3f}",
                "use it with",
                f"  +verl_aiops=[grpo_mturn,combined] reward.reward_model.model_path={self.folder}",
            ]
        )


def train_reward_model(settings: RewardTraining, out: str, overwrite: bool = False) -> TrainedRewardModel:
    """Train, measure, write.

    ``out`` gets the merged model with its tokenizer, ``reward_stats.json``, ``calibration.png`` (with matplotlib),
    ``train_log.jsonl``, ``adapter/`` (with LoRA) and ``checkpoints/``, which may be removed. Called again after a stop,
    it goes on from the last checkpoint.

    Raises:
        TrainingError: TRL is missing, or a setting, the model or the folder cannot be used.
        PreferenceDataError: the data cannot be used.
    """
    require_trl()
    settings.check()
    tokenizer = _tokenizer(settings.model)
    train, held_out = _pairs(settings, tokenizer)
    note = {**asdict(settings), "data": train.digest(), "val": held_out.digest()}
    folder = prepare_folder(out, json.loads(json.dumps(note)), finished=STATS, overwrite=overwrite)
    pad = _padding(tokenizer, train)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)  # transformers gives the model the tokenizer's
    trainer = _trainer(settings, folder, tokenizer, pad, train)
    score = _scorer(trainer, pad, settings)
    before = calibrate(_margins(score, held_out)[0])
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    margins, rewards = _margins(score, held_out)
    result = TrainedRewardModel(
        folder=str(out),
        train_pairs=len(train),
        too_long=train.too_long,
        before=before,
        after=calibrate(margins),
        mean=float(rewards.mean()),
        std=float(rewards.std()),
    )
    _write(trainer, tokenizer, folder, settings, result, note)
    return result


def _tokenizer(model: str):
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # whatever a folder or hub name without a tokenizer raises
        raise TrainingError(f"--model {model}: its tokenizer cannot be loaded: {error}") from None
    if not tokenizer.chat_template:
        raise TrainingError(f"--model {model}: its tokenizer has no chat template, by which conversations are rendered")
    return tokenizer


def _pairs(settings: RewardTraining, tokenizer) -> tuple[RewardPairs, RewardPairs]:
    limits = settings.max_length, settings.max_too_long_share
    pairs = read_reward_pairs(list(settings.data), tokenizer, *limits)
    if settings.val:
        return pairs, read_reward_pairs(list(settings.val), tokenizer, *limits)
    train, held_out = split_by_group(pairs, settings.val_share, settings.seed)
    train.too_long = pairs.too_long
    return train, held_out


def _padding(tokenizer, pairs: RewardPairs) -> int:
    """A token to pad with that no conversation ends with.

    transformers scores the last token that is not padding; where the template ends with the padding token, that would
    be another one than the servers score.

    Raises:
        TrainingError: the tokenizer has none.
    """
    last = {ids[-1] for ids in (*pairs.chosen_ids, *pairs.rejected_ids)}
    special = sorted(token for token, text in tokenizer.added_tokens_decoder.items() if text.special)
    for token in (tokenizer.pad_token_id, *special):
        if token is not None and token not in last:
            return token
    raise TrainingError("every special token of the tokenizer ends a conversation, so none is left to pad with")


def _trainer(settings: RewardTraining, folder: Path, tokenizer, pad: int, train: RewardPairs) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, TaskType
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl import RewardConfig, RewardTrainer

    on_gpu = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch sees no GPU here")
    set_seed(settings.seed)  # of the score head
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            settings.model, num_labels=1, dtype=getattr(torch, settings.dtype)
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"--model {settings.model} cannot be loaded as a classifier: {error}") from None
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions and train.longest > positions:
        raise TrainingError(f"--max-length {settings.max_length}: the model has {positions} positions")
    model.config.pad_token_id = pad
    columns = {"chosen_ids": train.chosen_ids, "rejected_ids": train.rejected_ids}
    if train.margins is not None or settings.margin:
        columns["margin"] = train.margins or [settings.margin] * len(train)
    steps = settings.epochs * len(train) / (settings.batch_size * settings.grad_accum)
    arguments = RewardConfig(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=settings.epochs,
        learning_rate=settings.lr,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.grad_accum,
        warmup_steps=round(settings.warmup * steps),
        lr_scheduler_type="cosine",
        max_length=None,  # what is too long has been left out, and counted
        center_rewards_coefficient=settings.center,
        pad_token=tokenizer.pad_token,
        gradient_checkpointing=False,
        bf16=on_gpu and settings.dtype == "float32",
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        report_to="none",
    )
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules="all-linear",
        modules_to_save=["score"],
    )
    return RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=lora if settings.lora_rank else None,
    )


def _scorer(trainer, pad: int, settings: RewardTraining) -> Callable:
    """Raw float32 rewards of lists of token ids, as the model computes them."""
    import numpy as np
    import torch

    @torch.no_grad()
    def score(sequences: list[list[int]]):
        model, rewards = trainer.model, np.empty(len(sequences), dtype=np.float64)
        was_training = model.training
        model.eval()
        order = sorted(range(len(sequences)), key=lambda at: len(sequences[at]))
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            width = max(len(sequences[at]) for at in rows)
            ids = torch.full((len(rows), width), pad)
            mask = torch.zeros(len(rows), width, dtype=torch.long)
            for row, at in enumerate(rows):
                ids[row, : len(sequences[at])] = torch.tensor(sequences[at])
                mask[row, : len(sequences[at])] = 1
            logits = model(input_ids=ids.to(trainer.args.device), attention_mask=mask.to(trainer.args.device)).logits
            rewards[rows] = logits[:, 0].float().cpu().numpy()
        model.train(was_training)
        return rewards

    return score


def _margins(score: Callable, pairs: RewardPairs):
    """Reward of chosen minus rejected, and all rewards."""
    rewards = score(pairs.chosen_ids + pairs.rejected_ids)
    chosen, rejected = rewards[: len(pairs)], rewards[len(pairs) :]
    return chosen - rejected, rewards


def _write(trainer, tokenizer, folder: Path, settings: RewardTraining, result: TrainedRewardModel, note: dict) -> None:
    made = folder / ".partial"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    model = trainer.model
    if settings.lora_rank:
        model.save_pretrained(made / "adapter")
        model = model.merge_and_unload()
    model.config.num_labels = 1
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    log = "".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
    (made / "train_log.jsonl").write_text(log, encoding="utf-8")
    try:
        plot_calibration(result.after, made / "calibration.png", Path(settings.model).name)
    except ImportError:
        print('calibration.png not drawn: pip install "verl-aiops[plot]"')
    after = asdict(result.after)
    stats = {
        "reward_mean": result.mean,
        "reward_std": result.std,
        **{name: after.pop(name) for name in ("pairs", "accuracy", "accuracy_low", "accuracy_high")},
        **after,
        "accuracy_before": result.before.accuracy,
        "log_loss_before": result.before.log_loss,
        "train_pairs": result.train_pairs,
        "too_long": result.too_long,
        "settings": note,
    }
    (made / STATS).write_text(json.dumps(stats, indent=1) + "\n", encoding="utf-8")
    move_into(folder, made, last=STATS)
