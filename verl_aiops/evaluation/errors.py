"""Errors that a user of the evaluation can mend."""

from __future__ import annotations

__all__ = ["EvaluationError"]


class EvaluationError(ValueError):
    """Bad input or a bad setting; the message says where, what was expected and how to mend it."""
