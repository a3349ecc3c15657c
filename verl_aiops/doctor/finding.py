"""What a check of the doctor finds, and how findings are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from verl_aiops.missing import error_text

__all__ = ["FAULT", "INFO", "OK", "Finding", "as_json", "as_table", "error_text"]

OK, INFO, FAULT = "ok", "info", "fault"
_COLOURS = {OK: "\033[32m", INFO: "\033[36m", FAULT: "\033[31m"}


@dataclass(frozen=True)
class Finding:
    """``level``: ``"ok"``, ``"info"`` (nothing to mend) or ``"fault"``. ``advice``: what follows, or how to mend it."""

    section: str
    level: str
    label: str
    value: str
    advice: str = ""


def as_json(findings: Sequence[Finding]) -> str:
    """``{"ok": bool, "findings": [{section, level, label, value, advice}, ...]}``"""
    ok = all(finding.level != FAULT for finding in findings)
    return json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}, indent=1, ensure_ascii=False)


def as_table(findings: Sequence[Finding], *, colours: bool = False) -> str:
    """Aligned lines by section, then one sentence for each fault."""
    width = max(len(finding.label) for finding in findings)
    lines, section = [], None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines.append(section)
        mark = f"{finding.level:<5}"
        if colours:
            mark = f"{_COLOURS[finding.level]}{mark}\033[0m"
        advice = f". {finding.advice}" if finding.advice and finding.level != FAULT else ""
        lines.append(f"  {mark}  {finding.label:<{width}}  {finding.value}{advice}")
    faults = [finding for finding in findings if finding.level == FAULT]
    lines += ["", f"{len(faults)} fault{'s' * (len(faults) != 1)}" + (":" if faults else ".")]
    lines += [f"  {finding.label}: {finding.value}. {finding.advice}" for finding in faults]
    return "\n".join(lines)
