"""`compare` of evaluations of pairs: paired by their tokens, and what keeps two from being compared is said."""

import json

import numpy as np
import pytest

from verl_aiops.cli.main import main

SETTINGS = {"columns": None, "text_pairs": None, "limit": None, "seed": 0, "device": "auto"}


def evaluated(folder, margins, *, before=None, names=None, digests=None, data="pairs.jsonl", groups=None, **settings):
    """A folder of `eval-pairs`: `margins` of chosen over rejected, whose log-prob is -10."""
    folder.mkdir()
    models = ({"before": before} if before is not None else {}) | {"after" if before is not None else "model": margins}
    with (folder / "pairs.jsonl").open("w") as file:
        for at in range(len(margins)):
            row = {"id": names[at] if names else f"p{at}", "digest": digests[at] if digests else f"d{at}"}
            row |= {"group": groups[at] if groups else at, "tokens": [2, 4]}
            row |= {name: {"chosen": -10.0 + of[at], "rejected": -10.0} for name, of in models.items()}
            file.write(json.dumps(row) + "\n")
    about = {"models": {name: {"path": f"models/{name}"} for name in models}, "data": [data]}
    (folder / "summary.json").write_text(json.dumps(about | {"settings": SETTINGS | settings}))
    return str(folder)


def compared(tmp_path, *runs, more=()):
    assert main(["compare", *runs, "--out", str(tmp_path / "out"), "--overwrite", "--no-plots", *more]) == 0
    return json.loads((tmp_path / "out" / "comparison.json").read_text()), (tmp_path / "out" / "table.txt").read_text()


def test_differences_are_paired_by_tokens_whatever_the_order(tmp_path):
    a, b = [-1.0] * 4 + [1.0] * 8, [2.0] * 2 + [1.0] * 10
    order = [*range(11, -1, -1)]
    first = evaluated(tmp_path / "a", a)
    second = evaluated(
        tmp_path / "b", [b[at] for at in order], digests=[f"d{at}" for at in order], names=[f"x{at}" for at in order]
    )
    found, table = compared(tmp_path, f"old={first}", f"new={second}")
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["values"]["old"]["value"] == pytest.approx(8 / 12) and accuracy["values"]["new"]["value"] == 1
    entry = accuracy["comparisons"]["new"]
    # 4 pairs of 12 turned, all one way: two-sided sign test 2 / 2^4
    assert entry["difference"]["value"] == pytest.approx(4 / 12) and entry["p"] == pytest.approx(2 / 16)
    assert entry["test"] == "exact" and found["pairs"] == 12 and found["notes"] == []
    assert found["metrics"]["margin"]["comparisons"]["new"]["difference"]["value"] == pytest.approx(10 / 12)
    assert found["moved"]["new"]["value"] == pytest.approx(4 / 12)
    assert "No difference shown between new and old in pairs ranked right: +33.3" in table


def test_several_runs_are_held_to_the_first_and_p_is_holms(tmp_path):
    runs = [evaluated(tmp_path / name, [value] * 10) for name, value in (("a", -1.0), ("b", 1.0), ("c", 2.0))]
    found, table = compared(tmp_path, *runs)
    entries = found["metrics"]["accuracy"]["comparisons"]
    assert list(entries) == ["b", "c"] and entries["b"]["p"] == pytest.approx(2 / 2**10)
    assert entries["b"]["p_holm"] == pytest.approx(2 * entries["b"]["p"])
    assert "b ranks more pairs right than a" in table and "p, Holm" in table


def test_of_one_folder_before_and_after_are_compared(tmp_path):
    folder = evaluated(tmp_path / "e", [1.0] * 6, before=[-1.0] * 6)
    found, _ = compared(tmp_path, folder)
    assert [run["label"] for run in found["runs"]] == ["before", "after"]
    assert found["runs"][0]["model"] == "models/before"
    assert found["metrics"]["margin"]["comparisons"]["after"]["difference"]["value"] == pytest.approx(2)


def test_of_several_folders_it_is_the_trained_model(tmp_path):
    a, b = (evaluated(tmp_path / name, [value] * 6, before=[-9.0] * 6) for name, value in (("a", 1.0), ("b", 3.0)))
    found, _ = compared(tmp_path, a, b)
    assert found["metrics"]["margin"]["values"]["a"]["value"] == pytest.approx(1)
    assert found["metrics"]["margin"]["values"]["b"]["value"] == pytest.approx(3)


def test_pairs_of_a_group_are_no_independent_ones(tmp_path):
    rng = np.random.default_rng(0)
    margins = np.repeat(rng.normal(0, 5, 12), 5).tolist()
    zero = evaluated(tmp_path / "z", [0.0] * 60)
    apart = evaluated(tmp_path / "apart", margins)
    width = {}
    for name, groups in (("apart", None), ("together", [at // 5 for at in range(60)])):
        first = evaluated(tmp_path / f"{name}_first", [0.0] * 60, groups=groups) if groups else zero
        found, _ = compared(tmp_path, first, apart)
        change = found["metrics"]["margin"]["comparisons"]["apart"]["difference"]
        width[name] = change["high"] - change["low"]
    assert width["together"] > 1.8 * width["apart"]


def test_what_only_one_has_is_left_out_and_what_differs_is_said(tmp_path):
    a = evaluated(tmp_path / "a", [1.0] * 8, text_pairs="chat")
    b = evaluated(tmp_path / "b", [2.0] * 6, digests=[f"d{at}" for at in (0, 1, 2, 3, 99, 98)], data="other.jsonl")
    found, table = compared(tmp_path, a, b)
    assert found["pairs"] == 4 and [run["left_out"] for run in found["runs"]] == [4, 2]
    assert "4 of 8 pairs of a left out: not in all runs" in table and "2 of 6 pairs of b left out" in table
    assert "2 ids stand in a and in b with other tokens, such as p4, p5: another text, tokenizer" in table
    assert "Data: pairs.jsonl in a; other.jsonl in b." in table and "--text-pairs: chat in a; none in b." in table
    assert found["metrics"]["margin"]["comparisons"]["b"]["difference"]["low"] is None  # of four groups


def test_a_pair_that_stands_twice_is_compared_twice(tmp_path):
    a = evaluated(tmp_path / "a", [1.0, 2.0, 5.0], digests=["x", "x", "y"])
    b = evaluated(tmp_path / "b", [1.0, 3.0, 6.0], digests=["x", "x", "y"])
    found, _ = compared(tmp_path, a, b)
    assert found["pairs"] == 3
    assert found["metrics"]["margin"]["comparisons"]["b"]["difference"]["value"] == pytest.approx(2 / 3)


def damaged(tmp_path, **change):
    folder = evaluated(tmp_path / "bad", [1.0, 2.0])
    lines = [json.loads(line) for line in (tmp_path / "bad" / "pairs.jsonl").read_text().splitlines()]
    lines[1] |= change
    (tmp_path / "bad" / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    "change, said",
    [
        ({"digest": 3}, "pairs.jsonl, line 2: expected id, digest and tokens"),
        ({"tokens": [1]}, "pairs.jsonl, line 2: expected id, digest and tokens"),
        ({"model": {"chosen": float("nan"), "rejected": 0}}, "line 2"),
        ({"model": None}, "line 2: model: expected two finite log-probs, found None"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, capsys, change, said):
    good = evaluated(tmp_path / "good", [1.0, 2.0])
    assert main(["compare", good, damaged(tmp_path, **change), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    a = evaluated(tmp_path / "a", [1.0, 2.0])
    other = evaluated(tmp_path / "other", [1.0, 2.0], digests=["u", "v"], text_pairs="chat")
    answers = tmp_path / "answers"
    answers.mkdir()
    (answers / "generations.jsonl").write_text("{}\n")
    out = ["--out", str(tmp_path / "out")]
    for runs, said in (
        ([a], f"{a}: one model alone"),
        ([a, f"a={other}"], "label 'a': two runs have it"),
        ([a, other], "no pair stands in all runs. 2 ids stand in a and in other with other tokens"),
        ([a, str(answers)], f"{a} holds log-probs of pairs (verl-aiops eval-pairs), {answers} does not"),
        ([a, str(tmp_path / "none")], "none: no such folder"),
        ([a, other, "--over", "n=1,2"], "--over: is of runs with answers"),
    ):
        assert main(["compare", *runs, *out]) == 2
        assert said in capsys.readouterr().err
    compared(tmp_path, a, evaluated(tmp_path / "b", [1.0, 2.0]))
    assert main(["compare", a, str(tmp_path / "b"), *out]) == 2
    assert "comparison.json is there already" in capsys.readouterr().err
