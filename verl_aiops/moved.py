"""Modules that README or docs of 0.1 named, under their names of then: the same module, and a warning. Until 0.3."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

__all__ = ["MOVED", "install"]

MOVED = {
    "verl_aiops.cli_eval": "verl_aiops.cli.evaluate",
    "verl_aiops.company": "verl_aiops.models.company",
    "verl_aiops.evaluation.before_after": "verl_aiops.cli.before_after",
    "verl_aiops.evaluation.comparison": "verl_aiops.evaluation.compare.numbers",
    "verl_aiops.evaluation.curves": "verl_aiops.cli.curves",
    "verl_aiops.evaluation.endpoint": "verl_aiops.evaluation.run.openai_backend",
    "verl_aiops.evaluation.generate": "verl_aiops.evaluation.run.backend",
    "verl_aiops.evaluation.metrics": "verl_aiops.evaluation.stats.metrics",
    "verl_aiops.evaluation.questions": "verl_aiops.evaluation.run.questions",
    "verl_aiops.evaluation.records": "verl_aiops.evaluation.run.results",
    "verl_aiops.evaluation.summary": "verl_aiops.evaluation.run.summary",
    "verl_aiops.incidents.readers": "verl_aiops.incidents.io.readers",
    "verl_aiops.losses.pairwise": "verl_aiops.losses.formulas",
    "verl_aiops.platform.cpu_linear": "verl_aiops.kernels.cpu_linear",
    "verl_aiops.platform.memory": "verl_aiops.kernels.memory",
    "verl_aiops.rewards.answer": "verl_aiops.rewards.triage.answer",
    "verl_aiops.rewards.combined": "verl_aiops.rewards.model.combined",
    "verl_aiops.rewards.parts": "verl_aiops.rewards.triage.components",
    "verl_aiops.rewards.settings": "verl_aiops.rewards.triage.settings",
    "verl_aiops.rollout.hf_limits": "verl_aiops.rollout.hf.limits",
    "verl_aiops.rollout.hf_server": "verl_aiops.rollout.hf.server",
    "verl_aiops.rollout.settings": "verl_aiops.rollout.rounds.settings",
    "verl_aiops.serving": "verl_aiops.models.serving",
}


class _Moved(MetaPathFinder, Loader):
    """Asked only for names that Python finds nowhere else; also for ``python -m``, which wants a module's code."""

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec):
        warnings.warn(f"{spec.name} is now {MOVED[spec.name]}; the old name goes with 0.3", FutureWarning, stacklevel=2)
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__, module.__loader__
        return module

    def exec_module(self, module):
        # Python has written the old name's spec into the module, which is whole already
        module.__spec__, module.__loader__ = module.__spec__.loader_state

    def get_code(self, name):
        spec = importlib.util.find_spec(MOVED[name])
        assert spec is not None and isinstance(spec.loader, InspectLoader)  # a file of ours
        return spec.loader.get_code(MOVED[name])


def install() -> None:
    """Make the old names importable; once a process."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
