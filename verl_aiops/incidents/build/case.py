"""From an incident to what a data file needs of it: trimmed text, candidate lists, messages, answer, ground truth."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from verl_aiops.incidents.answer_fields import check_more_fields
from verl_aiops.incidents.build.trim import TRIMS, Trimmed, trim_incident
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.marks import answerable_by
from verl_aiops.incidents.prompts import (
    STYLES,
    Candidates,
    Message,
    answer_json,
    choose_candidates,
    direct_message,
    ground_truth,
    reference_analysis,
    round1_message,
    round2_message,
)
from verl_aiops.incidents.schema import Incident
from verl_aiops.incidents.taxonomy import System
from verl_aiops.incidents.text import incident_text, neutralise_incident
from verl_aiops.incidents.wording import Wording, built_in


@dataclass(frozen=True)
class PromptOptions:
    """How prompts are made.

    `budget` bounds the incident's data, in characters or in the unit of `measure`; 0 leaves them whole. With
    `whole_evidence` it gives way where evidence needs more. `trim`: what is kept, the lines around the known evidence
    or, `blind`, what the text alone speaks for (`trim_incident`), as wherever a model is asked. At most
    `max_candidates` names of each kind are listed (0: all); with `candidates_range` it is another number for every
    incident, evenly drawn between the two, so that a model learns to choose from short lists and long ones.
    `more_fields`: what is asked for beside service and type, of incidents that say it. `wording`: in which words.
    """

    style: str = "two_round"
    budget: int = 1200
    measure: Callable[[str], int] = len
    whole_evidence: bool = False
    trim: str = "evidence"
    show_candidates: bool = True
    max_candidates: int = 8
    candidates_range: tuple[int, int] | None = None
    max_quotes: int = 3
    quote_chars: int = 0
    seed: int = 0
    more_fields: tuple[str, ...] = ()
    wording: Wording = field(default_factory=built_in)

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise IncidentError(f"prompt style '{self.style}': expected one of {', '.join(STYLES)}")
        if self.trim not in TRIMS:
            raise IncidentError(f"trim '{self.trim}': expected one of {', '.join(TRIMS)}")
        for name, least in (("budget", 0), ("max_candidates", 0), ("max_quotes", 1), ("quote_chars", 0)):
            if getattr(self, name) < least:
                raise IncidentError(f"{name}: expected {least} or more, found {getattr(self, name)}")
        if self.max_candidates == 1:
            raise IncidentError("max_candidates: 1 would give the answer away; expected 0 (all) or at least 2")
        if self.candidates_range is not None and not 2 <= self.candidates_range[0] <= self.candidates_range[1]:
            low, high = self.candidates_range
            raise IncidentError(
                f"candidates_range: expected two numbers, 2 or more and the smaller one first, found {low}-{high}"
            )
        check_more_fields(self.more_fields)
        self.wording.check_asked(self.more_fields)

    @property
    def most_listed(self) -> int:
        """The largest number of names of each kind that any prompt lists; 0 for all."""
        return self.max_candidates if self.candidates_range is None else self.candidates_range[1]

    def most_candidates(self, incident: Incident) -> int:
        """How many names of each kind are listed for an incident; 0 for all. Told by its id and the seed alone."""
        if self.candidates_range is None:
            return self.max_candidates
        return random.Random(f"number of candidates/{self.seed}/{incident.id}").randint(*self.candidates_range)


@dataclass(frozen=True)
class Case:
    """One incident made ready.

    `text` is the data part of the prompt and `named` the services of the system that it names; `rounds` are the user
    message of each round; `analysis` is the reference answer to all but the last; `wording` is the name of the words in
    which it is asked.
    """

    incident: Incident
    text: str
    named: frozenset[str]
    candidates: Candidates
    rounds: tuple[Message, ...]
    analysis: str
    answer: str
    ground_truth: dict[str, Any]
    trimmed: Trimmed
    answerable: str
    wording: str

    @property
    def opening(self) -> list[Message]:
        """The messages before the first answer."""
        return [self.rounds[0]]

    @property
    def prompt(self) -> list[Message]:
        """All messages before the final answer: one, or round 1, the reference analysis and round 2."""
        if len(self.rounds) == 1:
            return [self.rounds[0]]
        return [self.rounds[0], assistant(self.analysis), self.rounds[1]]


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def build_case(incident: Incident, system: System, options: PromptOptions | None = None) -> Case:
    """Neutralise and trim `incident`, choose its candidates and write its messages.

    Deterministic; raises IncidentError.
    """
    options = options or PromptOptions()
    if options.budget:
        trimmed = trim_incident(
            incident,
            options.budget,
            measure=options.measure,
            whole_evidence=options.whole_evidence,
            blind=options.trim == "blind",
        )
    else:
        trimmed = Trimmed(neutralise_incident(incident))
    incident = trimmed.incident
    # what it does not say, it is not asked for: no answer to that would be right
    known = dict(incident.labels)
    more = tuple(name for name in options.more_fields if name in known)
    incident = replace(incident, labels=tuple((name, known[name]) for name in more)) if known else incident
    text = incident_text(incident)
    named = frozenset(system.services_in(text))
    limit = options.most_candidates(incident) if options.show_candidates else 0
    candidates = choose_candidates(incident, system, max_candidates=limit, seed=options.seed, named=named)
    shown = candidates if options.show_candidates else None
    if options.style == "direct":
        rounds: tuple[Message, ...] = (direct_message(incident, shown, text, options.wording, more),)
        analysis = ""
    else:
        first = round1_message(incident, text, options.wording)
        rounds = (first, round2_message(incident.lang, shown, options.wording, more))
        analysis = reference_analysis(incident, max_quotes=options.max_quotes, quote_chars=options.quote_chars)
    return Case(
        incident=incident,
        text=text,
        named=named,
        candidates=candidates,
        rounds=rounds,
        analysis=analysis,
        answer=answer_json(incident.service, incident.incident_type, incident.labels),
        ground_truth=ground_truth(incident, candidates),
        trimmed=trimmed,
        answerable=answerable_by(
            candidates.services, candidates.incident_types, listed=options.show_candidates, named=named
        ),
        wording=options.wording.name,
    )
