"""Settings of the agent loop, under ``actor_rollout_ref.rollout.custom.aiops_tools``, verl's place for such."""

from __future__ import annotations

from dataclasses import dataclass

from verl_aiops.settings import Settings, setting

__all__ = ["ToolSettings"]


@dataclass(frozen=True)
class ToolSettings(Settings):
    """How much an investigation may ask, and how much it is told. The format of calls is verl's
    ``actor_rollout_ref.rollout.multi_turn.format``."""

    section = "actor_rollout_ref.rollout.custom.aiops_tools"

    max_calls: int = setting(
        12, "calls that are answered in one investigation, those that cannot be read among them.", within="[1, 1000]"
    )
    calls_per_turn: int = setting(4, "calls in one message that are answered.", within="[1, 100]")
    result_chars: int | None = setting(
        None, "characters of one answer of a tool; null: as the rows were made, or 1500.", within="[200, 100000]"
    )
    turn_tokens: int | None = setting(
        None,
        "tokens of one message before the verdict; null: as many as `data.max_response_length` leaves.",
        within="[16, inf)",
    )
    verdict_tokens: int = setting(
        256,
        "tokens that are kept free for the verdict: where no call with its answer fits before them, the model is asked "
        "for the verdict.",
        within="[16, inf)",
    )
