"""What a file is by its first bytes, whatever its name says, and how to make of it what is read here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_aiops.inputs.shown import one_line

__all__ = ["Kind", "kind_of", "list_query", "refusal"]

_HEAD = 1 << 16
_TO_PARQUET = "pyarrow.parquet.write_table(TABLE, 'NEW.parquet')"


@dataclass(frozen=True)
class Kind:
    """``name`` is `parquet`, `json`, `csv`, `xlsx` or, for what is not read here, None; ``is_a`` what it is, ``mend``
    how to make of it what is.
    """

    is_a: str
    mend: str
    name: str | None = None


def _unpack(program: str) -> str:
    return f"unpack it first ({program}) and give the file that comes out"


_DOWNLOAD = "download it again, by its raw address and signed in where that is needed"
_LFS = "fetch what it stands for: git lfs install, then git lfs pull in that repository, or download the file itself"
_SHEET = "save the sheet as CSV (UTF-8)"
# (place, bytes, kind); of several that fit the first counts
_MAGIC = (
    (0, b"PAR1", Kind("a parquet file", "let its name end in .parquet", "parquet")),
    (0, b"PARE", Kind("an encrypted parquet file", "write it without encryption")),
    (0, b"\x1f\x8b", Kind("compressed with gzip", _unpack("gunzip -c FILE > NEW"))),
    (0, b"BZh", Kind("compressed with bzip2", _unpack("bunzip2 -c FILE > NEW"))),
    (0, b"\xfd7zXZ\x00", Kind("compressed with xz", _unpack("xz -dc FILE > NEW"))),
    (0, b"\x28\xb5\x2f\xfd", Kind("compressed with zstd", _unpack("zstd -dc FILE > NEW"))),
    (0, b"\x04\x22\x4d\x18", Kind("compressed with lz4", _unpack("lz4 -dc FILE > NEW"))),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("a 7-Zip archive", _unpack("7z x FILE"))),
    (0, b"Rar!\x1a\x07", Kind("a RAR archive", _unpack("unrar x FILE"))),
    (257, b"ustar", Kind("a tar archive", _unpack("tar -xf FILE"))),
    (0, b"ARROW1", Kind("an Arrow file (Feather)", f"TABLE = pyarrow.feather.read_table(FILE), then {_TO_PARQUET}")),
    (0, b"FEA1", Kind("a Feather file", f"TABLE = pyarrow.feather.read_table(FILE), then {_TO_PARQUET}")),
    (
        0,
        b"\xff\xff\xff\xff",
        Kind(
            "an Arrow stream, as datasets' save_to_disk writes it",
            "datasets.load_from_disk(FOLDER).to_parquet('NEW.parquet'), or "
            f"TABLE = pyarrow.ipc.open_stream(FILE).read_all(), then {_TO_PARQUET}",
        ),
    ),
    (0, b"ORC", Kind("an ORC file", f"TABLE = pyarrow.orc.read_table(FILE), then {_TO_PARQUET}")),
    (0, b"Obj\x01", Kind("an Avro file", "write it anew as parquet or JSON lines")),
    (0, b"SQLite format 3\x00", Kind("an SQLite data base", "export the table as JSON lines or CSV")),
    (0, b"\x89HDF\r\n", Kind("an HDF5 file", "write its table anew as parquet or JSON lines")),
    (0, b"\x93NUMPY", Kind("a NumPy array", "write its rows anew as parquet or JSON lines")),
    (0, b"%PDF", Kind("a PDF", "give the data it shows as parquet or JSON lines")),
    (0, b"\x89PNG", Kind("a picture (PNG)", "give the data file")),
    (0, b"\xff\xd8\xff", Kind("a picture (JPEG)", "give the data file")),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind("an old Office file (xls, doc)", _SHEET)),
    (0, b"version https://git-lfs.github.com/spec", Kind("a Git LFS pointer, not the data", _LFS)),
    (0, b"version https://hawser.github.com/spec", Kind("a Git LFS pointer, not the data", _LFS)),
    (0, b"/annex/objects/", Kind("a git-annex pointer, not the data", "fetch what it stands for: git annex get FILE")),
    (0, b"\xff\xfe\x00\x00", Kind("text in UTF-32", "save it as UTF-8")),
    (0, b"\x00\x00\xfe\xff", Kind("text in UTF-32", "save it as UTF-8")),
)
_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|script|meta)\b", re.IGNORECASE)
_PICKLE = re.compile(rb"\x80[\x02-\x05](?:\x95|[\]}(c])", re.DOTALL)


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file that begins with ``head`` (some kilobytes, or all of it); None for text like any other."""
    for place, magic, kind in _MAGIC:
        # letters alone may also begin a text
        if head.startswith(magic, place) and not (magic.isalnum() and _is_text(head)):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _zipped(head)
    if _PICKLE.match(head):
        return Kind("a pickle, which would run code on reading", "write its rows anew as parquet or JSON lines")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.strip(b"\x00"):
        return Kind("nothing but zero bytes: a copy that failed", "copy or download it again") if head else None
    if _HTML.match(text):
        return Kind("a web page (HTML), not the data", _DOWNLOAD)
    if text.startswith(b"<?xml") or re.match(rb"<[A-Za-z][\w:]*[\s>]", text):
        return Kind("XML, not the data", "where it was downloaded, read it: a server's error may stand in it")
    # two bytes a character: behind the mark that says so, or without it
    marked = head[:2] in (b"\xff\xfe", b"\xfe\xff") and b"\x00" in head
    if marked or (len(head) >= 8 and (not any(head[1:64:2]) or not any(head[0:64:2]))):
        return Kind("text in UTF-16, as Excel and PowerShell write it", "save it as UTF-8")
    if text[:1] in (b"{", b"["):
        return Kind("JSON", "let its name end in .jsonl", "json")
    return None


def _zipped(head: bytes) -> Kind:
    if b"[Content_Types].xml" in head or b"xl/" in head:
        return Kind("an Excel workbook (or another Office file)", _SHEET, "xlsx")
    if b"opendocument" in head[:200]:
        return Kind("a LibreOffice file", _SHEET)
    if b".npy" in head[:200]:
        return Kind("NumPy arrays (npz)", "write their rows anew as parquet or JSON lines")
    if b"data.pkl" in head[:200]:
        return Kind("a PyTorch file", "write its rows anew as parquet or JSON lines")
    return Kind("a ZIP archive", _unpack("unzip FILE"))


def refusal(path: str | Path, expected: str) -> str | None:
    """What keeps the file at ``path`` from being of the kind ``expected``, in words.

    Kinds are `parquet`; `json`, one object a line; `object`, one JSON text; `csv`; `xlsx`; `text`, such as YAML.

    None where nothing does that its first bytes tell; what is in it is not checked.

    Raises:
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    kind = kind_of(head)
    if expected == "parquet":
        if kind is None or kind.name == "json":
            if _is_text(head):
                return f"is text, not parquet; {_name_for(head, kind)}"
            return None
        return None if kind.name == "parquet" else _told(kind)
    if expected == "xlsx":
        if kind is None:
            return "is no Excel workbook; where it is CSV, let its name end in .csv"
        return None if kind.name == "xlsx" else _told(kind)
    if kind is None:
        if expected == "json" and _is_text(head) and _separated(head):
            return "looks like CSV, not JSON; write one JSON object a line"
        return None
    if kind.name == "json" and expected != "csv":
        return _not_lines(head) if expected == "json" else None
    return _told(kind)


def _told(kind: Kind) -> str:
    return f"is {kind.is_a}; {kind.mend}"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        # the last character may be cut
        if error.start < len(head) - 3 or not error.start:
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text.strip()) and "\x00" not in text


def _name_for(head: bytes, kind: Kind | None) -> str:
    if kind is not None:
        return "if it holds one JSON object a line, let its name end in .jsonl"
    return f"it begins with {one_line(ascii(head[:40].decode('utf-8', 'replace')))}"


def _separated(head: bytes) -> bool:
    first = head.split(b"\n", 1)[0].strip()
    return bool(re.fullmatch(rb"[\w\" .-]+(?:[,;\t|][\w\" .-]*)+", first))


def _not_lines(head: bytes) -> str | None:
    """Whether text that begins as JSON is one JSON text over several lines, or an array, and how to mend that."""
    text = head.decode("utf-8", "ignore").removeprefix("\ufeff").lstrip()
    first = text.split("\n", 1)[0].strip()
    if re.match(r"\[\s*(?:\{|$)", text):
        looks = "looks like one JSON array" + ("" if first.endswith("]") else " over several lines")
        return f"begins with '[': it {looks}; {_one_a_line('.[]', 'json.load(file)')}"
    try:
        json.loads(first)
        return None
    except (ValueError, RecursionError):
        pass
    value: Any = None
    try:
        value, end = json.JSONDecoder().raw_decode(text)
        spread = "\n" in text[:end].rstrip()
    except ValueError as error:
        # an object that goes on behind what was read
        spread = len(head) == _HEAD and getattr(error, "pos", 0) > len(first)
    except RecursionError:
        spread = False
    # a first line that is broken by itself is told as any other broken line
    if not spread:
        return None
    query = list_query(value)
    rows = f"json.load(file)['{query[1:-2]}']" if query else None
    return f"is JSON over several lines (pretty-printed); {_one_a_line(query or '.', rows)}"


def list_query(value: Any) -> str | None:
    """jq's query for the rows in an object that is one list of objects and what is said of it, as alerting tools send
    alerts and APIs answer a page of incidents: `.alerts[]`. None for any other value.
    """
    lists = [
        name
        for name, inner in (value.items() if isinstance(value, Mapping) else ())
        if isinstance(inner, list) and inner and all(isinstance(row, Mapping) for row in inner)
    ]
    # of other names neither jq nor a shell could be trusted to take them as they are
    return f".{lists[0]}[]" if len(lists) == 1 and re.fullmatch(r"[A-Za-z_]\w*", lists[0], re.ASCII) else None


def _one_a_line(query: str, rows: str | None) -> str:
    other = f", or in Python: for row in {rows}: print(json.dumps(row))" if rows else ""
    return f"one JSON object per line is expected: jq -c '{query}' FILE > NEW.jsonl{other}"


def by_content(path: str | Path) -> str:
    """What a file without a known ending is, for a message; empty where its first bytes do not tell."""
    try:
        if not os.path.isfile(path):
            return ""
        with open(path, "rb") as file:
            kind = kind_of(file.read(_HEAD))
    except OSError:
        return ""
    if kind is None:
        return ""
    return f"; by its first bytes it is {kind.is_a}: {kind.mend}"
