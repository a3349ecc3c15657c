"""Answers without a score: who is left out, who is left alone, and what a colocated reward model is shown."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from verl_aiops.rewards.model.combined import CombinedSettings
from verl_aiops.trainers.rl.reward_rows import (
    final_outputs,
    reward_failures,
    score_row,
    scoring_batch,
    session_of,
)
from verl_aiops.trainers.rl.reward_side import RewardSide
from verl_aiops.trainers.rl.scored_trainer import ScoredTrainer
from verl_aiops.trainers.triage.combined_side import CombinedSide

NAN = math.nan
N3 = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 3}}})


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
    trainer = SimpleNamespace(config=N3, drawn=0)
    assert ScoredTrainer._asked(trainer, ["a_0_0", "a_1_0", "a_1_1", "a_2_0", "b_0_0"]) == (6, 2)
    assert ScoredTrainer._asked(trainer, ["a_0_0", "a_1_0", "a_2_0", "a_3_0"]) == (4, 0)


def test_answers_are_counted_against_what_was_drawn_where_a_prompt_has_none_left():
    trainer = SimpleNamespace(config=N3, drawn=4)
    assert ScoredTrainer._asked(trainer, ["a_0_0", "a_1_0", "a_2_0", "b_0_0", "b_1_0", "b_2_0"]) == (12, 6)
    assert ScoredTrainer._asked(trainer, []) == (12, 12)


def test_an_answer_whose_siblings_never_came_is_alone():
    keys = ["a_0_0", "b_0_0", "b_1_0"]
    found = reward_failures(keys, [0.5, 1.0, 0.0], [{}] * 3, compared=True, group_size=2)
    assert found.failed == () and found.alone == ("a_0",) and found.kept == ("b_0_0", "b_1_0")
    assert reward_failures(keys, [0.5, 1.0, 0.0], [{}] * 3, compared=False, group_size=2).alone == ()


def trained_on(keys, drawn, monkeypatch, combined=None):
    """What a step keeps of rows with these keys, and what it logs."""
    from transfer_queue import KVBatchMeta
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.rl import scored_trainer

    def rows(keys, **_):
        scores = torch.nested.as_nested_tensor([torch.tensor([0.5])] * len(keys), layout=torch.jagged)
        return tu.get_tensordict({"rm_scores": scores, "extra_fields": [{"reward_extra_info": {}} for _ in keys]})

    monkeypatch.setattr(scored_trainer.tq, "kv_batch_get", rows)
    monkeypatch.setattr(scored_trainer.tq, "kv_clear", lambda **_: None)
    trainer = object.__new__(ScoredTrainer)
    trainer.config = OmegaConf.merge(N3, {"algorithm": {"adv_estimator": "grpo"}})
    trainer.drawn, trainer.global_steps = drawn, 7
    trainer.reward_side = RewardSide() if combined is None else CombinedSide(combined)
    metrics = {}
    return trainer._with_scores(KVBatchMeta(list(keys), [{} for _ in keys], "train"), metrics).keys, metrics


ALL_OF_TWO = [f"{uid}_{session}_0" for uid in "ab" for session in range(3)]


def test_a_step_whose_prompts_came_whole_is_trained_on(monkeypatch):
    keys, metrics = trained_on(ALL_OF_TWO, 2, monkeypatch)
    assert keys == ALL_OF_TWO and metrics["reward/missing_rows"] == 0.0


@pytest.mark.parametrize(
    "keys, drawn, lost", [(ALL_OF_TWO, 4, "6 of 12"), (ALL_OF_TWO[1:], 2, "1 of 6"), ([], 2, "6 of 6")]
)
@pytest.mark.parametrize("combined", [None, {}])
def test_answers_that_never_came_stop_the_run_as_failed_ones_do(keys, drawn, lost, combined, monkeypatch):
    settings = None if combined is None else CombinedSettings.from_config({"mode": "rule_only"})
    with pytest.raises(RuntimeError, match=f"{lost} answers of step 7 have no score.*raised"):
        trained_on(keys, drawn, monkeypatch, settings)


def test_answers_that_never_came_are_left_out_up_to_the_share_that_may_be(monkeypatch, capsys):
    drop = {"mode": "rule_only", "on_failure": "drop", "max_failed_share": 0.4}
    keys, metrics = trained_on(["a_1_0", *ALL_OF_TWO[3:]], 2, monkeypatch, CombinedSettings.from_config(drop))
    assert keys == ALL_OF_TWO[3:] and metrics["reward/missing_rows"] == 2.0 and metrics["reward/alone_rows"] == 1.0
    assert "2 never came" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="6 of 12"):
        trained_on(ALL_OF_TWO, 4, monkeypatch, CombinedSettings.from_config(drop))


def validated(came, expected, monkeypatch):
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    monkeypatch.setattr(PPOTrainerSync, "_val_metrics_update", lambda *args, **kwargs: {})
    trainer = object.__new__(ScoredTrainer)
    trainer.reward_side, trainer.global_steps = RewardSide(), 7
    uids = [f"u{at}" for at in range(came)]
    counts = {("aiops_mturn", f"u{at}"): 1 for at in range(expected)}
    infos = {"reward": [0.5] * came}
    return trainer._val_metrics_update(["aiops_mturn"] * came, uids, infos, [2] * came, expected_acc_counts=counts)


def test_answers_that_never_came_stop_a_validation(monkeypatch):
    assert validated(4, 4, monkeypatch)["val-aux/reward/missing_rows"] == 0.0
    with pytest.raises(RuntimeError, match="validation: 2 of 4 answers"):
        validated(2, 4, monkeypatch)
