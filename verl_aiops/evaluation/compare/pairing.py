"""Which incidents all compared runs answered, and the value of each metric on each of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.compare.read_runs import Run
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.summary import UNKNOWN
from verl_aiops.evaluation.stats.metrics import Metric, held_by, metric_named
from verl_aiops.evaluation.stats.shares import Of
from verl_aiops.rewards.triage.answer import normalise_label
from verl_aiops.rewards.triage.ground_truth import fields_of

__all__ = ["Pairing", "columns_held", "pair", "values"]


_DRAWN = "with data.val_max_samples, verl draws other prompts for each run unless data.seed is set"


@dataclass(frozen=True)
class Pairing:
    """The incidents that every run answered, in the order of the first run.

    Attributes:
        groups: (incidents,) numbers of the groups, from 0.
        answers: by run, the answered lines of each of the incidents.
        left_out: by run, the ids that are not compared, by reason.
        notes: what a reader must know of the data.
    """

    runs: tuple[Run, ...]
    ids: tuple[str, ...]
    groups: np.ndarray
    answers: dict[str, list[list[AnswerLine]]]
    left_out: dict[str, dict[str, list[str]]]
    notes: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        return [run.label for run in self.runs]

    def info(self, at: int) -> AnswerLine:
        """A line of an incident, for what is the same in all."""
        return self.answers[self.runs[0].label][at][0]

    def slices(self, key: str) -> list[str]:
        """One of `summary.SLICES` of each incident."""
        return [self.info(at).get(key) or UNKNOWN for at in range(len(self.ids))]


def pair(runs: Sequence[Run]) -> Pairing:
    """Pair the runs by incident.

    Raises:
        EvaluationError: no incident is in all of them, or an id stands for different incidents.
    """
    first = runs[0]
    answered = {
        run.label: {i: [r for r in lines if r["error"] is None] for i, lines in run.incidents.items()} for run in runs
    }
    everywhere = set.intersection(*(set(run.incidents) for run in runs))
    if not everywhere:
        raise EvaluationError(_nothing_in_common(runs))
    _check_same_data(runs, [name for name in first.incidents if name in everywhere])
    ids = tuple(name for name in first.incidents if name in everywhere and all(a[name] for a in answered.values()))
    if not ids:
        raise EvaluationError(
            f"of the {len(everywhere):,} incidents that all runs were asked, none was answered by all: "
            + ", ".join(f"{run.label} answered {sum(map(bool, answered[run.label].values())):,}" for run in runs)
        )
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(first.incidents[name][0]["group"], len(numbers)) for name in ids]
    return Pairing(
        runs=tuple(runs),
        ids=ids,
        groups=np.array(groups),
        answers={run.label: [answered[run.label][name] for name in ids] for run in runs},
        left_out={run.label: _left_out(run, runs, answered, set(ids)) for run in runs},
        notes=tuple(_notes(runs, ids)),
    )


def _nothing_in_common(runs: Sequence[Run]) -> str:
    examples = "; ".join(
        f"{run.label} has {len(run.incidents):,}, such as {next(iter(run.incidents))!r}" for run in runs
    )
    if len({run.by_prompt for run in runs}) == 2:
        hint = (
            "dumps of verl name no incidents and are paired by their prompts, so they cannot be compared with "
            "evaluations; evaluate all models with `verl-aiops eval`"
        )
    elif runs[0].by_prompt:
        hint = f"dumps of verl are paired by their prompts: validate all models on the same file; {_DRAWN}"
    else:
        hint = "runs are paired by incident id: evaluate all models on the same file"
    return f"no incident is in all runs ({examples}). {hint[0].upper()}{hint[1:]}"


def _left_out(run: Run, runs: Sequence[Run], answered: dict[str, dict], kept: set[str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for name in run.incidents:
        if name in kept:
            continue
        absent = [other.label for other in runs if name not in other.incidents]
        if absent:
            reason = f"not asked of {', '.join(absent)}"
        else:
            reason = f"without an answer of {', '.join(label for label in answered if not answered[label][name])}"
        reasons.setdefault(reason, []).append(name)
    return reasons


def _check_same_data(runs: Sequence[Run], ids: Iterable[str]) -> None:
    first = runs[0]
    for name in ids:
        one = first.incidents[name][0]
        for run in runs[1:]:
            other = run.incidents[name][0]
            for key in dict.fromkeys((*fields_of(one["ground_truth"]), *fields_of(other["ground_truth"]))):
                a, b = one["ground_truth"].get(key), other["ground_truth"].get(key)
                if normalise_label(a or "") != normalise_label(b or ""):
                    raise EvaluationError(
                        f"different data: the {key} of {name!r} is {a!r} in {first.label} and {b!r} in {run.label}; "
                        "evaluate both on the same file"
                    )
            if one["group"] != other["group"]:
                raise EvaluationError(
                    f"different data: the group of {name!r} is {one['group']!r} in {first.label} and "
                    f"{other['group']!r} in {run.label}; evaluate both on the same file"
                )


def _notes(runs: Sequence[Run], ids: Sequence[str]) -> Iterable[str]:
    first = runs[0]
    most = max(len(run.incidents) for run in runs)
    if 2 * len(ids) < most:
        yield f"only {len(ids):,} of up to {most:,} incidents are compared" + (f"; {_DRAWN}" * first.by_prompt)
    for run in runs[1:]:
        if "reward" in first.settings and first.settings["reward"] != run.settings.get("reward"):
            yield (
                f"{first.label} and {run.label} were scored with different settings of the reward (settings.json: "
                "reward): their rewards are not comparable"
            )
        for key, what in (("evidence", "known evidence"), ("candidates", "candidates")):
            count = sum(_truth(first, name).get(key) != _truth(run, name).get(key) for name in ids)
            if count:
                yield (
                    f"{what} of {count:,} incidents differs between {first.label} and {run.label}: their prompts "
                    "were not made alike"
                )
        prints = first.settings.get("questions"), run.settings.get("questions")
        if None not in prints and prints[0] != prints[1] and set(first.incidents) == set(run.incidents):
            yield f"{first.label} and {run.label} were asked in different words (settings.json: questions)"


def _truth(run: Run, name: str) -> dict[str, Any]:
    return run.incidents[name][0]["ground_truth"]


def values(pairing: Pairing, label: str, name: str) -> np.ndarray:
    """(incidents,) the mean of a metric over a run's answers to each incident; NaN where none of them has a value."""
    metric = metric_named(name)
    if metric is None:
        raise KeyError(name)
    return np.array([_mean(metric, lines) for lines in pairing.answers[label]])


def _mean(metric: Metric, lines: Sequence[AnswerLine]) -> float:
    found = [value for value in map(metric.value, lines) if value is not None]
    return math.fsum(found) / len(found) if found else math.nan


def columns_held(pairing: Pairing, name: str) -> list[Of | None]:
    """What the columns of a metric hold (`metrics.held_by`): one for each run, one for each difference to the first."""
    several = {label: max(map(len, pairing.answers[label])) > 1 for label in pairing.labels}
    first, *others = pairing.labels
    levels = [held_by(name, several[label]) for label in pairing.labels]
    return levels + [held_by(name, several[first] or several[label], difference=True) for label in others]
