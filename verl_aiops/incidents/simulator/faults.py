"""What can go wrong and how each fault shows: the incident types of data/faults.yaml, which says what an entry has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from verl_aiops.incidents.io.yaml_file import Entry, read_yaml
from verl_aiops.incidents.simulator.signs import signs
from verl_aiops.incidents.simulator.topology import KINDS
from verl_aiops.incidents.simulator.values import DATA, wording

SLOW, ERRORS, STALE = EFFECTS = ("slow", "errors", "stale")
CHANGES = ("release", "config", "drill")


@dataclass(frozen=True)
class Voice:
    """Wordings of one kind of line, English and Chinese; the two need not correspond."""

    en: tuple[str, ...]
    zh: tuple[str, ...]

    def of(self, lang: str) -> tuple[str, ...]:
        return self.zh if lang == "zh" else self.en


@dataclass(frozen=True)
class Fault:
    """One incident type. `kinds` are the service kinds it strikes, `effects` what callers and users may see of it.

    `moves` are the metrics that leave their usual range, `looks` the groups of wordings that it shares with other
    types, `after` the kind of change that brought it about; without the first two, its `own` wordings tell it.
    """

    name: str
    kinds: tuple[str, ...]
    effects: tuple[str, ...]
    own: Voice
    remote: Voice
    mild: Voice
    metrics: tuple[str, ...]
    mild_metrics: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    moves: tuple[str, ...] = ()
    looks: tuple[str, ...] = ()
    after: str | None = None


@cache
def looks() -> dict[str, Voice]:
    """The groups of wordings that types share, as data/looks.yaml has them."""
    return {name: voice(entry, "op") for name, entry in read_yaml(DATA / "looks.yaml").items()}


@cache
def faults() -> dict[str, Fault]:
    """All faults by name: those of the package, and what was added to this dict."""
    return load_faults(DATA / "faults.yaml")


def load_faults(path: str | Path) -> dict[str, Fault]:
    """The faults of a file such as data/faults.yaml.

    Raises:
        IncidentError: naming file and key.
    """
    return {name: _fault(name, entry) for name, entry in read_yaml(path).items()}


def _fault(name: str, entry: Entry) -> Fault:
    fields = entry.fields(
        ("kinds", "effects", "own", "remote", "mild", "metrics"),
        ("mild_metrics", "aliases", "moves", "looks", "after"),
    )
    if fields["moves"].absent() != fields["looks"].absent():
        raise entry.fail("moves and looks together, or neither of them", "without both, its own wordings tell it")
    return Fault(
        Entry(name, entry.file, entry.key).label(),
        tuple(kind.choice(*KINDS) for kind in fields["kinds"].list()),
        tuple(effect.choice(*EFFECTS) for effect in fields["effects"].list()),
        own=voice(fields["own"], "op"),
        remote=voice(fields["remote"], "op", "callee"),
        mild=voice(fields["mild"], "op"),
        metrics=lines(fields["metrics"]),
        mild_metrics=() if fields["mild_metrics"].absent() else lines(fields["mild_metrics"]),
        aliases=() if fields["aliases"].absent() else tuple(alias.label() for alias in fields["aliases"].list()),
        moves=() if fields["moves"].absent() else tuple(move.choice(*signs()) for move in fields["moves"].list()),
        looks=() if fields["looks"].absent() else tuple(look.choice(*looks()) for look in fields["looks"].list()),
        after=None if fields["after"].absent() else fields["after"].choice(*CHANGES),
    )


def voice(entry: Entry, *given: str) -> Voice:
    """The wordings in both languages; `given` are the braces that the simulator fills itself."""
    fields = entry.fields(("en", "zh"))
    return Voice(lines(fields["en"], *given), lines(fields["zh"], *given))


def lines(entry: Entry, *given: str) -> tuple[str, ...]:
    """The wordings of a list."""
    return tuple(wording(item, given) for item in entry.list())
