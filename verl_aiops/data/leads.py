"""Reasoning blocks that a chat template writes of its own between the generation prompt and an answer, such as Qwen3's
empty ``<think></think>``: nobody gave them as an answer and generation has no need of them, so they are left out.

The prompt then keeps the tokens that it has when the model generates, and what is learnt after it is the answer alone.
What an answer itself thinks is trained like the rest of it, and so is what a model has to write before any answer: the
end of a block that the generation prompt opens, or the name of a channel.
"""

from collections.abc import Callable

from verl_aiops.data.errors import RowFault
from verl_aiops.reasoning import is_block

_SENTINEL = "verlAiopsAnswerStandsHere"
_PLAIN = {"role", "content", "name"}


class Leads:
    """Takes such blocks out of rendered answers.

    Args:
        render: from messages and tools to the conversation as the template writes it.
    """

    def __init__(self, render: Callable[[list, list | None], str]):
        self._render = render
        self._known: dict[tuple, str] = {}

    def leave_out(self, side, prompt: list, answer: list, tools: list | None) -> bool:
        """Change ``side.whole`` and ``side.cuts`` (see `tokens.Side`) in place; whether anything was left out."""
        if prompt[-1]["role"] == "assistant":
            return False
        found = False
        turns = [place for place, message in enumerate(answer) if message["role"] == "assistant"]
        for number, place in enumerate(turns):
            start = side.cuts[2 * number]
            lead = self._lead([*prompt, *answer[:place]], answer[place], tools, start)
            if lead and side.whole.startswith(start + lead):
                # the template's line break before the block stays
                start += lead[: len(lead) - len(lead.lstrip())]
                end = len(side.cuts[2 * number]) + len(lead)
                side.whole = start + side.whole[end:]
                side.cuts[2 * number + 1 :] = [start + cut[end:] for cut in side.cuts[2 * number + 1 :]]
                found = True
        return found

    def _lead(self, before: list, message: dict, tools: list | None, start: str) -> str:
        if any(value for field, value in message.items() if field not in _PLAIN):
            return ""
        key = (*(one["role"] for one in before), bool(tools), start[-32:])
        if key not in self._known:
            try:
                rendered = self._render([*before, {"role": "assistant", "content": _SENTINEL}], tools)
            except RowFault:
                rendered = ""
            lead, found, _ = rendered.removeprefix(start).partition(_SENTINEL)
            self._known[key] = lead if found and rendered.startswith(start) and is_block(lead) else ""
        return self._known[key]
