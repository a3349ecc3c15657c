"""From two rendered conversations to the tokens of a pair: one prompt, and two answers that begin at the same token.

Prompt and answer meet on tokens. Where a tokenizer would merge the prompt's end with the answer's beginning, the two
are tokenised apart, so that the prompt keeps the tokens it has when the model generates. Tokenizers that mark the
start of every text (older SentencePiece ones) cannot be used so; and some templates' generation prompts do not come
back in the rendered conversation. In both cases the prompt is what its tokens have in common with those of the whole,
as in TRL, and the row is marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from verl_aiops.data.errors import PreferenceDataError, RowFault
from verl_aiops.data.kept_text import check_keeps_text

__all__ = ["EncodedPair", "PairTokens", "RenderedPair", "Side"]

_Ids = list[int]


@dataclass(slots=True)
class EncodedPair:
    """Token ids as lists of int; the masks, as long as their answers, hold 1 on tokens that are trained.

    `notes`: see `notes.NOTES`.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_mask: list[int]
    rejected_mask: list[int]
    prompt_end_changed: bool
    eos_appended: bool
    notes: frozenset[str] = frozenset()


@dataclass(slots=True)
class Side:
    """Prompt and one answer as text. `cuts` are beginnings of `whole`: the prompt, then by turns the ends of trained
    and of untrained stretches. `exact` is False where a cut only begins like `whole`."""

    whole: str
    cuts: list[str]
    exact: bool = True
    eos_appended: bool = False

    def stretches(self) -> list[str]:
        """The texts between the cuts: trained, untrained, trained, ..."""
        bounds = [len(cut) for cut in self.cuts] + [len(self.whole)]
        return [self.whole[start:end] for start, end in zip(bounds, bounds[1:])]


@dataclass(slots=True)
class RenderedPair:
    """The chosen and the rejected side of a row.

    `apart`: prompt and stretches are tokenised one by one; else each side's cuts and whole are, and compared.
    """

    sides: tuple[Side, Side]
    is_text: bool
    apart: bool
    notes: frozenset[str]

    def texts(self) -> list[str]:
        """What is tokenised, in the order in which `PairTokens` takes it up again."""
        if self.apart:
            return [self.sides[0].cuts[0], *(text for side in self.sides for text in side.stretches())]
        return [text for side in self.sides for text in (*side.cuts, side.whole)]


class PairTokens:
    """Tokenises rendered pairs with one tokenizer.

    Args:
        tokenizer: of transformers, with an end-of-sequence token.
        special: the texts of its special tokens.
    """

    def __init__(self, tokenizer: Any, special: Iterable[str]):
        self._tokenizer = tokenizer
        self._barriers = ("\n", *special)
        self._text_checked = False
        self._front = self._tokens_in_front()
        self._continues = self._continues_text()

    def rendered(self, sides: tuple[Side, Side], notes: Iterable[str], *, is_text: bool) -> RenderedPair:
        apart = self._continues and all(side.exact and self._parts(side) for side in sides)
        return RenderedPair(sides, is_text, apart, frozenset(notes))

    def encode(self, pairs: Sequence[RenderedPair | RowFault]) -> list[EncodedPair | RowFault]:
        """One result a pair, in order; faults stay where they are. One call to the tokenizer for all texts: a fast
        tokenizer then uses all cores, and calls cost more than short texts do.

        Raises:
            PreferenceDataError: the tokenizer loses text, or does not know its own end-of-sequence token.
        """
        texts = [text for pair in pairs if isinstance(pair, RenderedPair) for text in pair.texts()]
        if texts and not self._text_checked:
            check_keeps_text(self._tokenizer, texts)
            self._text_checked = True
        pieces = iter(self._tokenize(texts))
        return [self._assemble(pair, pieces) if isinstance(pair, RenderedPair) else pair for pair in pairs]

    def _parts(self, side: Side) -> bool:
        """Whether no token can reach across a cut: special tokens and line breaks before it, no white space after."""
        return all(
            cut.endswith(self._barriers) and not after[:1].isspace() for cut, after in zip(side.cuts, side.stretches())
        )

    def _assemble(self, pair: RenderedPair, pieces: Iterator[_Ids]) -> EncodedPair | RowFault:
        if pair.apart:
            prompt, answers = _from_stretches(pair, pieces)
            changed = False
        else:
            sides = [[next(pieces) for _ in range(len(side.cuts) + 1)] for side in pair.sides]
            prompt, answers, changed = _cut_by_common_beginning(sides)
            # Tokens merge across a cut. With a tokenizer whose stretches can be joined they need not: the model meets
            # the prompt's own tokens when it generates, so it shall meet them here.
            if changed and self._continues and all(side.exact for side in pair.sides):
                pair.apart, changed = True, False
                prompt, answers = _from_stretches(pair, iter(self._tokenize(pair.texts())))
        if pair.is_text and prompt[: len(self._front)] != self._front:
            prompt = self._front + prompt
        if not prompt:
            return RowFault("chosen and rejected share no prompt token")
        chosen, rejected = ([token for stretch in answer for token in stretch] for answer in answers)
        for side, ids in zip(pair.sides, (chosen, rejected)):
            if (pair.is_text or side.eos_appended) and ids[-1:] != [self._tokenizer.eos_token_id]:
                raise PreferenceDataError(
                    f"the tokenizer does not read its end-of-sequence token {self._tokenizer.eos_token!r} as one token"
                )
        if chosen == rejected:
            return RowFault("chosen and rejected are equal once rendered (the same token ids)")
        # trained and untrained stretches take turns, a trained one first
        chosen_mask, rejected_mask = (
            [int(place % 2 == 0) for place, stretch in enumerate(answer) for _ in stretch] for answer in answers
        )
        eos_appended = any(side.eos_appended for side in pair.sides)
        return EncodedPair(prompt, chosen, rejected, chosen_mask, rejected_mask, changed, eos_appended, pair.notes)

    def _tokenize(self, texts: list[str]) -> list[_Ids]:
        if not texts:
            return []
        # no special tokens: the chat template has written its own, and `_front` is put before plain texts
        return self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

    def _tokens_in_front(self) -> _Ids:
        """The special tokens that the tokenizer puts before a text (often one BOS, often none)."""
        bare = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self._tokenizer("a")["input_ids"]
        places = (at for at in range(len(full)) if full[at : at + len(bare)] == bare)
        return full[: next(places, 0)]

    def _continues_text(self) -> bool:
        """Whether a text's tokens are the same at the start and after other text, so that stretches can be joined."""
        starts = ("a", " a", "Z", "7", "{", '"', "'s", "\u00e9", "\u4e2d")
        alone = self._tokenize([*starts, "\n", *("\n" + start for start in starts)])
        line_break = alone[len(starts)]
        joined = all(alone[len(starts) + 1 + at] == line_break + alone[at] for at in range(len(starts)))
        return joined and alone[0] != alone[1]


def _from_stretches(pair: RenderedPair, pieces: Iterator[_Ids]) -> tuple[_Ids, list[list[_Ids]]]:
    return next(pieces), [[next(pieces) for _ in side.cuts] for side in pair.sides]


def _cut_by_common_beginning(sides: Sequence[Sequence[_Ids]]) -> tuple[_Ids, list[list[_Ids]], bool]:
    """Cut each side's last token list where the others, one for each cut, stop agreeing with it.

    Returns the prompt, the stretches of both answers, and whether any cut's tokens changed when more text followed.
    """
    ends = [[_common_length(cut, whole) for cut in cuts] for *cuts, whole in sides]
    changed = any(end < len(cut) for side, cuts in zip(sides, ends) for cut, end in zip(side, cuts))
    # both answers follow one prompt: the shorter of what the two sides have in common with it
    start = min(cuts[0] for cuts in ends)
    answers = []
    for (*_, whole), cuts in zip(sides, ends):
        # a later cut may agree for less than an earlier one; then its stretch is empty, never negative
        bounds = list(accumulate([start, *cuts[1:], len(whole)], max))
        answers.append([whole[begin:end] for begin, end in zip(bounds, bounds[1:])])
    return list(sides[0][0][:start]), answers, changed


def _common_length(ids: _Ids, others: _Ids) -> int:
    return next((at for at, (a, b) in enumerate(zip(ids, others)) if a != b), min(len(ids), len(others)))
