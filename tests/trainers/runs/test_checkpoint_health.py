"""Damaged checkpoints are named before Ray starts, with the one that would do."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.runs.checkpoint_health import check_checkpoint, find_checkpoint, steps_in


@pytest.fixture
def config(tmp_path):
    def make(ranks=1, nodes=1, estimator="dpo", contents=("model", "optimizer", "extra"), **trainer):
        part = {"strategy": "fsdp2", "checkpoint": {"load_contents": list(contents)}}
        defaults = {"resume_mode": "auto", "resume_from_path": None, "default_local_dir": str(tmp_path / "run")}
        return OmegaConf.create(
            {
                "trainer": {**defaults, "n_gpus_per_node": ranks, "nnodes": nodes, **trainer},
                "actor_rollout_ref": {"actor": part},
                "critic": part,
                "algorithm": {"adv_estimator": estimator},
            }
        )

    return make


@pytest.fixture
def saved(tmp_path):
    """saved(4, 8): checkpoints as verl and the preference trainers leave them; the last one is in the tracker."""
    run = tmp_path / "run"

    def make(*steps, ranks=1, critic=False):
        for step in steps:
            folder = run / f"global_step_{step}"
            for part in ("actor", "critic") if critic else ("actor",):
                (folder / part).mkdir(parents=True)
                for kind in ("model", "optim", "extra_state"):
                    for rank in range(ranks):
                        file = folder / part / f"{kind}_world_size_{ranks}_rank_{rank}.pt"
                        torch.save({"x": torch.arange(50000.0), "step": step}, file)
            (folder / "reference.json").write_text(json.dumps({"weights": "aa"}))
            torch.save({"pairs": 10}, folder / "data.pt")
        (run / "latest_checkpointed_iteration.txt").write_text(str(steps[-1]))
        return run

    return make


def refusal(config, preference=True):
    with pytest.raises(ConfigError) as error:
        check_checkpoint(config, preference=preference)
    return str(error.value)


def test_whole_checkpoints_and_none_pass(config, saved, tmp_path):
    assert find_checkpoint(config(), preference=True) == (None, [])
    run = saved(4, 8)
    for preference in (True, False):
        assert find_checkpoint(config(), preference=preference) == (run / "global_step_8", [])
        check_checkpoint(config(), preference=preference)
    named = config(resume_mode="resume_path", resume_from_path=f"{run}/global_step_4/")
    check_checkpoint(named, preference=True)
    assert named.trainer.resume_from_path == f"{run}/global_step_4"  # verl reads the number off the end


@pytest.mark.parametrize("content", [b"", b"\n", b"eight", b"8.0", b"\xff\xfe8", b"\0\0\0\0"])
def test_a_tracker_without_a_number(config, saved, content):
    run = saved(4, 8)
    (run / "latest_checkpointed_iteration.txt").write_bytes(content)
    message = refusal(config())
    assert f"{run}/latest_checkpointed_iteration.txt holds no number" in message
    assert f"trainer.resume_mode=resume_path trainer.resume_from_path={run}/global_step_8" in message


def test_a_tracker_that_names_what_is_not_there(config, saved):
    run = saved(4, 8)
    (run / "latest_checkpointed_iteration.txt").write_text("12")
    message = refusal(config())
    assert "names global_step_12, which is not there" in message and f"resume_from_path={run}/global_step_8" in message


def test_checkpoints_without_a_tracker_are_not_written_over(config, saved):
    run = saved(4, 8)
    (run / "latest_checkpointed_iteration.txt").unlink()
    assert f"resume_from_path={run}/global_step_8" in refusal(config())
    for step in (4, 8):  # cut short by the end of the run: nothing to lose
        (run / f"global_step_{step}" / "data.pt").unlink()
    assert find_checkpoint(config(), preference=True) == (None, [])
    (line,) = find_checkpoint(config(), preference=False)[1]
    assert "2 unfinished checkpoint(s)" in line and "step 0" in line


FILES = [
    "reference.json",
    "data.pt",
    "actor/model_world_size_1_rank_0.pt",
    "actor/optim_world_size_1_rank_0.pt",
    "actor/extra_state_world_size_1_rank_0.pt",
]


@pytest.mark.parametrize("damage", ["cut", "half", "empty", "gone", "zeroes", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_with_the_checkpoint_that_would_do(config, saved, name, damage):
    run = saved(4, 8)
    file = run / "global_step_8" / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "flipped":
        if name == "reference.json":
            content = content.replace(b"}", b"]")
        at = len(content) // 2
        file.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    else:
        left = {"cut": len(content) - 1, "half": len(content) // 2, "empty": 0, "zeroes": 0}[damage]
        file.write_bytes(content[:left] + b"\0" * (len(content) if damage == "zeroes" else 0))
    message = refusal(config())
    assert f"checkpoint {run}/global_step_8: {name} " in message
    assert f"resume_from_path={run}/global_step_4" in message and "Traceback" not in message
    asked = config(resume_mode="resume_path", resume_from_path=str(run / "global_step_8"))
    assert f"{name} " in refusal(asked) and "global_step_4 is whole" in refusal(asked)
    check_checkpoint(config(resume_mode="disable"), preference=True)


def test_nothing_else_would_do(config, saved):
    run = saved(4)
    (run / "global_step_4" / "data.pt").write_bytes(b"")
    assert f"No other checkpoint in {run} is whole" in refusal(config())


def test_every_rank_has_its_files(config, saved):
    run = saved(4, 8, ranks=2)
    check_checkpoint(config(ranks=2), preference=True)
    (run / "global_step_8" / "actor" / "optim_world_size_2_rank_1.pt").unlink()
    message = refusal(config(ranks=2))
    assert "actor/optim_world_size_2_rank_1.pt is not there" in message and "global_step_4 is whole" in message
    # each machine may hold its own ranks' files
    check_checkpoint(config(ranks=1, nodes=2), preference=True)
    assert "written by 2 worker(s), and this run has 1" in refusal(config(ranks=1))


def test_what_is_not_loaded_may_be_missing(config, saved):
    run = saved(8)
    (run / "global_step_8" / "actor" / "optim_world_size_1_rank_0.pt").unlink()
    assert "optim" in refusal(config())
    check_checkpoint(config(contents=["model", "extra"]), preference=True)


def test_a_critic_counts_where_there_is_one(config, saved):
    run = saved(8, critic=True)
    (run / "global_step_8" / "critic" / "model_world_size_1_rank_0.pt").write_bytes(b"PK")
    assert "critic/model_world_size_1_rank_0.pt is damaged" in refusal(config(estimator="gae"), preference=False)
    check_checkpoint(config(estimator="grpo"), preference=False)


def test_another_trainers_checkpoint_is_no_preference_run(config, saved):
    run = saved(8)
    (run / "global_step_8" / "reference.json").unlink()
    assert "no checkpoint of a preference run" in refusal(config())
    check_checkpoint(config(), preference=False)


@pytest.mark.parametrize(
    "path", [None, "", "elsewhere/global_step_4", "run/global_step_x", "run", "run/global_step_4/actor"]
)
def test_a_path_that_is_no_checkpoint(config, saved, path, monkeypatch, tmp_path):
    saved(4)
    monkeypatch.chdir(tmp_path)
    assert "resume_from_path" in refusal(config(resume_mode="resume_path", resume_from_path=path))


def test_steps_are_in_order(saved):
    assert list(steps_in(saved(8, 10, 100))) == [8, 10, 100]
