"""How an investigation went: the assistant's texts and what its tool calls returned, as the agent loop kept them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Call", "Transcript", "messages_of", "read_transcript"]


class Call(NamedTuple):
    """One tool call: its name and arguments as the model wrote them, whether the tool answered, and what it returned.

    ``ok`` is False where it could not be read, was no tool or had wrong arguments, and beyond the budget of calls;
    ``result`` is then the error that the model was told. ``facts`` is what of it the case says, without what the tool
    says of the question; the whole of it where the record does not tell the two apart.
    """

    name: str
    arguments: str
    ok: bool
    result: str
    facts: str


class Transcript(NamedTuple):
    """An investigation, or what of one is known.

    Attributes:
        turns: the assistant's texts in order; the last one holds the verdict.
        calls: the tool calls in order; None where no loop has kept any, so that nothing can be checked against them.
        ended_in_call: the last text calls a tool, so that it gives no verdict.
    """

    turns: tuple[str, ...]
    calls: tuple[Call, ...] | None
    ended_in_call: bool


def read_transcript(solution_str: Any, extra_info: Any) -> Transcript:
    """Read what the agent loop handed over.

    Args:
        solution_str: the decoded response; the only text where there are no turns.
        extra_info: a mapping, of which ``turns`` (list of str), ``tool_calls`` (list of objects with the fields of
            `Call`) and ``turn_calls`` (how many calls each turn has) are used.

    Raises:
        ValueError: they are of another kind, which no model can bring about.
    """
    if extra_info is None:
        extra_info = {}
    elif not isinstance(extra_info, Mapping):
        raise ValueError(f"extra_info: expected a mapping, got {type(extra_info).__name__}")
    turns = _list(extra_info, "turns") or [solution_str]
    calls, counts = _list(extra_info, "tool_calls"), _list(extra_info, "turn_calls")
    return Transcript(
        tuple(turn if isinstance(turn, str) else "" for turn in turns),
        None if calls is None else tuple(map(_call, calls)),
        bool(counts and counts[-1]),
    )


def _list(extra_info: Mapping[str, Any], key: str) -> list[Any] | None:
    value = extra_info.get(key)
    if value is not None and hasattr(value, "tolist"):  # a numpy array, which is how verl's batches carry lists
        value = value.tolist()
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"extra_info[{key!r}]: expected a list, got {type(value).__name__}")
    return None if value is None else list(value)


def _call(value: Any) -> Call:
    if not isinstance(value, Mapping) or not all(isinstance(value.get(name), str) for name in ("name", "result")):
        raise ValueError(f'extra_info["tool_calls"]: expected objects with name and result, got {value!r:.80}')
    result, facts = value["result"], value.get("facts")
    if facts is not None:
        if len(facts) != 2 or not 0 <= facts[0] <= facts[1]:
            raise ValueError(f'extra_info["tool_calls"], facts: expected two places in the result, got {facts!r:.80}')
        facts = result[int(facts[0]) : int(facts[1])]
    return Call(
        value["name"],
        str(value.get("arguments") or ""),
        bool(value.get("ok")),
        result,
        result if facts is None else facts,
    )


def messages_of(turns: Sequence[str], calls: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """An investigation as messages of role and content, from the assistant's first text to its last.

    Args:
        turns: the assistant's texts as it wrote them, calls among them.
        calls: what the agent loop kept of each call: ``turn``, the number of the text that it stands in, and ``reply``,
            what the model was told.
    """
    messages = []
    for at, text in enumerate(turns):
        messages.append({"role": "assistant", "content": text})
        replies = [call["reply"] for call in calls if call["turn"] == at and call["reply"]]
        messages += [{"role": "tool", "content": reply} for reply in replies]
    return messages
