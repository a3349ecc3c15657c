"""A seeded generator of incidents with known truth on a service graph.

`FAULTS` and `TOPOLOGIES` are dicts that may be added to (`load_faults`, `load_topologies`). They are read from data/
when they are first needed.
"""

from typing import TYPE_CHECKING

from verl_aiops.incidents.simulator.difficulty import DIFFICULTIES, Difficulty
from verl_aiops.incidents.simulator.faults import Fault, faults, load_faults
from verl_aiops.incidents.simulator.generate import NEW_WORDINGS, Simulator, simulator_taxonomy
from verl_aiops.incidents.simulator.topology import Topology, load_topologies, topologies
from verl_aiops.incidents.simulator.wordings import Wordings

if TYPE_CHECKING:
    FAULTS: dict[str, Fault]
    TOPOLOGIES: dict[str, Topology]

__all__ = [
    "DIFFICULTIES",
    "FAULTS",
    "NEW_WORDINGS",
    "TOPOLOGIES",
    "Difficulty",
    "Fault",
    "Simulator",
    "Topology",
    "Wordings",
    "load_faults",
    "load_topologies",
    "simulator_taxonomy",
]


def __getattr__(name: str):
    if name == "FAULTS":
        return faults()
    if name == "TOPOLOGIES":
        return topologies()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
