"""Incidents of users as a model is asked about them: without their answer, all names of their system to choose from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.questions import Question
from verl_aiops.incidents import Incident, IncidentError, PromptOptions, System, Taxonomy, build_case
from verl_aiops.incidents.io.bad_rows import BadRows
from verl_aiops.incidents.io.columns import AS_NAMED, FieldColumns
from verl_aiops.incidents.io.readers import incident_rows
from verl_aiops.incidents.io.spellings import spelling_key
from verl_aiops.inputs.shown import one_line

__all__ = ["read_questions"]

NOT_KNOWN = "not-known"


def read_questions(
    path: str, taxonomy: str | None, asked: PromptOptions, wanted: str | None, columns: FieldColumns = AS_NAMED
) -> list[Question]:
    """What is asked about each incident of a file, in the words of `build_case`, as in training and evaluation.

    Raises IncidentError with the first row of every kind that cannot be asked about.
    """
    systems = Taxonomy.load(taxonomy) if taxonomy else None
    questions, bad, count = [], BadRows(), 0
    for place, row in incident_rows(Path(path), columns):
        count += 1
        try:
            if isinstance(row, IncidentError):
                raise row
            if not isinstance(row, dict):
                raise IncidentError("expected an object")
            if wanted is None or row.get("id") == wanted:
                questions.append(_question(row, systems, asked))
        except IncidentError as error:
            bad.add(place, error)
    if bad:
        raise bad.error(one_line(path), count)
    if not questions:
        raise EvaluationError(f"{path}: no incident{f' with the id {wanted!r}' if wanted else ' in it'}")
    return questions


def _question(row: dict, systems: Taxonomy | None, asked: PromptOptions) -> Question:
    # the answer, if there is one, has no part in what is asked: all names of the system are listed
    more = asked.more_fields
    source = str(row.get("source") or "user")
    unknown = tuple((name, (NOT_KNOWN,)) for name in more)
    system = _system_of(source, systems) if systems else System((NOT_KNOWN,), (NOT_KNOWN,), unknown)
    for name in more:
        if not system.labels_of(name):
            raise IncidentError(
                f"field '{name}': the taxonomy has no labels of it for '{source}'; write them there, as "
                f'"fields": {{"{name}": ["..."]}}, or take what --taxonomy-out of build-* wrote'
            )
    hidden = {"service": system.services[0], "incident_type": system.incident_types[0], "aliases": None, "decoys": None}
    hidden |= {name: system.labels_of(name)[0] for name in more}
    evidence = row.get("evidence") if asked.trim == "evidence" else None
    incident = Incident.from_dict({**row, **hidden, "evidence": evidence}, more)
    case = build_case(incident, system, replace(asked, show_candidates=systems is not None))
    return Question(
        id=incident.id,
        group=incident.id,
        source=incident.source,
        lang=incident.lang,
        difficulty=None,
        messages=tuple(case.opening),
        rounds=tuple(message["content"] for message in case.rounds[1:]),
        incident_text=case.text,
        ground_truth={key: case.ground_truth[key] for key in ("candidates", "fields") if key in case.ground_truth},
        wording=case.wording,
    )


def _system_of(source: str, systems: Taxonomy) -> System:
    name = systems.listed_name(source)
    if name is None:
        # as where the taxonomy was made: `Shop` is the system of a ticket that says `shop`
        alike = [known for known in systems.systems if spelling_key(known) == spelling_key(source)]
        name = alike[0] if len(alike) == 1 else None
    if name is None:
        raise IncidentError(f"source '{source}' is not in the taxonomy, which has: {', '.join(systems.systems)}")
    return systems.systems[name]
