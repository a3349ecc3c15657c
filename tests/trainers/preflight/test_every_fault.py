"""Whatever is wrong with a run is told at once, before Ray, and nothing that only follows from it."""

import json
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import MATHS, TRIAGE, composed, prepare_offline

from verl_aiops.trainers.preflight import entry, offline, online, rl, rows
from verl_aiops.trainers.preflight.checks import Check, Run, run_checks
from verl_aiops.trainers.preflight.common import of_triage

ACTOR, MODEL, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"


@pytest.fixture(autouse=True)
def cpu(monkeypatch, tmp_path):
    """A CPU without a Ray cluster, in a folder of its own."""
    from verl.utils import device

    from verl_aiops.platform import cluster

    monkeypatch.setattr(device, "get_device_name", lambda: "cpu")
    monkeypatch.setattr(cluster, "existing_ray_address", lambda: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def least(tiny_model_dir, tmp_path):
    """least(kind) -> the command line that is enough for a run of that kind."""

    def table(row, name):
        pq.write_table(pa.Table.from_pylist([row] * 8), tmp_path / f"{name}.parquet")
        return [f"data.{key}_files={tmp_path / name}.parquet" for key in ("train", "val")]

    pairs = tmp_path / "pairs.jsonl"
    rows = ({"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(12))
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(kind):
        return {
            "dpo": ["algorithm.adv_estimator=dpo", f"data.train_files={pairs}"],
            "online_dpo": ["algorithm.adv_estimator=online_dpo", *table(TRIAGE, "rl"), f"{ROLLOUT}.n=4"],
            "another task": ["algorithm.adv_estimator=online_dpo", *table(MATHS, "maths"), f"{ROLLOUT}.n=4"],
            "triage": ["algorithm.adv_estimator=grpo", *table(TRIAGE, "rl"), f"{ROLLOUT}.n=4"],
            "reward model": ["+verl_aiops=[grpo_mturn,combined,cpu]", *table(TRIAGE, "rl")],
        }[kind] + ["data.train_batch_size=4", f"{MODEL}.path={tiny_model_dir}"]

    return make


@pytest.fixture
def told(least, monkeypatch):
    """told(kind, *settings) -> the faults that main_ppo's check ends with, one by one."""

    def run(kind, *settings):
        command = [*least(kind), *settings]
        monkeypatch.setattr(entry, "user_keys", lambda: {key.split("=")[0].lstrip("+~") for key in command})
        checked = entry.with_preflight(lambda **_: pytest.fail("verl was not to be reached"))
        with pytest.raises(SystemExit) as end:
            checked(composed(*command), False, False)
        message = end.value.code
        assert isinstance(message, str) and message.startswith("verl-aiops: error: ")
        message = message.removeprefix("verl-aiops: error: ")
        several = re.match(r"(\d+) things keep this run from starting:\n", message)
        if several is None:
            return [message]
        faults = re.split(r"\n  \d+\. ", message.partition("\n  not looked at before these are mended: ")[0])[1:]
        assert len(faults) == int(several[1])
        return faults

    return run


FAULTS = {
    "dpo": {
        f"{MODEL}.use_fused_kernels=True": "use_fused_kernels=True",
        "data.val_files=no/such.parquet": "data.val_files: no such file",
        "data.truncation=middle": "data.truncation='middle'",
        f"{ACTOR}.ppo_mini_batch_size=3": "the first must be a multiple of the second",
        f"{MODEL}.lora_adapter_path=no/adapter": "no LoRA adapter to start from",
        "+algorithm.dpo.betta=1": "did you mean 'beta'",
        "trainer.default_local_dir=/proc/nowhere": "Name a folder that can be written",
        "ray_kwargs.ray_init.num_cpus=2": "ray_kwargs.ray_init.num_cpus=2",
        "custom_reward_function.path=x.py": "custom_reward_function.path is ignored",
    },
    "online_dpo": {
        f"{ACTOR}.use_kl_loss=True": "use_kl_loss",
        f"{ROLLOUT}.n=1": "a preference needs two answers",
        "trainer.n_gpus_per_node=3 trainer.device=cpu": "Make it a multiple of 3",
        f"{ROLLOUT}.tensor_model_parallel_size=4": "tensor_model_parallel_size=4",
        "+trainer.v1.sampler.sampler_kwargs.pol_interval=1": "did you mean 'poll_interval'",
        "data.max_response_length=20": "row i-1",
        "+reward.custom_reward_function.reward_kwargs.fromat_weight=1": "fromat_weight",
        "trainer.rollout_data_dir=/proc/nowhere": "Name a folder that can be written",
        "trainer.resume_mode=maybe": "trainer.resume_mode=maybe",
    },
    "another task": {
        f"{ACTOR}.shuffle=True": "shuffle=True",
        "+algorithm.online_dpo.min_gap=-1": "min_gap=-1",
        f"{ROLLOUT}.tensor_model_parallel_size=4": "tensor_model_parallel_size=4",
        "data.val_files=no/such.parquet": "no/such.parquet does not exist",
        f"+{ROLLOUT}.custom.aiops_mturn.round_token=[40]": "did you mean round_tokens",
        "ray_kwargs.ray_init.num_cpus=2": "ray_kwargs.ray_init.num_cpus=2",
    },
    "triage": {
        f"{ROLLOUT}.n=1": "Set 2 or more",
        "+trainer.v1.sampler.sampler_kwargs.poll_interval=0": "poll_interval=0: expected a number above 0",
        f"{ROLLOUT}.tensor_model_parallel_size=4": "tensor_model_parallel_size=4",
        "data.max_response_length=20": "row i-1",
        "+reward.custom_reward_function.reward_kwargs.fromat_weight=1": "fromat_weight",
        f"{MODEL}.lora_adapter_path=no/adapter": "no LoRA adapter to start from",
        "trainer.validation_data_dir=/proc/nowhere": "Name a folder that can be written",
        "reward_model.enable=True": "reward_model.enable is ignored",
    },
    "reward model": {
        "reward.combined.mode=best": "reward.combined.mode=best",
        "reward.reward_model.model_path=null": "reward.reward_model.model_path is not set",
        "+reward.custom_reward_function.reward_kwargs.fromat_weight=1": "fromat_weight",
        f"{ROLLOUT}.n=1": "Set 2 or more",
        "trainer.default_local_dir=/proc/nowhere trainer.save_freq=1": "Name a folder that can be written",
    },
}


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_is_told_in_one_message(told, kind):
    found = told(kind, *(setting for settings in FAULTS[kind] for setting in settings.split()))
    assert {said: sum(said in fault for fault in found) for said in FAULTS[kind].values()} == dict.fromkeys(
        FAULTS[kind].values(), 1
    )
    assert len(found) == len(FAULTS[kind]) >= 5


def test_every_setting_of_a_section_is_told(told):
    (fault,) = told("dpo", "+algorithm.dpo.betta=1", "+algorithm.dpo.reference=x", "+algorithm.dpo.preflight_rows=-1")
    for said in ("algorithm.dpo.betta: no such", "algorithm.dpo.reference='x'", "algorithm.dpo.preflight_rows=-1"):
        assert said in fault


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("path", ["/no/such/folder", "null", "nobody/nothing"])
def test_nothing_is_told_that_follows_from_a_wrong_model_path(told, monkeypatch, kind, path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rm = ["reward.reward_model.enable=False", "reward.combined.mode=rule_only"] * (kind == "reward model")
    (fault,) = told(kind, f"{MODEL}.path={path}", *rm)
    assert f"{MODEL}.path={'None' if path == 'null' else path}: " in fault


@pytest.mark.parametrize("kind", ["dpo", "online_dpo", "another task", "triage"])
@pytest.mark.parametrize(
    "key, value",
    [
        ("data.train_batch_size", "many"),
        ("data.max_response_length", "null"),
        ("trainer.n_gpus_per_node", "0"),
        (f"{ROLLOUT}.n", "two"),
        (f"{MODEL}.lora_rank", "x"),
        ("trainer.save_freq", "often"),
        ("trainer.total_epochs", "x"),
        (f"{ACTOR}.ulysses_sequence_parallel_size", "x"),
        ("ray_kwargs.ray_init.num_cpus", "some"),
        ("data.apply_chat_template_kwargs", "x"),
        ("trainer.default_local_dir", "null"),
    ],
)
def test_a_value_of_another_kind_is_told_alone(told, kind, key, value):
    (fault,) = told(kind, f"{key}={value}")
    assert fault.startswith(f"{key}={'None' if value == 'null' else value}: expected ")


@pytest.mark.parametrize("kind", ["dpo", "online_dpo", "triage"])
def test_a_number_for_a_text_is_its_text(told, kind):
    found = told(kind, f"{MODEL}.lora_adapter_path=3", f"{MODEL}.lora.merge=True")
    assert "lora_adapter_path=3: no LoRA adapter" in found[0] and len(found) == 1
    (fault,) = told(kind, f"{MODEL}.tokenizer_path=3")
    assert "tokenizer_path=3: no such folder" in fault


@pytest.mark.parametrize("kind", ["online_dpo", "another task", "triage"])
def test_a_rollout_that_verl_has_not_is_told(told, kind):
    (fault,) = told(kind, f"{ROLLOUT}.name=sglan")
    assert "name=sglan: no such rollout (did you mean 'sglang'?)" in fault


def test_what_verl_refuses_is_told_without_a_traceback(least, monkeypatch):
    from verl.utils.config import validate_config

    command = [*least("triage"), "trainer.n_gpus_per_node=3", "trainer.device=cpu"]
    monkeypatch.setattr(entry, "user_keys", lambda: {key.split("=")[0] for key in command})
    with pytest.raises(SystemExit, match="error: verl refuses this run: real_train_batch_size .16. must be divisible"):
        entry.with_preflight(validate_config.__wrapped__)(composed(*command), False, False)


def test_what_could_not_be_looked_at_is_named(least):
    command = [*least("dpo"), f"{MODEL}.path=/no/such/folder", "data.truncation=middle"]
    with pytest.raises(ValueError, match="not looked at before these are mended: .*the rows of data.train_files"):
        prepare_offline(composed(*command), set())


def test_runs_without_a_fault_are_let_through(least, monkeypatch):
    for kind in ("dpo", "online_dpo", "another task", "triage"):
        command, reached = least(kind), []
        monkeypatch.setattr(entry, "user_keys", lambda command=command: {key.split("=")[0] for key in command})
        entry.with_preflight(lambda reached=reached, **arguments: reached.append(arguments))(
            composed(*command), False, False
        )
        assert len(reached) == 1, kind


# --- the lists -----------------------------------------------------------------------------------------------------


def test_what_a_check_needs_stands_before_it(least):
    kinds = {"dpo": offline, "online_dpo": online, "another task": online, "triage": rl, "rows": rows}
    for kind, module in kinds.items():
        before = set()
        for check in module.checks(composed(*least("triage" if kind == "rows" else kind))):
            assert before.issuperset(check.needs), (kind, check.look)
            before.add(check.look)


def test_a_check_is_left_out_where_one_that_it_needs_found_something_or_was_left_out():
    made = []

    def wrong(config, run):
        return ["wrong"]

    def follows(config, run):
        made.append("follows")

    def follows_from_that(config, run):
        made.append("follows from that")

    def other(config, run):
        made.append("other")
        return ["another"]

    checks = [
        Check(wrong, "first"),
        Check(follows, "second", (wrong,)),
        Check(follows_from_that, "third", (follows,)),
        Check(other, "fourth"),
        Check(follows, "fifth", last=True),
    ]
    with pytest.raises(ValueError) as error:
        run_checks(checks, None, Run("dpo", set()))
    assert made == ["other"]
    assert str(error.value) == (
        "2 things keep this run from starting:\n  1. wrong\n  2. another\n"
        "  not looked at before these are mended: second, third, fifth"
    )


# --- the halves ----------------------------------------------------------------------------------------------------


def test_which_runs_of_online_dpo_are_of_triage(least):
    assert of_triage(composed(*least("online_dpo")))
    assert not of_triage(composed(*least("another task"), f"{ROLLOUT}.name=hf"))
    assert of_triage(composed(*least("another task"), "reward.reward_manager.name=aiops_combined"))


WITHOUT = """
import importlib, importlib.abc, json, pathlib, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("verl_aiops.rewards", "verl_aiops.incidents", "verl_aiops.trainers.triage")):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Blocked())
import verl
from hydra import compose, initialize_config_module
from verl.utils import config as verl_config
import verl_aiops.trainers.preflight as preflight
for file in sorted(pathlib.Path(preflight.__file__).parent.glob("*.py")):
    importlib.import_module(f"verl_aiops.trainers.preflight.{file.stem}")
from verl_aiops.trainers.preflight import offline, online
from verl_aiops.trainers.preflight.checks import Run, run_checks

for kind, room, command in zip(("dpo", "online_dpo"), (offline, online), json.loads(sys.argv[1])):
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=command)
    run_checks(room.checks(config), config, Run(kind, {key.split("=")[0] for key in command}))
    print("READY", config.trainer.v1.trainer_mode, config.reward.reward_manager.name)
print(sorted(name for name in sys.modules if name.startswith(("verl_aiops.rewards", "verl_aiops.incidents"))))
"""


def test_preference_runs_are_checked_where_rewards_and_incidents_are_not_there(least, tmp_path):
    commands = [least("dpo"), [*least("another task"), f"{ROLLOUT}.name=hf"]]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT, json.dumps(commands)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("READY")] == ["READY dpo naive", "READY online_dpo naive"]
    assert lines[-1] == "[]"
