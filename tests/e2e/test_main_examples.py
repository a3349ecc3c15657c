"""Ranked groups and answers with a yes or a no through verl's stock main_ppo, on CPU, with a tiny model."""

import json
import sys

import pytest
from rl_runs import from_step, main_ppo

pytestmark = pytest.mark.e2e


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def groups(number):
    answers = ("restart it", "look at the logs", "roll the deploy back", "do nothing")
    return [
        {
            "prompt": f"Incident {at}: what now?",
            "completions": [{"content": f"{text} {at}", "score": place} for place, text in enumerate(answers)],
        }
        for at in range(number)
    ]


def verdicts(number):
    return [
        {"prompt": f"Incident {at // 2}: what now?", "completion": f"answer {at}", "label": at % 3 == 0}
        for at in range(number)
    ]


def pairs(number):
    return [{"prompt": f"Alert {at}?", "chosen": f"page {at}", "rejected": f"wait {at}"} for at in range(number)]


def run(model_dir, out, train, *overrides, val=None):
    """Metrics by step, and the output."""
    command = [
        *(sys.executable, "-m", "verl.trainer.main_ppo", "algorithm.adv_estimator=dpo"),
        f"data.train_files={train}",
        f"data.val_files={val or train}",
        *("data.max_prompt_length=128", "data.max_response_length=64"),
        f"actor_rollout_ref.model.path={model_dir}",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        *("trainer.logger=[console,file]", f"trainer.default_local_dir={out}"),
        *overrides,
    ]
    return main_ppo(command, out, VERL_AIOPS_CACHE=str(out / "cache"))


def test_a_file_of_ranked_groups_trains(tiny_model_dir, tmp_path):
    """All pairs of a group in one step, whose answers and prompt are computed once."""
    train = written(tmp_path / "groups.jsonl", groups(6))
    sizes = ("data.train_batch_size=12", "trainer.total_training_steps=2")
    metrics, output = run(tiny_model_dir, tmp_path / "run", train, *sizes)
    assert f"{metrics[1]['actor/loss']:.6f}" == "0.693147" and metrics[2]["actor/loss"] < 0.693
    assert metrics[1]["perf/shared_tokens_ratio"] < 0.4
    assert "data.train_batch_size counts examples:" in output and "of 6 prompts" in output
    lists, _ = run(
        tiny_model_dir,
        tmp_path / "lists",
        train,
        *sizes[1:],
        "data.train_batch_size=3",
        "+algorithm.dpo.loss_type=plackett_luce",
    )
    assert lists[2]["actor/loss"] < lists[1]["actor/loss"]


@pytest.fixture(scope="module")
def kto(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kto")
    train = written(folder / "verdicts.jsonl", verdicts(16))
    settings = ("+algorithm.dpo.loss_type=kto", "data.train_batch_size=4", "trainer.total_training_steps=3")
    metrics, output = run(
        tiny_model_dir, folder / "run", train, *settings, "trainer.save_freq=2", "trainer.test_freq=3"
    )
    return folder / "run", metrics, output, (train, *settings)


def test_kto_trains(kto):
    _, metrics, output, _ = kto
    # at the start the policy is the reference: v(x, y) = sigmoid(0)
    assert metrics[1]["actor/loss"] == pytest.approx(0.5, abs=1e-6) and metrics[1]["rewards/kl"] == 0
    assert "weighted, 0.6 to 1" in output and "undesirable_weight" not in output
    assert metrics[3]["val/loss"] < metrics[0]["val/loss"]


@pytest.mark.slow
def test_kto_goes_on_from_a_checkpoint(kto, tiny_model_dir, tmp_path):
    out, whole, _, command = kto
    again = from_step(2, out, tmp_path / "again")
    resumed, _ = run(tiny_model_dir, again, *command, "trainer.val_before_train=False")
    assert sorted(resumed) == [3]
    for name in ("actor/loss", "rewards/kl", "rewards/unpaired"):
        assert resumed[3][name] == pytest.approx(whole[3][name], rel=1e-6, abs=1e-6), name


def test_pairs_and_answers_with_a_verdict_train_in_one_run(tiny_model_dir, tmp_path):
    files = f"[{written(tmp_path / 'pairs.jsonl', pairs(4))},{written(tmp_path / 'verdicts.jsonl', verdicts(8))}]"
    loss = ("+algorithm.dpo.loss_type=[sigmoid,bco]", "+algorithm.dpo.loss_weights=[1.0,0.5]")
    metrics, output = run(
        tiny_model_dir, tmp_path / "run", files, *loss, "data.train_batch_size=6", "trainer.total_training_steps=2"
    )
    assert "4 pairs, 8 single answers" in output
    assert {"rewards/margins", "rewards/unpaired", "rewards/shift"} <= metrics[2].keys()
    assert metrics[2]["actor/loss"] < metrics[1]["actor/loss"]
