"""verl 0.9's loop of steps, as far as trainers on files need it, on what `neo` has.

`neo`'s own loop (`RayPPOTrainer.fit`) is PPO from rollout to update in one function, and takes data sets and workers
where it is made; ours are made by the trainer. So the loop is here, with the methods that verl 0.9's `PPOTrainer` calls
in their order, and what writes checkpoints is `neo`'s.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pprint import pprint
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from verl_aiops.seam.engine import omega_conf_to_dataclass
from verl_aiops.seam.neo.legacy import RayPPOTrainer, Tracking
from verl_aiops.seam.trainer import marked_timer

__all__ = ["Loop", "NoKeys"]


@dataclass
class NoKeys:
    """Stands for TransferQueue's `KVBatchMeta`, of which trainers on files return an empty one."""

    keys: list[str] = field(default_factory=list)
    tags: list[dict[str, Any]] = field(default_factory=list)
    partition_id: str | None = None


class Loop:
    """Stands for verl 0.9's `PPOTrainer`: ``init``, then ``fit``; what a trainer overrides there it overrides here.

    Only for trainers without rollouts, rewards and critic (`OfflineDPOTrainer`, `RewardModelTrainer`): what those of
    GRPO, PPO and online DPO override of a step has no counterpart here.
    """

    def __init__(self, config: DictConfig):
        # not verl's, which wants workers, pools and data sets
        self.config = config
        self.use_critic = self.use_reference_policy = False
        self.trainer_mode = config.trainer.v1.trainer_mode
        self.replay_buffer = self._build_replay_buffer()
        self.timing_raw: dict[str, float] = {}

    def init(self) -> None:
        self._setup()

    def _init_dump_executor(self):
        """Nothing is dumped: there are no rollouts."""

    def _save_checkpoint(self) -> None:
        RayPPOTrainer._save_checkpoint(self)

    # --- what trainers fill in -------------------------------------------------------------------------------------

    def _build_replay_buffer(self):
        return None

    def _setup(self):
        raise NotImplementedError

    def _init_tokenizer(self):
        model = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        self.tokenizer, self.processor = model.tokenizer, model.processor

    def _init_dataloader(self):
        raise NotImplementedError

    def _init_resource_pool_mgr(self):
        raise NotImplementedError

    def _rollout_server_managers(self) -> list:
        return []

    def on_step_end(self): ...

    def on_sample_end(self): ...

    def get_llm_client(self): ...

    def get_teacher_client(self): ...

    def get_reward_handles(self): ...

    def step(self, metrics: dict, timing_raw: dict):
        raise NotImplementedError

    def _validate(self) -> dict[str, float]:
        raise NotImplementedError

    def _compute_metrics(self, batch, metrics, timing_raw, global_steps, epoch):
        raise NotImplementedError

    def _log_rollout_data(self, batch, timing_raw: dict, rollout_data_dir: str): ...

    # --- the loop --------------------------------------------------------------------------------------------------

    def fit(self, agent_loop_manager) -> None:
        trainer = self.config.trainer
        self.logger = Tracking(
            project_name=trainer.project_name,
            experiment_name=trainer.experiment_name,
            default_backend=trainer.logger,
            config=OmegaConf.to_container(self.config, resolve=True),
        )
        if trainer.get("val_before_train", True):
            found = self._validate()
            pprint(f"Initial validation metrics: {found}")
            self.logger.log(data=found, step=self.global_steps)
            if trainer.get("val_only", False):
                return
        bar = tqdm(total=self.total_training_steps, initial=self.global_steps, desc="Training Progress")
        self.global_steps += 1
        while self.global_steps <= min(self.total_training_steps, trainer.total_epochs * self.steps_per_epoch):
            self._one_step()
            bar.update(1)
            self.global_steps += 1
        bar.close()

    def _one_step(self) -> None:
        """A step, and what is due after it, in verl 0.9's order: saved, validated, measured, logged."""
        trainer, step = self.config.trainer, self.global_steps
        last = step >= self.total_training_steps
        metrics: dict[str, Any] = {}
        self.timing_raw = {}
        with marked_timer("step", self.timing_raw):
            self._profile("start_profile", role="train", profile_step=step)
            batch = self.step(metrics, self.timing_raw)
            self._profile("stop_profile")
            if trainer.save_freq > 0 and (last or step % trainer.save_freq == 0):
                with marked_timer("save_checkpoint", self.timing_raw, color="green"):
                    self._save_checkpoint()
            self.on_step_end()
        if trainer.test_freq > 0 and (last or step % trainer.test_freq == 0):
            with marked_timer("testing", self.timing_raw, color="green"):
                metrics.update(self._validate())
        epoch = (step - 1) // self.steps_per_epoch
        self._compute_metrics(batch, metrics, self.timing_raw, global_steps=step, epoch=epoch)
        self.logger.log(data=metrics, step=step)

    def _profile(self, call: str, **arguments) -> None:
        steps = OmegaConf.select(self.config, "global_profiler.steps")
        if steps is not None and self.global_steps in steps:
            getattr(self.actor_rollout_wg, call)(**arguments)

    def _load_checkpoint(self) -> None:
        """As verl 0.9's: `neo`'s asks the data for its length, and puts the order of an epoch that is over aside."""
        trainer = self.config.trainer
        self.global_steps = 0
        if trainer.resume_mode == "disable":
            return
        if trainer.resume_mode == "resume_path":
            folder = os.path.abspath(trainer.resume_from_path)
        else:
            folder = find_latest_ckpt_path(os.path.abspath(trainer.default_local_dir))
        if folder is None:
            return
        self.global_steps = int(folder.rpartition("global_step_")[2])
        self.actor_rollout_wg.load_checkpoint(
            os.path.join(folder, "actor"), del_local_after_load=trainer.del_local_ckpt_after_load
        )
        data = os.path.join(folder, "data.pt")
        if os.path.exists(data):
            # as verl itself reads it; weights_only would refuse the numpy state of a user's own sampler
            self.train_dataloader.load_state_dict(torch.load(data, weights_only=False))
