"""From a row's answers to the examples that losses are made of: pairs, single answers with a label, ranked lists.

Which of them a row gives is decided by the losses of a run. With losses of pairs, groups are compared pair by pair;
with losses of lists, a group is one list, and a pair a list of two; with losses of single answers alone, a pair is a
yes and a no, and a group's answers are yes from a score on. Ties make no pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from verl_aiops.data.errors import RowFault
from verl_aiops.data.fields import GROUP, NO_PLACE_FOR_LABELS, PAIR, SINGLE
from verl_aiops.data.rows import PreferenceRow

__all__ = ["COMPARISONS", "KINDS", "Example", "Wanted"]

KINDS = ("pair", "single", "list")
_Places = list[tuple[int, int]]


class Example(NamedTuple):
    """`places` among the row's answers: of a pair the preferred one first, of a list the best first. `margin`: the
    score gap of a pair, 0 where unknown."""

    kind: str
    places: tuple[int, ...]
    weight: float
    margin: float = 0.0
    label: bool = False


def _all(ranks: tuple[float, ...]) -> _Places:
    order = _best_first(ranks)
    return [(better, worse) for at, better in enumerate(order) for worse in order[at:] if ranks[better] < ranks[worse]]


def _best(ranks: tuple[float, ...]) -> _Places:
    return [(better, worse) for better, worse in _all(ranks) if ranks[better] == min(ranks)]


def _adjacent(ranks: tuple[float, ...]) -> _Places:
    levels = sorted(set(ranks))
    following = dict(zip(levels, levels[1:]))
    return [(better, worse) for better, worse in _all(ranks) if following[ranks[better]] == ranks[worse]]


def _best_first(ranks: tuple[float, ...]) -> list[int]:
    return sorted(range(len(ranks)), key=lambda place: ranks[place])


# Which pairs of a ranked group are compared. A new rule is one function of the ranks, and one line here.
COMPARISONS: dict[str, Callable[[tuple[float, ...]], _Places]] = {"all": _all, "best": _best, "adjacent": _adjacent}


@dataclass(frozen=True)
class Wanted:
    """What a run makes of its rows.

    Args:
        kinds: which of `KINDS` its losses take. Pairs and lists do not go together.
        comparisons: a key of `COMPARISONS`.
        gap_weight: a pair's weight is multiplied by its score gap, divided by the mean gap of its group's pairs; of
            rows that are pairs by the data set, by the mean gap of their file.
        yes_from_score: for single answers alone: a group's answers with at least this score are a yes.

    Raises:
        ValueError: an argument out of range.
    """

    kinds: frozenset[str] = frozenset({"pair"})
    comparisons: str = "all"
    gap_weight: bool = False
    yes_from_score: float | None = None

    @classmethod
    def of(cls, kinds: Iterable[str], comparisons: str, gap_weight: bool, yes_from_score: float | None) -> Wanted:
        kinds = frozenset([kinds] if isinstance(kinds, str) else kinds)
        if not kinds or not kinds <= set(KINDS):
            raise ValueError(f"kinds={sorted(kinds)}: expected one or more of {', '.join(KINDS)}")
        if {"pair", "list"} <= kinds:
            raise ValueError("losses of pairs and losses of lists cannot be had in one run: a group gives either")
        if comparisons not in COMPARISONS:
            raise ValueError(f"comparisons={comparisons!r} is none of {', '.join(COMPARISONS)}")
        if yes_from_score is not None and not math.isfinite(yes_from_score):
            raise ValueError(f"yes_from_score={yes_from_score}: expected a finite number, or null")
        return cls(kinds, comparisons, bool(gap_weight), yes_from_score)

    def settings(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "kinds": sorted(self.kinds)}

    def examples(self, row: PreferenceRow) -> list[Example]:
        """Those of one row; none of a group whose answers are all tied.

        The weight of a pair by the data set is not yet multiplied by its gap, whose mean the whole file has.

        Raises:
            RowFault: the row has nothing that these losses could take.
        """
        if row.shape == SINGLE:
            if "single" not in self.kinds:
                raise RowFault(f"holds {NO_PLACE_FOR_LABELS}")
            return [Example("single", (0,), row.weight, label=row.label)]
        if self.kinds == {"single"}:
            return self._labelled(row)
        if row.shape == GROUP and len(row.answers) < 2:
            raise RowFault("the group has one answer only; two different ones are needed, or losses of single answers")
        if row.shape == GROUP and len(set(row.ranks)) < 2:
            return []
        if "list" in self.kinds:
            return [Example("list", tuple(_best_first(row.ranks)), row.weight)]
        return self._pairs(row)

    def _pairs(self, row: PreferenceRow) -> list[Example]:
        if row.shape == PAIR:
            if self.gap_weight and math.isnan(row.margin):
                raise RowFault("gap_weight needs the pair's margin, or score_chosen and score_rejected; none is there")
            return [Example("pair", (0, 1), row.weight, 0.0 if math.isnan(row.margin) else row.margin)]
        pairs = COMPARISONS[self.comparisons](row.ranks)
        gaps = [row.scores[better] - row.scores[worse] for better, worse in pairs]
        known = not any(map(math.isnan, gaps))
        if self.gap_weight and not known:
            raise RowFault("gap_weight needs scores; the group has ranks alone")
        mean = sum(gaps) / len(gaps) if self.gap_weight else 1.0
        if not mean > 0 or not math.isfinite(mean):  # ranks may tell scores apart that are equal, or nearly so
            raise RowFault(f"gap_weight needs gaps between the scores; their mean is {mean:g}")
        return [
            Example("pair", places, row.weight * (gap / mean if self.gap_weight else 1.0), gap if known else 0.0)
            for places, gap in zip(pairs, gaps)
        ]

    def _labelled(self, row: PreferenceRow) -> list[Example]:
        if row.shape == PAIR:
            return [Example("single", (at,), row.weight, label=at == 0) for at in range(2)]
        if self.yes_from_score is None:
            raise RowFault(
                "losses of single answers need a threshold for groups: set algorithm.dpo.yes_from_score to the score "
                "from which an answer is a yes"
            )
        if math.isnan(row.scores[0]):
            raise RowFault("yes_from_score needs scores; the group has ranks alone")
        return [
            Example("single", (at,), row.weight, label=score >= self.yes_from_score)
            for at, score in enumerate(row.scores)
        ]
