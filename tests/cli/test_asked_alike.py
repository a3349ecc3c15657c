"""Own answer fields and own words from the command line: data files, `eval`, `compare`, `baseline`, the client."""

from __future__ import annotations

import json

import pytest
from eval_harness import completion, serving

from verl_aiops.cli.main import main
from verl_aiops.incidents import Simulator

FIELDS = "service,incident_type,severity,team"
PROMPTS = """
en:
  round1: |-
    Read this. Then answer in YAML, please.
    {incident}
  round2: |-
    Verdict, as Markdown:
    {form}
    {names}
zh:
  fields:
    severity: {asked: 有多严重, list: "等级："}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tickets with two columns more, prompts of one's own, and what `build-rl` makes of both."""
    folder = tmp_path_factory.mktemp("asked")
    with (folder / "i.jsonl").open("w", encoding="utf-8") as file:
        for number, incident in enumerate(Simulator(seed=2, lang="mix", topologies=("shop",)).stream(40)):
            said = {"prio": number % 3} if number % 4 else {}
            row = incident.to_dict() | said | {"team": ["web", "data"][number % 2], "source": "shop"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "prompts.yaml").write_text(PROMPTS, encoding="utf-8")
    assert main(["build-rl", *built(folder), "--out", str(folder / "rl.parquet"), *names(folder)]) == 0
    return folder


def built(folder):
    incidents = ["--incidents", folder / "i.jsonl", "--columns", "severity=prio", "--answer-fields", FIELDS]
    return [*map(str, [*incidents, "--prompts", folder / "prompts.yaml", "--val-share", "0.3"])]


def names(folder):
    return ["--taxonomy-out", str(folder / "names.json"), "--prompts-out", str(folder / "out.yaml"), "--overwrite"]


def ask(folder, url, *more, columns="severity=prio"):
    options = ["triage", folder / "i.jsonl", "--endpoint", url, "--model", "m", "--columns", columns]
    return main([*map(str, options), *more])


def test_the_client_asks_in_the_words_of_the_data_for_the_fields_of_the_data(folder, capsys):
    taxonomy = ["--taxonomy", str(folder / "names.json"), "--prompts", str(folder / "prompts.yaml"), "--schema"]
    fields = {"service": "db", "incident_type": "oom", "severity": "1", "team": "web"}

    def reply(body, number):
        last = len(body["messages"]) == 3
        # every other answer lacks a field
        answer = {key: value for key, value in fields.items() if number % 4 < 2 or key != "team"}
        return 200, completion(json.dumps(answer) if last else "Look.")

    with serving(reply) as server:
        assert ask(folder, server.url, *taxonomy, "--answer-fields", FIELDS) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 40 and all(list(line) == ["id", *fields, "analysis", "error"] for line in lines)
    told = [{name: line[name] for name in fields} for line in lines]
    assert fields in told and dict.fromkeys(fields) in told
    last = [body for body in server.requests if len(body["messages"]) == 3]
    english = [body for body in last if body["messages"][0]["content"].startswith("Read this. Then answer in YAML")]
    assert 10 < len(english) < 40
    form = '{"service": "...", "incident_type": "...", "severity": "...", "team": "..."}'
    for body in last:
        text = body["messages"][2]["content"]
        assert form in text and ("Verdict, as Markdown:" in text if body in english else "等级：" in text)
        schema = body["response_format"]["json_schema"]["schema"]
        assert list(schema["properties"]) == schema["required"] == list(fields)
        assert sorted(schema["properties"]["severity"]["enum"]) == ["0", "1", "2"]
        assert all(name in text for field in schema["properties"].values() for name in field["enum"])


def test_without_a_taxonomy_it_asks_for_the_fields_and_lists_nothing(folder, capsys):
    with serving(lambda body, number: (200, completion("no verdict"))) as server:
        assert ask(folder, server.url, "--answer-fields", FIELDS, "--schema") == 1
    schema = server.requests[-1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == dict.fromkeys(FIELDS.split(","), {"type": "string"})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], r"lists labels of severity, team, for which nothing asks; give --answer-fields service,incident_type,sev"),
        (
            ["--answer-fields", FIELDS],
            r"was written beside data in a --prompts file \(\w{12}\), and the built",
        ),
        (
            ["--answer-fields", FIELDS + ",owner", "--prompts", "prompts.yaml"],
            "field 'owner': the taxonomy has no labels of it for 'shop'; write them there, as .fields",
        ),
    ],
)
def test_what_would_be_asked_otherwise_than_in_training_is_refused(folder, more, message, capsys, monkeypatch):
    import re

    monkeypatch.chdir(folder)
    prompts = [] if "--prompts" in more or len(more) == 2 else ["--prompts", "prompts.yaml"]
    for command in (["triage", "i.jsonl"], ["eval", "--incidents", "i.jsonl", "--out", "refused"]):
        if command[0] == "eval" and "owner" in str(more):
            continue  # the file itself has no such field
        options = [*command, "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--taxonomy", "names.json"]
        assert main([*options, "--columns", "severity=prio", *prompts, *more]) == 2
        assert re.search(message, capsys.readouterr().err)


def test_fewer_fields_may_be_asked_for_where_one_says_so(folder):
    taxonomy = ["--taxonomy", str(folder / "names.json"), "--prompts", str(folder / "prompts.yaml")]
    with serving(lambda body, number: (200, completion("no verdict"))) as server:
        assert (
            ask(folder, server.url, *taxonomy, "--answer-fields", "service,incident_type", columns="trace=trace") == 1
        )
    assert '{"service": "...", "incident_type": "..."}' in server.requests[-1]["messages"][-1]["content"]


def test_eval_asks_incidents_as_the_file_of_build_rl_has_them(folder, tmp_path, capsys):
    def evaluate(out, *data):
        with serving(lambda body, number: (200, completion("no verdict"))) as server:
            options = ["--model", "m", "--endpoint", server.url, "--out", str(tmp_path / out)]
            assert main(["eval", *options, *map(str, data)]) == 0
        return {body["messages"][-1]["content"] for body in server.requests if len(body["messages"]) == 3}

    incidents = ["--incidents", folder / "i.jsonl", *built(folder)[2:-2], "--taxonomy", folder / "names.json"]
    assert evaluate("file", "--data", folder / "rl.val.parquet") <= evaluate("incidents", *incidents)
    settings = json.loads((tmp_path / "incidents" / "settings.json").read_text(encoding="utf-8"))
    assert settings["prompts"]["more_fields"] == ["severity", "team"] and len(settings["prompts"]["wording"]) == 12
    capsys.readouterr()
    asked = ["--answer-fields", FIELDS, "--prompts", str(folder / "prompts.yaml")]
    model = ["--model", "m", "--endpoint", "http://127.0.0.1:9/v1", "--out", "x"]
    assert main(["eval", *model, "--data", str(folder / "rl.val.parquet"), *asked]) == 2
    assert "--answer-fields, --prompts: goes with --incidents" in capsys.readouterr().err


def test_the_words_are_written_out_and_carried(folder):
    import pyarrow.parquet as pq

    from verl_aiops.incidents import read_wording

    assert read_wording(folder / "out.yaml") == read_wording(folder / "prompts.yaml")
    name = json.loads((folder / "names.json").read_text(encoding="utf-8"))["_asked"]["wording"]
    assert name == read_wording(folder / "prompts.yaml").name
    assert {row["extra_info"]["wording"] for row in pq.read_table(folder / "rl.parquet").to_pylist()} == {name}


def test_words_that_hint_at_another_form_are_answered_in_json(folder):
    import pyarrow.parquet as pq

    from verl_aiops.rewards.aiops_mturn import compute_score

    for row in pq.read_table(folder / "rl.parquet").to_pylist():
        info, truth = row["extra_info"], row["reward_model"]["ground_truth"]
        extra = {"turns": info["answers"], "incident_text": info["incident_text"]}
        assert compute_score("", "", truth, extra)["acc_all"] == 1


def test_baseline_and_compare_show_every_field(folder, tmp_path, capsys):
    data = ["--data", str(folder / "rl.parquet"), "--val", str(folder / "rl.val.parquet")]
    assert main(["baseline", *data, "--out", str(tmp_path / "base"), "--methods", "majority,rule"]) == 0
    assert "severity right" in (said := capsys.readouterr().out) and "team right" in said and "all fields right" in said
    table = (tmp_path / "base" / "majority" / "table.txt").read_text(encoding="utf-8")
    assert "severity right" in table and "team (class)" in table
    summary = json.loads((tmp_path / "base" / "majority" / "summary.json").read_text(encoding="utf-8"))
    overall = summary["overall"]["metrics"]
    assert 0 < overall["field/team"]["value"] < 1 and overall["json_ok"]["value"] == 1
    assert overall["acc_all"]["value"] <= overall["acc_main"]["value"]
    runs = [str(tmp_path / "base" / name) for name in ("majority", "rule")]
    assert main(["compare", *runs, "--out", str(tmp_path / "c")]) == 0
    result = json.loads((tmp_path / "c" / "comparison.json").read_text(encoding="utf-8"))
    assert result["metrics"]["field/severity"]["title"] == "severity right"
    assert {entry["label"] for entry in result["classes"]["team"]} == {"web", "data"}
    assert {entry["label"] for entry in result["classes"]["severity"]} == {"0", "1", "2"}
    assert "team right" in (tmp_path / "c" / "table.txt").read_text(encoding="utf-8")


def test_a_column_of_a_field_that_nobody_asks_for(folder, tmp_path, capsys):
    options = ["--incidents", str(folder / "i.jsonl"), "--columns", "severity=prio", "--out", str(tmp_path / "s.jsonl")]
    assert main(["build-sft", *options]) == 2
    assert "'severity' is no field" in (said := capsys.readouterr().err) and "one that --answer-fields names" in said


def test_simulated_incidents_have_no_further_field(tmp_path, capsys):
    assert main(["build-sft", "--out", str(tmp_path / "s.jsonl"), "--answer-fields", FIELDS]) == 2
    assert "goes with --incidents; simulated ones say service and incident_type alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("listed", "said"), [(["--max-candidates", "0"], None), (["--candidates-range", "2-60"], None), ([], 8)]
)
def test_the_client_says_where_its_lists_are_longer_than_those_of_the_data(folder, tmp_path, capsys, listed, said):
    taxonomy = tmp_path / "names.json"
    options = [
        "--incidents",
        str(folder / "i.jsonl"),
        "--out",
        str(tmp_path / "s.jsonl"),
        "--taxonomy-out",
        str(taxonomy),
    ]
    assert main(["build-sft", *options, *listed]) == 0
    capsys.readouterr()
    with serving(lambda body, number: (200, completion("no verdict"))) as server:
        assert ask(folder, server.url, "--taxonomy", str(taxonomy), columns="trace=trace") == 1
    err = capsys.readouterr().err
    if said is None:
        assert "all names" not in err
    else:
        assert f"the data of the taxonomy {taxonomy} at most 8; build them with --candidates-range 4-" in err


def test_renamed_incidents_offer_the_labels_of_further_fields_as_they_are(folder):
    from verl_aiops.evaluation.run.questions import offered_names, read_rl_questions
    from verl_aiops.evaluation.run.rename_check import rename_questions

    questions = {question.id: question for question in read_rl_questions(str(folder / "rl.parquet"))}
    renamed, _ = rename_questions(list(questions.values()), seed=1)
    assert len(renamed) > 5
    for question in renamed:
        before = questions[question.id]
        assert {name: offered_names(question).get(name) for name in ("severity", "team")} == {
            name: offered_names(before).get(name) for name in ("severity", "team")
        }
        assert question.ground_truth["team"] == before.ground_truth["team"]
        assert offered_names(question)["service"] != offered_names(before)["service"]
