"""How answers are written: one line a fact, harmless, bounded, with times as short as they can be told apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import NamedTuple, TypeVar

from verl_aiops.incidents.safety import neutralise

__all__ = ["Clock", "Page", "ToolAnswer", "amount", "fact", "harmless", "page_of", "refused"]

Row = TypeVar("Row")

# One line of an answer at most; a stack trace is cut.
LINE_CHARS = 300
_BREAKS = re.compile(r"[\r\n\t\v\f\x85\u2028\u2029]+ *")
# Whatever looks like a tag: each model family spells tool calls and their results in tags of its own.
_TAG = re.compile(r"<[/|｜\w!?][^<>\n]{0,200}>")
_ANGLES = str.maketrans("<>", "‹›")


class ToolAnswer(NamedTuple):
    """`text` goes to the model. `ok`: whether the call was one that the tool could answer. `quotes`: the lines of
    `text` that are facts of the case, each of which stands in it word by word. `facts`: where in `text` what the case
    says begins and ends; around it stands what the tool says itself, with words of the question in it."""

    text: str
    ok: bool
    quotes: tuple[str, ...] = ()
    facts: tuple[int, int] = (0, 0)


def refused(text: str) -> ToolAnswer:
    """An answer to a call that cannot be answered: it says what would be."""
    return ToolAnswer(f"error: {text}", False)


def harmless(text: str) -> str:
    """Foreign text that no chat template takes for a role, a call or a result: `neutralise`, and no tag of any name."""
    text = neutralise(text)
    return _TAG.sub(lambda match: match.group().translate(_ANGLES), text) if "<" in text else text


def fact(text: str, longest: int = LINE_CHARS) -> str:
    """Foreign text as part of one line: no line break, no control token, no more than `longest` characters."""
    if len(text) > 4 * longest:
        text = text[: 4 * longest]
    line = harmless(_BREAKS.sub(" ⏎ ", text.strip()))
    return line if len(line) <= longest else line[: longest - 1] + "…"


def amount(value: float) -> str:
    """A number in four digits at most, without an exponent where it is of an everyday size."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"


class Clock:
    """Times as the answers show them: `14:03:22`, or `11-30 14:03:22` where a case spans more than a day."""

    def __init__(self, alert: float | None, first: float | None, last: float | None):
        known = [time for time in (alert, first, last) if time is not None]
        self.anchor = alert if alert is not None else last
        self.dated = bool(known) and _day(min(known)) != _day(max(known))

    def of(self, seconds: float | None) -> str:
        """`-` where there is no time."""
        if seconds is None:
            return "-"
        moment = _moment(seconds)
        return moment.strftime("%m-%d %H:%M:%S" if self.dated else "%H:%M:%S")

    def read(self, text: str) -> float | None:
        """The time that a model means: as shown, in ISO 8601, in seconds, or without a date (that of the alert).

        None for what is no time, or one that cannot be written out again, as seconds in thousands of them are.
        """
        text = text.strip()[:40]
        seconds = self._seconds(text)
        try:
            return None if seconds is None or _moment(seconds) is None else seconds
        except (ValueError, OverflowError, OSError):
            return None

    def _seconds(self, text: str) -> float | None:
        try:
            return float(text) if float(text) > 1e8 else None
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(text.replace("Z", "+00:00").replace("z", "+00:00"))
            return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
        except (ValueError, OverflowError):
            pass
        return self._near(text)

    def _near(self, text: str) -> float | None:
        match = re.fullmatch(r"(?:(\d{1,2})-(\d{1,2})[ T])?(\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d+)?)?", text)
        if match is None or self.anchor is None:
            return None
        month, day, hour, minute, second = (int(part) if part else None for part in match.groups())
        anchor = _moment(self.anchor)
        try:
            moment = anchor.replace(hour=hour or 0, minute=minute or 0, second=second or 0, microsecond=0)
            if month is not None and day is not None:
                moment = moment.replace(month=month, day=day)
                return moment.timestamp()
        except ValueError:
            return None
        # midnight may lie between the alert and what was shown
        around = [moment + timedelta(days=days) for days in (-1, 0, 1)] if self.dated else [moment]
        return min(around, key=lambda near: abs(near - anchor)).timestamp()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _day(seconds: float) -> int:
    return int(seconds // 86_400)


class Page(NamedTuple):
    """Which of the matching rows are asked for, and how long the answer may be."""

    limit: int
    offset: int
    max_chars: int


def page_of(head: str, rows: Sequence[Row], line_of: Callable[[Row], str], page: Page) -> ToolAnswer:
    """`head`, then as many rows from `offset` on as `limit` and `max_chars` allow, and how to ask for the next."""
    total = len(rows)
    if not total:
        return ToolAnswer(f"{head}: none", True)
    if page.offset >= total:
        return refused(f"offset {page.offset} is behind the last of {total}; give a smaller one")
    # room for the head with its numbers, and for the last line
    room = page.max_chars - len(head) - 80
    lines: list[str] = []
    for row in rows[page.offset : page.offset + page.limit]:
        line = line_of(row)
        room -= len(line) + 1
        if room < 0 and lines:
            break
        lines.append(line if room >= 0 else line[: max(40, room + len(line))])
    first, last = page.offset + 1, page.offset + len(lines)
    shown = f"{head}: {total}" if last - page.offset == total else f"{head}: {first}-{last} of {total}"
    more = [f"more with offset={last}"] if last < total else []
    told = "\n".join([shown, *lines])
    return ToolAnswer("\n".join([told, *more]), True, tuple(lines), (len(shown) + 1, len(told)))
