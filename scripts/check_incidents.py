"""Tells a file that cannot be one of incidents before anything is installed to read it with.

    python3 scripts/check_incidents.py FILE [COLUMNS]      exit 0, or 1 after one message

COLUMNS is what the file calls the fields, as --columns of the commands has it: id=ticket_id,symptom=summary.

It looks no further than the names of the first record: the package reads the rest, with its own messages.
Standard library alone.
"""

import csv
import json
import sys
from pathlib import Path

# verl_aiops.incidents.schema.REQUIRED_FIELDS, which cannot be imported yet
NEEDED = ("id", "service", "incident_type", "symptom", "logs")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".pq", ".xlsx")


def fault(path, columns=""):
    """What is wrong with the file, or None."""
    theirs = dict(part.partition("=")[::2] for part in next(csv.reader([columns]), []))
    needed = [theirs.get(name, name) for name in NEEDED]
    suffix = path.suffix.lower()
    if not path.exists():
        return "no such file"
    if path.is_dir():
        return "expected a file, found a folder; name the file in it"
    if suffix not in SUFFIXES:
        return f"no reader for {suffix!r}; name the file by its format, one of {', '.join(SUFFIXES)}"
    if not path.stat().st_size:
        return "is empty; is it the right file?"
    if suffix in (".parquet", ".pq"):
        with path.open("rb") as file:
            return None if file.read(4) == b"PAR1" else "is not parquet by its first bytes; write or copy it anew"
    if suffix == ".xlsx":
        with path.open("rb") as file:
            return None if file.read(4) == b"PK\x03\x04" else "is no Excel workbook by its first bytes"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = header(file, needed) if suffix in (".csv", ".tsv") else first_names(file)
    except UnicodeDecodeError:
        return "is not UTF-8; save the file as UTF-8"
    except ValueError as error:
        return str(error)
    missing = [name for name in needed if name not in names]
    if missing:
        return f"its first record has no {', '.join(missing)}; it has {', '.join(map(repr, names)) or 'no names'}"
    return None


def header(file, needed):
    """The names that a table's first line has."""
    line = next((line for line in file if line.strip()), "")
    if line.lower().startswith("sep="):
        separator, line = line[4:5], next(file, "")
    else:
        cells = {mark: split(line, mark) for mark in ",;\t|"}
        # without a single name that is needed, the one with the most cells: what the names are is to be told
        separator = max(cells, key=lambda mark: (len(set(needed) & set(cells[mark])), len(cells[mark])))
    return split(line, separator or ",")


def split(line, separator):
    return [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]


def first_names(file):
    """The names that the first line's JSON object has. Raises ValueError."""
    line = next((line for line in file if line.strip()), "")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected one JSON object a line, and the first is none ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected one JSON object a line, found a {type(row).__name__}")
    return list(names_in(row))


def names_in(row, before="", depth=5):
    """The names of an object, those of objects in it as COLUMNS has them: `labels.service`."""
    for name, value in row.items():
        yield before + name
        if isinstance(value, dict) and depth:
            yield from names_in(value, f"{before}{name}.", depth - 1)


if __name__ == "__main__":
    told = fault(Path(sys.argv[1]), *sys.argv[2:3])
    if told:
        sys.exit(f"{sys.argv[1]}: {told}. What an incident is: docs/data.md. Nothing was installed.")
