"""A seeded generator of incidents with known truth on a service graph."""

from .difficulty import DIFFICULTIES, Difficulty
from .generate import FAULTS, Simulator, simulator_taxonomy
from .topology import TOPOLOGIES, Topology

__all__ = ["DIFFICULTIES", "FAULTS", "TOPOLOGIES", "Difficulty", "Simulator", "Topology", "simulator_taxonomy"]
