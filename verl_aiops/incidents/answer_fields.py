"""Which fields an answer has: service and incident type always, and what else a team wants to know (severity, team)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.inputs.shown import one_line

__all__ = ["DEFAULT_FIELDS", "check_more_fields", "further_fields"]

DEFAULT_FIELDS = ("service", "incident_type")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
# What a record, a ground truth or a line of `verl-aiops triage` has under this name already.
_TAKEN = frozenset(
    "id source symptom logs trace lang evidence fault aliases difficulty upstream decoys candidates fields analysis "
    "error".split()
)
_MOST = 12


def further_fields(text: str) -> tuple[str, ...]:
    """`service,incident_type,severity,team` as what is asked for beyond the first two: `("severity", "team")`.

    Raises:
        IncidentError: one of the first two is missing, or a name that no field can have.
    """
    names = [part.strip() for part in text.split(",")]
    missing = [name for name in DEFAULT_FIELDS if name not in names]
    if missing:
        raise IncidentError(
            f"--answer-fields {one_line(text, 80)}: {' and '.join(missing)} must be among them; every answer has "
            f"both, as in {','.join(DEFAULT_FIELDS)},severity"
        )
    for name in DEFAULT_FIELDS:
        names.remove(name)
    return check_more_fields(names)


def check_more_fields(names: Sequence[str]) -> tuple[str, ...]:
    """The fields themselves; raises IncidentError for one that cannot be, or that is there twice."""
    for number, name in enumerate(names):
        shown = one_line(repr(name), 60)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise IncidentError(
                f"answer field {shown}: expected a name of small letters, digits and underscores that begins with a "
                "letter, 40 characters at most; --columns severity=Prio reads a column of another name"
            )
        if name in DEFAULT_FIELDS or name in names[:number]:
            raise IncidentError(f"answer field {shown}: is named twice; leave one of them out")
        if name in _TAKEN:
            raise IncidentError(f"answer field {shown}: means something else in an incident; give it another name")
    if len(names) > _MOST:
        raise IncidentError(f"answer fields: expected {_MOST} at most beside service and type, found {len(names)}")
    return tuple(names)
