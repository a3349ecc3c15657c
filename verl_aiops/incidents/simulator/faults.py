"""What can go wrong and how each fault shows: the table of incident types.

A fault speaks in four voices. `own` are log lines of the faulty service and `metrics` its metric lines: either may be
evidence. `remote` are lines in which a caller passes on what the faulty service said, for incidents whose own logs are
missing. `mild` are lines of the same theme that show normal operation or something that passed: a red herring on
another service. Words in braces are drawn by `values`.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl_aiops.incidents.simulator.topology import APP, CACHE, DB, EDGE, QUEUE, STORE

SLOW, ERRORS, STALE = "slow", "errors", "stale"
ANY = (EDGE, APP, DB, CACHE, QUEUE, STORE)
CODE = (EDGE, APP)
DATA = (DB, CACHE, QUEUE, STORE)


@dataclass(frozen=True)
class Voice:
    """Wordings of one kind of line, English and Chinese; the two need not correspond."""

    en: tuple[str, ...]
    zh: tuple[str, ...]

    def of(self, lang: str) -> tuple[str, ...]:
        return self.zh if lang == "zh" else self.en


@dataclass(frozen=True)
class Fault:
    """One incident type. `kinds` are the service kinds it strikes, `effects` what callers and users may see of it."""

    name: str
    kinds: tuple[str, ...]
    effects: tuple[str, ...]
    own: Voice
    remote: Voice
    mild: Voice
    metrics: tuple[str, ...]
    mild_metrics: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
