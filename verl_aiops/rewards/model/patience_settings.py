"""Settings of whoever asks a server for scores or verdicts, each a call that makes the field."""

from __future__ import annotations

from functools import partial
from typing import Any

from verl_aiops.http import LONGEST_WAIT_S
from verl_aiops.settings import setting

__all__ = ["BACKOFF_S", "TIMEOUT_S", "attempts", "concurrency", "deadline_s"]

TIMEOUT_S = partial(setting, 60.0, "seconds for one request.", within="[1e-3, inf)", expected="seconds, above 0")
BACKOFF_S = partial(
    setting,
    1.0,
    f"seconds before the second attempt; doubled for each further one, at most {LONGEST_WAIT_S:g}.",
    within="[0, inf)",
    expected="seconds, 0 or more",
)


def deadline_s(asked_for: str) -> Any:
    return setting(
        300.0,
        f"seconds for all attempts of one {asked_for} together.",
        within="[1e-3, inf)",
        expected="seconds, above 0",
    )


def attempts(default: int, asked_for: str) -> Any:
    return setting(default, f"requests at most for one {asked_for}.", within="[1, inf)")


def concurrency(default: int) -> Any:
    return setting(default, "requests at a time from one of `reward.num_workers`.", within="[1, inf)")
