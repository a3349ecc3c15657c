"""Prompts and answers as token ids in flat arrays, each kept once: a number for each (prompt, answer, mask)."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_aiops.data.kl_answers import other_answers
from verl_aiops.data.ragged import Ragged, numbers, ragged_arrays, set_ragged
from verl_aiops.data.tokens import EncodedRow

__all__ = ["AnswerStore", "KlAnswers"]


class AnswerStore:
    """Append, then `freeze`; only then read.

    `prompts`, `ids`, `masks`: of each prompt and of each answer, by number, in the order in which they came.
    `prompt_of`: number of each answer's prompt. `digests`: SHA-256 of what the model sees of each answer, of prompt,
    answer and mask: uint8 (answers, 32).
    """

    def __init__(self) -> None:
        self.prompts, self.ids, self.masks = Ragged("i"), Ragged("i"), Ragged("B")
        self.prompt_of, self.digests = np.empty(0, np.int32), np.empty((0, 32), np.uint8)
        self._growing_prompt_of = array("i")
        # by digest, while it grows
        self._known_prompts: dict[bytes, int] = {}
        self._known: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, row: EncodedRow, places: Iterable[int]) -> dict[int, int]:
        """The numbers of those of a row's answers that `places` names, by place."""
        prompt = array("i", row.prompt_ids)
        before = _prompt_digest(prompt)
        return {place: self._answer(before, prompt, row, place) for place in places}

    def _answer(self, before: Any, prompt: array, row: EncodedRow, place: int) -> int:
        ids, mask = array("i", row.answers_ids[place]), array("B", row.answers_masks[place])
        digest, new = _answer_digest(before, ids, mask), len(self._known)
        number = self._known.setdefault(digest, new)
        if number == new:
            self.ids.append(ids)
            self.masks.append(mask)
            new_prompt = len(self._known_prompts)
            of = self._known_prompts.setdefault(before.digest(), new_prompt)
            if of == new_prompt:
                self.prompts.append(prompt)
            self._growing_prompt_of.append(of)
        return number

    def freeze(self) -> None:
        for ragged in (self.prompts, self.ids, self.masks):
            ragged.freeze()
        self.prompt_of = numbers(self._growing_prompt_of)
        self.digests = np.frombuffer(b"".join(self._known), dtype=np.uint8).reshape(-1, 32)
        self._growing_prompt_of, self._known_prompts, self._known = array("i"), {}, {}

    def kl_answers(self, own: np.ndarray) -> KlAnswers:
        """For each of the answers with the numbers `own`, an answer of another prompt behind its own prompt."""
        own, back = np.unique(own, return_inverse=True)
        places = self.prompt_of[own].tolist()
        states = {place: _prompt_digest(self.prompts[place]) for place in set(places)}
        found = other_answers(
            places,
            [self.ids[number].tobytes() + self.masks[number].tobytes() for number in own],
            [states[place].digest() for place in places],
            [bytes(self.digests[number]) for number in own],
        )
        known = {bytes(digest): number for number, digest in enumerate(self.digests)} if len(own) else {}
        numbered: list[int] = []
        contents: list[int] = []
        digests: list[bytes] = []
        for at, place in zip(found, places):
            if at < 0:
                numbered.append(-1)
                continue
            other = int(own[at])
            digest = _answer_digest(states[place], self.ids[other], self.masks[other])
            new = len(self) + len(digests)
            numbered.append(known.setdefault(digest, new))
            if numbered[-1] == new:
                digests.append(digest)
                contents.append(other)
        every = np.concatenate([np.arange(len(self)), np.array(contents, dtype=np.int64)])
        joined = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)
        return KlAnswers(np.array(numbered, dtype=np.int64)[back], every, joined)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for the cache."""
        return {"prompt_of": self.prompt_of, "digests": self.digests, **ragged_arrays(self, _RAGGED)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> AnswerStore:
        """What `arrays` gave, as a frozen object again."""
        store = cls()
        store.prompt_of, store.digests = arrays["prompt_of"], arrays["digests"]
        set_ragged(store, _RAGGED, arrays)
        return store


_RAGGED = ("prompts", "ids", "masks")


@dataclass(frozen=True)
class KlAnswers:
    """Answers that stand behind another prompt than their own, with numbers after those of the answers.

    `numbers`: for each of the answers asked for, or -1 where there is no other prompt. `contents`: by number, over all
    answers and these, the number of the answer whose ids and mask it has. `digests`: of these alone, uint8 (., 32).
    """

    numbers: np.ndarray
    contents: np.ndarray
    digests: np.ndarray


def _prompt_digest(prompt: Any) -> Any:
    """The state of SHA-256 after a prompt, from which an answer's goes on."""
    state = hashlib.sha256(len(prompt).to_bytes(8, "little"))
    state.update(_little(prompt))
    return state


def _answer_digest(before: Any, ids: Any, mask: Any) -> bytes:
    state = before.copy()
    state.update(len(ids).to_bytes(8, "little"))
    state.update(_little(ids))
    state.update(memoryview(mask).cast("B") if len(mask) else b"")
    return state.digest()


def _little(ids: Any) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()
