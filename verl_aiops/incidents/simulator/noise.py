"""What in an incident's data is not its cause: line formats, background chatter, effects at callers, symptoms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from verl_aiops.incidents.io.yaml_file import Entry, read_yaml
from verl_aiops.incidents.simulator.faults import CHANGES, EFFECTS, Voice, lines, looks, voice
from verl_aiops.incidents.simulator.signs import Sign, signs
from verl_aiops.incidents.simulator.values import DATA, wording


@dataclass(frozen=True)
class Suffering:
    """How a service looks that suffers from another: its wordings, its metrics, and the metric of the flow."""

    looks: tuple[Voice, ...]
    moves: tuple[Sign, ...]
    flow: Sign | None = None


@dataclass(frozen=True)
class Noise:
    """data/noise.yaml, which says what each part is; `background` and `unrelated` are (level, wordings)."""

    line_formats: tuple[str, ...]
    background: tuple[tuple[str, Voice], ...]
    unrelated: tuple[tuple[str, Voice], ...]
    changes: Mapping[str, Voice]
    gaps: Voice
    placements: Voice
    callers: Mapping[str, Voice]
    blind: Mapping[str, Voice]
    suffering: Mapping[str, Suffering]
    flooded: Suffering
    caller_metrics: Mapping[str, str]
    quiet_metrics: tuple[str, ...]
    symptoms: Mapping[str, Voice]


@cache
def noise() -> Noise:
    """As data/noise.yaml has it."""
    fields = read_yaml(DATA / "noise.yaml").fields(tuple(Noise.__dataclass_fields__))
    return Noise(
        line_formats=tuple(form.text() for form in fields["line_formats"].list()),
        background=_levelled(fields["background"]),
        unrelated=_levelled(fields["unrelated"]),
        changes={kind: voice(entry, "until") for kind, entry in fields["changes"].fields(CHANGES).items()},
        gaps=voice(fields["gaps"], "service", "since"),
        placements=voice(fields["placements"], "service", "other"),
        callers={effect: voice(entry, "op", "callee") for effect, entry in _by_effect(fields["callers"])},
        blind={effect: voice(entry, "op") for effect, entry in _by_effect(fields["blind"])},
        suffering={effect: _suffering(entry, "flow") for effect, entry in _by_effect(fields["suffering"])},
        flooded=_suffering(fields["flooded"]),
        caller_metrics={effect: wording(entry) for effect, entry in _by_effect(fields["caller_metrics"])},
        quiet_metrics=lines(fields["quiet_metrics"]),
        symptoms={effect: voice(entry, "flow", "op", "time") for effect, entry in _by_effect(fields["symptoms"])},
    )


def _levelled(entry: Entry) -> tuple[tuple[str, Voice], ...]:
    items = [item.fields(("level", "say")) for item in entry.list()]
    return tuple((item["level"].text(), voice(item["say"], "op")) for item in items)


def _by_effect(entry: Entry):
    return entry.fields(EFFECTS).items()


def _suffering(entry: Entry, *more: str) -> Suffering:
    fields = entry.fields(("looks", "moves", *more))
    return Suffering(
        tuple(looks()[item.choice(*looks())] for item in fields["looks"].list()),
        tuple(signs()[item.choice(*signs())] for item in fields["moves"].list()),
        *(signs()[fields[name].choice(*signs())] for name in more),
    )
