"""What Python must know of a micro-batch before its loss: which rows are pairs, single answers and lists."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from tensordict import TensorDict

from verl_aiops.losses import padded_lists
from verl_aiops.trainers.batch import AnswerBatch

__all__ = ["METRICS", "PairFacts", "Rows"]

# of examples in which answers are compared: pairs and lists
METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logps/accuracies",
)

# some of a micro-batch's rows, as a tensor on the device where a list would have to travel there
Rows = slice | list[int] | torch.Tensor


def _slice_of(rows: list[int], start: int, step: int, of: int) -> slice | list[int]:
    """``rows`` as a slice where they are each ``step``-th of all: no list of numbers has to travel to the device."""
    return slice(start, None, step) if rows == list(range(start, of, step)) else rows


@dataclass(frozen=True)
class PairFacts:
    """What Python must know of a micro-batch of examples.

    Attributes:
        width: tokens of the longest answer.
        chosen: rows of the pairs that count, in order.
        rejected: likewise, of the same pairs.
        pairs: number of those pairs.
        mean_chosen_length: trained tokens of a chosen answer, mean over the mini-batch.
        global_pairs: examples of the mini-batch that count, over all ranks: pairs, single answers and lists.
        answers: rows of the single answers that count, in order.
        singles: number of those.
        lists: rows of each list that counts.
        global_yes, global_no: single answers of each verdict that count in the mini-batch, over all ranks.
        padded: ``lists`` as `losses.padded_lists` has them, where they were moved to the device already.
    """

    width: int
    chosen: Rows
    rejected: Rows
    pairs: int
    mean_chosen_length: float
    global_pairs: float
    answers: Rows
    singles: int
    lists: tuple[tuple[int, ...], ...]
    global_yes: float
    global_no: float
    padded: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def of(cls, data: TensorDict) -> PairFacts:
        """From the columns of an `AnswerBatch`; quick where they are on the host."""
        batch = AnswerBatch.of(data)
        rows = len(batch.counted)
        places = batch.beats.nonzero()
        places = places[batch.counted[places[:, 0]] > 0]
        chosen = places[:, 0].tolist()
        rejected = (places[:, 0] + batch.beats[places[:, 0], places[:, 1]]).tolist()
        singles, lists = _singles(batch), _lists(batch)
        halves = _slice_of(chosen, 0, 2, rows), _slice_of(rejected, 1, 2, rows)
        if isinstance(halves[0], slice) != isinstance(halves[1], slice):
            halves = chosen, rejected
        return cls(
            width=int(batch.response_mask.offsets().diff().max()),
            chosen=halves[0],
            rejected=halves[1],
            pairs=len(chosen),
            # the same in each row: `AnswerBatch`
            mean_chosen_length=float(batch.mean_chosen_length[0]),
            global_pairs=float(batch.global_pairs[0]),
            answers=_slice_of(singles, 0, 1, rows),
            singles=len(singles),
            lists=lists,
            global_yes=0.0 if batch.global_yes is None else float(batch.global_yes[0]),
            global_no=0.0 if batch.global_no is None else float(batch.global_no[0]),
        )

    def on(self, device: torch.device | str) -> PairFacts:
        """With all lists of rows on their way to a device."""

        def moved(rows: Rows) -> Rows:
            return rows if isinstance(rows, slice) else torch.as_tensor(rows).to(device, non_blocking=True)

        return replace(
            self,
            chosen=moved(self.chosen),
            rejected=moved(self.rejected),
            answers=moved(self.answers),
            padded=padded_lists(self.lists, device) if self.lists else None,
        )

    def scales(self, dp_size: int, columns: AnswerBatch) -> dict[str, float]:
        """By the name of each metric of the mini-batch the factor that makes a mean of partial sums.

        Each is a mean over the examples that have it. A mini-batch may have single answers of one verdict alone; then
        there is nothing to be said of the other. All that is asked here is the same on all ranks.
        """
        answers = self.global_yes + self.global_no
        compared = self.global_pairs - answers
        if not answers:
            return dict.fromkeys(METRICS, dp_size / self.global_pairs if self.global_pairs else 0.0)
        counts = dict.fromkeys(METRICS, compared)
        for name in ("rewards", "logps"):
            counts[f"{name}/chosen"] += self.global_yes
            counts[f"{name}/rejected"] += self.global_no
        counts["rewards/unpaired"] = answers
        for name in ("kl", "shift"):
            if getattr(columns, name) is not None:
                counts[f"rewards/{name}"] = answers
        scales = {name: dp_size / count for name, count in counts.items() if count}
        if self.answers_have_margins:
            scales["rewards/margins"] = float(dp_size)
        return scales

    @property
    def examples(self) -> int:
        """Of the micro-batch, those that count."""
        return self.pairs + self.singles + len(self.lists)

    @property
    def answers_have_margins(self) -> bool:
        """Where nothing else does, and there are both verdicts: the difference of their mean rewards."""
        answers = self.global_yes + self.global_no
        return self.global_pairs == answers and min(self.global_yes, self.global_no) > 0


def _singles(batch: AnswerBatch) -> list[int]:
    if batch.verdict is None:
        return []
    return ((batch.verdict != 0) & (batch.counted > 0)).nonzero()[:, 0].tolist()


def _lists(batch: AnswerBatch) -> tuple[tuple[int, ...], ...]:
    if batch.rank is None:
        return ()
    # a list's rows stand side by side; rows that filled it up to the size of others may be gone
    lists: list[list[int]] = []
    for row in ((batch.rank > 0) & (batch.counted > 0)).nonzero()[:, 0].tolist():
        if batch.place[row] == 0:
            lists.append([])
        lists[-1].append(row)
    return tuple(map(tuple, lists))
