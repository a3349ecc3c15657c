"""Several reward models: their shaped scores made one, and how far they differ.

With r the members' shaped scores, w their weights and s their weighted standard deviation (population):

    mean             m = sum(w r) / sum(w)
    minimum          min(r), whatever the weights (above 0)
    mean_minus_std   m - k s

Coste et al. (arXiv 2310.02743, section 3) call the second worst-case and, with the variance in place of s, the third
uncertainty-weighted optimisation: both hold a policy back from answers that only one of the models likes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ENSEMBLES", "MEMBER", "Member", "joined", "read_members", "spread"]

ENSEMBLES = ("mean", "minimum", "mean_minus_std")
# the shaped score of each member, by its number, beside the answer's other parts
MEMBER = "rm_member_"
_KEYS = ("path", "address", "server", "model", "weight")


@dataclass(frozen=True)
class Member:
    """One more reward model, served elsewhere.

    Attributes:
        path: its folder: tokenizer, chat template, and `reward_stats.json` for normalisation.
        address: ``host:port`` of its server.
        server: ``vllm``, ``sglang`` or ``hf``.
        model: the name that the server knows it by; the path without one.
        weight: above 0; that of ``reward.reward_model`` is 1.
    """

    path: str
    address: str
    server: str = "vllm"
    model: str = ""
    weight: float = 1.0

    @property
    def name(self) -> str:
        return self.model or self.path


def read_members(value: Any, where: str) -> tuple[Member, ...]:
    """Members out of a configuration: a list of sections.

    Raises:
        ValueError: something else, with the key, what was expected and what was found.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) for one in value):
        raise ValueError(f"{where}={value!r}: expected a list of sections with {', '.join(_KEYS)}")
    members = []
    for at, one in enumerate(value):
        if unknown := [str(key) for key in one if key not in _KEYS]:
            raise ValueError(f"{where}[{at}].{unknown[0]}: no such setting. Known: {', '.join(_KEYS)}")
        for key in ("path", "address"):
            if not isinstance(one.get(key), str) or not one[key]:
                raise ValueError(f"{where}[{at}].{key}={one.get(key)!r}: expected a text")
        weight = one.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"{where}[{at}].weight={weight!r}: expected a number above 0")
        given = {key: str(one[key]) for key in ("path", "address", "server", "model") if one.get(key)}
        members.append(Member(**given, weight=float(weight)))
    return tuple(members)


def joined(how: str, scores: Sequence[float], weights: Sequence[float], k: float = 1.0) -> float:
    """One score of the members'; see the module's text. NaN where any of them is: no member's failure is a vote."""
    if any(map(math.isnan, scores)):
        return math.nan
    if how == "minimum":
        return min(scores)
    mean = sum(w * r for w, r in zip(weights, scores, strict=True)) / sum(weights)
    return mean if how == "mean" else mean - k * spread(scores, weights)


def spread(scores: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted standard deviation of the members' scores; NaN where any is."""
    total = sum(weights)
    mean = sum(w * r for w, r in zip(weights, scores, strict=True)) / total
    return math.sqrt(sum(w * (r - mean) ** 2 for w, r in zip(weights, scores, strict=True)) / total)
