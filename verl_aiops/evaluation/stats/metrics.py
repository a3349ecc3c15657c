"""The metrics of an evaluation, from the lines of `records`.

Lines with an error have no answer and count in no metric; how many there are is reported beside them. All shares are
over answers (every sample of every incident counts the same) unless said otherwise.

=======================  =============================================================================================
metric                   mean of
=======================  =============================================================================================
``score``, ``acc``       `compute_score`'s: the reward; the share of right fields
``acc_main``             service and type both right
``service_ok``           the service right, under its name or an alias; ``type_ok`` the same for the incident type
``json_ok``              the answer is exactly the JSON asked for
``abstained``            no usable verdict: not that JSON, or a field that is blank or says that it does not know
                         (`ABSTENTIONS`), unless that is one of the incident's labels
``evidence``             what the reward pays for quotations (0 for wrong answers)
``evidence_precision``   share of quoted passages that are known evidence (`rewards.evidence.Judgement`); over answers
                         that quote anything, of incidents with known evidence
``evidence_recall``      share of the known evidence that is quoted; over answers to incidents with known evidence
``evidence_rate``        whether any known evidence is quoted; over the same answers
``quotes``, ``invented`` distinct verbatim quotations, and distinct others
``early_verdict``        a round before the last gives a verdict
``chars``, ``tokens``    of all rounds; tokens over answers whose server counts them
``empty``                the last round has no text at all
``reasoning``            characters of reasoning blocks, which count in nothing else; ``reasoning_cut`` whether the
                         last round's block was not closed. Over answers of evaluations that know them
``cut``                  some round used up its budget
``macro_f1_service``     unweighted mean of the F1 of each class; classes are the true services of the answers at
                         hand. An accepted alias counts as its class, an abstention or a name that is no class as
                         missed only. ``macro_f1_type`` the same for incident types
``pass@k``               over incidents with k answers or more: `best_of.pass_at_k` of ``acc_main``
``best@k/m``             over the same incidents: the expected m of the best of k by ``score`` (`best_of.best_of_k`)
=======================  =============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_aiops.evaluation.stats.best_of import best_of_k, pass_at_k, sizes
from verl_aiops.evaluation.stats.bootstrap import NO_WIDTH, intervals, of_constant
from verl_aiops.rewards.triage.answer import MAX_LABEL_CHARS, normalise_label
from verl_aiops.rewards.triage.ground_truth import read_ground_truth

__all__ = [
    "ABSTENTIONS",
    "BEST_OF",
    "FIELDS",
    "MEANS",
    "Value",
    "class_table",
    "is_share",
    "predicted_class",
    "table_of",
    "values_of",
]

Record = Mapping[str, Any]

FIELDS = {"service": ("service", "service_ok"), "type": ("incident_type", "type_ok")}
BEST_OF = ("acc_main", "json_ok", "evidence", "score")
ABSTENTIONS = frozenset(
    [
        "",
        "?",
        "-",
        "...",
        "unknown",
        "none",
        "null",
        "n/a",
        "na",
        "nil",
        "undetermined",
        "unclear",
        "not sure",
        "unsure",
    ]
    + ["uncertain", "cannot determine", "i don't know", "未知", "不确定", "无", "不明", "无法确定", "不知道"]
)


def true_class(record: Record, field: str) -> str:
    return normalise_label(record["ground_truth"][FIELDS[field][0]])


def predicted_class(record: Record, field: str) -> str | None:
    """The normalised label that an answer gives; the true one where an alias of it was accepted; None without one."""
    key, right = FIELDS[field]
    if record["score"][right]:
        return true_class(record, field)
    said = (record["predicted"] or {}).get(key)
    if not isinstance(said, str) or len(said) > MAX_LABEL_CHARS:
        return None
    return normalise_label(said)


def _abstained(record: Record) -> float:
    if record["predicted"] is None:
        return 1.0
    said = {predicted_class(record, field) or "" for field in FIELDS}
    return float(not ABSTENTIONS.isdisjoint(said - read_ground_truth(record["ground_truth"]).names))


def _judged(record: Record) -> bool:
    return bool(read_ground_truth(record["ground_truth"]).evidence)


def _score(key: str) -> Callable[[Record], float]:
    return lambda record: record["score"][key]


# From a line to its value, or None where the line does not count.
MEANS: dict[str, Callable[[Record], float | None]] = {
    **{key: _score(key) for key in ("score", "acc", "acc_main", "service_ok", "type_ok", "json_ok")},
    "abstained": _abstained,
    "evidence": _score("evidence"),
    "evidence_precision": lambda r: (
        r["score"]["evidence_precision"] if _judged(r) and r["score"]["quotes"] + r["score"]["invented"] > 0 else None
    ),
    "evidence_recall": lambda r: r["score"]["evidence_recall"] if _judged(r) else None,
    "evidence_rate": lambda r: float(r["score"]["evidence_recall"] > 0) if _judged(r) else None,
    **{key: _score(key) for key in ("quotes", "invented", "early_verdict", "chars")},
    "tokens": lambda r: float(sum(r["tokens"])) if r["tokens"] is not None else None,
    "empty": lambda r: float(not r["rounds"][-1].strip()) if r["rounds"] else None,
    "reasoning": lambda r: r["score"].get("reasoning"),
    "reasoning_cut": lambda r: r["score"].get("reasoning_cut"),
    "cut": lambda r: float(any(r["cut"])),
}


_NO_SHARES = frozenset(["score", "evidence", "quotes", "invented", "chars", "tokens", "reasoning"])


def is_share(name: str) -> bool:
    """Whether a metric is a share, from 0 to 1, and no amount."""
    return name.rpartition("/")[2] not in _NO_SHARES


@dataclass(frozen=True)
class Value:
    """A metric with its interval (None where it is not defined) and how many answers or incidents it is the mean of."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class _Classes:
    """Per group (rows) and class (columns): answers that are rightly, wrongly and not put into the class."""

    labels: list[str]
    right: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray


@dataclass(frozen=True)
class Table:
    """Sums by group, from which every metric of any reweighted set of groups follows.

    ``sums`` and ``counts`` are (groups, means): of values, and of the answers or incidents that have one.
    """

    groups: list[str]
    means: list[str]
    sums: np.ndarray
    counts: np.ndarray
    classes: dict[str, _Classes]

    @property
    def names(self) -> list[str]:
        return [*self.means, *(f"macro_f1_{field}" for field in self.classes)]

    def n(self) -> np.ndarray:
        answers = [classes.right.sum() + classes.missed.sum() for classes in self.classes.values()]
        return np.concatenate([self.counts.sum(0), answers])

    def held(self) -> dict[str, int]:
        """How many groups have a value of each metric."""
        answers = [(classes.right + classes.missed).any(1).sum() for classes in self.classes.values()]
        return dict(zip(self.names, map(int, [*(self.counts > 0).sum(0), *answers])))

    def statistics(self, weights: np.ndarray) -> np.ndarray:
        """From weights (b, groups) to metrics (b, names), NaN where nothing counts."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (weights @ self.sums) / (weights @ self.counts)
        return np.column_stack([means, *(_macro_f1(weights, classes) for classes in self.classes.values())])


def _macro_f1(weights: np.ndarray, classes: _Classes) -> np.ndarray:
    right, wrong, missed = (weights @ part for part in (classes.right, classes.wrong, classes.missed))
    there = right + missed > 0
    f1 = np.where(there, 2 * right / np.maximum(2 * right + wrong + missed, 1e-300), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return f1.sum(1) / there.sum(1)


def table_of(records: Sequence[Record], groups: Sequence[str] | None = None) -> Table:
    """The sums of the lines that have an answer; ``groups`` (default: those of the lines) sets the rows' order."""
    answered = [record for record in records if record["error"] is None]
    names = sorted({record["group"] for record in answered}) if groups is None else list(groups)
    place = {group: at for at, group in enumerate(names)}
    columns: dict[str, list[tuple[int, float]]] = {name: [] for name in MEANS}
    for record in answered:
        for name, of in MEANS.items():
            value = of(record)
            if value is not None:
                columns[name].append((place[record["group"]], value))
    columns |= _several(answered, place)
    sums, counts = np.zeros((len(names), len(columns))), np.zeros((len(names), len(columns)))
    for at, pairs in enumerate(columns.values()):
        for group, value in pairs:
            sums[group, at] += value
            counts[group, at] += 1
    classes = {field: _classes(answered, field, place) for field in FIELDS}
    return Table(names, list(columns), sums, counts, classes)


def _several(answered: Sequence[Record], place: Mapping[str, int]) -> dict[str, list[tuple[int, float]]]:
    """pass@k and best@k of each incident."""
    incidents: dict[str, list[Record]] = {}
    for record in answered:
        incidents.setdefault(record["id"], []).append(record)
    columns: dict[str, list[tuple[int, float]]] = {}
    for k in sizes(max(map(len, incidents.values()), default=1)):
        enough = [records for records in incidents.values() if len(records) >= k]
        for name in (f"pass@{k}", *(f"best@{k}/{metric}" for metric in BEST_OF)):
            columns[name] = []
        for records in enough:
            group = place[records[0]["group"]]
            right = sum(record["score"]["acc_main"] > 0 for record in records)
            columns[f"pass@{k}"].append((group, pass_at_k(len(records), right, k)))
            scores = [record["score"]["score"] for record in records]
            for metric in BEST_OF:
                best = best_of_k(scores, [record["score"][metric] for record in records], k)
                columns[f"best@{k}/{metric}"].append((group, best))
    return columns


def _classes(answered: Sequence[Record], field: str, place: Mapping[str, int]) -> _Classes:
    labels = sorted({true_class(record, field) for record in answered})
    column = {label: at for at, label in enumerate(labels)}
    right, wrong, missed = (np.zeros((len(place), len(labels))) for _ in range(3))
    for record in answered:
        group, truth, said = place[record["group"]], true_class(record, field), predicted_class(record, field)
        if said == truth:
            right[group, column[truth]] += 1
            continue
        missed[group, column[truth]] += 1
        if said in column:
            wrong[group, column[said]] += 1
    return _Classes(labels, right, wrong, missed)


def values_of(table: Table, seed: int, less: Table | None = None) -> dict[str, Value]:
    """Every metric with its interval, clustered by group; with ``less``, of the differences to that table.

    Both tables must then have the same groups; metrics that only one of them has are left out.
    """
    names = table.names if less is None else [name for name in table.names if name in less.names]

    def statistics(weights: np.ndarray) -> np.ndarray:
        own = table.statistics(weights)[:, [table.names.index(name) for name in names]]
        if less is None:
            return own
        return own - less.statistics(weights)[:, [less.names.index(name) for name in names]]

    if not table.groups:
        return {}
    groups = table.held()
    if less is not None:
        groups = {name: min(count, less.held().get(name, 0)) for name, count in groups.items()}
    counts = dict(zip(table.names, table.n()))
    point = statistics(np.ones((1, len(table.groups))))[0]
    bounds = intervals(statistics, len(table.groups), seed)
    for at, name in enumerate(names):
        if is_share(name) and bounds[at, 1] - bounds[at, 0] < NO_WIDTH and groups[name]:
            bounds[at] = of_constant(point[at], int(groups[name]), 0.0 if less is None else -1.0, 1.0)
    return {
        name: Value(_number(value), _number(low), _number(high), int(counts[name]))
        for name, value, (low, high) in zip(names, point, bounds)
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def class_table(records: Sequence[Record], field: str) -> list[dict[str, Any]]:
    """Per class, most frequent first: ``label`` as the data spell it, ``support`` (answers whose truth it is),
    ``predicted``, ``precision`` (None where it was never predicted), ``recall``, ``f1``."""
    answered = [record for record in records if record["error"] is None]
    classes = _classes(answered, field, {record["group"]: 0 for record in answered})
    spelling: dict[str, str] = {}
    for record in answered:
        spelling.setdefault(true_class(record, field), record["ground_truth"][FIELDS[field][0]])
    rows = []
    for at, label in enumerate(classes.labels):
        right, wrong, missed = (float(part[:, at].sum()) for part in (classes.right, classes.wrong, classes.missed))
        rows.append(
            {
                "label": spelling[label],
                "support": int(right + missed),
                "predicted": int(right + wrong),
                "precision": right / (right + wrong) if right + wrong else None,
                "recall": right / (right + missed),
                "f1": 2 * right / (2 * right + wrong + missed),
            }
        )
    return sorted(rows, key=lambda row: (-row["support"], row["label"]))
