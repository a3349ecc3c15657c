"""The systems that incidents are simulated in: services, who calls whom, what users do with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from verl_aiops.incidents.io.yaml_file import Entry, read_yaml
from verl_aiops.incidents.simulator.values import DATA

KINDS = ("edge", "app", "db", "cache", "queue", "store")


@dataclass(frozen=True)
class Topology:
    """A call graph without cycles. `kinds` gives each service's kind, `calls` the services that each one calls.

    `flows` are what users notice, English and Chinese; they name no service. `operations` are request names for logs
    and spans.
    """

    name: str
    kinds: Mapping[str, str]
    calls: Mapping[str, tuple[str, ...]]
    flows: tuple[tuple[str, str], ...]
    operations: tuple[str, ...]

    @cached_property
    def services(self) -> tuple[str, ...]:
        return tuple(self.kinds)

    @cached_property
    def callers(self) -> Mapping[str, tuple[str, ...]]:
        """Who calls each service."""
        return {name: tuple(caller for caller, called in self.calls.items() if name in called) for name in self.kinds}


@cache
def topologies() -> dict[str, Topology]:
    """All systems by name: those of the package, and what was added to this dict."""
    return load_topologies(DATA / "topologies.yaml")


def load_topologies(path: str | Path) -> dict[str, Topology]:
    """The systems of a file such as data/topologies.yaml, which says what an entry has.

    Raises:
        IncidentError: naming file and key.
    """
    return {name: _topology(name, entry) for name, entry in read_yaml(path).items()}


def _topology(name: str, entry: Entry) -> Topology:
    fields = entry.fields(("services", "calls", "flows", "operations"))
    kinds = {}
    for service, kind in fields["services"].items():
        Entry(service, kind.file, kind.key).label()
        kinds[service] = kind.choice(*KINDS)
    calls = {}
    for caller, called in fields["calls"].items():
        Entry(caller, called.file, called.key).choice(*kinds)
        calls[caller] = tuple(service.choice(*kinds) for service in called.list())
    _check_no_cycle(fields["calls"], calls)
    flows = [flow.fields(("en", "zh")) for flow in fields["flows"].list()]
    return Topology(
        *(name, kinds, calls),
        tuple((flow["en"].text(), flow["zh"].text()) for flow in flows),
        tuple(operation.text() for operation in fields["operations"].list()),
    )


def _check_no_cycle(entry: Entry, calls: Mapping[str, tuple[str, ...]]) -> None:
    left = dict(calls)
    while left:
        free = [name for name, called in left.items() if not left.keys() & set(called)]
        if not free:
            raise entry.fail("calls without a cycle", f"look at {', '.join(left)}")
        left = {name: called for name, called in left.items() if name not in free}
