"""What the nodes of a Ray cluster see of the folders and files that a run names: asked before anything is trained.

Each worker reads the model on its own node and writes its part of a checkpoint there, and verl may put the trainer,
which reads the data, on any of them. A path that one node sees and another does not ends a run minutes later, in one
worker, or leaves a checkpoint in pieces.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["ask_nodes", "check_paths", "seen_here"]

_WAIT = 60.0  # seconds; a task that looks for files needs no CPU of Ray's


def seen_here(paths: Sequence[str]) -> list[str]:
    """Those of the paths that are not there for this process."""
    return [path for path in paths if not os.path.exists(path)]


def ask_nodes(paths: Sequence[str], address: str) -> dict[str, list[str]]:
    """Which of the paths each living node of a cluster does not see, by the node's name as Ray has it.

    Raises:
        TimeoutError: a node does not answer within a minute.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    started_here = not ray.is_initialized()
    if started_here:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        look = ray.remote(num_cpus=0)(_seen_on_node)
        asked = {}
        for node in ray.nodes():
            if node["Alive"]:
                here = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
                asked[_called(node)] = look.options(scheduling_strategy=here).remote(list(paths))
        try:
            return dict(zip(asked, ray.get(list(asked.values()), timeout=_WAIT), strict=True))
        except ray.exceptions.GetTimeoutError:
            raise TimeoutError(f"not every node of the Ray cluster at {address} answers within {_WAIT:.0f} s") from None
    finally:
        if started_here:
            ray.shutdown()


def _seen_on_node(paths: list[str]) -> list[str]:
    return seen_here(paths)


def _called(node: Mapping) -> str:
    """A node's address and host name, and the beginning of its id: nodes of one machine have the rest in common."""
    return f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']}, {node['NodeID'][:8]})"


def check_paths(
    read: Mapping[str, str], written: Mapping[str, str], ask: Callable[[Sequence[str]], Mapping[str, list[str]]]
) -> list[str]:
    """Faults of a run on several nodes: settings whose path not all of them see.

    Args:
        read: setting -> file or folder that has to be on every node; a copy on each will do.
        written: setting -> folder that all nodes write to, which has to be one and the same. A file is put beside it,
            in the nearest folder that is there, looked for from every node, and taken away.
        ask: as `ask_nodes`, of the paths alone.

    Returns:
        one sentence for each setting, with the path and the nodes; none if all see all.
    """
    marks = {}
    try:
        for setting, folder in written.items():
            place = Path(folder).absolute()
            place = next(above for above in (place, *place.parents) if above.is_dir())
            mark = place / f".verl-aiops-{uuid.uuid4().hex}"
            mark.touch()
            marks[setting] = str(mark)
        unseen = ask([*read.values(), *marks.values()])
    finally:
        for mark in marks.values():
            Path(mark).unlink(missing_ok=True)
    faults = []
    for setting, path in read.items():
        if nodes := [node for node, paths in unseen.items() if path in paths]:
            faults.append(
                f"{setting}={path}: not there on {_listed(nodes)}, and every node reads it. Put it into a folder that "
                "all nodes share, or copy it to the same place on each."
            )
    for setting, folder in written.items():
        if nodes := [node for node, paths in unseen.items() if marks[setting] in paths]:
            faults.append(
                f"{setting}={folder}: what this process writes there is not seen on {_listed(nodes)}; a checkpoint "
                "would lie in pieces on several disks. Name a folder that all nodes share."
            )
    return faults


def _listed(nodes: Sequence[str]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(nodes)}"
