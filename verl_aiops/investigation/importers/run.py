"""Importing cases: which source it is, the files written, and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from verl_aiops.files import write_atomically
from verl_aiops.incidents.errors import IncidentError, OutputExistsError
from verl_aiops.incidents.io.writers import row_writers
from verl_aiops.inputs.shown import counted, one_line
from verl_aiops.investigation.case import Case
from verl_aiops.investigation.importers.cloudopsbench import CLOUDOPSBENCH
from verl_aiops.investigation.importers.house import HOUSE
from verl_aiops.investigation.importers.openrca2 import OPENRCA2
from verl_aiops.investigation.importers.rcaeval import RCAEVAL
from verl_aiops.investigation.importers.source import CaseJob, CaseSource

__all__ = ["CASE_SOURCES", "ImportedCases", "cases_in", "describe_case_sources", "import_cases"]

CASE_SOURCES: dict[str, CaseSource] = {source.name: source for source in (HOUSE, RCAEVAL, CLOUDOPSBENCH, OPENRCA2)}


@dataclass(frozen=True)
class ImportedCases:
    """What an import made; `str()` of it is the printed report."""

    source: CaseSource
    out: Path
    systems: Counter[str]
    known: int
    rows: Counter[str]
    left_out: Counter[str]

    def __str__(self) -> str:
        total = sum(self.systems.values())
        lines = [f"{counted(total, 'case')} from {self.source.title}, the truth of {self.known:,} is known"]
        lines += [f"  {one_line(name, 80)}: {count:,}" for name, count in self.systems.items()]
        kept = ", ".join(f"{count:,} {name}" for name, count in self.rows.items() if count)
        lines.append(f"  kept: {kept or 'nothing'}")
        lines += [f"  left out: {count:,} {reason}" for reason, count in sorted(self.left_out.items())]
        lines.append(f"  written: {self.out}, {_licence_file(self.out)}")
        return "\n".join([*lines, "", notice(self.source)])


def notice(source: CaseSource) -> str:
    """What a source is and what its licence allows, as printed and as written beside the cases."""
    return f"{source.title}: {source.homepage}\nLicence: {source.licence}\nCite: {source.citation}"


def describe_case_sources() -> str:
    """What `import --list` prints of them."""
    blocks = []
    for source in CASE_SOURCES.values():
        blocks.append(f"{source.name}: {source.title} (cases, with telemetry)")
        rows = (("get it", source.homepage), ("expects", source.expects), ("licence", source.licence))
        blocks += [f"  {label:<8} {text}" for label, text in rows]
    return "\n".join(blocks)


def _licence_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.LICENCE.txt")


def import_cases(
    source: str, path: str | Path, out: str | Path, *, mapping: str | Path | None = None, overwrite: bool = False
) -> ImportedCases:
    """Write the cases of the folder `path` to `out`, JSONL, and what the licence allows beside it.

    Args:
        source: a name of `CASE_SOURCES`.
        mapping: for the own house: where its files are and what is called how (default: cases.yaml in the folder).

    Raises:
        IncidentError: with file, row and key of what does not fit; no half-written file is left.
        FileNotFoundError: the folder, or a file that the mapping names, is not there.
    """
    root, out = Path(path), Path(out)
    if source not in CASE_SOURCES:
        raise IncidentError(f"source '{source}': expected one of {', '.join(CASE_SOURCES)}")
    if out.suffix.lower() != ".jsonl":
        raise IncidentError(f"{out}: cases are written as JSONL; let the name end in .jsonl")
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder")
    if not root.is_dir():
        raise IncidentError(f"{root}: expected a folder, found a file; name the folder")
    entry = CASE_SOURCES[source]
    if mapping is not None and entry is not HOUSE:
        raise IncidentError(f"--mapping belongs to {HOUSE.name}; leave it out for {source}")
    licence = _licence_file(out)
    if licence.exists() and not overwrite:
        raise OutputExistsError(f"{licence}: is already there; pass --overwrite to replace it or choose another name")
    job = CaseJob(root, None if mapping is None else Path(mapping))
    systems: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    known, seen = 0, set()
    with row_writers([out], {}, overwrite=overwrite) as (writer,):
        for case in _named(entry, job):
            if case.id in seen:
                raise IncidentError(
                    f"{one_line(root)}: two cases would have the id '{case.id}'; name the folders apart"
                )
            seen.add(case.id)
            systems[case.source] += 1
            known += case.truth_known
            rows.update(_sizes(case))
            writer.write(case.to_dict())
        if not seen:
            raise IncidentError(f"{one_line(root)}: no case could be made of it; expected {entry.expects}")
    write_atomically(licence, f"{notice(entry)}\n")
    return ImportedCases(entry, out, systems, known, rows, job.left_out)


def cases_in(source: str, path: str | Path, mapping: str | Path | None = None) -> Iterator[Case]:
    """The cases of a folder, without a file of them. Errors as `import_cases` has them."""
    yield from _named(CASE_SOURCES[source], CaseJob(Path(path), None if mapping is None else Path(mapping)))


def _sizes(case: Case) -> dict[str, int]:
    signals = case.signals
    return {
        "log lines": len(signals.logs),
        "series": len(signals.metrics),
        "spans": len(signals.spans),
        "events": len(signals.events),
        "changes": len(signals.changes),
        "recorded answers": len(case.recorded.answers) if case.recorded else 0,
    }


def _named(source: CaseSource, job: CaseJob) -> Iterator[Case]:
    """The cases of a source; what a case cannot have is the data's fault and says in which folder."""
    reader = source.read(job)
    while True:
        try:
            case = next(reader)
        except StopIteration:
            return
        except IncidentError as error:
            text = str(error)
            known = text.startswith(str(job.root)) or (job.mapping and text.startswith(str(job.mapping)))
            raise IncidentError(text if known else f"{one_line(job.root)}: {text}") from None
        yield case
