"""Runs of several seeds as one: `verl-aiops compare LABEL=RUN,RUN`."""

import json
import shutil

import numpy as np
import pytest
from compare_harness import Guessing, evaluated, in_faults, questions_of
from scipy import stats

from verl_aiops.cli.main import main
from verl_aiops.evaluation.compare.read_runs import read_run, read_runs
from verl_aiops.evaluation.compare.seeds import margin
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.stats.shares import Of, share_intervals, widened


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


def test_an_interval_for_new_seeds_stands_beside_that_of_these_runs(seeds, tmp_path, capsys):
    """Wider by t over the means of the runs, and no other run's interval changes with it."""
    pooled = [f"{label}=" + ",".join(str(seeds / f"{label}{seed}") for seed in range(3)) for label in ("sft", "dpo")]
    assert main(["compare", *pooled, "--out", str(tmp_path / "out"), "--no-plots"]) == 0
    table = capsys.readouterr().out
    metric = json.loads((tmp_path / "out" / "comparison.json").read_text())["metrics"]["acc_main"]
    means = {x: [np.mean(list(right(seeds / f"{x}{seed}").values())) for seed in range(3)] for x in ("sft", "dpo")}
    variances = {x: np.var(means[x], ddof=1) / 3 for x in means}
    for label, found in metric["values"].items():
        wide = 4.30265273 * np.sqrt(variances[label])  # t of two degrees of freedom
        for end, sign in (("low", -1), ("high", 1)):
            expected = found["value"] + sign * np.hypot(found[end] - found["value"], wide)
            assert found["new_seeds"][end] == pytest.approx(np.clip(expected, 0, 1))
    entry = metric["comparisons"]["dpo"]["difference"]
    freedom = sum(variances.values()) ** 2 / sum(v**2 / 2 for v in variances.values())
    assert 2 <= freedom <= 4
    wide = stats.t.ppf(0.975, freedom) * np.sqrt(sum(variances.values()))
    assert wide > 0
    assert entry["new_seeds"]["high"] == pytest.approx(entry["value"] + np.hypot(entry["high"] - entry["value"], wide))
    shown = f"[{100 * entry['new_seeds']['low']:+.1f}, {100 * entry['new_seeds']['high']:+.1f}]".replace("-", "−")
    head = next(line for line in table.splitlines() if "difference" in line)
    assert "for new seeds too" in head and f"; {shown} for new seeds too." in table
    assert f">{shown}<" in (tmp_path / "out" / "report.html").read_text()


def test_runs_that_are_not_pooled_say_nothing_of_new_seeds(seeds, tmp_path, capsys):
    assert main(["compare", str(seeds / "sft0"), str(seeds / "dpo0"), "--out", str(tmp_path / "o"), "--no-plots"]) == 0
    assert "new seeds" not in capsys.readouterr().out
    assert "new seeds" not in (tmp_path / "o" / "report.html").read_text()
    assert margin([0.5], [0.7]) is None
    # beside one run that is taken as it is
    assert margin([0.5], [0.7, 0.8]) == pytest.approx(12.7062047 * 0.05)
    assert margin([0.5, 0.5], [0.7, 0.7]) == 0.0


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.08])
def test_intervals_for_new_seeds_hold_what_other_seeds_show(spread):
    """Three runs whose means differ by chance; without it, the interval of these runs is wide enough as well."""
    rng = np.random.default_rng(1)
    repeats, faults, runs, truth = 600, 60, 3, 0.75
    counts = rng.integers(1, 4, (faults, repeats)).astype(float)
    ease = rng.normal(0, 0.15, (faults, repeats, 1)) + rng.normal(0, spread, (1, repeats, runs))
    right = rng.binomial(counts[..., None].astype(int), np.clip(truth + ease, 0, 1)) / runs
    # what clipping takes off above is put on below, but for a little
    truth = np.clip(truth + rng.normal(0, np.hypot(0.15, spread), 10**6), 0, 1).mean()
    bounds = share_intervals(right.sum(2), counts, [Of()] * repeats)
    covered = alone = 0
    for at in range(repeats):
        means = runs * right[:, at].sum(0) / counts[:, at].sum()
        low, high = widened(means.mean(), tuple(bounds[at]), margin(means), (0.0, 1.0))
        covered += low <= truth <= high
        alone += bounds[at, 0] <= truth <= bounds[at, 1]
    assert covered / repeats >= 0.93
    assert spread < 0.08 or alone / repeats < 0.85


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
