"""`verl-aiops compare` of investigations: slices, figures, and a page in which what a model wrote is text."""

import json

import pytest
from investigation_parts import CASE, PROMPT, RIGHT

from verl_aiops.cli.main import main
from verl_aiops.evaluation.investigation.asking import CaseJob, Investigated
from verl_aiops.evaluation.investigation.compare import compare_investigations
from verl_aiops.evaluation.investigation.evaluate import line_of
from verl_aiops.evaluation.investigation.questions import CaseQuestion

TRUTH = {name: CASE[name] for name in ("root_causes", "propagation", "reasons")}
HOSTILE = "<script>alert(1)</script>\x1b[31m{{ 7 * 7 }}"


def run(folder, right, count=24):
    """An evaluation that has the cases of these numbers right; odd cases are of another part."""
    folder.mkdir()
    lines = []
    for number in range(count):
        name, part = f"case-{number}", ("simulated", "real")[number % 2]
        question = CaseQuestion(name, name, "shop", "en", part, tuple(PROMPT), {"id": name}, TRUTH)
        said = json.dumps(RIGHT if number in right else {"root_causes": [{"component": HOSTILE}]})
        call = {"turn": 0, "name": "t", "arguments": "{}", "ok": True, "result": HOSTILE, "reply": HOSTILE}
        made = Investigated(["look", said], [False] * 2, [4, 9], [call], [1, 0])
        lines.append(json.dumps(line_of(CaseJob(question, 0, 0), made, {})))
    (folder / "generations.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "settings.json").write_text('{"task": "investigation"}')
    return str(folder)


def test_a_comparison_has_slices_figures_and_the_cases_that_changed(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs = [run(tmp_path / "before", {0, 1}), run(tmp_path / "after", {1, *range(3, 24, 2)})]
    out = tmp_path / "compared"
    assert main(["compare", *runs, "--out", str(out), "--examples", "2"]) == 0
    assert "report.html, comparison.json, table.txt, differences.svg, slices.svg" in capsys.readouterr().out
    made = json.loads((out / "comparison.json").read_text())
    assert list(made["slices"]) == ["part"] and made["slices"]["part"]["real"]["cases"] == 12
    change = {name: one["differences"]["after"]["metrics"]["acc_main"] for name, one in made["slices"]["part"].items()}
    assert change["real"]["value"] == pytest.approx(11 / 12) and change["simulated"]["value"] == pytest.approx(-1 / 12)
    assert "by part" in (out / "table.txt").read_text()
    page = (out / "report.html").read_text()
    # two of the eleven that were gained, and the one that was lost
    assert page.count('<details class="example">') == 3
    assert page.count("wrong → right") == 2 and page.count("right → wrong") == 1
    assert "<script" not in page and "\x1b" not in page and "{{ 7 * 7 }}" in page and "&lt;script&gt;" in page
    assert page.count("<svg") == 2
    (out / "report.html").write_text("old")
    assert main(["compare", *runs, "--out", str(out), "--overwrite", "--no-plots"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["comparison.json", "report.html", "table.txt"]
    assert "<svg" not in (out / "report.html").read_text()


def test_runs_without_a_change_have_a_page_too(tmp_path):
    runs = [f"{label}={run(tmp_path / label, set())}" for label in ("a", "b")]
    compare_investigations(runs, tmp_path / "out", plots=False)
    assert "No case that one of them has right" in (tmp_path / "out" / "report.html").read_text()
