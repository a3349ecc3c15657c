"""`train-rm` on verl's engines: what it holds out of the data, and which leads of pairs it asks for."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_aiops.cli.fronts import train_rm
from verl_aiops.cli.main import main
from verl_aiops.data import PreferenceDataset

ANSWERS = ("no", "maybe", "yes")


def rows_of(at):
    """A pair with a lead, a group with scores and a group with ranks about one thing."""
    prompt = [{"role": "user", "content": f"disk {at}?"}]
    scored = [{"completion": f"{word} {at}", "score": score} for score, word in enumerate(ANSWERS)]
    ranked = [{"completion": f"{word} {at}", "rank": 3 - score} for score, word in enumerate(ANSWERS)]
    about = {"prompt": prompt, "group": f"g{at}"}
    return [
        {**about, "chosen": f"yes {at}", "rejected": f"no {at}", "lead": 0.5, "id": f"pair {at}"},
        {**about, "completions": scored, "weight": 2.0},
        {**about, "completions": ranked},
    ]


@pytest.fixture
def data(tmp_path):
    rows = [row for at in range(12) for row in rows_of(at)]
    # the first line has no lead
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:] + rows[:1]))
    return tmp_path / "mixed.jsonl"


@pytest.fixture
def asked(monkeypatch, tiny_model_dir, tmp_path):
    """asked(*arguments): the settings of the run that would be started, nothing of which is."""

    def run(*arguments):
        lines = []
        monkeypatch.setattr(train_rm, "run_line", lambda task, line: lines.append(line) or 1)
        least = ["train-rm", "--model", str(tiny_model_dir), "--out", str(tmp_path / "out"), "--device", "cpu"]
        assert main([*least, "--overwrite", *arguments]) == 1
        return dict(word.split("=", 1) for word in lines[0].shown(" ").replace("'", "").split() if "=" in word)

    return run


def examples(file, tokenizer, **columns):
    lengths = {"max_prompt_length": 64, "max_response_length": 64, "progress": False}
    data = PreferenceDataset(file, tokenizer, kinds=["list"], scored=True, **lengths, **columns)
    items = [data[at] for at in range(len(data))]
    return {
        (item["prompt_ids"].numpy().tobytes(), tuple(map(float, item["scores"])), tuple(item["ranks"])): (
            [ids.tolist() for ids in item["answers_ids"]],
            item["weight"],
        )
        for item in items
    }


def test_groups_and_pairs_of_one_file_are_held_out_together_and_stay_what_they_are(data, asked, tokenizer, tmp_path):
    settings = asked("--data", str(data), "--columns", "margin=lead", "--val-share", "0.4")
    sides = [tmp_path / "out" / f"pairs.{side}.jsonl" for side in ("train", "val")]
    train, val = ([json.loads(line) for line in side.read_text().splitlines()] for side in sides)
    assert len(train) + len(val) == 36 and train and val
    assert not {row["group"] for row in train} & {row["group"] for row in val}
    assert sum("margin" in row for row in train + val) == 12 and {row["weight"] for row in train + val} == {1.0, 2.0}
    # numbers that are NaN where there are none are not equal to themselves
    whole = repr(sorted(examples([str(data)], tokenizer).items()))
    assert repr(sorted(examples(list(map(str, sides)), tokenizer).items())) == whole
    assert settings["algorithm.rm.score_margin"] == "1.0" and "data.margin_key" not in settings


def test_a_lead_is_found_by_its_columns_name_and_behind_the_first_row(data, asked):
    given = ["--data", str(data), "--val", str(data)]
    settings = asked(*given, "--columns", "margin=lead")
    assert settings["algorithm.rm.score_margin"] == "1.0" and settings["data.margin_key"] == "lead"
    settings = asked(*given, "--margin", "0.25")
    assert settings["algorithm.rm.margin"] == "0.25" and "algorithm.rm.score_margin" not in settings


def test_scores_of_both_answers_are_no_lead_that_was_asked_for(asked, tmp_path):
    """With and without --val alike: a lead of as many points would be trained into the scores."""
    table = {"prompt": [f"{at}?" for at in range(8)], "chosen": ["yes"] * 8, "rejected": ["no"] * 8}
    table |= {"score_chosen": [9.0] * 8, "score_rejected": [1.0] * 8}
    pq.write_table(pa.table(table), tmp_path / "scored.parquet")
    for more in (["--val-share", "0.5"], ["--val", str(tmp_path / "scored.parquet")]):
        settings = asked("--data", str(tmp_path / "scored.parquet"), *more)
        assert "algorithm.rm.score_margin" not in settings and settings["algorithm.rm.margin"] == "0.0"
