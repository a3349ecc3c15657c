"""Which incidents of a file are records of one fault, so that a split between them would flatter the validation.

Told by the record's `fault`; else by an id that ends in a running number; else by a log line that is evidence in both,
or by data that are the same to the last character: a question that was trained on is no question.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

from verl_aiops.incidents.io.spellings import spelling_key
from verl_aiops.incidents.schema import Incident, fault_id

__all__ = ["FaultFinder", "Faults"]

# A fault has tens of records at most: numbers of three digits, as in `bgl-0007`, count what a system has seen.
_NUMBERED = re.compile(r"(.+)-(\d+)")
_MOST_DIGITS = 2
_DATED = re.compile(r".*\d{4}-\d{2}-\d{2}")
# What stands before the number is a fault's name as long as few incidents of the source have it: one in ten, or one in
# four (or eight in all) where it has a digit itself, as a date or a ticket has and the name of a system has not.
_SHARE, _SHARE_WITH_DIGIT, _FEW_WITH_DIGIT = 10, 4, 8
# Equal evidence shows one event only where it is a line of its own (a time, an address, a value) and not a phrase that
# every such fault prints: `OOMKilled`, or a long one that hundreds share.
_LONG_EVIDENCE, _RARE_EVIDENCE = 40, 8


@dataclass(frozen=True)
class Faults:
    """How many faults were told apart, by what made them; `str()` says it in words.

    `contradicting` counts the incidents whose data, to the last character, another one has with another answer.
    """

    by_field: int = 0
    by_id: int = 0
    by_evidence: int = 0
    by_text: int = 0
    alone: int = 0
    contradicting: int = 0

    def __str__(self) -> str:
        total = self.by_field + self.by_id + self.by_evidence + self.by_text + self.alone
        return (
            f"{total:,} fault{'' if total == 1 else 's'}: {self.by_field:,} named by `fault`, {self.by_id:,} by ids "
            f"equal up to a last number, {self.by_evidence:,} by equal evidence, "
            + (f"{self.by_text:,} of incidents with the very same data, " if self.by_text else "")
            + f"{self.alone:,} of one incident alone"
        )


@dataclass(frozen=True)
class _Record:
    """What is remembered of an incident: its own fault, whether its `fault` names it, and what it may share."""

    fault: str
    by_field: bool
    source: str
    before_number: str | None
    evidence: tuple[int, ...]
    text: int
    answer: tuple[str, str]


class FaultFinder:
    """Sees all incidents of a file, then says which belong together.

    Evidence and data are kept as hashes, so memory stays small beside the file.
    """

    def __init__(self) -> None:
        self._records: list[_Record] = []
        self._parent: dict[str, str] = {}

    def add(self, incident: Incident) -> None:
        fault, by_field = fault_id(incident), incident.fault is not None
        number = None if by_field or fault != incident.id else _NUMBERED.fullmatch(incident.id)
        evidence = () if by_field else tuple(hash(text) for text in incident.evidence if _is_long(text))
        before = number.group(1) if number and not _DATED.fullmatch(incident.id) else None
        text = hash((incident.symptom, incident.logs, incident.trace))
        answer = spelling_key(incident.service), spelling_key(incident.incident_type)
        self._records.append(_Record(fault, by_field, spelling_key(incident.source), before, evidence, text, answer))

    def found(self) -> tuple[dict[str, str], Faults]:
        """The group of each fault that is not one by itself, and how the groups were made."""
        names = self._names_before_numbers()
        groups = [
            names.get((r.source, r.before_number), r.fault) if r.before_number else r.fault for r in self._records
        ]
        self._merge_by_evidence(groups)
        by_evidence = set(self._parent)
        self._merge_by_text(groups)
        by_text = set(self._parent) - by_evidence
        roots = [self._root(group) for group in groups]
        by_field = {root for record, root in zip(self._records, roots) if record.by_field}
        by_evidence = {self._root(group) for group in by_evidence} - by_field
        by_text = {self._root(group) for group in by_text} - by_field - by_evidence
        sizes = Counter(roots)
        by_id = {root for root, size in sizes.items() if size > 1} - by_field - by_evidence - by_text
        merged = {record.fault: root for record, root in zip(self._records, roots) if root != record.fault}
        alone = len(sizes) - len(by_field) - len(by_evidence) - len(by_text) - len(by_id)
        counts = Faults(len(by_field), len(by_id), len(by_evidence), len(by_text), alone, self._contradicting())
        return merged, counts

    def _contradicting(self) -> int:
        answers: dict[tuple[str, int], set[tuple[str, str]]] = defaultdict(set)
        for record in self._records:
            answers[record.source, record.text].add(record.answer)
        return sum(len(answers[record.source, record.text]) > 1 for record in self._records)

    def _names_before_numbers(self) -> dict[tuple[str, str | None], str]:
        """What stands before the number in ids of one source, where that is the name of a fault."""
        incidents = Counter(record.source for record in self._records)
        having: Counter[tuple[str, str]] = Counter()
        digits: dict[tuple[str, str], int] = {}
        for record in self._records:
            if record.before_number is not None:
                key = record.source, record.before_number
                having[key] += 1
                digits[key] = max(digits.get(key, 0), len(record.fault) - len(record.before_number) - 1)
        names: dict[tuple[str, str | None], str] = {}
        for (source, before), count in having.items():
            share = incidents[source] / count
            few = share >= _SHARE
            if any(character.isdigit() for character in before):
                few = share >= _SHARE_WITH_DIGIT or count <= _FEW_WITH_DIGIT
            if few and count > 1 and digits[source, before] <= _MOST_DIGITS:
                names[source, before] = before
        return names

    def _merge_by_evidence(self, groups: list[str]) -> None:
        having: dict[tuple[str, int], set[str]] = defaultdict(set)
        for record, group in zip(self._records, groups):
            for text in record.evidence:
                having[record.source, text].add(group)
        first: dict[tuple[str, int], str] = {}
        for record, group in zip(self._records, groups):
            for key in ((record.source, text) for text in record.evidence):
                if len(having[key]) <= _RARE_EVIDENCE:
                    self._join(group, first.setdefault(key, group))

    def _merge_by_text(self, groups: list[str]) -> None:
        """However many they are and whatever their answers: on two sides of a split they would be one question."""
        first: dict[tuple[str, int], str] = {}
        for record, group in zip(self._records, groups):
            if not record.by_field:
                self._join(group, first.setdefault((record.source, record.text), group))

    def _join(self, one: str, other: str) -> None:
        roots = self._root(one), self._root(other)
        if roots[0] != roots[1]:
            self._parent[roots[0]] = roots[1]

    def _root(self, fault: str) -> str:
        while fault in self._parent:
            upper = self._parent[fault]
            self._parent[fault] = self._parent.get(upper, upper)  # half of the way next time
            fault = upper
        return fault


def _is_long(text: str) -> bool:
    return len(text.encode()) >= _LONG_EVIDENCE  # bytes: fourteen Chinese characters say as much as forty Latin ones
