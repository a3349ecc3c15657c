"""A generic preference set in the layouts of other tools, from its file to a trained and compared model by the commands
that a user types: what they show, and what they leave."""

import json
import os
import subprocess
import sys

import pytest

from verl_aiops.cli.main import main

pytestmark = pytest.mark.e2e

PAIRS = [(f"What is good about {what}?", f"It is {what}, in short.", f"No idea, sorry: {what}.") for what in "abcdefgh"]


def said(text):
    return {"from": "gpt", "value": text}


# the same conversations in each
LAYOUTS = {
    "hh.jsonl": lambda q, a, b: {
        "chosen": f"\n\nHuman: {q}\n\nAssistant: {a}",
        "rejected": f"\n\nHuman: {q}\n\nAssistant: {b}",
    },
    "sharegpt.jsonl": lambda q, a, b: {
        "conversations": [{"from": "human", "value": q}],
        "chosen": said(a),
        "rejected": said(b),
    },
    "orca.jsonl": lambda q, a, b: {"system": "", "question": q, "chosen": a, "rejected": b},
    "array.json": lambda q, a, b: {"prompt": [{"role": "user", "content": q}], "chosen": a, "rejected": b},
    "factory.jsonl": lambda q, a, b: {"instruction": q, "input": "", "chosen": a, "rejected": b},
    "argilla.jsonl": lambda q, a, b: {"instruction": q, "chosen_response": a, "rejected_response": b},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for name, row in LAYOUTS.items():
        rows = [row(*pair) for pair in PAIRS]
        text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(one) + "\n" for one in rows)
        (folder / name).write_text(text)
    return {name.partition(".")[0]: str(folder / name) for name in LAYOUTS}


def front(*arguments, out):
    done = subprocess.run(
        [sys.executable, "-m", "verl_aiops.cli", *arguments, "--out", str(out)],
        env={**os.environ, "VERL_AIOPS_CACHE": str(out / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_from_pairs_of_other_tools_to_a_model_that_is_compared(files, tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "a run"
    least = ["dpo", "--model", str(tiny_model_dir), "--data", files["orca"], "--val", files["hh"], "--batch-size", "2"]
    code, shown, errors = front(*least, "--steps", "2", "--lora-rank", "4", "data.max_response_length=64", out=out)
    log = (out / "train.log").read_text()
    assert code == 0, log[-4000:]
    assert shown[0].startswith("python -m verl.trainer.main_ppo '+verl_aiops=[dpo,cpu]'") and len(shown) < 22
    steps = [line for line in shown if line.startswith("step ")]
    assert [line.split("  ")[:2] for line in steps] == [
        ["step 1/2", "loss 0.693"],
        ["step 2/2", steps[1].split("  ")[1]],
    ]
    assert [line.split(":")[0] for line in shown if line.startswith("held out")] == [
        "held out, step 0",
        "held out, step 2",
    ]
    assert any("8 of 8 pairs kept, 8 in the layout of Orca" in line for line in shown)
    assert any("8 of 8 pairs kept, 8 in the layout of hh-rlhf" in line for line in shown)
    assert "actor_rollout_ref" in log and "step:1 - " in log  # configuration and verl's lines
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in metrics] == [0, 1, 2] and metrics[1]["data"]["actor/lr"] <= 1e-5
    assert any((out / "tensorboard").iterdir()) and (out / "global_step_2").is_dir()
    # what the trainer refuses is shown, with its exit code
    code, shown, _ = front(*least, "--steps", "2", "algorithm.dpo.betta=1", out=out)
    assert code == 1 and any("betta" in line for line in shown), shown

    trained, summaries = str(out / "huggingface"), {}
    for layout, file in files.items():
        to = tmp_path / layout
        line = ["eval-pairs", "--before", str(tiny_model_dir), "--model", trained, "--data", file, "--out", str(to)]
        assert main(line) == 0
        summaries[layout] = json.loads((to / "summary.json").read_text())
    # one set, however it is written: the same tokens, and so the same numbers
    assert len({summary["pairs"] for summary in summaries.values()}) == 1
    assert len({json.dumps(summary["metrics"]) for summary in summaries.values()}) == 1
    change = summaries["hh"]["metrics"]["change"]
    assert change["margin"]["pairs"] == 8 and change["margin"]["low"] is not None
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "argilla"), "--out", str(tmp_path / "compared")]) == 0
    assert "after and before in pairs ranked right" in capsys.readouterr().out
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert found["metrics"]["margin"]["comparisons"]["after"]["difference"] == change["margin"]
