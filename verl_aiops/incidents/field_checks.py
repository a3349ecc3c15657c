"""Checks of one field of an incident: each raises `IncidentError` with field, what was expected and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.safety import neutralise
from verl_aiops.inputs.shown import brief, one_line
from verl_aiops.inputs.sniff import list_query

__all__ = ["MAX_LABEL_CHARS", "check_label", "check_list", "check_text", "fail", "found", "names_in", "rows_inside"]

MAX_LABEL_CHARS = 200


def fail(field: str, expected: str, mend: str) -> IncidentError:
    return IncidentError(f"field '{field}': expected {expected}; {mend}")


def found(value: Any) -> str:
    if isinstance(value, str):
        return f"str {value[:60]!r}"
    return "null" if value is None else f"{type(value).__name__} {brief(value, 60)!r}"


def names_in(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """What the file calls the fields of a row, those of its objects as `--columns` takes them: `labels.service`."""
    for name, value in row.items():
        name = columns.get(name, name)
        yield from (f"{name}.{key}" for key in value) if isinstance(value, Mapping) and value else (str(name),)


def rows_inside(row: Mapping[str, Any]) -> str:
    """How to take the incidents out of an object that is a list of them and what is said of it; empty for others."""
    query = list_query(row)
    return f"; where its list holds the incidents, write one a line: jq -c '{query}' FILE > NEW.jsonl" if query else ""


def check_text(field: str, value: Any, *, empty_ok: bool = False) -> None:
    if value is None:
        raise fail(field, "a string, found null", "fill it in or leave the record out")
    if not isinstance(value, str):
        raise fail(field, f"a string, found {found(value)}", _text_of(field, value))
    if not empty_ok and not value.strip():
        raise fail(field, "text, found an empty string", "fill it in or leave the record out")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            mend = "write the file anew as UTF-8"
            raise fail(field, f"valid Unicode, found the lone surrogate U+{code:04X}", mend) from None


def _text_of(field: str, value: Any) -> str:
    if not isinstance(value, Mapping) or not value:
        return "put the text in quotes"
    key = one_line(next(iter(value)), 60)
    if not field.isidentifier():  # an entry of a list, which no column is
        return "write each entry as one text"
    return f"give one of its texts, as --columns {field}={field}.{key} does"


def check_label(field: str, value: Any) -> None:
    """Raise IncidentError unless `value` is a name of a service, a type or the like: one short, clean line of text."""
    check_text(field, value)
    if not _is_clean_label(value):
        _refuse_label(field, value)


@lru_cache(maxsize=4096)
def _is_clean_label(value: str) -> bool:
    spaced = value != value.strip() or not value.isprintable()
    return not spaced and len(value) <= MAX_LABEL_CHARS and neutralise(value) == value


def _refuse_label(field: str, value: str) -> None:
    if value != value.strip() or not value.isprintable():
        raise fail(
            field, f"one printable line without spaces around it, found {value[:60]!r}", "trim and clean the name"
        )
    if len(value) > MAX_LABEL_CHARS:
        raise fail(field, f"at most {MAX_LABEL_CHARS} characters, found {len(value)}", "give the short name of it")
    raise fail(field, f"a plain name, found the chat-template marker in {value[:60]!r}", "rename it")


def check_list(field: str, value: Any, *, labels: bool = False) -> None:
    if not isinstance(value, tuple):
        raise fail(field, f"a list of strings, found {found(value)}", 'write it as ["first line", "second line"]')
    if not labels and set(map(type, value)) <= {str} and "".join(value).isascii():
        return
    for number, item in enumerate(value):
        if labels:
            check_label(f"{field}[{number}]", item)
        else:
            check_text(f"{field}[{number}]", item, empty_ok=True)
