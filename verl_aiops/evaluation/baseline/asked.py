"""What a baseline sees of an incident: its lines, its system and the names to choose from, and never the truth."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from verl_aiops.evaluation.run.questions import Question
from verl_aiops.evaluation.run.rename_check import candidates_of
from verl_aiops.incidents.swap import pattern_of
from verl_aiops.rewards.triage.answer import FIELDS, normalise_label

__all__ = ["OTHER", "SELF", "Asked", "Known", "asked_of", "changes", "known_of", "pairs_of", "words_of"]

SELF, OTHER = "qself", "qother"
"""What stands in a line for the candidate it is read for, and for every other one."""

# An arrow says which of two services calls the other; a Chinese character is a word, and two a pair of words.
_WORD = re.compile(r"[A-Za-z_]+|[\u3400-\u9fff]|->|→")
_NUMBER = r"(\d{1,15}(?:\.\d{1,9})?)"
_VALUE = re.compile(rf"([A-Za-z_][\w()%]{{0,80}})\s?=?\s?{_NUMBER}\s?[^\s(]{{0,8}}\s?\(usual {_NUMBER}")
_SMALL = 1e-3
# Lines are the user's: what is beyond the first thousands of characters tells no more.
_MOST_CHARS = 4000


@dataclass(frozen=True)
class Known:
    """The names of one system, from rows with their truths: what is chosen from where a row offers nothing."""

    services: tuple[str, ...]
    types: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """One incident as a baseline reads it; ``services`` and ``types`` are the names to choose from, as offered."""

    source: str | None
    lines: tuple[str, ...]
    services: tuple[str, ...]
    types: tuple[str, ...]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return pattern_of(self.services)

    @cached_property
    def named(self) -> tuple[tuple[str, ...], ...]:
        """The candidates that each line names, in its order, as they are spelled in ``services``."""
        spelled = {normalise_label(name): name for name in self.services}
        found = ([spelled.get(normalise_label(m.group())) for m in self._pattern.finditer(line)] for line in self.lines)
        return tuple(tuple(name for name in names if name is not None) for names in found)

    @cached_property
    def order(self) -> dict[str, int]:
        """The candidates that are named, and which of them was named first, second, ..."""
        return {name: at for at, name in enumerate(dict.fromkeys(name for names in self.named for name in names))}

    def lines_of(self, service: str) -> Iterator[str]:
        """The lines that name a candidate, its own name and all others masked."""
        own = normalise_label(service)
        for line, names in zip(self.lines, self.named):
            if service in names:
                yield self._pattern.sub(lambda m: f" {SELF if normalise_label(m.group()) == own else OTHER} ", line)

    @cached_property
    def masked(self) -> tuple[str, ...]:
        """All lines, every candidate's name masked."""
        return tuple(self._pattern.sub(f" {OTHER} ", line) for line in self.lines)


def asked_of(question: Question, known: Mapping[str | None, Known]) -> Asked:
    """What is seen of a question: candidates are those of its row, else of its system, else of all systems."""
    text = question.incident_text or question.messages[-1]["content"]
    system = known.get(question.source) or known[None]
    services, types = (
        tuple(dict.fromkeys(candidates_of(question.ground_truth, field) or names))
        for field, names in zip(FIELDS, (system.services, system.types))
    )
    return Asked(question.source, tuple(line[:_MOST_CHARS] for line in text.split("\n")), services, types)


def known_of(questions: Iterable[Question]) -> dict[str | None, Known]:
    """The names of each source in rows for training, and under None those of all."""
    names: dict[str | None, tuple[dict[str, None], dict[str, None]]] = {None: ({}, {})}
    for question in questions:
        for key in {question.source, None}:
            for own, field in zip(names.setdefault(key, ({}, {})), FIELDS):
                own.update(dict.fromkeys([question.ground_truth[field], *candidates_of(question.ground_truth, field)]))
    return {source: Known(tuple(sorted(services)), tuple(sorted(types))) for source, (services, types) in names.items()}


def words_of(line: str) -> list[str]:
    """The words of a line in lower case; numbers are none."""
    return [word.lower() for word in _WORD.findall(line)]


def pairs_of(words: Sequence[str]) -> list[str]:
    """Neighbours, which tell a caller from who is called."""
    return [f"{one}~{two}" for one, two in zip(words, words[1:])]


def changes(line: str) -> Iterator[tuple[str, int]]:
    """The measures of a line that stand beside their usual value, and how many times that doubled: -4 to 6."""
    for match in _VALUE.finditer(line):
        ratio = (float(match[2]) + _SMALL) / (float(match[3]) + _SMALL)
        yield re.sub(r"\W", "", match[1]).lower(), max(-4, min(6, round(math.log2(ratio))))
