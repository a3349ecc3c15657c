"""Foreign text in messages and tables: nothing in it may move a terminal's cursor, turn text round or break UTF-8."""

from __future__ import annotations

import re
import reprlib
from typing import Any

__all__ = ["UserError", "brief", "counted", "one_line", "printable"]

# Control characters but for tab and line break, what turns the direction of text, line separators, and halves of
# surrogate pairs, which no terminal can be sent.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSEEN_OR_BREAK = re.compile(f"[\t\n]|{_UNSEEN.pattern}")
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 80
_BRIEF.maxlevel = 3


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable(text: object) -> str:
    """`text` with such characters spelt out (`\\x1b`); tabs and line breaks stay."""
    return _UNSEEN.sub(_escaped, str(text))


def one_line(text: object, longest: int | None = None) -> str:
    """As `printable`, with tabs and line breaks spelt out too, cut to ``longest`` characters."""
    line = _UNSEEN_OR_BREAK.sub(_escaped, str(text))
    return line if longest is None or len(line) <= longest else line[: longest - 3] + "..."


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2 rows`, `12,000 entries`: ``many`` is for words that take no `s`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def brief(value: Any, longest: int = 80) -> str:
    """A value of a file in a few words. Takes the same time whatever its size and depth, unlike `repr`."""
    try:
        return one_line(_BRIEF.repr(value), longest)
    except ValueError:  # more digits than Python writes out
        return f"a {type(value).__name__} too long to show"


class UserError(ValueError):
    """What a user can mend. The message may hold names and text out of files, which are made printable."""

    def __init__(self, message: object = ""):
        super().__init__(printable(message))
