"""Settings of the agent loop, under ``actor_rollout_ref.rollout.custom.aiops_mturn``, verl's place for such."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_aiops.rollout.rounds.turns import ANSWER_TOKENS
from verl_aiops.settings import Settings, setting

__all__ = ["ANSWER_SCHEMA", "RoundSettings", "answer_constraint", "answer_schema"]

WHERE = "actor_rollout_ref.rollout.custom.aiops_mturn"
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {"service": {"type": "string"}, "incident_type": {"type": "string"}},
    "required": ["service", "incident_type"],
    "additionalProperties": False,
}


def _are_counts(tokens: Any) -> bool:
    numbers = isinstance(tokens, list) and tokens
    return bool(numbers) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)


@dataclass(frozen=True)
class RoundSettings(Settings):
    """How the rounds share the response, and how the last one is sampled."""

    section = WHERE

    round_tokens: list[int] | None = setting(
        None,
        "tokens that the model may write in each round, as `[320,64]`; the last entry stands for those that are "
        "missing. null divides `data.max_response_length`, which also holds the instructions between the rounds.",
        fits=_are_counts,
        expected="a number of tokens for each round, [96,48]",
    )
    answer_tokens: int = setting(
        ANSWER_TOKENS, "tokens of the last round, where `data.max_response_length` is divided.", within="[1, inf)"
    )
    json_schema: bool = setting(
        False, "let the engine (SGLang, vLLM) constrain the last round to the answer's JSON schema."
    )

    def __post_init__(self) -> None:
        if isinstance(self.round_tokens, int | tuple):  # one number stands for a list of it
            tokens = [self.round_tokens] if isinstance(self.round_tokens, int) else list(self.round_tokens)
            object.__setattr__(self, "round_tokens", tokens)


def answer_schema(names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """`ANSWER_SCHEMA` with the names that each field may take; a field without names takes any text."""
    allowed = {field: {"enum": list(dict.fromkeys(listed))} for field, listed in names.items() if listed}
    fields = ANSWER_SCHEMA["properties"]
    return {**ANSWER_SCHEMA, "properties": {field: {**fields[field], **allowed.get(field, {})} for field in fields}}


def answer_constraint(rollout_name: str) -> dict[str, Any]:
    """The sampling parameter by which an engine constrains an answer to `ANSWER_SCHEMA`.

    Raises:
        ValueError: the engine has none.
    """
    if rollout_name == "sglang":
        return {"json_schema": json.dumps(ANSWER_SCHEMA)}
    if rollout_name == "vllm":
        from vllm.sampling_params import StructuredOutputsParams

        return {"structured_outputs": StructuredOutputsParams(json=ANSWER_SCHEMA)}
    raise ValueError(f"{WHERE}.json_schema=True: the rollout {rollout_name} has no constrained decoding")
