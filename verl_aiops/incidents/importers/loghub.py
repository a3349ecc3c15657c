"""loghub: windows of the 2,000-line samples in which one family of event templates is the most frequent."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.importers.job import Job, Source
from verl_aiops.incidents.importers.mapping import Entry
from verl_aiops.incidents.importers.tables import cut, read_table
from verl_aiops.incidents.schema import Incident

# Severities that are no alarm, in any spelling of the samples.
_CALM = frozenset({"DEBUG", "INFO", "NOTICE", "TRACE"})
LONGEST_WINDOW = 300
_EVENT = re.compile(r"E\d+")


@dataclass(frozen=True)
class Limits:
    """Window length in lines from `shortest` to `longest`; the rest are upper bounds, but for `min_records`."""

    shortest: int
    longest: int
    per_type: int
    evidence: int
    line_chars: int
    min_records: int


@dataclass(frozen=True)
class LogSystem:
    """How one system is read: `services` maps components by the first pattern that fits, `types` event ids to types."""

    name: str
    place: str
    level: str | None
    label_column: bool
    component: str | None
    services: tuple[tuple[re.Pattern[str], str], ...]
    types: Mapping[str, str]
    kinds: tuple[str, ...]
    templates: str | None

    def service_of(self, row: Mapping[str, str]) -> str | None:
        """The service that a line of the structured file belongs to, or None if no pattern fits its component."""
        component = row[self.component] if self.component else ""
        for pattern, service in self.services:
            match = pattern.fullmatch(component)
            if match:
                return match.expand(service).lower()
        return None


def check_mapping(entry: Entry) -> tuple[Limits, tuple[LogSystem, ...]]:
    """The limits and systems of a mapping file; raises IncidentError."""
    parts = entry.fields(("window", "systems"))
    names = ("shortest", "longest", "per_type", "evidence", "line_chars", "min_records")
    sizes = parts["window"].fields(names)
    # every place of a line in a window of every length is tried
    most = {"shortest": LONGEST_WINDOW, "longest": LONGEST_WINDOW}
    limits = Limits(**{name: sizes[name].count(most=most.get(name, 100_000)) for name in names})
    if limits.shortest > limits.longest:
        raise sizes["longest"].fail(f"at least 'shortest', {limits.shortest}", "exchange them")
    return limits, tuple(_system(name, value) for name, value in parts["systems"].items())


def _system(name: str, entry: Entry) -> LogSystem:
    parts = entry.fields(("place", "services", "types"), ("level", "label_column", "component", "templates"))
    types: dict[str, str] = {}
    kinds = []
    for kind, events in parts["types"].items():
        kinds.append(kind)
        Entry(kind, events.file, events.key).label()
        for event in events.list():
            if not _EVENT.fullmatch(event.text()):
                raise event.fail("the id of an event template, such as E12", "take it from the _templates.csv file")
            if event.value in types:
                raise event.fail(f"an event of one type, but it is '{types[event.value]}' already", "keep one of them")
            types[event.value] = kind
    services = []
    for pattern, service in parts["services"].items():
        compiled = Entry(pattern, service.file, service.key).pattern()
        try:
            re.sub(compiled, service.label(), "")
        except (re.error, IndexError) as error:
            raise service.fail(
                f"a name or a template for its pattern ({error})", "write \\1 for the first group"
            ) from None
        services.append((compiled, service.label()))
    return LogSystem(
        name,
        parts["place"].text(),
        None if parts["level"].absent() else parts["level"].text(),
        not parts["label_column"].absent() and parts["label_column"].flag(),
        None if parts["component"].absent() else parts["component"].text(),
        tuple(services),
        types,
        tuple(kinds),
        None if parts["templates"].absent() else parts["templates"].text(),
    )


@dataclass(frozen=True)
class Sample:
    """A system's lines as text (label column removed), the structured row of each, and its type or None."""

    system: LogSystem
    lines: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    kinds: tuple[str | None, ...]


def read_sample(folder: Path, system: LogSystem, limits: Limits) -> Sample:
    """The files of one system; raises IncidentError where they do not fit together or are not those of the mapping."""
    structured = sorted(folder.glob("*_2k.log_structured.csv"))
    if len(structured) != 1:
        raise IncidentError(
            f"{folder}: expected one file *_2k.log_structured.csv, found {len(structured)}; fetch the folder anew"
        )
    stem = str(structured[0]).removesuffix("_structured.csv")
    _check_templates(Path(f"{stem}_templates.csv"), system)
    columns = [name for name in (system.level, system.component) if name] + ["EventId"]
    rows = tuple(read_table(structured[0], columns))
    try:
        raw = Path(stem).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{stem}: no such file; the lines are read from it") from None
    # Only a newline ends a line: some samples have carriage returns within one.
    lines = [line.rstrip("\r") for line in raw.decode("utf-8", "replace").removesuffix("\n").split("\n")]
    if len(lines) != len(rows):
        raise IncidentError(f"{stem}: expected {len(rows)} lines as in {structured[0].name}, found {len(lines)}")
    if system.label_column:
        lines = [line.partition(" ")[2] for line in lines]
    return Sample(
        system,
        tuple(cut(line, limits.line_chars) for line in lines),
        rows,
        tuple(system.types.get(row["EventId"]) for row in rows),
    )


def _check_templates(path: Path, system: LogSystem) -> None:
    templates = {row["EventId"]: row["EventTemplate"] for row in read_table(path, ("EventId", "EventTemplate"))}
    unknown = sorted(set(system.types).difference(templates))
    if unknown:
        raise IncidentError(f"{path}: the mapping names the event {unknown[0]}, which is not in it; mend the mapping")
    found = fingerprint({event: templates[event] for event in system.types})
    if system.templates is not None and found != system.templates:
        raise IncidentError(
            f"{path}: its event ids are not those of the mapping (fingerprint {found}, expected {system.templates}); "
            f"check the events of '{system.name}' in a mapping of your own and leave its key 'templates' out"
        )


def fingerprint(templates: Mapping[str, str]) -> str:
    """Eight hex digits that change when an event id or the text of its template does."""
    text = "\n".join(f"{event}\t{templates[event]}" for event in sorted(templates))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def find_windows(sample: Sample, kind: str, limits: Limits, choices: Random) -> list[tuple[int, int]]:
    """Windows [start, stop) without overlap in which `kind` is strictly the most frequent type, from first to last.

    Around the next line of that type that is in no window yet, all lengths and places are tried in random order.
    """
    shapes = [(length, before) for length in range(limits.shortest, limits.longest + 1) for before in range(length)]
    windows: list[tuple[int, int]] = []
    end = 0
    for hit in (number for number, found in enumerate(sample.kinds) if found == kind):
        if hit < end:
            continue
        for length, before in choices.sample(shapes, len(shapes)):
            start = hit - before
            stop = start + length
            if end <= start and stop <= len(sample.lines) and is_dominant(sample, kind, start, stop):
                windows.append((start, stop))
                end = stop
                break
    return windows


def is_dominant(sample: Sample, kind: str, start: int, stop: int) -> bool:
    """Whether `kind` is strictly the most frequent type of the lines [start, stop)."""
    counts = Counter(found for found in sample.kinds[start:stop] if found)
    return counts[kind] > max((count for other, count in counts.items() if other != kind), default=0)


def window_fields(sample: Sample, kind: str, start: int, stop: int, limits: Limits) -> dict[str, Any] | None:
    """An incident's fields, but for its id, from the lines [start, stop); None if no service fits.

    The service is the one that most lines of the type belong to (the first of equals); its lines are the evidence.
    """
    system, lines = sample.system, sample.lines[start:stop]
    owners = [
        system.service_of(sample.rows[number]) if sample.kinds[number] == kind else None
        for number in range(start, stop)
    ]
    counts = Counter(owner for owner in owners if owner)
    if not counts:
        return None
    service = counts.most_common(1)[0][0]
    evidence = list(dict.fromkeys(line for line, owner in zip(lines, owners) if owner == service))
    if system.level:
        loud = sum(row[system.level].upper() not in _CALM for row in sample.rows[start:stop])
        symptom = f"{loud} of {len(lines)} consecutive messages are above INFO level."
    else:
        symptom = f"anomalous message rate in a window of {len(lines)} consecutive messages."
    return {
        "source": f"loghub/{system.name}",
        "service": service,
        "incident_type": kind,
        "symptom": f"Log alert on {system.place}: {symptom}",
        "logs": lines,
        "evidence": tuple(evidence[: limits.evidence]),
    }


def read(job: Job) -> Iterator[Incident]:
    """Incidents of all systems that are both in the folder and in the mapping."""
    limits, systems = job.mapping
    found: list[tuple[LogSystem, list[dict[str, Any]]]] = []
    for system in job.track(systems, "system"):
        folder = job.root / system.name
        if folder.is_dir():
            found.append((system, _read_system(job, read_sample(folder, system, limits), limits)))
        else:
            job.leave_out(f"systems: no folder of the mapping's '{system.name}'")
    mapped = {system.name for system in systems}
    for path in sorted(job.root.glob("*/*_2k.log_structured.csv")):
        if path.parent.name not in mapped:
            job.leave_out(f"systems: '{path.parent.name}' is not in the mapping")
    totals = Counter(fields["incident_type"] for _, records in found for fields in records)
    for system, records in found:
        number = 0
        for fields in records:
            if totals[fields["incident_type"]] < limits.min_records:
                job.leave_out(f"windows: the type '{fields['incident_type']}' has fewer than {limits.min_records}")
                continue
            number += 1
            yield Incident(id=f"loghub-{system.name.lower()}-{number:04}", **fields)


def _read_system(job: Job, sample: Sample, limits: Limits) -> list[dict[str, Any]]:
    records = []
    for kind in sample.system.kinds:
        choices = job.choices(f"loghub/{sample.system.name}/{kind}")
        windows = find_windows(sample, kind, limits, choices)
        if not windows:
            job.leave_out(f"types: no window of '{sample.system.name}' in which '{kind}' is the most frequent type")
        if len(windows) > limits.per_type:
            job.leave_out(f"windows: beyond {limits.per_type} of one system and type", len(windows) - limits.per_type)
            windows = sorted(choices.sample(windows, limits.per_type))
        for start, stop in windows:
            fields = window_fields(sample, kind, start, stop, limits)
            if fields is None:
                job.leave_out(f"windows: no service of '{sample.system.name}' fits their components")
            else:
                records.append(fields)
    return records


SOURCE = Source(
    name="loghub",
    title="loghub, system logs with event templates (the 2,000-line samples)",
    homepage="https://github.com/logpai/loghub",
    expects="the repository: a folder for each system with <System>_2k.log, <System>_2k.log_structured.csv and "
    "<System>_2k.log_templates.csv",
    files=("*/*_2k.log_structured.csv",),
    licence="loghub's own terms, not an open-source licence: free for research and academic work; whoever uses or "
    "distributes the data names the repository and cites the paper, and the notice goes with every copy.",
    citation="Jieming Zhu, Shilin He, Pinjia He, Jinyang Liu, Michael R. Lyu. Loghub: A Large Collection of System Log "
    "Datasets for AI-driven Log Analytics. ISSRE 2023 (arXiv 2008.06448).",
    changes="windows of neighbouring lines were cut out and labelled by their event templates; long lines are cut, and "
    "the alert label in the first column of BGL and Thunderbird is left out.",
    licence_files=("LICENSE", "CITATION"),
    check=check_mapping,
    read=read,
)
