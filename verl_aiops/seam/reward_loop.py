"""What our reward managers need of verl's reward loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verl_aiops.seam.need import Need, brought

__all__ = ["NEEDS"]

_MANAGERS = "verl.experimental.reward_loop.reward_manager"

NEEDS = (
    Need(
        f"{_MANAGERS}.naive",
        "NaiveRewardManager",
        "the base of our managers",
        takes="config tokenizer compute_score reward_router_address reward_model_tokenizer",
        has="run_single",
    ),
    Need(_MANAGERS, "register", "our managers' names", takes="name"),
    Need(_MANAGERS, "get_reward_manager_cls", "what the doctor asks", takes="name"),
    Need(f"{_MANAGERS}.registry", "REWARD_MANAGER", "where what stands for a missing one is put", has="update"),
    Need(
        "verl.utils.reward_score",
        "default_compute_score",
        "whether verl scores a data source by itself",
        takes="data_source solution_str ground_truth",
    ),
)

__getattr__: Callable[[str], Any] = brought(NEEDS)
