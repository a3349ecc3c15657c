"""verl's stock main_ppo with a reward model beside the rule, on CPU: colocated, in its own pool, and failing."""

import json
import math
import re

import pyarrow.parquet as pq
import pytest
import torch
from eval_harness import completion, listening_app, serving
from rl_runs import ONLINE, run
from written_rows import rows_in

from verl_aiops.data.scoring import conversation, scoring_ids, scoring_text
from verl_aiops.rollout.hf.score_server import application

pytestmark = pytest.mark.e2e


def make_reward_model(folder, poisoned=None, seed=1):
    """A tiny random reward model; texts with the token ``poisoned`` score NaN."""
    from tiny import make_tokenizer
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=4096,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(config)
    if poisoned is not None:
        with torch.no_grad():
            model.model.embed_tokens.weight[poisoned] = math.nan
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    return make_reward_model(tmp_path_factory.mktemp("rm"))


def with_rm(folder, *more):
    return [
        "actor_rollout_ref.rollout.n=4",
        "reward.reward_manager.name=aiops_combined",
        "reward.reward_model.enable=True",
        f"reward.reward_model.model_path={folder}",
        *more,
    ]


def raw_score(folder, row, rows_of_data):
    """The model's own score of a dumped answer, in one forward pass."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (source,) = [r for r in rows_of_data if r["prompt"][-1]["content"].strip() in row["input"]]
    messages = conversation(source["prompt"], [row["round_1"], row["round_2"]], source["extra_info"]["rounds"])
    ids = torch.tensor([scoring_ids(tokenizer, scoring_text(tokenizer, messages))])
    with torch.no_grad():
        return model(ids).logits.item()


@pytest.fixture(scope="module")
def grpo(data, tiny_model_dir, reward_model, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("grpo_rm")
    options = ["+reward.combined.mode=gated", "+reward.combined.normalise=running", "trainer.total_training_steps=2"]
    metrics, _ = run(
        data, tiny_model_dir, out, *with_rm(reward_model, *options), "trainer.test_freq=2", "trainer.save_freq=2"
    )
    return out, metrics


def test_a_colocated_reward_model_and_the_rule_make_one_score(grpo, data, reward_model):  # noqa: F811
    out, metrics = grpo
    source = pq.read_table(data / "rl.parquet").to_pylist()
    rows = rows_in(out / "rollouts" / "1.jsonl")
    assert len(rows) == 16 and len({row["rm_raw"] for row in rows}) > 8
    for row in rows[::5]:
        assert row["rm_raw"] == pytest.approx(raw_score(reward_model, row, source), abs=1e-4)
    for row in rows:
        # before the first step nothing is known of the scores: mean 0, deviation 1
        assert row["rm"] == pytest.approx(1 / (1 + math.exp(-row["rm_raw"])), abs=1e-6)
        counted = row["rm"] if row["json_ok"] else 0.0
        assert row["score"] == pytest.approx(0.5 * row["rule"] + 0.5 * counted, abs=1e-5)
        assert row["rm_failed"] == 0.0 and row["rm_error"] == ""
    for name in ("rule", "rm", "rm_raw", "rm_failed", "json_ok", "score", "acc_main"):
        assert f"reward/{name}" in metrics[1], name
        assert any(key.startswith(f"val-aux/aiops_mturn/{name}/mean") for key in metrics[2]), name
    assert metrics[1]["reward/failed_rows"] == 0.0
    assert metrics[1]["critic/score/mean"] == pytest.approx(metrics[1]["reward/score"], abs=1e-6)


def test_the_second_step_is_normalised_by_the_first(grpo):
    import json
    import statistics

    out, _ = grpo
    raw = [row["rm_raw"] for row in rows_in(out / "rollouts" / "1.jsonl")]
    mean, std = statistics.fmean(raw), statistics.pstdev(raw)
    second = rows_in(out / "rollouts" / "2.jsonl")
    for row in second:
        assert row["rm"] == pytest.approx(1 / (1 + math.exp(-(row["rm_raw"] - mean) / std)), abs=1e-5)
    kept = json.loads((out / "global_step_2" / "reward_moments.json").read_text())
    assert kept["count"] == 32
    assert kept["total"] == pytest.approx(sum(raw) + sum(row["rm_raw"] for row in second), rel=1e-6)


@pytest.mark.slow
def test_an_ensemble_and_a_judge_rank_the_answers_of_one_run(data, tiny_model_dir, reward_model, tmp_path):  # noqa: F811
    """Each through its own server; what both say of an answer is in the dumped rows, and is their servers'."""
    other = make_reward_model(tmp_path / "other", seed=2)
    source = pq.read_table(data / "rl.parquet").to_pylist()

    def mark(text):
        return text.count("e") % 11

    def judge(body, number):
        prompt = body["messages"][0]["content"]
        lines = prompt.split("\n")
        (at,) = [at for at, line in enumerate(lines) if line.endswith("===== ANSWER")]
        word = re.findall(r"^(VERDICT-[0-9a-f]{16}):", prompt, re.M)[-1]
        return 200, completion(f"{word}: {mark(json.loads(lines[at + 1]))}")

    with listening_app(application(str(other))) as port, serving(judge) as server:
        member = f'{{path:"{other}",address:"127.0.0.1:{port}",server:hf}}'
        options = ["+reward.combined.mode=weighted", f"+reward.combined.members=[{member}]"]
        options += ["+reward.combined.ensemble=mean_minus_std", "+algorithm.online_dpo.members_agree=True"]
        options += ["reward.custom_reward_function.path=pkg://verl_aiops.rewards.model.judge_reward"]
        kwargs = "+reward.custom_reward_function.reward_kwargs"
        options += [f"{kwargs}.url={server.url}/chat/completions", f"{kwargs}.model=judge"]
        options += ["trainer.total_training_steps=1", "trainer.val_before_train=False"]
        settings = [*ONLINE, *with_rm(reward_model, *options)]
        metrics, _ = run(data, tiny_model_dir, tmp_path / "out", *settings, estimator="online_dpo")
    rows = rows_in(tmp_path / "out" / "rollouts" / "1.jsonl")
    assert len(rows) == 16 and len({row["rule"] for row in rows}) > 2
    for row in rows:
        assert row["rule"] == pytest.approx(mark(row["round_2"]) / 10)
    for row in rows[::5]:
        members = [1 / (1 + math.exp(-raw_score(folder, row, source))) for folder in (reward_model, other)]
        assert [row["rm_member_0"], row["rm_member_1"]] == pytest.approx(members, abs=1e-4)
        spread = abs(members[0] - members[1]) / 2
        assert row["rm_spread"] == pytest.approx(spread, abs=1e-4)
        assert row["rm"] == pytest.approx(sum(members) / 2 - spread, abs=1e-4)
        assert row["score"] == pytest.approx(0.5 * row["rule"] + 0.5 * row["rm"], abs=1e-5)
    assert metrics[1]["reward/rm_failed"] == 0.0 and metrics[1]["reward/rm_spread"] > 0
    pairs = metrics[1]["pairs/used"] + metrics[1]["pairs/members_differ"]
    assert pairs == 4, "the members agree on a pair, or it is counted and not trained on"


@pytest.mark.slow
def test_online_dpo_with_a_reward_model_in_its_own_pool(data, tiny_model_dir, reward_model, tmp_path):  # noqa: F811
    options = ["+reward.combined.mode=rm_tiebreak", "reward.reward_model.enable_resource_pool=True"]
    settings = [*ONLINE, *with_rm(reward_model, *options), "trainer.total_training_steps=2"]
    metrics, _ = run(data, tiny_model_dir, tmp_path, *settings, estimator="online_dpo")
    for step in (1, 2):
        # a random model's answers tie under the rule; the reward model makes the pairs
        assert metrics[step]["pairs/prompts_with_pair"] == 1.0 and metrics[step]["pairs/failed_rows"] == 0
        assert 0 < metrics[step]["score/gap"] <= 1 and metrics[step]["reward/rm_failed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["grpo", "online_dpo"])
def test_answers_that_the_reward_model_fails_on_are_left_out_and_counted(data, tiny_model_dir, tmp_path, estimator):  # noqa: F811
    from tiny import make_tokenizer

    poisoned = make_reward_model(tmp_path / "rm", make_tokenizer().encode("q")[0])
    options = ["+reward.combined.mode=rm_only", "+reward.combined.on_failure=drop", "+reward.combined.attempts=1"]
    options += ["+reward.combined.max_failed_share=0.9", "trainer.total_training_steps=2", "trainer.test_freq=2"]
    more = ["+algorithm.online_dpo.max_failed_share=0.9"] if estimator == "online_dpo" else []
    metrics, output = run(data, tiny_model_dir, tmp_path, *with_rm(poisoned, *options), *more, estimator=estimator)
    key = "pairs/failed_rows" if estimator == "online_dpo" else "reward/failed_rows"
    failed = [metrics[step][key] for step in (1, 2)]
    assert 0 < sum(failed) < 32
    if estimator == "grpo":
        assert "answers have no score and are left out" in output
        assert all(math.isfinite(metrics[step]["actor/grad_norm"]) for step in (1, 2))
    assert math.isfinite(metrics[2]["val-core/aiops_mturn/acc/mean@1"])


@pytest.mark.slow
def test_a_failed_answer_ends_the_run_with_its_reason(data, tiny_model_dir, tmp_path):  # noqa: F811
    from tiny import make_tokenizer

    poisoned = make_reward_model(tmp_path / "rm", make_tokenizer().encode("e")[0])
    with pytest.raises(AssertionError, match="answers of step [01] have no score: no score from the reward model at"):
        run(data, tiny_model_dir, tmp_path, *with_rm(poisoned, "+reward.combined.attempts=1"))
