"""Errors that a user of the evaluation can mend."""

from __future__ import annotations

import os

from verl_aiops.inputs.shown import UserError

__all__ = ["EvaluationError", "check_out"]


class EvaluationError(UserError):
    """Bad input or a bad setting; the message says where, what was expected and how to mend it."""


def check_out(folder: str | os.PathLike) -> None:
    """Before anything is computed for a folder of results.

    Raises:
        EvaluationError: there is a file of this name.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise EvaluationError(f"--out {os.fspath(folder)}: expected a folder, found a file")
