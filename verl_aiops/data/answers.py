"""Prompt and answers of one row as texts, or as messages whose answers begin with the assistant: one rule for two
answers, for many, and for one.
"""

from __future__ import annotations

from collections.abc import Sequence

from verl_aiops.data.errors import RowFault

__all__ = [
    "REPEATED",
    "SHORTEST_REPEATED",
    "Answer",
    "check_message_answer",
    "message_answers",
    "of_one_kind",
    "without_prompt_text",
]

Answer = str | list[dict]
# notes of rows whose answers repeat their prompt
REPEATED = {"prompt_repeated", "prompt_repeated_by_all"}
# Letters of a prompt: two answers may well begin with the same few.
SHORTEST_REPEATED = 6


def without_prompt_text(prompt: str, answers: Sequence[str], notes: set[str]) -> list[str]:
    """Text answers without the prompt that all of them repeat."""
    repeated = [answer.startswith(prompt) for answer in answers]
    if all(repeated) and len(prompt.strip()) >= SHORTEST_REPEATED:
        notes.add(_repeated(answers))
        return [answer[len(prompt) :] for answer in answers]
    if any(repeated):
        notes.add("prompt_in_one")
    return list(answers)


def message_answers(
    prompt: Answer | None, answers: list[list[dict]], names: str, prompt_key: str, notes: set[str]
) -> tuple[list[dict], list[list[dict]]]:
    """Prompt and answers of messages, where the prompt is one too, or a text, or what all answers begin with.

    Args:
        names: what the answers are called in a fault.

    Raises:
        RowFault: they share no prompt.
    """
    if isinstance(prompt, list):
        return _without_prompt_messages(prompt, answers, notes)
    if prompt is not None and all(answer and answer[0]["role"] == "assistant" for answer in answers):
        return [{"role": "user", "content": prompt}], answers
    if len(answers) > 1 and all(answer == answers[0] for answer in answers):
        raise RowFault(f"{names} are equal")
    if len(answers) == 1:
        raise RowFault(
            f"{names} begins with a message that is not the assistant's, where an answer belongs: give the messages "
            f"before it as {prompt_key}"
        )
    messages = _shared(answers)
    if not messages:
        raise RowFault(
            f"{names} begin with different messages, so they share no prompt"
            + ("" if prompt is not None else f"; the row has no {prompt_key} either")
        )
    if prompt is not None and prompt.strip() not in [message["content"].strip() for message in messages]:
        raise RowFault(f"{prompt_key} is a text that is none of the messages {names} share")
    return messages, [answer[len(messages) :] for answer in answers]


def _without_prompt_messages(
    prompt: list[dict], answers: list[list[dict]], notes: set[str]
) -> tuple[list[dict], list[list[dict]]]:
    """Prompt and answers of messages, without the prompt that all answers repeat, or repeat with more in front."""
    shared = _shared(answers)
    if shared[: len(prompt)] == prompt:
        shared = prompt
    elif len(answers) == 1 or prompt[0]["role"] == "assistant" or shared[-len(prompt) :] != prompt:
        return prompt, answers
    notes.add(_repeated(answers))
    return shared, [answer[len(shared) :] for answer in answers]


def _repeated(answers: Sequence) -> str:
    return "prompt_repeated" if len(answers) == 2 else "prompt_repeated_by_all"


def _shared(answers: Sequence[list[dict]]) -> list[dict]:
    """The messages that all begin with."""
    shared = 0
    while shared < min(map(len, answers)) and all(answer[shared] == answers[0][shared] for answer in answers):
        shared += 1
    return answers[0][:shared]


def check_message_answer(messages: list[dict], key: str) -> None:
    """Raises RowFault for an answer that is not the assistant's, or empty."""
    if not messages:
        raise RowFault(f"{key} is empty (no message after the prompt)")
    for place in (0, -1):
        if messages[place]["role"] != "assistant":
            raise RowFault(
                f"{key} {'begins' if place == 0 else 'ends'} with a {messages[place]['role']} message where an answer, "
                "an assistant message, belongs. Messages before the answer are the prompt: all of them in the prompt, "
                "or all at the beginning of all answers"
            )
    for message in messages:
        if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            raise RowFault(f"{key} is empty (an assistant message without text)")


def of_one_kind(answers: Sequence[Answer], names: str) -> bool:
    """Whether the answers are texts; RowFault where some are and some are messages."""
    texts = {isinstance(answer, str) for answer in answers}
    if len(texts) > 1:
        both = "both texts or both messages" if len(answers) == 2 else "all texts or all messages"
        raise RowFault(f"{names} must be of one kind, {both}")
    return texts.pop()
