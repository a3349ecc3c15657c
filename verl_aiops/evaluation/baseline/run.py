"""Baselines from an RL file to evaluation folders, one for each method: `baseline`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from verl_aiops.evaluation.baseline.asked import Asked, asked_of, known_of
from verl_aiops.evaluation.baseline.labels import Labels, LinearLabels, UsualLabels
from verl_aiops.evaluation.baseline.linear import Linear, need_scikit_learn
from verl_aiops.evaluation.baseline.simple import Answer, Majority, Rule
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.backend import Done, Generation, Job
from verl_aiops.evaluation.run.evaluate import EvaluationPlan, evaluate
from verl_aiops.evaluation.run.questions import Question, fingerprint, read_rl_questions
from verl_aiops.evaluation.run.table import as_columns, share_text
from verl_aiops.evaluation.stats.further_fields import ALL, FIELD, fields_shown
from verl_aiops.files import write_atomically
from verl_aiops.incidents.prompts import answer_json
from verl_aiops.inputs.shown import counted
from verl_aiops.rewards.triage.answer import FIELDS

__all__ = ["METHODS", "Baselines", "Method", "baseline", "check_apart", "check_methods", "settings_of"]

_SHOWN = {"acc_main": "both fields right", "service_ok": "service right", "type_ok": "type right"}


class Method(Protocol):
    """A baseline. ``size`` is how many counts or weights it has after `fit`."""

    size: int

    def fit(self, asked: Sequence[Asked], truths: Sequence[Answer]) -> None:
        """Learn from the training side."""

    def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        """One answer a row, of the names that the row offers."""


METHODS: dict[str, Callable[[], Method]] = {
    "majority": Majority,
    "rule": Rule,
    "linear": Linear,
    "linear_values": lambda: Linear(values=True),
}
_NEED_SCIKIT_LEARN = ("linear", "linear_values")


@dataclass(frozen=True)
class Baselines:
    """``summary`` as in ``baseline.json``; ``table`` as in ``table.txt``."""

    summary: dict[str, Any]
    table: str


class _Answers:
    """What was answered, in place of a model: all rounds but the last are empty, since nothing was analysed."""

    reasoning: Mapping[str, Any] = {}

    def __init__(self, answers: Mapping[str, tuple[Answer, Labels]]):
        self._answers = answers

    def check(self, questions: Sequence[Question]) -> None:
        pass

    def generate(self, jobs: Sequence[Job], done: Done) -> None:
        for job in jobs:
            answer, labels = self._answers[job.question.id]
            turns = [*("" for _ in job.question.rounds), answer_json(*answer, labels)]
            done(job, Generation(turns, [False] * len(turns)))


def settings_of(
    data: str, learnt: str, val: str, asked: str, seed: int, reward: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The settings of an evaluation of a baseline; ``learnt`` and ``asked`` are the fingerprints of both files."""
    return {
        "trained_on": data,
        "trained_on_questions": learnt,
        "data": val,
        "questions": asked,
        "n": 1,
        "seed": seed,
        "reward": dict(reward or {}),
    }


def baseline(
    data: str,
    val: str,
    out: str | Path,
    methods: Sequence[str] = tuple(METHODS),
    *,
    reward: Mapping[str, Any] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Baselines:
    """Fit each method on ``data`` and evaluate it on ``val``, both RL files of `verl-aiops build-rl`.

    Writes ``out/METHOD`` as `verl-aiops eval` would (see `evaluation.run.results`), ``out/baseline.json`` and
    ``out/table.txt``. Truths of ``val`` are read by the reward alone: a method is given an incident's lines, its source
    and the candidates that its row offers.

    Args:
        reward: settings of the reward. ``seed`` is that of the intervals; nothing else is drawn.

    Raises:
        EvaluationError: no such method, scikit-learn missing, nothing in a file, or a fault that is in both.
        PreferenceDataError: a file cannot be read.
    """
    check_methods(methods, METHODS)
    if not set(methods).isdisjoint(_NEED_SCIKIT_LEARN):
        need_scikit_learn()
    train, asked = read_rl_questions(data), read_rl_questions(val)
    check_apart(train, asked, data, val)
    started = time.perf_counter()
    known = known_of(train)
    rows = {side: [asked_of(question, known) for question in own] for side, own in (("train", train), ("val", asked))}
    truths = [(question.ground_truth[FIELDS[0]], question.ground_truth[FIELDS[1]]) for question in train]
    reading = time.perf_counter() - started
    settings = settings_of(data, fingerprint(train), val, fingerprint(asked), seed, reward)
    found: dict[str, Any] = {}
    for name in methods:
        method, started = METHODS[name](), time.perf_counter()
        method.fit(rows["train"], truths)
        further = (LinearLabels if name in _NEED_SCIKIT_LEARN else UsualLabels)()
        further.fit(train, rows["train"], [service for service, _ in truths])
        fitted = time.perf_counter()
        answers = method.answer(rows["val"])
        labels = further.answer(asked, rows["val"], [service for service, _ in answers])
        seconds = {"reading": reading, "fitting": fitted - started, "answering": time.perf_counter() - fitted}
        backend = _Answers({question.id: both for question, *both in zip(asked, answers, labels)})
        plan = EvaluationPlan(seed=seed, reward=settings["reward"])
        report = evaluate(asked, backend, Path(out) / name, plan, {"baseline": name, **settings}, overwrite=overwrite)
        found[name] = {
            "size": method.size + further.size,
            "seconds": {key: round(value, 3) for key, value in seconds.items()},
            "overall": report.summary["overall"]["metrics"],
            "by": {
                key: {part: one["metrics"] for part, one in own.items()} for key, own in report.summary["by"].items()
            },
        }
    summary = {"settings": settings, "rows": {"train": len(train), "val": len(asked)}, "methods": found}
    table = _table(summary)
    write_atomically(Path(out) / "baseline.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    write_atomically(Path(out) / "table.txt", table)
    return Baselines(summary, table)


def check_methods(methods: Sequence[str], known: Iterable[str]) -> None:
    """Refuse methods that are not known, are asked for twice, or none.

    Raises:
        EvaluationError: what was expected.
    """
    known = tuple(known)
    if not methods or not set(methods).issubset(known) or len(set(methods)) < len(methods):
        found = ", ".join(methods) or "none"
        raise EvaluationError(f"--methods: expected some of {', '.join(known)}, each once, found {found}")


def check_apart(train: Sequence[Any], asked: Sequence[Any], data: str, val: str) -> None:
    """Refuse sides that are empty or share a fault; ``group`` of a question names its fault.

    Raises:
        EvaluationError: which file, or which fault.
    """
    for path, own in ((data, train), (val, asked)):
        if not own:
            raise EvaluationError(f"{path}: no rows; a baseline learns from one file and answers another")
    both = {question.group for question in train} & {question.group for question in asked}
    if both:
        raise EvaluationError(
            f"{data} and {val}: {len(both):,} faults are in both, such as {min(both)!r}; what was learned by heart is "
            "no yardstick. Give the two sides of one `verl-aiops build-rl`"
        )


def _table(summary: Mapping[str, Any]) -> str:
    rows = summary["rows"]
    head = f"{counted(rows['train'], 'row')} to learn from, {rows['val']:,} asked; 95 % intervals over faults"
    fields = dict.fromkeys(name for one in summary["methods"].values() for name in fields_shown(one["overall"]))
    more = {f"{FIELD}{name}": f"{name} right" for name in fields} | ({ALL: "all fields right"} if fields else {})
    lines = [("", *_SHOWN.values(), *more.values(), "weights", "seconds")]
    for name, one in summary["methods"].items():
        shares = (share_text(one["overall"][key]) for key in (*_SHOWN, *more))
        lines.append((name, *shares, f"{one['size']:,}", f"{sum(one['seconds'].values()):.1f}"))
    tables = [head, as_columns(lines), *(_apart(key, summary["methods"]) for key in ("part", "answerable"))]
    return "\n\n".join(tables) + "\n"


def _apart(key: str, methods: Mapping[str, Any]) -> str:
    names = sorted({name for one in methods.values() for name in one["by"][key]})
    lines = [(f"{_SHOWN['acc_main']}, by {key}", *names)]
    for method, one in methods.items():
        lines.append((method, *(share_text(one["by"][key][name]["acc_main"]) for name in names)))
    return as_columns(lines)
