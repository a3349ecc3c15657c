"""Everything that verl-aiops registers with verl, in one place.

verl imports this module at the end of ``import verl`` in every process (entry-point group ``verl.plugins``).
Its registries live in modules that take seconds to import and that most processes never need, so each
registration waits until verl itself imports the registry (`missing.when`, on `wrapt.register_post_import_hook`).

Each fails alone: with a verl that has not what one of them needs, verl is as whole as without the plug-in, and the
names that `when` was given are missing with their reason (`verl_aiops.missing`).
"""

from __future__ import annotations

import importlib

from verl_aiops.missing import require, require_parameters, when

# --- registries ------------------------------------------------------------------------------------------------


def _bring(ours: str, *names: str, after: str, instead=None) -> None:
    """Import our module as soon as verl has imported the registry's; the hook on ours then registers. Two steps,
    because ours may also be the one that is imported first."""
    when(after, *names, instead=instead)(lambda module: importlib.import_module(ours))


@when("verl.plugin.platform", "platform cpu")
def _platforms(module):
    import ray

    from verl_aiops.platform.cpu import PlatformCPU

    # what tells it whether a process belongs to a cluster, where the CPU is no platform to fall back to; verl has
    # imported Ray by now
    require(ray._private.utils, "read_ray_address")
    require(ray._private.worker, "global_worker")
    if PlatformCPU.__abstractmethods__:
        raise TypeError(f"verl's PlatformBase also wants {', '.join(sorted(PlatformCPU.__abstractmethods__))}")
    module.PlatformRegistry.register("cpu")(PlatformCPU)


_ESTIMATORS = ("advantage estimator dpo", "advantage estimator rm", "advantage estimator online_dpo")
_LOSSES = ("policy loss dpo", "policy loss rm", "policy loss online_dpo")


def _no_algorithms(raises):
    core_algos = importlib.import_module("verl.trainer.ppo.core_algos")
    for name in ("dpo", "rm", "online_dpo"):
        core_algos.ADV_ESTIMATOR_REGISTRY[name] = core_algos.POLICY_LOSS_REGISTRY[name] = raises


@when("verl.trainer.ppo.core_algos", *_ESTIMATORS, *_LOSSES, instead=_no_algorithms)
def _algorithms(module):
    from verl_aiops.trainers.dpo.algorithms import compute_dpo_advantage, compute_dpo_policy_loss

    for name in ("dpo", "rm", "online_dpo"):
        module.register_adv_est(name)(compute_dpo_advantage)
        module.register_policy_loss(name)(compute_dpo_policy_loss)


ENGINE = "engine preference_language_model"
REWARD_ENGINE = "engine reward_model"
# policy and critic of GRPO and PPO
ROWS_ENGINES = ("engine shared_prompt_language_model", "engine shared_prompt_value_model")
_FSDP = "verl.workers.engine.fsdp.transformer_impl"


def _register_engine(name: str, engine):
    from verl.workers.engine.base import EngineRegistry

    EngineRegistry.register(name.split()[-1], backend=["fsdp", "fsdp2"], device=["cuda", "npu"])(engine)


def _no_engine(*names: str):
    def register(raises):
        from verl.workers.engine.base import BaseEngine

        for name in names:
            _register_engine(name, type("MissingEngine", (BaseEngine,), {"__new__": raises}))

    return register


# without the first there is no second, whose base class it is
_bring(
    "verl_aiops.trainers.worker.engine",
    ENGINE,
    REWARD_ENGINE,
    after=_FSDP,
    instead=_no_engine(ENGINE, REWARD_ENGINE),
)


@when("verl_aiops.trainers.worker.engine", ENGINE, instead=_no_engine(ENGINE))
def _engines(module):
    from verl_aiops.trainers.worker.run_ahead import PairTrainingWorker
    from verl_aiops.trainers.worker.worker import PreferenceWorker
    from verl_aiops.verl_patches.overrides import check_overrides

    # a worker of ours is nothing without the engine
    for ours in (module.FSDPPreferenceEngine, PairTrainingWorker, PreferenceWorker):
        check_overrides(ours)
    _register_engine(ENGINE, module.FSDPPreferenceEngine)


# whose base class is ours: not before that is whole
_bring(
    "verl_aiops.trainers.rm.engine",
    REWARD_ENGINE,
    after="verl_aiops.trainers.worker.engine",
    instead=_no_engine(REWARD_ENGINE),
)


@when("verl_aiops.trainers.rm.engine", REWARD_ENGINE, instead=_no_engine(REWARD_ENGINE))
def _reward_engine(module):
    from verl_aiops.verl_patches.overrides import check_overrides

    check_overrides(module.FSDPRewardEngine)
    _register_engine(REWARD_ENGINE, module.FSDPRewardEngine)


_bring("verl_aiops.trainers.worker.rows_engine", *ROWS_ENGINES, after=_FSDP, instead=_no_engine(*ROWS_ENGINES))


@when("verl_aiops.trainers.worker.rows_engine", *ROWS_ENGINES, instead=_no_engine(*ROWS_ENGINES))
def _rows_engines(module):
    from verl_aiops.verl_patches.overrides import check_overrides

    engines = (module.SharedPolicyEngine, module.SharedValueEngine)
    # both before either is registered: where one does not fit, what stands in their place takes both names
    for engine in engines:
        check_overrides(engine)
    for name, engine in zip(ROWS_ENGINES, engines, strict=True):
        _register_engine(name, engine)


@when(_FSDP, "micro-batches as planned")
def _micro_batches(module):
    # What: a batch that says which rows make up its micro-batches is cut so. Why: verl cuts by each row's own tokens
    # and tears rows apart that share their prompt. verl 0.9.x; other batches are passed through.
    from verl_aiops.verl_patches.micro_batches import cut_as_planned

    takes = ("data", "dp_group", "num_batches_divided_by", "same_micro_num_in_dp", "min_num_micro_batch")
    require_parameters(module.prepare_micro_batches, *takes, "use_dynamic_bsz_balance")
    module.prepare_micro_batches = cut_as_planned(module.prepare_micro_batches)


def _no_trainer(*modes: str):
    def register(raises):
        from verl_aiops.seam.trainer import TRAINER_REGISTRY

        # called as a class is, and never one
        TRAINER_REGISTRY.update(dict.fromkeys(modes, raises))

    return register


def _register_trainer(mode: str, trainer, *workers):
    from verl_aiops.seam.trainer import register_trainer
    from verl_aiops.verl_patches.overrides import check_overrides

    for ours in (trainer, *workers):
        check_overrides(ours)
    register_trainer(mode)(trainer)


# without the first there is no second, whose base class it is
_bring(
    "verl_aiops.trainers.dpo.offline",
    "trainer mode dpo",
    "trainer mode rm",
    after="verl.trainer.ppo.v1.trainer_base",
    instead=_no_trainer("dpo", "rm"),
)


@when("verl_aiops.trainers.dpo.offline", "trainer mode dpo", instead=_no_trainer("dpo"))
def _trainers(module):
    _register_trainer("dpo", module.OfflineDPOTrainer)


# whose base class is ours
_bring(
    "verl_aiops.trainers.rm.trainer",
    "trainer mode rm",
    after="verl_aiops.trainers.dpo.offline",
    instead=_no_trainer("rm"),
)


@when("verl_aiops.trainers.rm.trainer", "trainer mode rm", instead=_no_trainer("rm"))
def _reward_trainer(module):
    _register_trainer("rm", module.RewardModelTrainer)


# without the first there is no second, whose base class it is
_bring(
    "verl_aiops.trainers.rl.scored_trainer",
    "trainer mode aiops_sync",
    "trainer mode online_dpo",
    after="verl.trainer.ppo.v1.trainer_sync",
    instead=_no_trainer("aiops_sync", "online_dpo"),
)


@when("verl_aiops.trainers.rl.scored_trainer", "trainer mode aiops_sync", instead=_no_trainer("aiops_sync"))
def _scored_trainer(module):
    from verl_aiops.trainers.rl.resumed_workers import ResumedActor, ResumedCritic, SharedCritic

    _register_trainer("aiops_sync", module.ScoredTrainer, ResumedActor, ResumedCritic, SharedCritic)


@when("verl_aiops.trainers.rl.reward_side", "reward manager aiops_combined")
def _combined_side(module):
    # here the trainers, which know nothing of what is rewarded, meet the reward: no import leads from one to the other
    def side(config):
        from verl_aiops.trainers.triage.combined_side import CombinedSide

        return CombinedSide.of(config)

    module.REWARD_SIDES["aiops_combined"] = side


# whose base class is ours: not before that is whole
_bring(
    "verl_aiops.trainers.dpo.online",
    "trainer mode online_dpo",
    after="verl_aiops.trainers.rl.scored_trainer",
    instead=_no_trainer("online_dpo"),
)


@when("verl_aiops.trainers.dpo.online", "trainer mode online_dpo", instead=_no_trainer("online_dpo"))
def _online_trainer(module):
    _register_trainer("online_dpo", module.OnlineDPOTrainer)


def _no_manager(*managers: str):
    def register(raises):
        from verl_aiops.seam.reward_loop import REWARD_MANAGER

        REWARD_MANAGER.update(dict.fromkeys(managers, raises))

    return register


# without the first there is no second, whose base class it is
_bring(
    "verl_aiops.rewards.managers.triage",
    "reward manager aiops_mturn",
    "reward manager aiops_combined",
    after="verl.experimental.reward_loop.reward_manager.naive",
    instead=_no_manager("aiops_mturn", "aiops_combined"),
)


@when("verl_aiops.rewards.managers.triage", "reward manager aiops_mturn", instead=_no_manager("aiops_mturn"))
def _triage_manager(module):
    from verl_aiops.seam.reward_loop import NaiveRewardManager, register

    require(NaiveRewardManager, "run_single")
    register("aiops_mturn")(module.AiopsMturnRewardManager)


# whose base class is ours: not before that is whole
_bring(
    "verl_aiops.rewards.managers.combined",
    "reward manager aiops_combined",
    after="verl_aiops.rewards.managers.triage",
    instead=_no_manager("aiops_combined"),
)


@when("verl_aiops.rewards.managers.combined", "reward manager aiops_combined", instead=_no_manager("aiops_combined"))
def _combined_manager(module):
    from verl_aiops.seam.reward_loop import register

    register("aiops_combined")(module.AiopsCombinedRewardManager)


@when("verl.experimental.agent_loop.agent_loop", "agent loop aiops_mturn")
def _agent_loops(module):
    # what verl's `register` writes; it takes the class, and ours would have to be imported in every process
    module._agent_loop_registry["aiops_mturn"] = {
        "_target_": "verl_aiops.rollout.rounds.agent_loop.AiopsMturnAgentLoop"
    }


@when("verl.experimental.agent_loop.agent_loop", "agent loop aiops_tools")
def _tools_loop(module):
    module._agent_loop_registry["aiops_tools"] = {"_target_": "verl_aiops.rollout.tools.agent_loop.AiopsToolsAgentLoop"}


@when("verl.workers.rollout.replica", "rollout hf")
def _rollout_replicas(module):
    def load():
        from verl_aiops.rollout.hf.replica import HFReplica

        return HFReplica

    module.RolloutReplicaRegistry.register("hf", load)


@when("verl.workers.rollout.base", "rollout hf")
def _rollout_workers(module):
    module._ROLLOUT_REGISTRY["hf", "async"] = "verl_aiops.rollout.hf.replica.HFServerAdapter"


# --- what verl 0.9 has no registry for ---------------------------------------------------------------------------


@when("verl.trainer.main_ppo_v0", "trainers of verl's branch neo")
def _neo(module):
    # What: `neo`'s task runner runs a trainer of ours where the configuration means one. Why: it has no registry of
    # trainers. Builds of the branch alone; with a release of the supported range nothing is done.
    from verl_aiops.seam.elsewhere import is_neo

    if not is_neo():
        return
    from verl_aiops.seam.neo.runner import with_our_trainers

    module.TaskRunner = with_our_trainers(module.TaskRunner, _neos_trainer)


def _neos_trainer(config):
    """The class of ours that a configuration means, or None."""
    ours = {"dpo": "verl_aiops.trainers.dpo.offline", "rm": "verl_aiops.trainers.rm.trainer"}
    mode = config.trainer.v1.trainer_mode
    if mode not in ours:
        return None
    importlib.import_module(ours[mode])  # its registration, above, waits for it
    from verl_aiops.seam.trainer import get_trainer_cls

    return get_trainer_cls(mode)


@when("verl.utils.config", "check before Ray")
def _preflight(module):
    # What: main_ppo's validate_config first fills in and checks what a preference run needs; every other run goes
    # straight to verl's own function. Why: verl has no hook that sees the configuration before Ray starts, and
    # nothing else can choose a trainer from algorithm.adv_estimator. verl 0.9.x.
    from verl_aiops.trainers.preflight.entry import with_preflight

    require_parameters(module.validate_config, "config", "use_reference_policy", "use_critic")
    module.validate_config = with_preflight(module.validate_config)


@when("verl.utils.distributed", "process groups of the platform cpu")
def _process_groups(module):
    # What: the process-group backend on the CPU platform is "cpu:gloo". Why: verl builds the string
    # "cpu:gloo,cpu:gloo", which torch refuses as a duplicate. verl 0.9.x; other platforms are passed through.
    from verl_aiops.verl_patches.process_group import on_cpu_use_gloo, on_cpu_use_gloo_torchrun

    require_parameters(module.initialize_global_process_group_ray, "timeout_second", "backend")
    require_parameters(module.initialize_global_process_group, "timeout_second")
    module.initialize_global_process_group_ray = on_cpu_use_gloo(module.initialize_global_process_group_ray)
    module.initialize_global_process_group = on_cpu_use_gloo_torchrun(module.initialize_global_process_group)


@when(_FSDP, "references of the platform cpu")
def _references(module):
    # What: FSDP2's offloading pins no memory on the CPU platform. Why: verl offloads every reference policy into pinned
    # memory, which PyTorch has only beside an accelerator. verl 0.9.x; other platforms are passed through.
    from verl_aiops.verl_patches.offload import unpinned_on_cpu

    require(module, "CPUOffloadPolicy")
    module.CPUOffloadPolicy = unpinned_on_cpu(module.CPUOffloadPolicy)


@when("verl.utils.import_utils", "verl beside TRL 1")
def _trl(module):
    # What: verl sees TRL only where TRL has AutoModelForCausalLMWithValueHead. Why: TRL 1.x dropped that class, and
    # every model verl loads beside such a TRL would fail with an ImportError. verl 0.9.x.
    from verl_aiops.verl_patches.trl_guard import only_with_value_head

    require_parameters(module.is_trl_available)
    module.is_trl_available = only_with_value_head(module.is_trl_available)


@when("verl.utils.model", "critic without flash-attn")
def _critics(module):
    # What: without flash-attn a critic is loaded with sdpa attention. Why: verl asks for flash_attention_2 whatever
    # the configuration says, takes the error for a missing value head, and tells the user to install TRL. verl 0.9.x.
    from verl_aiops.verl_patches.valuehead import without_flash_attn

    names = ("local_path", "torch_dtype", "model_config", "trust_remote_code")
    require_parameters(module.load_valuehead_model, *names)
    module.load_valuehead_model = without_flash_attn(module.load_valuehead_model)


def _text_rows(module):
    # What: a step of text alone leaves the vision tower of Qwen2-VL, Qwen2.5-VL and GLM-4V out. Why: verl sends zeros
    # through it and takes the mean of what transformers 5 no longer returns as a tensor. verl 0.9.x; steps with images,
    # and verl's own trainers, are passed through.
    from verl_aiops.verl_patches.vision import without_vision_tower

    require(module, "_get_input_embeds")
    module._get_input_embeds = without_vision_tower(module._get_input_embeds)


when("verl.models.transformers.qwen2_vl", "text rows of Qwen2-VL")(_text_rows)
when("verl.models.transformers.glm4v", "text rows of GLM-4V")(_text_rows)


@when("transfer_queue", "steps that queue nothing")
def _transfer_queue(module):
    # What: to clear no keys is to do nothing. Why: verl's loop clears what a step has queued, offline DPO queues
    # nothing, and TransferQueue refuses an empty list. verl 0.9.x with TransferQueue 0.1.
    from verl_aiops.verl_patches.transfer_queue import clear_some

    require_parameters(module.kv_clear, "keys", "partition_id")
    module.kv_clear = clear_some(module.kv_clear)
