"""What keeps verl-aiops from working in this environment: versions, plug-in, platform, names, Ray.

verl swallows a plug-in's import error, and the user then reads only that an estimator is unknown. Each check is a small
function that yields findings; a check that fails unexpectedly is itself a fault and never hides the others.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from functools import partial
from typing import TextIO

from verl_aiops.doctor.environment import check_attention, check_flash_attn, check_ray, check_rollouts, check_trl
from verl_aiops.doctor.finding import FAULT, INFO, OK, Finding, as_json, as_table, error_text
from verl_aiops.doctor.registration import NAMES, check_names, check_platform, check_plugin
from verl_aiops.doctor.touch_points import check_touch_points
from verl_aiops.doctor.versions import check_versions

_ENVIRONMENT = (check_ray, check_trl, check_attention)

__all__ = ["FAULT", "INFO", "NAMES", "OK", "Finding", "as_json", "as_table", "doctor", "examine"]


def doctor(*, as_json_text: bool = False, stream: TextIO | None = None) -> int:
    """Examine this environment and print the findings.

    Args:
        as_json_text: print one JSON object instead of the table.
        stream: where to print; standard output if None. Colours are used on a terminal only.

    Returns:
        exit code: 1 if there is a fault, else 0.
    """
    stream = stream or sys.stdout
    with redirect_stdout(sys.stderr):  # what libraries print must not mix with the JSON
        findings = examine()
    colours = stream.isatty() and not os.environ.get("NO_COLOR")
    print(as_json(findings) if as_json_text else as_table(findings, colours=colours), file=stream)
    return int(any(finding.level == FAULT for finding in findings))


def examine() -> list[Finding]:
    """All findings about this environment, in the order of the report. Never raises."""
    # before anything imports verl: the CPU platform sets the variable for child processes
    asked = os.environ.get("VERL_PLATFORM")
    findings: list[Finding] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for check in (check_versions, check_plugin):
            findings += run_check(check)
        if "verl" in sys.modules:  # if not, check_plugin has said why
            for check in (partial(check_platform, asked), check_names, check_touch_points, *_ENVIRONMENT):
                findings += run_check(check)
        for check in (check_flash_attn, check_rollouts):
            findings += run_check(check)
    return findings


def run_check(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What one check finds; an error that it did not expect becomes a fault beside what it found before."""
    findings: list[Finding] = []
    try:
        for finding in check():
            findings.append(finding)
    except Exception as error:
        name = getattr(check, "func", check).__name__.removeprefix("check_").replace("_", " ")
        advice = "The check itself stumbled; the faults before it may be the reason."
        findings.append(Finding(name, FAULT, name, f"could not be checked: {error_text(error)}", advice))
    return findings
