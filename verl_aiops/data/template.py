"""One chat template as all readers use it: what goes in, what must come out, and nothing that depends on the day."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property

from verl_aiops.data.control import ControlTokens
from verl_aiops.data.errors import RowFault

# What a template that asks for the date gets on every day: tokens of one file are the same tomorrow. The date is that
# of Llama 3's own template where it has no clock.
CLOCK = datetime(2024, 7, 26)
_SENTINEL = "verlAiopsAnswerStandsHere"


class ChatTemplate:
    """Renders messages that `messages.text_or_messages` has read.

    Args:
        tokenizer: of transformers.
        chat_template: a Jinja template instead of the tokenizer's own.
        arguments: more variables for the template.
    """

    def __init__(self, tokenizer, chat_template: str | None = None, arguments: dict | None = None):
        self.control = ControlTokens(tokenizer)
        self.exists = bool(chat_template or tokenizer.chat_template)
        self.clock_read = False
        self._tokenizer = tokenizer
        self._arguments = {"chat_template": chat_template, **(arguments or {})}
        if "strftime_now" in str(chat_template or tokenizer.chat_template):
            self._arguments = {"strftime_now": self._strftime_now, **self._arguments}

    def render(
        self,
        messages: Sequence[dict],
        tools: list[dict] | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> str:
        """The text of a conversation. Raises RowFault for what the template raises."""
        if any(message.get("tool_calls") for message in messages) and self._wants_arguments_as_text:
            messages = [_with_arguments_as_text(message) for message in messages]
        how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        try:
            text = self._apply(messages, tools, **how)
            text.encode("utf-8")  # JSON text inside a row may spell what UTF-8 cannot hold
            return text
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            raise RowFault(
                f"a message, call or tool holds half of a surrogate pair, U+{code:04X}; remove it"
            ) from error
        except Exception as error:  # a template is a program of its own: what it raises is not limited to some types
            roles = ", ".join(message["role"] for message in messages)
            raise RowFault(f"the chat template refuses the messages ({roles}): {error}") from error

    def harmless(self, messages: Sequence[dict], note: Callable[[str], None]) -> list[dict]:
        """The messages without special tokens in their texts: ends of turns go, others are broken up."""
        cleaned = []
        for message in messages:
            bare = self._without_end(message)
            if bare is not message:
                note("end_of_turn")
            safe = {"role": message["role"]} | {k: self.control.broken_up(v) for k, v in bare.items() if k != "role"}
            # what a message writes shall be read as text: a turn that it spells would be trained, or judged, as one
            if safe != bare:
                note("control_tokens")
            cleaned.append(safe)
        return cleaned

    def harmless_tools(self, tools: list[dict] | None, note: Callable[[str], None]) -> list[dict] | None:
        safe = self.control.broken_up(tools)
        if safe != tools:
            note("control_tokens")
        return safe

    def _without_end(self, message):
        """An assistant's message without the end of turn that its text spells at its end: the template writes it."""
        content = message["content"]
        if message["role"] != "assistant" or not content.rstrip().endswith(self._ends_of_turn):
            return message
        while (bare := content.rstrip()).endswith(self._ends_of_turn):
            content = bare.removesuffix(next(end for end in self._ends_of_turn if bare.endswith(end)))
        if not content.strip() and not message.get("tool_calls"):
            raise RowFault("an assistant message holds an end-of-turn token and nothing else")
        return {**message, "content": content}

    @cached_property
    def _ends_of_turn(self) -> tuple[str, ...]:
        """The end-of-sequence token, and what the template writes after an answer."""
        ends = {self._tokenizer.eos_token}
        try:
            talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SENTINEL}]
            after = self._apply(talk, None).rpartition(_SENTINEL)[2].lstrip()
            ends |= {token for token in self.control.spellings if token and after.startswith(token)}
        except Exception:  # a template that takes no such conversation
            pass
        return tuple(sorted(ends - {None, ""}, key=len, reverse=True))

    @cached_property
    def _wants_arguments_as_text(self) -> bool:
        """Whether the template joins a call's arguments to its text as they are, as DeepSeek's do.

        Others, most, make JSON of the object; servers hand them objects.
        """

        def rendered(arguments):
            call = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": arguments}}
            talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
            try:
                return self._apply(talk, None)
            except Exception:
                return None

        # joined to a text, an object shows in Python's spelling, with single quotes; made JSON of, it does not
        as_object = rendered({_SENTINEL: "x"})
        if as_object is not None and f"{{'{_SENTINEL}'" not in as_object:
            return False
        text = f'{{"{_SENTINEL}": "x"}}'
        return text in (rendered(text) or "")

    def _apply(self, messages, tools, **how):
        return self._tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **how, **self._arguments)

    def _strftime_now(self, pattern):
        self.clock_read = True
        return CLOCK.strftime(pattern)


def joined(prompt: list[dict], answer: list[dict]) -> list[dict]:
    """Prompt and answer as one conversation, in which an answer goes on with an assistant message that was started."""
    if prompt[-1]["role"] != "assistant":
        return prompt + answer
    started, first = prompt[-1], answer[0]
    twice = [field for field in started if field in first and started[field] != first[field]]
    twice = [field for field in twice if field != "content"]
    if started.get("tool_calls") or twice:
        raise RowFault(
            "the prompt ends with an assistant message, which the answer would go on with, but "
            + (f"both have {', '.join(twice)}" if twice else "it ends in a call, which a tool's message should follow")
        )
    return [*prompt[:-1], {**started, **first, "content": started["content"] + first["content"]}, *answer[1:]]


def _with_arguments_as_text(message):
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_call_as_text(call) for call in message["tool_calls"]]}


def _call_as_text(call):
    if "function" in call:
        return {**call, "function": _call_as_text(call["function"])}
    arguments = call.get("arguments")
    if not isinstance(arguments, dict):
        return call
    return {**call, "arguments": getattr(arguments, "text", None) or json.dumps(arguments, ensure_ascii=False)}
