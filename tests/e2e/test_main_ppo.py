"""verl's stock main_ppo, end to end, on CPU: pairs of incidents, a tiny model, checkpoint, resume, export."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest
from rl_runs import NO_DASHBOARD, from_step, main_ppo, variables

STEPS = 6

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def data(collected, tmp_path_factory):
    from verl_aiops.cli.main import main

    folder = tmp_path_factory.mktemp("pairs")
    arguments = ["build-prefs", "--incidents", str(collected.path), "--out", str(folder / "prefs.parquet")]
    arguments += ["--style", "direct", "--max-chars", "200", "--max-candidates", "3"]
    assert main([*arguments, "--val-share", "0.5", "--kinds", "wrong_service=1"]) == 0
    files = {name: pq.read_table(folder / name) for name in ("prefs.parquet", "prefs.val.parquet")}
    # near misses are made so that no name alone is right more often than wrong: of one service's incidents it is, and
    # what a model learns of some holds for the others
    service = Counter(map(right_service, files["prefs.val.parquet"].to_pylist())).most_common(1)[0][0]
    for name, table in files.items():
        pq.write_table(table.filter([right_service(row) == service for row in table.to_pylist()]), folder / name)
    return folder


def right_service(row):
    return json.loads(row["ground_truth"])["service"]


def command(data, model_dir, out, *overrides):
    return [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        "algorithm.adv_estimator=dpo",
        f"data.train_files={data / 'prefs.parquet'}",
        f"data.val_files={data / 'prefs.val.parquet'}",
        "data.train_batch_size=4",
        "data.train_max_samples=16",
        "data.val_max_samples=6",
        "data.max_prompt_length=2048",
        f"actor_rollout_ref.model.path={model_dir}",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        f"trainer.total_training_steps={STEPS}",
        "trainer.logger=[console,file]",
        f"trainer.default_local_dir={out}",
        *overrides,
    ]


def environment(cache):
    return {"VERL_AIOPS_CACHE": str(cache), "RAY_DEDUP_LOGS": "0"}


def run(data, model_dir, out, cache, *overrides):
    """Metrics by step and the output of a whole run."""
    return main_ppo(command(data, model_dir, out, *overrides), out, **environment(cache))


@pytest.fixture(scope="module")
def whole_run(data, tiny_model_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    metrics, output = run(data, tiny_model_dir, out, out / "cache", "trainer.save_freq=3", "trainer.test_freq=3")
    return out, metrics, output


def test_bare_adv_estimator_trains(whole_run):
    out, metrics, output = whole_run
    assert sorted(metrics) == list(range(STEPS + 1))
    assert f"{metrics[1]['actor/loss']:.6f}" == "0.693147"
    assert metrics[0]["val/loss"] == pytest.approx(0.693147, abs=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"):
        assert name in metrics[1] and f"val/{name}" in metrics[STEPS], name
    for name in ("actor/grad_norm", "actor/lr", "logps/chosen", "logps/rejected", "pairs/dropped/prompt_too_long"):
        assert name in metrics[1], name
    assert metrics[STEPS]["val/loss"] < metrics[0]["val/loss"]
    assert metrics[1]["reference/cache_misses"] == 22 and metrics[1]["reference/cache_hits"] == 0
    # nothing that offline training has no use for was started
    assert not re.search(r"\((AgentLoopWorker|RewardLoopWorker|vLLM|SGLang)", output)


def test_final_model_is_a_plain_transformers_folder(whole_run, tiny_model_dir):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, _, output = whole_run
    folder = out / "huggingface"
    assert f"trained model: {folder}" in output
    trained = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    moved = {n for n, p in trained.named_parameters() if not torch.equal(p, start.get_parameter(n).bfloat16().float())}
    assert moved == {n for n, _ in start.named_parameters()}
    assert (
        AutoTokenizer.from_pretrained(folder).chat_template
        == AutoTokenizer.from_pretrained(tiny_model_dir).chat_template
    )


def test_resumed_run_repeats_the_losses_and_hits_the_cache(whole_run, data, tiny_model_dir, tmp_path):
    """From the checkpoint of step 3, in another folder: steps 4 to 6 to 1e-6 (float32, same shapes, one worker)."""
    first, metrics, _ = whole_run
    out = from_step(3, first, tmp_path / "resumed")
    resumed, output = run(data, tiny_model_dir, out, first / "cache", "trainer.val_before_train=False")
    assert sorted(resumed) == [4, 5, 6]
    for step in (4, 5, 6):
        for name in ("actor/loss", "rewards/margins", "logps/chosen", "logps/rejected"):
            assert resumed[step][name] == pytest.approx(metrics[step][name], rel=1e-6, abs=1e-6), (step, name)
        assert resumed[step]["actor/grad_norm"] == pytest.approx(metrics[step]["actor/grad_norm"], rel=1e-5)
    assert resumed[4]["reference/cache_misses"] == 0 and resumed[4]["reference/cache_hits"] == 22


@pytest.mark.slow
def test_killed_run_goes_on_where_it_was(whole_run, data, tiny_model_dir, tmp_path):
    """SIGKILL after step 4, then the same command again: the losses of a run that nothing happened to."""
    first, metrics, _ = whole_run
    out = tmp_path / "killed"
    out.mkdir()
    process = subprocess.Popen(
        [*command(data, tiny_model_dir, out, "trainer.save_freq=2"), NO_DASHBOARD],
        env=variables(out, **environment(first / "cache")),
        cwd=out,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.time() + 400
    while time.time() < until and not (out / "latest_checkpointed_iteration.txt").exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    saved = int((out / "latest_checkpointed_iteration.txt").read_text())
    assert saved < STEPS, "killed too late to show anything"
    resumed, _ = run(data, tiny_model_dir, out, first / "cache", "trainer.save_freq=2")
    for step in range(saved + 1, STEPS + 1):
        assert resumed[step]["actor/loss"] == pytest.approx(metrics[step]["actor/loss"], rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_two_workers_and_lora_through_main_ppo(whole_run, data, tiny_model_dir, tmp_path):
    """Two logical GPUs give one worker's losses; LoRA starts at ln 2 and exports merged weights."""
    first, metrics, _ = whole_run
    two, _ = run(
        data, tiny_model_dir, tmp_path / "two", first / "cache", "trainer.n_gpus_per_node=2", "trainer.device=cpu"
    )
    for step in range(1, STEPS + 1):
        # Adam divides by the square root of tiny second moments, so round-off of the first gradients grows a little
        assert two[step]["actor/loss"] == pytest.approx(metrics[step]["actor/loss"], rel=2e-4), step
    alone = ["actor_rollout_ref.model.lora_rank=4", "trainer.save_freq=-1"]
    lora, output = run(data, tiny_model_dir, tmp_path / "lora", first / "cache", *alone)
    assert f"{lora[1]['actor/loss']:.6f}" == "0.693147"
    assert lora[1]["reference/cache_misses"] == 0
    assert lora[STEPS]["actor/loss"] < lora[1]["actor/loss"]
    weights = tmp_path / "lora" / "huggingface" / "model.safetensors"
    assert weights.is_file() and weights.stat().st_mode & 0o777 == (first / "metrics.jsonl").stat().st_mode & 0o777
    # the model is all that is left
    assert not list((tmp_path / "lora").glob("global_step_*")) and "a checkpoint" not in output


@pytest.mark.slow
def test_another_model_as_reference_and_a_moving_one(whole_run, data, tiny_model_dir, tmp_path):
    """reference_path scores with that model and hands its GPUs back; a live, synced reference survives a resume."""
    from tiny import make_tiny_model

    first, metrics, _ = whole_run
    other = make_tiny_model(tmp_path / "other", seed=7)
    cache = tmp_path / "cache"
    reference, output = run(data, tiny_model_dir, tmp_path / "by_path", cache, f"+algorithm.dpo.reference_path={other}")
    assert reference[1]["reference/cache_misses"] == 22
    assert reference[1]["logps/chosen"] == pytest.approx(metrics[1]["logps/chosen"], rel=1e-6)
    assert abs(reference[1]["rewards/margins"]) > 1e-3

    live = ["+algorithm.dpo.reference=live", "+algorithm.dpo.reference_sync_steps=2", "trainer.save_freq=3"]
    whole, _ = run(data, tiny_model_dir, tmp_path / "live", cache, *live)
    # until the first sync a live reference and a cached one are the same
    assert whole[2]["actor/loss"] == pytest.approx(metrics[2]["actor/loss"], rel=1e-6)
    assert f"{whole[3]['actor/loss']:.6f}" == "0.693147"
    out = from_step(3, tmp_path / "live", tmp_path / "live_resumed")
    resumed, _ = run(data, tiny_model_dir, out, cache, *live, "trainer.val_before_train=False")
    for step in (4, 5, 6):
        assert resumed[step]["actor/loss"] == pytest.approx(whole[step]["actor/loss"], rel=1e-6, abs=1e-6), step
