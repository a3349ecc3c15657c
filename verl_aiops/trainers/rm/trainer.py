"""A reward model on verl's engines: what ``main_ppo`` runs for ``algorithm.adv_estimator=rm``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from verl_aiops.data import PreferenceDataset
from verl_aiops.trainers.dpo.offline import OfflineDPOTrainer
from verl_aiops.trainers.rm.config import RewardModelConfig
from verl_aiops.trainers.rm.objective import RewardObjective
from verl_aiops.trainers.rm.result import HeldOut, write_result
from verl_aiops.trainers.runs.finite import check_scores

__all__ = ["RewardModelTrainer"]

# pairs of the training data that are scored at the end where nothing is held out
_MOST_SCORED = 512


class RewardModelTrainer(OfflineDPOTrainer):
    """Offline DPO's loop, data, batches, checkpoints and resume, with a classifier in place of a policy.

    There is no reference: nothing is scored before the first step, and nothing kept of it.
    """

    kind = "rm"
    settings_class = RewardModelConfig

    def __init__(self, config: DictConfig):
        super().__init__(config)
        # margins rise while both scores fall, and that is no failure here: only differences are trained
        self.watch.quiet = True
        # of the validation before the first step of this process
        self._accuracy_before: float | None = None

    def _begin_training(self) -> None:
        self.actor_rollout_wg.set_loss_fn(RewardObjective(**self.dpo.loss_settings()))
        self.check_weights(f"of {self.config.actor_rollout_ref.model.path}")

    @staticmethod
    def _worker_metrics(metrics) -> dict[str, float]:
        return with_spread(OfflineDPOTrainer._worker_metrics(metrics), "rewards")

    def _validate(self) -> dict[str, float]:
        metrics = with_spread(super()._validate(), "val/rewards")
        if self.global_steps == 0:
            self._accuracy_before = metrics.get("val/rewards/accuracies")
        return metrics

    def scores(self, dataset: PreferenceDataset, indices: np.ndarray) -> list[np.ndarray]:
        """Of each of these examples the scores of its answers, in their order, as the workers' weights are now."""
        size = self.mini_pairs * max(1, 64 // self.mini_pairs)
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(indices), size):
            real = indices[start : start + size]
            filled = np.concatenate([real, np.full(size - len(real), real[0])])
            order = self._arrangement(dataset, filled, size)
            batch = self.build_batch(dataset, filled[order], mini_pairs=size, counted=(order < len(real)).tolist())
            given = self.actor_rollout_wg.answer_scores(batch)["answer_scores"].values().float().numpy()
            rows = given.reshape(size, self.rows_per_example)
            for at, of_example in zip(order.tolist(), rows, strict=True):
                if at < len(real):
                    found[int(real[at])] = of_example[: len(answers_of(dataset, int(real[at])))]
        scores = [found[int(at)] for at in indices]
        check_scores([np.concatenate(scores)], "held-out scores at the end", "")
        return scores

    def finish_export(self, folder: Path) -> None:
        """Padding that no conversation ends with, and what the scores of held-out answers are like."""
        held_out = self.val_dataset is not None
        dataset = self.val_dataset if held_out else self.train_dataset
        every = np.arange(len(dataset))
        indices = every if held_out else every[:: max(1, len(every) // _MOST_SCORED)][:_MOST_SCORED]
        scores = self.scores(dataset, indices)
        result = HeldOut.of([dataset[int(at)] for at in indices], scores)
        lines = write_result(
            folder,
            result,
            tokenizer=self.tokenizer,
            last_tokens=_last_tokens([d for d in (self.train_dataset, self.val_dataset) if d is not None]),
            more={
                "held_out": held_out,
                "accuracy_before": self._accuracy_before,
                "train_pairs": len(self.train_dataset),
                "dropped": dict(self.train_dataset.report.dropped),
                "files": {key: _names(self.config.data[f"{key}_files"]) for key in ("train", "val")},
                "settings": self._settings,
            },
            title=Path(str(self.config.actor_rollout_ref.model.path)).name,
        )
        for line in lines:
            print(f"verl-aiops: {line}", flush=True)


def with_spread(metrics: dict[str, float], under: str) -> dict[str, float]:
    """The mean square of scores, which workers can average, as their standard deviation."""
    square = metrics.pop(f"{under}/square", None)
    if square is None:
        return metrics
    spread = max(0.0, square - metrics[f"{under}/mean"] ** 2) ** 0.5
    return metrics | {f"{under}/std": spread}


def answers_of(dataset: PreferenceDataset, index: int) -> list[str]:
    """Names of an example's answers, as many as it has."""
    item = dataset[index]
    if item["kind"] == "pair":
        return ["chosen", "rejected"]
    return ["answer"] if item["kind"] == "single" else [str(at) for at in range(len(item["answers_ids"]))]


def _last_tokens(datasets: list[PreferenceDataset]) -> set[int]:
    return {
        int(item[name][-1])
        for dataset in datasets
        for item in (dataset[at] for at in range(len(dataset)))
        for name in ("chosen_ids", "rejected_ids", "answer_ids")
        if name in item
    } | {
        int(ids[-1])
        for dataset in datasets
        for item in (dataset[at] for at in range(len(dataset)))
        for ids in item.get("answers_ids", ())
    }


def _names(files: Any) -> list[str]:
    """Without their folders, which are nobody's business where the model goes."""
    named = [] if files is None else [files] if isinstance(files, str) else files
    return [Path(str(name)).name for name in named]
