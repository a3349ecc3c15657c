"""Near misses in a further field of the answer (severity, team): right in all others, wrong in this one alone."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from verl_aiops.incidents.build.case import Case
from verl_aiops.incidents.build.pairs import Pair
from verl_aiops.incidents.prompts import answer_json

__all__ = ["LabelPairs"]


@dataclass
class LabelPairs:
    """Makes one pair for each further field that an incident says, and keeps labels in balance.

    A label that is mostly the right one could be chosen without reading. So the wrong one is that which has been right
    more often than wrong, as far as the incident offers it. `kinds` counts the pairs by their kind, `wrong_severity`.
    """

    seed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    _owed: Counter[tuple[str, str]] = field(default_factory=Counter)

    def make(self, case: Case) -> list[Pair]:
        """The pairs of an incident; none of a field that offers no other label."""
        incident, pairs = case.incident, []
        rng = random.Random(f"labels/{self.seed}/{incident.id}")
        offered = case.candidates.by_field
        for name, right in incident.labels:
            wrong = [label for label in offered[name] if not incident.is_label(name, label)]
            if not wrong:
                continue
            chosen = max(wrong, key=lambda label: self._owed[name, label] + rng.random())  # noqa: B023
            self._owed[name, right] += 1
            self._owed[name, chosen] -= 1
            labels = tuple((other, chosen if other == name else label) for other, label in incident.labels)
            kind = f"wrong_{name}"
            self.kinds[kind] += 1
            pairs.append(Pair(case.answer, answer_json(incident.service, incident.incident_type, labels), kind))
        return pairs
