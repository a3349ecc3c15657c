"""Preference rows as a reward model reads them: whole conversations, rendered as they are when it scores (`scoring`).

What is trained is the score of a conversation's last token, whatever that is in the template: the end of the turn, or a
line break after it. Servers tokenise the text in one piece, so it is done here too. Prompt and answers are told apart
by the tokens that the conversations have in common with the rendered prompt, which decides nothing but what is counted,
and which rows may share a pass through the model.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from verl_aiops.data.errors import PreferenceDataError, RowFault
from verl_aiops.data.kept import check_answer, check_others, missing
from verl_aiops.data.kept_text import check_keeps_text
from verl_aiops.data.rows import PreferenceRow
from verl_aiops.data.scoring import scoring_text
from verl_aiops.data.template import ChatTemplate, joined
from verl_aiops.data.tokens import EncodedRow

__all__ = ["ScoredRenderer", "conversation_texts", "padding_token"]

_Note = Callable[[str], None]


def conversation_texts(
    tokenizer: Any, template: ChatTemplate, row: PreferenceRow, note: _Note
) -> tuple[list[dict], list[str]]:
    """The row's prompt, and the text of the conversation that each of its answers ends.

    A prompt and answers of plain text are one user's and one assistant's message.

    Raises:
        RowFault: the template refuses the messages, or leaves out what an answer holds; the row has tools.
    """
    if row.tools:
        raise RowFault("tools: a reward model is not shown them when it scores; remove the column")
    if isinstance(row.prompt, str):
        note("text_in_template")
        prompt = [{"role": "user", "content": row.prompt}]
        answers = [[{"role": "assistant", "content": text}] for text in row.texts()[1:]]
    else:
        prompt, *answers = row.messages()
    prompt = template.harmless(prompt, note)
    if prompt[-1]["role"] == "assistant":
        note("continued")
    texts = []
    for answer in answers:
        answer = template.harmless(answer, note)
        template.clock_read = False
        whole = joined(prompt, answer)
        text = scoring_text(tokenizer, whole, template)
        if template.clock_read:
            note("clock")
        _check(template, prompt, answer, template.render(whole), note)
        texts.append(text)
    return prompt, texts


def _check(template: ChatTemplate, prompt: list[dict], answer: list[dict], text: str, note: _Note) -> None:
    """Note, or raise RowFault for, what of the messages is not in `text`, the rendered conversation."""
    check_others(prompt, text, "prompt", note)
    check_others([message for message in answer if message["role"] != "assistant"], text, "answer", note)
    before = prompt[:-1] if prompt[-1]["role"] == "assistant" else prompt
    begin = len(os.path.commonprefix([template.render(before), text])) if before else 0
    for message in answer:
        if message["role"] == "assistant":
            check_answer(missing(message, text[begin:]), message, last=message is answer[-1], note=note)


class ScoredRenderer:
    """`rendering.PairRenderer` for reward models: the same rows, other tokens.

    Raises PreferenceDataError for a tokenizer without a chat template.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._text_checked = False
        if not self._template.exists:
            raise PreferenceDataError(
                "the tokenizer has no chat template, by which a reward model's conversations are rendered; use a model "
                "that has one"
            )

    def encode(self, rows: list[PreferenceRow]) -> list[EncodedRow | RowFault]:
        """One result a row, in order: the encoded row, or the fault that its rendering showed."""
        rendered: list[tuple[str, list[str], set[str]] | RowFault] = []
        for row in rows:
            notes = set(row.notes)
            try:
                prompt, texts = conversation_texts(self._tokenizer, self._template, row, notes.add)
                started = prompt[-1]["role"] == "assistant"
                begin = prompt[:-1] if started else prompt
                beginning = scoring_text(self._tokenizer, begin, self._template, ask=not started) if begin else ""
                rendered.append((beginning, texts, notes))
            except RowFault as fault:
                rendered.append(fault)
            except RecursionError:
                rendered.append(RowFault("is nested too deeply"))
        texts = [text for one in rendered if not isinstance(one, RowFault) for text in (one[0], *one[1])]
        if texts and not self._text_checked:
            check_keeps_text(self._tokenizer, texts)
            self._text_checked = True
        # all at once, with the tokenizer's own special tokens: `scoring.scoring_ids` of each
        ids = iter(self._tokenizer(texts, verbose=False)["input_ids"] if texts else ())
        return [
            one if isinstance(one, RowFault) else _encoded(next(ids), [next(ids) for _ in one[1]], one[2], row)
            for one, row in zip(rendered, rows)
        ]


def _encoded(
    beginning: list[int], wholes: list[list[int]], notes: set[str], row: PreferenceRow
) -> EncodedRow | RowFault:
    # every answer keeps one token at least, and so does the prompt
    common = min(_common_length(beginning, whole[:-1]) for whole in wholes)
    if not common:
        return RowFault(f"{' and '.join(row.names)} have no token in common with their prompt")
    for one, other in combinations(range(len(wholes)), 2):
        if wholes[one] == wholes[other] and row.ranks[one] != row.ranks[other]:
            return RowFault(f"{row.names[one]} and {row.names[other]} are the same conversation once rendered")
    answers = [whole[common:] for whole in wholes]
    return EncodedRow(
        prompt_ids=wholes[0][:common],
        answers_ids=answers,
        # nothing is trained token by token
        answers_masks=[[1] * len(answer) for answer in answers],
        prompt_end_changed=common < len(beginning),
        eos_appended=False,
        notes=frozenset(notes),
    )


def _common_length(ids: Sequence[int], others: Sequence[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(ids, others)) if a != b), min(len(ids), len(others)))


def padding_token(tokenizer: Any, last: set[int]) -> int | None:
    """A token to pad with that no conversation ends with, None where the tokenizer has none.

    transformers scores the last token that is not padding; where the template ends with the padding token, that would
    be another one than the servers score.

    Args:
        last: the ids that conversations end with.
    """
    special = sorted(token for token, text in tokenizer.added_tokens_decoder.items() if text.special)
    candidates = (tokenizer.pad_token_id, *special)
    return next((token for token in candidates if token is not None and token not in last), None)
