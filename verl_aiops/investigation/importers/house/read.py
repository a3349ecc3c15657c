"""Cases of one's own house: a folder of exports and a mapping file; each alert is a case with what was around it."""

from __future__ import annotations

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
from verl_aiops.investigation.importers.texts import inside, whole_json
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
    alerts = [alert for path in _files(job, mapping, "alerts") for alert in read_alerts(path)]
    house = _House(job, mapping)
    used = Counter(alert.ids[0] for alert in alerts)
    seen: Counter[str] = Counter()
    known: set[str] = set()
    for alert in sorted(alerts, key=lambda alert: alert.time):
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


def _files(job: CaseJob, mapping: HouseMapping, kind: str) -> list[Path]:
    found: list[Path] = []
    for pattern in mapping.files.get(kind, ()):
        inside(job.root, pattern.split("*")[0] or ".")
        paths = sorted(path for path in job.root.glob(pattern) if path.is_file())
        if not paths:
            raise FileNotFoundError(f"{one_line(job.root / pattern)}: no such file ({kind} of the mapping)")
        found += [inside(job.root, str(path.relative_to(job.root))) for path in paths]
    return found


class _House:
    """All telemetry of the folder, of which each case gets what lies in its window."""

    def __init__(self, job: CaseJob, mapping: HouseMapping):
        self.job, self.mapping = job, mapping

        def all_of(kind: str, reader: Any) -> list[Any]:
            return [row for path in _files(job, mapping, kind) for row in reader(job, path, mapping)]

        self.logs: list[LogLine] = all_of("logs", read_logs)
        self.spans: list[Span] = all_of("spans", read_spans)
        self.metrics: list[Series] = all_of("metrics", read_metrics)
        self.events: list[Note] = all_of("events", read_events)
        self.changes: list[Note] = all_of("changes", read_changes)
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
    if not isinstance(rows, list):
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
