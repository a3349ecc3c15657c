"""Whether a run ended because a node of its Ray cluster did.

What reaches the driver then is whatever failed first: a collective that lost its other end, or Ray's word for an actor
that is gone. Ray notices a dead node some seconds later.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["alive_nodes", "lost_nodes"]

_NOTICED = 40.0  # seconds; Ray asks a node five times, every three, before it gives it up
_ENDS = re.compile(
    r"(connection|socket) (reset|closed|refused)|broken pipe|read error|timed out waiting|remote process exited"
    r"|(actor|worker|node)( \w+)?( is)?( temporarily)? ?(died|dead|crashed|unavailable|failed)",
    re.I,
)


def alive_nodes(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Id -> address and host name of the nodes that live, of ``ray.nodes()``."""
    return {n["NodeID"]: f"{n['NodeManagerAddress']} ({n['NodeManagerHostname']})" for n in nodes if n["Alive"]}


def lost_nodes(
    error: BaseException,
    before: Mapping[str, str],
    nodes: Callable[[], Sequence[Mapping[str, Any]]],
    wait: float = _NOTICED,
) -> str | None:
    """Which nodes died, if that is what an error of a run on several may come from.

    Args:
        error: what ended the run, in Ray's wrapping or without.
        before: `alive_nodes` when the run began.
        nodes: ``ray.nodes``, asked until it knows of a death or ``wait`` seconds are over.
    """
    if len(before) < 2 or not _ENDS.search(f"{type(error).__name__}: {error}"):
        return None
    until = time.monotonic() + wait
    while True:
        try:
            alive = alive_nodes(nodes())
        except Exception:  # the head is among the dead: there is nobody left to ask
            return "the Ray cluster of the run does not answer any more."
        if lost := [name for node, name in before.items() if node not in alive]:
            many = "nodes" if len(lost) > 1 else "node"
            return f"{many} {', '.join(lost)} of the Ray cluster died, with the workers that ran there."
        if time.monotonic() >= until:
            return None
        time.sleep(1)
