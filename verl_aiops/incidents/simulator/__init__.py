"""A seeded generator of incidents with known truth on a service graph."""

from verl_aiops.incidents.simulator.difficulty import DIFFICULTIES, Difficulty
from verl_aiops.incidents.simulator.generate import FAULTS, Simulator, simulator_taxonomy
from verl_aiops.incidents.simulator.topology import TOPOLOGIES, Topology

__all__ = ["DIFFICULTIES", "FAULTS", "TOPOLOGIES", "Difficulty", "Simulator", "Topology", "simulator_taxonomy"]
