"""The incident record: what every reader yields, the simulator makes and everything else takes."""

from __future__ import annotations

import difflib
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.field_checks import check_label, check_list, check_text, fail, found, names_in, rows_inside
from verl_aiops.incidents.language import guess_language
from verl_aiops.inputs.shown import one_line

LANGUAGES = ("en", "zh")
REQUIRED_FIELDS = ("id", "service", "incident_type", "symptom", "logs")
OPTIONAL_FIELDS = ("source", "trace", "lang", "evidence", "fault", "aliases", "difficulty", "upstream", "decoys")
FIELDS = ("id", "source", "service", "incident_type", "symptom", "logs", "trace", "lang", "evidence")

_FAULT_IN_ID = re.compile(r"(.+-f\d+)-\d+")


@lru_cache(maxsize=65536)
def normalise_label(label: str) -> str:
    """The form in which two labels are compared: NFKC, case folded, trimmed."""
    if label.isascii():
        return label.strip().lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold()).strip()


@dataclass(frozen=True)
class Incident:
    """One incident with its known answer. Any instance is valid: the constructor raises `IncidentError` otherwise.

    `service` and `incident_type` are the answer. `logs` are log and metric lines in order; `trace` is span lines joined
    by newlines, or None. Each string of `evidence` occurs verbatim in `symptom`, `logs` or `trace`. `fault` names the
    injected fault where the id does not. `service_aliases` and `type_aliases` are other right names. `upstream` are
    services that merely show the effect; `decoys` are (service, incident type) pairs that the text hints at though they
    are wrong. The last two are known for simulated incidents. `labels` are further fields of the answer (severity,
    team), each with its label, and `label_aliases` other right names of these.
    """

    id: str
    source: str
    service: str
    incident_type: str
    symptom: str
    logs: tuple[str, ...]
    trace: str | None = None
    lang: str = "en"
    evidence: tuple[str, ...] = ()
    fault: str | None = None
    service_aliases: tuple[str, ...] = ()
    type_aliases: tuple[str, ...] = ()
    difficulty: str | None = None
    upstream: tuple[str, ...] = ()
    decoys: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    label_aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        for fault in self._faults():
            raise fault

    def _faults(self) -> Iterator[IncidentError]:
        """The fault of each field that has one, in order."""
        wrong: set[str] = set()
        for fields, check in _CHECKS.items():
            if not wrong.intersection(fields.split()):
                try:
                    check(self)
                except IncidentError as error:
                    wrong.add(fields.split()[0])
                    yield error

    def _check_data(self) -> None:
        if not self.logs and not self.trace:
            raise fail("logs", "at least one line in logs or trace", "an incident without data cannot be triaged")

    def _check_lang(self) -> None:
        if self.lang not in LANGUAGES:
            expected = f"one of {', '.join(LANGUAGES)} (the languages of the instructions), found {found(self.lang)}"
            raise fail("lang", expected, 'set "en" if the data are in another language')

    def _check_decoys(self) -> None:
        if not isinstance(self.decoys, tuple):
            raise fail("decoys", f"a list of pairs, found {found(self.decoys)}", 'write [["service", "type"]]')
        for number, decoy in enumerate(self.decoys):
            if not isinstance(decoy, tuple) or len(decoy) != 2:
                raise fail(
                    f"decoys[{number}]", f"a pair [service, incident type], found {found(decoy)}", "write two names"
                )
            check_list(f"decoys[{number}]", decoy, labels=True)

    def _check_labels(self) -> None:
        for name, label in self.labels:
            check_label(name, label)
        for name, names in self.label_aliases:
            check_list(f"aliases.{name}", names, labels=True)

    def _check_evidence(self) -> None:
        check_list("evidence", self.evidence)
        sections = (self.symptom, "\n".join(self.logs), self.trace or "")
        for number, text in enumerate(self.evidence):
            if not text.strip():
                raise fail(f"evidence[{number}]", "text, found an empty string", "leave the entry out")
            if not any(text in section for section in sections):
                expected = f"a string that occurs verbatim in symptom, logs or trace, found {text[:120]!r}"
                raise fail(f"evidence[{number}]", expected, "copy it from there character by character")

    @property
    def trace_lines(self) -> tuple[str, ...]:
        return tuple(self.trace.split("\n")) if self.trace else ()

    @cached_property
    def right_services(self) -> frozenset[str]:
        """The normalised names under which the faulty service is right."""
        return frozenset(map(normalise_label, (self.service, *self.service_aliases)))

    @cached_property
    def right_types(self) -> frozenset[str]:
        """The normalised names under which the incident type is right."""
        return frozenset(map(normalise_label, (self.incident_type, *self.type_aliases)))

    def is_service(self, name: str) -> bool:
        """Whether `name` is the faulty service, also under an alias or in another spelling of the same letters."""
        return normalise_label(name) in self.right_services

    def is_type(self, name: str) -> bool:
        """Whether `name` is the incident type, also under an alias or in another spelling of the same letters."""
        return normalise_label(name) in self.right_types

    def is_label(self, field: str, name: str) -> bool:
        """Whether `name` is the label of a further field, also under an alias or in another spelling."""
        names = (dict(self.labels)[field], *dict(self.label_aliases).get(field, ()))
        return normalise_label(name) in map(normalise_label, names)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: the nine fields of the file format, then the optional ones that are set."""
        row: dict[str, Any] = {field: getattr(self, field) for field in FIELDS}
        row["logs"], row["evidence"] = list(self.logs), list(self.evidence)
        if self.fault is not None:
            row["fault"] = self.fault
        if self.service_aliases or self.type_aliases:
            row["aliases"] = {"service": list(self.service_aliases), "incident_type": list(self.type_aliases)}
        if self.label_aliases:
            row.setdefault("aliases", {}).update((name, list(names)) for name, names in self.label_aliases)
        if self.difficulty is not None:
            row["difficulty"] = self.difficulty
        if self.upstream:
            row["upstream"] = list(self.upstream)
        if self.decoys:
            row["decoys"] = [list(decoy) for decoy in self.decoys]
        return row | dict(self.labels)

    @classmethod
    def from_dict(cls, row: Any, more: Sequence[str] = ()) -> Incident:
        """Build an incident from its JSON form; unknown fields are left alone unless they look misspelt.

        Without `lang` it is guessed from the script of the symptom (`guess_language`). `more`: further fields of the
        answer, each a label where the row has one.
        """
        if not isinstance(row, Mapping):
            raise IncidentError(f"expected an object with the fields {', '.join(FIELDS)}, found {found(row)}")
        for fault in name_faults(row, more=more):
            raise fault
        return cls(**_values(row, more))

    @classmethod
    def faults_in(
        cls, row: Any, columns: Mapping[str, str] | None = None, more: Sequence[str] = ()
    ) -> list[IncidentError]:
        """All that `from_dict` would refuse in `row`, not only the first of it; nothing where it is an incident.

        With `columns`, the file's names of fields (`FieldColumns.theirs`), others are not taken for misspelt ones.
        """
        if not isinstance(row, Mapping):
            return [IncidentError(f"expected an object with the fields {', '.join(FIELDS)}, found {found(row)}")]
        faults = name_faults(row, columns, more)
        missing = [field for field in REQUIRED_FIELDS if field not in row]
        # of the fields that are there, the others' faults are to be told too
        whole = {**dict.fromkeys(missing, "-"), **row} | ({"logs": ["-"]} if "logs" in missing else {})
        if {"symptom", "logs"}.intersection(missing):
            whole["evidence"] = None  # which may stand in what is missing
        try:
            values = _values(whole, more)
        except IncidentError as error:
            return [*faults, error]
        incident = object.__new__(cls)
        for name, value in values.items():
            object.__setattr__(incident, name, value)
        return [*faults, *incident._faults()]


def _labels(field: str) -> Callable[[Incident], None]:
    return lambda incident: check_label(field, getattr(incident, field))


def _label_list(field: str) -> Callable[[Incident], None]:
    return lambda incident: check_list(field, getattr(incident, field), labels=True)


def _if_given(field: str, check: Callable[[str, Any], None]) -> Callable[[Incident], None]:
    return lambda incident: None if getattr(incident, field) is None else check(field, getattr(incident, field))


# The check of each field, by its name and those that must be right before it can be looked at.
_CHECKS: dict[str, Callable[[Incident], None]] = {
    **{field: _labels(field) for field in ("id", "source", "service", "incident_type")},
    "symptom": lambda incident: check_text("symptom", incident.symptom),
    "logs": lambda incident: check_list("logs", incident.logs),
    "trace": _if_given("trace", lambda field, value: check_text(field, value, empty_ok=True)),
    "data logs trace": Incident._check_data,
    "lang": Incident._check_lang,
    "fault": _if_given("fault", check_label),
    "difficulty": _if_given("difficulty", check_label),
    **{field: _label_list(field) for field in ("service_aliases", "type_aliases", "upstream")},
    "decoys": Incident._check_decoys,
    "evidence symptom logs trace": Incident._check_evidence,
    "labels": Incident._check_labels,
}


def _values(row: Mapping[str, Any], more: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of `Incident`, of a row that has the required fields."""
    trace = row.get("trace")
    if isinstance(trace, list) and all(isinstance(line, str) for line in trace):
        trace = "\n".join(trace)
    aliases = row.get("aliases")
    if aliases is None:
        aliases = {}
    if not isinstance(aliases, Mapping) or not set(aliases) <= {"service", "incident_type", *more}:
        expected = f'an object like {{"service": ["other name"], "incident_type": []}}, found {found(aliases)}'
        raise fail("aliases", expected, "list the other right names of the answer")
    decoys = _tuple(row.get("decoys"))
    lang = row.get("lang")
    return {
        "id": row["id"],
        "source": _default(row.get("source"), "user"),
        "service": row["service"],
        "incident_type": row["incident_type"],
        "symptom": row["symptom"],
        "logs": _tuple(row["logs"]),
        "trace": trace,
        "lang": guess_language(str(row["symptom"])) if lang is None else lang,
        "evidence": _tuple(row.get("evidence")),
        "fault": row.get("fault"),
        "service_aliases": _tuple(aliases.get("service")),
        "type_aliases": _tuple(aliases.get("incident_type")),
        "difficulty": row.get("difficulty"),
        "upstream": _tuple(row.get("upstream")),
        "decoys": tuple(map(_tuple, decoys)) if isinstance(decoys, tuple) else decoys,
        "labels": tuple((name, row[name]) for name in more if row.get(name) not in (None, "")),
        "label_aliases": tuple((name, _tuple(aliases[name])) for name in more if aliases.get(name)),
    }


def _default(value: Any, default: str) -> Any:
    return default if value is None else value


def _tuple(value: Any) -> Any:
    """Lists become tuples, nothing becomes the empty tuple; anything else is left for the constructor to refuse."""
    return () if value is None else tuple(value) if isinstance(value, list) else value


def name_faults(
    row: Mapping[str, Any], columns: Mapping[str, str] | None = None, more: Sequence[str] = ()
) -> list[IncidentError]:
    """What is wrong with the names of `row`: one that looks like a misspelt field, and required ones that are missing.

    With `columns`, which say what the file calls its fields, only what is missing is looked for among others. Those of
    `more` are fields too.
    """
    missing = [field for field in REQUIRED_FIELDS if field not in row]
    absent = missing if columns else [field for field in REQUIRED_FIELDS + OPTIONAL_FIELDS if field not in row]
    faults = []
    known = (*REQUIRED_FIELDS, *OPTIONAL_FIELDS, *more)
    for name in (str(name) for name in row if name not in known):
        near = difflib.get_close_matches(name, [field for field in absent if field not in (columns or ())], 1, 0.75)
        if near:
            read = f"; --columns {shlex.quote(f'{near[0]}={name}')} reads it" if "," not in name else ""
            faults.append(IncidentError(f"field '{name}': not a known field; did you mean '{near[0]}'?{read}"))
            missing = [field for field in missing if field != near[0]]
    if missing:
        there = one_line(", ".join(names_in(row, columns or {})), 300) or "no field"
        fields = ", ".join(f"field '{field}'{_column(field, columns)}" for field in missing)
        this = "this field" if len(missing) == 1 else "these fields"
        mend = f"where one of these is meant: --columns {','.join(f'{field}=NAME' for field in missing)}"
        mend += rows_inside(row) if len(missing) == len(REQUIRED_FIELDS) else ""
        faults.append(IncidentError(f"{fields}: expected {this}, found none; the record has only: {there}; {mend}"))
    return faults


def _column(field: str, columns: Mapping[str, str] | None) -> str:
    return f" (column '{columns[field]}' of --columns)" if columns and field in columns else ""


def fault_id(incident: Incident) -> str:
    """The injected fault that a record belongs to; records of one fault must stay on one side of a split.

    It is the record's own `fault` where given. Otherwise an id that ends in `-f<number>-<number>` is a record of the
    fault named by all but the last part (`shop-f213-2` belongs to `shop-f213`). Any other id is a fault of its own: in
    `bgl-0007` the last part numbers the incidents of a whole system, and grouping by what is before it would put the
    system on one side.
    """
    if incident.fault is not None:
        return incident.fault
    match = _FAULT_IN_ID.fullmatch(incident.id)
    return match.group(1) if match else incident.id
