"""JSON that others wrote: one reader with one kind of error, whatever is wrong with the text.

`json.loads` raises errors of four classes, keeps the last of two equal keys, lets whole numbers through that no float
can hold (`float`, `math.isfinite` then raise OverflowError), and values so deep that printing them fails.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from verl_aiops.inputs.shown import one_line
from verl_aiops.inputs.sniff import refusal

__all__ = ["JsonFault", "lone_surrogate", "read_json", "read_json_file", "read_object", "read_object_file"]

# 10**308 is the largest power of ten that a float can hold
_DIGITS = 308
_DEPTH = 100
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonFault(ValueError):
    """No usable JSON. ``what`` is it not, and why: ``detail``; ``twice``: a key that one object has two times."""

    def __init__(self, what: str, detail: str, twice: str | None = None):
        super().__init__(f"{what} ({detail})")
        self.what, self.detail, self.twice = what, detail, twice


def read_json(text: str | bytes, *, finite: bool = False) -> Any:
    """The value of a JSON text; bytes are UTF-8.

    Args:
        finite: refuse NaN and infinite numbers, which Python reads although JSON has none.

    Raises:
        JsonFault: not UTF-8, not JSON, a key twice in one object, more than 100 levels, a whole number of more than 308
            digits.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise JsonFault("not UTF-8 text", f"byte {error.start}: 0x{text[error.start]:02x}") from None
    try:
        value = json.loads(
            text,
            parse_int=_whole_number,
            object_pairs_hook=_unique,
            parse_constant=_not_finite if finite else None,
            parse_float=_finite if finite else None,
        )
    except JsonFault:
        raise
    except json.JSONDecodeError as error:
        raise JsonFault("not valid JSON", f"{error.msg} at character {error.pos}{_mend(text, error)}") from None
    except RecursionError:
        raise JsonFault("not usable JSON", "nested too deeply") from None
    if text.count("[") + text.count("{") > _DEPTH:
        _check_depth(value)
    return value


def _mend(text: str, error: json.JSONDecodeError) -> str:
    """What a text that is no JSON most likely is, and what makes JSON of it; empty where nothing tells."""
    rest = text[error.pos :].lstrip()
    if text.startswith("\ufeff"):
        return "; a byte order mark stands there, as where files were joined: remove it"
    if re.match(r"(?:<{7}|={7}|>{7})(?: |$)", text.rstrip("\r\n")):
        return "; it is a mark of git about a merge that was not finished: solve it in the file"
    if re.match(r"\s*\[?\s*\{\s*'", text):
        return "; it is spelled as Python prints it: write it with json.dumps"
    if error.msg == "Extra data" and rest.startswith(("{", "[")):
        if text[: error.pos].endswith("\r"):
            return "; lines end in carriage returns alone there: tr '\\r' '\\n' < FILE > NEW"
        return "; a second value begins there: put each on a line of its own"
    # the line break behind it is no character of a text
    if error.msg.startswith("Unterminated string") or error.msg.startswith("Invalid control") and not rest:
        return "; was it cut short?"
    return ""


def read_object(text: str | bytes) -> dict[str, Any]:
    """As `read_json`, of a text that must be an object.

    Raises:
        JsonFault: it is something else.
    """
    return _object(read_json(text))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise JsonFault("expected an object", f"found JSON of type {type(value).__name__}")
    return value


def read_json_file(path: str | Path) -> Any:
    """The value that a file holds; a byte order mark before it is passed over.

    Raises:
        JsonFault: it holds something else, or a number that is not finite, or text with half of a surrogate pair; the
            message does not name the file.
        OSError: it cannot be read.
    """
    unfit = refusal(path, "object")
    if unfit:
        raise JsonFault("not JSON", f"it {unfit}")
    content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    value = read_json(content, finite=True)
    half = lone_surrogate(value, content)
    if half:
        raise JsonFault("not usable JSON", half)
    return value


def read_object_file(path: str | Path) -> dict[str, Any]:
    """As `read_json_file`, of a file that must hold an object."""
    return _object(read_json_file(path))


def _not_finite(name: str) -> float:
    raise JsonFault("not usable JSON", f"{one_line(name, 40)} is no finite number")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _not_finite(digits)


def _whole_number(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise JsonFault(
            "not usable JSON", f"a whole number of {len(digits):,} digits; write it as text, in quotes, or mend it"
        )
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = one_line(next(name for name in names if names.count(name) > 1), 60)
        raise JsonFault("not usable JSON", f"the key '{twice}' is given twice in one object; keep one", twice)
    return row


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEPTH):
        level = (
            [
                inner
                for outer in level
                for inner in (outer.values() if isinstance(outer, dict) else outer)
                if isinstance(inner, dict | list)
            ]
            if isinstance(value, dict | list)
            else []
        )
        if not level:
            return
    raise JsonFault("not usable JSON", "nested too deeply")


def lone_surrogate(value: Any, text: bytes = rb"\ud800") -> str | None:
    """Where in a value of JSON a text holds half of a surrogate pair, which UTF-8 cannot hold, and which; else None.

    ``text``, the JSON it was read from, saves the search where it cannot hold one.
    """
    if not _ESCAPED_SURROGATE.search(text):
        return None
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        place, inner = left.pop()
        if isinstance(inner, str):
            found = _SURROGATE.search(inner)
            if found:
                half = f"the half of a surrogate pair U+{ord(found.group()):04X}"
                return f"{place or 'the text'} holds {half} at character {found.start()}; remove it"
        elif isinstance(inner, list):
            left += [(f"{place}[{at}]", item) for at, item in reversed(list(enumerate(inner)))]
        elif isinstance(inner, dict):
            for key, item in reversed(list(inner.items())):
                if _SURROGATE.search(key):
                    return f"{place or 'the object'} has a key with half of a surrogate pair ({one_line(key, 60)})"
                left.append((f"{place}.{key}" if place else key, item))
    return None
