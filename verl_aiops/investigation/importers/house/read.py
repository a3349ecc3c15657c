"""Cases of one's own house: a folder of exports and a mapping file; each alert is a case with what was around it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.inputs.shown import one_line
from verl_aiops.investigation.case import Case
from verl_aiops.investigation.importers.house.alerts import Alert, read_alerts
from verl_aiops.investigation.importers.house.mapping import HouseMapping, read_mapping
from verl_aiops.investigation.importers.house.otlp import read_logs, read_spans
from verl_aiops.investigation.importers.house.platform import read_changes, read_events, read_metrics
from verl_aiops.investigation.importers.source import CaseJob, CaseSource, bounded_logs, bounded_spans, calls_of_spans
from verl_aiops.investigation.importers.texts import inside, section, whole_json
from verl_aiops.investigation.signals import LogLine, Note, Series, Signals, Span

__all__ = ["HOUSE"]

MAPPING = "cases.yaml"
# How long before the telemetry's window a change may have been made.
_CHANGES_S = 86_400.0


def read(job: CaseJob) -> Iterator[Case]:
    file = job.mapping or job.root / MAPPING
    if not file.exists():
        raise FileNotFoundError(
            f"{one_line(file)}: no such file; write one that says `alerts: alerts.json` and where the rest is "
            "(docs/investigation.md), or name it with --mapping"
        )
    mapping = read_mapping(file)
    sent = [alert for path in _files(job, mapping, "alerts") for alert in read_alerts(path)]
    alerts = _once(sent)
    job.leave_out("alerts: sent again, or that the trouble is over", len(sent) - len(alerts))
    house = _House(job, mapping, [alert.time for alert in alerts])
    used = Counter(alert.ids[0] for alert in alerts)
    seen: Counter[str] = Counter()
    known: set[str] = set()
    for alert in alerts:
        name = alert.ids[0]
        seen[name] += 1
        case_id = name if used[name] == 1 else f"{name}-{seen[name]}"
        known.update(set(alert.ids) & set(mapping.truth))
        yield house.case(case_id, alert)
    left = sorted(set(mapping.truth) - known)
    if left:
        raise IncidentError(
            f"{one_line(file)}, key 'truth.{left[0]}': no alert has this id; there are: "
            f"{one_line(', '.join(sorted(used)), 300)}"
        )


def _once(sent: list[Alert]) -> list[Alert]:
    """In order of time, each alert once: programs send one again while it lasts, and when it is over."""
    first: dict[tuple[str, float], Alert] = {}
    for alert in sorted(sent, key=lambda alert: alert.time):
        known = first.setdefault((alert.ids[0], alert.time), alert)
        if known is not alert:
            # a group that was sent again may have grown, and the truth may be told under any of its names
            first[alert.ids[0], alert.time] = known._replace(ids=tuple(dict.fromkeys((*known.ids, *alert.ids))))
    return list(first.values())


def _files(job: CaseJob, mapping: HouseMapping, kind: str) -> list[Path]:
    found: list[Path] = []
    for pattern in mapping.files.get(kind, ()):
        inside(job.root, pattern.split("*")[0] or ".")
        try:
            paths = sorted(path for path in job.root.glob(pattern) if path.is_file())
        except ValueError as error:
            file = one_line(job.mapping or job.root / MAPPING)
            raise IncidentError(
                f"{file}, key '{kind}': expected a pattern of files, found '{pattern}' ({error})"
            ) from None
        if not paths:
            raise FileNotFoundError(f"{one_line(job.root / pattern)}: no such file ({kind} of the mapping)")
        found += [inside(job.root, str(path.relative_to(job.root))) for path in paths]
    return found


class _Around:
    """The times from `before` seconds before an alert to `after` seconds behind it, of all alerts together."""

    def __init__(self, alerts: list[float], before: float, after: float):
        self.alerts, self.before, self.after = sorted(alerts), before, after

    def holds(self, time: float) -> bool:
        # the windows are equally long: the earliest alert that is not over by then has it, or none has
        at = bisect_left(self.alerts, time - self.after)
        return at < len(self.alerts) and self.alerts[at] - self.before <= time


class _House:
    """All telemetry of the folder, of which each case gets what lies in its window; what lies in none is counted."""

    def __init__(self, job: CaseJob, mapping: HouseMapping, alerts: list[float]):
        self.job, self.mapping = job, mapping
        around = _Around(alerts, mapping.before, mapping.after)

        def all_of(kind: str, reader: Any, around: _Around = around) -> list[Any]:
            rows = [row for path in _files(job, mapping, kind) for row in reader(job, path, mapping)]
            kept = [row for row in rows if row.time is None or around.holds(row.time)]
            job.leave_out(f"{kind}: around no alert", len(rows) - len(kept))
            return kept

        self.logs: list[LogLine] = all_of("logs", read_logs)
        self.spans: list[Span] = all_of("spans", read_spans)
        self.events: list[Note] = all_of("events", read_events)
        self.changes: list[Note] = all_of(
            "changes", read_changes, _Around(alerts, mapping.before + _CHANGES_S, mapping.after)
        )
        self.metrics: list[Series] = []
        for path in _files(job, mapping, "metrics"):
            for series in read_metrics(job, path, mapping):
                points = tuple(point for point in series.points if around.holds(point[0]))
                job.leave_out("points: around no alert", len(series.points) - len(points))
                self.metrics.append(series._replace(points=points))
        self.topology = [row for path in _files(job, mapping, "topology") for row in _edges(path)]

    def case(self, case_id: str, alert: Alert) -> Case:
        """As a record, so that what is strange in any of it is told with its key."""
        mapping, job = self.mapping, self.job
        first, last = alert.time - mapping.before, alert.time + mapping.after

        def near(rows: list[Any], since: float = first) -> list[Any]:
            return [row for row in rows if row.time is None or since <= row.time <= last]

        metrics = []
        for series in self.metrics:
            points = tuple(point for point in series.points if first <= point[0] <= last)
            if points:
                metrics.append(series._replace(points=points))
        signals = Signals(
            bounded_logs(job, near(self.logs)),
            tuple(metrics),
            bounded_spans(job, near(self.spans)),
            tuple(near(self.events)),
            tuple(near(self.changes, first - _CHANGES_S)),
        )
        truth = next((mapping.truth[name] for name in alert.ids if name in mapping.truth), {})
        row: dict[str, Any] = {
            "id": case_id,
            "source": mapping.source,
            "symptom": alert.symptom,
            "lang": mapping.lang,
            "alert": alert.time,
            "severity": alert.severity,
            "team": alert.team,
            "topology": self.topology
            or [{"from": caller, "to": called} for caller, called in calls_of_spans(signals.spans)],
            "reasons": list(mapping.reasons) or None,
            "signals": signals.to_dict(),
            **truth,
        }
        try:
            return Case.from_dict(row)
        except IncidentError as error:
            raise IncidentError(f"{one_line(job.root)}, alert '{one_line(case_id, 80)}': {error}") from None


def _edges(path: Path) -> list[Any]:
    rows = whole_json(path)
    ends = [section(row, end) for row in rows for end in ("from", "to")] if isinstance(rows, list) else [None]
    if not all(isinstance(end, str) for end in ends):
        raise IncidentError(f'{one_line(path)}: expected [{{"from": caller, "to": called}}, ...]')
    return rows


HOUSE = CaseSource(
    name="house",
    title="your own alerts and telemetry",
    homepage="docs/investigation.md",
    expects="a folder with a mapping file (cases.yaml, or --mapping) that says where alerts (Alertmanager or PagerDuty "
    "JSON), OTLP logs and spans (JSON), Prometheus range answers, `kubectl get events -o json` and a deploy log are",
    licence="yours",
    citation="none",
    read=read,
)
