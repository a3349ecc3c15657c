"""The mapping file of one's own house: where which file is, what services are called in each, what the truth was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_aiops.incidents.io.yaml_file import Entry, read_yaml
from verl_aiops.investigation.importers.source import service_of_pod
from verl_aiops.investigation.importers.texts import name_of

__all__ = ["HouseMapping", "read_mapping"]

_LABELS = (
    "service",
    "service_name",
    "app",
    "app_kubernetes_io_name",
    "deployment",
    "workload",
    "container",
    "job",
    "pod",
)
_COLUMNS = {"time": "time", "service": "service", "kind": "kind", "text": "text"}
_FILES = ("alerts", "logs", "spans", "metrics", "events", "changes", "topology")
_REST = ("source", "before", "after", "services", "labels", "columns", "truth", "reasons", "lang")


@dataclass(frozen=True)
class HouseMapping:
    """`files`: patterns in the folder, by kind. `services`: (pattern, name) pairs, the first that matches a whole name
    counts. `labels`: of a metric or alert, which one names the service, the first that is there. `columns`: of the
    deploy log. `truth`: by an alert's id, the fields of a case that say what it was."""

    source: str
    files: Mapping[str, tuple[str, ...]]
    before: float = 3600.0
    after: float = 900.0
    services: tuple[tuple[re.Pattern[str], str], ...] = ()
    labels: tuple[str, ...] = _LABELS
    columns: Mapping[str, str] = field(default_factory=lambda: dict(_COLUMNS))
    truth: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    lang: str | None = None

    @property
    def own_columns(self) -> tuple[str, ...]:
        """Columns of the deploy log that the file names, and that have to be there."""
        return tuple(column for name, column in self.columns.items() if column != _COLUMNS[name])

    def service(self, name: str | None) -> str | None:
        """What a thing is called in the case: by the mapping, or a pod's workload."""
        if not name:
            return None
        for pattern, service in self.services:
            if pattern.fullmatch(name):
                return service
        return service_of_pod(name)

    def service_by_labels(self, labels: Any) -> str | None:
        """The service that labels name."""
        if isinstance(labels, Mapping):
            for label in self.labels:
                name = name_of(labels.get(label))
                if name:
                    return self.service(name)
        return None


def read_mapping(path: Path) -> HouseMapping:
    """A mapping file; raises IncidentError with file, key and what was expected."""
    entry = read_yaml(path)
    fields = entry.fields(("alerts",), (*_FILES[1:], *_REST))
    files = {name: tuple(_patterns(fields[name])) for name in _FILES if not fields[name].absent()}
    columns = dict(_COLUMNS)
    if not fields["columns"].absent():
        given = fields["columns"].fields((), tuple(_COLUMNS))
        columns.update({name: item.text() for name, item in given.items() if not item.absent()})
    minutes = {name: _minutes(fields[name], default) for name, default in (("before", 60.0), ("after", 15.0))}
    return HouseMapping(
        source="house" if fields["source"].absent() else fields["source"].label(),
        files=files,
        before=minutes["before"],
        after=minutes["after"],
        services=() if fields["services"].absent() else tuple(map(_service, fields["services"].items())),
        labels=_LABELS if fields["labels"].absent() else tuple(item.text() for item in fields["labels"].list()),
        columns=columns,
        truth={} if fields["truth"].absent() else {name: _truth(item) for name, item in fields["truth"].items()},
        reasons=() if fields["reasons"].absent() else tuple(item.label() for item in fields["reasons"].list()),
        lang=None if fields["lang"].absent() else fields["lang"].choice("en", "zh"),
    )


def _patterns(entry: Entry) -> list[str]:
    return [entry.text()] if isinstance(entry.value, str) else [item.text() for item in entry.list()]


def _minutes(entry: Entry, default: float) -> float:
    if entry.absent():
        return 60 * default
    if isinstance(entry.value, bool) or not isinstance(entry.value, int | float) or not 0 < entry.value <= 10_080:
        raise entry.fail("minutes, up to a week", "write a number")
    return 60.0 * entry.value


def _service(item: tuple[str, Entry]) -> tuple[re.Pattern[str], str]:
    name, entry = item
    try:
        return re.compile(name), entry.label()
    except re.error as error:
        raise entry.fail(f"a regular expression as the key ({error})", "escape what is meant literally") from None


_TRUTH = ("root_causes", "propagation", "no_fault", "cannot_tell", "severity", "team", "group")


def _truth(entry: Entry) -> dict[str, Any]:
    """As in a case, which checks it."""
    return {name: item.value for name, item in entry.fields((), _TRUTH).items() if not item.absent()}
