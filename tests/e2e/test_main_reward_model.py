"""verl's stock main_ppo trains a reward model of groups with scores, stops, goes on, and writes what servers load."""

import json
import shutil
import sys

import pytest
import torch
from rl_runs import main_ppo

pytestmark = pytest.mark.e2e

RATED = {"no": 0.0, "maybe": 1.0, "yes": 2.0}


def rows(count):
    """Groups of three rated answers; which of three words an answer has is all that tells them apart."""
    return [
        {
            "prompt": [{"role": "user", "content": f"log {at % 5}: disk {at}"}],
            "completions": [{"completion": f"{word} {at % 3}", "score": score} for word, score in RATED.items()],
        }
        for at in range(count)
    ]


def train(folder, model, out):
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "algorithm.adv_estimator=rm"]
    command += [f"data.train_files={folder / 'train.jsonl'}", f"data.val_files={folder / 'val.jsonl'}"]
    command += ["data.train_batch_size=12", "data.max_prompt_length=64", "data.max_response_length=32"]
    command += [f"actor_rollout_ref.model.path={model}", "actor_rollout_ref.actor.optim.lr=1e-2"]
    command += ["+algorithm.rm.score_margin=0.5", "trainer.save_freq=3", "trainer.total_epochs=2"]
    command += ["trainer.logger=[console,file]", f"trainer.default_local_dir={out}"]
    return main_ppo(command, out, RAY_DEDUP_LOGS="0")


@pytest.fixture(scope="module")
def whole_run(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward_model")
    for name, part in (("train", rows(12)), ("val", rows(18)[12:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return (folder, *train(folder, tiny_model_dir, folder / "out"))


def test_it_learns_and_the_folder_scores_as_the_run_measured_it(whole_run):
    from transformers import AutoTokenizer

    from verl_aiops.data.scoring import conversation, scoring_ids, scoring_text
    from verl_aiops.rollout.hf.score_model import ScoreModel

    folder, metrics, printed = whole_run
    # 12 groups of 3 pairs, 12 pairs a step, two epochs
    assert sorted(step for step in metrics if step) == [1, 2, 3, 4, 5, 6]
    assert {"rewards/accuracies", "rewards/margins", "rewards/mean", "rewards/std"} <= metrics[1].keys()
    assert metrics[1]["perf/shared_tokens_ratio"] < 0.7, "prompts stand once for all answers"
    assert metrics[6]["actor/loss"] < metrics[1]["actor/loss"]
    assert metrics[6]["val/rewards/accuracies"] > 0.9
    model = folder / "out" / "huggingface"
    stats = json.loads((model / "reward_stats.json").read_text())
    assert stats["pairs"] == 18 and stats["held_out"] is True
    assert stats["accuracy"] == pytest.approx(metrics[6]["val/rewards/accuracies"])
    assert stats["accuracy_before"] == pytest.approx(metrics[0]["val/rewards/accuracies"])
    tokenizer, scorer = AutoTokenizer.from_pretrained(model), ScoreModel(str(model), torch.float32, "cpu")
    scores = [
        scorer([scoring_ids(tokenizer, scoring_text(tokenizer, conversation(row["prompt"], [one["completion"]])))])
        for row in rows(18)[12:]
        for one in row["completions"]
    ]
    scores = torch.cat(scores)
    # the folder is bfloat16, what was measured float32
    assert scores.mean().item() == pytest.approx(stats["reward_mean"], abs=0.02 * stats["reward_std"])
    assert scores.std(unbiased=False).item() == pytest.approx(stats["reward_std"], rel=0.02)
    assert "held-out answers: of 18 comparisons" in printed


def test_a_run_that_goes_on_comes_to_the_same(whole_run, tiny_model_dir, tmp_path):
    folder, metrics, _ = whole_run
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    for gone in (out / "global_step_6", out / "huggingface"):
        shutil.rmtree(gone)
    (out / "latest_checkpointed_iteration.txt").write_text("3")
    (out / "metrics.jsonl").unlink()
    resumed, _ = train(folder, tiny_model_dir, out)
    assert sorted(step for step in resumed if step > 3) == [4, 5, 6]
    for step in (4, 5, 6):
        for name in ("actor/loss", "rewards/margins", "actor/grad_norm"):
            assert resumed[step][name] == pytest.approx(metrics[step][name], rel=1e-5, abs=1e-6), (step, name)
    before, after = (json.loads((at / "huggingface" / "reward_stats.json").read_text()) for at in (folder / "out", out))
    assert after["reward_mean"] == pytest.approx(before["reward_mean"], rel=1e-5)
