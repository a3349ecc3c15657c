"""`verl-aiops before-after`: two evaluations of preference prompts beside what the run logged of its pairs."""

import json
import subprocess
import sys

import pytest
from tiny import make_tiny_model

from verl_aiops.cli.main import main
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.questions import read_pair_questions
from verl_aiops.evaluation.run.table import share_text
from verl_aiops.incidents import Simulator, build_prefs, simulator_source


def log(folder, steps):
    file = folder / "metrics.jsonl"
    rows = [
        {
            "step": step,
            "data": {
                "val/loss": 0.7 - step / 10,
                "val/pairs": 20,
                "val/logps/accuracies": 0.5 + step / 8,
                "val/logps/chosen": -10.0 + step,
                "val/logps/rejected": -11.0,
                "val/rewards/margins": step / 4,
                "actor/loss": 0.7,
                "rewards/margins": step / 4,
                "logps/chosen": -10.0,
            },
        }
        for step in steps
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model_dir):
    """The command's output folder after one run, what it printed, and the pairs."""
    base = tmp_path_factory.mktemp("before_after")
    source = simulator_source(Simulator(seed=3), 6)
    build_prefs(source, base / "pairs.jsonl", val_share=0)
    make_tiny_model(base / "after", seed=1)
    arguments = ["--pairs", base / "pairs.jsonl", "--metrics", log(base, (0, 2)), "--out", base / "out"]
    models = ["--before", tiny_model_dir, "--after", base / "after"]
    program = [sys.executable, "-m", "verl_aiops.evaluation.before_after"]  # the name of 0.1
    done = subprocess.run(
        [*program, *map(str, [*models, *arguments]), "--questions", "5", "--max-new-tokens", "6"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return base, done.stdout


def summary_of(base, name):
    return json.loads((base / "out" / name / "summary.json").read_text())


def test_the_shares_of_answers_are_those_of_the_one_evaluator(made):
    base, said = made
    table = (base / "out" / "table.txt").read_text()
    assert table in said
    rows = {line.partition("  ")[0]: line for line in table.splitlines()}
    assert rows["pairs ranked right (20 held out)"].split("  ")[-1] == "75.0 % [51, 91]"
    assert rows["log-prob gap chosen - rejected (nats)"].split()[-2:] == ["+1.00", "+3.00"]
    for name, title in (("acc_main", "both fields right"), ("json_ok", "valid JSON")):
        shares = [share_text(summary_of(base, which)["overall"]["metrics"][name]) for which in ("before", "after")]
        assert " ".join(rows[f"{title} (5 greedy answers)"].split()).endswith(" ".join(shares))
    # none of five faults right: the bound over faults, not over answers as they were counted before
    assert "0.0 % [0, 52]" in rows["both fields right (5 greedy answers)"]


def test_both_are_evaluations_of_the_prompts_that_the_pairs_have(made):
    base, _ = made
    prompts = {question.id: question for question in read_pair_questions(str(base / "pairs.jsonl"))}
    rows = [json.loads(line) for line in (base / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    for name in ("before", "after"):
        file = base / "out" / name / "generations.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["rounds"][-1] for line in lines] == [row[name] for row in rows]
        for line in lines:
            assert line["ground_truth"] == prompts[line["id"]].ground_truth and line["tokens"][0] <= 6
    assert [row["before"] for row in rows] != [row["after"] for row in rows]
    assert summary_of(base, "before")["settings"]["temperature"] == 0.0


def test_compare_reads_them_like_any_others(made, tmp_path):
    base, _ = made
    runs = [str(base / "out" / name) for name in ("before", "after")]
    assert main(["compare", *runs, "--out", str(tmp_path / "out"), "--no-plots"]) == 0


def test_the_curves_are_drawn(made):
    pytest.importorskip("matplotlib")
    base, said = made
    assert (base / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert said.splitlines()[-1] == f"{base / 'out'}: table.txt, answers.jsonl, before, after, curves.png"


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"--metrics": "one"}, "the metrics hold 1 validation(s), two are needed"),
        ({"--metrics": "broken"}, "line 1: expected a line of verl's file logger"),
        ({"--after": "nowhere"}, "--after nowhere: no such folder"),
        ({"--pairs": "plain"}, "ground_truth: found none"),
        ({"--questions": "0"}, "--questions 0: expected 1 or more"),
    ],
)
def test_what_cannot_be_used_is_told_before_any_answer(made, tmp_path, capsys, tiny_model_dir, changed, message):
    base, _ = made
    (tmp_path / "broken").write_text("step 1\n")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    (tmp_path / "one").mkdir()
    given = {"one": log(tmp_path / "one", (0,)), "broken": tmp_path / "broken", "plain": tmp_path / "plain.jsonl"}
    options = {
        "--before": tiny_model_dir,
        "--after": base / "after",
        "--pairs": base / "pairs.jsonl",
        "--metrics": base / "metrics.jsonl",
        "--out": tmp_path / "out",
    }
    options |= {key: given.get(value, value) for key, value in changed.items()}
    assert main(["before-after", *(str(word) for pair in options.items() for word in pair)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_prompts_are_asked_once_and_have_an_id_each(write_rows):
    truth = {"service": "a", "incident_type": "b"}
    row = {"chosen": "x", "rejected": "y", "id": "same", "ground_truth": truth}
    rows = [{**row, "prompt": [{"role": "user", "content": text}]} for text in ("one", "two", "one")]
    first, second = read_pair_questions(write_rows(rows))
    assert (first.id, second.id) == ("same", "same#row-1") and first.group == second.group == "same"
    rows[1]["ground_truth"] = {"service": "a"}
    with pytest.raises(EvaluationError, match="line 2: ground_truth: incident_type"):
        read_pair_questions(write_rows(rows))
