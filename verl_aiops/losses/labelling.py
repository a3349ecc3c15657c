"""From scored answers to preference pairs: which answer of a group is chosen, which rejected, which make no pair."""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PAIRING_RULES", "Labels", "label_groups", "label_preferences"]

# (row of the better answer, row of the worse one, their scores), all of one group and all real preferences
Candidate = tuple[int, int, float, float]


def _best_vs_worst(candidates: list[Candidate], rng: random.Random) -> list[Candidate]:
    return [max(candidates, key=lambda c: c[2] - c[3])]


def _all_pairs(candidates: list[Candidate], rng: random.Random) -> list[Candidate]:
    return candidates


def _random_pair(candidates: list[Candidate], rng: random.Random) -> list[Candidate]:
    return [rng.choice(candidates)]


def _best_vs_random(candidates: list[Candidate], rng: random.Random) -> list[Candidate]:
    best = max(candidates, key=lambda c: c[2])[0]
    return [rng.choice([c for c in candidates if c[0] == best])]


# A new rule is one function from a group's candidates to its pairs, and one line here.
PAIRING_RULES: dict[str, Callable[[list[Candidate], random.Random], list[Candidate]]] = {
    "best_vs_worst": _best_vs_worst,
    "all_pairs": _all_pairs,
    "random_pair": _random_pair,
    "best_vs_random": _best_vs_random,
}


@dataclass(frozen=True)
class Labels:
    """Pairs of a batch, and what became of the rest.

    ``chosen`` and ``rejected`` are (pairs,) int64 row indices. ``failed_rows`` had no finite score. Groups without a
    pair are one of: ``ties`` (all its scores equal, or closer than the gap asked for), ``identical`` (its answers
    differ in score but not in content), ``single`` (fewer than two rows with a score).
    """

    chosen: Tensor
    rejected: Tensor
    groups: int
    failed_rows: int
    ties: int
    identical: int
    single: int

    @property
    def groups_with_pair(self) -> int:
        return self.groups - self.ties - self.identical - self.single


def label_groups(
    scores: Tensor | Sequence[float],
    group_ids: Sequence[Hashable],
    *,
    rule: str = "best_vs_worst",
    min_gap: float = 0.0,
    answers: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Labels:
    """Make pairs of the rows of each group.

    A preference is real if the better score exceeds the worse by more than 0 and by at least ``min_gap``, and the two
    answers differ. Equal scores never make a pair, whichever comes first (TRL's online trainer lets the first win).

    Args:
        scores: (rows,) rewards; rows whose score is NaN or infinite take part in no pair.
        group_ids: (rows,) what makes rows answers to one prompt; groups may have any size and lie in any order.
        rule: ``best_vs_worst``: the pair with the largest gap of each group. ``all_pairs``: every real preference.
            ``random_pair``: one of them at random. ``best_vs_random``: the best answer against one at random.
        min_gap: smallest difference of scores that counts, >= 0.
        answers: (rows,) contents, by which identical answers are recognised.
        seed: of the random rules.

    Raises:
        ValueError: an unknown rule, a negative gap, or arguments of different lengths.
    """
    if rule not in PAIRING_RULES:
        near = difflib.get_close_matches(str(rule), PAIRING_RULES, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown pairing rule {rule!r}{hint}; there are: {', '.join(PAIRING_RULES)}")
    if not (isinstance(min_gap, int | float) and min_gap >= 0):
        raise ValueError(f"min_gap={min_gap!r}: expected a number, 0 or more")
    values = [float(score) for score in (scores.tolist() if isinstance(scores, Tensor) else scores)]
    for name, column in (("group_ids", group_ids), ("answers", answers)):
        if column is not None and len(column) != len(values):
            raise ValueError(f"{name}: expected {len(values)} entries, one per score, got {len(column)}")
    groups: dict[Hashable, list[int]] = {}
    for row, group in enumerate(group_ids):
        groups.setdefault(group, []).append(row)
    rng = random.Random(seed)
    pairs: list[Candidate] = []
    failed = ties = identical = single = 0
    for rows in groups.values():
        scored = [row for row in rows if math.isfinite(values[row])]
        failed += len(rows) - len(scored)
        if len(scored) < 2:
            single += 1
            continue
        preferences = [
            (i, j, values[i], values[j])
            for i in scored
            for j in scored
            if values[i] > values[j] and values[i] - values[j] >= min_gap
        ]
        distinct = [c for c in preferences if answers is None or answers[c[0]] != answers[c[1]]]
        if distinct:
            pairs += PAIRING_RULES[rule](distinct, rng)
        elif preferences:
            identical += 1
        else:
            ties += 1
    return Labels(
        chosen=torch.tensor([pair[0] for pair in pairs], dtype=torch.int64),
        rejected=torch.tensor([pair[1] for pair in pairs], dtype=torch.int64),
        groups=len(groups),
        failed_rows=failed,
        ties=ties,
        identical=identical,
        single=single,
    )


def label_preferences(
    scores: Tensor | Sequence[float],
    group_ids: Sequence[Hashable],
    *,
    rule: str = "best_vs_worst",
    min_gap: float = 0.0,
    answers: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """`label_groups`, the pairs alone: (pairs,) row indices of the chosen and of the rejected answers, int64."""
    labels = label_groups(scores, group_ids, rule=rule, min_gap=min_gap, answers=answers, seed=seed)
    return labels.chosen, labels.rejected
