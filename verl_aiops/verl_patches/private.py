"""Names that others keep to themselves and that we use all the same, where and for what.

None of them is promised. tests/verl_patches/test_private.py finds each in the installed packages, and finds uses that
are not listed here.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["PRIVATE", "Private", "is_there"]


@dataclass(frozen=True)
class Private:
    """A name beginning with an underscore.

    Attributes:
        owner: ``module`` or ``module:Class`` of theirs that has it, or sets it on itself.
        name: an attribute, or ``a.b``.
        files: of ours that use it, under ``verl_aiops/``.
        why: what there is no public way for.
    """

    owner: str
    name: str
    files: tuple[str, ...]
    why: str


def _of(files: str, **named: tuple[str, str]) -> Iterator[Private]:
    """``name=(owner, why)``"""
    for name, (owner, why) in named.items():
        yield Private(owner, name, tuple(files.split()), why)


_PPO = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
_FSDP = "verl.workers.engine.fsdp.transformer_impl:FSDPEngine"

PRIVATE: tuple[Private, ...] = (
    *_of(
        "platform/cpu.py",
        read_ray_address=("ray._private.utils", "whether `ray.init` would join a cluster, without joining it"),
    ),
    *_of(
        "platform/cpu.py plugin.py",
        _private=("ray", "whether this process is one of Ray's workers: public functions warn in those that are not"),
    ),
    *_of(
        "plugin.py trainers/preflight/prompts.py",
        _ROLLOUT_REGISTRY=("verl.workers.rollout.base", "rollouts of workers have no `register`, and no list of names"),
    ),
    *_of(
        "plugin.py doctor/registration.py trainers/rl/agent_loops.py",
        _agent_loop_registry=("verl.experimental.agent_loop.agent_loop", "its `register` takes the class, imported"),
    ),
    *_of("plugin.py", _get_input_embeds=("verl.models.transformers.qwen2_vl", "replaced: `verl_patches/vision.py`")),
    *_of("plugin.py", _get_input_embeds=("verl.models.transformers.glm4v", "likewise")),
    *_of(
        "trainers/dpo/offline.py",
        _init_tokenizer=(_PPO, "a part of `_setup`, which is ours"),
        _init_dump_executor=(_PPO, "another"),
    ),
    *_of("trainers/rl/scored_trainer.py", _dump_generations=(_PPO, "writes the rows that `_log_rollout_data` makes")),
    *_of(
        "trainers/worker/worker.py",
        _is_rollout=("verl.workers.engine_workers:ActorRolloutRefWorker", "the role that verl gave the worker"),
    ),
    *_of(
        "trainers/worker/module.py trainers/worker/worker.py",
        _is_lora=(_FSDP, "whether there are adapters"),
    ),
    *_of(
        "trainers/worker/engine.py trainers/worker/rows_engine.py trainers/worker/module.py",
        _autocast_dtype=(_FSDP, "what verl's own forward pass computes in"),
    ),
    *_of(
        "trainers/worker/module.py",
        _no_split_modules=("transformers.modeling_utils:PreTrainedModel", "the layers that FSDP wraps"),
    ),
    *_of(
        "trainers/worker/engine.py",
        _qat_enabled=(_FSDP, "its optimizer step does more there than ours would"),
        _step_supports_amp_scaling=("torch.optim.adamw:AdamW", "what `torch.amp.GradScaler` asks of an optimizer"),
    ),
    *_of(
        "trainers/worker/optimizer.py",
        _last_lr=("torch.optim.lr_scheduler:LRScheduler", "the rate that is logged until the next step"),
    ),
    *_of(
        "trainers/logprobs/switch.py",
        _attn_implementation=("transformers.configuration_utils:PreTrainedConfig", "what the model was set to"),
    ),
    *_of(
        "trainers/logprobs/attention.py",
        _flash_attention_forward=("torch.ops.aten", "segments of many lengths in one kernel, without a package more"),
        _flash_attention_backward=("torch.ops.aten", "likewise"),
    ),
    *_of("kernels/cpu_linear.py", _linear_pointwise=("torch.ops.mkldnn", "oneDNN's product; tried before it is used")),
    *_of(
        "models/company.py",
        _fsdp_wrapped_module=("torch.distributed.fsdp:FullyShardedDataParallel", "the model inside"),
        _buffers=("torch.nn:Module", "frequencies of rotary embeddings, to be set back"),
    ),
    *_of(
        "platform/attention.py rollout/hf/limits.py",
        _model_mapping=("transformers:AutoModelForCausalLM", "the class of a configuration, without loading it"),
    ),
    *_of(
        "platform/attention.py", _supports_sdpa=("transformers.modeling_utils:PreTrainedModel", "what it says it can")
    ),
    *_of(
        "rollout/rounds/turns.py",
        _assert_append_only=(
            "verl.utils.tokenizer.continuous_token:ContinuousTokenBuilder",
            "the check with which verl's own builders begin",
        ),
    ),
    *_of("trl/dpo_trainer.py", _load_from_checkpoint=("transformers.trainer:Trainer", "a run that is over is not run")),
    *_of(
        "trl/options.py",
        _actions=("argparse:ArgumentParser", "the options of a parser that another has filled"),
        _option_string_actions=("argparse:ArgumentParser", "likewise, by their names"),
    ),
    *_of("cli/incident_source.py", _ActionsContainer=("argparse", "type of what options are added to")),
    *_of(
        "rollout/tools/calls.py",
        _registry=("verl.experimental.agent_loop.tool_parser:ToolParser", "the formats it knows, for the message"),
    ),
    *_of(
        "incidents/wording.py evaluation/investigation/evaluate.py investigation/signals.py",
        _asdict=("urllib.parse:SplitResult", "documented; a named tuple's fields with their names"),
    ),
    *_of("trainers/runs/ending.py", _exit=("os", "documented; leaves threads that do not end")),
)


def is_there(entry: Private) -> bool:
    """Whether the owner has the name, or sets it on objects that it makes.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has no such class.
    """
    module, _, cls = entry.owner.partition(":")
    if module.startswith("torch.ops."):
        import torch

        return hasattr(getattr(torch.ops, module.rpartition(".")[2]), entry.name)
    owner = importlib.import_module(module)
    owner = getattr(owner, cls) if cls else owner
    if hasattr(owner, entry.name):
        return True
    sets = re.compile(rf'self\.{entry.name}\b[^=\n]*=|__setattr__\("{entry.name}"')
    return cls != "" and any(sets.search(inspect.getsource(base)) for base in owner.__mro__ if base is not object)
