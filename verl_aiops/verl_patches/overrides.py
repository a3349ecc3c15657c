"""Methods of verl's, TRL's and transformers' classes that ours override, and who of theirs calls them.

An override is a promise on their side that nobody gave: a method may be renamed, take other parameters, or no longer be
called, and ours is then silently left out; on one of them hangs the look for answers without a score. So each stands
here with why there is no other way. `check_overrides` looks at names and parameters when a class is registered, so that
what does not fit is reported as missing. tests/verl_patches/test_overrides.py also looks whether the callers still
call, and finds overrides that are not listed. All of it holds for verl 0.9.1, TRL 1.16 and transformers 5.10.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from verl_aiops.missing import require
from verl_aiops.seam.elsewhere import elsewhere

__all__ = ["OVERRIDES", "PUBLIC", "Override", "check_override", "check_overrides", "fits"]


@dataclass(frozen=True)
class Override:
    """One attribute of a class of ours.

    Attributes:
        ours: ``module:Class``, without ``verl_aiops.``; it may be one that stands before theirs in the bases.
        theirs: ``module:Class`` that has what is overridden.
        name: of the attribute.
        callers: ``module:function`` of theirs in whose source it is called (or read, if it is no function).
        why: what there is no public way for.
    """

    ours: str
    theirs: str
    name: str
    callers: tuple[str, ...]
    why: str


def _of(ours: str, theirs: str, **overridden: tuple[str, str]) -> Iterator[Override]:
    """``name=(callers, why)``; a caller without a module is a method of theirs."""
    for name, (callers, why) in overridden.items():
        full = tuple(caller if ":" in caller else f"{theirs}.{caller}" for caller in callers.split())
        yield Override(ours, theirs, name, full, why)


_PPO = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
_MAIN = "verl.trainer.main_ppo:TaskRunnerV1.init_agent_loop_manager"
_FSDP = "verl.workers.engine.fsdp.transformer_impl:FSDPEngine"
_ENGINE = "verl.workers.engine.base:BaseEngine"
_WORKERS = "verl.workers.engine_workers"
_DPO = "trl.trainer.dpo_trainer:DPOTrainer"

OVERRIDES: tuple[Override, ...] = (
    # --- offline DPO: verl's loop with pairs from files where PPO has rollouts
    *_of(
        "trainers.dpo.offline:OfflineDPOTrainer",
        _PPO,
        _build_replay_buffer=("__init__", "there is nothing to replay"),
        _setup=("init", "training workers alone: no rollout servers, reward workers, critic"),
        _init_dataloader=("_setup", "pairs in a seeded order instead of prompts"),
        _init_resource_pool_mgr=("_setup", "one pool for one role"),
        _rollout_server_managers=("_start_rollout_profiling _stop_rollout_profiling", "there are none to profile"),
        on_step_end=("fit", "no rollout waits for the new weights"),
        on_sample_end=("_step_once", "nothing was sampled"),
        get_llm_client=(_MAIN, "nothing generates"),
        get_teacher_client=(_MAIN, "nothing generates"),
        get_reward_handles=(_MAIN, "nothing is rewarded"),
        step=("fit", "a step is one batch of pairs"),
        _validate=("fit", "the loss of held-out pairs instead of rewards"),
        _compute_metrics=("fit", "verl's looks for what PPO's step left in TransferQueue"),
        _log_rollout_data=("fit", "there are no answers to dump"),
        _load_checkpoint=("_setup", "BCO's running mean of rewards is part of a checkpoint"),
    ),
    *_of(
        "trainers.rm.trainer:RewardModelTrainer",
        _PPO,
        _validate=("fit", "scores of held-out answers instead of rewards"),
    ),
    # --- GRPO and PPO, and online DPO on top of them
    *_of(
        "trainers.rl.scored_trainer:ScoredTrainer",
        _PPO,
        step=("fit", "a loss or gradient that is not finite ends the run"),
        _setup=("init", "the reward manager's side begins before the reward workers, which look for it"),
        _init_resource_pool_mgr=("_setup", "workers whose optimizer has this run's settings after a resume"),
        _load_checkpoint=("_setup", "what the reward manager keeps in a checkpoint"),
        _save_checkpoint=("fit", "likewise"),
        _step_once=("step", "how many prompts were asked for: answers that never came are missing without a word"),
        _balance_batch=("_step_once", "the first look at a batch with its rewards: answers without a score go"),
        _compute_reward_colocate=(
            "_step_once _validate",
            "verl's asks a colocated reward model without ground truth and rounds",
        ),
        _val_metrics_update=("_validate", "answers without a score are no part of a mean, and are counted"),
        _compute_metrics=("fit", "verl's does not log the parts of a reward"),
        _log_rollout_data=("fit", "verl's does not dump them"),
    ),
    *_of(
        "trainers.rl.looks:OftenLooks",
        _PPO,
        _build_replay_buffer=("__init__", "verl's looks for answers every two seconds"),
    ),
    *_of(
        "trainers.rl.shared_steps:SharedPromptSteps",
        _PPO,
        _balance_batch=("_step_once", "verl's balances single rows, which tears prompts over workers"),
        _compute_old_log_prob=("_step_once", "a pass that the only update on a batch can do without"),
        _compute_advantage=("_step_once", "verl's compares the rollout with log-probs that are not there yet"),
        _update_actor=("_step_once", "what that pass would have logged, and what the engine counted"),
    ),
    *_of(
        "trainers.dpo.online:OnlineDPOTrainer",
        _PPO,
        _setup=("init", "a checkpoint against another reference is refused before anything starts"),
        _init_resource_pool_mgr=("_setup", "workers that can score with a reference's weights"),
        _load_checkpoint=("_setup", "the last part of the set-up: until then the workers hold the initial policy"),
        _step_once=("step", "pairs instead of advantages"),
        _compute_metrics=("fit", "verl's looks for advantages"),
    ),
    *_of(
        "trainers.dpo.checkpoints:PreferenceCheckpoints",
        _PPO,
        fit=("verl.trainer.main_ppo:TaskRunnerV1.run", "the last step is saved, and the plain model written"),
        _save_checkpoint=("fit", "reference and its note belong to a checkpoint; weights that are not finite do not"),
        _load_checkpoint=("_setup", "likewise"),
    ),
    *_of(
        "trainers.dpo.checkpoints:NotedCheckpoints",
        _PPO,
        _save_checkpoint=("fit", "each checkpoint has the run's settings beside it"),
    ),
    *_of(
        "trainers.runs.log:RunLog",
        _PPO,
        fit=("verl.trainer.main_ppo:TaskRunnerV1.run", "verl's file logger empties the file of a run that goes on"),
    ),
    # --- workers
    *_of(
        "trainers.worker.worker:PreferenceWorker",
        f"{_WORKERS}:ActorRolloutRefWorker",
        actor_worker_cls=("init_model", "the worker that launches steps ahead"),
    ),
    *_of(
        "trainers.worker.run_ahead:PairTrainingWorker",
        f"{_WORKERS}:TrainingWorker",
        _postprocess_output=("train_batch infer_batch", "verl's waits for every number of a step"),
    ),
    *_of(
        "trainers.rl.resumed_workers:ResumedCritic",
        f"{_WORKERS}:TrainingWorker",
        load_checkpoint=(f"{_WORKERS}:ActorRolloutRefWorker.load_checkpoint", "settings come back with the state"),
    ),
    *_of(
        "trainers.rl.resumed_workers:ResumedActor",
        f"{_WORKERS}:ActorRolloutRefWorker",
        actor_worker_cls=("init_model", "the worker above"),
    ),
    # --- the engine
    *_of(
        "trainers.worker.module:FastModule",
        _FSDP,
        _build_fsdp_module=("_build_model_optimizer", "kernels, dropout and units are settled before FSDP wraps"),
        _build_lora_module=("_build_model_optimizer", "a base in four bits; verl's adapters are a language model's"),
        save_checkpoint=(f"{_WORKERS}:TrainingWorker.save_checkpoint", "a plain module's state is written as FSDP2's"),
        load_checkpoint=(f"{_WORKERS}:TrainingWorker.load_checkpoint", "and read from either"),
    ),
    *_of(
        "trainers.worker.rows_engine:SharedRows",
        _FSDP,
        forward_backward_batch=(f"{_ENGINE}.train_batch {_ENGINE}.infer_batch", "rows that share stay together"),
    ),
    *_of(
        "trainers.worker.rows_engine:SharedRows",
        "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead",
        forward_step=(f"{_FSDP}.forward_backward_batch", "what rows share goes through the model once"),
    ),
    *_of(
        "trainers.worker.rows_engine:SharedPolicyEngine",
        _FSDP,
        forward_backward_batch=(f"{_ENGINE}.train_batch {_ENGINE}.infer_batch", "the only update's old log-probs"),
    ),
    *_of(
        "trainers.worker.engine:FSDPPreferenceEngine",
        _FSDP,
        forward_backward_batch=(f"{_ENGINE}.train_batch {_ENGINE}.infer_batch", "one micro-batch needs no cutting"),
        optimizer_step=(f"{_ENGINE}.train_batch", "verl's waits for the norm of the gradients"),
        get_data_parallel_group=(
            f"{_WORKERS}:TrainingWorker._postprocess_output",
            "collectives would wait for the step on its way",
        ),
        load_checkpoint=(f"{_WORKERS}:TrainingWorker.load_checkpoint", "settings come back with the state"),
    ),
    *_of(
        "trainers.worker.engine:FSDPPreferenceEngine",
        "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead",
        forward_step=(f"{_FSDP}.forward_backward_batch", "float32 log-probs of answers, by our backends"),
    ),
    *_of(
        "trainers.rm.engine:FSDPRewardEngine",
        _FSDP,
        _build_module=("_build_model_optimizer", "verl's builds language models and critics, and no classifiers"),
    ),
    *_of(
        "models.merger:ModelMerger",
        "verl.model_merger.base_model_merger:BaseModelMerger",
        get_transformers_auto_model_class=("save_hf_model_and_tokenizer", "verl's knows no classifiers of sequences"),
        patch_model_generation_config=("save_hf_model_and_tokenizer", "there alone files can be given a size"),
    ),
    *_of(
        "trainers.worker.model_export:ModelExport",
        "verl.utils.checkpoint.fsdp_checkpoint_manager:FSDPCheckpointManager",
        save_checkpoint=(f"{_FSDP}.save_checkpoint", "verl's writes a language model alone, whole, and no adapters"),
    ),
    *_of(
        "trainers.worker.module:FastModule",
        _ENGINE,
        infer_batch=(f"{_WORKERS}:TrainingWorker.infer_batch", "FSDP2 keeps gathered weights after it"),
        train_batch=(f"{_WORKERS}:TrainingWorker.train_batch", "FSDP2 settles gradient dtypes at its first forward"),
    ),
    *_of(
        "trainers.worker.late_sums:_LateSum",
        "verl.utils.metric.utils:Metric",
        init_list=("verl.utils.py_functional:append_to_dict", "values are read when they are asked for"),
        append=("verl.utils.py_functional:append_to_dict", "likewise"),
    ),
    # --- rollout
    *_of(
        "rollout.rounds.turns:TemplateTurns",
        "verl.utils.tokenizer.continuous_token:ContinuousTokenBuilder",
        merge_context_tokens=(
            "verl.experimental.agent_loop.agent_loop:AgentLoopBase.ct_merge_context_msg",
            "borders of rounds as the template renders them, for models that verl does not list",
        ),
    ),
    # --- TRL
    *_of(
        "trl.dpo_trainer:MaskedPairCollator",
        "trl.trainer.dpo_trainer:DataCollatorForPreference",
        torch_call=("transformers.data.data_collator:DataCollatorMixin.__call__", "our masks"),
    ),
    *_of(
        "trl.dpo_trainer:PairDPOTrainer",
        _DPO,
        _prepare_dataset=("__init__", "TRL would look for texts and render them"),
        _compute_loss=("compute_loss", "one more metric; held-out batches by their size"),
        log=("transformers.trainer:Trainer._maybe_log_save_evaluate", "held-out means by pairs"),
    ),
    *_of(
        "trl.dpo_trainer:PairDPOTrainer",
        "transformers.trainer:Trainer",
        _get_train_sampler=("transformers.trainer:Trainer.get_train_dataloader", "our order, which can be resumed"),
    ),
)

# Bases that are made to be filled in; a method that they lose or add shows as an abstract one, or not at all.
PUBLIC = (
    "torch.autograd.function:Function",
    "torch.autograd.function:_SingleLevelFunction",
    "transformers.generation.stopping_criteria:StoppingCriteria",
    "transformers.trainer_callback:TrainerCallback",
    "verl.experimental.agent_loop.agent_loop:AgentLoopBase",
    "verl.experimental.reward_loop.reward_manager.naive:NaiveRewardManager",
    "verl.plugin.platform.platform_base:PlatformBase",
    "verl.workers.rollout.base:BaseRollout",
    "verl.workers.rollout.replica:RolloutReplica",
)


def fits(ours: Callable[..., Any], theirs: Callable[..., Any]) -> bool:
    """Whether ours can be called as theirs is: by the same parameters, or with those that it hands on unseen."""
    kinds = {parameter.kind for parameter in inspect.signature(ours).parameters.values()}
    hands_on = kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    known, wanted = (
        [p.name for p in inspect.signature(f).parameters.values() if p.kind not in hands_on] for f in (ours, theirs)
    )
    return set(known) <= set(wanted) if hands_on else known == wanted


def check_overrides(ours: type) -> None:
    """Before a class of ours is registered: what it overrides is there.

    Raises:
        AttributeError: a class or method of theirs is not, so that ours would never be called.
        TypeError: it takes other parameters.
    """
    bases = {f"{base.__module__}:{base.__qualname__}": base for base in ours.__mro__}
    for override in OVERRIDES:
        if f"verl_aiops.{override.ours}" not in bases:
            continue
        theirs = next((bases[path] for path in (override.theirs, elsewhere(override.theirs)) if path in bases), None)
        if theirs is None:
            raise AttributeError(f"{ours.__name__} is no {override.theirs}, whose {override.name} it overrides")
        _check(override, ours, theirs)


def check_override(override: Override) -> None:
    """One entry, without a class to be registered; both classes are imported.

    Raises:
        ImportError: a module of theirs is not there.
        AttributeError, TypeError: as `check_overrides`.
    """
    ours, theirs = (
        getattr(importlib.import_module(module), cls)
        for module, _, cls in (path.partition(":") for path in (f"verl_aiops.{override.ours}", override.theirs))
    )
    _check(override, ours, theirs)


def _check(override: Override, ours: type, theirs: type) -> None:
    require(theirs, override.name)
    mine, their = getattr(ours, override.name), getattr(theirs, override.name)
    if inspect.isfunction(their) and not fits(mine, their):
        raise TypeError(
            f"{override.theirs.partition(':')[2]}.{override.name} takes {inspect.signature(their)}, "
            f"not {inspect.signature(mine)}"
        )
