"""Runs of several seeds as one: `verl-aiops compare LABEL=RUN,RUN`."""

import json
import shutil

import numpy as np
import pytest
from compare_harness import Guessing, evaluated, in_faults, questions_of

from verl_aiops.cli.main import main
from verl_aiops.evaluation.compare.read_runs import read_run, read_runs
from verl_aiops.evaluation.errors import EvaluationError


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    base, questions = tmp_path_factory.mktemp("seeds"), in_faults(questions_of(12))
    for label, share in (("sft", 0.3), ("dpo", 0.7)):
        for seed in range(3):
            evaluated(base / f"{label}{seed}", questions, Guessing(share, seed=10 * seed + (label == "dpo")))
    evaluated(base / "other", in_faults(questions_of(6)), Guessing(0.5, seed=0))
    return base


def right(folder):
    rows = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    return {row["id"]: row["score"]["acc_main"] for row in rows}


def test_an_incident_counts_with_the_mean_of_the_runs(seeds, tmp_path, capsys):
    pooled = [f"{label}=" + ",".join(str(seeds / f"{label}{seed}") for seed in range(3)) for label in ("sft", "dpo")]
    assert main(["compare", *pooled, "--out", str(tmp_path / "out"), "--no-plots"]) == 0
    table = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    means = {}
    for label in ("sft", "dpo"):
        shares = [right(seeds / f"{label}{seed}") for seed in range(3)]
        means[label] = np.mean([np.mean([share[name] for share in shares]) for name in shares[0]])
        each = ", ".join(f"{np.mean(list(share.values())):.1%}" for share in shares)
        assert f"3 runs pooled; both fields right in each: {each}" in table
    metric = result["metrics"]["acc_main"]
    assert metric["values"]["sft"]["value"] == pytest.approx(means["sft"], abs=1e-12)
    difference = metric["comparisons"]["dpo"]["difference"]
    assert difference["value"] == pytest.approx(means["dpo"] - means["sft"], abs=1e-12)
    assert difference["n"] == 12
    # three greedy models are not three samples of one
    assert result["over_k"] is None and result["mcnemar"] is None


def test_pooled_answers_stand_apart(seeds):
    one = read_run("sft", str(seeds / "sft0"))
    spec = f"sft={seeds / 'sft0'},{seeds / 'sft1'},{seeds / 'sft2'}"
    pooled, _ = read_runs([spec, f"dpo={seeds / 'dpo0'}"])
    assert pooled.pooled == 3 and one.pooled == 1
    for name, lines in pooled.incidents.items():
        assert [line["sample"] for line in lines] == [0, 1, 2]
        assert lines[0] == one.incidents[name][0]


def test_runs_on_other_data_are_not_pooled(seeds):
    with pytest.raises(EvaluationError, match="hold different incidents .*evaluated on the same file"):
        read_runs([f"a={seeds / 'sft0'},{seeds / 'other'}", f"b={seeds / 'dpo0'}"])
    with pytest.raises(EvaluationError, match="names a run twice"):
        read_runs([f"a={seeds / 'sft0'},{seeds / 'sft0'}", f"b={seeds / 'dpo0'}"])


def test_another_truth_is_named(seeds, tmp_path):
    shutil.copytree(seeds / "sft1", tmp_path / "changed")
    file = tmp_path / "changed" / "generations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["ground_truth"]["service"] = "another"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(EvaluationError, match=f"{rows[0]['id']}.*another truth"):
        read_runs([f"a={seeds / 'sft0'},{tmp_path / 'changed'}", f"b={seeds / 'dpo0'}"])


def test_a_folder_whose_name_has_a_comma_is_one_run(seeds, tmp_path):
    shutil.copytree(seeds / "sft1", tmp_path / "a,b")
    first, _ = read_runs([f"x={tmp_path / 'a,b'}", f"y={seeds / 'dpo0'}"])
    assert first.pooled == 1
