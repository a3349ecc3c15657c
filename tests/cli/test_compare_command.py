"""`verl-aiops compare` as a user runs it: files, exit codes, messages, and docs/compare.md."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from compare_harness import Guessing, evaluated, in_faults, questions_of

from verl_aiops.cli.main import main, make_parser
from verl_aiops.evaluation.report import fonts, plots

DOC = (Path(__file__).resolve().parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`eval/a`, `eval/b` and `eval/c` with two answers to each of 12 incidents, metrics of a training, other files."""
    base, questions = tmp_path_factory.mktemp("work"), in_faults(questions_of(12))
    for at, label in enumerate("abc"):
        evaluated(base / "eval" / label, questions, Guessing(0.3 + 0.25 * at, seed=at), samples=2)
    rows = [{"step": step, "data": {"reward/score": step / 8, "actor/loss": 1 / step}} for step in range(1, 9)]
    (base / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (base / "bare").mkdir()
    (base / "file").write_text("x\n")
    return base


@pytest.fixture
def work(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def run(capsys, *arguments):
    code = main(["compare", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_everything_is_written_and_named(work, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    options = ("--metrics", "b=metrics.jsonl", "c=metrics.jsonl", "--smooth", "3", "--over", "rollout.n=4,16,8")
    code, table, err = run(capsys, "eval/a", "eval/b", "eval/c", "--out", str(out), *options)
    assert (code, err) == (0, "")
    files = ["report.html", "comparison.json", "table.txt"]
    images = ["differences.svg", "over_setting.svg", "over_k.svg", "slices.svg", "training.svg"]
    assert table.splitlines()[-1] == f"{out}: {', '.join([*files, *images])}"
    assert sorted(file.name for file in out.iterdir()) == sorted([*files, *images])
    assert all((out / name).read_text(encoding="utf-8").startswith("<svg ") for name in images)
    assert (out / "table.txt").read_text() in table
    result = json.loads((out / "comparison.json").read_text())
    assert result["over"] == {"name": "rollout.n", "values": {"a": 4, "b": 16, "c": 8}}
    page = (out / "report.html").read_text()
    assert page.count("<svg ") == len(images) and "Against rollout.n" in page


def test_a_second_comparison_replaces_all_files_of_the_first_and_only_when_asked(work, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(capsys, "eval/a", "eval/b", "--out", str(out), "--no-plots")[0] == 0
    before = (out / "table.txt").read_text()
    (out / "differences.png").write_text("old")
    (out / "notes.txt").write_text("mine")
    code, _, err = run(capsys, "eval/a", "eval/c", "--out", str(out), "--no-plots")
    assert code == 2 and "is there already" in err and (out / "table.txt").read_text() == before
    assert run(capsys, "eval/a", "eval/c", "--out", str(out), "--no-plots", "--overwrite")[0] == 0
    names = ["comparison.json", "notes.txt", "report.html", "table.txt"]
    assert sorted(file.name for file in out.iterdir()) == names
    assert (out / "table.txt").read_text() != before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("eval/a", "expected two runs or more, found 1"),
        ("eval/a nowhere", "nowhere: no such folder"),
        ("eval/a x=", "'x=': expected FOLDER or LABEL=FOLDER, found no folder"),
        ("eval/a bare", "bare: no generations.jsonl in it"),
        ("eval eval/a", "eval: holds several evaluations; name one of them: a, b, c"),
        ("eval/a eval/a", "label 'a': eval/a and eval/a both have it"),
        ("eval/a metrics.jsonl", "metrics of verl's file logger, no answers; they go to --metrics"),
        ("eval/a file", "file, line 1: expected a JSON object"),
        ("eval/a eval/b --seed -1", "--seed -1: expected 0 or more"),
        ("eval/a eval/b --examples -1", "--examples -1: expected 0 or more"),
        ("eval/a eval/b --smooth 0", "--smooth 0: expected 1 or more"),
        ("eval/a eval/b --metrics x", "--metrics x: expected LABEL=FILE"),
        ("eval/a eval/b --metrics x=nowhere", "--metrics x=nowhere: no such file"),
        ("eval/a eval/b --metrics x=file", "--metrics file, line 1: expected a line of verl's file logger"),
        (
            "eval/a eval/b --metrics x=metrics.jsonl --curves y",
            "--curves y: no run has logged it; there are actor/loss",
        ),
        ("eval/a eval/b --metrics x=metrics.jsonl x=metrics.jsonl", "label 'x' was given before"),
        ("eval/a eval/b --metrics x=metrics.jsonl --no-plots", "--metrics are only drawn"),
        ("eval/a eval/b --curves y", "--curves names metrics of the files of --metrics"),
        ("eval/a eval/b --over n", "--over n: expected NAME=V,V,V"),
        ("eval/a eval/b --over n=1,inf", "--over n=1,inf: expected NAME=V,V,V"),
        ("eval/a eval/b --over =1,2", "--over =1,2: expected NAME=V,V,V"),
        ("eval/a eval/b --over n=1", "--over n=1: expected 2 numbers"),
        ("eval/a eval/b --over n=1,1", "--over n=1,1: expected a number of its own for each run"),
    ],
)
def test_what_cannot_be_compared_ends_with_one_line_and_leaves_nothing(work, tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    code, table, err = run(capsys, *arguments.split(), "--out", str(out))
    assert (code, table) == (2, "") and message in err and err.count("\n") == 1
    assert not out.exists()


def test_a_terminal_that_knows_ascii_alone_is_no_error(work, tmp_path, monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", screen)
    assert main(["compare", "eval/a", "eval/b", "--out", str(tmp_path / "out"), "--no-plots"]) == 0
    screen.flush()
    assert b"both right  incidents" in screen.buffer.getvalue() and b"?" in screen.buffer.getvalue()
    assert "−" in (tmp_path / "out" / "table.txt").read_text(encoding="utf-8")


def test_a_file_for_a_folder_is_refused(work, capsys):
    code, _, err = run(capsys, "eval/a", "eval/b", "--out", "file")
    assert code == 2 and "--out file: expected a folder, found a file" in err


def test_without_matplotlib_the_message_says_what_to_do(work, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, _, err = run(capsys, "eval/a", "eval/b", "--out", str(tmp_path / "out"))
    assert code == 2 and "--no-plots" in err and not (tmp_path / "out").exists()
    assert run(capsys, "eval/a", "eval/b", "--out", str(tmp_path / "out"), "--no-plots")[0] == 0


def test_different_rewards_are_noted(work, tmp_path, capsys):
    for label, reward in (("a", {}), ("b", {"allow_fence": True})):
        shutil.copytree(work / "eval" / label, tmp_path / label)
        file = tmp_path / label / "settings.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"reward": reward}))
    _, table, _ = run(capsys, f"{tmp_path}/a", f"{tmp_path}/b", "--out", str(tmp_path / "out"), "--no-plots")
    assert "a and b were scored with different settings of the reward" in table
    _, table, _ = run(capsys, f"{tmp_path}/a", f"c={tmp_path}/a", "--out", str(tmp_path / "same"), "--no-plots")
    assert "settings of the reward" not in table


# --- plots --------------------------------------------------------------------------------------------------------


def test_points_of_a_setting_stand_where_their_numbers_are(work, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    as_svg = plots.as_svg
    monkeypatch.setattr(plots, "as_svg", lambda figure, *said: figures.append(figure) or as_svg(figure, *said))
    out = tmp_path / "out"
    assert run(capsys, "eval/a", "eval/b", "eval/c", "--out", str(out), "--over", "rollout.n=4,16,8")[0] == 0
    result = json.loads((out / "comparison.json").read_text())
    figure = next(figure for figure in figures if figure.axes[0].get_xlabel() == "rollout.n")
    for axis, name in zip(figure.axes, ("acc_main", "json_ok", "evidence_rate"), strict=True):
        values = {label: 100 * result["metrics"][name]["values"][label]["value"] for label in "abc"}
        assert list(axis.lines[0].get_xdata()) == [4, 8, 16]
        assert list(axis.lines[0].get_ydata()) == [values[label] for label in "acb"]


def test_no_two_of_many_runs_look_alike():
    looks = [plots._look(at) for at in range(24)]
    assert len(set(looks)) == 24


def test_characters_without_a_font_are_told_once(monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(fonts, "_chinese", list)
    with pytest.warns(UserWarning) as told, fonts.user_fonts():
        figure, axis = pyplot.subplots()
        axis.set_title("模拟器")
        figure.canvas.draw()
        pyplot.close(figure)
    assert [str(warning.message)[:26] for warning in told] == ["some characters of labels "]


# --- docs ---------------------------------------------------------------------------------------------------------


def options_of_compare():
    (commands,) = (action for action in make_parser()._actions if action.dest == "command")
    actions = commands.choices["compare"]._actions
    return {name for action in actions for name in action.option_strings if name.startswith("--")} - {"--help"}


def test_every_option_stands_in_the_docs():
    assert [name for name in sorted(options_of_compare()) if not re.search(rf"{name}\b(?!-)", DOC)] == []


def test_every_option_in_the_docs_exists():
    """Options of other commands stand in lines that name these."""
    others = {"--n", "--reward", "--model", "--incidents", "--temperature", "--max-chars", "--seed"}
    others |= {"--before", "--data", "--text-pairs", "--limit"}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", DOC))
    assert named - options_of_compare() - others == set()
    commands = re.sub(r"\\\n\s*", "", DOC)
    for line in re.findall(r"^    verl-aiops compare .*$", commands, flags=re.MULTILINE):
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", line)) <= options_of_compare()
        make_parser().parse_args(line.split()[1:])


def test_files_and_metrics_that_the_docs_name_are_those_there_are(work, tmp_path, capsys):
    from verl_aiops.evaluation.compare.command import _FILES, _PLOTS
    from verl_aiops.evaluation.pairs.compare import _PLOT as OF_PAIRS
    from verl_aiops.evaluation.stats.metrics import In, metrics

    assert all(f"`{name}`" in DOC for name in (*_FILES, *_PLOTS))
    assert set(re.findall(r"`(\w+\.(?:svg|png|html|txt))`", DOC)) <= {*_FILES, *_PLOTS, OF_PAIRS}
    for metric in metrics(In.COMPARE).values():
        assert metric.title.partition(",")[0] in " ".join(DOC.split()), metric.title


def test_metrics_that_were_not_finite_are_drawn_and_said(work, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    rows = [{"step": step, "data": {"actor/loss": None if step == 3 else 0.7}} for step in (1, 2, 3)]
    (tmp_path / "nan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--metrics", f"b={tmp_path / 'nan.jsonl'}", "--curves", "actor/loss")
    code, table, _ = run(capsys, "eval/a", "eval/b", "--out", str(tmp_path / "out"), *options)
    said = "--metrics b: actor/loss was not finite (null in the file) at 1 of 3 steps, first at step 3"
    assert code == 0 and said in table and said in (tmp_path / "out" / "table.txt").read_text()
