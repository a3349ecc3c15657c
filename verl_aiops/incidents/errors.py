"""Errors that a user of the incident tools can mend."""

from __future__ import annotations

from verl_aiops.inputs.shown import UserError


class IncidentError(UserError):
    """Bad input or a bad setting; the message says where, what was expected and how to mend it."""


class OutputExistsError(IncidentError):
    """A file that would be written is already there."""
