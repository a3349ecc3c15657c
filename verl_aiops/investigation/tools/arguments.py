"""What a model passes to a tool, read as generously as it can be understood, and refused in words that help it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from verl_aiops.investigation.tools.index import Index
from verl_aiops.investigation.tools.text import fact

__all__ = ["Arguments", "BadCall", "parsed"]

_TEXT_CHARS = 200
_LARGEST = 1_000_000


class BadCall(Exception):
    """A call that cannot be answered; the message is for the model."""


def parsed(arguments: Any) -> dict[str, Any]:
    """The arguments of a call as an object: given as one, as JSON text, or not at all.

    Raises:
        BadCall: they are something else.
    """
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str | bytes):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise BadCall('the arguments are no JSON; write an object such as {"service": "NAME"}') from None
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise BadCall('the arguments are no JSON object; write one such as {"service": "NAME"}')
    return {str(name): value for name, value in list(arguments.items())[:50]}


class Arguments:
    """The arguments of one call, by name."""

    def __init__(self, tool: str, known: tuple[str, ...], given: Mapping[str, Any], index: Index):
        self.index = index
        self.given = {name: value for name, value in given.items() if value not in (None, "", [], {})}
        for name in self.given:
            if name not in known:
                takes = f"it takes {', '.join(known)}" if known else "it takes none"
                raise BadCall(f"{tool} has no argument '{fact(name, 40)}'; {takes}")

    def text(self, name: str) -> str | None:
        """A text, cut where it is long; a number counts as one."""
        value = self.given.get(name)
        if value is None:
            return None
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise BadCall(f"argument {name}: expected a text")
        try:
            return str(value).strip()[:_TEXT_CHARS] or None
        except ValueError:  # more digits than Python writes out
            raise BadCall(f"argument {name}: expected a text") from None

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number, brought into its range."""
        text = self.text(name)
        if text is None:
            return default
        try:
            value = float(text)
            return max(least, min(most, int(value)))
        except (ValueError, OverflowError):
            raise BadCall(f"argument {name}: expected a whole number, found '{fact(text, 40)}'") from None

    def amount(self, name: str) -> float | None:
        text = self.text(name)
        if text is None:
            return None
        try:
            value = float(text.lower().removesuffix("ms").strip())
        except ValueError:
            raise BadCall(f"argument {name}: expected a number, found '{fact(text, 40)}'") from None
        if not -_LARGEST * _LARGEST < value < _LARGEST * _LARGEST:
            raise BadCall(f"argument {name}: expected a number, found '{fact(text, 40)}'")
        return value

    def time(self, name: str) -> float | None:
        text = self.text(name)
        if text is None:
            return None
        seconds = self.index.clock.read(text)
        if seconds is None:
            shown = self.index.clock.of(self.index.clock.anchor)
            raise BadCall(f"argument {name}: expected a time such as {shown}, found '{fact(text, 40)}'")
        return seconds

    def window(self) -> tuple[float | None, float | None]:
        """`start` and `end`; either may be open."""
        start, end = self.time("start"), self.time("end")
        if start is not None and end is not None and end < start:
            raise BadCall("argument end: it is before start; exchange the two")
        return start, end

    def service(self, name: str = "service") -> str | None:
        """A service of the case, in whatever spelling of its letters."""
        text = self.text(name)
        if text is None:
            return None
        services, plain = self.index.services, text.lower()
        found = services.get(text) or services.get(plain) or services.get("".join(filter(str.isalnum, plain)))
        if found is not None:
            return found
        names = self.index.case.services
        near = difflib.get_close_matches(text, names, 3, 0.5) or names[:5]
        rest = f"; did you mean {', '.join(near)}?" if near else ""
        raise BadCall(f"argument {name}: no service '{fact(text, 60)}' here{rest} list_services shows all {len(names)}")
