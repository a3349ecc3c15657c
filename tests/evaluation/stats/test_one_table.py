"""A metric is one line of one table, and a component of the reward none: both show up wherever metrics are shown."""

import json

import pytest
from compare_harness import Guessing, evaluated, in_faults, questions_of

from verl_aiops.evaluation.compare.command import Options, compare
from verl_aiops.evaluation.compare.read_runs import read_run
from verl_aiops.evaluation.report import plots
from verl_aiops.evaluation.run.summary import section
from verl_aiops.evaluation.run.table import as_columns, render
from verl_aiops.evaluation.stats.metrics import METRICS, In, Metric, metrics
from verl_aiops.rewards.triage.components import PARTS, RewardPart


def polite(reading):
    """1 for an early text with a semicolon, which some of `Guessing`'s have."""
    return float(any(";" in text for text in reading.early))


@pytest.fixture
def registered(monkeypatch):
    """What an extension does: one component of the reward, one metric."""
    monkeypatch.setitem(PARTS, "polite", RewardPart(polite, weight=0.02, costs=True))
    monkeypatch.setitem(
        METRICS, "two_turns", Metric("wrote two turns", lambda line: float(len(line["rounds"]) == 2), better=0)
    )


@pytest.fixture
def runs(registered, tmp_path):
    questions = in_faults(questions_of(12))
    evaluated(tmp_path / "sft", questions, Guessing(0.4, 0.8, 0.3))
    evaluated(tmp_path / "dpo", questions, Guessing(0.8, 1.0, 0.9, seed=1))
    return tmp_path


def test_both_stand_in_the_summary_and_the_table_of_eval(runs):
    summary = json.loads((runs / "sft" / "summary.json").read_text())
    table = (runs / "sft" / "table.txt").read_text()
    lines = [json.loads(line) for line in (runs / "sft" / "generations.jsonl").read_text().splitlines()]
    share = sum(line["score"]["polite"] for line in lines) / len(lines)
    assert 0 < share < 1
    found = summary["overall"]["metrics"]
    assert found["polite"]["value"] == pytest.approx(share) and found["polite"]["low"] < share
    assert found["two_turns"]["value"] == 1.0
    rows = {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in table.splitlines()}
    assert rows["polite"].startswith(f"{100 * share:.1f} % [") and rows["wrote two turns"].startswith("100.0 % [")


def test_both_stand_in_text_report_plots_and_json_of_compare(runs, monkeypatch):
    pytest.importorskip("matplotlib")
    labels = []
    forest = plots._forest
    monkeypatch.setattr(
        plots, "_forest", lambda result, rows, *more: labels.extend(rows) or forest(result, rows, *more)
    )
    table, _ = compare([str(runs / "sft"), str(runs / "dpo")], runs / "out", Options())
    for title in ("polite", "wrote two turns"):
        assert any(line.startswith(f"{title}  ") for line in table.splitlines()), title
        assert f'<th scope="row">{title}' in (runs / "out" / "report.html").read_text()
        assert any(label.splitlines()[0] == title for label in labels)
    assert "polite\n(less is better)" in labels and "wrote two turns" in labels  # neither better nor worse
    result = json.loads((runs / "out" / "comparison.json").read_text())
    assert result["metrics"]["polite"]["better"] == "lower"
    difference = result["metrics"]["polite"]["comparisons"]["dpo"]["difference"]
    first, second = (result["metrics"]["polite"]["values"][run]["value"] for run in ("sft", "dpo"))
    assert difference["value"] == pytest.approx(second - first) and difference["low"] < difference["value"]


def test_a_metric_can_be_shown_at_every_place_by_its_one_line(runs, monkeypatch):
    everywhere = In.EVAL | In.COMPARE | In.PLOT | In.SLICES | In.RENAME | In.BEST | In.HEADLINE
    monkeypatch.setitem(
        METRICS, "long", Metric("long answers", lambda line: float(line["score"]["chars"] > 90), everywhere)
    )
    lines = [line for own in read_run("sft", str(runs / "sft")).incidents.values() for line in own]
    found = section(lines, 0)
    assert found["best_of_n"]["1"]["long"]["value"] == pytest.approx(found["metrics"]["long"]["value"])
    counts = {"failed": 0, "complete": True}
    by = {"source": {"a": found, "b": found}}
    text = render({"overall": found, "counts": counts, "by": by, "classes": {}})
    head = next(line for line in text.splitlines() if line.startswith("source"))
    assert head.rstrip().endswith("long answers")
    options = Options(over="n=1,2", plots=False)
    compare([str(runs / "sft"), str(runs / "dpo")], runs / "again", options)
    page = (runs / "again" / "report.html").read_text()
    assert page.count(">long answers<") >= 2  # the metrics, and beside the slices
    slices = json.loads((runs / "again" / "comparison.json").read_text())["by"]
    assert all("long" in part for parts in slices.values() for part in parts.values())


def test_lines_that_were_scored_without_the_component_are_compared_without_it(runs, monkeypatch):
    monkeypatch.delitem(PARTS, "polite")
    evaluated(runs / "old", in_faults(questions_of(12)), Guessing(0.4))
    monkeypatch.setitem(PARTS, "polite", RewardPart(polite, weight=0.02))
    table, _ = compare([str(runs / "old"), str(runs / "dpo")], runs / "out", Options(plots=False))
    assert "polite" not in table and "wrote two turns" in table


def test_a_component_with_the_name_of_a_metric_has_a_line_of_its_own(monkeypatch):
    monkeypatch.setitem(PARTS, "cut", RewardPart(polite, weight=0.01))
    assert metrics()["cut"] is METRICS["cut"] and metrics()["reward/cut"].title == "cut"


def test_a_place_brings_those_that_it_stands_on_and_amounts_are_not_drawn(runs, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(METRICS, "only", Metric("only a headline", lambda line: 1.0, In.HEADLINE))
    monkeypatch.setitem(METRICS, "much", Metric("an amount", lambda line: 7.0, In.HEADLINE | In.PLOT, digits=1))
    assert "only" in metrics(In.SLICES) and "only" in metrics(In.COMPARE) and "only" not in metrics(In.EVAL)
    assert "much" not in metrics(In.PLOT) and "much" not in metrics(In.HEADLINE)
    table, files = compare([str(runs / "sft"), str(runs / "dpo")], runs / "out", Options(over="n=1,2"))
    assert "only a headline" in table and "over_setting.svg" in files
    assert "only a headline" in (runs / "out" / "over_setting.svg").read_text()


def test_chinese_names_take_two_columns_of_a_terminal():
    first, second = as_columns([("账务库", "1"), ("cart", "22")]).splitlines()
    # three characters of two columns each stand beside "cart" and two spaces
    assert (first, second) == ("账务库   1", "cart    22")
