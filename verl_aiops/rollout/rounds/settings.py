"""Settings of the agent loop, under ``actor_rollout_ref.rollout.custom.aiops_mturn``, verl's place for such."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from verl_aiops.rollout.rounds.turns import ANSWER_TOKENS

__all__ = ["ANSWER_SCHEMA", "RoundSettings", "answer_constraint", "answer_schema"]

WHERE = "actor_rollout_ref.rollout.custom.aiops_mturn"
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {"service": {"type": "string"}, "incident_type": {"type": "string"}},
    "required": ["service", "incident_type"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class RoundSettings:
    """How the rounds share the response, and how the last one is sampled.

    Attributes:
        round_tokens: tokens that the model may write in each round; the last entry stands for those that are missing.
            null divides `data.max_response_length`, which also holds the instructions between the rounds.
        answer_tokens: tokens of the last round, where `data.max_response_length` is divided.
        json_schema: let the engine (SGLang, vLLM) constrain the last round to the answer's JSON schema.
    """

    round_tokens: list[int] | None = None
    answer_tokens: int = ANSWER_TOKENS
    json_schema: bool = False

    @classmethod
    def from_config(cls, given: Mapping[str, Any] | None) -> RoundSettings:
        """Read and check them.

        Raises:
            ValueError: an unknown key or a value that cannot work; the message names the key.
        """
        known = [f.name for f in fields(cls)]
        values = dict(given or {})
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f", did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
                raise ValueError(f"{WHERE}.{key}: no such setting{hint}")
        tokens = values.get("round_tokens")
        if tokens is not None:
            tokens = [tokens] if isinstance(tokens, int) else list(tokens)
            if not tokens or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in tokens):
                raise ValueError(f"{WHERE}.round_tokens={tokens}: expected a number of tokens for each round, [96,48]")
            values["round_tokens"] = tokens
        answer = values.get("answer_tokens", ANSWER_TOKENS)
        if not isinstance(answer, int) or isinstance(answer, bool) or answer < 1:
            raise ValueError(f"{WHERE}.answer_tokens={answer}: expected a whole number, 1 or more")
        if not isinstance(values.get("json_schema", False), bool):
            raise ValueError(f"{WHERE}.json_schema={values['json_schema']}: expected True or False")
        return cls(**values)


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
