"""verl's synchronous trainer, which also logs the parts of the reward, leaves no answer without a score unnoticed, and
serves a colocated reward model beside a rule.

verl logs what a reward returns beside its score in validation only; trains on whatever number comes; and hands a
colocated reward model's manager neither the ground truth nor the rounds.

Nothing here knows what is rewarded: see `reward_side.py`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch
from omegaconf import DictConfig, open_dict

from verl_aiops.seam import queue as tq
from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.seam.queue import KVBatchMeta
from verl_aiops.seam.trainer import PPOTrainerSync, Role, marked_timer
from verl_aiops.trainers.config import shares_prompts
from verl_aiops.trainers.dpo.checkpoints import NotedCheckpoints, resume_folder
from verl_aiops.trainers.rl.looks import OftenLooks
from verl_aiops.trainers.rl.resumed_workers import ResumedActor, ResumedCritic, SharedCritic
from verl_aiops.trainers.rl.reward_rows import (
    SCORED_FIELDS,
    RewardFailures,
    final_outputs,
    reward_failures,
    rows_of,
    score_row,
    scoring_batch,
    session_of,
)
from verl_aiops.trainers.rl.reward_side import REWARD_SIDES, RewardSide
from verl_aiops.trainers.rl.shared_steps import SharedPromptSteps
from verl_aiops.trainers.runs.finite import FiniteRun
from verl_aiops.trainers.runs.log import RunLog
from verl_aiops.trainers.runs.note import RunNote
from verl_aiops.trainers.runs.resume import rl_note

__all__ = ["ScoredTrainer", "part_metrics"]

NEVER_CAME = "their generation or reward raised; the errors stand further up"


def part_metrics(extra_fields: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the rows of a step.

    Returns:
        ``reward/<part>`` for each number that the reward returned, over the rows where it is finite;
        ``rounds/cut_<k>``, the share of answers of round k that used up their budget without an end.
    """
    parts: dict[str, list[float]] = defaultdict(list)
    for fields in extra_fields:
        for name, value in (fields.get("reward_extra_info") or {}).items():
            if not isinstance(value, str) and np.isfinite(value):
                parts[f"reward/{name}"].append(float(value))
        for at, cut in enumerate(fields.get("round_cut") or (), 1):
            parts[f"rounds/cut_{at}"].append(float(cut))
    return {name: float(np.mean(values)) for name, values in parts.items()}


class ScoredTrainer(NotedCheckpoints, FiniteRun, RunLog, OftenLooks, SharedPromptSteps, PPOTrainerSync):
    """`PPOTrainerSync` in every respect but the rewards, what is logged and dumped of them, what a resume uses, how
    often it looks for answers, and steps whose actor shares prompts.

    Which of verl's methods are overridden, why, and who calls them stands in `verl_patches/overrides.py`.
    """

    _note: RunNote | None = None

    def __init__(self, config: DictConfig):
        if self._note is None:
            # as the user gave the settings, before verl fills in numbers
            self._note = rl_note(config)
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"  # verl's parts look it up
        super().__init__(config)
        self.reward_side = REWARD_SIDES.get(config.reward.reward_manager.name, lambda config: RewardSide())(config)
        self.drawn = 0  # prompts of the step at hand

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        batch = super().step(metrics, timing_raw)
        # a step of online DPO without a preference trains nothing
        if "actor/grad_norm" in metrics:
            self.watch_finite(metrics)
        return batch

    # --- second runs -------------------------------------------------------------------------------------------------

    def run_note(self) -> RunNote:
        return replace(self._note, total_steps=self.total_training_steps, steps_per_epoch=self.steps_per_epoch)

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        if self.config.actor_rollout_ref.actor.strategy in ("fsdp", "fsdp2"):
            critic = SharedCritic if shares_prompts(self.config, "critic") else ResumedCritic
            self.role_worker_mapping = {
                role: ray.remote(critic if role == Role.Critic else ResumedActor) for role in self.role_worker_mapping
            }

    # --- rewards -----------------------------------------------------------------------------------------------------

    def _setup(self):
        self.reward_side.start()
        super()._setup()

    def _load_checkpoint(self):
        super()._load_checkpoint()
        folder = resume_folder(self.config.trainer)
        if folder:
            self.reward_side.load(folder)

    def _save_checkpoint(self):
        self.reward_side.save(self._checkpoint_folder())
        super()._save_checkpoint()

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        self.drawn = sample_batch_size
        return super()._step_once(metrics, timing_raw, sample_batch_size)

    def _balance_batch(self, batch: KVBatchMeta, metrics, **kwargs):
        # the first thing that verl does with a batch once its rewards are there
        return super()._balance_batch(self._with_scores(batch, metrics), metrics, **kwargs)

    def _take_in(self, batch: KVBatchMeta) -> tuple[list[float], list[dict[str, Any]]]:
        """Scores and the reward's parts by row.

        Raises:
            RuntimeError: no answer came at all, or more have no score, or are missing, than the reward manager allows.
        """
        self._refuse_empty(batch)
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["rm_scores", "extra_fields"]
        )
        infos = [row.get("reward_extra_info") or {} for row in data.pop("extra_fields").tolist()]
        scores = [float(row.sum()) for row in rows_of(data["rm_scores"])]
        final = set(final_outputs(batch.keys))
        self.reward_side.see([info for key, info in zip(batch.keys, infos) if key in final])
        failures = reward_failures(batch.keys, scores, infos, compared=False)
        asked, missing = self._asked(batch.keys)
        if self.reward_side.decides_on_failures and self._stops_run(failures, asked, missing):
            raise RuntimeError(self._failure_text(failures, asked, missing))
        return scores, infos

    def _asked(self, keys: list[str]) -> tuple[int, int]:
        """Answers that were asked for, and how many of them never came: a session whose generation or reward raised is
        missing from verl's batch without a word, and so is a prompt all of whose sessions did."""
        sessions = {session_of(key) for key in keys}
        prompts = max(self.drawn, len({session_of(session) for session in sessions}))
        asked = prompts * self.config.actor_rollout_ref.rollout.n
        return max(asked, len(sessions)), max(0, asked - len(sessions))

    def _refuse_empty(self, batch: KVBatchMeta) -> None:
        if not batch.keys:
            asked, missing = self._asked([])
            raise RuntimeError(self._failure_text(RewardFailures((), (), (), ""), asked, missing))

    def _stops_run(self, failures: RewardFailures, asked: int, missing: int) -> bool:
        return len(failures.failed) + missing > self.reward_side.failures_allowed * asked

    def _with_scores(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Without the answers that have no score, and those that this leaves alone; both are counted."""
        scores, infos = self._take_in(batch)
        n = self.config.actor_rollout_ref.rollout.n
        compared = n > 1 and self.config.algorithm.adv_estimator != "gae"
        failures = reward_failures(batch.keys, scores, infos, compared, n)
        asked, missing = self._asked(batch.keys)
        metrics["reward/failed_rows"] = float(len(failures.failed))
        metrics["reward/alone_rows"] = float(len(failures.alone))
        metrics["reward/missing_rows"] = float(missing)
        if self._stops_run(failures, asked, missing) or not failures.kept:
            raise RuntimeError(self._failure_text(failures, asked, missing))
        if not failures.failed and not missing:
            return batch
        print(
            f"verl-aiops: step {self.global_steps}: {len(failures.failed)} of {asked} answers have no score and are "
            f"left out, {missing} never came, {len(failures.alone)} more go for want of another answer: "
            f"{failures.reason or NEVER_CAME}",
            flush=True,
        )
        if len(failures.kept) == len(batch.keys):
            return batch
        # nobody else will: verl's loop clears the keys of the batch that a step returns
        kept = set(failures.kept)
        tq.kv_clear(keys=[key for key in batch.keys if key not in kept], partition_id=batch.partition_id)
        return batch.select_keys(list(failures.kept))

    def _failure_text(self, failures: RewardFailures, asked: int, missing: int = 0) -> str:
        reason = failures.reason or NEVER_CAME
        count = len(failures.failed) + missing
        return f"{count} of {asked} answers of step {self.global_steps} have no score: {reason}. " + (
            self.reward_side.advice()
        )

    def _compute_reward_colocate(self, batch: KVBatchMeta, metrics: dict | None = None) -> KVBatchMeta:
        self._refuse_empty(batch)
        if not self.reward_side.asks_colocated_model:
            return super()._compute_reward_colocate(batch, metrics)
        fields = ["prompts", "responses", "response_mask", "extra_fields", *SCORED_FIELDS]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        columns = {name: rows_of(data[name]) for name in data.keys()}
        rows = {key: {name: column[at] for name, column in columns.items()} for at, key in enumerate(batch.keys)}
        # one score a session, whatever number of outputs it has; each of its rows gets it
        final = final_outputs(batch.keys)
        output = self.reward_loop_manager.compute_rm_score(
            scoring_batch([rows[key] for key in final], self.global_steps)
        )
        parts = {name: output.non_tensor_batch[name].tolist() for name in output.meta_info["reward_extra_keys"]}
        infos = {session_of(key): {name: part[at] for name, part in parts.items()} for at, key in enumerate(final)}
        scores, extra = [], []
        for key, row in rows.items():
            info = infos[session_of(key)]
            scores.append(score_row(row["response_mask"], info["score"]))
            extra.append({**row["extra_fields"], "reward_extra_info": info})
        nested = torch.nested.as_nested_tensor(scores, layout=torch.jagged)
        tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=tu.get_tensordict({"rm_scores": nested, "extra_fields": extra}),
        )
        return batch

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None
    ):
        """verl's, over the answers that have a score; those that never came count as failed."""
        infos = reward_extra_infos_dict
        kept = [at for at, score in enumerate(infos["reward"]) if np.isfinite(score)]
        failed = len(infos["reward"]) - len(kept)
        asked = max(sum((expected_acc_counts or {}).values()), len(infos["reward"]))
        missing = asked - len(infos["reward"])
        if failed or missing:
            reasons = (text for text in infos.get("rm_error", ()) if text)
            reason = next(reasons, "their score is not finite") if failed else ""
            everything = RewardFailures(("",) * failed, (), (), reason)
            if self._stops_run(everything, asked, missing) or not kept:
                raise RuntimeError("validation: " + self._failure_text(everything, asked, missing))
            # what is left out here is not expected any more: verl would count it as wrong
            if expected_acc_counts:
                expected_acc_counts = dict(expected_acc_counts)
                for at in set(range(len(infos["reward"]))) - set(kept):
                    expected_acc_counts[str(data_sources[at]), str(sample_uids[at])] -= 1
            data_sources, sample_uids, sample_turns = (
                [column[at] for at in kept] for column in (data_sources, sample_uids, sample_turns)
            )
            infos = {name: [values[at] for at in kept] for name, values in infos.items()}
        metrics = super()._val_metrics_update(data_sources, sample_uids, infos, sample_turns, expected_acc_counts)
        return metrics | {
            "val-aux/reward/failed_rows": float(failed),
            "val-aux/reward/missing_rows": float(missing),
        }

    # --- what is logged ----------------------------------------------------------------------------------------------

    def _extra_fields(self, keys: list[str], partition_id: str) -> list[dict[str, Any]]:
        data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["extra_fields"])
        return data.pop("extra_fields").tolist()

    def _compute_metrics(self, batch: KVBatchMeta, metrics, timing_raw, global_steps, epoch):
        if any(tag.get("min_global_steps") is None for tag in batch.tags if not tag.get("is_padding", False)):
            # verl would end in a TypeError that names nothing
            raise RuntimeError(
                "an agent loop does not say which weights an answer was made with: give its AgentLoopOutput what the "
                "engine said, extra_fields={**output.extra_fields, ...} (docs/extending.md)"
            )
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
        # `_balance_batch` may have added rows that only fill the batch up
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
