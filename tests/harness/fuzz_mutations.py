"""Damage of files as it happens and as somebody may mean it: bytes, JSON values, cells of CSV, columns of parquet."""

import csv
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HOSTILE_TEXTS = [
    "",
    " ",
    "\x00",
    "\x1b[31mred\x1b[0m",
    "\u202eabc",
    "\ufeff",
    "a" * 5000,
    "中文" * 50,
    "🦊",
    "\\",
    '"',
    "'",
]
HOSTILE_TEXTS += [
    "NaN",
    "null",
    "[]",
    "['a', 'b']",
    '["a"',
    "{}",
    "{'a': 1}",
    "-1",
    "1e999",
    "9" * 400,
    "9" * 5000,
    "\r",
]
HOSTILE_TEXTS += [
    "<|im_end|>",
    "{{x}}",
    "%s%n",
    "../../etc/passwd",
    "=1+1",
    "2022-13-45",
    "1970-01-01",
    "٣",
    "a\nb",
    "(",
    "*",
]
HOSTILE = [
    None,
    True,
    False,
    0,
    -1,
    3,
    2**31,
    2**63,
    2**64,
    10**300,
    -(10**300),
    0.5,
    -0.0,
    1e308,
    [],
    {},
    [[]],
    [None],
]
HOSTILE += [{"": None}, ["a"], [1, 2], {"a": 1}, [{"role": "user"}], {"service": 1}, [["a", "b"]], [{}], *HOSTILE_TEXTS]
# JSON that no Python value stands for
RAW = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 5000, '"\\ud800"', '"\\udfff\\ud800"', '["\\udc00"]']
RAW += [
    "[" * 60 + "]" * 60,
    "[" * 2000 + "]" * 2000,
    '{"a": 1, "a": 2}',
    '{"\\ud800": 1}',
    '"\\u0000"',
    "01",
    "'a'",
    "{,}",
]
MAGIC = [
    b"\x1f\x8b\x08",
    b"BZh9",
    b"PK\x03\x04",
    b"PAR1",
    b"ARROW1\x00\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"<!DOCTYPE html>",
]
MAGIC += [
    b"version https://git-lfs.github.com/spec/v1\n",
    b"sep=;\n",
    b"\x80\x04\x95",
    b"SQLite format 3\x00",
    b"\xff\xff\xff\xff",
]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few damages of any file."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind = rng.randrange(11)
        at = rng.randrange(len(data) + 1)
        some = slice(at, at + rng.choice((1, 2, 8, 64, 400)))
        if kind <= 1 and data:
            for _ in range(rng.choice((1, 1, 3, 20))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[some]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.choice((1, 3, 30)))
        elif kind == 5:
            data[some] = rng.choice((b"\x00", b"\xff")) * len(data[some])
        elif kind == 6:
            data[at:at] = data[some]
        elif kind == 7:
            data[:0] = rng.choice(MAGIC)
        elif kind == 8:
            data[at:at] = rng.choice(
                (b"\xe9", b"\xa7\xb8", b'"', b",", b";", b"{", b"[", b"]", b":", b"\n\n", b"\r", b"#", b"-")
            )
        elif kind == 9:
            lines = bytes(data).split(b"\n")
            place = rng.randrange(len(lines))
            lines[place:place] = [lines[rng.randrange(len(lines))]] * rng.randrange(3)
            data = bytearray(b"\n".join(lines))
        else:
            lines = bytes(data).split(b"\n")
            del lines[rng.randrange(len(lines))]
            data = bytearray(b"\n".join(lines))
    return bytes(data)


def _places(value, found, path=()):
    found.append(path)
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _places(inner, found, (*path, key))
    return found


def mutate_value(value, rng: random.Random, marks: dict[str, str]):
    """One place of a JSON value changed, with deeper damage preferred; `marks` stand for raw JSON, see `dumped`."""
    path = rng.choice(_places(value, [])[1:] or [()])
    if not path:
        return rng.choice(HOSTILE)
    outer = value
    for key in path[:-1]:
        outer = outer[key]
    kind = rng.randrange(8)
    if kind == 0:
        del outer[path[-1]]
    elif kind == 1 and isinstance(outer, dict):
        outer[rng.choice((path[-1].upper(), path[-1] + "s", path[-1][:-1], "\x1b[2J", "from"))] = outer.pop(path[-1])
    elif kind == 2:
        outer[path[-1]] = f"@raw{len(marks)}@"
        marks[outer[path[-1]]] = rng.choice(RAW)
    elif kind == 3 and isinstance(outer, list):
        outer += outer * rng.randrange(1, 3)
    elif kind == 4:
        outer[path[-1]] = [outer[path[-1]]]
    elif kind == 5:
        outer[path[-1]] = json.dumps(outer[path[-1]])
    else:
        outer[path[-1]] = rng.choice(HOSTILE)
    return value


def dumped(value, marks: dict[str, str]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    for mark, raw in marks.items():
        text = text.replace(f'"{mark}"', raw)
    return text


def mutate_json_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(lines))
        marks: dict[str, str] = {}
        try:
            lines[place] = dumped(mutate_value(json.loads(lines[place]), rng, marks), marks)
        except (ValueError, RecursionError):  # a second damage of one line
            continue
    return "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    marks: dict[str, str] = {}
    return dumped(mutate_value(json.loads(data), rng, marks), marks).encode("utf-8", "surrogatepass")


def mutate_csv(data: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode())))
    for _ in range(rng.choice((1, 1, 3))):
        row = rng.choice(rows)
        kind = rng.randrange(6)
        if kind == 0:
            row.insert(rng.randrange(len(row) + 1), rng.choice(HOSTILE_TEXTS))
        elif kind == 1 and row:
            del row[rng.randrange(len(row))]
        elif kind == 2:
            rows.insert(rng.randrange(len(rows)), [""] * len(row))
        elif row:
            row[rng.randrange(len(row))] = rng.choice((*HOSTILE_TEXTS, *RAW))
    text = io.StringIO()
    csv.writer(text, delimiter=rng.choice(",,,;\t|^")).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def mutate_parquet(data: bytes, rng: random.Random) -> bytes:
    """A column of another type, or of values that its type says it cannot have."""
    table = pq.read_table(io.BytesIO(data))
    at = rng.randrange(table.num_columns)
    name, rows = table.column_names[at], table.num_rows
    latin = pa.Array.from_buffers(pa.binary(), rows, pa.array([b"caf\xe9"] * rows).buffers()).view(pa.string())
    columns = [
        latin,
        pa.array([2**62 + 1] * rows, pa.duration("s")),
        pa.array([2**62 + 1] * rows, pa.duration("ns")),
        pa.array([2**62] * rows, pa.timestamp("us")),
        pa.array([1] * rows, pa.timestamp("ns", tz="Nowhere/Land")),
        pa.nulls(rows),
        pa.array([2**63 - 1] * rows),
        pa.array([float("nan")] * rows),
        pa.array([b"\x00\xff"] * rows),
        pa.array([[[]]] * rows, pa.list_(pa.list_(pa.string()))),
        pa.array([[("a", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        pa.array([{"role": None, "content": "x"}] * rows),
        pa.array([[{"role": "user", "content": None}]] * rows),
        pa.array(["x"] * rows, pa.string_view()),
        pa.array(["x"] * rows, pa.large_string()),
        pa.array(["x"] * rows).dictionary_encode(),
        pa.array([1] * rows).cast(pa.decimal128(38, 3)),
        pa.array([1] * rows, pa.date32()),
        pa.array([-(2**31)] * rows, pa.date32()),
        pa.array([True] * rows),
        pa.array([rng.choice(HOSTILE_TEXTS)] * rows),
    ]
    kind = rng.randrange(4)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.append_column(rng.choice((name.upper(), f"{name}s", "x\x1b[2J")), rng.choice(columns))
    elif kind == 2 and rng.random() < 0.3:
        table = table.append_column(name, rng.choice(columns))
    else:
        table = table.set_column(at, name, rng.choice(columns))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression=rng.choice(("none", "snappy")), row_group_size=2)
    return sink.getvalue()


BY_SUFFIX = {
    ".jsonl": mutate_json_lines,
    ".json": mutate_json,
    ".csv": mutate_csv,
    ".parquet": mutate_parquet,
}


def mutate(name: str, data: bytes, rng: random.Random) -> bytes:
    """`data` of the file `name`, damaged by its kind or as bytes."""
    by_kind = BY_SUFFIX.get(Path(name).suffix)
    if by_kind is None or rng.random() < 0.4:
        return mutate_bytes(data, rng)
    data = by_kind(data, rng)
    return mutate_bytes(data, rng) if rng.random() < 0.05 else data
