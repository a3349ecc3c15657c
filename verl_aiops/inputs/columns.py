"""What a user's file calls the fields that are read from it: `--columns prompt=question,chosen=answer`."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterable

from verl_aiops.inputs.shown import UserError, one_line

__all__ = ["ColumnsError", "read_columns"]

_FORM = "name=theirs,name=theirs, a column whose name has a comma in quotes"


class ColumnsError(UserError):
    """An option `--columns` that cannot be followed."""


def read_columns(text: str, known: Iterable[str], option: str = "--columns") -> dict[str, str]:
    """The column of each field in ``id=ticket,logs="log, excerpt"``; a column may be named for several fields.

    Args:
        known: the fields that there are.

    Raises:
        ColumnsError: names all that is wrong with ``text``.
    """
    fields = list(known)
    columns: dict[str, str] = {}
    faults = []
    # a quote opens behind `name=` too, where csv would take it as a character
    quoted = re.sub(r'(^|,)(\s*[\w-]+\s*=)\s*"', r'\1"\2', text)
    for part in next(csv.reader([quoted], skipinitialspace=True), []):
        field, given, column = (piece.strip() for piece in part.partition("="))
        if not given or not column or not field:
            faults.append(f"{one_line(part, 80)!r} is not of the form {_FORM}")
        elif field in columns:
            faults.append(f"'{field}' is given twice; keep one")
        elif field not in fields:
            near = difflib.get_close_matches(field, fields, n=1)
            meant = f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(fields)}"
            turned = " (the field stands first, the file's name second)" if column in fields else ""
            faults.append(f"'{one_line(field, 80)}' is no field{meant}{turned}")
        else:
            columns[field] = column
    if not columns and not faults:
        faults.append(f"expected {_FORM}, found nothing")
    if faults:
        raise ColumnsError(f"{option}: {'; '.join(dict.fromkeys(faults))}")
    return columns
