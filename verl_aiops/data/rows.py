"""From a raw record to a preference row in one of two shapes: plain text, or lists of chat messages.

Every rule about what a row may hold lives here and in `answers` and `judgements`; nothing here knows of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from verl_aiops.data.answers import (
    REPEATED,
    Answer,
    check_message_answer,
    message_answers,
    of_one_kind,
    without_prompt_text,
)
from verl_aiops.data.columns import with_prompt_columns
from verl_aiops.data.errors import RowFault
from verl_aiops.data.fields import GROUP, PAIR, SINGLE, Columns, listed
from verl_aiops.data.foreign import HH, dialogue_of, dialogues_of, own_columns
from verl_aiops.data.judgements import completions_of, label_of, margin_of
from verl_aiops.data.layouts import dialogue_hint, setting_hint
from verl_aiops.data.messages import read_tools, text_or_messages

__all__ = ["Columns", "PreferenceRow", "parse_row"]


@dataclass(slots=True)
class PreferenceRow:
    """`prompt` and `answers` are all texts, or all lists of messages whose answers start with the assistant.

    `shape`: "pair", the first answer preferred to the second; "group" of two or more with ranks; "single", one with a
    `label`. `ranks`: from 1, the best, equal where tied. `scores`: nan where unknown, as is a pair's `margin`.
    `names`: what the answers are called in faults. `notes`: what was done to the row that its writer may not expect
    (see `notes.NOTES`).
    """

    prompt: Answer
    answers: tuple[Answer, ...]
    names: tuple[str, ...]
    shape: str = PAIR
    ranks: tuple[float, ...] = (1.0, 2.0)
    scores: tuple[float, ...] = (math.nan, math.nan)
    margin: float = math.nan
    label: bool = True
    id: str | None = None
    group: str | None = None
    weight: float = 1.0
    tools: list | None = None
    notes: frozenset[str] = frozenset()

    @property
    def chosen(self) -> Answer:
        """Of a pair."""
        return self.answers[0]

    @property
    def rejected(self) -> Answer:
        """Of a pair."""
        return self.answers[1]

    def texts(self) -> tuple[str, ...]:
        """Prompt and answers of a row of texts."""
        return cast("tuple[str, ...]", (self.prompt, *self.answers))

    def messages(self) -> tuple[list[dict], ...]:
        """Prompt and answers of a row of messages."""
        return cast("tuple[list[dict], ...]", (self.prompt, *self.answers))


def parse_row(
    values: dict, columns: Columns, others: Sequence[str] = (), shape: str = PAIR, *, text_as_chat: bool = False
) -> PreferenceRow:
    """Check one record and bring it to one of the two shapes; raises RowFault saying what is wrong.

    Besides rows of texts only and rows of messages only, it takes text answers to a prompt of messages (one assistant
    message each), a text prompt to answers of messages (one user message), pairs without a prompt, or with the last
    user message repeated as a text, whose answers are whole conversations with a common beginning, and answers that
    repeat their prompt; pairs in the layouts of `foreign`, and dialogues in one text. ``others`` are columns of the
    file that were not read, for what a fault tells. ``text_as_chat``: a prompt and answers of texts are one user's and
    one assistant's message.
    """
    try:
        return _parse(values, columns, others, shape, text_as_chat)
    except RecursionError:
        raise RowFault("is nested too deeply") from None


def _parse(values, columns, others, shape, text_as_chat):
    notes: set[str] = set()
    if shape == PAIR:
        ours = {"prompt": columns.prompt, "chosen": columns.chosen, "rejected": columns.rejected}
        values = own_columns(values, notes.add, **ours)
    keys, contents, judged = _given(values, columns, shape, notes)
    answers = [text_or_messages(content, key, notes.add) for key, content in zip(keys, contents)]
    names = columns.completions if shape == GROUP else " and ".join(keys)
    texts = of_one_kind(answers, names)
    prompt = values.get(columns.prompt)
    if texts and shape == PAIR and prompt is None and (dialogues := dialogues_of(cast("list[str]", answers))):
        notes.add(f"layout: {HH}")
        answers, texts = [*dialogues], False
    if prompt is not None:
        prompt = text_or_messages(prompt, columns.prompt, notes.add)
        if not prompt or isinstance(prompt, str) and not prompt.strip():
            raise RowFault(f"{columns.prompt} is empty")
    elif texts or shape != PAIR:
        raise RowFault(_no_prompt(values, columns, others, answers[0] if texts else "", shape))

    if texts:
        answers = _texts(prompt, cast("list[str]", answers), keys, notes)
        if isinstance(prompt, str) and (text_as_chat or columns.system):
            notes.add("text_in_chat")
            prompt = _as_messages(prompt, notes)
            answers = [[{"role": "assistant", "content": text}] for text in cast("list[str]", answers)]
    else:
        messages = cast("list[list[dict]]", answers)
        prompt, messages = message_answers(prompt, messages, names, columns.prompt, notes)
        for answer, key in zip(messages, keys):
            check_message_answer(answer, key)
        answers = [*messages]
    if shape == PAIR and answers[0] == answers[1]:
        raise RowFault(f"{columns.chosen} and {columns.rejected} are equal")
    if shape == GROUP:
        keys, answers, judged = _distinct(keys, answers, judged, notes)
    return PreferenceRow(
        with_prompt_columns(prompt, values, columns.prompt, set(columns.names(shape)), notes.add, columns.system),
        tuple(answers),
        tuple(keys),
        shape,
        **judged,
        id=_label(values, columns.id),
        group=_label(values, columns.group),
        weight=_weight(values, columns.weight),
        tools=read_tools(values.get(columns.tools), columns.tools, notes.add),
        notes=frozenset(notes),
    )


def _texts(prompt: Answer | None, answers: list[str], keys: list[str], notes: set[str]) -> list[Answer]:
    if isinstance(prompt, str):
        answers = without_prompt_text(prompt, answers, notes)
    for answer, key in zip(answers, keys):
        if not answer.strip():
            raise RowFault(f"{key} is empty" + (" after the prompt" if REPEATED & notes else ""))
    return [[{"role": "assistant", "content": text}] if isinstance(prompt, list) else text for text in answers]


def _as_messages(prompt: str, notes: set[str]) -> list[dict]:
    """A prompt of text as messages: a dialogue in one text that waits for the assistant as its turns."""
    turns = dialogue_of(prompt)
    if turns is None or turns[-1] != {"role": "assistant", "content": ""}:
        return [{"role": "user", "content": prompt}]
    notes.add(f"layout: {HH}")
    return [*turns[:-1]]


def _given(values, columns, shape, notes) -> tuple[list[str], list, dict[str, Any]]:
    """What the answers are called, what stands there, and what is said of them (fields of `PreferenceRow`)."""
    needed = {PAIR: [columns.chosen, columns.rejected], GROUP: [columns.completions], SINGLE: [columns.completion]}
    for key in needed[shape]:
        if values.get(key) is None:
            raise RowFault(f"{key} is null" if key in values else f"{key} is missing; found: {listed(values)}")
    if shape == GROUP:
        keys, contents, ranks, scores = completions_of(values, columns, notes.add)
        return keys, contents, {"ranks": tuple(ranks), "scores": tuple(scores)}
    keys = needed[shape]
    if shape == PAIR:
        return keys, [values[key] for key in keys], {"margin": margin_of(values, columns, notes.add)}
    judged = {"label": label_of(values, columns), "ranks": (1.0,), "scores": (math.nan,)}
    return keys, [values[keys[0]]], judged


def _no_prompt(values, columns, others, answer, shape) -> str:
    filled = [name for name, value in values.items() if value is not None]
    hint = dialogue_hint(answer) or setting_hint(["prompt"], [*filled, *others])
    only = "; only conversations may carry their prompt inside the answers" if shape == PAIR else ""
    return f"{columns.prompt} is missing{only}" + (f". {hint}" if hint else "")


def _distinct(keys, answers, judged, notes):
    """Each answer of a group once; RowFault where equal ones have different ranks."""
    kept: list[int] = []
    for place, answer in enumerate(answers):
        first = next((other for other in kept if answers[other] == answer), None)
        if first is None:
            kept.append(place)
        elif judged["ranks"][first] != judged["ranks"][place]:
            raise RowFault(f"{keys[first]} and {keys[place]} are equal, and one is ranked before the other")
        else:
            notes.add("repeated_answer")
    if len(kept) == len(answers):
        return keys, answers, judged
    judged = {name: tuple(numbers[place] for place in kept) for name, numbers in judged.items()}
    return [keys[place] for place in kept], [answers[place] for place in kept], judged


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
