"""Pairs as other tools write them, brought to our columns: a layout is one line of `LAYOUTS`, told by its columns, and
dialogues in one text (hh-rlhf) are told by how they begin.

A layout is taken only where no other reading is possible: not beside a prompt column, nor where a prompt was asked for
by name, nor where two columns may be the prompt. What it gives are messages, since these layouts are of chats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from verl_aiops.data.errors import PreferenceDataError, RowFault

__all__ = ["HH", "LAYOUTS", "Layout", "columns_read", "dialogue_of", "dialogues_of", "layout_of", "own_columns"]

HH = "hh-rlhf"
_Prompt = Callable[[Mapping[str, Any]], Any]


class Layout(NamedTuple):
    """`needs`: its columns, beside which `without` must not stand; `answers`: what it calls chosen and rejected, where
    not as we do; `prompt`: of a row, as messages; `consumed`: the columns that the prompt is made of."""

    name: str
    needs: tuple[str, ...]
    consumed: tuple[str, ...]
    prompt: _Prompt
    without: tuple[str, ...] = ()
    answers: tuple[str, str] | None = None


def _text(values: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    value = values.get(name)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise RowFault(f"{name} is of type {type(value).__name__}; a text is expected")
    if not (empty or value.strip()):
        raise RowFault(f"{name} is empty")
    return value


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _one_text(name: str) -> _Prompt:
    return lambda values: [_turn("user", _text(values, name))]


def _instruction(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """LLaMA-Factory joins instruction and input with a line break, and puts the earlier rounds before them."""
    turns = []
    for place, past in enumerate(values.get("history") or ()):
        if not (isinstance(past, (list, tuple)) and len(past) == 2 and all(isinstance(text, str) for text in past)):
            raise RowFault(f"history[{place}] is not a pair of texts, what was asked and what was answered")
        turns += [_turn("user", past[0]), _turn("assistant", past[1])]
    asked = [text for text in (_text(values, "instruction"), _text(values, "input", empty=True)) if text]
    return [*turns, _turn("user", "\n".join(asked))]


def _conversation(name: str) -> _Prompt:
    def prompt(values: Mapping[str, Any]) -> list[Any]:
        turns = values.get(name)
        if not isinstance(turns, list) or not turns:
            raise RowFault(f"{name} is {'empty' if not turns else f'of type {type(turns).__name__}'}; a list of "
                           "messages is expected")  # fmt: skip
        last = turns[-1]
        if isinstance(last, dict) and {"gpt", "assistant"} & {last.get("from"), last.get("role")}:
            raise RowFault(
                f"{name} ends with the assistant's message, which may be an answer or the beginning of both: leave it "
                "out where it is the chosen answer, or rename the column to prompt where the answers go on from it"
            )
        return turns

    return prompt


# A new layout is one line here, and one in docs/data.md.
LAYOUTS: tuple[Layout, ...] = (
    Layout("Orca", ("system", "question"), ("question",), _one_text("question")),
    Layout("LLaMA-Factory", ("instruction",), ("instruction", "input", "history"), _instruction),
    Layout(
        "Argilla",
        ("instruction",),
        ("instruction", "input", "history"),
        _instruction,
        answers=("chosen_response", "rejected_response"),
    ),
    Layout("Argilla", ("system", "input"), ("input",), _one_text("input"), without=("instruction",)),
    *(
        Layout("ShareGPT", (name,), (name,), _conversation(name))
        for name in ("conversations", "conversation", "messages")
    ),
)


def layout_of(place: str, found: Sequence[str], *, prompt: str, chosen: str, rejected: str) -> Layout | None:
    """The one that columns `found` at `place` are in; None where it is ours, or none that is known.

    Args:
        prompt, chosen, rejected: the columns of a run.

    Raises:
        PreferenceDataError: two readings are possible.
    """
    names = set(found)
    if prompt != "prompt" or prompt in names:
        return None

    def answered(layout: Layout) -> bool:
        if layout.answers is None or {chosen, rejected} <= names:
            return layout.answers is None and {chosen, rejected} <= names
        return (chosen, rejected) == ("chosen", "rejected") and set(layout.answers) <= names

    fitting = [
        one for one in LAYOUTS if names.issuperset(one.needs) and names.isdisjoint(one.without) and answered(one)
    ]
    if len(fitting) > 1:
        ways = " or ".join(f"{one.consumed[0]!r} ({one.name})" for one in fitting)
        raise PreferenceDataError(
            f"{place} can be read in {len(fitting)} ways: the prompt may be {ways}. Set data.prompt_key, or remove or "
            "rename the columns that are no part of it"
        )
    return fitting[0] if fitting else None


def columns_read(layout: Layout) -> tuple[str, ...]:
    """What is read beside our own columns."""
    return (*layout.consumed, *(layout.answers or ()))


def own_columns(
    values: dict[str, Any], note: Callable[[str], None], *, prompt: str, chosen: str, rejected: str
) -> dict[str, Any]:
    """A row with our columns in place of those of its layout, which is noted; raises RowFault."""
    try:
        layout = layout_of("the row", list(values), prompt=prompt, chosen=chosen, rejected=rejected)
    except PreferenceDataError as error:
        raise RowFault(str(error)) from None
    if layout is None:
        return values
    read = columns_read(layout)
    own = {name: value for name, value in values.items() if name not in read}
    own[prompt] = layout.prompt(values)
    for ours, theirs in zip((chosen, rejected), layout.answers or ()):
        own[ours] = values[theirs]
    note(f"layout: {layout.name}")
    return own


# ---- dialogues in one text

_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_BEGINS = re.compile(r"\s*Human:")
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def dialogue_of(text: str) -> list[dict[str, str]] | None:
    """The messages of a text that begins with "Human:" and has turns of both, each after an empty line; else None.

    What one speaker says twice running is one message, as it stands there.
    """
    if not _BEGINS.match(text):
        return None
    _, *parts = _SPEAKER.split(text)
    turns: list[dict[str, str]] = []
    for speaker, said in zip(parts[::2], parts[1::2]):
        role, said = _SPEAKERS[speaker], said.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{said}"
        else:
            turns.append(_turn(role, said))
    return turns if len(turns) > 1 else None


def dialogues_of(answers: Sequence[str]) -> list[list[dict[str, str]]] | None:
    """All answers as dialogues, or None where one of them is none."""
    dialogues = [dialogue_of(answer) for answer in answers]
    return None if None in dialogues else [dialogue for dialogue in dialogues if dialogue is not None]
