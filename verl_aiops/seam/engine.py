"""What our engines and workers need of verl's: FSDP engines, the workers around them, and the shapes of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verl_aiops.seam.need import Need, brought

__all__ = ["NEEDS"]

_FSDP = "verl.workers.engine.fsdp.transformer_impl"
_UTILS = "verl.workers.engine.utils"
_WORKERS = "verl.workers.engine_workers"
_PADDING = "verl.workers.utils.padding"
_METHODS = (
    "train_batch infer_batch forward_backward_batch forward_step optimizer_step load_checkpoint _build_fsdp_module"
)

NEEDS = (
    Need(_FSDP, "FSDPEngineWithLMHead", "the engine of policies", has=_METHODS),
    Need(_FSDP, "FSDPEngineWithValueHead", "the engine of critics", has=_METHODS),
    Need(_UTILS, "detach_tree", "what a micro-batch reports, without its graph", takes="obj"),
    Need(_UTILS, "postprocess_batch_func", "micro-batches' reports as one", takes="output_lst indices data"),
    Need(
        _WORKERS,
        "ActorRolloutRefWorker",
        "the actor's worker",
        has="actor_worker_cls init_model update_actor load_checkpoint save_checkpoint",
    ),
    Need(
        _WORKERS,
        "TrainingWorker",
        "the worker around an engine",
        takes="config",
        has="train_batch train_mini_batch infer_batch load_checkpoint _postprocess_output",
    ),
    Need("verl.workers.config", "TrainingWorkerConfig", "its settings"),
    Need(_PADDING, "no_padding_2_padding", "log-probs by rows", takes="tensor data"),
    Need(_PADDING, "response_from_nested", "the answer's part of each row", takes="tensor response_mask"),
    Need(
        "verl.utils",
        "tensordict_utils",
        "values beside tensors in a batch",
        has="assign_non_tensor get pop get_non_tensor_data get_tensordict index_select_tensor_dict",
    ),
    Need("verl.utils.metric", "AggregationType", "sum or mean over workers", has="SUM MEAN"),
    Need("verl.utils.metric", "Metric", "a number of several workers", takes="aggregation value", has="aggregate_dp"),
    Need("verl.utils.model", "get_hf_auto_model_class", "the class that verl loads a model with", takes="hf_config"),
    Need("verl.utils.torch_dtypes", "PrecisionType", "a dtype by its name in settings", has="to_dtype"),
    Need("verl.utils.py_functional", "convert_to_regular_types", "lists of settings as lists", takes="obj"),
    Need("verl.protocol", "BatchData", "a batch cut for the workers, ahead of the call", takes="data", has="chunk"),
    Need("verl.utils.device", "get_device_id", "this worker's device", takes=""),
    Need("verl.utils.ulysses", "get_ulysses_sequence_parallel_group", "who has a sequence together", takes=""),
    Need("verl.utils.device", "set_expandable_segments", "the allocator of a GPU", takes="enable"),
    Need("verl.utils.config", "omega_conf_to_dataclass", "a section of settings as verl's class", takes="config"),
    Need(
        "verl.utils.fsdp_utils",
        "get_fsdp_state_ctx",
        "the weights of an FSDP module as they are exported",
        takes="model state_type state_cfg optim_cfg",
    ),
    Need(
        "verl.utils.checkpoint.fsdp_checkpoint_manager", "FSDPCheckpointManager", "a checkpoint's configuration files"
    ),
    Need(
        "verl.model_merger.base_model_merger",
        "ModelMergerConfig",
        "shards to a model folder",
        takes="operation backend local_dir target_dir hf_model_config_path trust_remote_code",
    ),
    Need(
        "verl.model_merger.fsdp_model_merger",
        "FSDPModelMerger",
        "likewise",
        has="merge_and_save get_transformers_auto_model_class",
    ),
)

__getattr__: Callable[[str], Any] = brought(NEEDS)
