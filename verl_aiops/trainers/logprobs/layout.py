"""One sequence for many rows: what rows begin with in common once, what follows after it, no row seeing another.

The rows of a micro-batch are a tree over their token ids: instructions that all prompts begin with, a prompt with its
answers, a first round that several conversations go on from. Each stretch between two forks is a segment, and goes
through the model once. Equal rows share everything. The last token of a row predicts nothing, so it is no input at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from verl_aiops.trainers.logprobs.prefixes import by_prefix

__all__ = ["LEAST_SAVED", "SharedLayout"]

# A segment of its own costs a call of the attention kernel in each layer on a CPU and copies of its keys on a GPU, as
# much as a few tokens do. Rows that share less than that in all begin apart.
LEAST_SAVED = 8


class SharedLayout:
    """Where every token, key and label of the shared sequence stands. Attributes (tensors int64):

    - ``input_ids``, ``position_ids`` (tokens,): the sequence; positions are those in the token's own row.
    - ``query_lengths``: tokens of each segment; segments follow one another in the sequence, a segment after those that
      it continues.
    - ``ancestors``: for each segment the numbers of the segments before it in its rows, from the root on.
    - ``keys`` (all keys,), ``key_lengths``: the tokens that each segment attends to, itself last; within them attention
      is causal, aligned at the end.
    - ``query_ends``, ``key_ends`` (segments + 1,) int32: 0 and the running sums of those lengths.
    - ``use_places`` (all keys,): the places in ``keys`` of the first token of the sequence, then those of the second,
      and so on; those of each token begin at its entry of ``use_starts`` (tokens,).
    - ``sources`` (positions,): tokens from whose hidden state a labelled token is predicted.
    - ``label_sources``, ``label_ids``, ``slots`` (labels,): for each labelled answer token, its place in ``sources``,
      its id, and its place in the flat answers of all rows. Sorted by source.
    - ``sources_on_host``, ``label_sources_on_host``: NumPy arrays of the two, which `to` leaves where they are.
    - ``answer_tokens``: length of the flat answers.
    - ``token_weights`` (tokens,) float32: the sum of the weights of the rows that each token stands in; None without
      weights.
    - ``split``: this worker's part of the sequence where several have one together (`sequence_parallel.Split`), which
      whoever puts the layout before the model sets.

    A plain class and no dataclass: FSDP copies dataclasses that it finds among a model's arguments.
    """

    def __init__(
        self,
        prompts: Sequence[torch.Tensor],
        answers: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor],
        *,
        row_weights: Sequence[float] | None = None,
    ):
        """
        Args:
            prompts: (length,) ids of each row, one token at least.
            answers: (length,) ids of each row's answer; may be empty.
            masks: (answer length,) more than 0 where the answer's token has a label.
            row_weights: how often each row counts, where something of all tokens is asked for; the last token of a row
                is an input then too.
        """
        self._ids: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._keys: list[np.ndarray] = []
        self._tokens = 0
        self.query_lengths: list[int] = []
        self.key_lengths: list[int] = []
        self.ancestors: list[tuple[int, ...]] = []

        # by their tokens, not by which pair or group they belong to; without the last token, which predicts nothing
        rows = [torch.cat(row).numpy() for row in zip(prompts, answers, strict=True)]
        # where no row has more than that one token, the model still needs an input
        if row_weights is None and any(len(row) > 1 for row in rows):
            rows = [row[:-1] for row in rows]
        places = self._lay_out(rows)
        self.token_weights = None if row_weights is None else self._weights_of(places, row_weights)

        predicted_from, ids, slots = [], [], []
        self.answer_tokens = 0
        for prompt, answer, mask, place in zip(prompts, answers, masks, places, strict=True):
            labelled = np.flatnonzero(mask.numpy() > 0)
            predicted_from.append(place[len(prompt) - 1 + labelled])
            ids.append(answer.numpy()[labelled])
            slots.append(self.answer_tokens + labelled)
            self.answer_tokens += len(answer)
        source = np.concatenate(predicted_from)
        order = np.argsort(source, kind="stable")
        sources, label_sources = np.unique(source[order], return_inverse=True)

        self.input_ids = torch.from_numpy(np.concatenate(self._ids))
        self.position_ids = torch.from_numpy(np.concatenate(self._positions))
        keys = np.concatenate(self._keys)
        self.keys = torch.from_numpy(keys)
        by_token = np.argsort(keys, kind="stable")
        self.use_places = torch.from_numpy(by_token)
        self.use_starts = torch.from_numpy(np.searchsorted(keys[by_token], np.arange(self._tokens)))
        self.query_ends, self.key_ends = (
            torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
            for lengths in (self.query_lengths, self.key_lengths)
        )
        self.sources = torch.from_numpy(sources)
        self.label_sources = torch.from_numpy(label_sources)
        self.sources_on_host, self.label_sources_on_host = sources, label_sources
        self.label_ids = torch.from_numpy(np.concatenate(ids)[order])
        self.slots = torch.from_numpy(np.concatenate(slots)[order])
        self.split = None
        del self._ids, self._positions, self._keys

    def _lay_out(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        """Returns for each row where its tokens stand in the sequence."""
        # equal rows, as online pairs have them, are one
        names = [row.tobytes() for row in rows]
        different = list(dict(zip(names, rows)).items())
        order, shared = by_prefix([row for _, row in different])
        ordered = [different[at] for at in order]
        places: dict[bytes, np.ndarray] = {}
        # stretches of the order: from where to where, tokens of it that are laid out, where those stand and in which
        # segments. No recursion: a row for each turn of a conversation makes a tree as deep as it has turns
        open_stretches = [(0, len(ordered), 0, np.empty(0, np.int64), ())]
        while open_stretches:
            first, last, start, before, ancestors = open_stretches.pop()
            name, row = ordered[first]
            if last - first == 1:
                places[name], _ = self._add_segment(row[start:], before, ancestors)
                continue
            fork = min(shared[first + 1 : last])
            if (fork - start) * (last - first - 1) >= LEAST_SAVED:
                before, ancestors = self._add_segment(row[start:fork], before, ancestors)
                start = fork
            borders = [first, *(at for at in range(first + 1, last) if shared[at] == fork), last]
            # the last of them is laid out first: hence backwards
            for branch in reversed(list(zip(borders, borders[1:]))):
                open_stretches.append((*branch, start, before, ancestors))
        return [places[name] for name in names]

    def _weights_of(self, places: list[np.ndarray], row_weights: Sequence[float]) -> torch.Tensor:
        weights = np.zeros(self._tokens, np.float32)
        for place, weight in zip(places, row_weights, strict=True):
            weights[place] += weight
        return torch.from_numpy(weights)

    def _add_segment(
        self, ids: np.ndarray, before: np.ndarray, ancestors: tuple[int, ...]
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """Returns the places of all tokens up to the segment's end, and the segments that they are in."""
        if not len(ids):
            return before, ancestors
        keys = np.concatenate([before, np.arange(self._tokens, self._tokens + len(ids))])
        self._ids.append(ids)
        self._positions.append(np.arange(len(before), len(keys)))
        self._keys.append(keys)
        self.query_lengths.append(len(ids))
        self.key_lengths.append(len(keys))
        self.ancestors.append(ancestors)
        self._tokens += len(ids)
        return keys, (*ancestors, len(self.ancestors) - 1)

    def to(self, device: torch.device | str) -> SharedLayout:
        """Move the tensors, in place."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device, non_blocking=True))
        return self
