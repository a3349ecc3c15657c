"""The reward manager ``aiops_mturn``: verl's naive one with the rewards of this package, keeping the texts apart."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from verl import DataProto

from verl_aiops.rewards import aiops_investigation, aiops_mturn
from verl_aiops.seam.reward_loop import NaiveRewardManager

__all__ = ["RULES", "AiopsMturnRewardManager", "rule", "turn_columns"]

RULES = {"aiops_mturn": aiops_mturn.compute_score, "aiops_investigation": aiops_investigation.compute_score}
"""The rewards by the ``data_source`` of a row; rows of any other have the first."""


def rule(data_source: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
    """The reward of a row's task; arguments and result are those of its `compute_score`."""
    return RULES.get(data_source, aiops_mturn.compute_score)(data_source, *args, **kwargs)


ROUND_COLUMNS = 4


def turn_columns(turns: list[str] | None) -> dict[str, str]:
    """``round_1`` to ``round_4``: what verl writes into dumped generations beside the reward's components.

    Always all of them, empty where there was no such round: verl takes a batch's columns from its first row, and rows
    may differ in their rounds. Rounds after the fourth stand in its column, each under its number.
    """
    texts = [*(turns or ()), *[""] * ROUND_COLUMNS]
    columns = {f"round_{at}": text for at, text in enumerate(texts[:ROUND_COLUMNS], 1)}
    for at, text in enumerate((turns or ())[ROUND_COLUMNS:], ROUND_COLUMNS + 1):
        columns[f"round_{ROUND_COLUMNS}"] += f"\n\n[round {at}]\n{text}"
    return columns


class AiopsMturnRewardManager(NaiveRewardManager):
    """Scores each row with the reward of its ``data_source`` (`RULES`), or all of them with
    ``reward.custom_reward_function`` where that is set.

    ``reward.custom_reward_function.reward_kwargs`` are the reward's settings in both cases.
    """

    def __init__(self, config, tokenizer, compute_score: Any = None, **kwargs):
        super().__init__(config, tokenizer, self._reward(config, compute_score), **kwargs)

    @staticmethod
    def _reward(config, given):
        custom = config.reward.custom_reward_function
        if custom.path is not None:
            return given  # verl has bound reward_kwargs
        return partial(rule, **dict(custom.get("reward_kwargs") or {}))

    async def run_single(self, data: DataProto) -> dict:
        """verl's result, with the texts of the rounds added to ``reward_extra_info``, and of an investigation the whole
        transcript, calls and results among it, as JSON text in ``investigation``.

        verl takes strings there into the dumped generations and leaves them out of the metrics.
        """
        result = await super().run_single(data)
        fields = data[-1:][0].non_tensor_batch.get("tool_extra_fields") or {}
        result["reward_extra_info"] |= turn_columns(fields.get("turns"))
        if "tool_calls" in fields:
            made = {name: list(fields.get(name) or ()) for name in ("turns", "turn_calls", "tool_calls")}
            result["reward_extra_info"]["investigation"] = json.dumps(made, ensure_ascii=False)
        return result
