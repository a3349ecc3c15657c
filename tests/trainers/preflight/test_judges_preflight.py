"""A judge and the members of an ensemble are checked before Ray starts, with what is wrong and how to mend it."""

import json
import shutil
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import TRIAGE, composed, given, prepare_online, prepare_triage

from verl_aiops.trainers.config import ConfigError

JUDGE = "reward.custom_reward_function.path=pkg://verl_aiops.rewards.model.judge_reward"
KWARGS = "+reward.custom_reward_function.reward_kwargs"
URL = f"{KWARGS}.url=http://127.0.0.1:9/v1/chat/completions"


@pytest.fixture
def prepare(tiny_model_dir, tmp_path, monkeypatch):
    """The checks of a run with these overrides; the lines that are shown."""
    from verl.utils import device

    monkeypatch.setattr(device, "get_device_name", lambda: "cpu")
    file = tmp_path / "rl.parquet"
    info = {**TRIAGE["extra_info"], "answers": ["looked", '{"service": "a"}']}
    pq.write_table(pa.Table.from_pylist([{**TRIAGE, "extra_info": info}] * 64), file)

    def run(*overrides, preset="[grpo_mturn,cpu]"):
        everything = [f"+verl_aiops={preset}", f"data.train_files={file}", f"data.val_files={file}"]
        everything += [f"actor_rollout_ref.model.path={tiny_model_dir}", *overrides]
        checked = prepare_online if "online_dpo" in preset else prepare_triage
        return checked(composed(*everything), given(everything))

    return run


@pytest.mark.parametrize("preset", ["[grpo_mturn,cpu]", "[online_dpo,cpu]"])
def test_a_judge_that_can_be_asked_is_taken_and_one_that_is_silent_is_said(prepare, preset):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"{KWARGS}.url=http://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions"
        lines = prepare(JUDGE, url, f"{KWARGS}.model=judge", f"{KWARGS}.mode=pairwise", preset=preset)
    assert not any("judge" in line for line in lines if line.startswith("warning"))
    (said,) = [line for line in prepare(JUDGE, URL, f"{KWARGS}.model=judge", preset=preset) if "judge at" in line]
    assert "cannot be reached from here" in said and "refused" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model=judge"], "reward_kwargs.url is not set: give the judge's address"),
        (["url=http://h:1/v1/chat/completions"], "reward_kwargs.model='': expected the name that the server knows"),
        (["model=j", "url=h:1/v1/chat/completions"], "expected an address as http://host:8000/v1/chat/completions"),
        (["model=j", "url=http://h:1/v1"], r"ends with /chat/completions, as http://h:1/v1/chat/completions"),
        (["model=j", "urll=http://h:1/v1"], "reward_kwargs.urll: no such setting, did you mean url"),
        (["model=j", "mode=both"], "reward_kwargs.mode='both': expected one of pointwise, pairwise"),
        (["model=j", "prompt_file=/no/such/file"], "prompt_file='/no/such/file': expected a file: No such file"),
        (["model=j", "prompt_file=FILE"], "expected a template: the pointwise prompt must have the fields"),
        (["model=j", "cache_dir=FILE"], "cache_dir=.*: expected a folder; there is a file of this name"),
        (["model=j", "timeout_s=0"], "reward_kwargs.timeout_s=0: expected seconds, above 0"),
        (["model=j", "timeout_s=9", "deadline_s=3"], "timeout_s=9: expected at most deadline_s=3"),
        (["model=j", "attempts=0"], "reward_kwargs.attempts=0: expected a whole number, 1 or more"),
        (["model=j", "request_key=text"], "request_key=text: the first row's extra_info has no text there .it has ans"),
        (["model=j", "mode=pairwise", "reference_key=id2"], "reference_key=id2: the first row's extra_info has no"),
    ],
)
def test_a_judge_that_cannot_be_is_told_before_ray_starts(prepare, tmp_path, settings, said):
    file = tmp_path / "template.txt"
    file.write_text("{request}")
    url = [] if any(one.startswith("url") for one in settings) or said.startswith("reward_kwargs.url is") else [URL]
    settings = [f"{KWARGS}.{one.replace('FILE', str(file))}" for one in settings]
    with pytest.raises(ConfigError, match=said):
        prepare(JUDGE, *url, *settings)


@pytest.fixture
def reward_model(tiny_model_dir, tmp_path):
    folder = tmp_path / "rm"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "score"}}
    config |= {"max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_runs_own_reward_model_is_the_judge_where_it_can_write(prepare, reward_model):
    own = ["reward.reward_model.enable=True", f"reward.reward_model.model_path={reward_model}", f"{KWARGS}.model=j"]
    prepare(JUDGE, *own, "reward.reward_model.rollout.name=sglang")
    with pytest.raises(ConfigError, match="rollout.name=hf: a judge has to write; vllm and sglang can"):
        prepare(JUDGE, *own, "reward.reward_model.rollout.name=hf")
    with pytest.raises(ConfigError, match="the rule does not get the reward model"):
        prepare(JUDGE, *own, "reward.reward_model.rollout.name=hf", preset="[grpo_mturn,combined,cpu]")


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ({"server": "trt"}, r"members\[0\].server=trt: expected one of vllm, hf, sglang"),
        ({"address": "http://h:1"}, r"members\[0\].address=http://h:1: expected host:port"),
        ({"address": "h"}, r"members\[0\].address=h: expected host:port"),
        ({"path": "/no/such/folder"}, r"members\[0\].path=/no/such/folder: its tokenizer cannot be loaded"),
        ({"path": "SHORT"}, r"members\[0\].path=.*: takes 100 tokens, less than"),
        ({"normalise": "stored"}, r"members\[0\]: .*normalise=stored: no .*reward_stats.json"),
        ({}, None),
    ],
)
def test_members_are_looked_at_before_ray_starts(prepare, reward_model, tmp_path, member, said):
    short = tmp_path / "short"
    shutil.copytree(reward_model, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100}))
    (reward_model / "reward_stats.json").write_text(json.dumps({"reward_mean": 0.0, "reward_std": 1.0}))
    other = tmp_path / "other"
    shutil.copytree(reward_model, other)
    (other / "reward_stats.json").unlink()
    normalise = member.pop("normalise", "none")
    one = {"path": str(other), "address": "127.0.0.1:9", "server": "hf"} | member
    one["path"] = one["path"].replace("SHORT", str(short))
    written = "{" + ",".join(f'{key}:"{value}"' for key, value in one.items()) + "}"
    settings = [f"reward.reward_model.model_path={reward_model}", f"reward.combined.members=[{written}]"]
    settings += [f"reward.combined.normalise={normalise}"]
    if said is None:
        lines = prepare(*settings, preset="[grpo_mturn,combined,cpu]")
        assert any("members[0] at 127.0.0.1:9 cannot be reached" in line for line in lines)
        return
    with pytest.raises(ConfigError, match=said):
        prepare(*settings, preset="[grpo_mturn,combined,cpu]")


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
def test_scores_that_may_be_missing_need_the_trainer_that_counts_them(prepare, reward_model, mode):
    settings = [f"reward.reward_model.model_path={reward_model}", f"trainer.v1.trainer_mode={mode}"]
    with pytest.raises(ConfigError, match=f"trainer_mode={mode}: .*aiops_combined"):
        prepare(*settings, preset="[grpo_mturn,combined,cpu]")
