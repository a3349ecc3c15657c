"""The case of a row of data, and how the row wants it asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from verl_aiops.investigation.case import Case
from verl_aiops.investigation.reading import load_case

__all__ = ["AskedCase", "case_of"]


class AskedCase(NamedTuple):
    """A case as a row names it.

    Attributes:
        case: with its telemetry.
        listed: whether the row's prompt lists the tools itself; None where the row does not say.
        answer_chars: the longest answer of a tool that the row was made for, in characters; None where it does not say.
    """

    case: Case
    listed: bool | None = None
    answer_chars: int | None = None


def case_of(extra_info: Any) -> AskedCase:
    """The case that a row names in ``extra_info``: by ``case_file`` and ``id``, or whole as JSON text in ``case``.

    Raises:
        ValueError: it names none, or one that cannot be read.
        FileNotFoundError: the file is not there.
    """
    info = extra_info if isinstance(extra_info, Mapping) else {}
    chars = info.get("answer_chars")
    tools = info.get("tools")
    listed = {"prompt": True, "template": False}.get(tools) if isinstance(tools, str) else None
    if isinstance(info.get("case"), str):
        try:
            case = Case.from_dict(json.loads(info["case"]))
        except RecursionError:
            raise ValueError("extra_info.case: nested too deeply") from None
        return AskedCase(case, listed, chars)
    file, name = info.get("case_file"), info.get("id")
    if not isinstance(file, str) or not file or not isinstance(name, str):
        raise ValueError("extra_info: expected case_file and id, which name the case that the tools are about")
    return AskedCase(load_case(file, name), listed, chars)
