"""Offline DPO on verl's engines: what ``main_ppo`` runs for ``algorithm.adv_estimator=dpo``."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.single_controller.ray import RayClassWithInitArgs, RayWorkerGroup, create_colocated_worker_cls

from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.seam.queue import KVBatchMeta
from verl_aiops.seam.trainer import PPOTrainer, ResourcePoolManager, Role
from verl_aiops.trainers.config import DPOConfig
from verl_aiops.trainers.dpo.ahead import StepsAhead
from verl_aiops.trainers.dpo.checkpoints import resume_folder
from verl_aiops.trainers.dpo.likelihood_displacement import ChosenWatch
from verl_aiops.trainers.dpo.order import data_lines, example_lines, pair_order
from verl_aiops.trainers.dpo.pairs import load_pairs
from verl_aiops.trainers.dpo.shift import RunningShift
from verl_aiops.trainers.dpo.step_batches import ExampleBatches
from verl_aiops.trainers.dpo.training import PreferenceTraining
from verl_aiops.trainers.preflight.defaults import data_parallel_size
from verl_aiops.trainers.reference.scorer import ReferenceScorer
from verl_aiops.trainers.runs.finite import NotFiniteError
from verl_aiops.trainers.runs.note import RunNote, run_settings
from verl_aiops.trainers.runs.resume import start_model
from verl_aiops.trainers.together import in_blocks
from verl_aiops.trainers.worker.worker import PreferenceWorker

logger = logging.getLogger(__name__)

__all__ = ["NoRollouts", "OfflineDPOTrainer"]


class NoRollouts:
    """Stands where verl wants an agent loop manager; offline training generates nothing."""

    @classmethod
    def create(cls, **kwargs) -> None:
        return None


class OfflineDPOTrainer(ExampleBatches, StepsAhead, PreferenceTraining, PPOTrainer):
    """Preference pairs instead of rollouts; verl's engine, checkpoints, trackers and profiler as they are.

    Only the training workers are started: no rollout server, reward worker, critic or reference worker.
    """

    # what the check before Ray calls it, and the section of its settings
    kind = "dpo"
    settings_class: type = DPOConfig

    def __init__(self, config: DictConfig):
        super().__init__(config)
        # verl saves and reloads TransferQueue's content for every mode but this one; nothing is ever in flight here
        self.trainer_mode = "sync"
        self.dpo = self.settings_class.from_config(config)
        # as the user gave them, before the numbers below are filled in
        self._settings = run_settings(config, self.kind, self.dpo)
        self.use_critic = self.use_reference_policy = False
        self.mini_pairs = config.actor_rollout_ref.actor.ppo_mini_batch_size
        self.ranks = data_parallel_size(config)
        self._prepare_ahead()
        self.estimates_kl = self.dpo.estimates_kl
        self.singles_alone = "single" in self.dpo.kinds and not self.estimates_kl
        self.shift = RunningShift() if self.dpo.uses_shift else None
        self.watch = ChosenWatch(has_sft_term="sft" in str(self.dpo.loss_type) or self.dpo.sft_weight > 0)

    def _build_replay_buffer(self):
        return None

    # --- set-up ------------------------------------------------------------------------------------------------------

    def _setup(self):
        self._init_tokenizer()
        self._init_dataloader()
        self._init_dump_executor()
        self._init_resource_pool_mgr()
        self.resource_pool_manager.create_resource_pool()
        self.reference = ReferenceScorer(self)
        self.check_resume()
        if self.dpo.reference_path:
            self._score_with_other_model()
        self.actor_rollout_wg = self.spawn_workers(self.config.actor_rollout_ref)
        self._begin_training()
        if self.dpo.uses_reference and not self.dpo.reference_path:
            # now, while the workers still hold the initial policy: a checkpoint's weights are no reference
            live = self.dpo.reference == "live"
            self._keep_reference(is_lora=self._is_lora, live=live)
            if not live:
                self.reference.fill(self.actor_rollout_wg)
        self._load_checkpoint()

    @property
    def _is_lora(self) -> bool:
        model = self.config.actor_rollout_ref.model
        return model.lora_rank > 0 or model.lora_adapter_path is not None

    def _init_dataloader(self):
        data = self.config.data
        self.train_dataset = load_pairs(data, self.tokenizer, "train", dpo=self.dpo)
        self.val_dataset = load_pairs(data, self.tokenizer, "val", dpo=self.dpo) if data.val_files else None
        self.rows_per_example = max(
            dataset.rows_per_example for dataset in (self.train_dataset, self.val_dataset) if dataset is not None
        )
        self.train_dataloader = pair_order(self.train_dataset, data)
        self.train_prompts = self.train_dataloader.prompts
        if self.val_dataset is not None:
            numbers = self.val_dataset.prompt_numbers
            self.val_prompts = numbers if len(set(numbers.tolist())) < len(numbers) else None
        self.steps_per_epoch = self.train_dataloader.steps_per_epoch
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"data.train_files hold {len(self.train_dataset)} usable examples, fewer than one batch "
                f"(data.train_batch_size={data.train_batch_size})."
            )
        for name, dataset in (("train", self.train_dataset), ("val", self.val_dataset)):
            if dataset is not None:
                print(f"verl-aiops: {name}: {dataset.report}", flush=True)
        self.total_training_steps = (
            self.config.trainer.total_training_steps or self.steps_per_epoch * self.config.trainer.total_epochs
        )
        if self.total_training_steps > self.steps_per_epoch * self.config.trainer.total_epochs:
            # fit() stops at whichever ends first
            with open_dict(self.config):
                self.config.trainer.total_epochs = -(-self.total_training_steps // self.steps_per_epoch)
        with open_dict(self.config):
            self.config.actor_rollout_ref.actor.optim.total_training_steps = self.total_training_steps
        lines = data_lines(self.train_dataset, self.val_dataset, self.train_dataloader, self.total_training_steps)
        for line in [*lines, *example_lines(self.train_dataset, self.dpo)]:
            print(f"verl-aiops: {line}", flush=True)

    def _init_resource_pool_mgr(self):
        trainer = self.config.trainer
        self.mapping = {Role.Actor: "global_pool"}
        self.resource_pool_manager = ResourcePoolManager(
            resource_pool_spec={"global_pool": [trainer.n_gpus_per_node] * trainer.nnodes}, mapping=self.mapping
        )

    def spawn_workers(self, actor_rollout_ref: DictConfig) -> RayWorkerGroup:
        """Start one training worker per GPU and load the model that ``actor_rollout_ref.model.path`` names."""
        options: dict[str, Any] = {"device_name": self.config.trainer.device}
        profiler = self.config.global_profiler
        if OmegaConf.select(profiler, "steps") is not None:
            options["profile_steps"] = profiler.steps
            if profiler.tool == "nsys":
                options["worker_nsight_options"] = OmegaConf.to_container(
                    profiler.global_tool_config.nsys.worker_nsight_options
                )
        role = str(Role.Actor)
        worker = RayClassWithInitArgs(cls=ray.remote(PreferenceWorker), config=actor_rollout_ref, role=role)
        group = RayWorkerGroup(
            resource_pool=self.resource_pool_manager.get_resource_pool(Role.Actor),
            ray_cls_with_init=create_colocated_worker_cls(class_dict={role: worker}),
            **options,
        ).spawn(prefix_set=[role])[role]
        group.init_model()
        return group

    def _score_with_other_model(self):
        """Fill the cache with ``algorithm.dpo.reference_path``, then give its workers back."""
        if not self.dpo.uses_reference or self.reference.complete_without_model():
            return
        # a copy of the policy's settings, so that both compute alike, but for what makes the policy
        settings = OmegaConf.create(OmegaConf.to_container(self.config.actor_rollout_ref, resolve=True))
        settings.model.path = self.dpo.reference_path
        settings.model.lora_rank, settings.model.lora_adapter_path = 0, None
        group = self.spawn_workers(settings)
        try:
            self.reference.fill(group)
        finally:
            for worker in group.workers:
                ray.kill(worker)

    def reference_note(self) -> dict:
        return self.reference.note()

    def _write_notes(self, folder: str) -> None:
        super()._write_notes(folder)
        if self.shift is not None:
            self.shift.save(folder)

    def _load_checkpoint(self):
        super()._load_checkpoint()
        folder = resume_folder(self.config.trainer)
        if folder and self.shift is not None:
            self.shift = RunningShift.load(folder)

    def run_note(self) -> RunNote:
        return RunNote(
            trainer=self.kind,
            total_steps=self.total_training_steps,
            settings=self._settings,
            data=self.train_dataloader.state_dict(),
            model=start_model(self.config.actor_rollout_ref.model, None),
            held_out=self.val_dataset.identity() if self.val_dataset else None,
        )

    # --- what PPOTrainer asks of its modes ---------------------------------------------------------------------------

    def on_step_end(self): ...

    def on_sample_end(self): ...

    def get_llm_client(self):
        return None

    def get_teacher_client(self):
        return None

    def get_reward_handles(self):
        return None

    def _rollout_server_managers(self) -> list:
        return []

    def _log_rollout_data(self, batch, timing_raw, rollout_data_dir): ...

    # --- training ----------------------------------------------------------------------------------------------------

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        metrics.update(self._worker_metrics(self._update(timing_raw)))
        self.watch_finite(metrics)
        self._move_reference(timing_raw)
        if self.shift is not None and "rewards/unpaired" in metrics:
            kinds = self.train_dataset.kinds[self.train_dataloader.step(self.global_steps)]
            self.shift.add(metrics["rewards/unpaired"], int((kinds == "single").sum()))
        # a step of answers with a no alone has neither
        watched = [metrics[name] for name in ("rewards/chosen", "rewards/margins") if name in metrics]
        warning = self.watch.see(*watched) if len(watched) == 2 else None
        if warning:
            logger.warning(warning)
            print(f"verl-aiops: warning: {warning}", flush=True)
        # nothing stands in TransferQueue
        return KVBatchMeta()

    def _validate(self) -> dict[str, float]:
        if self.val_dataset is None:
            return {}
        # Whole mini-batches of the training shape; the last one is filled up with pairs that do not count. What comes
        # back is a mean over those that do, so it weighs as many as they are.
        size = self.mini_pairs * max(1, 64 // self.mini_pairs)
        total = len(self.val_dataset)
        whole = np.arange(total) if self.val_prompts is None else np.array(in_blocks(self.val_prompts.tolist(), size))
        sums: dict[str, float] = {}
        # what only some kinds of examples have may be missing in a batch
        weights: dict[str, float] = {}
        for start in range(0, total, size):
            real = whole[start : start + size]
            filled = np.concatenate([real, np.full(size - len(real), real[0])])
            order = self._arrangement(self.val_dataset, filled, size)
            batch = self.build_batch(
                self.val_dataset, filled[order], mini_pairs=size, counted=(order < len(real)).tolist()
            )
            output = self.actor_rollout_wg.evaluate_pairs(batch)
            for name, value in tu.get(output, "metrics").items():
                if name == "loss" or name.startswith(("rewards/", "logps/")):
                    sums[name] = sums.get(name, 0.0) + float(np.sum(value)) * len(real) / total
                    weights[name] = weights.get(name, 0.0) + len(real) / total
        if not np.isfinite(sums["loss"]):
            raise NotFiniteError(f"validation after step {self.global_steps}: the loss is {sums['loss']}")
        means = {f"val/{name}": value / weights[name] for name, value in sums.items()}
        return {"val/pairs": float(total), **means}

    def _compute_metrics(self, batch: KVBatchMeta, metrics, timing_raw, global_steps, epoch):
        # workers that are sent steps ahead have done one before or after this process waits for it: their clock counts
        worked = metrics.get("perf/device_seconds")
        timing = timing_raw if worked is None else timing_raw | {"step": worked, "update_actor": worked}
        metrics.update(
            {
                **self._loop_metrics(timing, self._tokens, global_steps, epoch),
                "perf/tokens_per_s": self._tokens / timing["update_actor"],
                "perf/pairs_per_s": self.config.data.train_batch_size / timing["update_actor"],
                **{f"pairs/dropped/{why}": n for why, n in self.train_dataset.report.dropped.items()},
                **self.reference.metrics,
            }
        )
