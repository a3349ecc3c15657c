"""The incident record: what every reader yields, the simulator makes and everything else takes."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.safety import neutralise
from verl_aiops.inputs.shown import brief, one_line

LANGUAGES = ("en", "zh")
MAX_LABEL_CHARS = 200
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


def _fail(field: str, expected: str, mend: str) -> IncidentError:
    return IncidentError(f"field '{field}': expected {expected}; {mend}")


def _found(value: Any) -> str:
    if isinstance(value, str):
        return f"str {value[:60]!r}"
    return "null" if value is None else f"{type(value).__name__} {brief(value, 60)!r}"


def _check_text(field: str, value: Any, *, empty_ok: bool = False) -> None:
    if not isinstance(value, str):
        raise _fail(field, f"a string, found {_found(value)}", "put the text in quotes")
    if not empty_ok and not value.strip():
        raise _fail(field, "text, found an empty string", "fill it in or leave the record out")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            mend = "write the file anew as UTF-8"
            raise _fail(field, f"valid Unicode, found the lone surrogate U+{code:04X}", mend) from None


def check_label(field: str, value: Any) -> None:
    """Raise IncidentError unless `value` is a name of a service, a type or the like: one short, clean line of text."""
    _check_text(field, value)
    if not _is_clean_label(value):
        _refuse_label(field, value)


@lru_cache(maxsize=4096)
def _is_clean_label(value: str) -> bool:
    spaced = value != value.strip() or not value.isprintable()
    return not spaced and len(value) <= MAX_LABEL_CHARS and neutralise(value) == value


def _refuse_label(field: str, value: str) -> None:
    if value != value.strip() or not value.isprintable():
        raise _fail(
            field, f"one printable line without spaces around it, found {value[:60]!r}", "trim and clean the name"
        )
    if len(value) > MAX_LABEL_CHARS:
        raise _fail(field, f"at most {MAX_LABEL_CHARS} characters, found {len(value)}", "give the short name of it")
    raise _fail(field, f"a plain name, found the chat-template marker in {value[:60]!r}", "rename it")


def _check_list(field: str, value: Any, *, labels: bool = False) -> None:
    if not isinstance(value, tuple):
        raise _fail(field, f"a list of strings, found {_found(value)}", 'write it as ["first line", "second line"]')
    if not labels and set(map(type, value)) <= {str} and "".join(value).isascii():
        return
    for number, item in enumerate(value):
        if labels:
            check_label(f"{field}[{number}]", item)
        else:
            _check_text(f"{field}[{number}]", item, empty_ok=True)


@dataclass(frozen=True)
class Incident:
    """One incident with its known answer. Any instance is valid: the constructor raises `IncidentError` otherwise.

    `service` and `incident_type` are the answer. `logs` are log and metric lines in order; `trace` is span lines joined
    by newlines, or None. Each string of `evidence` occurs verbatim in `symptom`, `logs` or `trace`. `fault` names the
    injected fault where the id does not. `service_aliases` and `type_aliases` are other right names. `upstream` are
    services that merely show the effect; `decoys` are (service, incident type) pairs that the text hints at though they
    are wrong. The last two are known for simulated incidents.
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

    def __post_init__(self) -> None:
        for field in ("id", "source", "service", "incident_type"):
            check_label(field, getattr(self, field))
        _check_text("symptom", self.symptom)
        _check_list("logs", self.logs)
        if self.trace is not None:
            _check_text("trace", self.trace, empty_ok=True)
        if not self.logs and not self.trace:
            raise _fail("logs", "at least one line in logs or trace", "an incident without data cannot be triaged")
        if self.lang not in LANGUAGES:
            expected = f"one of {', '.join(LANGUAGES)} (the languages of the instructions), found {_found(self.lang)}"
            raise _fail("lang", expected, 'set "en" if the data are in another language')
        if self.fault is not None:
            check_label("fault", self.fault)
        if self.difficulty is not None:
            check_label("difficulty", self.difficulty)
        for field in ("service_aliases", "type_aliases", "upstream"):
            _check_list(field, getattr(self, field), labels=True)
        if not isinstance(self.decoys, tuple):
            raise _fail("decoys", f"a list of pairs, found {_found(self.decoys)}", 'write [["service", "type"]]')
        for number, decoy in enumerate(self.decoys):
            if not isinstance(decoy, tuple) or len(decoy) != 2:
                raise _fail(
                    f"decoys[{number}]", f"a pair [service, incident type], found {_found(decoy)}", "write two names"
                )
            _check_list(f"decoys[{number}]", decoy, labels=True)
        self._check_evidence()

    def _check_evidence(self) -> None:
        _check_list("evidence", self.evidence)
        sections = (self.symptom, "\n".join(self.logs), self.trace or "")
        for number, text in enumerate(self.evidence):
            if not text.strip():
                raise _fail(f"evidence[{number}]", "text, found an empty string", "leave the entry out")
            if not any(text in section for section in sections):
                expected = f"a string that occurs verbatim in symptom, logs or trace, found {text[:120]!r}"
                raise _fail(f"evidence[{number}]", expected, "copy it from there character by character")

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

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: the nine fields of the file format, then the optional ones that are set."""
        row: dict[str, Any] = {field: getattr(self, field) for field in FIELDS}
        row["logs"], row["evidence"] = list(self.logs), list(self.evidence)
        if self.fault is not None:
            row["fault"] = self.fault
        if self.service_aliases or self.type_aliases:
            row["aliases"] = {"service": list(self.service_aliases), "incident_type": list(self.type_aliases)}
        if self.difficulty is not None:
            row["difficulty"] = self.difficulty
        if self.upstream:
            row["upstream"] = list(self.upstream)
        if self.decoys:
            row["decoys"] = [list(decoy) for decoy in self.decoys]
        return row

    @classmethod
    def from_dict(cls, row: Any) -> Incident:
        """Build an incident from its JSON form; unknown fields are left alone unless they look misspelt."""
        if not isinstance(row, Mapping):
            raise IncidentError(f"expected an object with the fields {', '.join(FIELDS)}, found {_found(row)}")
        check_names(row)
        trace = row.get("trace")
        if isinstance(trace, list) and all(isinstance(line, str) for line in trace):
            trace = "\n".join(trace)
        aliases = row.get("aliases")
        if aliases is None:
            aliases = {}
        if not isinstance(aliases, Mapping) or not set(aliases) <= {"service", "incident_type"}:
            expected = f'an object like {{"service": ["other name"], "incident_type": []}}, found {_found(aliases)}'
            raise _fail("aliases", expected, "list the other right names of the answer")
        decoys = _tuple(row.get("decoys"))
        return cls(
            id=row["id"],
            source=_default(row.get("source"), "user"),
            service=row["service"],
            incident_type=row["incident_type"],
            symptom=row["symptom"],
            logs=_tuple(row["logs"]),
            trace=trace,
            lang=_default(row.get("lang"), "en"),
            evidence=_tuple(row.get("evidence")),
            fault=row.get("fault"),
            service_aliases=_tuple(aliases.get("service")),
            type_aliases=_tuple(aliases.get("incident_type")),
            difficulty=row.get("difficulty"),
            upstream=_tuple(row.get("upstream")),
            decoys=tuple(map(_tuple, decoys)) if isinstance(decoys, tuple) else decoys,
        )


def _default(value: Any, default: str) -> Any:
    return default if value is None else value


def _tuple(value: Any) -> Any:
    """Lists become tuples, nothing becomes the empty tuple; anything else is left for the constructor to refuse."""
    return () if value is None else tuple(value) if isinstance(value, list) else value


def check_names(row: Mapping[str, Any]) -> None:
    """Raise IncidentError if a required field is missing from the keys of `row`, or one looks misspelt."""
    missing = [field for field in REQUIRED_FIELDS if field not in row]
    unknown = [str(name) for name in row if name not in REQUIRED_FIELDS and name not in OPTIONAL_FIELDS]
    for name in unknown:
        absent = [field for field in REQUIRED_FIELDS + OPTIONAL_FIELDS if field not in row]
        near = difflib.get_close_matches(name, absent, n=1, cutoff=0.75)
        if near:
            raise IncidentError(f"field '{name}': not a known field; did you mean '{near[0]}'?")
    if missing:
        raise _fail(
            missing[0], "this field, found none", f"the record has only: {one_line(', '.join(row), 300) or 'no field'}"
        )


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
