"""What quotations are worth as evidence.

Everything is counted in passages, not characters, so that a score does not depend on how long names and lines are. A
passage is a line of the incident; a line that holds known evidence is cut at the ends of the evidence, and what is
left of it counts as a passage of its own only where it is longer than the evidence, else it is the evidence's context.
"""

from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

# A phrase that occurs everywhere points nowhere; this many occurrences tell.
_MAX_OCCURRENCES = 16

# Where a row has no known evidence, verbatim quotations earn this share: nothing says that they are the right ones.
UNJUDGED_SHARE = 0.5


class Evidence(NamedTuple):
    """An incident's text and where its known evidence stands in it.

    Attributes:
        text: the incident's own text.
        starts: where each stretch of evidence starts; stretches do not overlap, none goes beyond its line, and they are
            in the order of the text.
        ends: where it ends.
        items: the numbers of the pieces of known evidence it is made of.
        known: how many pieces of known evidence occur in the text.
        lines: how many lines of the text are not blank.
    """

    text: str
    starts: list[int]
    ends: list[int]
    items: list[frozenset[int]]
    known: int
    lines: int


class Judgement(NamedTuple):
    """What a set of quotations is worth, each number from 0 to 1.

    Attributes:
        precision: share of quoted passages that are known evidence, invented quotations counting as passages; where no
            evidence is known, the share of passages that are not invented.
        recall: share of known evidence quoted; 0 where none is known.
        quality: precision times the square root of recall; where no evidence is known see `UNJUDGED_SHARE`.
    """

    precision: float
    recall: float
    quality: float


_NOTHING = Judgement(0.0, 0.0, 0.0)
_NO_ITEMS: frozenset[int] = frozenset()


def _occurrences(text: str, part: str) -> list[int]:
    found: list[int] = []
    at = text.find(part)
    while at >= 0 and len(found) < _MAX_OCCURRENCES:
        found.append(at)
        at = text.find(part, at + len(part))
    return found


@lru_cache(maxsize=256)
def find_evidence(text: str, evidence: tuple[str, ...]) -> Evidence:
    """Find the known evidence in an incident's text. What does not occur there cannot be quoted and is left out.

    Args:
        text: the incident's own text.
        evidence: known evidence, trimmed and not empty.
    """
    spans = []
    for number, item in enumerate(evidence):
        for at in _occurrences(text, item):
            for line in item.split("\n"):
                if line:
                    spans.append((at, at + len(line), number))
                at += len(line) + 1
    spans.sort()
    starts: list[int] = []
    ends: list[int] = []
    items: list[frozenset[int]] = []
    for start, end, number in spans:
        if ends and start < ends[-1]:
            ends[-1] = max(end, ends[-1])
            items[-1] |= {number}
        else:
            starts.append(start)
            ends.append(end)
            items.append(frozenset({number}))
    lines = sum(1 for line in text.split("\n") if line and not line.isspace()) if not spans else 0
    return Evidence(text, starts, ends, items, len({number for _, _, number in spans}), lines)


def judge_quotations(verbatim: Mapping[str, int], invented: int, evidence: Evidence, *, min_chars: int) -> Judgement:
    """Judge distinct verbatim quotations, each with its first place in the text, and a number of invented ones.

    Each quotation stands for one place of the text, the one richest in evidence, and pays there in proportion to how
    many of its places hold evidence. A passage counts once however often it is quoted; it is quoted when `min_chars` of
    its characters are, or all of them.
    """
    text = evidence.text
    quoted: dict[int, tuple[float, frozenset[int]]] = {}
    for quotation, first in verbatim.items():
        size = len(quotation)
        place = _touched(first, first + size, evidence, min_chars)
        share = 1.0
        if text.find(quotation, first + size) >= 0:
            places = [_touched(at, at + size, evidence, min_chars) for at in _occurrences(text, quotation)]
            worth = [sum(1 for _, items in place if items) for place in places]
            place = places[worth.index(max(worth))]
            share = sum(1 for number in worth if number) / len(places)
        for start, items in place:
            if start not in quoted or share > quoted[start][0]:
                quoted[start] = (share, items)
    if not quoted:
        return _NOTHING
    counted = len(quoted) + invented
    if not evidence.known:
        precision = len(quoted) / counted
        # Half of the text may be quoted freely; from there to all of it the credit falls to nothing.
        brevity = min(1.0, 2.0 * (1.0 - len(quoted) / evidence.lines))
        return Judgement(precision, 0.0, UNJUDGED_SHARE * brevity * precision)
    earned, recalled = 0.0, _NO_ITEMS
    for share, items in quoted.values():
        if items:
            earned += share
            recalled |= items
    precision, recall = earned / counted, len(recalled) / evidence.known
    return Judgement(precision, recall, precision * recall**0.5)


def _touched(start: int, end: int, evidence: Evidence, min_chars: int) -> list[tuple[int, frozenset[int]]]:
    """The passages that a stretch of the text quotes: where each starts, and the known evidence in it."""
    text, starts, ends, items_of, _, _ = evidence
    first = bisect_right(ends, start)
    if first < len(starts) and starts[first] <= start and ends[first] >= end:
        # The usual case: all of it lies in one stretch.
        return [(starts[first], items_of[first])]
    line_start = text.rfind("\n", 0, start) + 1
    touched = []
    while line_start < end:
        line_end = text.find("\n", line_start)
        if line_end < 0:
            line_end = len(text)
        first = bisect_right(ends, line_start)
        if first < len(starts) and starts[first] < line_end:
            passages = _cut_line(line_start, line_end, evidence, first)
        elif text[line_start:line_end].isspace():
            passages = []
        else:
            passages = [(line_start, line_end, _NO_ITEMS)]
        for low, high, items in passages:
            overlap = (high if high < end else end) - (low if low > start else start)
            if overlap >= min_chars or overlap == high - low > 0:
                touched.append((low, items))
        line_start = line_end + 1
    return touched


def _cut_line(start: int, end: int, evidence: Evidence, first: int) -> list[tuple[int, int, frozenset[int]]]:
    """The passages of a line that holds evidence, of which `first` is the first stretch."""
    last = first
    while last < len(evidence.starts) and evidence.starts[last] < end:
        last += 1
    stretches = list(zip(evidence.starts[first:last], evidence.ends[first:last], evidence.items[first:last]))
    context = max(high - low for low, high, _ in stretches)
    cut, position = [], start
    for low, high, items in [*stretches, (end, end, _NO_ITEMS)]:
        if len(evidence.text[position:low].strip()) > context:
            cut.append((position, low, _NO_ITEMS))
        if items:
            cut.append((low, high, items))
        position = high
    return cut
