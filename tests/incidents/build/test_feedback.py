"""A log of verdicts made training data: every verdict counted, every fault told by its row."""

import json

import pyarrow.parquet as pq
import pytest
from tiny import make_tokenizer
from written_rows import rows_in

from verl_aiops.cli.main import main
from verl_aiops.data import PreferenceDataset
from verl_aiops.incidents import (
    IncidentError,
    PromptOptions,
    Simulator,
    build_feedback,
    build_prefs,
    build_rl,
    simulator_source,
)

LOG = [
    {"prompt": "Which failed?", "answer": "db", "verdict": "accepted", "operator": "kim"},
    {"prompt": "Which failed?", "answer": "dns", "verdict": "Corrected", "correction": "db", "weight": 2},
    {"prompt": "Why?", "answer": "no idea", "verdict": "refused", "id": 7, "group": "g"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(log, tmp_path, **more):
    with pytest.raises(IncidentError) as caught:
        build_feedback(log, tmp_path / "out.jsonl", **more)
    assert not (tmp_path / "out.jsonl").exists()
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_correction_is_a_pair_an_acceptance_a_yes_a_refusal_a_no(tmp_path, suffix):
    out = tmp_path / f"out.{suffix}"
    summary = build_feedback(write(tmp_path / "log.jsonl", LOG), out)
    rows = rows_in(out) if suffix == "jsonl" else pq.read_table(out).to_pylist()
    prompt = [{"role": "user", "content": "Which failed?"}]
    none = {"chosen": None, "rejected": None, "completion": None, "label": None, "id": None}
    group = json.dumps(prompt)
    assert rows == [
        none | {"prompt": prompt, "completion": "db", "label": True, "group": group, "weight": 1.0},
        none | {"prompt": prompt, "chosen": "db", "rejected": "dns", "group": group, "weight": 2.0},
        none | {"prompt": [{"role": "user", "content": "Why?"}], "completion": "no idea", "label": False, "id": "7",
                "group": "g", "weight": 1.0},
    ]  # fmt: skip
    data = PreferenceDataset(
        str(out), make_tokenizer(), max_prompt_length=None, max_response_length=None, kinds={"pair", "single"}
    )
    assert data.kinds.tolist() == ["single", "pair", "single"] and data.report.unused == []
    text = str(summary)
    assert "3 verdicts, 1 accepted (yes), 1 corrected (pairs), 1 refused (no)" in text
    assert f"train: 3 rows in {out}" in text and "columns not used: operator" in text


def test_csv_of_a_spreadsheet(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text(
        'prompt;answer;verdict;correction;weight\nWhich?;"a;b";accepted;;\n\n'
        '"[{""role"": ""user"", ""content"": ""Why?""}]";x;corrected;y;0.5\n'
        "[2024-05-01] disk full;z;refused;;\n"
    )
    build_feedback(log, tmp_path / "out.jsonl")
    rows = rows_in(tmp_path / "out.jsonl")
    assert [row["completion"] or row["chosen"] for row in rows] == ["a;b", "y", "z"]
    assert [row["prompt"][0]["content"] for row in rows] == ["Which?", "Why?", "[2024-05-01] disk full"]
    assert [row["weight"] for row in rows] == [1.0, 0.5, 1.0]


@pytest.mark.parametrize("kind", ["prefs", "rl"])
def test_prompts_by_the_incidents_id(tmp_path, kind):
    source, style = simulator_source(Simulator(seed=1), 12), PromptOptions(style="direct")
    build = {"prefs": build_prefs, "rl": build_rl}[kind]
    build(source, tmp_path / "p.parquet", val_share=0, prompts=style)
    known = pq.read_table(tmp_path / "p.parquet").to_pylist()
    name = (known[3]["id"] if kind == "prefs" else known[3]["extra_info"]["id"]).partition("#")[0]
    log = write(tmp_path / "log.jsonl", [{"id": name, "answer": "x", "verdict": "refused"}])
    build_feedback(log, tmp_path / "out.jsonl", prompts=tmp_path / "p.parquet")
    (row,) = rows_in(tmp_path / "out.jsonl")
    assert row["prompt"] == known[3]["prompt"] and row["id"] == name
    assert row["group"] == (known[3]["group"] if kind == "prefs" else known[3]["extra_info"]["group"])
    log = write(tmp_path / "log.jsonl", [{"id": "nobody", "answer": "x", "verdict": "refused"}])
    with pytest.raises(IncidentError, match="line 1: field 'id': no prompt of 'nobody' is in"):
        build_feedback(log, tmp_path / "other.jsonl", prompts=tmp_path / "p.parquet")


def test_prompts_that_cannot_be_told(tmp_path):
    build_rl(simulator_source(Simulator(seed=1), 5), tmp_path / "two.parquet", val_share=0)
    name = pq.read_table(tmp_path / "two.parquet").to_pylist()[0]["extra_info"]["id"]
    log = write(tmp_path / "log.jsonl", [{"id": name, "answer": "x", "verdict": "refused"}])
    assert "is asked in several rounds in" in refused(log, tmp_path, prompts=tmp_path / "two.parquet")
    several = write(tmp_path / "s.jsonl", [{"id": f"{name}#{at}", "prompt": f"p{at}"} for at in range(2)])
    assert "has several prompts in" in refused(log, tmp_path, prompts=several)
    assert "comes without a prompt; give the file that has the prompts as --prompts" in refused(log, tmp_path)
    assert "no such file" in refused(log, tmp_path, prompts=tmp_path / "none.jsonl")
    bad = write(tmp_path / "b.jsonl", [{"id": "a"}])
    assert "b.jsonl, line 1: expected a prompt and an id" in refused(log, tmp_path, prompts=bad)


BAD = {
    "verdict": ({"verdict": "ok"}, "field 'verdict': expected one of accepted, corrected, refused, found"),
    "no verdict": ({"verdict": None}, "field 'verdict': expected one of"),
    "no answer": ({"answer": None}, "field 'answer': expected a text, found nothing"),
    "empty answer": ({"answer": " "}, "field 'answer': expected a text, found"),
    "no correction": ({"verdict": "corrected"}, "field 'correction': expected a text, found nothing"),
    "same": ({"verdict": "corrected", "correction": "db "}, "field 'correction': is the same as the answer"),
    "correction of what was accepted": (
        {"correction": "x"},
        "field 'correction': there is one, but the verdict is acc",
    ),
    "no prompt": ({"prompt": None}, "expected a 'prompt', or an 'id' whose prompt"),
    "empty prompt": ({"prompt": " "}, "field 'prompt': is empty"),
    "role": ({"prompt": [{"role": "human", "content": "x"}]}, "field 'prompt': message 1: expected a role"),
    "number": ({"prompt": 3}, "field 'prompt': expected a text or a list of messages, found 3"),
    "weight": ({"weight": "much"}, "field 'weight': expected a finite number of 0 or more, found 'much'"),
    "negative": ({"weight": -1}, "field 'weight': expected a finite number"),
    "true": ({"weight": True}, "field 'weight': expected a finite number"),
    "id": ({"id": [1]}, "field 'id': expected a text"),
    "half a character": ({"answer": "a\ud83d"}, "answer holds"),
    "group": ({"group": 1}, "field 'group': expected a text, found 1"),
}


@pytest.mark.parametrize("change, expected", BAD.values(), ids=BAD)
def test_bad_rows_are_told_together_by_their_lines(tmp_path, change, expected):
    message = refused(write(tmp_path / "log.jsonl", [LOG[0], LOG[0] | change, 5]), tmp_path)
    assert "log.jsonl: 2 of 3 rows cannot be used:" in message
    assert f"\n  line 2: {expected}" in message and "\n  line 3: expected an object, found 5" in message


def test_bad_files(tmp_path):
    assert "no such file" in refused(tmp_path / "none.jsonl", tmp_path)
    (tmp_path / "log.txt").write_text("x")
    assert "log.txt: a log is one of .jsonl, .ndjson, .csv, .tsv" in refused(tmp_path / "log.txt", tmp_path)
    (tmp_path / "blank.jsonl").write_text("\n\n")
    assert "blank.jsonl" in refused(tmp_path / "blank.jsonl", tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"a": \n')
    assert "bad.jsonl, line 1: expected one JSON object" in refused(tmp_path / "bad.jsonl", tmp_path)


def test_verdicts_that_repeat_or_contradict_are_counted_and_kept(tmp_path):
    log = write(tmp_path / "log.jsonl", [LOG[0], LOG[0], LOG[0] | {"verdict": "refused"}, LOG[1], LOG[1]])
    summary = build_feedback(log, tmp_path / "out.jsonl")
    assert (summary.repeated, summary.contradicting, len(rows_in(tmp_path / "out.jsonl"))) == (2, 1, 5)
    assert "2 verdicts repeat one before" in str(summary) and "1 verdicts contradict one before" in str(summary)


def test_a_correction_of_a_refused_answer_is_no_contradiction(tmp_path):
    log = write(tmp_path / "log.jsonl", [LOG[1], LOG[1] | {"verdict": "refused", "correction": None}])
    assert build_feedback(log, tmp_path / "out.jsonl").contradicting == 0


def test_verdicts_of_one_kind_are_said(tmp_path):
    said = "all verdicts are of one kind"
    assert said in str(build_feedback(write(tmp_path / "log.jsonl", LOG[:1]), tmp_path / "a.jsonl"))
    assert said not in str(build_feedback(write(tmp_path / "log.jsonl", LOG[::2]), tmp_path / "b.jsonl"))


def test_the_split_keeps_groups_together(tmp_path):
    log = write(tmp_path / "log.jsonl", [LOG[2] | {"group": f"g{at // 3}", "answer": f"a{at}"} for at in range(60)])
    build_feedback(log, tmp_path / "out.jsonl", val_share=0.4)
    sides = [{row["group"] for row in rows_in(tmp_path / name)} for name in ("out.jsonl", "out.val.jsonl")]
    assert sides[0] and sides[1] and not sides[0] & sides[1] and len(sides[0] | sides[1]) == 20
    with pytest.raises(IncidentError, match="leaves nothing for it"):
        build_feedback(log, tmp_path / "x.jsonl", val_out=tmp_path / "y.jsonl")


def test_the_command(tmp_path, capsys):
    log, out = write(tmp_path / "log.jsonl", LOG), tmp_path / "out.jsonl"
    assert main(["feedback", str(log), "--out", str(out)]) == 0
    assert "3 verdicts, 1 accepted (yes)" in capsys.readouterr().out
    assert main(["feedback", str(log), "--out", str(out)]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert main(["feedback", str(write(tmp_path / "bad.jsonl", [{}])), "--out", str(tmp_path / "n.jsonl")]) == 2
    assert "1 of 1 rows cannot be used" in capsys.readouterr().err
