"""Tools over a case: deterministic, bounded, without a cluster. `answer` is the door, `TOOLS` the table."""

from verl_aiops.investigation.tools.answer import LEAST_CHARS, MAX_CHARS, answer, tool_names, tool_schemas
from verl_aiops.investigation.tools.table import TOOLS, Tool
from verl_aiops.investigation.tools.text import ToolAnswer

__all__ = ["LEAST_CHARS", "MAX_CHARS", "TOOLS", "Tool", "ToolAnswer", "answer", "tool_names", "tool_schemas"]
