"""Investigation: incidents that carry their telemetry, tools that ask it, and what is built of both.

Needs neither torch nor verl.
"""

from verl_aiops.investigation.case import Case, Edge, RootCause
from verl_aiops.investigation.from_incidents import case_of
from verl_aiops.investigation.reading import load_case, read_cases, write_cases
from verl_aiops.investigation.recorded import Recorded, RecordedAnswer
from verl_aiops.investigation.signals import LogLine, Note, Series, Signals, Span
from verl_aiops.investigation.tools import TOOLS, ToolAnswer, answer, tool_schemas

__all__ = [
    "TOOLS",
    "Case",
    "Edge",
    "LogLine",
    "Note",
    "Recorded",
    "RecordedAnswer",
    "RootCause",
    "Series",
    "Signals",
    "Span",
    "ToolAnswer",
    "answer",
    "case_of",
    "load_case",
    "read_cases",
    "tool_schemas",
    "write_cases",
]
