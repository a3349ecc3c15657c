"""Settings that stand in several sections of trainers with one meaning; a call makes the field of one."""

from __future__ import annotations

from functools import partial

from verl_aiops.settings import setting

__all__ = ["CHECK_SPACE", "LOGPROB_BACKEND", "PREFLIGHT_ROWS"]

LOGPROB_BACKEND = partial(
    setting,
    "auto",
    "`shared_prompt`: a prompt goes through the model once for all its answers; `rows`: once with each, for any "
    "model; `auto`: the first where the model allows it. The run says which and why.",
    choices=("auto", "rows", "shared_prompt"),
)
CHECK_SPACE = partial(
    setting, True, "refuse a run whose model, and one checkpoint, do not fit on the disk; `false` warns and goes on."
)
PREFLIGHT_ROWS = partial(
    setting,
    2000,
    "rows of each file that are rendered and checked before Ray starts; 0 for none.",
    within="[0, inf)",
)
