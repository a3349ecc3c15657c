"""What loading the plug-in changes in verl, and that verl's side of each change is still what we rely on."""

import copy
import dataclasses
import inspect
import json
import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from stock_runs import GRPO

# Children of one process that has imported what is heavy, but neither verl nor anything of ours: each imports `first`,
# then verl's entry point, and prints what verl's registries hold.
LISTING = """
import json, os, sys
import datasets, hydra, pandas, peft, ray, tensordict, torch, transfer_queue, transformers
import torch.distributed.fsdp, torch.distributed.tensor

def listing():
    from verl.experimental.agent_loop import agent_loop
    from verl.experimental.reward_loop.reward_manager import registry
    from verl.plugin.platform import PlatformRegistry
    from verl.trainer import main_ppo
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.engine import EngineRegistry
    from verl.workers.rollout import base, replica

    def name(thing):
        return f"{thing.__module__}.{thing.__qualname__}"

    registries = {
        "trainers": TRAINER_REGISTRY,
        "estimators": core_algos.ADV_ESTIMATOR_REGISTRY,
        "policy losses": core_algos.POLICY_LOSS_REGISTRY,
        "platforms": PlatformRegistry._platforms,
        "reward managers": registry.REWARD_MANAGER,
        "engines": {
            f"{model}/{backend}/{device}": engine
            for model, backends in EngineRegistry._engines.items()
            for backend, devices in backends.items()
            for device, engine in devices.items()
        },
    }
    names = {kind: {str(key): name(thing) for key, thing in found.items()} for kind, found in registries.items()}
    names["agent loops"] = {key: loop["_target_"] for key, loop in agent_loop._agent_loop_registry.items()}
    names["rollouts"] = {"/".join(key): path for key, path in base._ROLLOUT_REGISTRY.items()}
    names["replicas"] = {key: load.__module__ for key, load in replica.RolloutReplicaRegistry._registry.items()}
    return {**names, "checked": main_ppo.validate_config.__code__.co_filename}

for first, plugins in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if os.fork() == 0:
        os.environ["VERL_USE_EXTERNAL_PLUGINS"] = plugins
        __import__(first)
        print("LISTING", json.dumps([first, plugins, listing()]), flush=True)
        os._exit(0)
    os.wait()
"""
FIRST = ["verl", "verl_aiops.plugin", "verl_aiops.platform.cpu"]
FIRST += [
    "verl_aiops.trainers.dpo.offline",
    "verl_aiops.trainers.worker.engine",
    "verl_aiops.trainers.worker.rows_engine",
    "verl_aiops.trainers.rm.engine",
    "verl_aiops.trainers.rm.trainer",
    "verl_aiops.trainers.rl.scored_trainer",
]
FIRST += ["verl_aiops.trainers.dpo.online"]
FIRST += ["verl_aiops.rewards.managers.triage", "verl_aiops.rollout.hf.replica", "verl_aiops.rollout.rounds.agent_loop"]
FIRST += ["verl_aiops.rollout.tools.agent_loop"]

OURS = {
    "trainers": {
        "dpo": "verl_aiops.trainers.dpo.offline.OfflineDPOTrainer",
        "rm": "verl_aiops.trainers.rm.trainer.RewardModelTrainer",
        "online_dpo": "verl_aiops.trainers.dpo.online.OnlineDPOTrainer",
        "aiops_sync": "verl_aiops.trainers.rl.scored_trainer.ScoredTrainer",
    },
    "estimators": dict.fromkeys(
        ("dpo", "rm", "online_dpo"), "verl_aiops.trainers.dpo.algorithms.compute_dpo_advantage"
    ),
    "policy losses": dict.fromkeys(
        ("dpo", "rm", "online_dpo"), "verl_aiops.trainers.dpo.algorithms.compute_dpo_policy_loss"
    ),
    "platforms": {"cpu": "verl_aiops.platform.cpu.PlatformCPU"},
    "reward managers": {
        "aiops_mturn": "verl_aiops.rewards.managers.triage.AiopsMturnRewardManager",
        "aiops_combined": "verl_aiops.rewards.managers.combined.AiopsCombinedRewardManager",
    },
    "agent loops": {
        "aiops_mturn": "verl_aiops.rollout.rounds.agent_loop.AiopsMturnAgentLoop",
        "aiops_tools": "verl_aiops.rollout.tools.agent_loop.AiopsToolsAgentLoop",
    },
    "rollouts": {"hf/async": "verl_aiops.rollout.hf.replica.HFServerAdapter"},
    "replicas": {"hf": "verl_aiops.plugin"},
    "engines": {
        f"{model}/{backend}/{device}": f"verl_aiops.trainers.{engine}"
        for model, engine in {
            "preference_language_model": "worker.engine.FSDPPreferenceEngine",
            "reward_model": "rm.engine.FSDPRewardEngine",
            "shared_prompt_language_model": "worker.rows_engine.SharedPolicyEngine",
            "shared_prompt_value_model": "worker.rows_engine.SharedValueEngine",
        }.items()
        for backend in ("fsdp", "fsdp2")
        for device in ("cuda", "npu")
    },
}


@pytest.fixture(scope="module")
def listings():
    """{(module imported first, VERL_USE_EXTERNAL_PLUGINS): names in verl's registries}"""
    asked = [("verl", "none"), *((first, "auto") for first in FIRST)]
    environment = {**os.environ, "VERL_PLATFORM": "nvidia", "OMP_NUM_THREADS": "1"}
    environment.pop("VERL_ENGINE_DEVICE", None)
    command = [sys.executable, "-W", "ignore", "-c", LISTING, json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    lines = [line.removeprefix("LISTING ") for line in done.stdout.splitlines() if line.startswith("LISTING ")]
    found = {(first, plugins): names for first, plugins, names in map(json.loads, lines)}
    assert set(found) == set(asked), done.stderr[-3000:]
    return found


# --- registries ----------------------------------------------------------------------------------------------------


def test_verls_own_entries_are_untouched_and_ours_are_added(listings):
    stock, with_us = listings["verl", "none"], listings["verl", "auto"]
    assert "sync" in stock["trainers"] and "grpo" in stock["estimators"] and "vanilla" in stock["policy losses"]
    for kind, ours in OURS.items():
        assert with_us[kind] == {**stock[kind], **ours}, kind
        assert not set(stock[kind]) & set(ours), kind


@pytest.mark.parametrize("first", FIRST[1:])
def test_it_does_not_matter_which_module_is_imported_first(listings, first):
    assert listings[first, "auto"] == listings["verl", "auto"]


def test_main_ppo_checks_configurations_through_us_only_with_the_plug_in(listings):
    assert "verl_aiops" not in listings["verl", "none"]["checked"]
    assert listings["verl", "auto"]["checked"].endswith("verl_aiops/trainers/preflight/entry.py")


def test_ppo_users_get_verls_own_trainer():
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    assert get_trainer_cls("sync") is PPOTrainerSync
    assert PPOTrainerSync.__module__ == "verl.trainer.ppo.v1.trainer_sync"


def test_our_names_resolve_through_verls_functions():
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
    from verl.plugin.platform import PlatformRegistry
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.workers.rollout.base import get_rollout_class
    from verl.workers.rollout.replica import get_rollout_replica_class

    from verl_aiops.platform.cpu import PlatformCPU
    from verl_aiops.rewards.managers.triage import AiopsMturnRewardManager
    from verl_aiops.rollout.hf.replica import HFReplica, HFServerAdapter
    from verl_aiops.trainers.dpo.algorithms import compute_dpo_advantage, compute_dpo_policy_loss
    from verl_aiops.trainers.dpo.offline import OfflineDPOTrainer
    from verl_aiops.trainers.rl.scored_trainer import ScoredTrainer

    assert get_trainer_cls("aiops_sync") is ScoredTrainer
    assert get_reward_manager_cls("aiops_mturn") is AiopsMturnRewardManager
    assert get_rollout_replica_class("hf") is HFReplica and get_rollout_class("hf") is HFServerAdapter
    assert get_trainer_cls("dpo") is OfflineDPOTrainer
    assert get_adv_estimator_fn("dpo") is compute_dpo_advantage
    assert get_policy_loss_fn("dpo") is compute_dpo_policy_loss
    assert PlatformRegistry.get("cpu") is PlatformCPU


def test_the_entry_point_is_the_module_that_registers():
    from importlib.metadata import entry_points

    (ours,) = entry_points(group="verl.plugins", name="verl_aiops")
    assert ours.load().__name__ == "verl_aiops.plugin"


# --- a run that is not ours ----------------------------------------------------------------------------------------


def test_a_grpo_configuration_on_a_gpu_goes_straight_to_verl(monkeypatch, capsys):
    from hydra import compose, initialize_config_module
    from verl.utils import device
    from verl.utils.config import validate_config

    monkeypatch.setattr(device, "get_device_name", lambda: "cuda")
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=GRPO)
    before = copy.deepcopy(config)
    validate_config(config=config, use_reference_policy=False, use_critic=False)
    assert config == before
    assert "verl-aiops" not in capsys.readouterr().out
    config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu = None
    with pytest.raises(Exception, match="ppo_micro_batch_size_per_gpu"):  # verl's own check, and verl's own error
        validate_config(config=config, use_reference_policy=False, use_critic=False)


# --- what verl has no registry for: each replaced function, as verl has it -----------------------------------------


def _replaced(module, name):
    """Our wrapper and verl's function in it."""
    function = getattr(module, name)
    assert inspect.unwrap(function).__module__ == module.__name__
    assert function.__wrapped__ is not None
    return function, function.__wrapped__


def test_verls_validate_config_is_called_as_we_call_it():
    import verl.utils.config as config_module
    from verl.trainer import main_ppo

    ours, verls = _replaced(config_module, "validate_config")
    assert ours.__code__.co_filename.endswith("verl_aiops/trainers/preflight/entry.py")
    names = ["config", "use_reference_policy", "use_critic"]
    assert list(inspect.signature(verls).parameters) == names
    assert inspect.getfullargspec(ours).args == names  # what unwrapping does not show
    assert main_ppo.validate_config is ours
    source = inspect.getsource(main_ppo.main.__wrapped__)
    assert source.index("validate_config(") < source.index("run_ppo(")


def test_verls_process_group_functions_are_called_as_we_call_them():
    import verl.utils.distributed as distributed
    from verl.checkpoint_engine import base
    from verl.trainer import sft_trainer
    from verl.workers import engine_workers

    for name, defaults in (
        ("initialize_global_process_group", {"timeout_second": 36000}),
        ("initialize_global_process_group_ray", {"timeout_second": None, "backend": None}),
    ):
        ours, verls = _replaced(distributed, name)
        for function in (ours, verls):
            own = inspect.signature(function, follow_wrapped=False).parameters
            assert {key: parameter.default for key, parameter in own.items()} == defaults, name
        assert "cpu:gloo,{get_device_name()}:{get_nccl_backend()}" in inspect.getsource(verls)  # why it is replaced
    # by name, after ours was put in its place
    for module in (engine_workers, base):
        assert module.initialize_global_process_group_ray is distributed.initialize_global_process_group_ray
    assert "import initialize_global_process_group\n" in inspect.getsource(sft_trainer)


def test_verls_is_trl_available_is_called_as_we_call_it():
    import verl.utils.import_utils as import_utils
    from verl.models.transformers import monkey_patch
    from verl.utils import model

    ours, verls = _replaced(import_utils, "is_trl_available")
    assert not inspect.signature(verls).parameters
    assert monkey_patch.is_trl_available is model.is_trl_available is ours
    assert "AutoModelForCausalLMWithValueHead" in inspect.getsource(monkey_patch.apply_monkey_patch)


def test_transfer_queue_refuses_to_clear_no_keys_and_ours_does_nothing():
    """When the first no longer holds, the replacement can go."""
    import asyncio

    import transfer_queue
    from transfer_queue.client import AsyncTransferQueueClient
    from verl.trainer.ppo.v1 import trainer_base

    ours, queues = transfer_queue.kv_clear, transfer_queue.kv_clear.__wrapped__
    assert list(inspect.signature(queues).parameters) == ["keys", "partition_id"]
    assert trainer_base.tq.kv_clear is ours
    ours(keys=[], partition_id=None)  # there is no queue that could answer
    retrieve = inspect.unwrap(AsyncTransferQueueClient.async_kv_retrieve_meta)
    with pytest.raises(ValueError, match="empty list"):
        asyncio.run(retrieve(None, keys=[], partition_id="train"))


# --- what the trainer takes for granted of its base class and of main_ppo ------------------------------------------


def test_verls_load_valuehead_model_is_called_as_we_call_it(tiny_model_dir, monkeypatch):
    """verl asks for flash-attn by name; when it heeds the configuration, the replacement can go."""
    import importlib.util

    import torch
    import verl.utils.model as model_module
    from transformers import AutoConfig

    ours, verls = _replaced(model_module, "load_valuehead_model")
    assert list(inspect.signature(verls).parameters) == [
        "local_path",
        "torch_dtype",
        "model_config",
        "trust_remote_code",
    ]
    assert 'attn_implementation="flash_attention_2"' in inspect.getsource(verls)
    config = AutoConfig.from_pretrained(tiny_model_dir, num_labels=1)
    critic = ours(str(tiny_model_dir), torch.float32, config, False)
    assert critic(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(model_module, "is_trl_available", lambda: False)
    with pytest.raises(RuntimeError, match="is not a value head model"):  # verl's own, where flash-attn is there
        ours(str(tiny_model_dir), torch.float32, config, False)


def test_main_ppo_makes_and_runs_the_trainer_as_ours_expects():
    from verl.trainer import main_ppo

    runner = main_ppo.TaskRunnerV1.__ray_metadata__.modified_class
    run, manager = inspect.getsource(runner.run), inspect.getsource(runner.init_agent_loop_manager)
    steps = [
        "get_trainer_cls(config.trainer.v1.trainer_mode)",
        "trainer_cls(config=config)",
        "self.trainer.init()",
        "self.init_agent_loop_manager()",
        "self.trainer.fit(self.agent_loop_manager)",
    ]
    assert [run.index(step) for step in steps] == sorted(run.index(step) for step in steps)
    for call in ("agent_loop_manager_class", "get_llm_client()", "get_teacher_client()", "get_reward_handles()"):
        assert call in manager


def test_the_offline_trainer_leaves_none_of_verls_methods_open():
    from verl_aiops.trainers.dpo.offline import OfflineDPOTrainer

    # that those it has are called as verl does: tests/verl_patches/test_overrides.py
    assert not OfflineDPOTrainer.__abstractmethods__


def test_verls_training_loop_still_calls_what_is_overridden():
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    fit = inspect.getsource(PPOTrainer.fit)
    for call in (
        "self._validate()",
        "self.step(metrics, self.timing_raw)",
        "self._save_checkpoint()",
        "self.on_step_end()",
        "self._compute_metrics(",
        "self.global_steps // self.steps_per_epoch",
        "self.global_steps <= self.total_training_steps",
        "tq.kv_clear(keys=batch.keys",
    ):
        assert call in fit, call
    assert "self._setup()" in inspect.getsource(PPOTrainer.init)
    for method in (PPOTrainer._save_checkpoint, PPOTrainer._load_checkpoint):
        source = inspect.getsource(method)
        assert "self.train_dataloader." in source and "state_dict" in source
        assert 'self.trainer_mode != "sync"' in source  # other modes store TransferQueue's content as well
    saved = inspect.getsource(PPOTrainer._save_checkpoint)
    assert saved.index("self.actor_rollout_wg.save_checkpoint(") < saved.index("local_latest_checkpointed_iteration")


@pytest.mark.parametrize(
    "settings, quiet",
    [
        ({}, False),
        ({"loss_type": ["sigmoid", "sft"]}, True),
        ({"loss_type": "sft_seq"}, True),
        ({"sft_weight": 0.2}, True),
    ],
)
def test_a_trainer_is_made_from_verls_configuration_alone(settings, quiet):
    """Nothing is started; and the warning about falling log-probs is left to runs without an SFT term."""
    from verl.trainer.ppo.v1 import get_trainer_cls

    from verl_aiops.trainers.config import DPOConfig

    config = OmegaConf.create(
        {
            "algorithm": {"adv_estimator": "dpo", "use_kl_in_reward": False, "dpo": settings},
            "actor_rollout_ref": {
                "actor": {"strategy": "fsdp2", "ppo_mini_batch_size": 6, "use_kl_loss": True},
                "model": {"path": "unused"},
            },
            "trainer": {"n_gpus_per_node": 2, "nnodes": 1, "v1": {"trainer_mode": "dpo"}},
            "critic": {"enable": None},
        }
    )
    trainer = get_trainer_cls("dpo")(config=config)
    assert trainer.dpo == dataclasses.replace(DPOConfig(), **settings)
    assert (trainer.mini_pairs, trainer.ranks) == (6, 2)
    assert trainer.use_critic is trainer.use_reference_policy is False
    assert trainer.trainer_mode == "sync"  # in checkpoints: nothing of TransferQueue is saved
    assert trainer.replay_buffer is None
    assert trainer.watch.quiet is quiet


# --- the names dpo in other trainers of verl -----------------------------------------------------------------------


def test_the_advantage_marks_best_and_worst_answer_of_each_prompt():
    import torch
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    scores = torch.tensor([0.2, 0.9, 0.5, 1.0, 1.0, 0.1])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    rewards = torch.stack([torch.zeros(6), scores], dim=1)
    index = ["a", "a", "a", "b", "b", "c"]
    advantages, returns = get_adv_estimator_fn("dpo")(token_level_rewards=rewards, response_mask=mask, index=index)
    assert advantages.tolist() == [[-1, -1], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert torch.equal(advantages, returns)


def test_the_policy_loss_is_dpo_on_pairs_and_refuses_other_rows():
    import torch
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    log_prob = torch.tensor([[-1.0, -1.0], [-2.0, -9.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    advantages = mask * torch.tensor([[1.0], [-1.0]])
    arguments = {"log_prob": log_prob, "response_mask": mask, "loss_agg_mode": "token-mean"}
    old = torch.tensor([[-1.5, -1.5], [-1.0, 0.0]])
    loss, metrics = get_policy_loss_fn("dpo")(old_log_prob=old, advantages=advantages, **arguments)
    margin = 0.1 * ((-2.0 + 3.0) - (-2.0 + 1.0))
    assert loss.item() == pytest.approx(torch.log1p(torch.exp(torch.tensor(-margin))).item())
    assert metrics == {"rewards/margins": pytest.approx(margin), "rewards/accuracies": 1.0}
    loss.backward()
    assert log_prob.grad[1].tolist() == [-log_prob.grad[0][0].item(), 0.0]
    for torn in (advantages.flip(0), advantages * 0):
        with pytest.raises(ValueError, match="pairs, chosen .* before rejected"):
            get_policy_loss_fn("dpo")(old_log_prob=old, advantages=torn, **arguments)
