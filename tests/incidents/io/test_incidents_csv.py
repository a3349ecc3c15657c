"""CSV of incidents as spreadsheets and programs of many countries write it."""

import csv
import io

import pytest

from verl_aiops.incidents import IncidentError, read_incidents

HEADER = ["id", "service", "incident_type", "symptom", "logs", "evidence", "trace"]
FIRST = ["a", "db", "disk full", "Slow; very, very|slow", "db: no space\nweb: retry", "no space", ""]
SECOND = ["b", "web", "cpu high", "Late", "cpu=99% on web", "", ""]


def table(rows, separator=",", header=HEADER):
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([header, *rows])
    return text.getvalue()


@pytest.fixture
def read(tmp_path):
    def read(text, name="a.csv"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return list(read_incidents(tmp_path / name))

    return read


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_header_tells_the_separator(read, separator):
    expected = read(table([FIRST, SECOND]))
    assert [incident.id for incident in expected] == ["a", "b"]
    assert expected[0].logs == ("db: no space", "web: retry") and expected[0].symptom == FIRST[3]
    for text in (table([FIRST, SECOND], separator), "\ufeff" + table([FIRST, SECOND], separator)):
        assert read(text) == expected
    assert read(table([FIRST, SECOND], separator), "a.tsv") == expected


@pytest.mark.parametrize("line", ["sep=^\r\n", "SEP=^\n", '"sep=^"\r\n', "\ufeffsep=^\r\n"])
def test_a_first_line_that_names_the_separator_is_followed(read, line):
    assert read(line + table([FIRST, SECOND], "^")) == read(table([FIRST, SECOND]))
    with pytest.raises(IncidentError, match=r"a\.csv, line 3: expected 7 cells as in the header, found 1; .* '\^'"):
        read(line + table([["x"]], "^"))


def test_a_separator_that_nobody_named_is_asked_for(read):
    with pytest.raises(IncidentError, match=r"line 1: the header is one cell, 'id\^service.*sep=;"):
        read(table([FIRST], "^"))


@pytest.mark.parametrize("blank", [[""] * 7, [" ", "\t", "", "", "", "", " "], [], [""] * 3, [""] * 9])
def test_rows_of_empty_cells_are_passed_over(read, blank):
    expected = read(table([FIRST, SECOND]))
    assert read(table([FIRST, blank, SECOND])) == read(table([FIRST, SECOND, blank, blank])) == expected


def test_columns_that_a_spreadsheet_once_held(read):
    rows = [[*row, "", ""] for row in (FIRST, SECOND)]
    assert read(table(rows, header=[*HEADER, "", ""])) == read(table([FIRST, SECOND]))
    assert read(table([FIRST, SECOND], header=[f" {name} " for name in HEADER])) == read(table([FIRST, SECOND]))
    with pytest.raises(IncidentError, match="line 2: expected 7 cells as in the header, found 9"):
        read(table([[*FIRST, "", "more"]], header=[*HEADER, "", ""]))


@pytest.mark.parametrize(
    "cell, entries",
    [
        ("[2024-05-01 10:00:00] [ERROR] db: no space\n[WARN] web", ["[2024-05-01 10:00:00] [ERROR] db: no space", "[WARN] web"]),  # noqa: E501
        ("[ERROR]", ["[ERROR]"]),
        ("[1]", ["[1]"]),
        ("[1, 2] of 3", ["[1, 2] of 3"]),
        ('["a, b", "c"]', ["a, b", "c"]),
        (' ["a"]\n', ["a"]),
        ("['a] b", ["['a] b"]),
        ("[" * 2000, ["[" * 2000]),
        ('["a", 1]', ['["a", 1]']),
    ],
)  # fmt: skip
def test_a_cell_is_json_only_where_it_is_a_list_of_texts(read, cell, entries):
    (incident,) = read(table([["a", "db", "x", "s", cell, "", ""]]))
    assert list(incident.logs) == entries


@pytest.mark.parametrize("cell", ["['a', 'b']", "['a' 'b']", "[ 'a' ]", "[\"it's\", 'b']", "['a',\n 'b']"])
def test_lists_as_python_prints_them_are_named(read, cell):
    with pytest.raises(
        IncidentError, match=r"line 2: field 'logs': the cell is a list as Python prints it.*json\.dumps"
    ):
        read(table([["a", "db", "x", "s", cell, "", ""]]))


@pytest.mark.parametrize(
    "text, said",
    [
        (table([FIRST]) + '"b,web,x,y,z,,\n' * 3, r"line 4: not valid CSV"),
        (
            table([FIRST]) + "b,web\n",
            r"line 4: expected 7 cells as in the header, found 2; quote cells that hold commas",
        ),
        (table([FIRST], ";") + "b;web\n", r"quote cells that hold ';'"),
        (table([FIRST]).encode() + b"b,caf\xe9,x,y,z,,\n", r"not UTF-8 \(.*\); save the file as UTF-8"),
        (table([[*FIRST, "[1"]], header=[*HEADER, "decoys"]), r"field 'decoys': expected JSON like \[\["),
        (table([[*FIRST, "{}"]], header=[*HEADER, "decoys"]), r"field 'decoys': expected JSON like \[\[.*found '\{\}'"),
        (table([[*FIRST, "[]"]], header=[*HEADER, "aliases"]), r"field 'aliases': expected JSON like"),
        ("", "expected at least one incident, found none"),
        ("\n\n\n", "expected at least one incident, found none"),
    ],
)
def test_what_is_no_table_of_incidents_is_refused_with_its_line(read, text, said):
    with pytest.raises(IncidentError, match=said):
        read(text)
