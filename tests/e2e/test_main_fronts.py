"""`verl-aiops dpo`, end to end: what it shows, what it leaves, and that a resumed run goes on."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e


def front(*arguments, out):
    done = subprocess.run(
        [sys.executable, "-m", "verl_aiops.cli", *arguments, "--out", str(out)],
        env={**os.environ, "VERL_AIOPS_CACHE": str(out / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [{"prompt": f"question {i}?", "chosen": f"yes {i}", "rejected": f"no {i}, sorry"} for i in range(8)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_two_steps_of_dpo(data, tiny_model_dir, tmp_path):
    out = tmp_path / "a run"
    least = ["dpo", "--model", str(tiny_model_dir), "--data", data, "--val", data, "--batch-size", "2"]
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
    assert "actor_rollout_ref" in log and "step:1 - " in log  # configuration and verl's lines
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in metrics] == [0, 1, 2] and metrics[1]["data"]["actor/lr"] <= 1e-5
    assert any((out / "tensorboard").iterdir()) and (out / "global_step_2").is_dir()
    # what the trainer refuses is shown, with its exit code
    code, shown, _ = front(*least, "--steps", "2", "algorithm.dpo.betta=1", out=out)
    assert code == 1 and any("betta" in line for line in shown), shown
