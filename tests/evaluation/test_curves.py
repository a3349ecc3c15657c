"""Training curves: what is read, which validation metric belongs to which panel, and errors a user sees."""

import json
import math

import pytest

from verl_aiops.cli.main import main
from verl_aiops.evaluation import training_curves as curves


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in rows))
    return str(path)


@pytest.fixture
def log(tmp_path):
    rows = [(0, {"val-aux/aiops_mturn/json_ok/mean@1": 0.2})]
    rows += [(step, {"reward/score": step / 10, "reward/json_ok": 0.5, "timing_s/step": 2.0}) for step in (1, 2, 3)]
    rows[-1][1]["val-aux/aiops_mturn/json_ok/mean@1"] = 0.9
    return write(tmp_path / "grpo" / "metrics.jsonl", rows)


def test_what_is_drawn(log, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    image = tmp_path / "out.png"
    assert main(["curves", log, f"again={log}", "--keys", "reward/score,reward/json_ok", "--out", str(image)]) == 0
    assert image.read_bytes().startswith(b"\x89PNG")
    score, json_ok = kept[0].axes[:2]
    assert [line.get_label() for line in score.lines] == ["grpo", "again"]
    assert list(score.lines[0].get_ydata()) == [0.1, 0.2, 0.3]
    assert [line.get_label() for line in json_ok.lines] == ["grpo", "grpo, held out", "again", "again, held out"]
    assert list(json_ok.lines[1].get_xdata()) == [0, 3] and list(json_ok.lines[1].get_ydata()) == [0.2, 0.9]


def test_smoothing_is_a_mean_over_the_last_steps():
    assert curves._smoothed([1.0, 2.0, 3.0, 5.0], 2) == [1.0, 1.5, 2.5, 4.0]
    assert curves._smoothed([1.0, 2.0], 1) == [1.0, 2.0]


@pytest.mark.parametrize(
    "key, twin",
    [
        ("actor/loss", "val/loss"),
        ("rewards/margins", "val/rewards/margins"),
        ("reward/acc", "val-core/x/acc/mean@4"),
        ("reward/score", None),
    ],
)
def test_twins_in_validation(key, twin):
    names = ["val/loss", "val/rewards/margins", "val-core/x/acc/mean@4", "val-aux/x/acc_main/mean@4"]
    assert curves._twin(key, names) == twin


def test_errors_name_file_line_and_key(log, tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"step": 1, "data": {}}\nstep 2\n')
    out = str(tmp_path / "x.png")
    assert main(["curves", str(broken), "--out", out]) == 2
    assert f"{broken}, line 2" in capsys.readouterr().err
    assert main(["curves", log, "--keys", "reward/nothing", "--out", out]) == 2
    said = capsys.readouterr().err
    assert "reward/nothing: no run has logged it" in said and "reward/score" in said
    assert main(["curves", str(tmp_path / "absent.jsonl"), "--out", out]) == 2


def test_runs_can_stand_against_the_minutes_that_their_steps_took(log, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    assert main(["curves", log, "--keys", "reward/json_ok", "--x", "minutes", "--out", str(tmp_path / "o.png")]) == 0
    line, held_out = kept[0].axes[0].lines
    assert list(line.get_xdata()) == [2 / 60, 4 / 60, 6 / 60] and list(held_out.get_xdata()) == [0, 6 / 60]


@pytest.fixture
def diverged(tmp_path):
    """The loss is null at two of four steps, the time of a step at one, as verl's logger writes NaN and infinity."""
    rows = [
        (step, {"reward/score": value, "timing_s/step": 2.0 if step != 2 else None})
        for step, value in enumerate((0.1, None, 0.3, None), 1)
    ]
    return write(tmp_path / "diverged" / "metrics.jsonl", rows)


def test_a_null_of_the_logger_is_drawn_as_a_gap_and_said(diverged, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    out = str(tmp_path / "o.png")
    assert main(["curves", diverged, "--keys", "reward/score", "--x", "minutes", "--smooth", "2", "--out", out]) == 0
    pale, _ = kept[0].axes[0].lines
    assert [str(value) for value in pale.get_ydata()] == ["0.1", "nan", "0.3", "nan"]
    assert list(pale.get_xdata()) == [2 / 60, 2 / 60, 4 / 60, 6 / 60]
    said = capsys.readouterr().err
    assert "warning: diverged: reward/score was not finite (null in the file) at 2 of 4 steps, first at step 2" in said
    assert "timing_s" not in said


def test_a_metric_that_is_never_a_number_is_said_by_name(tmp_path, capsys):
    log = write(tmp_path / "x" / "metrics.jsonl", [(1, {"actor/loss": None}), (2, {"actor/loss": None})])
    assert main(["curves", log, "--keys", "actor/loss", "--out", str(tmp_path / "o.png")]) in (0, 2)
    assert "actor/loss" in capsys.readouterr().err


def test_the_table_before_and_after_says_what_was_not_finite(diverged):
    from verl_aiops.evaluation.run.before_after import report_rows

    whole = {"val/logps/accuracies": 0.5, "val/logps/chosen": -1.0, "val/logps/rejected": -2.0}
    whole["val/rewards/margins"] = 0.1
    value = {"value": 0.25, "low": 0.1, "high": 0.5, "n": 4}
    answers = dict.fromkeys(("json_ok", "service_ok", "type_ok", "acc_main"), value)
    rows = report_rows(whole, {name: float("nan") for name in whole}, 10, (answers, answers))
    assert [row[2] for row in rows[:3]] == ["not finite"] * 3 and rows[0][1].strip().startswith("50.0 %")
    assert rows[-1] == ("both fields right (4 greedy answers)", "25.0 % [10, 50]", "25.0 % [10, 50]")
    assert curves.not_finite(curves.read_metrics(diverged)) == [
        "reward/score was not finite (null in the file) at 2 of 4 steps, first at step 2",
        "timing_s/step was not finite (null in the file) at 1 of 4 steps, first at step 2",
    ]


def test_a_component_that_was_logged_is_drawn_by_itself(monkeypatch):
    from verl_aiops.rewards.triage.components import PARTS, RewardPart

    monkeypatch.setitem(PARTS, "polite", RewardPart(lambda reading: 1.0, weight=0.01))
    logged = {"a": [{"step": 1, "reward/score": 0.1, "reward/polite": 0.5}]}
    assert curves.default_keys(logged) == [*curves.RL_KEYS[:-1], "reward/polite", curves.RL_KEYS[-1]]
    assert curves.default_keys({"a": [{"step": 1}]}) == list(curves.RL_KEYS)


def test_the_suffix_says_which_picture(log, tmp_path):
    pytest.importorskip("matplotlib")
    assert main(["curves", log, "--keys", "reward/score", "--out", str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<svg ")


OF_DPO = {"actor/loss": 0.6, "actor/lr": 1e-6, "rewards/accuracies": 0.5, "rewards/margins": 0.1, "timing_s/step": 2.0}
KINDS = {
    "dpo": (OF_DPO, ["actor/loss", "rewards/accuracies", "rewards/margins", "timing_s/step"]),
    "grpo": (
        {"actor/loss": 0.1, "reward/json_ok": 0.5, "reward/score": 0.4, "timing_s/step": 2.0},
        ["reward/score", "reward/json_ok", "timing_s/step"],
    ),
    "online": (
        {"reward/score": 0.4, "rewards/margins": 0.1, "logps/chosen": -9.0, "actor/loss": 0.6},
        ["reward/score", "actor/loss", "rewards/margins", "logps/chosen"],
    ),
    "sft": ({"train/loss": 0.4, "train/lr": 0.1, "val/loss": 1.0}, ["train/loss"]),
    "another": ({f"own/{at}": 1.0 for at in range(9)}, [f"own/{at}" for at in range(6)]),
}


@pytest.mark.parametrize("data, keys", KINDS.values(), ids=KINDS)
def test_what_a_run_has_logged_is_drawn(data, keys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    log = write(tmp_path / "run" / "metrics.jsonl", [(step, data) for step in (1, 2)])
    assert main(["curves", log, "--out", str(tmp_path / "out.svg")]) == 0
    assert [axis.get_title() for axis in kept[0].axes if axis.axison] == keys


def test_a_run_without_metrics_is_refused(tmp_path, capsys):
    log = write(tmp_path / "run" / "metrics.jsonl", [(1, {})])
    assert main(["curves", log, "--out", str(tmp_path / "out.svg")]) == 2
    assert "no metric was logged in run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rm, rule, steps, told",
    [
        (1, -1, 20, True),
        (1, -1, 9, False),
        (1, 1, 20, False),
        (-1, -1, 20, False),
        (1, 0, 20, False),
        (0, -1, 20, False),
    ],
)
def test_a_reward_models_score_that_rises_while_the_rule_falls_is_told(rm, rule, steps, told):
    from verl_aiops.evaluation.training_curves import logged_keys, over_optimised

    noise = [0.3, -0.2, 0.1, -0.3, 0.2]
    rows = [
        {"step": n, "reward/rm": 0.1 * rm * n + noise[n % 5], "reward/rule": 0.1 * rule * n + noise[(n + 2) % 5]}
        for n in range(steps)
    ]
    line = over_optimised([*rows, {"step": steps, "reward/rm": math.nan, "reward/rule": 1.0}, {"step": 99}])
    assert (line is not None) is told
    assert line is None or "rose (" in line and "fell (" in line
    assert {"reward/rm", "reward/rule"} <= set(logged_keys({"a": rows}))


def test_model_rule_and_kl_of_a_run_are_on_one_plot(tmp_path, monkeypatch, capsys):
    """And of a run without a reward model nothing is; the warning stands beside it."""
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot as plt

    rows = [
        (step, {"reward/rm": 0.1 * step, "reward/rule": 1 - 0.05 * step, "kl/reference": 0.2 * step})
        for step in range(1, 13)
    ]
    other = write(tmp_path / "plain" / "metrics.jsonl", [(step, {"reward/rule": 0.5}) for step in range(1, 13)])
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    path = write(tmp_path / "gated" / "metrics.jsonl", rows)
    assert main(["curves", path, other, "--out", str(tmp_path / "out.svg")]) == 0
    assert "gated: the reward model's score rose" in capsys.readouterr().err
    panel, *panels = kept[0].axes
    assert panel.get_title() == curves.TOGETHER
    labels = ["gated: rm", "gated: rule", "gated: kl/reference, right axis"]
    assert [line.get_label() for line in panel.lines] == labels
    assert list(panel.lines[0].get_ydata()) == [row["reward/rm"] for _, row in rows]
    assert list(panel.lines[1].get_ydata()) == [row["reward/rule"] for _, row in rows]
    (right,) = [axis for axis in panels if axis.get_ylabel() == "KL (nats)"]
    assert list(right.lines[0].get_ydata()) == [row["kl/reference"] for _, row in rows]
    assert {"reward/rule", "reward/rm", "kl/reference"} <= {axis.get_title() for axis in panels}
