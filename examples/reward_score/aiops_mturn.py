"""The triage reward under the path that older guides use:
`reward.custom_reward_function.path=examples/reward_score/aiops_mturn.py`."""

from verl_aiops.rewards.aiops_mturn import compute_score

__all__ = ["compute_score"]
