"""Errors that a user of the evaluation can mend."""

from __future__ import annotations

from verl_aiops.inputs.shown import UserError

__all__ = ["EvaluationError"]


class EvaluationError(UserError):
    """Bad input or a bad setting; the message says where, what was expected and how to mend it."""
