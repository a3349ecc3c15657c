"""What stands for a name of verl's in releases outside the supported range that have it elsewhere, or not at all.

Within the supported range nothing stands for anything: what is missing there is missing, and said.
"""

from __future__ import annotations

import importlib.util

from packaging.version import Version

__all__ = ["ELSEWHERE", "FROM", "UNTIL", "elsewhere", "in_range", "is_neo"]

# the releases that the tables of this folder describe, as setup.cfg has them (tests/seam/test_needs.py)
FROM, UNTIL = Version("0.9.1"), Version("0.10")

_BASE = "verl.trainer.ppo.v1.trainer_base"

# name as the tables have it -> module:name
ELSEWHERE: dict[str, str] = {
    # verl's main (0.10.0.dev of 2026-08-22) and its branch `neo` split off before these came
    "verl.workers.engine.utils:detach_tree": "verl_aiops.seam.older:detach_tree",
    "verl.utils.import_utils:resolve_config_path": "verl.experimental.agent_loop.utils:resolve_config_path",
    # verl's branch `neo`, where the modules of these cannot be imported
    f"{_BASE}:PPOTrainer": "verl_aiops.seam.neo.loop:Loop",
    f"{_BASE}:TRAINER_REGISTRY": "verl_aiops.seam.neo.runner:TRAINERS",
    f"{_BASE}:register_trainer": "verl_aiops.seam.neo.runner:register_trainer",
    f"{_BASE}:get_trainer_cls": "verl_aiops.seam.neo.runner:get_trainer_cls",
    "transfer_queue:KVBatchMeta": "verl_aiops.seam.neo.loop:NoKeys",
}


def in_range() -> bool:
    """Whether verl, as it is imported, is a release that we are made for; builds before a release are none."""
    import verl

    version = Version(getattr(verl, "__version__", "0"))
    return FROM <= version < UNTIL and not version.is_prerelease


def is_neo() -> bool:
    """Whether verl is a build of its branch `neo`: outside the range, and without TransferQueue."""
    return not in_range() and not _has_transfer_queue()


def _has_transfer_queue() -> bool:
    """The branch's first change, which is not undone by those after it."""
    return importlib.util.find_spec("verl.utils.transferqueue_utils") is not None


def elsewhere(path: str) -> str | None:
    """Where what stands for ``module:name`` is, in this verl, or None."""
    return None if path not in ELSEWHERE or in_range() else ELSEWHERE[path]
