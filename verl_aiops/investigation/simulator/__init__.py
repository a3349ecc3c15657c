"""Simulated cases: the incidents' topologies, faults and scenes, with telemetry that tools can ask."""

from verl_aiops.investigation.simulator.generate import CASE_DIFFICULTIES, CaseSimulator

__all__ = ["CASE_DIFFICULTIES", "CaseSimulator"]
