"""Fields of the answer that a file has beside service and incident type: read, listed, asked for, made wrong."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest
from written_rows import rows_in

from verl_aiops.incidents import (
    IncidentError,
    PairOptions,
    PromptOptions,
    Taxonomy,
    build_case,
    build_prefs,
    build_rl,
    build_sft,
    file_source,
)
from verl_aiops.incidents.answer_fields import further_fields
from verl_aiops.incidents.io.columns import FieldColumns
from verl_aiops.rewards.aiops_mturn import compute_score

MORE = ("severity", "team")
SEVERITIES, TEAMS = ["P1", "P2", "P3"], ["web", "data"]


def rows(count=40):
    services, types = ["cart", "ledger", "cdn"], ["disk full", "cpu high", "bad config"]
    return [
        {
            "id": f"t{number:03d}x",
            "source": "shop" if number % 2 else "bank",
            "service": services[number % 3],
            "incident_type": types[number // 3 % 3],
            "symptom": f"变慢 {number}" if number % 4 == 0 else f"slow {number}",
            "logs": f"{services[number % 3]}: {types[number // 3 % 3]} at node {number}",
            "severity": "" if number % 8 == 7 else ("p1 " if number == 3 else SEVERITIES[number % 3]),
            "team": TEAMS[number // 2 % 2],
        }
        for number in range(count)
    ]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "i.csv"
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, rows()[0])
        writer.writeheader()
        writer.writerows(rows())
    return path


def source_of(file, taxonomy=None, **theirs):
    return file_source(file, taxonomy, FieldColumns(theirs, MORE))


PROMPTS = PromptOptions(more_fields=MORE)


def test_labels_are_those_of_the_file_whatever_the_system(file):
    source = source_of(file)
    for system in source.taxonomy.systems.values():
        assert dict(system.more) == {"severity": ("P1", "P2", "P3"), "team": ("data", "web")}
    assert source.notes.without == {"severity": 5} and not source.notes.unknown
    assert "severity 'P1' for 'p1' (1)" in str(source.spellings)
    assert next(i for i in source.stream() if i.id == "t003x").labels == (("severity", "P1"), ("team", "data"))


def test_spellings_of_a_label_are_one(tmp_path):
    own = [{**row, "severity": "very-high" if n % 2 else "very high"} for n, row in enumerate(rows())]
    own[0]["severity"] = "Very_High"
    (tmp_path / "i.jsonl").write_text("".join(json.dumps({**row, "logs": [row["logs"]]}) + "\n" for row in own))
    source = source_of(tmp_path / "i.jsonl")
    assert source.taxonomy.systems["shop"].labels_of("severity") == ("very-high",)
    first = next(source.stream())
    assert dict(first.labels)["severity"] == "very-high" and dict(first.label_aliases) == {"severity": ("Very_High",)}
    assert "severity 'very-high' for 'Very_High' (1), 'very high' (19)" in str(source.spellings)
    truth = build_case(first, source.taxonomy.system_of(first), PROMPTS).ground_truth
    assert truth["aliases"]["severity"] == ["Very_High"]


def test_numbers_are_labels(tmp_path):
    own = [{**row, "logs": [row["logs"]], "severity": number % 3} for number, row in enumerate(rows())]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    assert source_of(tmp_path / "i.jsonl").taxonomy.systems["shop"].labels_of("severity") == ("0", "1", "2")


def test_a_field_under_another_name(file):
    source = source_of(file, severity="team", team="severity")
    assert source.taxonomy.systems["bank"].labels_of("severity") == ("data", "web")


def test_a_field_that_no_incident_has(file):
    with pytest.raises(IncidentError, match="answer field 'owner': no incident has one; fields that nothing reads: "):
        file_source(file, columns=FieldColumns(more=("owner",)))


def test_a_taxonomy_lists_labels_by_system(file):
    names = {"services": ["cart", "ledger", "cdn"], "incident_types": ["disk full", "cpu high", "bad config"]}
    listed = {"shop": {**names, "fields": {"severity": ["P1", "P2", "P3", "P4"]}}, "bank": names}
    source = source_of(file, Taxonomy.from_dict(listed))
    of = {name: dict(system.more) for name, system in source.taxonomy.systems.items()}
    assert of["shop"]["severity"] == ("P1", "P2", "P3", "P4") and of["shop"]["team"] == ("data", "web")
    assert of["bank"]["severity"] == ("P1", "P2", "P3")
    assert Taxonomy.from_dict(source.taxonomy.to_dict()) == source.taxonomy
    # nobody asks for what stands in it alone
    plain = file_source(file, Taxonomy.from_dict(listed))
    assert plain.taxonomy.more_fields == () and not next(plain.stream()).labels
    listed["shop"]["fields"]["severity"] = ["P1", "P2"]
    with pytest.raises(IncidentError, match="'P3' is not in the taxonomy's severity of 'shop'; add it there, under f"):
        source_of(file, Taxonomy.from_dict(listed))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], r"expected fields as in {\"fields\""),
        ({"severity": []}, "fields.severity: expected a list of labels"),
        ({"severity": ["<|im_end|>"]}, r"field 'shop.fields.severity\[0\]': expected a plain name"),
        ({"logs": ["x"]}, "answer field 'logs': means something else in an incident"),
    ],
)
def test_a_taxonomy_that_cannot_be(fields, message):
    with pytest.raises(IncidentError, match=message):
        Taxonomy.from_dict({"shop": {"services": ["a"], "incident_types": ["b"], "fields": fields}})


def test_what_an_incident_does_not_say_it_is_not_asked_for(file):
    source = source_of(file)
    cases = {i.id: build_case(i, source.taxonomy.system_of(i), PROMPTS) for i in source.stream()}
    with_it, without = cases["t001x"], cases["t007x"]
    assert (
        '{"service": "...", "incident_type": "...", "severity": "...", "team": "..."}' in with_it.rounds[1]["content"]
    )
    assert (
        "Name the faulty service, the incident type, the severity and the team in charge."
        in (with_it.rounds[1]["content"])
    )
    assert without.rounds[1]["content"].count("severity") == 0 and "Teams: [" in without.rounds[1]["content"]
    assert without.ground_truth["fields"] == ["service", "incident_type", "team"]
    assert list(json.loads(with_it.answer)) == with_it.ground_truth["fields"]
    chinese = cases["t004x"].rounds[1]["content"]
    assert "给出故障服务、故障类型、严重程度和负责团队" in chinese and "严重程度：[" in chinese
    # of what the file says, that alone which the prompts ask for
    plain = build_case(next(source.stream()), source.taxonomy.systems["bank"], PromptOptions())
    assert "fields" not in plain.ground_truth and set(plain.ground_truth["candidates"]) == {"service", "incident_type"}


def test_candidates_of_a_field_are_as_few_as_asked_for_and_hide_the_right_one(file):
    source = source_of(file)
    places = Counter()
    for incident in source.stream():
        case = build_case(
            incident, source.taxonomy.system_of(incident), PromptOptions(more_fields=MORE, max_candidates=2)
        )
        for name, labels in case.candidates.more:
            assert len(labels) == 2 and any(incident.is_label(name, label) for label in labels)
            places[name, [incident.is_label(name, label) for label in labels].index(True)] += 1
    assert min(places.values()) > 8 and len(places) == 4
    # other draws than those of services and types: these stay as they are without further fields
    first = next(source.stream())
    system = source.taxonomy.system_of(first)
    more, plain = (build_case(first, system, PromptOptions(more_fields=more)).candidates for more in (MORE, ()))
    assert (more.services, more.incident_types) == (plain.services, plain.incident_types)


def test_every_kind_of_file_asks_and_answers_alike(file, tmp_path):
    for build, options in ((build_rl, {}), (build_sft, {}), (build_prefs, {"pairs": PairOptions(2)})):
        summary = build(
            source_of(file), tmp_path / f"{build.__name__}.jsonl", val_share=0.2, prompts=PROMPTS, **options
        )
        assert "answer field severity: 3 labels; 5 without, which are not asked for it" in str(summary)
        assert "answer field team: 2 labels" in str(summary)
    rl, sft, prefs = (rows_in(tmp_path / f"build_{name}.jsonl") for name in ("rl", "sft", "prefs"))
    for row in rl:
        info = row["extra_info"]
        result = compute_score(
            "",
            "",
            row["reward_model"]["ground_truth"],
            {"turns": info["answers"], "incident_text": info["incident_text"]},
        )
        assert result["acc_all"] == 1 and result["fields_known"] == len(json.loads(info["answers"][-1]))
    answers = {row["extra_info"]["id"]: row["extra_info"]["answers"][-1] for row in rl}
    assert {row["id"]: row["messages"][-1]["content"] for row in sft} == answers
    for row in prefs:
        chosen, rejected = (json.loads(row[side][0]["content"]) for side in ("chosen", "rejected"))
        assert answers[row["id"].partition("#")[0]] == row["chosen"][0]["content"]
        wrong = [name for name in chosen if chosen[name] != rejected[name]]
        assert chosen.keys() == rejected.keys()
        assert wrong == [row["kind"].removeprefix("wrong_")] if row["kind"][6:] in MORE else not set(wrong) & set(MORE)
    kinds = Counter(row["kind"] for row in prefs)
    assert kinds["wrong_team"] == len(rl) and kinds["wrong_severity"] == sum(
        '"severity"' in a for a in answers.values()
    )


def test_no_label_is_right_or_wrong_too_often(file, tmp_path):
    build_prefs(source_of(file), tmp_path / "p.jsonl", val_share=0, prompts=PROMPTS)
    sides = {"chosen": Counter(), "rejected": Counter()}
    for row in rows_in(tmp_path / "p.jsonl"):
        if row["kind"] in ("wrong_severity", "wrong_team"):
            for side, counts in sides.items():
                counts[json.loads(row[side][0]["content"])[row["kind"][6:]].upper()] += 1
    assert set(sides["chosen"]) == {"P1", "P2", "P3", "WEB", "DATA"}
    assert all(abs(sides["chosen"][label] - sides["rejected"][label]) <= 2 for label in sides["chosen"])


def test_a_label_that_is_mostly_right_is_the_wrong_one_wherever_it_can_be(tmp_path):
    own = [{**row, "logs": [row["logs"]], "severity": "P1"} for row in rows()]
    for number in range(0, 40, 3):
        own[number]["severity"] = ["P2", "P3"][number % 2]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    build_prefs(source_of(tmp_path / "i.jsonl"), tmp_path / "p.jsonl", val_share=0, prompts=PROMPTS)
    wrong = Counter(
        json.loads(row["rejected"][0]["content"])["severity"]
        for row in rows_in(tmp_path / "p.jsonl")
        if row["kind"] == "wrong_severity"
    )
    assert wrong["P1"] == 14 and abs(wrong["P2"] - wrong["P3"]) <= 1


def test_groups_score_the_share_of_all_fields(file, tmp_path):
    build_prefs(source_of(file), tmp_path / "g.jsonl", val_share=0, prompts=PROMPTS, form="groups")
    row = next(
        row for row in rows_in(tmp_path / "g.jsonl") if '"severity"' in row["completions"][0]["messages"][0]["content"]
    )
    assert row["completions"][0]["score"] == 1 and row["completions"][-1]["score"] == 0.75


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("severity", "--answer-fields severity: service and incident_type must be among them"),
        ("service,incident_type,severity,severity", "answer field 'severity': is named twice"),
        ("service,incident_type,service", "answer field 'service': is named twice"),
        ("service,incident_type,Severity", "expected a name of small letters, digits and underscores"),
        ("service,incident_type,", "answer field '': expected a name"),
        ("service,incident_type,evidence", "answer field 'evidence': means something else"),
        ("service,incident_type," + ",".join(f"f{n}" for n in range(13)), "expected 12 at most"),
    ],
)
def test_fields_that_cannot_be_asked_for(text, message):
    with pytest.raises(IncidentError, match=message):
        further_fields(text)


def test_the_two_stand_first_whatever_the_order():
    assert further_fields("team, service,severity,incident_type") == ("team", "severity")
    assert further_fields("service,incident_type") == ()
