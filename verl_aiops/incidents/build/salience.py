"""Which lines of an incident are worth keeping when nobody knows yet what is wrong: by their text alone.

What a model is served is cut by this order, so it must not know the answer, nor which lines are evidence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["by_salience"]

# Levels and words of trouble, most severe first. Levels are whole words: `alert` is one, `alertmanager` is a name.
_LEVELS = (
    (4.0, re.compile(r"\b(?:fatal|panic|emerg|emergency|crit|critical|severe|alert)\b", re.IGNORECASE)),
    (
        3.0,
        re.compile(
            r"\berr\b|error|exception|fail|timeout|timed out|refused|denied|unreachable|corrupt|crash|abort|killed|oom"
            "|失败|错误|异常|超时|拒绝",
            re.IGNORECASE,
        ),
    ),
    (2.0, re.compile(r"\bwarn(?:ing)?\b", re.IGNORECASE)),
)
# A value beside its usual one, as the importers and the simulator write metrics and spans: `p99_ms=5656 (usual 27)`.
_USUAL = re.compile(r"\(usual ([-+0-9.eE]{1,24})")
_VALUE = re.compile(r"([-+0-9.eE]{1,24})\s?(?:ms|s|%)?\s?$")
_VALUE_CHARS = 32
# Eight times the usual value is as telling as an error; more is not more, or one metric in bytes would hide the logs.
_MOST_DEVIATION = 3.0
_NUMBERS = re.compile(r"[0-9a-f]{6,}|\d+")


def by_salience(logs: Sequence[str], trace: Sequence[str]) -> list[int]:
    """Indices of the lines of `logs` and then `trace`, the most telling first.

    A line counts by its level or words of trouble, or by how far a value is from its usual one (log2 of the ratio). One
    that repeats earlier lines but for numbers counts the less the more of them there are. Of equals, those nearer to
    the beginning of logs or trace come first, since effects follow their cause.
    """
    lines = [*logs, *trace]
    in_order = sorted(range(len(lines)), key=lambda index: index if index < len(logs) else index - len(logs))
    seen: Counter[str] = Counter()
    worth = {}
    for index in in_order:
        form = _NUMBERS.sub("#", lines[index])
        worth[index] = max(_level(lines[index]), _deviation(lines[index])) - math.log2(1 + seen[form])
        seen[form] += 1
    return sorted(in_order, key=lambda index: -worth[index])


def _level(line: str) -> float:
    return next((worth for worth, pattern in _LEVELS if pattern.search(line)), 0.0)


def _deviation(line: str) -> float:
    most = 0.0
    for match in _USUAL.finditer(line):
        # a window, since a pattern that looks for the number itself takes quadratic time on a line of digits
        value = _VALUE.search(line[max(0, match.start() - _VALUE_CHARS) : match.start()])
        try:
            low, high = sorted((abs(float(value.group(1))), abs(float(match.group(1))))) if value else (0.0, 0.0)
        except ValueError:
            continue
        if high > low:
            most = max(most, min(_MOST_DEVIATION, math.log2(high / low)) if low > 0 else _MOST_DEVIATION)
    return most
