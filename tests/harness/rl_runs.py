"""Runs of verl's main_ppo on a few triage prompts."""

import json
import os
import shutil
import subprocess
import sys

import pytest

STEPS = 3
# ten processes of Ray's that nobody asks
NO_DASHBOARD = "++ray_kwargs.ray_init.include_dashboard=False"


# A random model never answers right. This reward gives its answers something to be better or worse at, so that the
# weights move, and keeps the parts of the real one.
REWARD = """
from verl_aiops.rewards.aiops_mturn import compute_score as real

def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    parts = real(data_source, solution_str, ground_truth, extra_info)
    return {**parts, "score": min(1.0, sum(text.count("e") for text in extra_info["turns"]) / 40)}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from verl_aiops.cli.main import main

    folder = tmp_path_factory.mktemp("rl")
    build = ["build-rl", "--out", str(folder / "rl.parquet"), "--num-incidents", "40", "--lang", "mix"]
    build += ["--difficulty", "easy"]
    assert main([*build, "--max-chars", "600", "--max-candidates", "3"]) == 0
    (folder / "reward.py").write_text(REWARD)
    return folder


def run(data, model_dir, out, *overrides, estimator="grpo"):
    """Metrics by step and the output of a run that is told nothing but data, model, reward and sizes."""
    command = [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        f"algorithm.adv_estimator={estimator}",
        f"data.train_files={data / 'rl.parquet'}",
        f"data.val_files={data / 'rl.val.parquet'}",
        "data.train_batch_size=4",
        "data.val_max_samples=4",
        "data.max_prompt_length=1024",
        "data.max_response_length=420",
        f"actor_rollout_ref.model.path={model_dir}",
        "actor_rollout_ref.actor.optim.lr=3e-3",
        "+actor_rollout_ref.rollout.custom.aiops_mturn.round_tokens=[24,16]",
        f"reward.custom_reward_function.path={data / 'reward.py'}",
        "reward.reward_manager.name=aiops_mturn",
        f"trainer.total_training_steps={STEPS}",
        "trainer.logger=[console,file]",
        f"trainer.default_local_dir={out}",
        f"trainer.rollout_data_dir={out / 'rollouts'}",
        f"trainer.validation_data_dir={out / 'validation'}",
        *overrides,
    ]
    return main_ppo(command, out, RAY_DEDUP_LOGS="0")


def main_ppo(command, out, **environment):
    """Run it in its folder; metrics by step, and the output."""
    out.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [*command, NO_DASHBOARD],
        env=variables(out, **environment),
        cwd=out,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return metrics_of(out), done.stdout


def variables(out, **more):
    """The environment of a run in `out`."""
    return {**os.environ, "VERL_FILE_LOGGER_PATH": str(out / "metrics.jsonl"), **more}


def metrics_of(out):
    """Metrics by step; the last line of a step wins."""
    steps: dict[int, dict] = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        steps.setdefault(entry["step"], {}).update(entry["data"])
    return steps


def from_step(step, first, out):
    """`out` with the checkpoint of `step` that a run left in `first`, for a run that goes on from it; returns it."""
    out.mkdir()
    shutil.copytree(first / f"global_step_{step}", out / f"global_step_{step}")
    (out / "latest_checkpointed_iteration.txt").write_text(str(step))
    return out


ONLINE = ["actor_rollout_ref.rollout.n=4", "actor_rollout_ref.actor.ppo_mini_batch_size=2", "trainer.save_freq=2"]
