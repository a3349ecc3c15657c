"""Training curves: what is read, which validation metric belongs to which panel, and errors a user sees."""

import json

import pytest

from verl_aiops.evaluation import curves


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
    assert curves.main([log, f"again={log}", "--keys", "reward/score,reward/json_ok", "--out", str(image)]) == 0
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
    assert curves.main([str(broken), "--out", out]) == 2
    assert f"{broken}, line 2" in capsys.readouterr().err
    assert curves.main([log, "--keys", "reward/nothing", "--out", out]) == 2
    said = capsys.readouterr().err
    assert "reward/nothing: no run has logged it" in said and "reward/score" in said
    assert curves.main([str(tmp_path / "absent.jsonl"), "--out", out]) == 2


def test_runs_can_stand_against_the_minutes_that_their_steps_took(log, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    assert curves.main([log, "--keys", "reward/json_ok", "--x", "minutes", "--out", str(tmp_path / "o.png")]) == 0
    line, held_out = kept[0].axes[0].lines
    assert list(line.get_xdata()) == [2 / 60, 4 / 60, 6 / 60] and list(held_out.get_xdata()) == [0, 6 / 60]
