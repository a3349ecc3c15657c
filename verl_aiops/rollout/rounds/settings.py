"""Settings of the agent loop, under ``actor_rollout_ref.rollout.custom.aiops_mturn``, verl's place for such."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_aiops.rollout.rounds.turns import ANSWER_TOKENS
from verl_aiops.settings import Settings, setting

__all__ = ["ANSWER_FIELDS", "ANSWER_SCHEMA", "RoundSettings", "answer_constraint", "answer_schema", "asked_fields"]

WHERE = "actor_rollout_ref.rollout.custom.aiops_mturn"
ANSWER_FIELDS = ("service", "incident_type")


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


def asked_fields(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that a row of RL data asks for: what its ground truth says in `fields`, or service and incident type.

    The check before Ray has looked at ground truths; what cannot be read here asks for nothing more.
    """
    model = row.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    if isinstance(truth, str):
        try:
            truth = json.loads(truth)
        except (ValueError, RecursionError):
            truth = None
    named = truth.get("fields") if isinstance(truth, Mapping) else None
    return ANSWER_FIELDS if named is None or len(named) == 0 else tuple(map(str, named))


def answer_schema(
    fields: Sequence[str] = ANSWER_FIELDS, names: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    """The JSON schema of an answer: an object of these fields, each a text, and one of its `names` where it has any."""
    allowed = {field: {"enum": list(dict.fromkeys(listed))} for field, listed in (names or {}).items() if listed}
    return {
        "type": "object",
        "properties": {field: {"type": "string", **allowed.get(field, {})} for field in fields},
        "required": list(fields),
        "additionalProperties": False,
    }


ANSWER_SCHEMA = answer_schema()


def answer_constraint(rollout_name: str, fields: Sequence[str] = ANSWER_FIELDS) -> dict[str, Any]:
    """The sampling parameter by which an engine constrains an answer to `answer_schema`.

    Raises:
        ValueError: the engine has none.
    """
    schema = answer_schema(fields)
    if rollout_name == "sglang":
        return {"json_schema": json.dumps(schema)}
    if rollout_name == "vllm":
        from vllm.sampling_params import StructuredOutputsParams

        return {"structured_outputs": StructuredOutputsParams(json=schema)}
    raise ValueError(f"{WHERE}.json_schema=True: the rollout {rollout_name} has no constrained decoding")
