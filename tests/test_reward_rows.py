"""Answers without a score: who is left out, who is left alone, and what a colocated reward model is shown."""

import math

import numpy as np
import torch

from verl_aiops.trainers.reward_rows import (
    final_outputs,
    reward_failures,
    score_row,
    scoring_batch,
    session_of,
)

NAN = math.nan


def test_final_outputs_of_sessions():
    keys = ["a-b_0_0", "a-b_0_1", "a-b_1_0", "x_10_2", "x_10_10", "x_10_9"]
    assert final_outputs(keys) == ["a-b_0_1", "a-b_1_0", "x_10_10"]


def test_a_failed_answer_takes_its_whole_session_and_nothing_else():
    keys = ["a_0_0", "a_0_1", "a_1_0", "a_2_0", "b_0_0", "b_1_0"]
    scores = [NAN, NAN, 0.5, 0.2, 1.0, 0.0]
    infos = [{"rm_error": ""}, {"rm_error": "HTTP 500"}, {}, {}, {}, {}]
    found = reward_failures(keys, scores, infos, compared=True)
    assert found.failed == ("a_0",) and found.alone == () and found.reason == "its score is nan"
    assert found.kept == ("a_1_0", "a_2_0", "b_0_0", "b_1_0")


def test_an_answer_that_failures_leave_alone_goes_too_where_answers_are_compared():
    keys = ["a_0_0", "a_1_0", "b_0_0", "b_1_0", "c_0_0"]
    scores = [math.inf, 0.5, 1.0, 0.0, 0.3]
    infos = [{"rm_error": "gone"}, *[{}] * 4]
    found = reward_failures(keys, scores, infos, compared=True)
    assert found.failed == ("a_0",) and found.alone == ("a_1",) and found.reason == "gone"
    assert found.kept == ("b_0_0", "b_1_0", "c_0_0")  # c has one answer by itself: no failure's doing
    alone = reward_failures(keys, scores, infos, compared=False)
    assert alone.alone == () and "a_1_0" in alone.kept


def test_nothing_failed():
    found = reward_failures(["a_0_0"], [0.0], [{}], compared=True)
    assert (found.failed, found.alone, found.kept, found.reason) == ((), (), ("a_0_0",), "")


def test_the_score_sits_on_the_last_token_that_the_model_wrote():
    assert score_row(torch.tensor([1, 1, 0, 0, 1, 1, 0]), 0.5).tolist() == [0, 0, 0, 0, 0, 0.5, 0]
    assert score_row(torch.tensor([1]), -1.0).tolist() == [-1.0]
    assert score_row(torch.tensor([0, 0]), 1.0).tolist() == [0, 0]
    assert score_row(torch.tensor([], dtype=torch.int64), 1.0).tolist() == []
    assert math.isnan(score_row(torch.tensor([1, 0]), NAN).sum())


def test_colocated_rows_look_like_those_of_the_agent_loop():
    rows = [
        {
            "prompts": torch.arange(1, length + 1),
            "responses": torch.arange(1, answer + 1),
            "raw_prompt": [{"role": "user", "content": str(length)}],
            "data_source": "aiops_mturn",
            "reward_model": {"ground_truth": "{}"},
            "extra_info": {"rounds": []},
            "num_turns": 2,
            "extra_fields": {"turns": ["x"]},
        }
        for length, answer in ((3, 2), (1, 4), (2, 0))
    ]
    batch = scoring_batch(rows, global_steps=7)
    width = batch.batch["responses"].shape[-1]
    for at, row in enumerate(rows):
        item = batch[at]
        count = int(item.batch["attention_mask"][-width:].sum())
        assert item.batch["responses"][:count].tolist() == row["responses"].tolist()
        assert int(item.batch["attention_mask"][:-width].sum()) == len(row["prompts"])
        other = item.non_tensor_batch
        assert other["raw_prompt"] == row["raw_prompt"] and other["tool_extra_fields"] == {"turns": ["x"]}
        assert other["__num_turns__"] == 2 and other["global_steps"] == 7 and other["data_source"] == "aiops_mturn"
    assert isinstance(batch.non_tensor_batch["raw_prompt"], np.ndarray)


def test_sessions_of_keys():
    assert session_of("a-b_10_3") == "a-b_10"


def test_answers_that_never_came_are_counted():
    from types import SimpleNamespace

    from omegaconf import OmegaConf

    from verl_aiops.trainers.triage import TriageTrainer

    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 3}}})
    trainer = SimpleNamespace(config=config)
    assert TriageTrainer._asked(trainer, ["a_0_0", "a_1_0", "a_1_1", "a_2_0", "b_0_0"]) == (6, 2)
    assert TriageTrainer._asked(trainer, ["a_0_0", "a_1_0", "a_2_0", "a_3_0"]) == (4, 0)
