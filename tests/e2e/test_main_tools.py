"""verl's stock main_ppo with investigations on CPU: GRPO over conversations with tools."""

import json
import math

import pytest
from rl_runs import STEPS, run
from written_rows import rows_in

pytestmark = pytest.mark.e2e

# A random model never calls. This format takes every other message of one for a call, so that answers of tools stand in
# the trajectories; and the reward gives them something to be better or worse at.
MODULE = """
from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser


@ToolParser.register("any")
class AnyText(ToolParser):
    async def extract_tool_calls(self, responses_ids, tools=None):
        calls = [FunctionCall(name=tools[0].function.name, arguments="{}")] if len(responses_ids) % 2 else []
        return self.tokenizer.decode(responses_ids), calls
"""
REWARD = """
from verl_aiops.rewards.aiops_investigation import compute_score as real

def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    parts = real(data_source, solution_str, ground_truth, extra_info)
    return {**parts, "score": min(1.0, sum(text.count("e") for text in extra_info["turns"]) / 40)}
"""
TOOLS = (
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.rollout.multi_turn.format=any",
    "+actor_rollout_ref.rollout.custom.aiops_tools={max_calls: 2, turn_tokens: 21, verdict_tokens: 24}",
    "data.max_prompt_length=1800",
    "data.max_response_length=900",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from verl_aiops.cli.main import main

    folder = tmp_path_factory.mktemp("tools")
    build = ["build-rl", "--task", "investigation", "--out", str(folder / "rl.parquet"), "--num-incidents", "40"]
    assert main([*build, "--answer-chars", "300", "--difficulty", "easy"]) == 0
    (folder / "own_format.py").write_text(MODULE)
    (folder / "reward.py").write_text(REWARD)
    return folder


@pytest.fixture
def own_format(data, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "own_format")
    monkeypatch.setenv("PYTHONPATH", str(data), prepend=":")


def test_grpo_with_tools(data, tiny_model_dir, tmp_path, own_format):
    metrics, output = run(
        data,
        tiny_model_dir,
        tmp_path,
        "+algorithm.logprob_backend=auto",
        "trainer.total_training_steps=2",
        *TOOLS,
    )
    assert sorted(metrics) == [0, 1, 2]
    assert "each prompt goes through the model once" in output
    for step in (1, 2):
        # answers of tools between them, the trainer's log-probs of what was sampled are the rollout's, with the model's
        # first weights and with those of an update
        assert metrics[step]["training/rollout_probs_diff_max"] < 1e-4, step
        assert metrics[step]["perf/shared_tokens_ratio"] < 0.9 and metrics[step]["actor/grad_norm"] > 0
        assert 0 < metrics[step]["reward/calls"] <= 2 and metrics[step]["reward/failed_calls"] == 0
    assert metrics[0]["val-core/aiops_investigation/acc/mean@1"] == 0.0
    rows = rows_in(tmp_path / "rollouts" / "1.jsonl")
    assert len(rows) == 4 * 4
    for row in rows:
        made = json.loads(row["investigation"])
        assert len(made["turns"]) == len(made["turn_calls"]) and made["turns"][0] == row["round_1"]
        assert all(call["ok"] and call["reply"] in row["output"] for call in made["tool_calls"])
        assert len(made["tool_calls"]) == sum(made["turn_calls"][:2])


@pytest.mark.slow
def test_online_dpo_with_tools(data, tiny_model_dir, tmp_path, own_format):
    metrics, output = run(
        data,
        tiny_model_dir,
        tmp_path,
        *TOOLS,
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        estimator="online_dpo",
    )
    assert sorted(metrics) == list(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        m = metrics[step]
        assert m["pairs/used"] > 0 and m["score/chosen"] > m["score/rejected"] and m["actor/grad_norm"] > 0
        assert 0 < m["reward/calls"] <= 2 and m["reward/failed_calls"] == 0
    # policy and reference are one before the first step, over whole conversations with what the tools returned in them
    assert metrics[1]["actor/loss"] == pytest.approx(math.log(2), abs=1e-3) and metrics[STEPS]["kl/reference"] != 0
    assert f"trained model: {tmp_path / 'huggingface'}" in output
