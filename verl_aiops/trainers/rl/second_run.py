"""Before Ray: what a GRPO or PPO run goes on from, what it keeps, and what its KL term holds it to."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from verl_aiops.trainers.runs.resume import rl_note, settle

__all__ = ["check_second_run"]


def check_second_run(config: DictConfig, ours: str, folder: str | None) -> None:
    """Say or refuse what would otherwise go unnoticed until a run is over or gone on with.

    Args:
        config: verl's configuration, completed.
        ours: the trainer mode whose checkpoints have notes.
        folder: the checkpoint that the run goes on from, None for a run from the beginning.

    Raises:
        ConfigError: the checkpoint there cannot be gone on from like this.
        NothingLeft: the run is finished.
    """
    _say_reference(config)
    if config.trainer.save_freq < 1:
        print(
            f"verl-aiops: warning: trainer.save_freq={config.trainer.save_freq}: no checkpoint is written, and what is "
            "trained is lost when the run ends. Set trainer.save_freq=N to keep it every N steps and at the last one.",
            flush=True,
        )
    if folder is not None:
        _check_resume(config, ours, folder)


def _say_reference(config: DictConfig) -> None:
    """verl's KL terms hold an adapter to the base without it, whatever the adapter was when training began."""
    path = config.actor_rollout_ref.model.get("lora_adapter_path")
    keys = ("actor_rollout_ref.actor.use_kl_loss", "algorithm.use_kl_in_reward")
    named = [key for key in keys if OmegaConf.select(config, key)]
    if path and named:
        print(
            f"verl-aiops: warning: {' and '.join(f'{key}=True' for key in named)} with "
            f"actor_rollout_ref.model.lora_adapter_path={path}: verl's reference is the bare model "
            f"{config.actor_rollout_ref.model.path}, not the model that training starts from, so the KL term pulls "
            "away from what the adapter has learnt. For a KL term against the start, merge the adapter (PEFT's "
            f"merge_and_unload) and give the merged model; or set {' and '.join(f'{key}=False' for key in named)}.",
            flush=True,
        )


def _check_resume(config: DictConfig, ours: str, folder: str) -> None:
    """A run that goes on from a checkpoint: the same prompts and model, and what else is not as it was."""
    settle(folder, rl_note(config), None, config, None)
    if not config.trainer.use_v1 or config.trainer.v1.trainer_mode != ours:
        print(
            "verl-aiops: this trainer mode is verl's own: learning rate, weight decay and betas are those of the "
            "checkpoint, whatever is asked",
            flush=True,
        )
    if config.algorithm.use_kl_in_reward and config.algorithm.kl_ctrl.type == "adaptive":
        print(
            "verl-aiops: algorithm.kl_ctrl.type=adaptive: checkpoints do not keep the adapted coefficient, which "
            f"begins with algorithm.kl_ctrl.kl_coef={config.algorithm.kl_ctrl.kl_coef} again",
            flush=True,
        )
