"""From a raw record to a preference row in one of two shapes: plain text, or lists of chat messages.

Every rule about what a row may hold lives here; nothing here knows of tokens.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from verl_aiops.data.columns import with_prompt_columns
from verl_aiops.data.errors import PreferenceDataError, RowFault
from verl_aiops.data.layouts import dialogue_hint, layout_hint, setting_hint
from verl_aiops.data.messages import read_tools, text_or_messages

# Letters of a prompt: two answers may well begin with the same few.
SHORTEST_REPEATED = 6


@dataclass(slots=True)
class PreferenceRow:
    """`prompt`, `chosen`, `rejected` are all texts, or all lists of messages whose answers start with the assistant.

    `notes`: what was done to the row that its writer may not expect (see `notes.NOTES`).
    """

    prompt: str | list[dict]
    chosen: str | list[dict]
    rejected: str | list[dict]
    id: str | None = None
    group: str | None = None
    weight: float = 1.0
    tools: list | None = None
    notes: frozenset[str] = frozenset()

    def texts(self) -> tuple[str, str, str]:
        """Prompt, chosen and rejected of a row of texts."""
        return cast("tuple[str, str, str]", (self.prompt, self.chosen, self.rejected))

    def messages(self) -> tuple[list[dict], list[dict], list[dict]]:
        """Prompt, chosen and rejected of a row of messages."""
        return cast("tuple[list[dict], list[dict], list[dict]]", (self.prompt, self.chosen, self.rejected))


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    id: str = "id"
    group: str = "group"
    weight: str = "weight"
    tools: str = "tools"

    def names(self) -> list[str]:
        return [getattr(self, field) for field in self.__slots__]

    def optional_by_name(self) -> dict[str, str]:
        """Columns that a file may lack but that were asked for by a name of their own: the name -> its argument."""
        optional = {"id": self.id, "group": self.group, "weight": self.weight, "tools": self.tools}
        return {name: f"{field}_key" for field, name in optional.items() if name != field}

    def check(self, place: str, found: Sequence[str]) -> None:
        """Raise PreferenceDataError if columns `found` at `place` lack an answer, or a prompt asked for by name.

        Without a prompt column the prompt is what both conversations begin with, so its absence alone is no fault.
        """
        for field, other in itertools.combinations(("prompt", "chosen", "rejected"), 2):
            if getattr(self, field) == getattr(self, other):
                name = getattr(self, field)
                raise PreferenceDataError(f"data.{field}_key and data.{other}_key both name the column {name!r}")
        required = ["chosen", "rejected"] + (["prompt"] if self.prompt != "prompt" else [])
        missing = [field for field in required if getattr(self, field) not in found]
        if not missing:
            return
        no_answers = missing[:2] == ["chosen", "rejected"]
        hints = [layout_hint(found, least=2)] if no_answers else []
        if not any(hints):
            for field in missing:
                near = difflib.get_close_matches(getattr(self, field), found, n=1, cutoff=0.5)
                hints += [f"did you mean data.{field}_key={name}?" for name in near]
        if not any(hints):
            hints = [setting_hint(missing, found) or (layout_hint(found) if no_answers else "")]
        lacking = ", ".join(repr(getattr(self, field)) for field in missing)
        message = f"{place} lacks the column(s) {lacking}; found: {_listed(found)}."
        raise PreferenceDataError(" ".join([message, *filter(None, hints)]))


def parse_row(values: dict, columns: Columns, others: Sequence[str] = ()) -> PreferenceRow:
    """Check one record and bring it to one of the two shapes; raises RowFault saying what is wrong.

    Besides rows of texts only and rows of messages only, it takes text answers to a prompt of messages (one assistant
    message each), a text prompt to answers of messages (one user message), rows without a prompt, or with the last user
    message repeated as a text, whose answers are whole conversations with a common beginning, and answers that repeat
    their prompt. ``others`` are columns of the file that were not read, for what a fault tells.
    """
    try:
        return _parse(values, columns, others)
    except RecursionError:
        raise RowFault("is nested too deeply") from None


def _parse(values, columns, others):
    notes: set[str] = set()
    prompt = values.get(columns.prompt)
    answers = []
    for key in (columns.chosen, columns.rejected):
        if values.get(key) is None:
            raise RowFault(f"{key} is null" if key in values else f"{key} is missing; found: {_listed(values)}")
        answers.append(text_or_messages(values[key], key, notes.add))
    chosen, rejected = answers
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowFault(f"{columns.chosen} and {columns.rejected} must be of one kind, both texts or both messages")
    if prompt is not None:
        prompt = text_or_messages(prompt, columns.prompt, notes.add)
        if not prompt or isinstance(prompt, str) and not prompt.strip():
            raise RowFault(f"{columns.prompt} is empty")

    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            filled = [name for name, value in values.items() if value is not None]
            hint = dialogue_hint(chosen) or setting_hint(["prompt"], [*filled, *others])
            raise RowFault(
                f"{columns.prompt} is missing; only conversations may carry their prompt inside the answers"
                + (f". {hint}" if hint else "")
            )
        if isinstance(prompt, str):
            chosen, rejected = _without_prompt_text(prompt, chosen, rejected, notes)
        for answer, key in ((chosen, columns.chosen), (rejected, columns.rejected)):
            if not answer.strip():
                raise RowFault(f"{key} is empty" + (" after the prompt" if "prompt_repeated" in notes else ""))
        if isinstance(prompt, list):
            chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in (chosen, rejected))
    else:
        if isinstance(prompt, list):
            prompt, chosen, rejected = _without_prompt_messages(prompt, chosen, rejected, notes)
        else:
            prompt, chosen, rejected = _with_prompt_messages(prompt, chosen, rejected, columns)
        _check_answer(chosen, columns.chosen)
        _check_answer(rejected, columns.rejected)
    if chosen == rejected:
        raise RowFault(f"{columns.chosen} and {columns.rejected} are equal")
    return PreferenceRow(
        with_prompt_columns(prompt, values, columns.prompt, set(columns.names()), notes.add),
        chosen,
        rejected,
        id=_label(values, columns.id),
        group=_label(values, columns.group),
        weight=_weight(values, columns.weight),
        tools=read_tools(values.get(columns.tools), columns.tools, notes.add),
        notes=frozenset(notes),
    )


def _without_prompt_text(prompt, chosen, rejected, notes):
    """Text answers without the prompt that both of them repeat."""
    repeated = chosen.startswith(prompt), rejected.startswith(prompt)
    if all(repeated) and len(prompt.strip()) >= SHORTEST_REPEATED:
        notes.add("prompt_repeated")
        return chosen[len(prompt) :], rejected[len(prompt) :]
    if any(repeated):
        notes.add("prompt_in_one")
    return chosen, rejected


def _without_prompt_messages(prompt, chosen, rejected, notes):
    """Prompt and answers of messages, without the prompt that both answers repeat, or repeat with more in front."""
    shared = _shared(chosen, rejected)
    if shared[: len(prompt)] == prompt:
        shared = prompt
    elif prompt[0]["role"] == "assistant" or shared[-len(prompt) :] != prompt:
        return prompt, chosen, rejected
    notes.add("prompt_repeated")
    return shared, chosen[len(shared) :], rejected[len(shared) :]


def _shared(chosen, rejected):
    """The messages that both begin with."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared]


def _with_prompt_messages(prompt, chosen, rejected, columns):
    """Answers of messages beside a prompt that is a text or is not there."""
    if prompt is not None and all(answer and answer[0]["role"] == "assistant" for answer in (chosen, rejected)):
        return [{"role": "user", "content": prompt}], chosen, rejected
    if chosen == rejected:
        raise RowFault(f"{columns.chosen} and {columns.rejected} are equal")
    messages = _shared(chosen, rejected)
    if not messages:
        raise RowFault(
            f"{columns.chosen} and {columns.rejected} begin with different messages, so they share no prompt"
            + ("" if prompt is not None else f"; the row has no {columns.prompt} either")
        )
    if prompt is not None and prompt.strip() not in [message["content"].strip() for message in messages]:
        raise RowFault(
            f"{columns.prompt} is a text that is none of the messages {columns.chosen} and {columns.rejected} share"
        )
    return messages, chosen[len(messages) :], rejected[len(messages) :]


def _check_answer(messages, key):
    if not messages:
        raise RowFault(f"{key} is empty (no message after the prompt)")
    for place in (0, -1):
        if messages[place]["role"] != "assistant":
            raise RowFault(
                f"{key} {'begins' if place == 0 else 'ends'} with a {messages[place]['role']} message where an answer, "
                "an assistant message, belongs. Messages before the answer are the prompt: all of them in the prompt, "
                "or all at the beginning of both answers"
            )
    for message in messages:
        if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            raise RowFault(f"{key} is empty (an assistant message without text)")


def _label(values, key):
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowFault(f"{key} is of type {type(value).__name__}; a text or a whole number is expected")
    return str(value)


def _weight(values, key):
    value = values.get(key)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowFault(f"{key} is of type {type(value).__name__}; a number is expected")
    if not math.isfinite(value) or value < 0:
        raise RowFault(f"{key} is {value}; a finite number of at least 0 is expected")
    return float(value)


def _listed(names):
    return ", ".join(map(repr, names)) or "nothing"
