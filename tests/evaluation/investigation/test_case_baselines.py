"""Baselines on investigations: what the regression learns, what it may not see, and the folders that they write."""

import json
from dataclasses import replace

import pytest
from investigation_parts import PROMPT

from verl_aiops.cli.main import main
from verl_aiops.evaluation.investigation.compare import of_investigations
from verl_aiops.evaluation.investigation.evaluate import read_investigations
from verl_aiops.evaluation.investigation.linear import LinearInvestigator, asked_of_case
from verl_aiops.evaluation.investigation.questions import CaseQuestion, read_case_questions

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sides")
    for name, seed, count in (("train", 1, 60), ("val", 2, 24)):
        made = ["build-rl", "--task", "investigation", "--out", str(folder / f"{name}.parquet"), "--val-share", "0"]
        made += ["--num-incidents", str(count), "--seed", str(seed), "--difficulty", "easy", "--topologies", "shop"]
        assert main([*made, "--several", "0.1", "--before", "10", "--after", "5", "--no-fault", "0.1"]) == 0
    return folder


def right(folder):
    lines = read_investigations(folder / "generations.jsonl")
    return sum(line["score"]["acc_main"] for line in lines) / len(lines)


def test_the_regression_learns_what_the_rule_does_not_know_and_both_are_folders_to_compare(sides, tmp_path, capsys):
    command = ["baseline", "--data", str(sides / "train.parquet"), "--val", str(sides / "val.parquet")]
    assert main([*command, "--out", str(tmp_path / "base")]) == 0
    shown = capsys.readouterr().out
    assert "60 cases to learn from, 24 asked" in shown and shown.count("\nrule") == shown.count("\nlinear") == 1
    assert right(tmp_path / "base" / "linear") > right(tmp_path / "base" / "rule") + 0.15
    # beyond one cause nothing is named: what a case of several is worth is the reward's to say
    lines = read_investigations(tmp_path / "base" / "linear" / "generations.jsonl")
    assert {len(line["predicted"]["causes"]) for line in lines} == {0, 1}
    assert all(line["tool_calls"] == [] and line["score"]["unsupported"] == 0 for line in lines)
    runs = [str(tmp_path / "base" / name) for name in ("rule", "linear")]
    assert of_investigations(runs)
    assert main(["compare", *runs, "--out", str(tmp_path / "compared"), "--no-plots"]) == 0
    assert main([*command, "--out", str(tmp_path / "base"), "--methods", "majority"]) == 2
    assert "expected some of rule, linear" in capsys.readouterr().err
    assert main([*command[:3], "--val", str(sides / "train.parquet"), "--out", str(tmp_path / "same")]) == 2
    assert "faults are in both" in capsys.readouterr().err


def test_an_answer_does_not_depend_on_the_truth_of_the_case_that_is_asked(sides):
    train, val = (read_case_questions(str(sides / f"{name}.parquet")) for name in ("train", "val"))
    model = LinearInvestigator()
    model.fit(train)
    blind = [
        replace(
            question, ground_truth={"root_causes": [], "no_fault": True, "reasons": question.ground_truth["reasons"]}
        )
        for question in val
    ]
    assert model.verdicts(val) == model.verdicts(blind)


def recorded(number, ill):
    answers = [
        {"name": "GetPods", "arguments": {"namespace": "shop"}, "text": "cart Running\nweb Running\ndb Running"},
        {"name": "GetPods", "arguments": {"namespace": "shop", "output_wide": True}, "text": "wide"},
        *(
            {
                "name": "GetErrorLogs",
                "arguments": {"service_name": name},
                "text": "disk is full" if name == ill else "calls time out",
            }
            for name in ("cart", "web", "db")
        ),
    ]
    case = {"id": f"r{number}", "source": "rec", "symptom": "Slow.", "recorded": {"answers": answers}}
    truth = {"root_causes": [{"component": ill, "reason": "disk_full"}], "reasons": ["disk_full", "oom"]}
    info = {"id": f"r{number}", "case": json.dumps(case), "tools": "prompt"}
    return CaseQuestion(f"r{number}", f"r{number}", "rec", "en", "real", tuple(PROMPT), info, truth)


def test_recorded_answers_say_what_there_is_to_name_and_what_was_said_of_each():
    asked = asked_of_case(recorded(0, "web"))
    assert asked.services == ("cart", "web", "db", "no_fault", "not_enough_evidence") and "wide" not in asked.lines
    assert "web disk is full" in asked.lines and asked.types == ("disk_full", "oom")
    model = LinearInvestigator()
    model.fit([recorded(n, ("cart", "web")[n % 2]) for n in range(20)])
    # a service that was never the cause, by what is said of it
    assert model.verdicts([recorded(30, "db")])[0]["root_causes"] == [{"component": "db", "reason": "disk_full"}]
