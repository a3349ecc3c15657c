"""GRPO and PPO on scored answers."""
