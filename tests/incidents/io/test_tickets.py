"""Incidents as a ticket system exports them: other names of columns, two languages, labels in several spellings."""

from __future__ import annotations

import csv
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_rows import rows_in

from verl_aiops.cli.main import main
from verl_aiops.evaluation.run.asked import read_questions
from verl_aiops.incidents import IncidentError, PromptOptions, Taxonomy, file_source, read_incidents
from verl_aiops.incidents.io.bad_rows import BadRows
from verl_aiops.incidents.io.columns import FieldColumns
from verl_aiops.incidents.language import guess_language
from verl_aiops.inputs.columns import ColumnsError, read_columns

COLUMNS = "id=ticket_id,incident_type=category,symptom=summary,logs=log_excerpt,source=system"
SERVICES = {"Shop": ["cart", "pay-api"], "bank": ["ledger", "atm"], "media": ["encoder", "cdn"]}
TYPES = ["DB deadlock", "disk full", "cpu high", "bad config"]


def tickets(count: int = 60) -> list[dict]:
    rows = []
    for number in range(count):
        system = list(SERVICES)[number % 3]
        service, kind = SERVICES[system][number // 3 % 2], TYPES[number // 6 % 4]
        chinese = number % 2 == 1
        rows.append(
            {
                "ticket_id": 4700 + number * 17,
                "system": system.lower() if number % 12 == 0 else system,
                "service": f"{service} " if number == 7 else service,
                "category": kind.lower().replace(" ", "_") if number % 5 == 0 else kind,
                "summary": f"{service} 变慢，P99 超过 {number} 秒" if chinese else f"{service} is slow, {number} s",
                "log_excerpt": f"{service}: {kind} at node {number}\n[WARN] {service}: retry {number}",
                "resource": f"node-{number}",
                "symptom": "",
            }
        )
    return rows


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".xlsx":
        book = pytest.importorskip("openpyxl").Workbook()
        for row in [list(rows[0]), *(list(row.values()) for row in rows)]:
            book.active.append(row)
        book.save(path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_ticket_export_becomes_every_kind_of_data_file(tmp_path, capsys):
    file, names = write(tmp_path / "tickets.csv", tickets()), tmp_path / "names.json"
    ids = {}
    for command in ("build-prefs", "build-rl", "build-sft"):
        out = tmp_path / f"{command}.jsonl"
        options = ["--incidents", str(file), "--columns", COLUMNS, "--out", str(out), "--val-share", "0.2"]
        assert main([command, *options, "--taxonomy-out", str(names), "--overwrite"]) == 0
        said = capsys.readouterr().out
        assert "60 incidents, 60 faults" in said
        assert "fields that nothing reads: resource 60, column symptom 60" in said
        assert "languages guessed from the script, as no `lang` is given: en 30, zh 30" in said
        assert "spellings taken as one: incident_type 'DB deadlock' for 'db_deadlock' (" in said
        assert "source 'Shop' for 'shop' (5)" in said
        rows = rows_in(out) + rows_in(tmp_path / f"{command}.val.jsonl")
        infos = [row.get("extra_info", row) for row in rows]
        assert {info["lang"] for info in infos} == {"en", "zh"}
        assert {info["source"] for info in infos} == set(SERVICES)
        ids[command] = {info["id"].partition("#")[0] for info in infos}
    assert ids["build-prefs"] == ids["build-rl"] == ids["build-sft"] == {str(4700 + n * 17) for n in range(60)}
    taxonomy = Taxonomy.load(names).to_dict()
    assert {name: system["services"] for name, system in taxonomy.items()} == {k: sorted(SERVICES[k]) for k in SERVICES}
    assert all(system["incident_types"] == sorted(TYPES) for system in taxonomy.values())
    # one spelling is offered, and the other one is right as well
    truths = [json.loads(row["reward_model"]["ground_truth"]) for row in rows_in(tmp_path / "build-rl.jsonl")]
    assert all(truth["incident_type"] in TYPES for truth in truths)
    assert all(set(truth["candidates"]["incident_type"]) <= set(TYPES) for truth in truths)
    assert any("db_deadlock" in truth["aliases"]["incident_type"] for truth in truths)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".xlsx"])
def test_every_format_is_read_as_csv_is(tmp_path, suffix):
    columns = FieldColumns.parse(COLUMNS)
    expected = list(read_incidents(write(tmp_path / "a.csv", tickets()), columns=columns))
    assert expected[0].id == "4700" and expected[0].logs == ("cart: DB deadlock at node 0", "[WARN] cart: retry 0")
    assert expected[7].service == "pay-api" if expected[7].source == "Shop" else True
    assert list(read_incidents(write(tmp_path / f"a{suffix}", tickets()), columns=columns)) == expected


def test_a_workbook_needs_openpyxl_and_one_sheet(tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    path = write(tmp_path / "a.xlsx", tickets(3))
    book = openpyxl.load_workbook(path)
    book.create_sheet("Notes").append(["seen"])
    book.save(path)
    with pytest.raises(IncidentError, match=r"a\.xlsx, the workbook has 2 sheets \(Sheet, Notes\); keep the one"):
        list(read_incidents(path))


def test_without_openpyxl_a_workbook_says_how(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    path = tmp_path / "a.xlsx"
    path.write_bytes(b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml")
    with pytest.raises(IncidentError, match=r"a\.xlsx, workbooks .* pip install 'verl-aiops\[xlsx\]', or save"):
        list(read_incidents(path))
    path.write_text("id,service\n")
    with pytest.raises(IncidentError, match=r"is no Excel workbook; where it is CSV, let its name end in \.csv"):
        list(read_incidents(path))


def test_all_that_is_wrong_is_told_in_one_round(tmp_path):
    rows = tickets(12)
    rows[2]["service"] = ""
    rows[3]["service"] = rows[5]["service"] = "two\nlines"
    rows[4] |= {"summary": "", "log_excerpt": ""}
    rows[9]["ticket_id"] = rows[8]["ticket_id"]
    read = []
    with pytest.raises(IncidentError) as error:
        read.extend(read_incidents(write(tmp_path / "t.csv", rows), columns=FieldColumns.parse(COLUMNS)))
    said = str(error.value)
    # `extend` keeps what came before the error: nothing came after the first bad row
    assert [incident.id for incident in read] == ["4700", "4717"]
    assert "t.csv: 5 kinds of faults in 5 of 12 rows" in said
    for text in (
        "\n  line 6: field 'service': expected a string, found null; fill it in or leave the record out",
        "field 'service': expected one printable line without spaces around it, found 'two\\nlines'",
        "trim and clean the name (1 more like it: line ",
        "field 'symptom': expected a string, found null",
        "field 'logs': expected at least one line in logs or trace",
        f"field 'id': '{rows[8]['ticket_id']}' was used on line ",
    ):
        assert text in said, said


def test_all_missing_fields_and_broken_lines_are_told_at_once(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": 1, "servcie": "a", "lang": "fr"}\n[1]\n{oops\n{"id": "b", "logs": "x"}\n', encoding="utf-8")
    with pytest.raises(IncidentError) as error:
        list(read_incidents(path))
    said = str(error.value)
    for text in (
        "line 1: field 'servcie': not a known field; did you mean 'service'?",
        "line 1: field 'incident_type', field 'symptom', field 'logs': expected these fields, found none; the record "
        "has only: id, servcie, lang; where one of these is meant: --columns incident_type=NAME,symptom=NAME,logs=NAME",
        "line 1: field 'id': expected a string, found int '1'; put the text in quotes",
        "line 1: field 'lang': expected one of en, zh",
        "line 2: expected an object with the fields",
        "line 3: expected one JSON object on the line",
        "line 4: field 'logs': expected a list of strings, found str 'x'",
    ):
        assert text in said, said


def test_faults_alike_are_counted_and_kinds_are_bounded(tmp_path):
    rows = [{**row, "service": ""} for row in tickets(40)]
    said = r"t\.csv, line 2: field 'service': .* \(39 more like it: line \d+, .*, \.\.\.\)$"
    with pytest.raises(IncidentError, match=said):
        list(read_incidents(write(tmp_path / "t.csv", rows), columns=FieldColumns.parse(COLUMNS)))
    bad = BadRows()
    for number, name in enumerate("abcdefghijklmnopqrstuvwxyz"):
        bad.add(f"line {number}", f"field '{name}': wrong")
    said = str(bad.error("t.jsonl", 30))
    assert "t.jsonl: 26 kinds of faults in 26 of 30 rows" in said and said.endswith("\n  ... and 6 kinds more")
    assert said.count("\n") == 21


def test_a_named_column_that_is_not_there_is_told(tmp_path):
    path = write(tmp_path / "t.csv", tickets(3))
    with pytest.raises(IncidentError, match=r"--columns: trace=stack: the file has no such column, but ticket_id, "):
        list(read_incidents(path, columns=FieldColumns.parse(f"{COLUMNS},trace=stack")))
    with pytest.raises(IncidentError, match=r"field 'service' \(column 'svc' of --columns\): expected this field"):
        list(read_incidents(path, columns=FieldColumns.parse(f"{COLUMNS},service=svc")))


@pytest.mark.parametrize(
    "text, said",
    [
        ("servcie=a", "'servcie' is no field; did you mean 'service'"),
        ("ticket=id", r"'ticket' is no field.*\(the field stands first, the file's name second\)"),
        ("id=a,id=b", "'id' is given twice"),
        ("id", "'id' is not of the form name=theirs"),
        ("", "found nothing"),
        ("x=1,y,id=", "'x' is no field.*; 'y' is not of the form.*; 'id=' is not of the form"),
    ],
)
def test_columns_that_cannot_be_followed(text, said):
    with pytest.raises(ColumnsError, match=f"--columns: .*{said}"):
        FieldColumns.parse(text)


def test_names_of_columns_may_hold_what_people_write():
    fields = ["id", "logs", "source"]
    assert read_columns('id=key = no, logs="log, excerpt",source=id', fields) == {
        "id": "key = no",
        "logs": "log, excerpt",
        "source": "id",
    }


@pytest.mark.parametrize(
    "text, lang",
    [
        ("Checkout is slow", "en"),
        ("购物车很慢", "zh"),
        ("order-service 的 P99 延迟超过 2 秒", "zh"),
        ("The button 提交 does nothing since the release", "en"),
        ("サーバーが応答しない", "en"),
        ("", "en"),
        ("503", "en"),
    ],
)
def test_the_script_tells_the_language(text, lang):
    assert guess_language(text) == lang


def rows_with(*types, source="s"):
    base = {"service": "db", "logs": ["x"], "source": source}
    return [{**base, "id": f"i{n}x", "symptom": f"Slow {n}.", "incident_type": name} for n, name in enumerate(types)]


def test_the_most_frequent_spelling_stands(tmp_path):
    path = write(tmp_path / "a.jsonl", rows_with("DB deadlock", "db deadlock", "db-deadlock", "db deadlock", "full"))
    source = file_source(path)
    assert source.taxonomy.systems["s"].incident_types == ("db deadlock", "full")
    assert [incident.incident_type for incident in source.stream()] == ["db deadlock"] * 4 + ["full"]
    assert str(source.spellings) == (
        "spellings taken as one: incident_type 'db deadlock' for 'DB deadlock' (1), 'db-deadlock' (1)"
    )
    # systems are apart
    path = write(tmp_path / "b.jsonl", rows_with("oom")[:1] + [{**rows_with("OOM", source="t")[0], "id": "z"}])
    assert not file_source(path).spellings


def test_a_taxonomy_says_which_spelling_stands(tmp_path):
    path = write(tmp_path / "a.jsonl", rows_with("DB deadlock", "db deadlock", "oom", "Oom", "lost", "lost", "gone"))

    def taxonomy(*types):
        return Taxonomy.from_dict({"S": {"services": ["db"], "incident_types": list(types)}})

    source = file_source(path, taxonomy("db_deadlock", "oom", "Oom", "lost", "gone"))
    assert [incident.incident_type for incident in source.stream()] == [
        *["db_deadlock"] * 2,
        *["oom", "Oom", "lost", "lost", "gone"],
    ]
    assert {incident.source for incident in source.stream()} == {"S"}
    with pytest.raises(IncidentError) as error:
        file_source(path, taxonomy("db_deadlock", "oom", "Oom"))
    assert "a.jsonl: 2 kinds of faults in 3 of 7 rows" in str(error.value)
    assert "\n  incident 'i4x': 'lost' is not in the taxonomy's incident_types of 'S'; add it there (1 more" in str(
        error.value
    )
    assert "\n  incident 'i6x': 'gone' is not in" in str(error.value)


def test_candidates_of_many_lengths(tmp_path, capsys):
    rows = [{**row, "id": f"n{n}x"} for n, row in enumerate(rows_with(*[f"type {n % 12}" for n in range(60)]))]
    path, out = write(tmp_path / "a.jsonl", rows), tmp_path / "o.jsonl"
    build = ["build-rl", "--incidents", str(path), "--out", str(out), "--val-share", "0.3", "--overwrite"]
    assert main([*build, "--candidates-range", "3-20"]) == 0
    truths = {
        name: [json.loads(row["reward_model"]["ground_truth"]) for row in rows_in(tmp_path / name)]
        for name in ("o.jsonl", "o.val.jsonl")
    }
    numbers = {name: [len(truth["candidates"]["incident_type"]) for truth in of] for name, of in truths.items()}
    # as the client asks: all names that there are
    assert set(numbers["o.val.jsonl"]) == {12}
    assert min(numbers["o.jsonl"]) == 3 and max(numbers["o.jsonl"]) == 12 and len(set(numbers["o.jsonl"])) > 5
    again = rows_in(out)
    assert main([*build, "--candidates-range", "3-20"]) == 0 and rows_in(out) == again
    capsys.readouterr()
    for options, said in (
        (["1-5"], "candidates_range: expected two numbers, 2 or more"),
        (["9-5"], "the smaller one first, found 9-5"),
        (["5"], "--candidates-range 5: expected two numbers such as 4-20"),
        (["4-20", "--max-candidates", "5"], "stands instead of --max-candidates"),
        (["4-20", "--no-candidates"], "stands instead of --max-candidates"),
    ):
        assert main([*build, "--candidates-range", *options]) == 2
        assert said in capsys.readouterr().err


def test_what_goes_with_a_file_and_what_does_not(tmp_path, capsys):
    names = tmp_path / "names.json"
    names.write_text("mine")
    options = ["--out", str(tmp_path / "o.jsonl"), "--num-incidents", "20"]
    assert main(["build-sft", *options, "--columns", "id=x"]) == 2
    assert "--columns goes with --incidents" in capsys.readouterr().err
    assert main(["build-sft", *options, "--taxonomy-out", str(names)]) == 2
    assert "names.json: is already there; pass --overwrite" in capsys.readouterr().err
    assert names.read_text() == "mine" and not (tmp_path / "o.jsonl").exists()


def test_the_client_asks_about_tickets_that_nobody_has_answered(tmp_path):
    rows = [{name: value for name, value in row.items() if name not in ("service", "category")} for row in tickets(6)]
    names = tmp_path / "names.json"
    systems = {source: {"services": services, "incident_types": TYPES} for source, services in SERVICES.items()}
    names.write_text(json.dumps(systems), encoding="utf-8")
    asked = PromptOptions(budget=0, trim="blind", max_candidates=0)
    path, columns = write(tmp_path / "t.csv", rows), FieldColumns.parse(COLUMNS)
    questions = read_questions(str(path), str(names), asked, None, columns)
    assert [question.id for question in questions] == [str(4700 + n * 17) for n in range(6)]
    # the first ticket says `shop`
    assert all("cart" in questions[at].rounds[-1] and "atm" not in questions[at].rounds[-1] for at in (0, 3))
    assert [question.lang for question in questions] == ["en", "zh"] * 3
    (one,) = read_questions(str(path), str(names), asked, "4717", columns)
    assert one == questions[1]
    write(path, [{**rows[0], "system": "lost"}, {**rows[1], "summary": ""}, *rows[2:]])
    with pytest.raises(IncidentError) as error:
        read_questions(str(path), str(names), asked, None, columns)
    assert "t.csv: 2 kinds of faults in 2 of 6 rows" in str(error.value)
    assert "line 2: source 'lost' is not in the taxonomy, which has: Shop, bank, media" in str(error.value)
