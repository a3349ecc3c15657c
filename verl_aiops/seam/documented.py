"""verl's names that its own documentation shows to its users: what may be imported from verl itself.

Each stands in verl's pages as of 0.9: extending, agent loops, the model engine, hardware plug-ins, the single
controller, the reference of utilities. A name that they do not show is a `Need` of this folder.
"""

from __future__ import annotations

__all__ = ["DOCUMENTED"]

DOCUMENTED: dict[str, tuple[str, ...]] = {
    "verl": ("DataProto",),
    "verl.experimental.agent_loop.agent_loop": ("AgentLoopBase", "AgentLoopOutput"),
    "verl.plugin.platform": ("PlatformRegistry",),
    "verl.plugin.platform.platform_base": ("PlatformBase",),
    "verl.single_controller.base.decorator": ("Dispatch", "make_nd_compute_dataproto_dispatch_fn", "register"),
    "verl.single_controller.ray": ("RayClassWithInitArgs", "RayWorkerGroup", "create_colocated_worker_cls"),
    "verl.tools.schemas": ("OpenAIFunctionToolSchema",),
    "verl.utils": ("device", "hf_tokenizer"),
    "verl.utils.checkpoint.checkpoint_manager": ("find_latest_ckpt_path",),
    "verl.utils.dataset.rl_dataset": ("RLHFDataset",),
    "verl.utils.device": ("get_device_name", "get_torch_device"),
    "verl.utils.fs": ("copy_to_local",),
    "verl.utils.fsdp_utils": ("get_init_weight_context_manager",),
    "verl.utils.metric": ("reduce_metrics",),
    "verl.utils.rollout_trace": ("rollout_trace_op",),
    "verl.workers.engine": ("EngineRegistry",),
    "verl.workers.engine.base": ("BaseEngine", "EngineRegistry"),
    "verl.workers.rollout.replica": ("RolloutReplica",),
}
