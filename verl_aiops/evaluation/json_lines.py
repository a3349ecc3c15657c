"""Files of JSON lines that `verl-aiops eval` or verl wrote, each line checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.inputs.json_text import JsonFault, read_json
from verl_aiops.inputs.sniff import refusal

__all__ = ["BY_EVAL", "checked_lines"]

BY_EVAL = "; the file is not as `verl-aiops eval` wrote it"
"""Ends the message about a line of `verl-aiops eval`."""


def checked_lines(
    path: Path, fault_of: Callable[[Any], str | None], ending: str = "", unfinished: bool = False
) -> Iterator[tuple[int, Any, int]]:
    """Number, value and bytes of each line.

    Args:
        fault_of: what is wrong with a value, None for nothing; it may complete the value.
        ending: of the message about a line.
        unfinished: the file may end within a line, as of a process that was killed; that line is left out.

    Raises:
        EvaluationError: the file is of another kind, or a line is at fault; names file and line.
    """
    unfit = refusal(path, "json")
    if unfit:
        raise EvaluationError(f"{path} {unfit}")
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if unfinished and not text.endswith(b"\n"):
                break
            try:
                value = read_json(text)
                fault = fault_of(value)
            except JsonFault as error:
                fault = f"not JSON: {error}"
            if fault:
                raise EvaluationError(f"{path}, line {number}: {fault}{ending}")
            yield number, value, len(text)
