"""The systems that incidents are simulated in: services, who calls whom, what users do with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from verl_aiops.incidents.io.yaml_file import Entry, read_yaml
from verl_aiops.incidents.simulator.values import DATA

KINDS = ("edge", "app", "db", "cache", "queue", "store")


class Flow(NamedTuple):
    """What users do: its English and Chinese name, the request that it is in the data, the services that it uses."""

    en: str
    zh: str
    operation: str
    through: frozenset[str]


@dataclass(frozen=True)
class Topology:
    """A call graph without cycles. `kinds` gives each service's kind, `calls` the services that each one calls.

    `flows` are what users notice; they name no service. `operations` are further request names for logs.
    """

    name: str
    kinds: Mapping[str, str]
    calls: Mapping[str, tuple[str, ...]]
    flows: tuple[Flow, ...]
    operations: tuple[str, ...]

    @cached_property
    def services(self) -> tuple[str, ...]:
        return tuple(self.kinds)

    @cached_property
    def callers(self) -> Mapping[str, tuple[str, ...]]:
        """Who calls each service."""
        return {name: tuple(caller for caller, called in self.calls.items() if name in called) for name in self.kinds}

    @cached_property
    def flows_of(self) -> Mapping[str, tuple[Flow, ...]]:
        """The flows that use each service; all of them for one that none names."""
        return {name: tuple(flow for flow in self.flows if name in flow.through) or self.flows for name in self.kinds}

    @cached_property
    def routes(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """By a flow's operation, who calls each of its services on it."""
        return {
            flow.operation: {
                name: tuple(caller for caller in self.callers[name] if caller in flow.through) for name in self.kinds
            }
            for flow in self.flows
        }

    @cached_property
    def entries(self) -> Mapping[str, str]:
        """By a flow's operation, the service at which its requests come in: one that nobody on it calls."""
        return {
            flow.operation: next(name for name in self.kinds if name in flow.through and not called[name])
            for flow in self.flows
            for called in (self.routes[flow.operation],)
        }


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
    operations = tuple(operation.text() for operation in fields["operations"].list())
    flows = [_flow(flow, kinds, operations[i % len(operations)]) for i, flow in enumerate(fields["flows"].list())]
    return Topology(name, kinds, calls, tuple(flows), operations)


def _flow(entry: Entry, services: Mapping[str, str], operation: str) -> Flow:
    fields = entry.fields(("en", "zh"), ("operation", "through"))
    return Flow(
        fields["en"].text(),
        fields["zh"].text(),
        operation if fields["operation"].absent() else fields["operation"].text(),
        frozenset(
            services if fields["through"].absent() else (name.choice(*services) for name in fields["through"].list())
        ),
    )


def _check_no_cycle(entry: Entry, calls: Mapping[str, tuple[str, ...]]) -> None:
    left = dict(calls)
    while left:
        free = [name for name, called in left.items() if not left.keys() & set(called)]
        if not free:
            raise entry.fail("calls without a cycle", f"look at {', '.join(left)}")
        left = {name: called for name, called in left.items() if name not in free}
