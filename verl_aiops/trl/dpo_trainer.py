"""TRL's DPOTrainer on pairs that are token ids already, with our masks, our order and our metrics file."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerState
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

from verl_aiops.files import write_atomically
from verl_aiops.losses import rounding, share_right
from verl_aiops.trl.dpo_data import PairSampler

__all__ = ["MaskedPairCollator", "MetricsFile", "PairDPOTrainer"]

# TRL's names in the words of verl's file logger, which the reports read
NAMES = {"loss": "actor/loss", "grad_norm": "actor/grad_norm", "learning_rate": "actor/lr", "epoch": "training/epoch"}
HELD_OUT = "eval_"


class MaskedPairCollator(DataCollatorForPreference):
    """TRL's collator, whose ``completion_mask`` is 1 on every answer token, with our masks in its place.

    In an answer of several turns the user's stand between the assistant's, and are not the model's to learn. TRL's
    loss, reference pass and metrics all go by ``completion_mask``, so the mask is all that has to differ.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        masks = [
            torch.tensor([0] * len(example["prompt_ids"]) + list(example[f"{side}_mask"]))
            for side in ("chosen", "rejected")
            for example in examples
        ]
        batch["completion_mask"] = pad(masks, padding_value=0, padding_side="right")
        return batch


class PairDPOTrainer(DPOTrainer):
    """Takes data sets with the columns of `dpo_data.COLUMNS`; loss, reference and loop are TRL's.

    Adds ``logps/accuracies``, the share of pairs whose chosen answer has the higher log-prob under the policy itself,
    and weights held-out metrics by pairs, so that a smaller last batch does not count like a whole one.
    """

    def __init__(self, *args, **kwargs):
        self._held_out_pairs: list[int] = []
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # TRL would look for texts and render them

    def _get_train_sampler(self, train_dataset=None) -> PairSampler:
        step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return PairSampler(len(self.train_dataset), step, self.args.data_seed)

    def train_from(self, checkpoint: str | None) -> None:
        """Train from the beginning, or go on from a checkpoint; after one of the last step nothing is left to train.

        transformers' loop asks whether a run is over only after a step, so it would take one more.
        """
        if checkpoint is not None:
            state = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
            if state.global_step >= state.max_steps:
                self._load_from_checkpoint(checkpoint)
                self.state = state
                return
        self.train(resume_from_checkpoint=checkpoint)

    def _compute_loss(self, model, inputs, return_outputs):
        outputs: list[Any] = []
        hook = model.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            result = super()._compute_loss(model, inputs, return_outputs)
        finally:
            hook.remove()
        # the policy's pass is the first; a reference without adapters may be another pass of the same module
        chosen, rejected = outputs[0].log_probs.detach().sum(dim=1).chunk(2)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["logps/accuracies"].append(
            share_right(chosen - rejected, rounding(chosen, rejected)).mean().item()
        )
        if mode == "eval":
            self._held_out_pairs.append(len(chosen))
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not self.model.training and self._held_out_pairs:
            metrics = self._metrics["eval"]
            for name, values in metrics.items():
                if len(values) == len(self._held_out_pairs):
                    metrics[name] = [float(np.average(values, weights=self._held_out_pairs))]
            self._held_out_pairs.clear()
        super().log(logs, start_time)


class MetricsFile(TrainerCallback):
    """Writes what the trainer logs as lines of verl's file logger: ``{"step": n, "data": {...}}``.

    A run that goes on from a checkpoint keeps the lines up to its step.
    """

    def __init__(self, path: Path, held_out: int):
        self.path, self.held_out = path, held_out
        self._began = self._seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        kept = [line for line in self._lines() if 0 < state.global_step >= json.loads(line)["step"]]
        write_atomically(self.path, "".join(kept))

    def _lines(self) -> list[str]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [line for line in lines if line.endswith("\n")]  # the last one may have been cut short

    def on_step_begin(self, args, state, control, **kwargs):
        self._began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds = time.perf_counter() - self._began

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            data = {NAMES.get(name, name): value for name, value in logs.items()}
            data |= {"timing_s/step": self._seconds, "training/global_step": state.global_step}
        elif any(name.startswith(HELD_OUT) for name in logs):
            data = {
                f"val/{name.removeprefix(HELD_OUT)}": value for name, value in logs.items() if name.startswith(HELD_OUT)
            }
            data["val/pairs"] = float(self.held_out)
        else:
            return  # totals of the run, at its end
        # as verl's logger writes a number that is not finite
        data = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in data.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, "data": data}) + "\n")
