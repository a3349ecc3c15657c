"""The data that runs of verl's main_ppo share."""

from rl_runs import data  # noqa: F401  (a fixture)
