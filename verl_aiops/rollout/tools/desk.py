"""Where an investigation's calls are answered: within a budget, with a text for every fault, and on record.

Without verl: the agent loop and every backend of an evaluation ask here, so that a call means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

from verl_aiops.investigation.case import Case
from verl_aiops.investigation.tools import MAX_CHARS, answer
from verl_aiops.investigation.tools.text import fact
from verl_aiops.rollout.tools.settings import ToolSettings

__all__ = ["NO_CALLS_LEFT", "SHORTEST", "UNREADABLE", "Asked", "Desk", "Kept", "leave_out", "shorten"]

UNREADABLE = (
    "error: this call could not be read, so nothing was asked. Write one JSON object with the tool's name and its "
    "arguments, in the form that the description of the tools shows."
)
NO_CALLS_LEFT = "No calls are left: write the verdict now."
_CUT = "\n(cut)"
SHORTEST = f"{_CUT}\n{NO_CALLS_LEFT}"
"""The shortest thing that can be said to the last call."""


class Asked(NamedTuple):
    """One call as the model wrote it; ``name`` is None where it could not be read."""

    name: str | None
    arguments: str = ""


class Kept(TypedDict):
    """One call on record, as `rewards.investigation.transcript` reads it.

    ``result`` is what the tool returned, as far as the model was shown it; ``reply`` is all that the model was shown,
    with what the desk has to say itself. ``facts``: where in ``result`` what the case says begins and ends, which alone
    is evidence. ``turn`` is the number of the message that called.
    """

    turn: int
    name: str
    arguments: str
    ok: bool
    result: str
    reply: str
    facts: list[int]


@dataclass
class Desk:
    """Answers one investigation's calls.

    Args:
        case: what is asked about.
        settings: how much may be asked.
        answer_chars: of a tool's answer, where the settings leave it open.
        shown: makes what a tool returned harmless for the model's tokenizer; what it returns is what goes on record, so
            that quotes are compared with what the model saw.
    """

    case: Case
    settings: ToolSettings
    answer_chars: int | None = None
    shown: Callable[[str], str] = lambda text: text
    calls: list[Kept] = field(default_factory=list)
    per_turn: list[int] = field(default_factory=list)
    closed: bool = False

    @property
    def chars(self) -> int:
        """The longest answer of a tool, in characters."""
        return self.settings.result_chars or self.answer_chars or MAX_CHARS

    @property
    def left(self) -> int:
        """Calls that will still be answered."""
        return 0 if self.closed else max(0, self.settings.max_calls - len(self.calls))

    def answer(self, asked: Sequence[Asked]) -> list[Kept]:
        """What there is to say to a message with these calls, one or more, while calls are left.

        Those beyond the budget of a message are not answered; the last reply says so.
        """
        some = [self._one(call) for call in asked[: max(1, min(self.settings.calls_per_turn, self.left))]]
        if more := len(asked) - len(some):
            some[-1]["reply"] += f"\n({more} more calls of this message were not answered: at most {len(some)} are)"
        self.per_turn.append(len(asked))
        self.calls += some
        if not self.left:
            _add_notice(some[-1])
        return some

    def close(self, last: Kept | None = None) -> None:
        """Answer no more calls, and say so in the last reply, unless that has been said."""
        said, self.closed = not self.left, True
        if last is not None and not said:
            _add_notice(last)

    def end(self, asked: int) -> None:
        """The last message, with so many calls that nobody answers; a verdict has none."""
        self.per_turn.append(asked)

    def fields(self) -> dict[str, Any]:
        """The columns that the reward reads."""
        return {"tool_calls": [dict(call) for call in self.calls], "turn_calls": list(self.per_turn)}

    def _one(self, call: Asked) -> Kept:
        # a model can spell half of a surrogate pair in JSON, which neither a tokenizer nor a file can hold
        arguments = call.arguments[:2000].encode("utf-8", "backslashreplace").decode()
        if call.name is None:
            name, ok, text, facts = "?", False, UNREADABLE, [0, 0]
        else:
            said = answer(self.case, call.name, call.arguments, max_chars=self.chars)
            begin, end = said.facts
            head, told, rest = map(self.shown, (said.text[:begin], said.text[begin:end], said.text[end:]))
            # some templates write the name too, which may be anything
            name, ok, text = self.shown(fact(call.name, 200)), said.ok, head + told + rest
            facts = [len(head), len(head) + len(told)]
        return Kept(
            turn=len(self.per_turn), name=name, arguments=arguments, ok=ok, result=text, reply=text, facts=facts
        )


def shorten(some: Sequence[Kept], chars: int) -> None:
    """Cut replies to so many characters of results each, on record too: what the model did not see is no evidence."""
    for kept in some:
        notice = f"\n{NO_CALLS_LEFT}" if kept["reply"].endswith(NO_CALLS_LEFT) else ""
        if len(kept["reply"]) > chars + len(_CUT) + len(notice):
            kept["result"] = kept["result"][:chars]
            kept["facts"] = [min(place, chars) for place in kept["facts"]]
            kept["reply"] = kept["result"] + _CUT + notice


def leave_out(kept: Kept) -> None:
    """There is no room for any of this reply."""
    kept["ok"], kept["result"], kept["reply"], kept["facts"] = False, "", "", [0, 0]


def _add_notice(kept: Kept) -> None:
    if not kept["reply"].endswith(NO_CALLS_LEFT):
        kept["reply"] += f"\n{NO_CALLS_LEFT}"
