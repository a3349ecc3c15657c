"""Reasoning blocks: the markers that models and templates put around what is thought before an answer, and the answer
without them.

Which markers a model has is read off its chat template and its added tokens, and whether a block is open already when
the model begins to write off the rendered generation prompt. The table below is the only place where markers stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "ANY",
    "CHOICES",
    "MARKERS",
    "NONE",
    "Found",
    "Markers",
    "Visible",
    "generation_prompt",
    "is_block",
    "reasoning_of",
    "reward_settings",
    "visible",
]

NONE, ANY = "none", "any"
MAX_BLOCKS = 16
"""Blocks before one answer; whoever opens more is not thinking."""


class Markers(NamedTuple):
    """How one family marks its reasoning.

    Attributes:
        open: begins a block.
        close: ends it.
        before: what may stand before each block and before the answer, where the model writes its turn in parts.
        answers: what may stand before the answer, once a block is over; without ``before`` only then.
        ends: what may stand after it.
        sign: in the chat template or among the added tokens of models that have these markers; default ``close``.
    """

    open: str
    close: str
    before: str = ""
    answers: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    sign: str = ""


MARKERS: dict[str, Markers] = {
    # gpt-oss
    "harmony": Markers(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        before="<|start|>assistant",
        answers=(
            "<|channel|>final<|message|>",
            "<|channel|>final <|constrain|>json<|message|>",
            "<|channel|>final <|constrain|>JSON<|message|>",
        ),
        sign="<|channel|>",
    ),
    # Gemma 4
    "channel": Markers("<|channel>", "<channel|>"),
    # Magistral
    "THINK": Markers("[THINK]", "[/THINK]"),
    # Seed-OSS
    "seed": Markers("<seed:think>", "</seed:think>"),
    # Command A Reasoning
    "cohere": Markers(
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        answers=("<|START_RESPONSE|>", "<|START_TEXT|>"),
        ends=("<|END_RESPONSE|>", "<|END_TEXT|>"),
    ),
    # Kimi
    "kimi": Markers("◁think▷", "◁/think▷"),
    # EXAONE Deep
    "thought": Markers("<thought>", "</thought>"),
    "thinking": Markers("<thinking>", "</thinking>"),
    "reasoning": Markers("<reasoning>", "</reasoning>"),
    # Qwen, DeepSeek, GLM, Nemotron, LFM and most others; ERNIE, Granite and Hunyuan put the answer between tags
    "think": Markers("<think>", "</think>", answers=("<response>", "<answer>"), ends=("</response>", "</answer>")),
}

CHOICES = (NONE, ANY, *MARKERS)


class Visible(NamedTuple):
    """A text without its reasoning.

    Attributes:
        text: what stands after the blocks; "" where the last block is not closed.
        hidden: characters that were left out, markers included.
        cut: whether a block was not closed.
    """

    text: str
    hidden: int
    cut: bool


def visible(text: str, reasoning: str, opened: bool | None = False) -> Visible:
    """What a text says after the reasoning blocks that it begins with; never raises, linear in the text's length.

    Only what stands before the answer is reasoning: a block after it or inside it stays, and so does what the first
    closing marker leaves of nested ones.

    Args:
        text: what a model wrote, after its generation prompt.
        reasoning: a name of `MARKERS`, ``any`` for all of them, ``none`` for a text as it is.
        opened: whether the generation prompt opens a block, so that the text begins within one; None where that is not
            known: a closing marker that nothing opened then tells.
    """
    if reasoning == NONE:
        return Visible(text, 0, False)
    known = tuple(MARKERS.values()) if reasoning == ANY else (MARKERS[reasoning],)
    at = blocks = 0
    if opened or opened is None and _closes_first(text, known):
        closings = [(found, mark.close) for mark in known if (found := text.find(mark.close)) >= 0]
        if not closings:
            return Visible("", len(text), True)
        found, close = min(closings)
        at, blocks = found + len(close), 1
    while opening := _opening(text, at, known):
        start, mark = opening
        found = text.find(mark.close, start)
        if found < 0:
            return Visible("", len(text), True)
        at, blocks = found + len(mark.close), blocks + 1
        if blocks > MAX_BLOCKS:
            return Visible("", len(text), False)
    start, end = _between_answer_marks(text, at, known, blocks)
    return Visible(text[start:end], len(text) - (end - start), False)


def _closes_first(text: str, known: tuple[Markers, ...]) -> bool:
    for mark in known:
        closing = text.find(mark.close)
        # an end of turn is no sign of a block
        if closing >= 0 and not mark.before and text.find(mark.open, 0, closing) < 0:
            return True
    return False


def _skipped(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _opening(text: str, at: int, known: tuple[Markers, ...]) -> tuple[int, Markers] | None:
    """Where the block's text begins and whose it is, if one opens here."""
    at = _skipped(text, at)
    for mark in known:
        place = at + len(mark.before) if mark.before and text.startswith(mark.before, at) else at
        if text.startswith(mark.open, place):
            return place + len(mark.open), mark
    return None


def _between_answer_marks(text: str, at: int, known: tuple[Markers, ...], blocks: int) -> tuple[int, int]:
    start = _skipped(text, at)
    for mark in known:
        place = start + len(mark.before) if mark.before and text.startswith(mark.before, start) else start
        for lead in mark.answers if blocks or mark.before else ():
            if text.startswith(lead, place):
                end = len(text.rstrip())
                closing = next((close for close in mark.ends if text.endswith(close, place, end)), "")
                return place + len(lead), end - len(closing) if closing else len(text)
    return at, len(text)


def is_block(text: str) -> bool:
    """Whether a text is nothing but reasoning blocks."""
    known = tuple(MARKERS.values())
    return _opening(text, 0, known) is not None and not visible(text, ANY).text.strip() and not visible(text, ANY).cut


class Found(NamedTuple):
    """What a model's template and tokenizer say: the name in `MARKERS`, and whether the generation prompt opens one."""

    name: str
    opened: bool


def reward_settings(found: Found | None) -> dict[str, Any]:
    """The settings of the triage reward (`rewards.settings.RewardSettings`) that take a model's blocks out."""
    if found is None:
        return {}
    return {"reasoning": found.name, **({"reasoning_opened": True} if found.opened else {})}


def reasoning_of(tokenizer: Any, template_arguments: Mapping[str, Any] | None = None) -> Found | None:
    """The markers of a model, None where its template and tokenizer know none.

    Args:
        tokenizer: with the chat template of the run.
        template_arguments: as the prompts are rendered with.
    """
    template = tokenizer.chat_template or ""
    texts = [*template.values()] if isinstance(template, Mapping) else [template]
    texts += [str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()]
    for name, mark in MARKERS.items():
        sign = mark.sign or mark.close
        if any(sign in text for text in texts):
            prompt = generation_prompt(tokenizer, template_arguments)
            return Found(name, prompt.rfind(mark.open) > prompt.rfind(mark.close))
    return None


def generation_prompt(tokenizer: Any, template_arguments: Mapping[str, Any] | None = None) -> str:
    """What the template writes after a user's message for the model to go on from; "" where it refuses one."""
    asked = [{"role": "user", "content": _ASKED}]
    try:
        text = tokenizer.apply_chat_template(
            asked, tokenize=False, add_generation_prompt=True, **(template_arguments or {})
        )
    except Exception:  # a template is a program of its own; whoever renders the real prompts says what it raises
        return ""
    return text.rpartition(_ASKED)[2]


_ASKED = "verlAiopsQuestionStandsHere"
