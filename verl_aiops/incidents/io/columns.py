"""Incidents under other names: the columns of a ticket system's export as the fields of an incident."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_aiops.incidents.schema import LANGUAGES, OPTIONAL_FIELDS, REQUIRED_FIELDS
from verl_aiops.inputs.columns import ColumnsError, read_columns

__all__ = ["AS_NAMED", "LIST_FIELDS", "FieldColumns", "text_entries"]

LIST_FIELDS = ("logs", "evidence", "upstream")
_LABELS = ("id", "source", "service", "incident_type", "fault", "difficulty")


@dataclass(frozen=True)
class FieldColumns:
    """The column that each field is read from; a field that is not named here is read from the column of its name.
    `labels.service` is the field `service` of the objects in the column `labels`, where no column has that very name.

    `more`: further fields of the answer (severity, team), which are read as labels.
    """

    theirs: Mapping[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, more: tuple[str, ...] = ()) -> FieldColumns:
        """`id=ticket_id,logs=log_excerpt`, as the option `--columns` has it."""
        try:
            return cls(read_columns(text, REQUIRED_FIELDS + OPTIONAL_FIELDS + more), more)
        except ColumnsError as error:
            hint = (
                "; a further field of the answer is one that --answer-fields names"
                if "is no field" in str(error)
                else ""
            )
            raise ColumnsError(f"{error}{hint}") from None

    def __bool__(self) -> bool:
        return bool(self.theirs)

    def read(self) -> frozenset[str]:
        """The names of all columns that something is read from."""
        own = {name for name in REQUIRED_FIELDS + OPTIONAL_FIELDS + self.more if name not in self.theirs}
        theirs = self.theirs.values()
        return frozenset(own.union(theirs, (column.partition(".")[0] for column in theirs)))

    def named(self, row: Any) -> Any:
        """A row of the file under the names of the fields; what is no object stays, for `from_dict` to refuse."""
        if not self.theirs or not isinstance(row, Mapping):
            return row
        taken = set(self.theirs.values())
        row = _opened(row, {column for column in taken if "." in column and column not in row})
        named = {ours: row[column] for ours, column in self.theirs.items() if column in row}
        for name, value in row.items():
            if name not in taken:
                # a column of a field's name, where the field is read from another one: not read, but counted
                named[f"column {name}" if name in self.theirs else name] = value
        return named

    def converted(self, row: Any) -> Any:
        """Values as a field holds them: systems write numbers for names, one text for many lines, `zh-CN` for `zh`.

        Without `--columns` a file is taken at its word, but for labels of further fields: a severity is often a number.
        """
        if not (self.theirs or self.more) or not isinstance(row, Mapping):
            return row
        return {
            name: _label(value) if name in self.more else _converted(name, value) if self.theirs else value
            for name, value in row.items()
        }


AS_NAMED = FieldColumns()


def _opened(row: Mapping[str, Any], paths: set[str]) -> Mapping[str, Any]:
    """The row with each object that a path leads into replaced by its fields, so that those not read are counted by
    name: `{"labels": {"service": "db", "pod": "db-1"}}` is `labels.service` and `labels.pod`.
    """
    if not paths:
        return row
    heads = {path[:at] for path in paths for at, character in enumerate(path) if character == "."}
    opened = {name: value for name, value in row.items() if "." in name}  # these go before a path of that name

    def put(name: str, value: Any) -> None:
        if name in heads and isinstance(value, Mapping):  # no deeper than the paths, whatever the row holds
            for key, inner in value.items():
                put(f"{name}.{key}", inner)
        else:
            opened.setdefault(name, value)

    for name, value in row.items():
        put(name, value)
    return opened


def _converted(name: str, value: Any) -> Any:
    if name in _LABELS:
        return _label(value)
    if name in LIST_FIELDS and isinstance(value, str):
        return text_entries(value)
    if name == "lang" and isinstance(value, str):
        short = value.strip().lower().replace("_", "-").partition("-")[0]
        return short if short in LANGUAGES else value.strip() or None
    return value


def _label(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():  # as pandas writes whole numbers beside empty cells
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole else value.strip() if isinstance(value, str) else value


def text_entries(text: str) -> list[str]:
    """One entry a line, without blank ones."""
    return [line for line in text.splitlines() if line.strip()]
