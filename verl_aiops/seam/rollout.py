"""What our agent loops and the rollout `hf` need of verl's rollouts, and of its tokenizer's helpers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verl_aiops.seam.need import Need, brought

__all__ = ["NEEDS"]

_BASE = "verl.workers.rollout.base"
_REPLICA = "verl.workers.rollout.replica"
_TOKENS = "verl.utils.tokenizer.continuous_token"

NEEDS = (
    Need("verl.experimental.agent_loop", "agent_loop", "the loops' registry", has="_agent_loop_registry"),
    Need(
        "verl.experimental.agent_loop.agent_loop",
        "AgentLoopMetrics",
        "times of a conversation",
        takes="generate_sequences tool_calls num_preempted",
    ),
    Need(
        "verl.experimental.agent_loop",
        "tool_parser",
        "its log, which is not for calls that a model spoils",
        has="logger",
    ),
    Need(
        "verl.experimental.agent_loop.tool_parser",
        "ToolParser",
        "tool calls by a model's own format",
        has="get_tool_parser _registry",
    ),
    Need("verl.utils.profiler", "simple_timer", "how long a generation took", takes="name timing_raw"),
    Need("verl.utils.tokenizer", "normalize_token_ids", "ids of whatever a template gives", takes="tokenized_output"),
    Need("verl.utils.tokenizer.chat_template", "apply_chat_template", "a conversation as token ids"),
    Need(
        _TOKENS,
        "ContinuousTokenBuilder",
        "rounds whose tokens are never rendered twice",
        has="merge_context_tokens _assert_append_only",
    ),
    Need(_TOKENS, "MergeResult", "what it returns"),
    Need("verl.workers.rollout", "base", "the rollouts of workers", has="_ROLLOUT_REGISTRY"),
    Need(_BASE, "BaseRollout", "the base of ours", has="resume update_weights release"),
    Need(_BASE, "get_rollout_class", "what the doctor asks", takes="rollout_name"),
    Need(
        _REPLICA, "RolloutMode", "whether workers share their devices with a server", has="HYBRID COLOCATED STANDALONE"
    ),
    Need(_REPLICA, "TokenOutput", "what a generation returns", takes="token_ids log_probs stop_reason"),
    Need(_REPLICA, "get_rollout_replica_class", "what the doctor asks", takes="rollout"),
    Need("verl.workers.rollout.utils", "run_uvicorn", "the server of rewards", takes="app server_args server_address"),
    Need("verl.utils.net_utils", "is_valid_ipv6_address", "how an address is written", takes="address"),
    Need("verl.plugin.platform", "get_platform", "the platform of this run", takes=""),
    Need("verl.utils.import_utils", "is_trl_available", "whether verl sees TRL", takes=""),
    Need("verl.utils.import_utils", "resolve_config_path", "the file of a user's agent loops", takes="config_path"),
)

__getattr__: Callable[[str], Any] = brought(NEEDS)
