"""One sequence for many answers: each prompt once, every answer after it, none seeing another.

Rows of a micro-batch with the same prompt share the tokens with which all of them begin (the prompt, and what their
answers have in common, as JSON answers do). Those tokens are the group's trunk; what follows in a row is its branch.
Equal rows share everything. The last token of a row predicts nothing, so it is no input at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["SharedLayout"]


class SharedLayout:
    """Where every token, key and label of the shared sequence stands. Attributes (tensors int64):

    - ``input_ids``, ``position_ids`` (tokens,): the sequence; positions are those in the token's own row.
    - ``query_lengths``: tokens of each segment (a trunk or a branch); segments follow one another in the sequence.
    - ``trunks``: for each segment the number of the segment that it continues, None for a trunk.
    - ``keys`` (all keys,), ``key_lengths``: the tokens that each segment attends to, itself last; within them attention
      is causal, aligned at the end.
    - ``query_ends``, ``key_ends`` (segments + 1,) int32: 0 and the running sums of those lengths.
    - ``use_places`` (all keys,): the places in ``keys`` of the first token of the sequence, then those of the second,
      and so on; those of each token begin at its entry of ``use_starts`` (tokens,).
    - ``sources`` (positions,): tokens from whose hidden state a labelled token is predicted.
    - ``label_sources``, ``label_ids``, ``slots`` (labels,): for each labelled answer token, its place in ``sources``,
      its id, and its place in the flat answers of all rows. Sorted by source.
    - ``label_sources_on_host``: ``label_sources`` as a NumPy array, which `to` leaves where it is.
    - ``answer_tokens``: length of the flat answers.

    A plain class and no dataclass: FSDP copies dataclasses that it finds among a model's arguments.
    """

    def __init__(self, prompts: Sequence[torch.Tensor], answers: Sequence[torch.Tensor], masks: Sequence[torch.Tensor]):
        """
        Args:
            prompts: (length,) ids of each row, one token at least.
            answers: (length,) ids of each row's answer; may be empty.
            masks: (answer length,) more than 0 where the answer's token has a label.
        """
        self._ids: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._keys: list[np.ndarray] = []
        self._tokens = 0
        self.query_lengths: list[int] = []
        self.key_lengths: list[int] = []
        self.trunks: list[int | None] = []

        # by their tokens, not by which pair they belong to: pairs of one prompt in one micro-batch share it too
        groups: dict[bytes, list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault(prompt.numpy().tobytes(), []).append(row)
        places: list[np.ndarray] = [np.empty(0)] * len(prompts)
        for rows in groups.values():
            self._add_group(rows, prompts, answers, places)

        predicted_from, ids, slots = [], [], []
        self.answer_tokens = 0
        for prompt, answer, mask, place in zip(prompts, answers, masks, places, strict=True):
            labelled = np.flatnonzero(mask.numpy() > 0)
            # a token is predicted from the place before it; that of the first is the prompt's last
            predicted_from.append(place[len(prompt) - 1 + labelled])
            ids.append(answer.numpy()[labelled])
            slots.append(self.answer_tokens + labelled)
            self.answer_tokens += len(answer)
        source = np.concatenate(predicted_from)
        # ascending, so that the head can take positions in chunks, each with the labels that lie in it
        order = np.argsort(source, kind="stable")
        sources, label_sources = np.unique(source[order], return_inverse=True)

        self.input_ids = torch.from_numpy(np.concatenate(self._ids))
        self.position_ids = torch.from_numpy(np.concatenate(self._positions))
        keys = np.concatenate(self._keys)
        self.keys = torch.from_numpy(keys)
        # the same keys from the other side: the gradient of a token's key is the sum over all segments that used it
        by_token = np.argsort(keys, kind="stable")
        self.use_places = torch.from_numpy(by_token)
        self.use_starts = torch.from_numpy(np.searchsorted(keys[by_token], np.arange(self._tokens)))
        self.query_ends, self.key_ends = (
            torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
            for lengths in (self.query_lengths, self.key_lengths)
        )
        self.sources = torch.from_numpy(sources)
        self.label_sources = torch.from_numpy(label_sources)
        self.label_sources_on_host = label_sources
        self.label_ids = torch.from_numpy(np.concatenate(ids)[order])
        self.slots = torch.from_numpy(np.concatenate(slots)[order])
        del self._ids, self._positions, self._keys

    def _add_group(self, rows, prompts, answers, places) -> None:
        sequences = {row: torch.cat([prompts[row], answers[row]]).numpy()[:-1] for row in rows}
        # without the last token, which predicts nothing; equal rows, as online pairs have them, are one
        different = {sequence.tobytes(): sequence for sequence in sequences.values()}
        trunk = _common_length(list(different.values()))
        # answers of which one is empty may leave no trunk where the prompt is one token: it was the last one
        number = len(self.trunks) if trunk else None
        trunk_keys = self._add_segment(next(iter(different.values()))[:trunk], 0, np.empty(0, np.int64), None)
        branch_keys = {
            name: self._add_segment(sequence[trunk:], trunk, trunk_keys, number) for name, sequence in different.items()
        }
        for row, sequence in sequences.items():
            places[row] = np.concatenate([trunk_keys, branch_keys[sequence.tobytes()]])

    def _add_segment(self, ids: np.ndarray, position: int, before: np.ndarray, trunk: int | None) -> np.ndarray:
        """Returns the places of the segment's tokens in the sequence."""
        own = np.arange(self._tokens, self._tokens + len(ids))
        if len(ids):
            self._ids.append(ids)
            self._positions.append(np.arange(position, position + len(ids)))
            self._keys.append(np.concatenate([before, own]))
            self.query_lengths.append(len(ids))
            self.key_lengths.append(len(before) + len(ids))
            self.trunks.append(trunk)
            self._tokens += len(ids)
        return own

    def to(self, device: torch.device | str) -> SharedLayout:
        """Move the tensors, in place."""
        for name, value in vars(self).items():
            # what attention asks of Python (lengths, trunks) stays lists: read off a GPU it would have to be waited for
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device, non_blocking=True))
        return self


def _common_length(sequences: list[np.ndarray]) -> int:
    """Length of the longest common beginning."""
    shortest = min(len(sequence) for sequence in sequences)
    stacked = np.stack([sequence[:shortest] for sequence in sequences])
    differs = (stacked != stacked[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest
