"""The same answers as pairs, as ranked groups, as yes and no: from incidents, and from a model's own answers."""

import json

import pytest
from tiny import make_tokenizer
from written_rows import rows_in

from verl_aiops.cli.main import main
from verl_aiops.data import PreferenceDataset
from verl_aiops.incidents import IncidentError, PairOptions, Simulator, build_prefs, simulator_source


def build(tmp_path, form, suffix="parquet", pairs=3):
    out = tmp_path / f"{form}.{suffix}"
    summary = build_prefs(
        simulator_source(Simulator(seed=3), 40), out, pairs=PairOptions(pairs_per_incident=pairs), form=form
    )
    return out, summary


def read(path, **options):
    return PreferenceDataset(
        str(path), make_tokenizer(), max_prompt_length=None, max_response_length=None, progress=False, **options
    )


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_group_holds_the_right_answer_first_and_the_near_misses_of_the_pairs(tmp_path, suffix):
    pairs, groups = (rows_in(build(tmp_path, form, suffix)[0]) for form in ("pairs", "groups"))
    by_incident = {}
    for row in pairs:
        by_incident.setdefault(row["id"].partition("#")[0], []).append(row)
    assert [row["id"] for row in groups] == list(by_incident)
    for row in groups:
        its = by_incident[row["id"]]
        assert [one["messages"] for one in row["completions"]] == [
            its[0]["chosen"],
            *(pair["rejected"] for pair in its),
        ]
        assert row["kind"] == ",".join(pair["kind"] for pair in its)
        for key in ("prompt", "group", "weight", "lang", "source", "ground_truth", "incident_text"):
            assert row[key] == its[0][key]
        truth = json.loads(row["ground_truth"])
        for one in row["completions"]:
            answer = json.loads(one["messages"][0]["content"])
            right = sum(answer[name] == truth[name] for name in ("service", "incident_type"))
            assert one["score"] == right / 2
        assert row["completions"][0]["score"] == 1 > max(one["score"] for one in row["completions"][1:])


def test_best_against_the_rest_of_the_groups_are_the_pairs(tmp_path):
    (pairs, _), (groups, summary) = build(tmp_path, "pairs"), build(tmp_path, "groups")
    # in the order of their scores, not of the near misses
    of_groups, of_pairs = (
        sorted(map(bytes, data.row_digests())) for data in (read(groups, comparisons="best"), read(pairs))
    )
    assert of_groups == of_pairs
    assert str(summary).startswith("ranked groups from simulator")


def test_labels_are_a_yes_for_the_right_answer_and_a_no_for_each_near_miss(tmp_path):
    (pairs, _), (labels, summary) = build(tmp_path, "pairs"), build(tmp_path, "labels")
    rows = rows_in(labels)
    no = [row["completion"] for row in rows if not row["label"]]
    assert no == [row["rejected"] for row in rows_in(pairs)]
    yes = [row for row in rows if row["label"]]
    assert len(yes) == len({row["group"] for row in rows}) == len({row["id"].partition("#")[0] for row in rows})
    assert {row["kind"] for row in yes} == {"right"} and len({row["id"] for row in rows}) == len(rows)
    data = read(labels, kinds={"single"})
    assert data.report.examples == {"yes": len(yes), "no": len(no)} and not data.lacks_kl
    assert str(summary).startswith("yes/no feedback from simulator")


def test_the_command_writes_each_form(tmp_path, capsys):
    make = ["build-prefs", "--num-incidents", "20", "--val-share", "0", "--out"]
    assert main([*make, str(tmp_path / "g.jsonl"), "--groups", "--pairs-per-incident", "1"]) == 0
    assert {len(row["completions"]) for row in rows_in(tmp_path / "g.jsonl")} == {2}
    assert main([*make, str(tmp_path / "l.jsonl"), "--labels"]) == 0
    assert {row["label"] for row in rows_in(tmp_path / "l.jsonl")} == {True, False}
    assert "yes/no feedback from simulator" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*make, str(tmp_path / "x.jsonl"), "--labels", "--groups"])
    with pytest.raises(IncidentError, match="form 'lists': expected one of pairs, groups, labels"):
        build(tmp_path, "lists")
