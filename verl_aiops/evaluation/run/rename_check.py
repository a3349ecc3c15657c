"""The rename check: the same incidents under swapped names, which show whether a model reads them or remembers names.

In each incident every free label of its system gets the name of another one, in the data, the candidate lists, the
evidence and the truth alike. Services swap among services, incident types among types. Where the data name the true
label, whoever reads them loses nothing by it. Where they do not (a log of `ftpd` whose service is `linux-ftpd`; most
incident types, which say what happened in words of their own), the swapped truth cannot be read off them, and every
model loses: `named` tells the two apart.

Labels are found and swapped as `incidents.swap` does. A label is free unless it is one of the instruction's own words,
is both service and type, or is another name of the truth.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from verl_aiops.evaluation.run.questions import Question
from verl_aiops.incidents.swap import NameSwap, pattern_of
from verl_aiops.rewards.triage.answer import FIELDS, normalise_label
from verl_aiops.rewards.triage.ground_truth import read_ground_truth

__all__ = ["LABELS", "Renamed", "candidates_of", "named", "rename_question", "rename_questions"]

# What may be swapped, by the name of the choice.
LABELS = {"both": tuple(FIELDS), "service": ("service",), "type": ("incident_type",)}

_ATTEMPTS = 16

ALONE, TAKEN, OVERLAP = "no other name to swap with", "a name of the instruction", "names that overlap"


@dataclass(frozen=True)
class Renamed:
    """A renamed question, or the reason why there is none. ``names`` maps the labels that were swapped, as spelled."""

    question: Question | None
    reason: str = ""
    names: Mapping[str, str] | None = None


def rename_questions(
    questions: Sequence[Question], seed: int, labels: str = "both"
) -> tuple[list[Question], dict[str, int]]:
    """All questions that can be renamed, and how many cannot, by reason.

    The labels of a system are the candidates and answers of all questions with its ``source``; `LABELS` has the
    choices of ``labels``.
    """
    systems: dict[str | None, dict[str, dict[str, str]]] = {}
    for question in questions:
        system = systems.setdefault(question.source, {field: {} for field in FIELDS})
        for field in FIELDS:
            for label in [question.ground_truth[field], *candidates_of(question.ground_truth, field)]:
                system[field].setdefault(normalise_label(label), label)
    renamed, left_out = [], Counter[str]()
    for question in questions:
        system = systems[question.source]
        names = {field: list(spelled.values()) for field, spelled in system.items()}
        made = rename_question(question, names, seed, LABELS[labels])
        if made.question is None:
            left_out[made.reason] += 1
        else:
            renamed.append(made.question)
    return renamed, dict(left_out)


def named(question: Question, field: str) -> bool:
    """Whether the incident's data name the true label of a field, or another name of it."""
    names = [question.ground_truth[field], *getattr(read_ground_truth(question.ground_truth), field)]
    return pattern_of(names).search(question.incident_text) is not None


def rename_question(
    question: Question, labels: Mapping[str, Sequence[str]], seed: int, swapped: Sequence[str] = LABELS["both"]
) -> Renamed:
    """One question with its labels swapped; the same seed gives the same names.

    Args:
        labels: those of the system, under ``service`` and ``incident_type``.
        swapped: which of the two are.

    At least one of the true labels has another name in the result, and its evidence occurs in its text.
    """
    truth = read_ground_truth(question.ground_truth)
    own = {field: normalise_label(question.ground_truth[field]) for field in FIELDS}
    others = {field: getattr(truth, field) - {own[field]} for field in FIELDS}
    free = {field: _free(question, labels, field, others) if field in swapped else [] for field in FIELDS}
    movable = [field for field in FIELDS if own[field] in map(normalise_label, free[field]) and len(free[field]) > 1]
    if not movable:
        alone = all(len(labels[field]) < 2 for field in swapped)
        return Renamed(None, ALONE if alone else TAKEN)
    for attempt in range(_ATTEMPTS):
        rng = random.Random(f"rename/{seed}/{question.id}/{attempt}")
        names: dict[str, str] = {}
        for field in FIELDS:
            if len(free[field]) > 1:
                order = rng.sample(free[field], len(free[field]))
                names |= zip(order, order[1:] + order[:1])  # one cycle: no name stays
        aliases = {alias: question.ground_truth[field] for field in movable for alias in others[field]}
        swap = NameSwap({**{alias: names[label] for alias, label in _spelled(aliases, names).items()}, **names})
        if _undone(question, swap, names, aliases):
            return Renamed(_applied(question, swap, movable, others), names=names)
    return Renamed(None, OVERLAP)


def _spelled(aliases: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """The aliases with their labels as ``names`` spells them."""
    spelling = {normalise_label(label): label for label in names}
    return {alias: spelling[normalise_label(label)] for alias, label in aliases.items()}


def candidates_of(truth: Mapping[str, Any], field: str) -> list[str]:
    """The names that a row offers for a field, as spelled; none where it knows of none."""
    listed = truth.get("candidates") or {}
    return [*(listed.get(field) or ()), *(listed.get(f"{field}s") or ())]


def _free(
    question: Question, labels: Mapping[str, Sequence[str]], field: str, others: Mapping[str, frozenset[str]]
) -> list[str]:
    """The labels that may be swapped, in a fixed order."""
    counts = _outside(question, [label for names in labels.values() for label in names])
    listed = {normalise_label(label) for label in candidates_of(question.ground_truth, field)}
    both = set.intersection(*({normalise_label(label) for label in labels[name]} for name in FIELDS))
    taken = both | set().union(*others.values())
    free = []
    for label in sorted(labels[field]):
        key = normalise_label(label)
        # a candidate stands once in its list; where no list is known, any label may
        expected = 1 if key in listed or not listed else 0
        # in a list a name with quotes is spelled otherwise, as in an answer
        plain = json.dumps(label, ensure_ascii=False) == f'"{label}"'
        if plain and key not in taken and counts[key] <= expected:
            free.append(label)
    return free


def _outside(question: Question, labels: Iterable[str]) -> Counter[str]:
    """How often each label stands in the messages, the incident's data left out."""
    texts = [*(message["content"] for message in question.messages), *question.rounds]
    if question.incident_text:
        texts = [text.replace(question.incident_text, "\n") for text in texts]
    pattern = pattern_of(labels)
    return Counter(normalise_label(match.group()) for text in texts for match in pattern.finditer(text))


def _undone(question: Question, swap: NameSwap, names: Mapping[str, str], aliases: Mapping[str, str]) -> bool:
    """Whether swapping back gives the texts again, up to case and other names of the truth.

    Otherwise a new name has met its neighbours in the text and reads as something else there.
    """
    back = NameSwap({new: name for name, new in names.items()})
    plain = NameSwap({**{name: name for name in names}, **aliases})
    texts = [question.incident_text, *(message["content"] for message in question.messages), *question.rounds]
    if any(back(swap(text)).casefold() != plain(text).casefold() for text in texts):
        return False
    inside = [text for text in texts[1:] if question.incident_text in text]
    return all(swap(question.incident_text) in swap(text) for text in inside)


def _applied(
    question: Question, swap: NameSwap, movable: Sequence[str], others: Mapping[str, frozenset[str]]
) -> Question:
    truth = question.ground_truth
    changed: dict[str, Any] = {
        **truth,
        "evidence": [
            swap.part(item, question.incident_text) for item in read_ground_truth(question.ground_truth).evidence
        ],
        # a renamed label has no other names: those of the old one would pay whoever remembers it
        "aliases": {
            **{field: (truth.get("aliases") or {}).get(field) for field in question.fields},
            **{field: [] if field in movable else sorted(others[field]) for field in FIELDS},
        },
    }
    for field in movable:
        changed[field] = swap.label(truth[field])
    listed = {field: candidates_of(truth, field) for field in FIELDS}
    if any(listed.values()):
        kept = {field: candidates_of(truth, field) for field in question.fields}
        changed["candidates"] = kept | {field: [swap.label(name) for name in names] for field, names in listed.items()}
    return replace(
        question,
        messages=tuple({**message, "content": swap(message["content"])} for message in question.messages),
        rounds=tuple(swap(text) for text in question.rounds),
        incident_text=swap(question.incident_text),
        ground_truth=changed,
    )
