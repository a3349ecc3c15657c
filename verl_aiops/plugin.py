"""Everything that verl-aiops registers with verl, in one place.

verl imports this module at the end of ``import verl`` in every process (entry-point group ``verl.plugins``).
Its registries live in modules that take seconds to import and that most processes never need, so each
registration waits until verl itself imports the registry (``wrapt.when_imported``).
"""

from __future__ import annotations

import importlib

import wrapt

# --- registries ------------------------------------------------------------------------------------------------


def _bring(ours: str, *, when: str) -> None:
    """Import our module as soon as verl has imported the registry's; the hook on ours then registers. Two steps,
    because ours may also be the one that is imported first."""
    wrapt.register_post_import_hook(lambda module: importlib.import_module(ours), when)


@wrapt.when_imported("verl.plugin.platform")
def _platforms(module):
    from verl_aiops.platform.cpu import PlatformCPU

    module.PlatformRegistry.register("cpu")(PlatformCPU)


@wrapt.when_imported("verl.trainer.ppo.core_algos")
def _algorithms(module):
    from verl_aiops.trainers.algorithms import compute_dpo_advantage, compute_dpo_policy_loss

    for name in ("dpo", "online_dpo"):
        module.register_adv_est(name)(compute_dpo_advantage)
        module.register_policy_loss(name)(compute_dpo_policy_loss)


_bring("verl_aiops.trainers.engine", when="verl.workers.engine.fsdp.transformer_impl")


@wrapt.when_imported("verl_aiops.trainers.engine")
def _engines(module):
    from verl.workers.engine.base import EngineRegistry

    EngineRegistry.register(module.PREFERENCE_MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])(
        module.FSDPPreferenceEngine
    )


_bring("verl_aiops.trainers.offline", when="verl.trainer.ppo.v1.trainer_base")


@wrapt.when_imported("verl_aiops.trainers.offline")
def _trainers(module):
    from verl.trainer.ppo.v1.trainer_base import register_trainer

    register_trainer("dpo")(module.OfflineDPOTrainer)


_bring("verl_aiops.trainers.triage", when="verl.trainer.ppo.v1.trainer_sync")


@wrapt.when_imported("verl_aiops.trainers.triage")
def _triage_trainer(module):
    from verl.trainer.ppo.v1.trainer_base import register_trainer

    register_trainer("aiops_sync")(module.TriageTrainer)


# whose base class is ours: not before that is whole
_bring("verl_aiops.trainers.online", when="verl_aiops.trainers.triage")


@wrapt.when_imported("verl_aiops.trainers.online")
def _online_trainer(module):
    from verl.trainer.ppo.v1.trainer_base import register_trainer

    register_trainer("online_dpo")(module.OnlineDPOTrainer)


_bring("verl_aiops.rewards.managers.triage", when="verl.experimental.reward_loop.reward_manager.naive")


@wrapt.when_imported("verl_aiops.rewards.managers.triage")
def _triage_manager(module):
    from verl.experimental.reward_loop.reward_manager import register

    register("aiops_mturn")(module.AiopsMturnRewardManager)


# whose base class is ours: not before that is whole
_bring("verl_aiops.rewards.managers.combined", when="verl_aiops.rewards.managers.triage")


@wrapt.when_imported("verl_aiops.rewards.managers.combined")
def _combined_manager(module):
    from verl.experimental.reward_loop.reward_manager import register

    register("aiops_combined")(module.AiopsCombinedRewardManager)


@wrapt.when_imported("verl.experimental.agent_loop.agent_loop")
def _agent_loops(module):
    # what verl's `register` writes; it takes the class, and ours would have to be imported in every process
    module._agent_loop_registry["aiops_mturn"] = {"_target_": "verl_aiops.rollout.agent_loop.AiopsMturnAgentLoop"}


@wrapt.when_imported("verl.workers.rollout.replica")
def _rollout_replicas(module):
    def load():
        from verl_aiops.rollout.hf_replica import HFReplica

        return HFReplica

    module.RolloutReplicaRegistry.register("hf", load)


@wrapt.when_imported("verl.workers.rollout.base")
def _rollout_workers(module):
    module._ROLLOUT_REGISTRY["hf", "async"] = "verl_aiops.rollout.hf_replica.HFServerAdapter"


# --- what verl 0.9 has no registry for ---------------------------------------------------------------------------


@wrapt.when_imported("verl.utils.config")
def _preflight(module):
    # What: main_ppo's validate_config first fills in and checks what a preference run needs; every other run goes
    # straight to verl's own function. Why: verl has no hook that sees the configuration before Ray starts, and
    # nothing else can choose a trainer from algorithm.adv_estimator. verl 0.9.x.
    from verl_aiops.trainers.preflight import with_preflight

    module.validate_config = with_preflight(module.validate_config)


@wrapt.when_imported("verl.utils.distributed")
def _process_groups(module):
    # What: the process-group backend on the CPU platform is "cpu:gloo". Why: verl builds the string
    # "cpu:gloo,cpu:gloo", which torch refuses as a duplicate. verl 0.9.x; other platforms are passed through.
    from verl_aiops.platform.process_group import on_cpu_use_gloo, on_cpu_use_gloo_torchrun

    module.initialize_global_process_group_ray = on_cpu_use_gloo(module.initialize_global_process_group_ray)
    module.initialize_global_process_group = on_cpu_use_gloo_torchrun(module.initialize_global_process_group)


@wrapt.when_imported("verl.utils.import_utils")
def _trl(module):
    # What: verl sees TRL only where TRL has AutoModelForCausalLMWithValueHead. Why: TRL 1.x dropped that class, and
    # every model verl loads beside such a TRL would fail with an ImportError. verl 0.9.x.
    from verl_aiops.platform.trl_guard import only_with_value_head

    module.is_trl_available = only_with_value_head(module.is_trl_available)


@wrapt.when_imported("verl.utils.model")
def _critics(module):
    # What: without flash-attn a critic is loaded with sdpa attention. Why: verl asks for flash_attention_2 whatever
    # the configuration says, takes the error for a missing value head, and tells the user to install TRL. verl 0.9.x.
    from verl_aiops.platform.valuehead import without_flash_attn

    module.load_valuehead_model = without_flash_attn(module.load_valuehead_model)


@wrapt.when_imported("transfer_queue")
def _transfer_queue(module):
    # What: to clear no keys is to do nothing. Why: verl's loop clears what a step has queued, offline DPO queues
    # nothing, and TransferQueue refuses an empty list. verl 0.9.x with TransferQueue 0.1.
    from verl_aiops.trainers.queue import clear_some

    module.kv_clear = clear_some(module.kv_clear)
