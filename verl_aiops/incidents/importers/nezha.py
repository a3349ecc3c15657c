"""Nezha: one trace of a minute after an injected fault, with log lines and metrics of pods on and off the trace."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.importers.job import Job, Source
from verl_aiops.incidents.importers.mapping import Entry
from verl_aiops.incidents.importers.nezha_files import CPU, LATENCIES, Day, Injection, Line, PodReading, Span
from verl_aiops.incidents.importers.tables import read_json
from verl_aiops.incidents.schema import Incident

# What a record shows.
LONGEST_SPANS, OWN_SPANS = 14, 4
STATEMENT_LINES, OWN_LINES, OTHER_LINES, BACKGROUND_LINES = 4, 2, 4, 3
PODS_ON_TRACE, PODS_OFF_TRACE = 4, 1
EVIDENCE_SPANS = 3
# A value is conspicuous above this multiple of the usual one.
HIGH = 1.5
# Spans shorter than this say nothing about a delay; in microseconds.
LEAST_SPAN = 5000
# The wire took at least half of the time of a caller's span that is longer than this multiple of the callee's.
CALLER_OVER_CALLEE = 2
# How much more a trace with an error of the faulty service, or with a statement around the fault, counts.
ERROR_BONUS, STATEMENT_BONUS = 100.0, 10.0
_ERROR = re.compile(r"\bERROR\b")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class NezhaMapping:
    """The checked mapping: applications by day, ids of days, what each fault is, and how many records to make."""

    application_of: Mapping[str, str]
    number_of: Mapping[str, int]
    labels: Mapping[str, str]
    type_of: Mapping[str, str]
    rule_of: Mapping[str, str]
    minutes: int
    traces: int
    per_type: int


def check_mapping(entry: Entry) -> NezhaMapping:
    """What a mapping file says; raises IncidentError."""
    parts = entry.fields(("applications", "faults", "records"))
    application_of: dict[str, str] = {}
    number_of: dict[str, int] = {}
    labels = {}
    for name, application in parts["applications"].items():
        fields = application.fields(("labels", "days"))
        labels[Entry(name, entry.file, application.key).label()] = fields["labels"].text()
        for day, value in fields["days"].items():
            if not _DATE.fullmatch(day):
                raise value.fail(f"a day like 2022-08-22 as the key, found '{day}'", "use the name of its folder")
            if day in application_of:
                raise value.fail(f"a day of one application, but it is '{application_of[day]}' already", "keep one")
            number = value.fields(("number",))["number"]
            if number.count(0) in number_of.values():
                raise number.fail("a number of one day", "number the days differently, or their ids clash")
            application_of[day], number_of[day] = name, number.count(0)
    type_of, rule_of = {}, {}
    for name, fault in parts["faults"].items():
        fields = fault.fields(("type", "evidence"))
        type_of[name], rule_of[name] = fields["type"].label(), fields["evidence"].choice("cpu", "latency", "statements")
    records = parts["records"].fields(("minutes", "traces", "per_type"))
    sizes = {name: records[name].count() for name in ("minutes", "traces", "per_type")}
    return NezhaMapping(application_of, number_of, labels, type_of, rule_of, **sizes)


@dataclass(frozen=True)
class Scene:
    """What a record is made of: one trace of one minute, and the minute's log lines."""

    fault: Injection
    rule: str
    statements: tuple[str, ...]
    minute: datetime
    spans: Sequence[Span]
    lines: Sequence[Line]

    def own(self, line: Line) -> bool:
        return line.trace == self.spans[0].trace and line.service == self.fault.service

    def shown_spans(self) -> list[Span]:
        """The longest spans and the faulty service's first ones, by start."""
        ordered = sorted(self.spans, key=lambda span: span.start)
        first = [span for span in ordered if span.service == self.fault.service][:OWN_SPANS]
        longest = sorted(ordered, key=lambda span: -span.duration)[:LONGEST_SPANS]
        names = {span.name for span in first + longest}
        return [span for span in ordered if span.name in names]

    def statement_lines(self) -> list[str]:
        """The faulty service's lines of the trace with a statement around the fault, an error or an exception."""
        own = (line.text for line in self.lines if self.own(line))
        found = (text for text in own if _is_error(text) or self._is_statement(text))
        return list(dict.fromkeys(found))[:STATEMENT_LINES]

    def _is_statement(self, text: str) -> bool:
        return any(statement in text for statement in self.statements)

    def anomaly(self) -> float:
        """How many times longer than usual a span of the trace took at most; for faults in code also what is logged."""
        score = max(span.ratio for span in self.spans)
        if self.rule == "statements":
            own = [line.text for line in self.lines if self.own(line)]
            score += ERROR_BONUS * any(map(_is_error, own)) + STATEMENT_BONUS * any(map(self._is_statement, own))
        return score

    def span_evidence(self) -> list[str]:
        """Calls of the faulty service that took long on the wire, the last first; then its own long spans."""
        callers: list[str] = []
        own: list[str] = []
        for span in self.shown_spans():
            if span.duration <= LEAST_SPAN or span.duration <= HIGH * span.usual:
                continue
            callees = [other.duration for other in self._callees(span)]
            if span.service == self.fault.service:
                own.append(str(span))
            elif callees and span.duration > CALLER_OVER_CALLEE * max(callees):
                callers.insert(0, str(span))
        return list(dict.fromkeys(callers + own))[:EVIDENCE_SPANS]

    def _callees(self, span: Span) -> list[Span]:
        return [other for other in self.spans if other.parent == span.name and other.service == self.fault.service]


def _is_error(text: str) -> bool:
    return bool(_ERROR.search(text)) or "xception" in text


def metric_evidence(reading: PodReading, rule: str) -> list[str]:
    """The faulty pod's metric line if its CPU rate (or one of its latencies) is conspicuous."""
    names = {"cpu": (CPU,), "latency": LATENCIES}[rule]
    return [str(reading)] if any(reading.now[name] > HIGH * reading.usual[name] for name in names) else []


def find_evidence(scene: Scene, reading: PodReading) -> list[str]:
    """The lines and spans that point to the fault, by the rule of its kind."""
    if scene.rule == "statements":
        return scene.statement_lines()
    evidence = metric_evidence(reading, scene.rule)
    return evidence + scene.span_evidence() if scene.rule == "latency" else evidence


def read(job: Job) -> Iterator[Incident]:
    """Incidents of all days that are both in the folder and in the mapping, by application, day and fault."""
    mapping: NezhaMapping = job.mapping
    folders = {path.name: path for path in job.folders("rca_data/*", "a folder rca_data with one folder for each day")}
    for name in folders:
        if name not in mapping.application_of:
            job.leave_out(f"days: '{name}' is not in the mapping")
    for application in dict.fromkeys(mapping.application_of.values()):
        days = [day for day, owner in mapping.application_of.items() if owner == application]
        for day in days:
            if day not in folders:
                job.leave_out(f"days: no folder of the mapping's '{day}'")
        found: list[Record] = []
        for day in days:
            if day in folders:
                files = Day(folders[day], lambda: job.leave_out("log lines: damaged row"))
                found += _read_day(job, files, application)
        yield from _keep(job, found)


# Id of the fault, place among the fault's records, and the incident's other fields.
Record = tuple[str, int, dict[str, Any]]


def _keep(job: Job, records: list[Record]) -> Iterator[Incident]:
    """At most `per_type` records of a type: the first of each fault, then the second of each, and so on."""
    kept: Counter[str] = Counter()
    chosen: set[tuple[str, int]] = set()
    for fault, rank, fields in sorted(records, key=lambda record: record[1]):
        if kept[fields["incident_type"]] < job.mapping.per_type:
            kept[fields["incident_type"]] += 1
            chosen.add((fault, rank))
        else:
            job.leave_out(f"records: beyond {job.mapping.per_type} of one application and type")
    for fault, rank, fields in records:
        if (fault, rank) in chosen:
            yield Incident(id=f"{fault}-{rank}", **fields)


def _read_day(job: Job, day: Day, application: str) -> Iterator[Record]:
    mapping: NezhaMapping = job.mapping
    path = job.root / "construct_data" / mapping.labels[application]
    labels = read_json(path)
    if not isinstance(labels, dict):
        raise IncidentError(f"{path}: expected an object of services; fetch the file anew")
    for fault in job.track(day.faults(), "fault"):
        if fault.kind not in mapping.type_of:
            job.leave_out(f"faults: the kind '{fault.kind}' is not in the mapping")
            continue
        of_service = labels.get(fault.service)
        label = of_service.get(fault.kind) if isinstance(of_service, dict) else None
        # Two statements joined by an underline; a metric's name has none.
        parts = label.split("_") if isinstance(label, str) and "_" in label else []
        statements = tuple(part for part in parts if part)
        name = f"nezha-{application}-f{mapping.number_of[day.folder.name]}{fault.index:02}"
        rank = 0
        for later in range(1, mapping.minutes + 1):
            for scene in _scenes(job, day, fault, statements, fault.minute(later)):
                rank += 1
                yield name, rank, _fields(job, day, application, scene, f"{name}-{rank}")
        if not rank:
            job.leave_out("faults: no record, since no minute after the injection could be used")


def _scenes(job: Job, day: Day, fault: Injection, statements: tuple[str, ...], minute: datetime) -> list[Scene]:
    """The most anomalous traces of a minute that touch the faulty service, the first one first."""
    rule = job.mapping.rule_of[fault.kind]
    traces = day.traces(minute)
    if traces is None:
        job.leave_out("minutes: no trace file")
        return []
    lines = day.lines(minute)
    if lines is None:
        if rule == "statements":
            job.leave_out("minutes: no log file, which a fault in code needs")
            return []
        job.notes["minutes without a log file: spans and metrics only"] += 1
    if day.front(minute) is None or day.reading(fault.service, minute) is None:
        job.leave_out("minutes: no metrics of the front end or of the faulty pod")
        return []
    scenes = [
        Scene(fault, rule, statements, minute, spans, lines or ())
        for spans in traces.values()
        if any(span.service == fault.service for span in spans)
    ]
    if not scenes:
        job.leave_out("minutes: no trace touches the faulty service")
    return sorted(scenes, key=lambda scene: -scene.anomaly())[: job.mapping.traces]


def _fields(job: Job, day: Day, application: str, scene: Scene, name: str) -> dict[str, Any]:
    fault, choices = scene.fault, job.choices(name)
    front, reading = day.front(scene.minute), day.reading(fault.service, scene.minute)
    assert front is not None and reading is not None  # minutes without have no scene
    p90, usual_p90, p99 = front
    trace = list(dict.fromkeys(map(str, scene.shown_spans())))
    return {
        "source": f"nezha/{application}",
        "service": fault.service,
        "incident_type": job.mapping.type_of[fault.kind],
        "symptom": f"Frontend of {application}: request latency P90 {p90:.3f}s (usual {usual_p90:.3f}s), "
        f"P99 {p99:.3f}s at {scene.minute:%Y-%m-%d %H:%M} UTC.",
        "logs": (*_shown_lines(scene, choices), *_shown_metrics(day, scene, choices)),
        "trace": "\n".join(trace),
        "evidence": tuple(find_evidence(scene, reading)),
    }


def _shown_lines(scene: Scene, choices: Random) -> list[str]:
    """Statement lines, a sample of the faulty service's and of the others' lines of the trace, and of other traces'."""
    trace, service = scene.spans[0].trace, scene.fault.service
    # The lines are in order of time; of equal texts the first counts.
    places = {line.text: number for number, line in reversed(list(enumerate(scene.lines)))}
    groups: list[tuple[list[str], int]] = [
        ([line.text for line in scene.lines if scene.own(line)], OWN_LINES),
        ([line.text for line in scene.lines if line.trace == trace and line.service != service], OTHER_LINES),
        ([line.text for line in scene.lines if line.trace != trace], BACKGROUND_LINES),
    ]
    shown = scene.statement_lines()
    for texts, count in groups:
        left = [text for text in dict.fromkeys(texts) if text not in shown]
        shown += choices.sample(left, min(count, len(left)))
    return sorted(shown, key=lambda text: places[text])


def _shown_metrics(day: Day, scene: Scene, choices: Random) -> list[str]:
    """Metric lines of the faulty pod and of samples of the pods on and off the trace, in an order that says nothing."""
    service = scene.fault.service
    on_trace = {span.service for span in scene.spans} - {service}
    others = [name for name in day.services(scene.minute) if name != service]
    shown = [service]
    for group, count in (
        ([name for name in others if name in on_trace], PODS_ON_TRACE),
        ([name for name in others if name not in on_trace], PODS_OFF_TRACE),
    ):
        shown += choices.sample(group, min(count, len(group)))
    choices.shuffle(shown)
    return [str(day.reading(name, scene.minute)) for name in shown]


SOURCE = Source(
    name="nezha",
    title="Nezha, faults injected into Online Boutique and Train-Ticket (traces, logs, metrics)",
    homepage="https://github.com/IntelligentDDS/Nezha",
    expects="the repository: rca_data/<date>/ with <date>-fault_list.json and the folders trace, log and metric, and "
    "construct_data/root_cause_*.json",
    files=("rca_data/*/*-fault_list.json",),
    licence="MIT licence (the repository's).",
    citation="Guangba Yu, Pengfei Chen, Yufeng Li, Hongyang Chen, Xiaoyun Li, Zibin Zheng. Nezha: Interpretable "
    "Fine-Grained Root Causes Analysis for Microservices on Multi-Modal Observability Data. ESEC/FSE 2023.",
    changes="traces, logs and metrics were reduced to the lines shown, pods are named by their service, and medians of "
    "the day were added as usual values.",
    licence_files=("LICENSE",),
    check=check_mapping,
    read=read,
)
