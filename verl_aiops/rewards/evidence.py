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


class Passages(NamedTuple):
    """An incident's text, cut for judging quotations; the lists run in parallel, in the order of the text.

    Attributes:
        text: the incident's own text.
        starts: where each passage starts.
        ends: where it ends.
        items: for each passage, the numbers of the known evidence in it, empty for any other passage.
        known: how many pieces of known evidence occur in the text.
    """

    text: str
    starts: list[int]
    ends: list[int]
    items: list[frozenset[int]]
    known: int


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


def _occurrences(text: str, part: str, start: int = 0) -> list[int]:
    found = []
    at = text.find(part, start)
    while at >= 0 and len(found) < _MAX_OCCURRENCES:
        found.append(at)
        at = text.find(part, at + len(part))
    return found


@lru_cache(maxsize=256)
def cut_passages(text: str, evidence: tuple[str, ...]) -> Passages:
    """Cut an incident's text into passages. Known evidence that does not occur in the text cannot be quoted from it and
    is left out.

    Args:
        text: the incident's own text.
        evidence: known evidence, trimmed and not empty.
    """
    spans = sorted(
        (at, at + len(item), number) for number, item in enumerate(evidence) for at in _occurrences(text, item)
    )
    starts, ends, items = [], [], []
    position, first = 0, 0
    for line in text.split("\n"):
        start, end = position, position + len(line)
        position = end + 1
        while first < len(spans) and spans[first][1] <= start:
            first += 1
        if first < len(spans) and spans[first][0] < end:
            for low, high, numbers in _cut_line(text, start, end, spans, first):
                starts.append(low)
                ends.append(high)
                items.append(numbers)
        elif line and not line.isspace():
            starts.append(start)
            ends.append(end)
            items.append(_NO_ITEMS)
    return Passages(text, starts, ends, items, len({number for _, _, number in spans}))


def _cut_line(text: str, start: int, end: int, spans: list, first: int) -> list[tuple[int, int, frozenset[int]]]:
    merged = []
    for index in range(first, len(spans)):
        low, high, number = spans[index]
        if low >= end:
            break
        low, high = max(low, start), min(high, end)
        if low >= high:
            continue
        if merged and low < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]), merged[-1][2] | {number})
        else:
            merged.append((low, high, frozenset({number})))
    context = max(high - low for low, high, _ in merged)
    cut, position = [], start
    for low, high, numbers in [*merged, (end, end, _NO_ITEMS)]:
        if len(text[position:low].strip()) > context:
            cut.append((position, low, _NO_ITEMS))
        if numbers:
            cut.append((low, high, numbers))
        position = high
    return cut


def judge_quotations(verbatim: Mapping[str, int], invented: int, passages: Passages, *, min_chars: int) -> Judgement:
    """Judge distinct verbatim quotations, each with its first place in the text, and a number of invented ones.

    Each quotation stands for one place of the text, the one richest in evidence, and pays there in proportion to how
    many of its places hold evidence. A passage counts once however often it is quoted; it is quoted when `min_chars` of
    its characters are, or all of them.
    """
    quoted: dict[int, float] = {}
    for quotation, first in verbatim.items():
        place = _touched(first, first + len(quotation), passages, min_chars)
        share = 1.0
        others = _occurrences(passages.text, quotation, first + len(quotation))
        if others:
            places = [place, *(_touched(at, at + len(quotation), passages, min_chars) for at in others)]
            worth = [sum(1 for index in place if passages.items[index]) for place in places]
            place = places[worth.index(max(worth))]
            share = sum(1 for number in worth if number) / len(places)
        for index in place:
            if share > quoted.get(index, -1.0):
                quoted[index] = share
    if not quoted:
        return _NOTHING
    counted = len(quoted) + invented
    if not passages.known:
        precision = len(quoted) / counted
        # Half of the text may be quoted freely; from there to all of it the credit falls to nothing.
        brevity = min(1.0, 2.0 * (1.0 - len(quoted) / len(passages.starts)))
        return Judgement(precision, 0.0, UNJUDGED_SHARE * brevity * precision)
    earned, recalled = 0.0, set()
    for index, share in quoted.items():
        if passages.items[index]:
            earned += share
            recalled |= passages.items[index]
    precision, recall = earned / counted, len(recalled) / passages.known
    return Judgement(precision, recall, precision * recall**0.5)


def _touched(start: int, end: int, passages: Passages, min_chars: int) -> list[int]:
    starts, ends = passages.starts, passages.ends
    touched = []
    index = max(0, bisect_right(starts, start) - 1)
    while index < len(starts) and (low := starts[index]) < end:
        high = ends[index]
        overlap = (high if high < end else end) - (low if low > start else start)
        if overlap >= min_chars or overlap == high - low:
            touched.append(index)
        index += 1
    return touched
