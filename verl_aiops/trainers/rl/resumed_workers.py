"""verl's workers of GRPO and PPO, whose optimizer has this run's settings after a checkpoint was loaded.

verl (0.9.0, 0.9.1) loads learning rate, weight decay and betas with the optimizer's state and has no hook behind it;
`ScoredTrainer` puts these in place of its workers where it maps roles to workers.
"""

from __future__ import annotations

from dataclasses import replace

from verl.single_controller.base.decorator import Dispatch, register

from verl_aiops.seam.engine import ActorRolloutRefWorker, TrainingWorker, TrainingWorkerConfig
from verl_aiops.trainers.config import SHARED_VALUE, ConfigError
from verl_aiops.trainers.worker.optimizer import use_settings

__all__ = ["ResumedActor", "ResumedCritic", "SharedCritic"]


class ResumedCritic(TrainingWorker):
    """Of an FSDP engine."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=False):
        try:
            super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            # FSDP1's optimizer knows no parameters but flat ones, one for each of its units
            raise ConfigError(
                f"{local_path}: its optimizer is of a model that FSDP had cut into other units ({error}). Go on with "
                "the algorithm.logprob_backend and the fsdp_config.wrap_policy that it was made with, or with fsdp2."
            ) from error
        engine = self.engine
        use_settings(engine.optimizer, engine.lr_scheduler, engine.optimizer_config)


class SharedCritic(ResumedCritic):
    """A critic whose engine computes each prompt once. verl's trainer writes the model type of a critic down itself."""

    def __init__(self, config: TrainingWorkerConfig):
        super().__init__(replace(config, model_type=SHARED_VALUE))


class ResumedActor(ActorRolloutRefWorker):
    """Likewise."""

    actor_worker_cls = ResumedCritic
