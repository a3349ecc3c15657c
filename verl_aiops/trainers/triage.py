"""verl's synchronous trainer, which also logs the parts of the reward and the rounds while it trains.

verl logs what a reward returns beside its score in validation only; in training one sees a single number.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug import marked_timer

__all__ = ["TriageTrainer", "part_metrics"]


def part_metrics(extra_fields: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the rows of a step.

    Returns:
        ``reward/<part>`` for each number that the reward returned; ``rounds/cut_<k>``, the share of answers of round k
        that used up their budget without an end.
    """
    parts: dict[str, list[float]] = defaultdict(list)
    for fields in extra_fields:
        for name, value in (fields.get("reward_extra_info") or {}).items():
            if not isinstance(value, str):
                parts[f"reward/{name}"].append(float(value))
        for at, cut in enumerate(fields.get("round_cut") or (), 1):
            parts[f"rounds/cut_{at}"].append(float(cut))
    return {name: float(np.mean(values)) for name, values in parts.items()}


class TriageTrainer(PPOTrainerSync):
    """`PPOTrainerSync` in every respect but what it logs and dumps."""

    def __init__(self, config: DictConfig):
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"  # verl's parts look it up
        super().__init__(config)

    def _extra_fields(self, keys: list[str], partition_id: str) -> list[dict[str, Any]]:
        data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["extra_fields"])
        return data.pop("extra_fields").tolist()

    def _compute_metrics(self, batch: KVBatchMeta, metrics, timing_raw, global_steps, epoch):
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
        real = [key for key, tag in zip(batch.keys, batch.tags) if not tag.get("is_padding", False)]
        metrics.update(part_metrics(self._extra_fields(real or batch.keys, batch.partition_id)))

    def _log_rollout_data(self, batch: KVBatchMeta, timing_raw: dict, rollout_data_dir: str):
        """Dump each row with the reward's parts and the rounds' texts, as verl does in validation."""
        with marked_timer("dump_rollout_generations", timing_raw, color="green"):
            keys = sorted(
                key for key, tag in zip(batch.keys, batch.tags) if not tag.get("is_padding", False)
            )  # {uid}_{session}_{output}: rows of one prompt side by side
            fields = ["prompts", "responses", "rm_scores", "reward_model", "extra_fields"]
            data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
            infos = [row.get("reward_extra_info") or {} for row in data.pop("extra_fields").tolist()]
            names = list(dict.fromkeys(name for info in infos for name in info if name != "score"))
            decode = self.tokenizer.decode
            self._dump_generations(
                inputs=[decode(ids, skip_special_tokens=True) for ids in data["prompts"].unbind()],
                outputs=[decode(ids, skip_special_tokens=True) for ids in data["responses"].unbind()],
                gts=[row.get("ground_truth") for row in data.pop("reward_model").tolist()],
                scores=[row.sum().item() for row in data["rm_scores"].unbind()],
                reward_extra_infos_dict={name: [info.get(name) for info in infos] for name in names} | {"uid": keys},
                dump_path=rollout_data_dir,
            )
