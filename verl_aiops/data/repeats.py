"""Pairs that stand twice in a data set, contradict each other or stand in two data sets; those that no step has."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

__all__ = ["count_label_repeats", "count_repeats", "count_shared", "count_untrained", "shared_text"]


def count_repeats(pairs: Iterable[tuple[Hashable, Hashable]], ids: Iterable[str | None]) -> dict[str, int]:
    """Counts for `notes.NOTES`, without kinds that do not occur.

    Args:
        pairs: what the model sees of the preferred and of the other answer, each with its prompt.
        ids: of the rows, None where a row has none.
    """
    pairs = list(pairs)
    known = set(pairs)
    named = [name for name in ids if name is not None]
    counts = {
        "duplicate": len(pairs) - len(known),
        "contradicting": sum((rejected, chosen) in known for chosen, rejected in pairs),
        "same_id": len(named) - len(set(named)),
    }
    return {kind: count for kind, count in counts.items() if count}


def count_label_repeats(answers: Iterable[tuple[Hashable, int]]) -> dict[str, int]:
    """The same for single answers with their labels."""
    answers = list(answers)
    known = set(answers)
    counts = {
        "duplicate": len(answers) - len(known),
        "contradicting": sum((answer, 1 - label) in known for answer, label in answers),
    }
    return {kind: count for kind, count in counts.items() if count}


def count_shared(own: Iterable[Hashable], others: Iterable[Hashable]) -> int:
    """How many of ``own`` are among ``others``."""
    known = set(others)
    return sum(one in known for one in own)


def shared_text(shared: int, held_out: int, what: str = "pairs") -> str:
    return (
        f"warning: {shared} of {held_out} held-out {what} are trained on, token by token: for these, what is measured "
        f"on held-out {what} proves nothing"
    )


def count_untrained(pairs: int, batch: int, steps: int, epoch: Callable[[int], Sequence[int]]) -> int:
    """How many pairs are in none of the first ``steps`` steps, where an epoch's remainder that fills no step is left.

    Args:
        epoch: the order of all pairs in an epoch, 0-based.
    """
    per_epoch = pairs // batch
    trained = np.zeros(pairs, dtype=bool)
    for number in range(-(-steps // per_epoch) if per_epoch else 0):
        taken = min(per_epoch, steps - number * per_epoch) * batch
        trained[np.asarray(epoch(number))[:taken]] = True
        if trained.all():
            break
    return int(pairs - trained.sum())
