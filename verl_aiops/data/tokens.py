"""From rendered conversations to the tokens of a row: one prompt, and answers that begin at the same token.

Prompt and answer meet on tokens. Where a tokenizer would merge the prompt's end with the answer's beginning, the two
are tokenised apart, so that the prompt keeps the tokens it has when the model generates. Tokenizers that mark the
start of every text (older SentencePiece ones) cannot be used so; and some templates' generation prompts do not come
back in the rendered conversation. In both cases the prompt is what its tokens have in common with those of the whole,
as in TRL, and the row is marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import Any

from verl_aiops.data.errors import PreferenceDataError, RowFault
from verl_aiops.data.kept_text import check_keeps_text

__all__ = ["EncodedRow", "RenderedRow", "RowTokens", "Side"]

_Ids = list[int]


@dataclass(slots=True)
class EncodedRow:
    """Token ids as lists of int, of one prompt and one answer or more; the masks, as long as their answers, hold 1 on
    tokens that are trained.

    `notes`: see `notes.NOTES`.
    """

    prompt_ids: list[int]
    answers_ids: list[list[int]]
    answers_masks: list[list[int]]
    prompt_end_changed: bool
    eos_appended: bool
    notes: frozenset[str] = frozenset()

    @property
    def chosen_ids(self) -> list[int]:
        """Of a pair, as are the next three."""
        return self.answers_ids[0]

    @property
    def rejected_ids(self) -> list[int]:
        return self.answers_ids[1]

    @property
    def chosen_mask(self) -> list[int]:
        return self.answers_masks[0]

    @property
    def rejected_mask(self) -> list[int]:
        return self.answers_masks[1]


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
class RenderedRow:
    """A side for each answer of a row: of a pair the chosen and the rejected one.

    `apart`: prompt and stretches are tokenised one by one; else each side's cuts and whole are, and compared.
    `names`: what the answers are called in faults; two of different `ranks` must not be equal.
    """

    sides: tuple[Side, ...]
    names: tuple[str, ...]
    ranks: tuple[float, ...]
    is_text: bool
    apart: bool
    notes: frozenset[str]

    def texts(self) -> list[str]:
        """What is tokenised, in the order in which `RowTokens` takes it up again."""
        if self.apart:
            return [self.sides[0].cuts[0], *(text for side in self.sides for text in side.stretches())]
        return [text for side in self.sides for text in (*side.cuts, side.whole)]


class RowTokens:
    """Tokenises rendered rows with one tokenizer.

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

    def rendered(
        self,
        sides: Sequence[Side],
        notes: Iterable[str],
        names: tuple[str, ...],
        ranks: tuple[float, ...],
        *,
        is_text: bool,
    ) -> RenderedRow:
        apart = self._continues and all(side.exact and self._parts(side) for side in sides)
        return RenderedRow(tuple(sides), names, ranks, is_text, apart, frozenset(notes))

    def encode(self, rows: Sequence[RenderedRow | RowFault]) -> list[EncodedRow | RowFault]:
        """One result a row, in order; faults stay where they are. One call to the tokenizer for all texts: a fast
        tokenizer then uses all cores, and calls cost more than short texts do.

        Raises:
            PreferenceDataError: the tokenizer loses text, or does not know its own end-of-sequence token.
        """
        texts = [text for row in rows if isinstance(row, RenderedRow) for text in row.texts()]
        if texts and not self._text_checked:
            check_keeps_text(self._tokenizer, texts)
            self._text_checked = True
        pieces = iter(self._tokenize(texts))
        return [self._assemble(row, pieces) if isinstance(row, RenderedRow) else row for row in rows]

    def _parts(self, side: Side) -> bool:
        """Whether no token can reach across a cut: special tokens and line breaks before it, no white space after."""
        return all(
            cut.endswith(self._barriers) and not after[:1].isspace() for cut, after in zip(side.cuts, side.stretches())
        )

    def _assemble(self, row: RenderedRow, pieces: Iterator[_Ids]) -> EncodedRow | RowFault:
        if row.apart:
            prompt, answers = _from_stretches(row, pieces)
            changed = False
        else:
            sides = [[next(pieces) for _ in range(len(side.cuts) + 1)] for side in row.sides]
            prompt, answers, changed = _cut_by_common_beginning(sides)
            # Tokens merge across a cut. With a tokenizer whose stretches can be joined they need not: the model meets
            # the prompt's own tokens when it generates, so it shall meet them here.
            if changed and self._continues and all(side.exact for side in row.sides):
                row.apart, changed = True, False
                prompt, answers = _from_stretches(row, iter(self._tokenize(row.texts())))
        if row.is_text and prompt[: len(self._front)] != self._front:
            prompt = self._front + prompt
        if not prompt:
            return RowFault(
                f"{' and '.join(row.names)} share no prompt token" if len(row.names) > 1 else "the prompt has no token"
            )
        answers_ids = [[token for stretch in answer for token in stretch] for answer in answers]
        for side, ids in zip(row.sides, answers_ids):
            if (row.is_text or side.eos_appended) and ids[-1:] != [self._tokenizer.eos_token_id]:
                raise PreferenceDataError(
                    f"the tokenizer does not read its end-of-sequence token {self._tokenizer.eos_token!r} as one token"
                )
        for one, other in combinations(range(len(answers_ids)), 2):
            if answers_ids[one] == answers_ids[other] and row.ranks[one] != row.ranks[other]:
                return RowFault(f"{row.names[one]} and {row.names[other]} are equal once rendered (the same token ids)")
        # trained and untrained stretches take turns, a trained one first
        masks = [[int(place % 2 == 0) for place, stretch in enumerate(answer) for _ in stretch] for answer in answers]
        eos_appended = any(side.eos_appended for side in row.sides)
        return EncodedRow(prompt, answers_ids, masks, changed, eos_appended, row.notes)

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


def _from_stretches(row: RenderedRow, pieces: Iterator[_Ids]) -> tuple[_Ids, list[list[_Ids]]]:
    return next(pieces), [[next(pieces) for _ in side.cuts] for side in row.sides]


def _cut_by_common_beginning(sides: Sequence[Sequence[_Ids]]) -> tuple[_Ids, list[list[_Ids]], bool]:
    """Cut each side's last token list where the others, one for each cut, stop agreeing with it.

    Returns the prompt, the stretches of all answers, and whether any cut's tokens changed when more text followed.
    """
    ends = [[_common_length(cut, whole) for cut in cuts] for *cuts, whole in sides]
    changed = any(end < len(cut) for side, cuts in zip(sides, ends) for cut, end in zip(side, cuts))
    # all answers follow one prompt: the shortest of what the sides have in common with it
    start = min(cuts[0] for cuts in ends)
    answers = []
    for (*_, whole), cuts in zip(sides, ends):
        # a later cut may agree for less than an earlier one; then its stretch is empty, never negative
        bounds = list(accumulate([start, *cuts[1:], len(whole)], max))
        answers.append([whole[begin:end] for begin, end in zip(bounds, bounds[1:])])
    return list(sides[0][0][:start]), answers, changed


def _common_length(ids: _Ids, others: _Ids) -> int:
    return next((at for at, (a, b) in enumerate(zip(ids, others)) if a != b), min(len(ids), len(others)))
