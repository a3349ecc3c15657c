"""Preference files as a reward model reads them: two conversations a pair, rendered as they are when it scores."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
from tqdm import tqdm

from verl_aiops.data.columns import PROMPT_COLUMNS
from verl_aiops.data.errors import FaultList, PreferenceDataError, RowFault
from verl_aiops.data.fields import keys_of_option
from verl_aiops.data.kept_text import check_keeps_text
from verl_aiops.data.notes import say
from verl_aiops.data.reading import open_files
from verl_aiops.data.repeats import count_repeats, count_shared
from verl_aiops.data.rows import Columns, parse_row
from verl_aiops.data.scored_rows import conversation_texts
from verl_aiops.data.scoring import scoring_ids
from verl_aiops.data.template import ChatTemplate

__all__ = ["RewardPairs", "read_reward_pairs", "split_by_group"]

MARGIN = "margin"
_NO_GROUPS = "ranked answers, and TRL's trainer takes pairs alone; leave --backend trl out, which takes both"
logger = logging.getLogger(__name__)


@dataclass
class RewardPairs:
    """Token ids of both conversations of each pair, in the file's order.

    ``margins``: by how much the chosen one should lead, or None where the file has no such column. ``groups``: pairs of
    one group, by default of one prompt, never stand on both sides of a split. ``too_long``: pairs left out since a side
    has more tokens than allowed. ``notes``: pairs of each kind in `data.notes.NOTES`.
    """

    chosen_ids: list[list[int]] = field(default_factory=list)
    rejected_ids: list[list[int]] = field(default_factory=list)
    margins: list[float] | None = None
    groups: list[str] = field(default_factory=list)
    rows: int = 0
    too_long: int = 0
    notes: Counter = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.chosen_ids)

    @property
    def conversations(self) -> list[list[int]]:
        """All chosen, then all rejected."""
        return self.chosen_ids + self.rejected_ids

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation."""
        return max(map(len, self.conversations), default=0)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.conversations))

    def shared_with(self, other: RewardPairs) -> int:
        """How many of these pairs the other set has too, token by token."""
        return count_shared(self._seen(), other._seen())

    def _seen(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        return list(zip(map(tuple, self.chosen_ids), map(tuple, self.rejected_ids)))

    def digest(self) -> str:
        """SHA-256 (hex) of what a model is trained on."""
        text = repr((self.chosen_ids, self.rejected_ids, self.margins)).encode()
        return hashlib.sha256(text).hexdigest()

    def part(self, indices) -> RewardPairs:
        margins = None if self.margins is None else [self.margins[at] for at in indices]
        taken = {name: [getattr(self, name)[at] for at in indices] for name in ("chosen_ids", "rejected_ids", "groups")}
        return RewardPairs(**taken, margins=margins, rows=len(indices))


def read_reward_pairs(
    files, tokenizer, max_length: int, max_too_long_share: float = 0.1, columns: str | None = None
) -> RewardPairs:
    """Read, check and tokenise.

    Args:
        files: one path or several, parquet or JSON lines, as for DPO; optionally with a column ``margin``.
        tokenizer: the reward model's, with a chat template.
        max_length: tokens of a conversation; pairs with a longer one are left out and counted.
        max_too_long_share: of the pairs; more are refused.
        columns: which column holds what, as ``--columns`` has it.

    Raises:
        PreferenceDataError: files or rows that cannot be used, all faults together; weights other than 1, which the
            reward trainer has no use for, or tools; too many pairs over the length, or none left.
    """
    opened = open_files(files, arrays=True)
    of = Columns(**{key.removesuffix("_key"): name for key, name in keys_of_option(columns).items()})
    faults, pairs, margins, ids_of_rows = FaultList(), RewardPairs(), [], []
    template = ChatTemplate(tokenizer)
    with_margin, longest_read = None, 0
    for file in opened:
        lacking = [name for name in (of.chosen, of.rejected) if name not in (file.columns or (name,))]
        if lacking and of.completions in file.columns:
            raise PreferenceDataError(f"{file.columns_at} holds {_NO_GROUPS}")
        if lacking and of.layout(file.columns_at, file.columns) is None:
            raise PreferenceDataError(
                f"{file.columns_at} lacks the column(s) {', '.join(map(repr, lacking))}; found: "
                f"{', '.join(map(repr, file.columns))}. Name them with --columns, or rename the file's columns."
            )
    bar = tqdm(total=sum(file.rows for file in opened), desc="reading pairs", unit=" pairs", disable=None)
    for file in opened:
        names = [*of.names(), *PROMPT_COLUMNS, *of.read_beside(file.columns or ()), of.margin]
        names += [of.completions] if of.completions in (file.columns or (of.completions,)) else []
        for record in file.records(names, np.arange(file.rows)):
            bar.update()
            pairs.rows += 1
            try:
                if record.fault:
                    raise RowFault(record.fault)
                if record.values.pop(of.completions, None) is not None and record.values.get(of.chosen) is None:
                    raise RowFault(_NO_GROUPS)
                row = parse_row(record.values, of, record.others)
                margin = _margin(record.values.get(of.margin))
                if with_margin is None:
                    with_margin = margin is not None
                elif with_margin != (margin is not None):
                    raise RowFault(f"{MARGIN}: all rows have one or none has")
                if row.weight != 1:
                    raise RowFault(f"weight={row.weight}: reward training knows no weights; remove the column")
                notes = set(row.notes)
                _, texts = conversation_texts(tokenizer, template, row, notes.add)
                if not len(pairs):
                    check_keeps_text(tokenizer, texts)
                ids = [scoring_ids(tokenizer, text) for text in texts]
                if ids[0] == ids[1]:
                    raise RowFault("chosen and rejected are the same conversation once rendered")
            except (RowFault, RecursionError) as fault:
                faults.add(record.where, str(fault) if isinstance(fault, RowFault) else "is nested too deeply")
                continue
            longest = max(map(len, ids))
            longest_read = max(longest_read, longest)
            if longest > max_length:
                pairs.too_long += 1
                continue
            pairs.notes.update(notes)
            ids_of_rows.append(row.id)
            pairs.chosen_ids.append(ids[0])
            pairs.rejected_ids.append(ids[1])
            # without groups a prompt is one: its pairs differ in their answers only
            pairs.groups.append(row.group if row.group is not None else json.dumps(row.prompt))
            margins.append(margin)
    bar.close()
    if faults.count:
        raise PreferenceDataError(faults.message(f"{faults.count} of {pairs.rows} pairs cannot be used:"))
    if pairs.too_long > max_too_long_share * pairs.rows or not len(pairs):
        raise PreferenceDataError(
            f"{', '.join(file.name for file in opened)}: {pairs.too_long} of {pairs.rows} pairs are longer than "
            f"{max_length} tokens (the longest has {longest_read}), more than the share {max_too_long_share} that may "
            "be left out. Raise --max-length, or --max-too-long-share."
        )
    if with_margin:
        pairs.margins = margins
    pairs.notes.update(count_repeats(pairs._seen(), ids_of_rows))
    say(pairs.notes, len(pairs), logger)
    return pairs


def _margin(margin: object) -> float | None:
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, Real) or not math.isfinite(margin) or margin < 0:
        raise RowFault(f"{MARGIN}={margin!r}: expected a number, 0 or more")
    return float(margin)


def split_by_group(pairs: RewardPairs, val_share: float, seed: int) -> tuple[RewardPairs, RewardPairs]:
    """Training and held-out pairs, by the same rule as `build-prefs`.

    Raises:
        PreferenceDataError: a side is empty.
    """
    from verl_aiops.split import split_side

    sides = [split_side(group, val_share, seed) for group in pairs.groups]
    parts = tuple(pairs.part([at for at, side in enumerate(sides) if side == wanted]) for wanted in ("train", "val"))
    if not all(map(len, parts)):
        raise PreferenceDataError(
            f"--val-share {val_share} leaves {len(parts[0])} pairs to train on and {len(parts[1])} to hold out: give "
            "--val FILE, or another share"
        )
    return parts
