"""More ways to show an incident that is trained on: other lines of it, under other names, in another order.

A model that sees an incident once remembers how it looks; one that sees it with other lines left out, at other lengths,
with its services' names swapped, has to read it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from verl_aiops.incidents.build.case import Case, PromptOptions, build_case
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.field_checks import MAX_LABEL_CHARS
from verl_aiops.incidents.schema import Incident
from verl_aiops.incidents.swap import NameSwap, pattern_of
from verl_aiops.incidents.taxonomy import System

__all__ = ["Views", "parse_view", "renamed_incident"]

# What a view may ask for otherwise, by its name on the command line.
_KEYS = {
    "max-chars": ("budget", int),
    "trim": ("trim", str),
    "max-quotes": ("max_quotes", int),
    "quote-chars": ("quote_chars", int),
    "max-candidates": ("max_candidates", int),
}
OTHER, RENAMED, SHUFFLED = "view", "renamed", "shuffled"


@dataclass(frozen=True)
class Views:
    """What is shown of each training incident beside it as it is.

    `others`: once more for each, with these prompt options changed; `renamed`: so many copies whose services have
    swapped names, where the data name the culprit; `shuffled`: so many with nothing changed. All have their candidate
    lists drawn and ordered anew, and ids of their own (`ID#view1`, `ID#renamed1`, `ID#shuffled1`). They belong to the
    fault of their incident.
    """

    others: tuple[dict[str, Any], ...] = ()
    renamed: int = 0
    shuffled: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("renamed", "shuffled"):
            if getattr(self, name) < 0:
                raise IncidentError(f"--{name}: expected 0 copies or more, found {getattr(self, name)}")
        for changes in self.others:
            replace(PromptOptions(), **changes)  # which refuses what cannot be, before anything is written

    def cases(self, incident: Incident, system: System, options: PromptOptions) -> Iterator[tuple[str, Case | None]]:
        """The further cases of an incident whose prompts `options` are, each with its kind; None for a copy that cannot
        be: nothing would tell its answer from the incident's own."""
        for number, changes in enumerate(self.others, 1):
            other = _marked(incident, f"#{OTHER}{number}")
            yield OTHER, build_case(other, system, replace(options, **changes))
        for number in range(1, self.renamed + 1):
            renamed = renamed_incident(_marked(incident, f"#{RENAMED}{number}"), system, self.seed)
            case = None if renamed is None else build_case(renamed, system, options)
            # what is left of the data has to name it too
            yield RENAMED, case if case is not None and case.incident.service in case.named else None
        for number in range(1, self.shuffled + 1):
            yield SHUFFLED, build_case(_marked(incident, f"#{SHUFFLED}{number}"), system, options)


def _marked(incident: Incident, mark: str) -> Incident:
    name = incident.id
    if len(name) + len(mark) > MAX_LABEL_CHARS:
        digest = f"~{zlib.crc32(name.encode()):08x}"
        name = name[: MAX_LABEL_CHARS - len(mark) - len(digest)].rstrip() + digest
    return replace(incident, id=name + mark)


def renamed_incident(incident: Incident, system: System, seed: int = 0) -> Incident | None:
    """The same incident with the names of its system's services swapped in data, evidence and answer.

    Which name becomes which is told by id and seed. None where the system has no two names, the data do not name the
    culprit, or name it otherwise too (by an alias, which would still give the old name), or a new name meets its
    neighbours in the text so that swapping back does not give the old text.
    """
    names = sorted(set(system.services) - set(system.incident_types) - system.abstentions)
    if len(names) < 2 or incident.service not in names:
        return None
    order = random.Random(f"rename/{seed}/{incident.id}").sample(names, len(names))
    new = dict(zip(order, order[1:] + order[:1]))
    swap, back = NameSwap(new), NameSwap({name: old for old, name in new.items()})
    texts = [incident.symptom, *incident.logs, incident.trace or ""]
    if incident.service not in system.services_in("\n".join(texts)):
        return None
    if any(back(swap(text)).casefold() != text.casefold() for text in texts):
        return None
    if incident.service_aliases and any(map(pattern_of(incident.service_aliases).search, texts)):
        return None
    try:
        return replace(
            incident,
            service=new[incident.service],
            symptom=swap(incident.symptom),
            logs=tuple(map(swap, incident.logs)),
            trace=incident.trace and swap(incident.trace),
            evidence=tuple(map(swap, incident.evidence)),
            service_aliases=(),
            upstream=tuple(map(swap.label, incident.upstream)),
            decoys=tuple((swap.label(service), kind) for service, kind in incident.decoys),
        )
    except IncidentError:
        return None  # evidence that begins or ends within a name


def parse_view(text: str) -> dict[str, Any]:
    """The changes of `PromptOptions` that `max-chars=700,trim=evidence` asks for.

    Raises IncidentError for another key, or a value that is no number where one is wanted.
    """
    changes = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        name, kind = _KEYS.get(key, (None, str))
        if name is None or not equals or (kind is int and not (value.isascii() and value.isdigit())):
            raise IncidentError(
                f"--view {text}: expected KEY=VALUE,... with the keys {', '.join(_KEYS)}, such as "
                f"--view max-chars=700,trim=evidence; found {part.strip()!r}"
            )
        changes[name] = kind(value)
    # another number of candidates for every incident would stand instead
    return changes | ({"candidates_range": None} if "max_candidates" in changes else {})
