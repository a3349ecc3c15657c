"""What the reward manager hands on, and what training logs of it."""

import asyncio
import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from verl_aiops.trainers.rl.scored_trainer import part_metrics

TRUTH = json.dumps({"service": "db", "incident_type": "disk_full", "evidence": ["disk 100% used"]})
RIGHT = '{"service": "db", "incident_type": "disk_full"}'


def configuration(**custom):
    settings = {"path": None, "name": "compute_score", **custom}
    return OmegaConf.create({"reward": {"custom_reward_function": settings}})


def score(tokenizer, turns, given=None, **custom):
    """The manager's result for one trajectory as verl's worker hands it over."""
    from verl import DataProto

    from verl_aiops.rewards.managers.triage import AiopsMturnRewardManager

    responses = torch.tensor([tokenizer.encode("any text")])
    batch = TensorDict({"responses": responses, "attention_mask": torch.ones_like(responses)}, batch_size=1)
    fields = np.empty(1, dtype=object)
    fields[0] = {"turns": turns, "round_cut": [0] * len(turns)} if turns is not None else {}
    row = {
        "data_source": np.array(["aiops_mturn"]),
        "reward_model": np.array([{"ground_truth": TRUTH}], dtype=object),
        "extra_info": np.array([{"incident_text": "disk 100% used since 9"}], dtype=object),
        "tool_extra_fields": fields,
    }

    async def go():
        manager = AiopsMturnRewardManager(configuration(**custom), tokenizer, compute_score=given)
        return await manager.run_single(DataProto(batch=batch, non_tensor_batch=row))

    return asyncio.run(go())


def test_rounds_reach_the_reward_and_stay_apart(tokenizer):
    result = score(tokenizer, ['It says "disk 100% used".', RIGHT])
    assert result["reward_score"] == pytest.approx(1.0)
    info = result["reward_extra_info"]
    assert info["round_1"] == 'It says "disk 100% used".' and info["round_2"] == RIGHT
    assert info["acc_main"] == 1.0 and info["evidence"] == 1.0
    assert score(tokenizer, [RIGHT, "no"])["reward_score"] == 0.0


def test_without_rounds_the_response_is_the_answer(tokenizer):
    result = score(tokenizer, None)
    assert result["reward_score"] == 0.0 and result["reward_extra_info"]["round_1"] == ""


def test_every_row_has_the_same_keys_whatever_its_rounds(tokenizer):
    """verl's `compute_rm_score` takes a batch's keys from its first row."""
    rows = [None, [RIGHT], ["a", RIGHT], ["a", "b", "c", RIGHT], ["a", "b", "c", "d", "e", RIGHT]]
    infos = [score(tokenizer, turns)["reward_extra_info"] for turns in rows]
    assert len({tuple(info) for info in infos}) == 1
    for turns, info in zip(rows, infos):
        written = "".join(info[f"round_{at}"] for at in range(1, 5))
        assert all(text in written for text in turns or ())
    assert [infos[2][f"round_{at}"] for at in range(1, 5)] == ["a", RIGHT, "", ""]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_colocated_batch_of_rows_with_one_and_two_rounds_is_scored_whole(tokenizer, order, monkeypatch):
    from verl.experimental.reward_loop import reward_loop

    from verl_aiops.rewards.managers.combined import AiopsCombinedRewardManager
    from verl_aiops.rewards.managers.triage import AiopsMturnRewardManager
    from verl_aiops.rewards.model.combined import CombinedSettings
    from verl_aiops.trainers.rl.reward_rows import scoring_batch

    def row(turns):
        return {
            "prompts": torch.tensor([1, 2]),
            "responses": torch.tensor(tokenizer.encode(turns[-1])),
            "extra_fields": {"turns": turns},
            "raw_prompt": [{"role": "user", "content": "q"}],
            "data_source": "aiops_mturn",
            "reward_model": {"ground_truth": TRUTH},
            "extra_info": {"incident_text": "q"},
            "num_turns": 2,
        }

    async def scores(chunk):
        manager = object.__new__(AiopsCombinedRewardManager)
        AiopsMturnRewardManager.__init__(manager, configuration(), tokenizer)
        manager.settings, manager.client = CombinedSettings.from_config({"mode": "rule_only"}), None
        return [await manager.run_single(chunk[at : at + 1]) for at in range(len(chunk))]

    class Worker:
        class compute_score_batch:
            @staticmethod
            def remote(chunk):
                return asyncio.run(scores(chunk))

    loop = object.__new__(reward_loop.RewardLoopManager)
    loop.reward_model_manager, loop.reward_loop_workers = None, [Worker]
    loop.reward_manager_cls = AiopsCombinedRewardManager
    monkeypatch.setattr(reward_loop.ray, "get", lambda results: results)
    turns = [["I look at it.", RIGHT], [RIGHT]]
    output = loop.compute_rm_score(scoring_batch([row(turns[at]) for at in order], 1))
    assert {"round_1", "round_2", "score"} <= set(output.meta_info["reward_extra_keys"])
    columns = output.non_tensor_batch
    for place, at in enumerate(order):
        assert [columns[f"round_{k}"][place] for k in (1, 2)] == (turns[at] + [""])[:2]


def test_settings_reach_the_reward(tokenizer):
    plain = score(tokenizer, ["", RIGHT])["reward_score"]
    assert score(tokenizer, ["", RIGHT], reward_kwargs={"evidence_weight": 0.0})["reward_score"] > plain


def test_a_reward_of_the_users_own_is_used(tokenizer):
    def mine(data_source, solution_str, ground_truth, extra_info, **kwargs):
        return {"score": 0.25, "turns": float(len(extra_info["turns"]))}

    result = score(tokenizer, ["a", "b"], given=mine, path="mine.py")
    assert result["reward_score"] == 0.25 and result["reward_extra_info"]["turns"] == 2.0


def test_part_metrics():
    rows = [
        {"reward_extra_info": {"score": 1.0, "json_ok": 1.0, "round_1": "x"}, "round_cut": [1, 0]},
        {"reward_extra_info": {"score": 0.5, "json_ok": 0.0, "round_1": "y"}, "round_cut": [0, 0]},
        {"round_cut": [1]},
    ]
    assert part_metrics(rows) == pytest.approx(
        {"reward/score": 0.75, "reward/json_ok": 0.5, "rounds/cut_1": 2 / 3, "rounds/cut_2": 0.0}
    )
    assert part_metrics([]) == {}
