"""Compare an incident file with what `verl-aiops import` makes of a data set: a measurement, for docs/import.md.

    python scripts/check_import.py REFERENCE.jsonl loghub|nezha|petshop FOLDER

REFERENCE holds incidents of that data set that something else has made by the same rules, or an earlier import. What
is left to chance (which windows of a log, which lines beside the evidence) may differ, so it is compared otherwise:
windows are looked up in the sample and labelled anew, log lines are looked for in the data of their minute.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from verl_aiops.incidents import Incident, IncidentError, read_incidents
from verl_aiops.incidents.importers import built_in, import_incidents, load_mapping
from verl_aiops.incidents.importers.loghub import check_mapping, is_dominant, read_sample, window_fields
from verl_aiops.incidents.importers.nezha_files import Day

FIELDS = ("source", "service", "incident_type", "symptom", "trace", "evidence")


def compare(
    reference: Sequence[Incident], source: str, folder: Path, mapping: str | Path | None = None
) -> Iterator[str]:
    """The lines of the report."""
    with tempfile.TemporaryDirectory() as scratch:
        report = import_incidents(source, folder, Path(scratch) / "made.jsonl", mapping=mapping)
        made = list(read_incidents(report.out))
        notice = report.licence.read_text(encoding="utf-8")
    terms = [folder / name for name in report.source.licence_files if (folder / name).is_file()]
    held = sum(file.read_text(encoding="utf-8").strip() in notice for file in terms)
    yield f"{len(made)} incidents imported, {len(reference)} in the reference"
    yield f"files of terms that stand in the notice: {held} of {len(terms)}"
    if source == "loghub":
        yield from _windows(reference, made, folder, built_in(source) if mapping is None else Path(mapping))
        return
    yield from _by_id(reference, made)
    if source == "nezha":
        yield from _lines_of_their_minutes(reference, folder)


def _by_id(reference: Sequence[Incident], made: Sequence[Incident]) -> Iterator[str]:
    by_id = {incident.id: incident for incident in made}
    pairs = [(by_id[incident.id], incident) for incident in reference if incident.id in by_id]
    yield f"same id: {len(pairs)} of {len(reference)}"
    for field in FIELDS:
        same = sum(getattr(mine, field) == getattr(other, field) for mine, other in pairs)
        yield f"same {field}: {same} of {len(reference)}"
    lines = sum({*mine.evidence} == {*other.evidence} for mine, other in pairs)
    yield f"same lines of evidence, in any order: {lines} of {len(reference)}"
    yield f"same number of log lines: {sum(len(mine.logs) == len(other.logs) for mine, other in pairs)}"
    lines = max((len({*other.logs} - {*mine.logs}) for mine, other in pairs), default=0)
    yield f"log lines of one incident that only the reference has: at most {lines}"


def _lines_of_their_minutes(reference: Sequence[Incident], folder: Path) -> Iterator[str]:
    """Nezha: every log line of the reference against all lines and readings of its minute."""
    days: dict[str, Day] = {}
    missing: Counter[str] = Counter()
    for incident in reference:
        date, clock = incident.symptom.split(" at ")[1].split()[:2]
        day = days.setdefault(date, Day(folder / "rca_data" / date, lambda: None))
        fault = next(iter(day.faults()))
        minute = fault.when.replace(hour=int(clock[:2]), minute=int(clock[3:]), second=0)
        lines = {line.text for line in day.lines(minute) or ()}
        lines |= {str(day.reading(service, minute)) for service in day.services(minute)}
        missing.update(f"{date} {' '.join(text.split()[:2])}" for text in {*incident.logs} - lines)
    yield f"log lines of the reference that are not in the data: {missing.total()}"
    yield from (f"  {count} of {what}" for what, count in sorted(missing.items()))


def _windows(reference: Sequence[Incident], made: Sequence[Incident], folder: Path, mapping: Path) -> Iterator[str]:
    """loghub: every window of the reference, labelled anew; and how many windows of each type either side has."""
    limits, systems = check_mapping(load_mapping(mapping))
    same: Counter[str] = Counter()
    for system in systems:
        sample = read_sample(folder / system.name, system, limits)
        for incident in (found for found in reference if found.source == f"loghub/{system.name}"):
            size = len(incident.logs)
            starts = [at for at in range(len(sample.lines) - size + 1) if sample.lines[at : at + size] == incident.logs]
            if not starts or not is_dominant(sample, incident.incident_type, starts[0], starts[0] + size):
                continue
            same["window"] += 1
            fields = window_fields(sample, incident.incident_type, starts[0], starts[0] + size, limits)
            for field in ("source", "service", "symptom", "logs", "evidence"):
                same[field] += fields[field] == getattr(incident, field)
    for what in ("window", "source", "service", "symptom", "logs", "evidence"):
        yield f"same {what}: {same[what]} of {len(reference)}"
    mine, theirs = (
        Counter((incident.source, incident.incident_type) for incident in side) for side in (made, reference)
    )
    apart = max((abs(mine[key] - theirs[key]) for key in {*mine, *theirs}), default=0)
    yield f"systems and types: {len(mine)} imported, {len(theirs)} in the reference, {len({*mine} & {*theirs})} in both"
    yield f"windows of one type: numbers differ by at most {apart}"


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 3 or arguments[1] not in ("loghub", "nezha", "petshop"):
        print(__doc__, file=sys.stderr)
        return 2
    path, source, folder = arguments
    try:
        reference = [incident for incident in read_incidents(path) if incident.source.startswith(f"{source}/")]
        if not reference:
            raise IncidentError(f"{path}: no incident has a source that begins with '{source}/'")
        for line in compare(reference, source, Path(folder)):
            print(line)
    except (IncidentError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
