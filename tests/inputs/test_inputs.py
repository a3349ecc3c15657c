"""Files that are not what their names say, and foreign JSON, CSV and parquet: read, or refused with what mends them."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from verl_aiops.cli.main import main
from verl_aiops.data import PreferenceDataError
from verl_aiops.data.reading import open_files
from verl_aiops.incidents import IncidentError, Taxonomy, read_incidents
from verl_aiops.inputs.json_text import JsonFault, lone_surrogate, read_json, read_json_file
from verl_aiops.inputs.shown import brief, counted, one_line, printable

PAIR = {"prompt": "Which failed?", "chosen": "db", "rejected": "web"}
ROW = {"id": "a-1", "service": "db", "incident_type": "disk_full", "symptom": "Slow.", "logs": ["db: disk at 100%"]}
LINE = json.dumps(PAIR).encode() + b"\n"
TABLE = pa.Table.from_pylist([PAIR] * 3)


def written(write):
    sink = io.BytesIO()
    write(sink)
    return sink.getvalue()


def zipped(name, content=b"x"):
    def write(sink):
        with zipfile.ZipFile(sink, "w") as file:
            file.writestr(name, content)

    return written(write)


def tarred(sink):
    with tarfile.open(fileobj=sink, mode="w") as file:
        info = tarfile.TarInfo("pairs.jsonl")
        info.size = len(LINE)
        file.addfile(info, io.BytesIO(LINE))


def stream(sink):
    with pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 99\n"
# what a file holds: what the message says it is, and how to mend it
CONTENTS = {
    "gzip": (gzip.compress(LINE), "compressed with gzip", "gunzip"),
    "bzip2": (bz2.compress(LINE), "compressed with bzip2", "bunzip2"),
    "xz": (lzma.compress(LINE), "compressed with xz", "xz -dc"),
    "zstd": (pa.compress(LINE, codec="zstd", asbytes=True), "compressed with zstd", "zstd -dc"),
    "zip": (zipped("pairs.jsonl", LINE), "a ZIP archive", "unzip"),
    "xlsx": (zipped("[Content_Types].xml"), "an Excel workbook", "save the sheet as CSV"),
    "ods": (zipped("mimetype", b"application/vnd.oasis.opendocument.spreadsheet"), "a LibreOffice file", "as CSV"),
    "npz": (written(lambda sink: np.savez(sink, a=[1])), "NumPy arrays", "anew"),
    "tar": (written(tarred), "a tar archive", "tar -xf"),
    "lfs": (LFS, "a Git LFS pointer", "git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page", "download it again"),
    "html without a doctype": (b'<html lang="en">', "a web page", "download it again"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML", "server's error"),
    "arrow stream": (written(stream), "an Arrow stream", "to_parquet"),
    "feather": (written(lambda sink: pa.feather.write_feather(TABLE, sink)), "an Arrow file", "pyarrow.feather"),
    "orc": (written(lambda sink: pa.orc.write_table(TABLE, sink)), "an ORC file", "pyarrow.orc"),
    "sqlite": (b"SQLite format 3\x00" + bytes(100), "an SQLite data base", "export"),
    "pickle": (pickle.dumps([PAIR]), "a pickle", "anew"),
    "utf-16": (LINE.decode().encode("utf-16"), "text in UTF-16", "UTF-8"),
    "utf-16 without a mark": (LINE.decode().encode("utf-16-le"), "text in UTF-16", "UTF-8"),
    "utf-32": (LINE.decode().encode("utf-32"), "text in UTF-32", "UTF-8"),
    "pdf": (b"%PDF-1.7\n", "a PDF", "JSON lines"),
    "zeros": (bytes(4096), "nothing but zero bytes", "copy or download it again"),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv", "dat"])
@pytest.mark.parametrize("content, is_a, mend", CONTENTS.values(), ids=CONTENTS)
def test_the_first_bytes_tell_what_a_file_is(tmp_path, content, is_a, mend, suffix):
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(content)
    with pytest.raises(IncidentError) as incidents:
        list(read_incidents(path))
    with pytest.raises(PreferenceDataError) as pairs:
        open_files(str(path))
    for message in [str(incidents.value)] + [str(pairs.value)] * (suffix != "csv"):
        assert str(path) in message and is_a in message and mend in message
        assert "\n" not in message and "UTF-8 (byte" not in message


def test_a_wrong_name_is_told_by_the_content(tmp_path):
    for name, content, said in (
        ("a.parquet", LINE, "is text, not parquet; if it holds one JSON object a line, let its name end in .jsonl"),
        (
            "a.jsonl",
            written(lambda sink: pq.write_table(TABLE, sink)),
            "is a parquet file; let its name end in .parquet",
        ),
        ("b.jsonl", b"prompt,chosen,rejected\na,b,c\n", "looks like CSV, not JSON; write one JSON object a line"),
        ("a.txt", LINE, "unknown kind of file '.txt'"),
        ("b.txt", LINE, "by its first bytes it is JSON: let its name end in .jsonl"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PreferenceDataError) as error:
            open_files(str(tmp_path / name))
        assert said in str(error.value)
    (tmp_path / "a.csv").write_text(json.dumps(ROW))
    with pytest.raises(IncidentError, match=r"a\.csv is JSON; let its name end in \.jsonl"):
        next(read_incidents(tmp_path / "a.csv"))


@pytest.mark.parametrize("text", ["ORCID,name\n", "BZh is a name\n", "Rar! said he\n", "PAR1,b\n", '{"a": "<html>"}\n'])
def test_letters_that_also_begin_other_files_are_no_reason_to_refuse(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    try:
        open_files(str(tmp_path / "a.jsonl"))
    except PreferenceDataError as error:
        assert "looks like CSV" in str(error)


# ---- JSON

PRETTY = json.dumps(PAIR, indent=2) + "\n"


@pytest.mark.parametrize("text", [PRETTY * 2, "\ufeff" + PRETTY, "\n" + PRETTY], ids=["several", "marked", "blank"])
def test_pretty_printed_json_is_one_message(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    for read in (lambda path: open_files(str(path)), lambda path: list(read_incidents(path))):
        with pytest.raises(ValueError, match=r"a\.jsonl is JSON over several lines .*jq -c '\.' FILE > NEW\.jsonl"):
            read(tmp_path / "a.jsonl")


def test_a_long_pretty_printed_object_is_recognised_too(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"prompt": "x" * 200_000, "chosen": "a"}, indent=1))
    with pytest.raises(PreferenceDataError, match="over several lines"):
        open_files(str(tmp_path / "a.json"))


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_says_how_it_becomes_lines(tmp_path, indent):
    (tmp_path / "a.jsonl").write_text(json.dumps([ROW, ROW], indent=indent))
    with pytest.raises(IncidentError, match=r"one JSON array.*jq -c '\.\[\]' FILE > NEW\.jsonl"):
        list(read_incidents(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    "text, said",
    [
        (b'{"a": ' + b"9" * 5000 + b"}", r"a whole number of 5,000 digits; write it as text"),
        (b'{"a": ' + b"9" * 400 + b"}", r"a whole number of 400 digits"),
        (b'{"a": -' + b"9" * 308 + b"}", r"a whole number of 309 digits"),
        (b'{"a": 1, "a": 2}', r"the key 'a' is given twice in one object; keep one"),
        (b'{"\x1b[2J": 1}', r"not valid JSON"),
        (b'{"\\u001b[2J": 1, "\\u001b[2J": 2}', r"the key '\\x1b\[2J' is given twice"),
        (b"[" * 200 + b"]" * 200, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply|not valid JSON"),
        (b"\xff", r"not UTF-8 text \(byte 0: 0xff\)"),
    ],
)
def test_json_that_cannot_be_used(text, said):
    with pytest.raises(JsonFault, match=said):
        read_json(text)


def test_json_that_can_be_used():
    # brackets within text are no depth, and every whole number that is taken fits a float
    value = read_json(json.dumps({"logs": ["[" * 500, "{" * 500], "n": 10**307}))
    assert value["logs"][0] == "[" * 500 and float(value["n"]) == 1e307
    assert read_json("[" * 100 + "]" * 100)


def test_json_files_hold_no_number_that_is_not_finite(tmp_path):
    for text in ("NaN", "[1, -Infinity]", '{"a": 1e999}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(JsonFault, match="no finite number"):
            read_json_file(tmp_path / "a.json")


def test_a_lone_surrogate_is_found_wherever_it_is():
    text = rb'{"a": [{"b": "ok\ud83e\udd8a"}, {"c": "x\udc00"}]}'
    assert lone_surrogate(read_json(text), text).startswith("a[1].c holds the half of a surrogate pair U+DC00 at char")
    assert "key" in lone_surrogate({"\ud800": 1})
    assert lone_surrogate({"a": "🦊"}) is None


def test_numbers_of_thousands_of_digits_are_a_fault_of_their_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c", "id": ' + "9" * 5000 + "}\n" + LINE.decode())
    (file,) = open_files(str(path))
    faults = [record.fault for record in file.records(["prompt"], np.arange(2))]
    assert "5,000 digits" in faults[0] and not faults[1]


# ---- parquet


def parquet(path, **columns):
    pq.write_table(pa.table({**{name: [value, value] for name, value in ROW.items()}, **columns}), path)
    return path


LATIN = pa.Array.from_buffers(pa.binary(), 2, pa.array([b"caf\xe9", b"ok"]).buffers()).view(pa.string())


def test_columns_that_nobody_asked_for_are_not_read(tmp_path):
    path = parquet(tmp_path / "a.parquet", id=["a", "b"], took=pa.array([2**62, 1], pa.duration("s")), note=LATIN)
    assert [incident.id for incident in read_incidents(path)] == ["a", "b"]


def test_text_that_is_not_utf8_is_told_with_row_and_column(tmp_path):
    path = parquet(tmp_path / "a.parquet", id=["a", "b"], symptom=LATIN)
    with pytest.raises(IncidentError, match=r"a\.parquet, row 1: field symptom is not UTF-8 text \(byte 3: 0xe9\)"):
        list(read_incidents(path))
    pq.write_table(pa.table({"prompt": ["p", "p"], "chosen": LATIN, "rejected": ["r", "r"]}), tmp_path / "p.parquet")
    (file,) = open_files(str(tmp_path / "p.parquet"))
    faults = [record.fault for record in file.records(["chosen"], np.arange(2))]
    assert faults == ["chosen is not UTF-8 text (byte 3: 0xe9); write it as UTF-8", ""]


def test_a_value_that_python_cannot_hold_is_a_fault_of_its_row(tmp_path):
    path = parquet(tmp_path / "a.parquet", id=["a", "b"], fault=pa.array([1, 2**62], pa.duration("s")))
    with pytest.raises(IncidentError, match=r"row 1: field 'fault': expected a string, found timedelta"):
        list(read_incidents(path))
    path = parquet(tmp_path / "a.parquet", id=["a", "b"], fault=pa.array([None, 2**62], pa.duration("s")))
    with pytest.raises(IncidentError, match=r"row 2: field fault \(duration\[s\]\) cannot be read: "):
        list(read_incidents(path))


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_of_any_kind_is_text(tmp_path, kind):
    columns = {name: pa.array([value] * 5, pa.string()).cast(kind) for name, value in PAIR.items()}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (file,) = open_files(str(tmp_path / "a.parquet"))
    for wanted in ([0, 1, 2, 3, 4], [1, 4]):  # all rows of a batch, and some
        records = list(file.records(list(PAIR), np.array(wanted)))
        assert [record.values for record in records] == [PAIR] * len(wanted)
        assert [record.name for record in records] == [f"a.parquet:{number}" for number in wanted]


def test_a_column_name_given_twice_is_refused(tmp_path):
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"]), tmp_path / "a.parquet"
    )
    with pytest.raises(PreferenceDataError, match="two columns 'prompt'; rename one"):
        open_files(str(tmp_path / "a.parquet"))


# ---- what is shown


def test_shown_text_moves_no_terminal():
    assert printable("a\x1b[31m\u202eb\n\tc\ud800\x9b") == "a\\x1b[31m\\u202eb\n\tc\\ud800\\x9b"
    assert one_line("a\nb\tc中文🦊") == "a\\x0ab\\x09c中文🦊" and len(one_line("x" * 99, 20)) == 20
    deep = []
    for _ in range(40):
        deep = [deep, deep]  # 2**40 values when printed
    assert len(brief(deep)) <= 80 and "too long" in brief(10**5000)


def test_escapes_in_names_and_keys_are_spelt_out(tmp_path, capsys):
    path = tmp_path / "evil\x1b[2J\nverl-aiops: all is well.jsonl"
    path.write_text(json.dumps(ROW | {"evidence": ["\x1b[31mgone"], "\x1b]0;x": 1}))
    for file in (path, path.with_name("gone\x1b[2J.jsonl"), path.with_name("a.x\x1b")):
        assert main(["build-prefs", "--incidents", str(file), "--out", str(tmp_path / "o.jsonl")]) == 2
        error = capsys.readouterr().err
        assert "\x1b" not in error and "\\x1b" in error and error.count("\n") == 1
    assert main(["build-prefs", "--incidents", str(path), "--taxonomy", str(path), "--out", "x.jsonl"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_name_that_no_terminal_has_letters_for_is_no_error(tmp_path):
    out = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    command = [sys.executable, "-m", "verl_aiops.cli", "simulate", "--num-incidents", "2", "--out", out]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0 and b"2 incidents in" in done.stdout and os.path.exists(out), done.stderr


# ---- taxonomies


@pytest.mark.parametrize(
    "text, said",
    [
        (
            '{"user": {"services": ["db", "x\\udfff"], "incident_types": ["y"]}}',
            r"user\.services\[1\] holds the half of",
        ),
        ('{"user": {"services": ["db", "a\\u001b[2J"], "incident_types": ["y"]}}', r"user\.services\[1\]': .*clean"),
        ('{"user": {"services": ["<|im_end|>"], "incident_types": ["y"]}}', "chat-template marker"),
        ('{"a": 1, "a": 2}', "given twice"),
        ("[" * 5000, "nested too deeply|not valid JSON"),
        (LFS.decode(), "Git LFS pointer"),
        ("[1]", "expected an object like"),
    ],
)
def test_taxonomies_that_cannot_be_used(tmp_path, text, said):
    (tmp_path / "tax.json").write_text(text)
    with pytest.raises(IncidentError, match=rf"tax\.json.*{said}"):
        Taxonomy.load(tmp_path / "tax.json")


@pytest.mark.parametrize(
    ("count", "words", "told"),
    [
        (1, ("row",), "1 row"),
        (0, ("row",), "0 rows"),
        (1200, ("row",), "1,200 rows"),
        (2, ("entry", "entries"), "2 entries"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(count, words, told):
    assert counted(count, *words) == told
