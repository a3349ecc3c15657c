"""Importing a data set: which one it is, its mapping, the files written, and the report."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from verl_aiops.files import leads_out, write_atomically
from verl_aiops.incidents.errors import IncidentError, OutputExistsError
from verl_aiops.incidents.importers.job import Job, Source
from verl_aiops.incidents.importers.mapping import built_in, load_mapping
from verl_aiops.incidents.importers.table import SOURCES
from verl_aiops.incidents.io.writers import row_writers
from verl_aiops.incidents.schema import Incident
from verl_aiops.inputs.shown import counted

AUTO = "auto"


def detect(root: Path) -> Source:
    """The source whose files are in the folder `root`; raises IncidentError unless there is exactly one."""
    found = [source for source in SOURCES.values() if any(next(root.glob(files), None) for files in source.files)]
    if len(found) != 1:
        names = " and ".join(source.name for source in found) or "none of them"
        raise IncidentError(
            f"{root}: expected the files of one of {', '.join(SOURCES)}, found {names}; name the source instead of "
            f"'{AUTO}', or see --list for what each consists of"
        )
    return found[0]


@dataclass(frozen=True)
class Imported:
    """What an import made; `str()` of it is the printed report."""

    source: Source
    out: Path
    licence: Path
    mapping: str
    systems: dict[str, tuple[int, Counter[str], Counter[str]]]
    without_evidence: int
    left_out: Counter[str]
    notes: Counter[str]

    @property
    def count(self) -> int:
        return sum(count for count, _, _ in self.systems.values())

    def __str__(self) -> str:
        lines = [f"{counted(self.count, 'incident')} from {self.source.title}", f"  mapping: {self.mapping}"]
        width = max(map(len, self.systems))
        lines.append(f"  {'system':<{width}}  incidents  services  types")
        for name, (count, services, types) in self.systems.items():
            lines.append(f"  {name:<{width}}  {count:9,}  {len(services):8}  {len(types):5}")
        all_types: Counter[str] = sum((types for _, _, types in self.systems.values()), Counter())
        listed = ", ".join(f"{name} {count:,}" for name, count in all_types.most_common())
        lines += textwrap.wrap(f"types: {listed}", 118, initial_indent="  ", subsequent_indent="    ")
        if self.without_evidence:
            lines.append(f"  without evidence: {self.without_evidence:,}")
        lines += [f"  {note} ({count:,})" for note, count in self.notes.items()]
        lines += [f"  left out: {count:,} {reason}" for reason, count in sorted(self.left_out.items())]
        lines.append(f"  written: {self.out}, {self.licence}")
        return "\n".join([*lines, "", notice(self.source)])


def notice(source: Source) -> str:
    """Licence, citation and changes of a data set, as printed and as written beside the incidents."""
    parts = (
        f"{source.title}: {source.homepage}",
        f"Licence: {source.licence}",
        f"Cite: {source.citation}",
        f"Changed here: {source.changes}",
    )
    return "\n".join(_wrap(part, "", "  ") for part in parts)


def _wrap(text: str, first: str, later: str) -> str:
    # Addresses and file names stay whole.
    return textwrap.fill(
        text, 118, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def describe_sources() -> str:
    """What `--list` prints: every source with what it expects, its licence and its mapping file."""
    blocks = []
    for source in SOURCES.values():
        rows = (
            ("get it", source.homepage),
            ("expects", source.expects),
            ("licence", source.licence),
            ("mapping", str(built_in(source.name))),
        )
        blocks.append(f"{source.name}: {source.title}")
        blocks += [_wrap(text, f"  {label:<8} ", " " * 11) for label, text in rows]
    return "\n".join(blocks)


def import_incidents(
    source: str,
    path: str | Path,
    out: str | Path,
    *,
    mapping: str | Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Imported:
    """Write the incidents of a data set in the folder `path` to `out`, JSONL, and its licence notice beside it.

    `source` is a name in `SOURCES` or `auto`. `mapping` replaces the mapping file that comes with the package. `seed`
    rules which lines and windows are chosen; the same input, mapping and seed give the same file. Raises
    `OutputExistsError`, or `IncidentError` for whatever does not fit, and leaves no half-written file.
    """
    root, out = Path(path), Path(out)
    if source != AUTO and source not in SOURCES:
        raise IncidentError(
            f"source '{source}': expected one of {', '.join(SOURCES)}, or {AUTO}; --list describes them"
        )
    if out.suffix.lower() != ".jsonl":
        raise IncidentError(f"{out}: incidents are written as JSONL; let the name end in .jsonl")
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder")
    if not root.is_dir():
        raise IncidentError(f"{root}: expected the folder of a data set, found a file; name the folder")
    entry = detect(root) if source == AUTO else SOURCES[source]
    mapping_file = Path(mapping) if mapping is not None else built_in(entry.name)
    job = Job(root, entry.check(load_mapping(mapping_file)), seed)
    licence = out.with_name(f"{out.name}.LICENCE.txt")
    if licence.exists() and not overwrite:
        raise OutputExistsError(f"{licence}: is already there; pass --overwrite to replace it or choose another name")
    systems: dict[str, tuple[int, Counter[str], Counter[str]]] = {}
    seen: set[str] = set()
    without_evidence = 0
    with row_writers([out], {}, overwrite=overwrite) as (writer,):
        for incident in _named(entry, job):
            if incident.id in seen:
                raise IncidentError(f"{root}: two incidents would have the id '{incident.id}'; mend the mapping")
            seen.add(incident.id)
            count, services, types = systems.get(incident.source, (0, Counter(), Counter()))
            services[incident.service] += 1
            types[incident.incident_type] += 1
            systems[incident.source] = count + 1, services, types
            without_evidence += not incident.evidence
            writer.write(incident.to_dict())
        if not seen:
            reasons = (
                "; ".join(f"{count:,} {reason}" for reason, count in job.left_out.most_common(5)) or "nothing was found"
            )
            raise IncidentError(f"{root}: no incident could be made of it ({reasons}); expected {entry.expects}")
    write_atomically(licence, f"{notice(entry)}\n{_authors_notices(root, entry)}")
    return Imported(
        entry,
        out,
        licence,
        "built in" if mapping is None else str(mapping),
        systems,
        without_evidence,
        job.left_out,
        job.notes,
    )


def _named(source: Source, job: Job):
    """The incidents of a source; a label or text that an incident cannot have is the data set's fault and says so."""
    reader = source.read(job)
    while True:
        try:
            incident: Incident = next(reader)
        except StopIteration:
            return
        except IncidentError as error:
            text = str(error)
            raise IncidentError(text if text.startswith(str(job.root)) else f"{job.root}: {text}") from None
        yield incident


def _authors_notices(root: Path, source: Source) -> str:
    """The authors' own licence files, as far as they are in the data set's folder."""
    parts = []
    for name in source.licence_files:
        file = root / name
        if leads_out(file, root):
            parts.append(f"\n{name} is a link out of the folder read, and was not followed.\n")
        elif file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace").strip()
            parts.append(f"\n{'-' * 8} {name} {'-' * 8}\n\n{text}\n")
    return "".join(parts) or f"\nThe authors' own notice ({source.licence_files[0]}) was not in the folder read.\n"
