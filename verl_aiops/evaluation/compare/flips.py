"""What changed between two runs: classes that are found more or less often, incidents that turned right or wrong."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.compare.pairing import Pairing, columns_held, values
from verl_aiops.evaluation.stats.further_fields import FIELD
from verl_aiops.evaluation.stats.metrics import FIELDS, MAIN, knows, predicted_class, true_class, truth_key
from verl_aiops.evaluation.stats.paired_tests import mean_intervals

__all__ = ["class_changes", "examples", "flips"]

_CONFUSIONS = 3
NO_ANSWER = "(no valid answer)"


def class_changes(pairing: Pairing, fields: Sequence[str], seed: int) -> dict[str, list[dict[str, Any]]]:
    """For ``service``, ``type`` and each further field, one entry per true class, most incidents first.

    ``label`` as the data spell it; ``incidents``; ``values`` by run: the share of answers that name it (recall);
    ``differences`` to the first run; ``wrong`` by run: the most frequent wrong labels with the number of answers.
    """
    return {field: _classes(pairing, field, seed) for field in (*FIELDS, *fields)}


def _classes(pairing: Pairing, field: str, seed: int) -> list[dict[str, Any]]:
    key, right = truth_key(field), FIELDS[field][1] if field in FIELDS else f"{FIELD}{field}"
    lines = [pairing.info(at) for at in range(len(pairing.ids))]
    # no label is empty: this one is of incidents that do not say theirs
    of = np.array([true_class(line, field) if knows(line, field) else "" for line in lines])
    spelling = {label: lines[at]["ground_truth"].get(key) for at, label in reversed(list(enumerate(of.tolist())))}
    grid = np.column_stack([values(pairing, label, right) for label in pairing.labels])
    grid = np.column_stack([grid, grid[:, 1:] - grid[:, :1]])
    sizes = Counter(label for label in of.tolist() if label)
    order = sorted(sizes, key=lambda label: (-sizes[label], label))
    columns = np.column_stack([np.where((of == label)[:, None], grid, np.nan) for label in order])
    held = columns_held(pairing, right) * len(order)
    means = [asdict(mean) for mean in mean_intervals(columns, pairing.groups, seed, held)]
    runs, width = pairing.labels, grid.shape[1]
    wrong = {run: _wrong_labels(pairing, run, field) for run in runs}
    return [
        {
            "label": spelling[label],
            "incidents": sizes[label],
            "values": dict(zip(runs, means[at * width : at * width + len(runs)], strict=True)),
            "differences": dict(zip(runs[1:], means[at * width + len(runs) : (at + 1) * width], strict=True)),
            "wrong": {run: wrong[run].get(label, Counter()).most_common(_CONFUSIONS) for run in runs},
        }
        for at, label in enumerate(order)
    ]


def _wrong_labels(pairing: Pairing, run: str, field: str) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for lines in pairing.answers[run]:
        for line in lines:
            if not knows(line, field):
                continue
            truth, said = true_class(line, field), predicted_class(line, field)
            if said != truth:
                counts.setdefault(truth, Counter())[NO_ANSWER if said is None else said] += 1
    return counts


def flips(pairing: Pairing, right: np.ndarray, seed: int) -> dict[str, dict[str, Any]]:
    """By run: how many incidents it gets right more and less often than the first run, and which.

    Args:
        right: (incidents, runs) share of answers with both fields right.

    Returns:
        ``better``, ``worse``: lists of ``id``, ``before``, ``after``, largest change first, equal ones in an order that
        ``seed`` alone decides; ``same_right``, ``same_wrong``, ``same_mixed``: how many have equal shares of 1, of 0,
        of another value.
    """
    found = {}
    for at, label in enumerate(pairing.labels[1:], 1):
        before, after = right[:, 0], right[:, at]
        order = sorted(
            range(len(pairing.ids)), key=lambda n: (-abs(after[n] - before[n]), _shuffled(pairing.ids[n], seed))
        )
        entries = [
            {"id": pairing.ids[n], "before": float(before[n]), "after": float(after[n])}
            for n in order
            if after[n] != before[n]
        ]
        same = before[before == after]
        found[label] = {
            "better": [entry for entry in entries if entry["after"] > entry["before"]],
            "worse": [entry for entry in entries if entry["after"] < entry["before"]],
            "same_right": int((same == 1).sum()),
            "same_wrong": int((same == 0).sum()),
            "same_mixed": int(((same > 0) & (same < 1)).sum()),
        }
    return found


def _shuffled(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def examples(
    pairing: Pairing, label: str, entries: Sequence[dict[str, Any]]
) -> list[tuple[dict[str, Any], AnswerLine, AnswerLine]]:
    """Entries of `flips` with the answers that show the change: the first run's, and that of the run ``label``.

    Of several answers to an incident that is got right more often, the first wrong one before and the first right one
    after are shown; else the reverse. Where a run has none such, its first answer is.
    """
    place = {name: at for at, name in enumerate(pairing.ids)}
    shown = []
    for entry in entries:
        better = entry["after"] > entry["before"]
        before, after = (pairing.answers[run][place[entry["id"]]] for run in (pairing.labels[0], label))
        shown.append((entry, _first(before, right=not better), _first(after, right=better)))
    return shown


def _first(lines: Sequence[AnswerLine], right: bool) -> AnswerLine:
    return next((line for line in lines if bool(line["score"][MAIN]) == right), lines[0])
