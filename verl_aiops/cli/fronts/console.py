"""What of a run reaches the console: a line a step, and what this package and errors say. The rest is in the log."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verl_aiops.cli.fronts.tasks import Column, Task
from verl_aiops.inputs.shown import one_line, printable

__all__ = ["Console", "duration", "step_line"]

OURS = "verl-aiops: "
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_RAY = re.compile(r"^\([\w.:<>-]+ (?:pid|ip)=[^)]*\) ?")
# what the trainers of this package say, and the progress bars of verl's SFT trainer and of TRL
_STEPS = re.compile(OURS + r"training: steps \d+ to (\d+)$")
_EPOCHS = re.compile(r"Epoch \d+/(\d+):.*\| *\d+/(\d+) \[")
_BAR = re.compile(r"\s*\d+%\|.*\| *\d+/(\d+) \[")
# what loggers, warnings and Python write, behind an error of ours too
_NOISE = re.compile(r"\d{4}-\d\d-\d\d |(?:INFO|WARNING|ERROR|DEBUG)\b|\S+:\d+: \w*Warning\b|Traceback|[\[({*]")
_PROGRESS = re.compile(r"\d+%\||\d+it \[")
_SECONDS = ("timing_s/step", "perf/time_per_step")
_FILLED_IN = "set for this run:"
# steps whose mean time tells the time that is left: the first are slower, and answers change their length
_RECENT = 20
_KEPT = 400  # lines of the log for the words that a failed run ends with
_LAST_WORDS = 25


def duration(seconds: float) -> str:
    """``1:24`` or ``2:03:09``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _found(columns: Sequence[Column], data: Mapping[str, Any]) -> list[str]:
    shown = []
    for column in columns:
        key = next((key for pattern in column.keys for key in data if re.fullmatch(pattern, key)), None)
        if key is not None:
            value = data[key]
            # verl's logger writes null for a number that is not finite
            number = math.nan if value is None else value
            shown.append(f"{column.label} {number:{column.form}}" if isinstance(number, int | float) else column.label)
    return shown


def step_line(columns: Sequence[Column], step: int, total: int | None, data: Mapping[str, Any], recent: deque) -> str:
    """``step 12/40  loss 0.512  margin +0.31  acc 0.75  3.1 s  eta 1:24``, or an empty text for what is no step.

    `recent` holds the seconds of the last steps, to which this one's are added.
    """
    figures = _found(columns, data)
    if not figures:
        return ""
    seconds = next((data[key] for key in _SECONDS if isinstance(data.get(key), int | float)), None)
    parts = [f"step {step}/{total}" if total else f"step {step}", *figures]
    if seconds is not None and math.isfinite(seconds):
        recent.append(seconds)
        parts.append(f"{seconds:.1f} s")
        if total and total > step:
            parts.append(f"eta {duration((total - step) * sum(recent) / len(recent))}")
    return "  ".join(parts)


class Console:
    """Takes the lines of a run's log and of its metrics file, and shows what a user needs of them.

    Args:
        task: whose columns a step has.
        log: name of the file with the rest.
        show: takes each line for the console.
        total: steps in all, where that is known from the beginning.
        clock: seconds; for steps whose trainer does not tell their time.
    """

    def __init__(self, task: Task, log: str, show: Callable[[str], None], total: int | None, clock: Callable):
        self._task, self._log, self._show, self.total, self._clock = task, log, show, total, clock
        self._recent: deque = deque(maxlen=_RECENT)
        # when the last step was logged; the first has the loading of the model before it
        self._last: float | None = None
        self._following: bool | None = None  # whether indented lines that follow belong to one that was shown
        self._in_error = False  # whether other lines do too: an error of ours ends with how to mend it
        self._kept: deque = deque(maxlen=_KEPT)
        self.told_error = False
        self.steps = 0

    def said(self, raw: str) -> None:
        """A line of the log, without its end."""
        text = _ANSI.sub("", raw)
        line = _RAY.sub("", text).rstrip()
        if self._count(line) or not line:
            return
        if line.startswith(" ") and self._following is not None:
            if self._following:
                self._show(printable(line))
        elif line.endswith(f"{OURS}{_FILLED_IN}"):
            self._show(f"{OURS}filled in what the line leaves open: {self._log}")
            self._following = False
        elif line.startswith((OURS, *self._task.shows)):
            self._show(printable(line))
            self._following = True
            self._in_error = line.startswith(f"{OURS}error")
            self.told_error = self.told_error or self._in_error
        elif self._in_error and not _NOISE.match(text) and not _PROGRESS.search(line):
            self._show(printable(line))
        else:
            self._following, self._in_error = None, False
        if not _PROGRESS.search(line):
            self._kept.append(line)

    def _count(self, line: str) -> bool:
        """Whether the line only tells how many steps there are."""
        if told := _STEPS.match(line):
            self.total = int(told[1])
            return True
        if self.total is None and (told := _EPOCHS.search(line)):
            self.total = int(told[1]) * int(told[2])
        elif self.total is None and (told := _BAR.match(line)):
            self.total = int(told[1])
        return False

    def logged(self, raw: str) -> None:
        """A line of the metrics file; one that is none is left out, as it may have been cut short."""
        try:
            entry = json.loads(raw)
            step, data = int(entry["step"]), dict(entry["data"])
        except (ValueError, TypeError, KeyError):
            return
        now = self._clock()
        if self._last is not None and not any(key in data for key in _SECONDS):
            data[_SECONDS[0]] = now - self._last
        line = step_line(self._task.columns, step, self.total, data, self._recent)
        if line:
            self._last = now
            self.steps += 1
            self._show(line)
        if held_out := _found(self._task.held_out, data):
            if self._task.nan_means and any(figure.endswith(" nan") for figure in held_out):
                held_out.append(self._task.nan_means)
            self._show("  ".join([f"held out, step {step}:", *held_out]))
            self._last = self._clock()

    def last_words(self) -> list[str]:
        """Of a run that failed: the last traceback of its log, or its last lines, shortened."""
        lines = list(self._kept)
        starts = [at for at, line in enumerate(lines) if line.startswith("Traceback")]
        lines = lines[starts[-1] :] if starts else lines
        return [one_line(line, 300) for line in lines[-_LAST_WORDS:]]
