"""Incidents in the first sheet of an Excel workbook, read by openpyxl."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.columns import AS_NAMED, FieldColumns
from verl_aiops.incidents.io.csv_rows import table_header, table_row
from verl_aiops.inputs.shown import one_line

__all__ = ["read_xlsx_rows"]

_MEND = "save the sheet as CSV (UTF-8)"


def read_xlsx_rows(
    path: Path, columns: FieldColumns = AS_NAMED
) -> Iterator[tuple[str, dict[str, Any] | IncidentError]]:
    """A header row, then one incident a row, cells as in CSV; formulas by the value that was saved with them.

    A workbook in which several sheets hold something is refused, since nobody could tell which one is meant.
    """
    try:
        import openpyxl
    except ImportError:
        raise IncidentError(
            "workbooks are read by openpyxl, which is not installed: pip install 'verl-aiops[xlsx]', or save the "
            "sheet as CSV (UTF-8)"
        ) from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # what openpyxl raises over damaged files is not limited to some classes
        raise IncidentError(f"not a readable workbook ({one_line(error, 200)}); {_MEND}") from None
    place = "row 1"
    try:
        filled = [sheet for sheet in book.worksheets if any(any(_text(v) for v in row) for row in sheet.values)]
        if len(filled) > 1:
            names = ", ".join(one_line(sheet.title, 60) for sheet in filled)
            raise IncidentError(
                f"the workbook has {len(filled)} sheets ({names}); keep the one with the incidents in a file of its own"
            )
        header: list[str] = []
        for number, values in enumerate(filled[0].values if filled else (), 1):
            place = f"row {number}"
            cells = [_text(value) for value in values]
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = table_header(cells, place, columns.read())
            else:
                # a sheet leaves out empty cells at the end of a row
                yield place, table_row(header, cells + [""] * (len(header) - len(cells)), columns)
    except IncidentError:
        raise
    except Exception as error:
        raise IncidentError(f"after {place}: cannot be read ({one_line(error, 200)}); {_MEND}") from None
    finally:
        book.close()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():  # as a sheet holds ticket 4711
        return str(int(value))
    return value.isoformat(" ") if isinstance(value, datetime.datetime) else str(value)
