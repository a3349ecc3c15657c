"""Real, simulated and unseen, and answers given away or remembered, are shown apart wherever figures are."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from compare_harness import Guessing, evaluated, in_faults, questions_of

from verl_aiops.evaluation.compare.command import Options, compare
from verl_aiops.evaluation.run.results import read_lines

PARTS = ("real", "simulated", "unseen")
WAYS = ("read", "given_away", "remembered")


@pytest.fixture(scope="module")
def marked():
    questions = in_faults(questions_of(36))
    return [replace(q, part=PARTS[at % 3], answerable=WAYS[at % 4 % 3]) for at, q in enumerate(questions)]


@pytest.fixture(scope="module")
def runs(marked, tmp_path_factory):
    """Two evaluations; the second is better on simulated incidents alone."""
    base = tmp_path_factory.mktemp("runs")
    evaluated(base / "sft", marked, Guessing(0.5, 1.0))
    simulated = {q.id for q in marked if q.part == "simulated"}
    lines = (base / "sft" / "generations.jsonl").read_text().splitlines()
    evaluated(base / "dpo", marked, Guessing(0.5, 1.0))
    better = []
    for line in map(json.loads, lines):
        if line["id"] in simulated:
            line["score"].update(acc_main=1.0, acc=1.0, service_ok=1.0, type_ok=1.0, score=1.0)
        better.append(json.dumps(line))
    (base / "dpo" / "generations.jsonl").write_text("\n".join(better) + "\n")
    return base


def first_column(text, title):
    """The rows of the table of a slice: name and number of incidents."""
    (table,) = (part for part in text.split("\n\n") if part.startswith(title))
    return [re.split(r"  +", line)[:2] for line in table.splitlines()[1:]]


def test_eval_counts_and_shows_them_apart(marked, runs):
    summary = json.loads((runs / "sft" / "summary.json").read_text())
    table = (runs / "sft" / "table.txt").read_text()
    for key, names in (("part", PARTS), ("answerable", WAYS)):
        counts = {name: sum(getattr(q, key) == name for q in marked) for name in names}
        assert list(summary["by"][key]) == list(names)
        assert {name: found["incidents"] for name, found in summary["by"][key].items()} == counts
        assert first_column(table, key) == [[name, str(count)] for name, count in counts.items()]
        for name in names:
            right = [
                line["score"]["acc_main"]
                for line in read_lines(runs / "sft" / "generations.jsonl")
                if line[key] == name
            ]
            assert summary["by"][key][name]["metrics"]["acc_main"]["value"] == pytest.approx(sum(right) / len(right))


def test_compare_shows_them_apart_in_text_report_plot_and_json(marked, runs, tmp_path):
    pytest.importorskip("matplotlib")
    table, _ = compare([str(runs / "sft"), str(runs / "dpo")], tmp_path / "out", Options())
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    report = (tmp_path / "out" / "report.html").read_text()
    for key, names in (("part", PARTS), ("answerable", WAYS)):
        assert list(result["by"][key]) == list(names)
        assert {name for name, _ in first_column(table, f"{key}: both right")} == set(names)
        for name in names:
            count = sum(getattr(q, key) == name for q in marked)
            assert result["by"][key][name]["incidents"] == count
            assert f"{name} (n = {count})" in (tmp_path / "out" / "slices.svg").read_text()
            assert f'<th scope="row"><span class="label">{name}</span></th><td class="num">{count}</td>' in report
    gains = {name: part["acc_main"]["differences"]["dpo"]["value"] for name, part in result["by"]["part"].items()}
    assert gains["real"] == gains["unseen"] == 0 < gains["simulated"]
    # the verdict of the mixture does not stand alone
    assert re.search(r" Apart, in points: real 0\.0 \[.*\], simulated \+.*, unseen 0\.0 \[.*\]\.\n", table)
    assert "Apart, in points: real 0.0" in report


def test_one_part_alone_is_named_too(marked, tmp_path):
    """A table of real incidents says so, and one of an unknown part makes no table."""
    real = [replace(q, part="real", answerable="read") for q in marked]
    evaluated(tmp_path / "a", real, Guessing(0.5))
    evaluated(tmp_path / "b", real, Guessing(0.6))
    assert first_column((tmp_path / "a" / "table.txt").read_text(), "part") == [["real", "36"]]
    table, _ = compare([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out", Options(plots=False))
    assert first_column(table, "part: both right") == [["real", "36"]]
    assert "Apart, in points" not in table
    assert '<span class="label">real</span>' in (tmp_path / "out" / "report.html").read_text()
    none = [replace(q, part=None, answerable=None, source=None) for q in marked]
    evaluated(tmp_path / "c", none, Guessing(0.5))
    assert "\npart " not in (tmp_path / "c" / "table.txt").read_text()


def test_lines_of_earlier_evaluations_are_told_by_their_source(runs, tmp_path):
    lines = [json.loads(line) for line in (runs / "sft" / "generations.jsonl").read_text().splitlines()]
    for at, line in enumerate(lines):
        del line["part"], line["answerable"]
        line["source"] = (None, "loghub/BGL", "simulator/shop")[at % 3]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = read_lines(tmp_path / "g.jsonl")
    assert [line["part"] for line in read[:3]] == [None, "real", "simulated"]
    assert {line["answerable"] for line in read} == {None}
