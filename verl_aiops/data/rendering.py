"""From preference rows to the conversations of their answers as text, cut where what is trained begins and ends.

A prompt of messages is rendered by the chat template with its generation prompt, and an answer is what the template
renders for prompt and answer together after that: its text, the end-of-turn token and what follows it (TRL's
DPOTrainer takes the same tokens), but for empty reasoning blocks of the template's own (`leads`). A prompt of text is
taken as it is; its answer ends with the end-of-sequence token. `tokens` makes the row's tokens of them.

What an answer's last message holds is found in what is trained, or the row is a fault; what else a template leaves out
is noted.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable
from typing import Any

from verl_aiops.data.errors import PreferenceDataError, RowFault
from verl_aiops.data.kept import check_answer, check_others, check_tools, missing
from verl_aiops.data.leads import Leads
from verl_aiops.data.rows import PreferenceRow
from verl_aiops.data.template import ChatTemplate, joined
from verl_aiops.data.tokens import EncodedRow, RenderedRow, RowTokens, Side

RESERVED_TEMPLATE_ARGUMENTS = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tools",
)
_Note = Callable[[str], None]


class PairRenderer:
    """Renders and tokenises batches of preference rows with one tokenizer.

    `chat_template` replaces the tokenizer's own; `template_arguments` are handed to it on every call. Raises ValueError
    for template arguments that are set here, PreferenceDataError for a tokenizer without an end-of-sequence token.
    `plain_is_meant`: the run asked for rows of text without the template that the tokenizer has.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | None = None,
        template_arguments: dict | None = None,
        *,
        plain_is_meant: bool = False,
    ):
        taken = sorted(set(template_arguments or {}) & set(RESERVED_TEMPLATE_ARGUMENTS))
        if taken:
            raise ValueError(f"data.apply_chat_template_kwargs may not hold {', '.join(taken)}: set by the data set")
        if tokenizer.eos_token_id is None:
            raise PreferenceDataError("the tokenizer has no end-of-sequence token; answers could not end")
        self._tokenizer = tokenizer
        self._text_note = "text_plain" if plain_is_meant else "text"
        self._template = ChatTemplate(tokenizer, chat_template, template_arguments)
        ends = self._template.control.spellings
        self._end_of_turn = re.compile("|".join(re.escape(token) for token in sorted(ends, key=len, reverse=True)))
        self._leads = Leads(self._template.render)
        self._tokens = RowTokens(tokenizer, ends)

    def encode(self, rows: list[PreferenceRow]) -> list[EncodedRow | RowFault]:
        """One result a row, in order: the encoded row, or the fault that its rendering showed."""
        rendered: list[RenderedRow | RowFault] = []
        for row in rows:
            try:
                rendered.append(self._text_row(row) if isinstance(row.prompt, str) else self._chat_row(row))
            except RowFault as fault:
                rendered.append(fault)
            except RecursionError:
                rendered.append(RowFault("is nested too deeply"))
        return self._tokens.encode(rendered)

    # ---- text

    def _text_row(self, row: PreferenceRow) -> RenderedRow:
        prompt, *answers = row.texts()
        eos = self._tokenizer.eos_token
        sides = [Side(prompt + (answer if answer.endswith(eos) else answer + eos), [prompt]) for answer in answers]
        notes = set(row.notes)
        if self._template.exists:
            notes.add(self._text_note)
        return self._tokens.rendered(sides, notes, row.names, row.ranks, is_text=True)

    # ---- messages

    def _chat_row(self, row: PreferenceRow) -> RenderedRow:
        if not self._template.exists:
            raise PreferenceDataError(
                "the data holds messages, but the tokenizer has no chat template: use a model that has one, "
                "give a chat_template, or give prompts and answers as plain texts (without data.text_pairs=chat and "
                "data.system_key, in columns prompt, chosen and rejected)"
            )
        notes = set(row.notes)
        self._template.clock_read = False
        tools = self._template.harmless_tools(row.tools, notes.add)
        given, *given_answers = row.messages()
        messages = self._template.harmless(given, notes.add)
        started = messages[-1]["role"] == "assistant"
        if started:
            notes.add("continued")
        prompt = self._template.render(
            messages, tools, add_generation_prompt=not started, continue_final_message=started
        )
        check_others(messages, prompt, "prompt", notes.add)
        check_tools(tools, prompt, notes.add)
        answers = [self._template.harmless(answer, notes.add) for answer in given_answers]
        sides = [self._chat_side(messages, prompt, answer, tools, notes.add) for answer in answers]
        for side, answer in zip(sides, answers):
            if self._leads.leave_out(side, messages, answer, tools):
                notes.add("empty_reasoning")
        if self._template.clock_read:
            notes.add("clock")
        return self._tokens.rendered(sides, notes, row.names, row.ranks, is_text=False)

    def _chat_side(
        self, prompt: list[dict], prompt_text: str, answer: list[dict], tools: list[dict] | None, note: _Note
    ) -> Side:
        """An answer after its prompt, cut at the beginning and the end of each of the answer's assistant turns.

        A template renders conversations, not turns, and may render a turn otherwise once more follows. So each cut is a
        conversation that stops there, rendered by itself, and must come back at the beginning of the whole.
        """
        whole = joined(prompt, answer)
        first = len(whole) - len(answer)  # where the answer begins
        side = Side(self._template.render(whole, tools), [])
        turns = [place for place, message in enumerate(answer) if message["role"] == "assistant"]
        for place in turns:
            before = whole[: first + place]
            start = self._template.render(before, tools, add_generation_prompt=True) if place else prompt_text
            if not side.whole.startswith(start):
                # The generation prompt does not come back in the conversation. What is in front of it must, or the
                # answer cannot be told from the prompt; the border itself is then found on tokens (`tokens`).
                side.exact = False
                if first < len(prompt):
                    raise RowFault(
                        "the chat template renders the started assistant message of the prompt differently once the "
                        "answer follows, so that the two cannot be one turn"
                    )
                self._beginning(self._template.render(before, tools), side.whole, before)
            side.cuts.append(start)
            if place < len(answer) - 1:
                ended = whole[: first + place + 1]
                side.cuts.append(self._beginning(self._template.render(ended, tools), side.whole, ended))
        self._check_turns(side, turns, answer, whole, tools, note)
        if not self._ends_turn(side, answer[-1]["content"].strip()):
            side.whole += self._tokenizer.eos_token
            side.eos_appended = True
        return side

    def _check_turns(
        self,
        side: Side,
        turns: list[int],
        answer: list[dict],
        whole: list[dict],
        tools: list[dict] | None,
        note: _Note,
    ) -> None:
        """Note, or raise RowFault for, what of the answer's messages is not in their rendered turns."""
        cuts = [_shared(cut, side.whole) for cut in side.cuts] + [len(side.whole)]
        for place, begin, end in zip(turns, cuts[::2], cuts[1::2]):
            lost = missing(answer[place], side.whole[begin:end])
            before = whole[: len(whole) - len(answer) + place]
            if lost and before and before[-1]["role"] != "assistant":
                # what the generation prompt has written already, as some do the mark that opens the thinking
                begin = _shared(self._template.render(before, tools), side.whole)
                lost = missing(answer[place], side.whole[begin:end])
            check_answer(lost, answer[place], last=place == turns[-1], note=note)
        check_others([message for message in answer if message["role"] != "assistant"], side.whole, "answer", note)

    def _ends_turn(self, side: Side, content: str) -> bool:
        """Whether a special token (the end of sequence, or the template's own end of turn) follows the last answer."""
        last = side.whole[len(side.cuts[-1]) :] if side.whole.startswith(side.cuts[-1]) else side.whole
        at = last.find(content) if content else -1  # the first place: a short answer may come again in the end token
        return bool(self._end_of_turn.search(last, at + len(content) if at >= 0 else 0))

    def _beginning(self, text: str, whole: str, messages: list[dict]) -> str:
        """`text`, rendered from the first `messages`, as it stands at the beginning of `whole`, or RowFault."""
        if whole.startswith(text):
            return text
        # Some templates end a conversation, not a turn, with the end-of-sequence token (Phi-3's).
        shorter = text.removesuffix(self._tokenizer.eos_token)
        if whole.startswith(shorter):
            return shorter
        same = next((at for at, (a, b) in enumerate(zip(text, whole)) if a != b), min(len(text), len(whole)))
        raise RowFault(
            f"the chat template renders the first {len(messages)} message(s) differently once more follow (alone: "
            f"...{text[max(0, same - 20) : same + 40]!r}, followed: ...{whole[max(0, same - 20) : same + 40]!r}), so "
            "trained tokens cannot be told from the rest. Templates that strip the thinking of earlier turns do so: "
            "put the earlier turns into the prompt, strip it from the data, or give a chat_template that keeps it"
        )


def _shared(text: str, whole: str) -> int:
    """How many letters both begin with."""
    # nearly always all of the text, which this sees at once and a loop over its letters does not
    return len(text) if whole.startswith(text) else len(os.path.commonprefix([text, whole]))
