"""`verl-aiops trl-dpo`: the preference file of main_ppo, trained on by TRL's DPOTrainer; the result is a model folder.

TRL gets our token ids and masks (`dpo_data`), so that both trainers see the same; docs/trl.md says what differs.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_aiops.data.repeats import count_untrained, shared_text
from verl_aiops.inputs.shown import counted
from verl_aiops.models.weights import MOST_OF_A_FILE
from verl_aiops.trl.dpo_data import PairSampler, on_disk, read_pairs, shared_pairs
from verl_aiops.trl.dpo_settings import DPOTraining
from verl_aiops.trl.dpo_start import check_fit, load_model, require_recent_trl
from verl_aiops.trl.extra import (
    CHECKPOINTS,
    TrainingError,
    check_folder,
    last_checkpoint,
    load_tokenizer,
    move_into,
    prepare_folder,
)
from verl_aiops.trl.options import trl_options
from verl_aiops.trl.run import card_of, empty_folder, lora_of, pick_device, usual_arguments, without_adapter

if TYPE_CHECKING:
    from verl_aiops.data import PreferenceDataset

__all__ = ["DPOTraining", "TrainedPolicy", "build_trainer", "train_dpo"]

STATS = "dpo_stats.json"
METRICS = "metrics.jsonl"
# fields of TRL's configuration that a run decides by itself
SETTLED = {
    "max_length": None,  # lengths have been settled, pair by pair
    "remove_unused_columns": False,  # the masks
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "save_strategy": "steps",
    "prediction_loss_only": True,
    # of TRL's collator and of a loss without log-probs, in whose place PairDPOTrainer has its own
    "padding_free": False,
    "pad_to_multiple_of": None,
    "pad_token": None,
    "use_liger_kernel": False,
}
# those that it decides unless they are given
OPEN = {"report_to": "none", "save_total_limit": 2}
CURVES = {
    "actor/loss": "loss",
    "rewards/margins": "reward margin (chosen - rejected)",
    "rewards/accuracies": "share of pairs with a positive margin",
    "logps/chosen": "log-prob of the chosen answer (nats)",
}


@dataclass(frozen=True)
class TrainedPolicy:
    """What came out, and `summary` of it. ``before`` and ``after``: measurements on held-out pairs, or None."""

    folder: str
    steps: int
    train: str
    val: str | None
    first_loss: float
    last_loss: float
    held_out_in_training: int
    before: dict[str, float] | None
    after: dict[str, float] | None

    def summary(self) -> str:
        lines = [
            f"model: {self.folder}",
            f"  data: {self.train}",
            f"  {counted(self.steps, 'step')}, loss {self.first_loss:.4f} at the first, "
            f"{self.last_loss:.4f} at the last",
        ]
        if self.before and self.after:
            lines += [f"  held out: {self.val}", f"  {'':38}{'before':>10}{'after':>10}"]
            for name, title in (
                ("val/loss", "loss"),
                ("val/logps/accuracies", "pairs ranked right by the policy"),
                ("val/rewards/accuracies", "pairs ranked right by the DPO reward"),
                ("val/rewards/margins", "DPO reward margin"),
            ):
                lines.append(f"  {title:38}{self.before[name]:10.4f}{self.after[name]:10.4f}")
        if self.held_out_in_training:
            lines.append(
                f"  {self.held_out_in_training} of the held-out pairs are in the training data too: they prove nothing"
            )
        return "\n".join([*lines, "use it with", f"  actor_rollout_ref.model.path={self.folder}"])


def train_dpo(settings: DPOTraining, out: str, overwrite: bool = False) -> TrainedPolicy:
    """Train, measure, write.

    ``out`` becomes a plain transformers folder with tokenizer and chat template, LoRA merged; beside that it gets
    ``metrics.jsonl``, ``curves.png`` (with matplotlib), ``dpo_stats.json``, ``adapter/`` (with LoRA) and
    ``checkpoints/``, which may be removed. Called again after a stop, it goes on from the last checkpoint.

    Raises:
        TrainingError: TRL is missing or too old; a setting, the model or the folder cannot be used; or the training
            diverged.
        PreferenceDataError: the data cannot be used.
    """
    require_recent_trl()
    settings.check()
    _more_options(settings)  # what is wrong with them is told before any data is read
    pick_device(settings.device)
    check_folder(out, {}, finished=STATS, overwrite=overwrite)
    tokenizer = load_tokenizer(settings.model)
    train = read_pairs(settings.data, tokenizer, settings)
    val = read_pairs(settings.val, tokenizer, settings) if settings.val else None
    check_fit(settings, *filter(None, (train, val)))
    note = {**asdict(settings), "data": train.identity(), "val": val.identity() if val else None}
    note = json.loads(json.dumps(note))
    check_folder(out, note, finished=STATS, overwrite=overwrite)
    model, reference = load_model(settings, settings.model), None
    if settings.reference_model:
        reference = load_model(settings, settings.reference_model, option="--reference-model")
    folder = prepare_folder(out, note, finished=STATS, overwrite=overwrite)
    checkpoint = last_checkpoint(folder)
    if checkpoint:
        print(f"going on from {checkpoint}")
    in_training = shared_pairs(val, train) if val else 0
    if in_training:
        print(shared_text(in_training, len(val)))
    steps = settings.max_steps or math.ceil(settings.epochs * (len(train) // settings.batch_size))
    order = PairSampler(len(train), settings.batch_size, settings.seed)
    untrained = count_untrained(len(train), settings.batch_size, steps, order.order)
    if untrained:
        print(f"{untrained} of {len(train)} pairs are in none of the {steps} steps of {settings.batch_size} pairs")
    seen = (settings.max_steps or 0) * settings.batch_size
    if settings.reference == "cached" and 0 < seen < len(train):
        print(
            f"the reference scores all {len(train)} pairs first, though --max-steps {settings.max_steps} trains on "
            f"{seen}; --reference live scores those alone"
        )
    trainer = build_trainer(settings, folder, tokenizer, model, train, val, reference, resumed=bool(checkpoint))
    trainer.train_from(checkpoint)
    steps = trainer.state.global_step
    if val and not any("val/loss" in row and row["step"] == steps for row in _rows(folder)):
        trainer.evaluate()
    made = empty_folder(folder)
    trainer.model = without_adapter(trainer.model, settings, made)
    _check_finite(trainer.model)
    rows = _rows(folder)
    losses = [row["actor/loss"] for row in rows if "actor/loss" in row]
    measured = [row for row in rows if "val/loss" in row]
    result = TrainedPolicy(
        folder=str(out),
        steps=steps,
        train=str(train.report),
        val=str(val.report) if val else None,
        first_loss=losses[0],
        last_loss=losses[-1],
        held_out_in_training=in_training,
        before=measured[0] if measured else None,
        after=measured[-1] if measured else None,
    )
    _write(trainer.model, settings, made, rows, result, note)
    move_into(folder, made, last=STATS)
    return result


def build_trainer(
    settings: DPOTraining,
    folder: Path,
    tokenizer,
    model,
    train: PreferenceDataset,
    val: PreferenceDataset | None = None,
    reference=None,
    resumed: bool = False,
) -> Any:
    """The `PairDPOTrainer` of a run; with a cached reference, all pairs are scored here.

    Args:
        folder: gets checkpoints, token ids and metrics.
        reference: the reference model, or None for the initial policy.
        resumed: whether it will go on from a checkpoint, so that the measurement before training is there already.
    """
    from trl import DPOConfig

    from verl_aiops.trl.dpo_trainer import MaskedPairCollator, MetricsFile, PairDPOTrainer

    steps = settings.max_steps or math.ceil(settings.epochs * (len(train) // settings.batch_size))
    warmup = round(settings.warmup * steps)
    arguments = DPOConfig(
        **SETTLED,
        **usual_arguments(settings, folder, OPEN, _more_options(settings)),
        beta=settings.beta,
        loss_type=list(settings.loss_type),
        loss_weights=None if settings.loss_weights is None else list(settings.loss_weights),
        label_smoothing=settings.label_smoothing,
        precompute_ref_log_probs=settings.reference == "cached",
        max_steps=settings.max_steps or -1,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" and warmup else settings.schedule,
        warmup_steps=warmup,
        per_device_train_batch_size=settings.micro_batch,
        per_device_eval_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch,
        gradient_checkpointing=settings.gradient_checkpointing,
        eval_strategy="steps" if val and settings.eval_steps else "no",
        eval_steps=settings.eval_steps or None,
        eval_on_start=val is not None and not resumed,
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is told from answers by masks alone
    data = folder / CHECKPOINTS / "pairs"
    return PairDPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        data_collator=MaskedPairCollator(pad_token_id=tokenizer.pad_token_id),
        train_dataset=on_disk(train, data / "train"),
        eval_dataset=on_disk(val, data / "val") if val else None,
        processing_class=tokenizer,
        peft_config=lora_of(settings, "CAUSAL_LM"),
        callbacks=[MetricsFile(folder / METRICS, held_out=len(val) if val else 0)],
    )


def _more_options(settings: DPOTraining) -> dict[str, Any]:
    return trl_options(settings, "DPOConfig", (*SETTLED, "output_dir"))


def _check_finite(model) -> None:
    import torch

    if not all(torch.isfinite(weights).all() for weights in model.parameters()):
        raise TrainingError(
            "the training diverged, its weights are not finite: choose a smaller --lr, with --overwrite"
        )


def _rows(folder: Path) -> list[dict]:
    from verl_aiops.evaluation.training_curves import read_metrics

    return read_metrics(folder / METRICS)


def _write(model, settings: DPOTraining, made: Path, rows: list[dict], result: TrainedPolicy, note: dict) -> None:
    from verl_aiops.evaluation.training_curves import plot_curves

    # TRL's trainer turns it off; whoever generates with the model wants it on
    model.config.use_cache = True
    model.save_pretrained(made, max_shard_size=MOST_OF_A_FILE)
    # as it was, without what TRL sets on the one it trains with
    load_tokenizer(settings.model).save_pretrained(made)
    try:
        plot_curves({Path(settings.model).name: rows}, CURVES, made / "curves.png", columns=2)
    except ImportError:
        print('curves.png not drawn: pip install "verl-aiops[trl]"')
    card_of(settings, "dpo", metrics=made.parent / METRICS).write(made)
    stats = {**asdict(result), "files": {"data": settings.data, "val": settings.val}, "settings": note}
    (made / STATS).write_text(json.dumps(stats, indent=1) + "\n", encoding="utf-8")
