"""The two-round triage instruction, English and Chinese, and the reference answers of both rounds.

Round 1: read the data, think, quote evidence verbatim, give no verdict. Round 2: nothing but one JSON object. The
instructions are data (`wording`), short because small models on small machines have to read them.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from verl_aiops.incidents.answer_fields import DEFAULT_FIELDS
from verl_aiops.incidents.schema import Incident
from verl_aiops.incidents.taxonomy import ABSTENTIONS, System
from verl_aiops.incidents.text import incident_text
from verl_aiops.incidents.wording import CLOSE_TAG, OPEN_TAG, Wording, built_in, filled

Message = dict[str, str]
STYLES = ("two_round", "direct")
_ANALYSES = {
    "en": (
        "The earliest sign of trouble is {quotes}. What follows elsewhere reads like its effect.",
        "The data point to {quotes}. The remaining lines are either effects further up the calls or everyday noise.",
        "What does not fit normal operation is {quotes}; the other messages can be explained by it.",
    ),
    "zh": (
        "最早的异常是{quotes}。其他位置的现象像是它的后果。",
        "关键数据是{quotes}。其余各行要么是上游受到的影响，要么是日常噪声。",
        "与正常运行不符的是{quotes}，其他信息都可以由此解释。",
    ),
}
_AND = {"en": " and ", "zh": "以及"}
_NO_EVIDENCE = {
    "en": "No single line settles it. The alert reads {quotes}; the rest has to be weighed together.",
    "zh": "没有哪一行能单独说明问题。告警内容是{quotes}，需要结合其余数据判断。",
}
_QUOTE_CHARACTERS = re.compile('["“”„‟＂「」『』`\n]')
_MIN_QUOTE_CHARS = 8
_MIN_SAID_CHARS = 16
# What a log line begins with before it says anything: a number, a time, a date, a rack's name, a lone sign.
_STAMP = re.compile(
    r"(?:(?:[\W_]+|\W?(?:mon|tue|wed|thu|fri|sat|sun|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6},?"
    r"|(?=\S*\d)(?!\S*[a-z]{4})\S+)\s+)+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Candidates:
    """The names an answer may use: those listed in the prompt, or the whole system's where the prompt lists none."""

    services: tuple[str, ...]
    incident_types: tuple[str, ...]
    more: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Those of the further fields of the answer, by field."""

    @property
    def by_field(self) -> dict[str, tuple[str, ...]]:
        """The names of every field of the answer, in its order."""
        return {"service": self.services, "incident_type": self.incident_types, **dict(self.more)}

    @property
    def abstentions(self) -> frozenset[str]:
        """Those of `ABSTENTIONS` that are offered as a whole answer, both as service and as type."""
        return frozenset(ABSTENTIONS).intersection(self.services, self.incident_types)


def choose_candidates(
    incident: Incident, system: System, *, max_candidates: int = 0, seed: int = 0, named: Set[str] | None = None
) -> Candidates:
    """The candidate lists of an incident, shuffled so that the right name's position tells nothing; deterministic.

    At most `max_candidates` names each (0: all). The right name is always among them; of the others, services that the
    incident's text names (and types of its known decoys) come first, since otherwise the one service that both list and
    text name would be the answer. Other names of the right answer (its aliases) are left out. `named` are the services
    that the text names, where that is known already.
    """
    rng = random.Random(f"candidates/{seed}/{incident.id}")
    if named is None:
        named = system.services_in(incident_text(incident))
    decoys = {incident_type for _, incident_type in incident.decoys}
    always, most = system.abstentions, max_candidates
    services = _chosen(rng, system.services, incident.service, incident.is_service, named, always, most)
    types = _chosen(rng, system.incident_types, incident.incident_type, incident.is_type, decoys, always, most)
    more = []
    for field, label in incident.labels:
        more.append(
            (field, _chosen(rng, system.labels_of(field), label, partial(incident.is_label, field), (), (), most))
        )
    return Candidates(services, types, tuple(more))


def _chosen(
    rng: random.Random,
    names: Sequence[str],
    right: str,
    is_right: Callable[[str], bool],
    first: Collection[str],
    always: Collection[str],
    most: int,
) -> tuple[str, ...]:
    # Drawn for every name of the system, whichever is right: who asks without knowing the answer draws the same.
    draws = {name: (rng.random(), rng.random()) for name in dict.fromkeys((*names, right))}
    others = [name for name in draws if not is_right(name)]
    if most > 0:
        kept = [name for name in others if name in always]
        others = [name for name in others if name not in always]
        others = sorted(others, key=lambda name: (name not in first, draws[name][0]))[: most - 1] + kept
    # By the second draw, since the cut has put first what the text names.
    return tuple(sorted([*others, right], key=lambda name: draws[name][1]))


def round1_message(incident: Incident, text: str | None = None, wording: Wording | None = None) -> Message:
    """The user message of round 1: the instruction and the delimited, neutralised data (`text`, where at hand)."""
    return _user(wording, incident.lang, "round1", {"incident": _delimited(text or incident_text(incident))})


def round2_message(
    lang: str, candidates: Candidates | None = None, wording: Wording | None = None, more: Sequence[str] = ()
) -> Message:
    """The user message of round 2: only JSON, with the candidate lists where given. `more`: further fields."""
    return _user(wording, lang, "round2", _what_is_asked(wording, lang, candidates, more))


def direct_message(
    incident: Incident,
    candidates: Candidates | None = None,
    text: str | None = None,
    wording: Wording | None = None,
    more: Sequence[str] = (),
) -> Message:
    """The single user message of the `direct` style: the data and the instruction of the last round."""
    data = {"incident": _delimited(text or incident_text(incident))}
    return _user(wording, incident.lang, "direct", data | _what_is_asked(wording, incident.lang, candidates, more))


def _user(wording: Wording | None, lang: str, key: str, values: dict[str, str]) -> Message:
    return {"role": "user", "content": filled((wording or built_in()).texts[lang][key], values)}


def _delimited(text: str) -> str:
    return f"{OPEN_TAG}\n{text}\n{CLOSE_TAG}"


def _what_is_asked(
    wording: Wording | None, lang: str, candidates: Candidates | None, more: Sequence[str]
) -> dict[str, str]:
    wording, fields = wording or built_in(), (*DEFAULT_FIELDS, *more)
    names = {} if candidates is None else candidates.by_field
    # A name may hold a comma, so names stand in quotes, spelled as in the answer.
    lists = [wording.words(lang, field).list + json_text(names[field]) for field in fields if field in names]
    form = json_text(dict.fromkeys(fields, "..."))
    return {"fields": wording.asked(lang, fields), "form": form, "names": "\n".join(lists)}


def lists_candidates(message: str, candidates: Candidates | System) -> bool:
    """Whether a user message written here lists exactly these names, whatever its wording, beside the data."""
    before, _, rest = message.partition(OPEN_TAG)
    lines = (before + rest.rpartition(CLOSE_TAG)[2]).split("\n")
    lists = (candidates.services, candidates.incident_types, *(names for _, names in candidates.more))
    return all(any(line.endswith(json_text(names)) for line in lines) for names in lists)


def quotable(text: str, max_chars: int = 0) -> str | None:
    """The part of `text` that can stand between double quotes: its longest stretch without quotes, cut to `max_chars`.

    With `max_chars` it begins after the time, the numbers and the like that its line begins with: 80 characters of some
    logs hold nothing else, and a model would have to choose between lines by their digits. None if what is left is too
    short to prove anything.
    """
    part = max(_QUOTE_CHARACTERS.split(text), key=len).strip()
    if max_chars > 0:
        stamp = _STAMP.match(part)
        said = part[stamp.end() :] if stamp else part
        part = (said if len(said) >= _MIN_SAID_CHARS else part)[:max_chars].rstrip()
    return part if len(part) >= _MIN_QUOTE_CHARS else None


def reference_analysis(incident: Incident, *, max_quotes: int = 3, quote_chars: int = 0) -> str:
    """A right answer to round 1: quotes up to `max_quotes` known evidence strings and names no verdict.

    Each quote is cut to `quote_chars` characters, without the time and numbers that its line begins with (0: whole).
    Pass the trimmed and neutralised incident, so that the quotes occur in the prompt.
    """
    # lines that differ in their times alone may be the same once cut
    parts = dict.fromkeys(quotable(text, quote_chars) for text in incident.evidence)
    quotes = [part for part in parts if part][: max(1, max_quotes)]
    if quotes:
        forms = _ANALYSES[incident.lang]
        form = forms[zlib.crc32(incident.id.encode()) % len(forms)]
    else:
        quotes = [max(_QUOTE_CHARACTERS.split(incident.symptom), key=len).strip()]
        form = _NO_EVIDENCE[incident.lang]
    return form.format(quotes=_AND[incident.lang].join(f'"{quote}"' for quote in quotes))


# `json.dumps` with an option builds an encoder for every call.
json_text = json.JSONEncoder(ensure_ascii=False).encode


@lru_cache(maxsize=4096)
def answer_json(service: str, incident_type: str, more: tuple[tuple[str, str], ...] = ()) -> str:
    """The one spelling of an answer: `{"service": "...", "incident_type": "..."}`, and `more` after it."""
    return json_text({"service": service, "incident_type": incident_type, **dict(more)})


def ground_truth(incident: Incident, candidates: Candidates | None = None) -> dict[str, Any]:
    """What a reward needs to know: `service`, `incident_type`, `evidence`, `aliases` and, where given, `candidates`.

    `aliases` and `candidates` are objects with the keys `service` and `incident_type`: other right names of this
    answer, and the names that the prompt offers. Further fields of the answer have their label under their name, stand
    in both of these too, and in `fields`, the list of all. Pass the trimmed and neutralised incident, so that the
    evidence occurs in `incident_text`.
    """
    truth: dict[str, Any] = {
        "service": incident.service,
        "incident_type": incident.incident_type,
        "evidence": list(incident.evidence),
        "aliases": {"service": list(incident.service_aliases), "incident_type": list(incident.type_aliases)},
    }
    if incident.labels:
        truth |= dict(incident.labels)
        truth["fields"] = [*DEFAULT_FIELDS, *dict(incident.labels)]
        truth["aliases"] |= {name: list(names) for name, names in incident.label_aliases}
    if candidates is not None:
        truth["candidates"] = {field: list(names) for field, names in candidates.by_field.items()}
    return truth
