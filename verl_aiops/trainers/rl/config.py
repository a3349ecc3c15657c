"""Settings of GRPO, PPO and their kin beside verl's own, under ``algorithm``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig

from verl_aiops.settings import setting
from verl_aiops.trainers.config import TrainerSettings

__all__ = ["RLConfig"]

RL_BACKENDS = ("auto", "shared_prompt", "stock")


@dataclass(frozen=True)
class RLConfig(TrainerSettings):
    """What GRPO, PPO and their kin read from ``algorithm.*`` beside verl's own keys."""

    section = "algorithm"

    logprob_backend: str | None = setting(
        None,
        "`shared_prompt`: what rows begin with in common goes through the policy, and the reference, once for all of "
        "them; `stock`: verl's own engine; `auto`: the first where model and settings allow it. The run says "
        "which and why. Null leaves everything to verl.",
        choices=RL_BACKENDS,
    )
    critic_backend: str | None = setting(
        None,
        "the same of PPO's critic, `shared_prompt` or `stock`. Never set by hand: it follows from "
        "`algorithm.logprob_backend` and the critic's model.",
        choices=RL_BACKENDS[1:],
    )

    @classmethod
    def from_section(cls, section: Any) -> RLConfig:
        """Its own keys, and those that are close to one of them; all others are verl's."""
        return super().from_section({key: section[key] for key in section or {} if cls.concerns(key)})

    @classmethod
    def asked(cls, config: DictConfig) -> bool:
        """Whether a verl configuration asks for anything of it, or misspells that."""
        named = [key for key in config.algorithm if cls.concerns(key)]
        return any(key != "logprob_backend" or config.algorithm[key] not in (None, "stock") for key in named)

    @classmethod
    def concerns(cls, key: object) -> bool:
        return bool(get_close_matches(str(key), [field.name for field in fields(cls)], 1, cutoff=0.8))
