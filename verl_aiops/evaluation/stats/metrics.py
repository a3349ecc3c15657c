"""The metrics of an answer, one line each in `METRICS`: tables, comparisons, reports and plots are made of this table.

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
``cut``                  some round used up its budget; over answers of which that is known
``macro_f1_service``     unweighted mean of the F1 of each class; classes are the true services of the answers at
                         hand. An accepted alias counts as its class, an abstention or a name that is no class as
                         missed only. ``macro_f1_type`` the same for incident types
``pass@k``               over incidents with k answers or more: `best_of.pass_at_k` of ``acc_main``
``best@k/m``             over the same incidents: the expected m of the best of k by ``score`` (`best_of.best_of_k`),
                         for each m that is shown `In.BEST`
=======================  =============================================================================================

Where answers are asked for more than service and incident type (severity, team): ``acc_all``, all fields right that are
asked for and known, and ``field/NAME``, this field right, over the answers to incidents that say it.

The components that a user adds to the reward (`rewards.triage.components.PARTS`) are metrics without a line here, each
under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from functools import partial

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.stats.further_fields import ALL, FIELD, all_right, field_right
from verl_aiops.evaluation.stats.shares import Of
from verl_aiops.rewards.triage.answer import MAX_LABEL_CHARS, normalise_label
from verl_aiops.rewards.triage.components import PARTS
from verl_aiops.rewards.triage.ground_truth import read_ground_truth

__all__ = [
    "ABSTENTIONS",
    "FIELDS",
    "MAIN",
    "METRICS",
    "In",
    "Metric",
    "held_by",
    "is_share",
    "knows",
    "metric_named",
    "metrics",
    "over_k_titles",
    "predicted_class",
    "scored",
    "true_class",
    "truth_key",
]

FIELDS = {"service": ("service", "service_ok"), "type": ("incident_type", "type_ok")}
# fmt: off
ABSTENTIONS = frozenset([
    "", "?", "-", "...", "unknown", "none", "null", "n/a", "na", "nil", "undetermined", "unclear", "not sure", "unsure",
    "uncertain", "cannot determine", "i don't know", "未知", "不确定", "无", "不明", "无法确定", "不知道",
])
# fmt: on


class In(Flag):
    """Where a metric is shown; every one stands in ``summary.json``."""

    NOTHING_ELSE = 0
    EVAL = auto()
    """the table of `verl-aiops eval`"""
    COMPARE = auto()
    """tables and report of `verl-aiops compare`"""
    PLOT = auto()
    """the plot of differences; shares alone"""
    SLICES = auto()
    """by source, language and difficulty"""
    RENAME = auto()
    """what renaming the labels costs"""
    BEST = auto()
    """the best of k answers, in ``summary.json`` and the table of `verl-aiops eval`"""
    HEADLINE = auto()
    """plots against a setting and against k, and beside the slices of a report: few, shares alone"""


_SHOWN = In.EVAL | In.COMPARE | In.PLOT
_TABLES = In.EVAL | In.COMPARE


@dataclass(frozen=True)
class Metric:
    """One metric: what it is called, how it comes from an answer, and how it is shown.

    Attributes:
        title: in every table and plot.
        value: from an answered line to a number, or None where the line does not count.
        at: where it is shown.
        better: +1 where more is better, -1 where less is, 0 where it is neither.
        digits: behind the point; None for shares from 0 to 1, which are shown in percent.
        whole: 0 or 1 for each answer, so that tests are exact.
        unit: an amount, with ``digits``, that is from 0 to 1 too, as the reward is.
        short: its title over a narrow column.
        optional: lines of earlier evaluations may lack it, and it is shown only where it is not 0.
        classes: of `FIELDS`, in place of ``value``: macro-F1 of this field's classes.
    """

    title: str
    value: Callable[[AnswerLine], float | None] | None = None
    at: In = _SHOWN
    better: int = 1
    digits: int | None = None
    whole: bool = False
    unit: bool = False
    short: str = ""
    optional: bool = False
    classes: str | None = None

    @property
    def head(self) -> str:
        return self.short or self.title

    @property
    def places(self) -> In:
        """Where it is shown: ``at`` without what it cannot be drawn in, and with what stands on other figures."""
        places = self.at
        if self.digits is not None:
            places &= ~(In.PLOT | In.HEADLINE)
        if self.classes:
            places &= In.EVAL | In.COMPARE | In.PLOT
        if In.HEADLINE in places:
            places |= In.SLICES
        if places & (In.PLOT | In.SLICES):
            places |= In.COMPARE
        return places


# --- from a line to a value -------------------------------------------------------------------------------------------


def scored(key: str) -> Callable[[AnswerLine], float | None]:
    """What the reward returned as ``key``; None where it did not."""
    return lambda line: line["score"].get(key)


def truth_key(field: str) -> str:
    """The key of a field in ground truths and answers."""
    return FIELDS[field][0] if field in FIELDS else field


def knows(line: AnswerLine, field: str) -> bool:
    """Whether the truth of a field is known; service and type always are."""
    return field in FIELDS or field_right(line, field) is not None


def true_class(line: AnswerLine, field: str) -> str:
    return normalise_label(line["ground_truth"][truth_key(field)])


def predicted_class(line: AnswerLine, field: str) -> str | None:
    """The normalised label that an answer gives; the true one where an alias of it was accepted; None without one."""
    if line["score"][FIELDS[field][1]] if field in FIELDS else field_right(line, field):
        return true_class(line, field)
    said = (line["predicted"] or {}).get(truth_key(field))
    if not isinstance(said, str) or len(said) > MAX_LABEL_CHARS:
        return None
    return normalise_label(said)


def _abstained(line: AnswerLine) -> float:
    if line["predicted"] is None:
        return 1.0
    said = {predicted_class(line, field) or "" for field in FIELDS}
    return float(not ABSTENTIONS.isdisjoint(said - read_ground_truth(line["ground_truth"]).names))


def _judged(line: AnswerLine) -> bool:
    return bool(read_ground_truth(line["ground_truth"]).evidence)


def _evidence_precision(line: AnswerLine) -> float | None:
    quotes = line["score"]["quotes"] + line["score"]["invented"]
    return line["score"]["evidence_precision"] if _judged(line) and quotes > 0 else None


def _evidence_recall(line: AnswerLine) -> float | None:
    return line["score"]["evidence_recall"] if _judged(line) else None


def _evidence_rate(line: AnswerLine) -> float | None:
    return float(line["score"]["evidence_recall"] > 0) if _judged(line) else None


def _cut(line: AnswerLine) -> float | None:
    return float(any(line["cut"])) if line["cut"] else None  # verl's dumps do not say


def _empty(line: AnswerLine) -> float | None:
    return float(not line["rounds"][-1].strip()) if line["rounds"] else None


def _tokens(line: AnswerLine) -> float | None:
    return None if line["tokens"] is None else float(sum(line["tokens"]))


# --- the table --------------------------------------------------------------------------------------------------------

MAIN = "acc_main"
"""The metric that verdicts, flips and slices speak of."""

_EVERY = _SHOWN | In.SLICES | In.RENAME | In.BEST | In.HEADLINE
_FIELD = _SHOWN | In.SLICES | In.RENAME

METRICS: dict[str, Metric] = {
    MAIN: Metric("both fields right", scored("acc_main"), _EVERY, whole=True, short="both right"),
    "service_ok": Metric("service right", scored("service_ok"), _FIELD, whole=True, short="service"),
    "type_ok": Metric("incident type right", scored("type_ok"), _FIELD, whole=True, short="type"),
    "macro_f1_service": Metric("macro-F1, services", at=_TABLES, classes="service"),
    "macro_f1_type": Metric("macro-F1, incident types", at=_TABLES, classes="type"),
    "json_ok": Metric("valid JSON", scored("json_ok"), _EVERY, whole=True, short="JSON"),
    "abstained": Metric("abstained", _abstained, _SHOWN | In.RENAME, -1, whole=True),
    "evidence_precision": Metric("evidence precision", _evidence_precision, In.EVAL),
    "evidence_recall": Metric("evidence recall", _evidence_recall, _TABLES),
    "evidence_rate": Metric(
        "quotes known evidence", _evidence_rate, _FIELD | In.HEADLINE, whole=True, short="evidence"
    ),
    "early_verdict": Metric("verdict in an early round", scored("early_verdict"), better=-1, whole=True),
    "cut": Metric("cut at the budget", _cut, better=-1, whole=True),
    "reasoning_cut": Metric("reasoning not closed", scored("reasoning_cut"), In.EVAL, -1, whole=True, optional=True),
    "empty": Metric("answers without any text", _empty, In.EVAL, -1, whole=True, optional=True),
    "score": Metric("reward", scored("score"), _TABLES | In.SLICES | In.RENAME | In.BEST, digits=3, unit=True),
    "evidence": Metric("evidence paid", scored("evidence"), In.COMPARE | In.RENAME | In.BEST, digits=3, unit=True),
    "acc": Metric("fields right", scored("acc"), In.NOTHING_ELSE),
    "quotes": Metric("verbatim quotations", scored("quotes"), In.EVAL, digits=2),
    "invented": Metric("invented quotations", scored("invented"), _TABLES, -1, digits=2),
    "chars": Metric("characters", scored("chars"), _TABLES, 0, digits=0),
    "reasoning": Metric("characters of reasoning", scored("reasoning"), In.EVAL, 0, digits=0, optional=True),
    "tokens": Metric("tokens", _tokens, _TABLES, 0, digits=1),
}
"""By name, in the order of the tables. One more line is all that a new metric needs."""


def metrics(at: In | None = None, fields: Sequence[str] = ()) -> dict[str, Metric]:
    """All metrics there are now, or those that are shown at one place: the table, then the user's reward components.

    A component under the name of another metric is ``reward/NAME``, as training logs it. ``fields``: further ones that
    answers are asked for, whose metrics stand behind those of service and incident type.
    """
    first = list(METRICS).index("type_ok") + 1 if "type_ok" in METRICS else 0
    own = list(METRICS.items())
    known = dict(own[:first] + list(_of_fields(fields).items()) + own[first:]) if fields else METRICS
    parts = {
        f"reward/{name}" if name in METRICS else name: Metric(name, scored(name), better=-1 if part.costs else 1)
        for name, part in PARTS.items()
    }
    return {name: metric for name, metric in (known | parts).items() if at is None or at in metric.places}


def _of_fields(fields: Sequence[str]) -> dict[str, Metric]:
    everything = Metric("all fields right", all_right, _FIELD, whole=True, short="all right")
    return {ALL: everything} | {f"{FIELD}{name}": _of_field(name) for name in fields}


def _of_field(name: str) -> Metric:
    return Metric(f"{name} right", partial(field_right, field=name), _SHOWN, whole=True, short=name)


def metric_named(name: str) -> Metric | None:
    """The metric of this name, those of further fields too, whatever is asked for."""
    if name == ALL or name.startswith(FIELD):
        return _of_fields([name.removeprefix(FIELD)])[name]
    return metrics().get(name)


def is_share(name: str) -> bool:
    """Whether a metric (or ``best@k/METRIC``, ``pass@k``) is from 0 to 1: a share, or an amount like the reward."""
    metric = _metric_of(name)
    return metric is None or metric.digits is None or metric.unit


def held_by(name: str, several: bool, difference: bool = False) -> Of | None:
    """What a column of a metric (or ``best@k/METRIC``, ``pass@k``) holds, as intervals need to know it; None: an amount
    without bounds. ``several``: there are several answers to an incident."""
    if not is_share(name):
        return None
    metric, named = _metric_of(name), metric_named(name)
    whole = named is not None and named.whole
    return Of(whole and not several, metric is not None and metric.digits is not None, difference)


def _metric_of(name: str) -> Metric | None:
    return metric_named(name) or metrics().get(name.partition("/")[2])


def over_k_titles() -> dict[str, str]:
    """What is shown of k answers to an incident: ``pass``, and metrics of the best of k."""
    best = {name: f"{metric.title}, best of k" for name, metric in metrics(In.HEADLINE).items() if name != MAIN}
    return {"pass": "any of k right (pass@k)", **best}
