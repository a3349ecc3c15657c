"""Several files in the shares that were asked for: which examples an epoch has, as a function of seed and epoch alone.

Each file is a stream: its prompts in one order after another, without end. An epoch has as many examples as the data
set, and takes of each file's stream the share that it should have, where the epoch before left off. So a file that is
to be seen often begins again within an epoch, one that is to be seen seldom is shown over several, and no example of a
file is seen a second time before all of it have been.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from verl_aiops.data.errors import PreferenceDataError

__all__ = ["draw_epoch", "quotas", "read_shares"]


def read_shares(shares: Sequence[float] | None, files: Sequence[str], file_numbers: np.ndarray) -> list[float] | None:
    """``data.train_shares`` as shares that sum to 1, or None where there are none.

    Args:
        shares: one number above 0 for each file, of any sum.
        files: their names, in order.
        file_numbers: (examples,) of each example.

    Raises:
        PreferenceDataError: as many as files, finite and above 0 they are not, or a file has no example.
    """
    if shares is None:
        return None
    given = list(shares)
    if len(given) != len(files):
        raise PreferenceDataError(
            f"data.train_shares={given}: expected one share for each of the {len(files)} of data.train_files"
        )
    for share in given:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < math.inf:
            raise PreferenceDataError(f"data.train_shares={given}: expected numbers above 0; leave files of 0 out")
    present = set(np.unique(file_numbers).tolist())
    for number, (name, share) in enumerate(zip(files, given)):
        if number not in present:
            raise PreferenceDataError(
                f"data.train_shares: {name} should have the share {share:g}, but gives no example"
            )
    return [share / sum(given) for share in given]


def quotas(shares: Sequence[float], examples: int) -> list[int]:
    """How many of an epoch's examples each file has: whole numbers that sum to `examples`, by largest remainder."""
    exact = [share * examples for share in shares]
    counts = [math.floor(count) for count in exact]
    by_rest = sorted(range(len(exact)), key=lambda at: (counts[at] - exact[at], at))
    for at in by_rest[: examples - sum(counts)]:
        counts[at] += 1
    return counts


def draw_epoch(
    prompt_numbers: np.ndarray,
    file_numbers: np.ndarray,
    shares: Sequence[float],
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
) -> np.ndarray:
    """The examples of an epoch in their order, those of a prompt one after another: int64 (examples,).

    Where a share ends inside a prompt, the prompt's other examples begin the file's part of the next epoch.

    Args:
        prompt_numbers, file_numbers: (examples,) of each example.
        shares: of the files, by number; they sum to 1.
        epoch: 0-based.
        shuffle: prompts in another order every time; else as they stand in their files, which take turns.
    """
    runs: list[tuple[float, np.ndarray]] = []
    for number, quota in enumerate(quotas(shares, len(file_numbers))):
        drawn = _part(prompt_numbers, file_numbers, number, epoch * quota, quota, seed if shuffle else None)
        borders = np.flatnonzero(np.diff(prompt_numbers[drawn])) + 1
        its = np.split(drawn, borders) if len(drawn) else []
        runs += [((at + 0.5) / len(its), run) for at, run in enumerate(its)]
    if shuffle:
        order = np.random.default_rng([seed, epoch]).permutation(len(runs)).tolist()
    else:
        order = sorted(range(len(runs)), key=lambda at: runs[at][0])
    return np.concatenate([runs[at][1] for at in order])


def _part(prompts: np.ndarray, files: np.ndarray, number: int, first: int, count: int, seed: int | None) -> np.ndarray:
    """The examples `first` to `first + count` of a file's stream."""
    own = np.flatnonzero(files == number)
    # by prompt, in the order in which prompts come first
    _, begins, of = np.unique(prompts[own], return_index=True, return_inverse=True)
    begins = begins[of]
    parts = []
    while count:
        again, skip = divmod(first, len(own))
        if seed is None:
            place = begins
        else:
            place = np.random.default_rng([seed, 1 + number, again]).permutation(len(own))[begins]
        once = own[np.argsort(place, kind="stable")][skip : skip + count]
        parts.append(once)
        first, count = first + len(once), count - len(once)
    return np.concatenate(parts) if parts else own[:0]
