"""From preference rows to tokens: prompt tokens that both answers share, and answer tokens with their masks.

A prompt of messages is rendered by the chat template with its generation prompt, and an answer is what the template
renders for prompt and answer together after that: its text, the end-of-turn token and what follows it (TRL's
DPOTrainer takes the same tokens), but for empty reasoning blocks of the template's own (`leads`). A prompt of text is
tokenised as it is, with the special tokens the tokenizer puts in front; its answer ends with the end-of-sequence token.

Prompt and answer meet on tokens. Where a tokenizer would merge the prompt's end with the answer's beginning, the two
are tokenised apart, so that the prompt keeps the tokens it has when the model generates. Tokenizers that mark the
start of every text (older SentencePiece ones) cannot be used so; and some templates' generation prompts do not come
back in the rendered conversation. In both cases the prompt is what its tokens have in common with those of the whole,
as in TRL, and the row is marked.

What an answer's last message holds is found in what is trained, or the row is a fault; what else a template leaves out
is noted.
"""

import os.path
import re
from dataclasses import dataclass
from itertools import accumulate

from verl_aiops.data.errors import PreferenceDataError, RowFault
from verl_aiops.data.kept import check_answer, check_others, check_tools, missing
from verl_aiops.data.kept_text import check_keeps_text
from verl_aiops.data.leads import Leads
from verl_aiops.data.rows import PreferenceRow
from verl_aiops.data.template import ChatTemplate, joined

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
class _Side:
    """Prompt and one answer as text. `cuts` are beginnings of `whole`: the prompt, then by turns the ends of trained
    and of untrained stretches. `exact` is False where a cut only begins like `whole`."""

    whole: str
    cuts: list[str]
    exact: bool = True
    eos_appended: bool = False

    def stretches(self):
        """The texts between the cuts: trained, untrained, trained, ..."""
        bounds = [len(cut) for cut in self.cuts] + [len(self.whole)]
        return [self.whole[start:end] for start, end in zip(bounds, bounds[1:])]


@dataclass(slots=True)
class _Job:
    """What one row needs from the tokenizer: prompt and stretches `apart`, or each side's cuts and whole."""

    sides: tuple[_Side, _Side]
    is_text: bool
    apart: bool
    notes: frozenset[str]

    def texts(self):
        if self.apart:
            return [self.sides[0].cuts[0], *(text for side in self.sides for text in side.stretches())]
        return [text for side in self.sides for text in (*side.cuts, side.whole)]


class PairRenderer:
    """Renders and tokenises batches of preference rows with one tokenizer.

    `chat_template` replaces the tokenizer's own; `template_arguments` are handed to it on every call. Raises ValueError
    for template arguments that are set here, PreferenceDataError for a tokenizer without an end-of-sequence token.
    """

    def __init__(self, tokenizer, chat_template: str | None = None, template_arguments: dict | None = None):
        taken = sorted(set(template_arguments or {}) & set(RESERVED_TEMPLATE_ARGUMENTS))
        if taken:
            raise ValueError(f"data.apply_chat_template_kwargs may not hold {', '.join(taken)}: set by the data set")
        if tokenizer.eos_token_id is None:
            raise PreferenceDataError("the tokenizer has no end-of-sequence token; answers could not end")
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, chat_template, template_arguments)
        ends = self._template.control.spellings
        self._barriers = ("\n", *ends)
        self._end_of_turn = re.compile("|".join(re.escape(token) for token in sorted(ends, key=len, reverse=True)))
        self._tried = False
        self._leads = Leads(self._template.render)
        self._front = self._tokens_in_front()
        self._continues = self._continues_text()

    def encode(self, rows: list[PreferenceRow]) -> list[EncodedPair | RowFault]:
        """One result a row, in order: the encoded pair, or the fault that its rendering showed."""
        jobs = []
        for row in rows:
            try:
                jobs.append(self._text_job(row) if isinstance(row.prompt, str) else self._chat_job(row))
            except RowFault as fault:
                jobs.append(fault)
            except RecursionError:
                jobs.append(RowFault("is nested too deeply"))
        texts = [text for job in jobs if isinstance(job, _Job) for text in job.texts()]
        if texts and not self._tried:
            check_keeps_text(self._tokenizer, texts)
            self._tried = True
        pieces = iter(self._tokenize(texts))
        return [self._assemble(job, pieces) if isinstance(job, _Job) else job for job in jobs]

    # ---- text

    def _text_job(self, row):
        eos = self._tokenizer.eos_token
        wholes = [
            row.prompt + (answer if answer.endswith(eos) else answer + eos) for answer in (row.chosen, row.rejected)
        ]
        notes = set(row.notes)
        if self._template.exists:
            notes.add("text")
        return self._job([_Side(whole, [row.prompt]) for whole in wholes], notes, is_text=True)

    def _chat_job(self, row):
        if not self._template.exists:
            raise PreferenceDataError(
                "the data holds messages, but the tokenizer has no chat template: use a model that has one, "
                "give a chat_template, or give prompts and answers as plain texts"
            )
        notes = set(row.notes)
        self._template.clock_read = False
        tools = self._template.harmless_tools(row.tools, notes.add)
        messages = self._template.harmless(row.prompt, notes.add)
        started = messages[-1]["role"] == "assistant"
        if started:
            notes.add("continued")
        prompt = self._template.render(
            messages, tools, add_generation_prompt=not started, continue_final_message=started
        )
        check_others(messages, prompt, "prompt", notes.add)
        check_tools(tools, prompt, notes.add)
        answers = [self._template.harmless(answer, notes.add) for answer in (row.chosen, row.rejected)]
        sides = [self._chat_side(messages, prompt, answer, tools, notes.add) for answer in answers]
        for side, answer in zip(sides, answers):
            if self._leads.leave_out(side, messages, answer, tools):
                notes.add("empty_reasoning")
        if self._template.clock_read:
            notes.add("clock")
        return self._job(sides, notes, is_text=False)

    def _chat_side(self, prompt, prompt_text, answer, tools, note):
        whole = joined(prompt, answer)
        first = len(whole) - len(answer)  # where the answer begins
        side = _Side(self._template.render(whole, tools), [])
        turns = [place for place, message in enumerate(answer) if message["role"] == "assistant"]
        for place in turns:
            before = whole[: first + place]
            start = self._template.render(before, tools, add_generation_prompt=True) if place else prompt_text
            if not side.whole.startswith(start):
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

    def _check_turns(self, side, turns, answer, whole, tools, note):
        """Note, or raise RowFault for, what of the answer's messages is not in their rendered turns."""
        cuts = [len(os.path.commonprefix([cut, side.whole])) for cut in side.cuts] + [len(side.whole)]
        for place, begin, end in zip(turns, cuts[::2], cuts[1::2]):
            lost = missing(answer[place], side.whole[begin:end])
            before = whole[: len(whole) - len(answer) + place]
            if lost and before and before[-1]["role"] != "assistant":
                # what the generation prompt has written already, as some do the mark that opens the thinking
                begin = len(os.path.commonprefix([self._template.render(before, tools), side.whole]))
                lost = missing(answer[place], side.whole[begin:end])
            check_answer(lost, answer[place], last=place == turns[-1], note=note)
        check_others([message for message in answer if message["role"] != "assistant"], side.whole, "answer", note)

    def _ends_turn(self, side, content):
        """Whether a special token (the end of sequence, or the template's own end of turn) follows the last answer."""
        last = side.whole[len(side.cuts[-1]) :] if side.whole.startswith(side.cuts[-1]) else side.whole
        at = last.find(content) if content else -1  # the first place: a short answer may come again in the end token
        return bool(self._end_of_turn.search(last, at + len(content) if at >= 0 else 0))

    def _beginning(self, text, whole, messages):
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

    # ---- tokens

    def _job(self, sides, notes, is_text):
        apart = self._continues and all(side.exact and self._parts(side) for side in sides)
        return _Job(tuple(sides), is_text, apart, frozenset(notes))

    def _parts(self, side):
        """Whether no token can reach across a cut: special tokens and line breaks before it, no white space after."""
        return all(
            cut.endswith(self._barriers) and not after[:1].isspace() for cut, after in zip(side.cuts, side.stretches())
        )

    def _assemble(self, job, pieces):
        if job.apart:
            prompt, answers, changed = self._from_stretches(job, pieces)
        else:
            sides = [[next(pieces) for _ in range(len(side.cuts) + 1)] for side in job.sides]
            prompt, answers, changed = _cut_by_common_beginning(sides)
            if changed and self._continues and all(side.exact for side in job.sides):
                job.apart = True
                prompt, answers, changed = self._from_stretches(job, iter(self._tokenize(job.texts())))
        if job.is_text and prompt[: len(self._front)] != self._front:
            prompt = self._front + prompt
        if not prompt:
            return RowFault("chosen and rejected share no prompt token")
        ids = [[token for stretch in answer for token in stretch] for answer in answers]
        masks = [[int(place % 2 == 0) for place, stretch in enumerate(answer) for _ in stretch] for answer in answers]
        for side, answer in zip(job.sides, ids):
            if (job.is_text or side.eos_appended) and answer[-1:] != [self._tokenizer.eos_token_id]:
                raise PreferenceDataError(
                    f"the tokenizer does not read its end-of-sequence token {self._tokenizer.eos_token!r} as one token"
                )
        if ids[0] == ids[1]:
            return RowFault("chosen and rejected are equal once rendered (the same token ids)")
        eos_appended = any(side.eos_appended for side in job.sides)
        return EncodedPair(prompt, *ids, *masks, prompt_end_changed=changed, eos_appended=eos_appended, notes=job.notes)

    @staticmethod
    def _from_stretches(job, pieces):
        return next(pieces), [[next(pieces) for _ in side.cuts] for side in job.sides], False

    def _tokenize(self, texts):
        if not texts:
            return []
        return self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

    def _tokens_in_front(self):
        """The special tokens that the tokenizer puts before a text (often one BOS, often none)."""
        bare = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self._tokenizer("a")["input_ids"]
        places = (at for at in range(len(full)) if full[at : at + len(bare)] == bare)
        return full[: next(places, 0)]

    def _continues_text(self):
        """Whether a text's tokens are the same at the start and after other text, so that stretches can be joined."""
        starts = ("a", " a", "Z", "7", "{", '"', "'s", "\u00e9", "\u4e2d")
        alone = self._tokenize([*starts, "\n", *("\n" + start for start in starts)])
        line_break = alone[len(starts)]
        joined = all(alone[len(starts) + 1 + at] == line_break + alone[at] for at in range(len(starts)))
        return joined and alone[0] != alone[1]


def _cut_by_common_beginning(sides):
    """Cut each side's last token list where the others, one for each cut, stop agreeing with it.

    Returns the prompt, the stretches of both answers, and whether any cut's tokens changed when more text followed.
    """
    ends = [[_common_length(cut, whole) for cut in cuts] for *cuts, whole in sides]
    changed = any(end < len(cut) for side, cuts in zip(sides, ends) for cut, end in zip(side, cuts))
    start = min(cuts[0] for cuts in ends)
    answers = []
    for (*_, whole), cuts in zip(sides, ends):
        bounds = list(accumulate([start, *cuts[1:], len(whole)], max))
        answers.append([whole[begin:end] for begin, end in zip(bounds, bounds[1:])])
    return sides[0][0][:start], answers, changed


def _common_length(ids, others):
    return next((at for at, (a, b) in enumerate(zip(ids, others)) if a != b), min(len(ids), len(others)))
