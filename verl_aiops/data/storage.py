"""Tokenised examples in flat arrays: which answers each one is made of, and what is said of them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from verl_aiops.data.answer_store import AnswerStore, KlAnswers
from verl_aiops.data.examples import KINDS, Example
from verl_aiops.data.ragged import Ragged, as_array, from_array, numbers, ragged_arrays, set_ragged
from verl_aiops.data.rows import PreferenceRow
from verl_aiops.data.tokens import EncodedRow

__all__ = ["ExampleStore"]

_PAIR, _SINGLE, _LIST = (KINDS.index(kind) for kind in ("pair", "single", "list"))
# a number for each example: place of its kind in KINDS, weight, score gap, label, number of its row among those kept,
# number of its file
_COLUMNS = {"kinds": "B", "weights": "d", "margins": "d", "labels": "B", "rows": "i", "files": "i"}
_RAGGED = ("members", "ranks", "scores")


class ExampleStore:
    """What `PreferenceDataset` has of its rows. Append, then `freeze`; only then read.

    `answers` has numbers for the answers; those after them are answers of one prompt behind another, for the KL of
    single answers.
    """

    def __init__(self) -> None:
        self.answers = AnswerStore()
        # by example: its answers' numbers, and of a list their ranks and scores
        self.members, self.ranks, self.scores = Ragged("i"), Ragged("d"), Ragged("d")
        self.columns: dict[str, np.ndarray] = {}
        self._growing: dict[str, array] = {name: array(code) for name, code in _COLUMNS.items()}
        self._names: list[str] = []
        self._groups: list[str | None] = []

    def __len__(self) -> int:
        return len(self._growing["kinds"]) or len(self.columns.get("kinds", ()))

    def append(
        self, encoded: EncodedRow, row: PreferenceRow, examples: Sequence[Example], *, name: str, file: int
    ) -> None:
        """A row with the examples that it gives.

        Args:
            file: number of the file it is from.
        """
        self._names.append(name)
        self._groups.append(row.group)
        known = self.answers.append(encoded, dict.fromkeys(at for example in examples for at in example.places))
        for example in examples:
            places = example.places
            if example.kind == "list":  # answers that differ as texts alone are one
                places = tuple({known[at]: at for at in reversed(places)}.values())[::-1]
            self.members.append([known[at] for at in places])
            listed = places if example.kind == "list" else ()
            self.ranks.append([row.ranks[at] for at in listed])
            self.scores.append([row.scores[at] for at in listed])
            said = (KINDS.index(example.kind), example.weight, example.margin, example.label)
            for column, value in zip(_COLUMNS, (*said, len(self._names) - 1, file)):
                self._growing[column].append(value)

    def freeze(self) -> None:
        self.answers.freeze()
        for name in _RAGGED:
            getattr(self, name).freeze()
        self.columns = {name: numbers(column) for name, column in self._growing.items()}
        self._growing = {name: array(code) for name, code in _COLUMNS.items()}

    # ---- by example

    @cached_property
    def prompt_numbers(self) -> np.ndarray:
        """(examples,) int64: equal where the prompts' token ids are."""
        return self.answers.prompt_of[self._firsts()].astype(np.int64)

    def _firsts(self) -> np.ndarray:
        """The number of each example's first answer."""
        return self.members.values[self.members.ends[:-1]]

    @cached_property
    def rows_per_example(self) -> int:
        return max(2, int(self.members.lengths().max(initial=0)))

    @cached_property
    def kl(self) -> KlAnswers:
        """Of the single answers, in the order of the data set."""
        return self.answers.kl_answers(self._firsts()[self.columns["kinds"] == _SINGLE])

    @property
    def lacks_kl(self) -> bool:
        """Whether there are single answers, and all of them have one prompt."""
        return bool((self.kl.numbers < 0).any())

    @cached_property
    def answer_numbers(self) -> np.ndarray:
        """(examples, rows_per_example) int64, -1 where an example has fewer answers.

        The second of a single answer is the one for the KL, if there is one.
        """
        padded = self.members.padded(self.rows_per_example, -1).astype(np.int64)
        padded[self.columns["kinds"] == _SINGLE, 1] = self.kl.numbers
        return padded

    def lengths(self) -> np.ndarray:
        """Tokens of prompt and answers: int64 (examples, 1 + rows_per_example), 0 where there is no answer."""
        of_answer = self.answers.ids.lengths()[self.kl.contents]
        own = np.where(self.answer_numbers < 0, 0, of_answer[self.answer_numbers])
        return np.concatenate([self.answers.prompts.lengths()[self.prompt_numbers][:, None], own], axis=1)

    def item(self, index: int) -> dict[str, Any]:
        """As `PreferenceDataset` describes it."""
        columns = self.columns
        kind, prompt = int(columns["kinds"][index]), int(self.prompt_numbers[index])
        given = [number for number in self.answer_numbers[index].tolist() if number >= 0]
        contents = self.kl.contents[given]
        ids, masks = ([_tensor(of[at]) for at in contents] for of in (self.answers.ids, self.answers.masks))
        item: dict[str, Any] = {"kind": KINDS[kind], "prompt_ids": _tensor(self.answers.prompts[prompt])}
        if kind == _PAIR:
            item |= {"chosen_ids": ids[0], "rejected_ids": ids[1], "chosen_mask": masks[0], "rejected_mask": masks[1]}
            item["margin"] = float(columns["margins"][index])
        elif kind == _SINGLE:
            item |= {"answer_ids": ids[0], "answer_mask": masks[0], "label": bool(columns["labels"][index])}
            none = torch.empty(0, dtype=torch.int64)
            item |= {"kl_ids": (*ids, none)[1], "kl_mask": (*masks, none)[1]}
        else:
            item |= {"answers_ids": ids, "answers_masks": masks}
            item |= {"ranks": self.ranks[index].tolist(), "scores": self.scores[index].tolist()}
        row = columns["rows"][index]
        item |= {"prompt_number": prompt, "answer_numbers": given, "weight": float(columns["weights"][index])}
        return item | {"index": index, "id": self._names[row], "group": self._groups[row]}

    # ---- what is learnt, as digests

    @cached_property
    def digests(self) -> np.ndarray:
        """SHA-256 of each example's token ids and masks, label and ranks: uint8 (examples, 32).

        A digest depends on what is learnt of the example and on nothing else: not on position, id, group or weight.
        """
        return np.frombuffer(b"".join(map(self._digest, range(len(self)))), dtype=np.uint8).reshape(-1, 32)

    def _digest(self, index: int) -> bytes:
        kind, members = int(self.columns["kinds"][index]), self.members[index]
        prompt = self.answers.prompts[self.prompt_numbers[index]]
        answers = [self.answers.ids[number] for number in members]
        digest = hashlib.sha256()
        if kind != _PAIR:  # pairs' digests are those by which checkpoints and references of theirs are found
            label, ranks = int(self.columns["labels"][index]), self.ranks[index].tolist()
            digest.update(f"{KINDS[kind]} {label} {ranks} ".encode())
        digest.update(np.array([len(prompt), *map(len, answers)], dtype="<i8").tobytes())
        for ids in (prompt, *answers):
            digest.update(ids.astype("<i4").tobytes())
        for number in members:
            digest.update(self.answers.masks[number].tobytes())
        return digest.digest()

    def answer_digests(self) -> np.ndarray:
        """By number, of answers and of those for the KL: uint8 (answers, 32)."""
        return np.concatenate([self.answers.digests, self.kl.digests])

    def labelled(self) -> dict[str, list[tuple[int, int]]]:
        """For `repeats.count_repeats`: pairs as (preferred, other) answer; single answers as (answer, 1) for a yes,
        (answer, 0) for a no."""
        kinds, firsts = self.columns["kinds"], self._firsts()
        pairs = self.members.ends[:-1][kinds == _PAIR]
        single = kinds == _SINGLE
        return {
            "pair": list(zip(self.members.values[pairs].tolist(), self.members.values[pairs + 1].tolist())),
            "single": list(zip(firsts[single].tolist(), self.columns["labels"][single].tolist())),
        }

    # ---- on disk

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for the cache."""
        texts = as_array([self._names, self._groups])
        return {**self.columns, **self.answers.arrays(), "texts": texts, **ragged_arrays(self, _RAGGED)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> ExampleStore:
        """What `arrays` gave, as a frozen object again."""
        store = cls()
        store.answers = AnswerStore.of(arrays)
        set_ragged(store, _RAGGED, arrays)
        store.columns = {name: arrays[name] for name in _COLUMNS}
        store._names, store._groups = from_array(arrays["texts"])
        return store


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))
