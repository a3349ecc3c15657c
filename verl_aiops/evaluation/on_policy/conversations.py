"""An asked question and a model's answers to it as one conversation, as training data hold it."""

from __future__ import annotations

from collections.abc import Sequence

from verl_aiops.evaluation.run.questions import Message, Question
from verl_aiops.incidents import neutralise

__all__ = ["cleaned", "conversation"]


def conversation(question: Question, turns: Sequence[str], shared: int) -> tuple[list[Message], list[Message]]:
    """The messages up to the answer of round ``shared``, and from it on; ``turns`` are the assistant's."""
    messages = [dict(message) for message in question.messages]
    for number, text in enumerate(turns):
        messages.append({"role": "assistant", "content": text})
        if number < len(question.rounds):
            messages.append({"role": "user", "content": question.rounds[number]})
    at = len(question.messages) + 2 * shared
    return messages[:at], messages[at:]


def cleaned(messages: Sequence[Message]) -> tuple[list[Message], int]:
    """The assistant's texts without what a chat template would take for its own, and how many were changed."""
    clean, changed = [], 0
    for message in messages:
        content = neutralise(message["content"]) if message["role"] == "assistant" else message["content"]
        changed += content != message["content"]
        clean.append({"role": message["role"], "content": content})
    return clean, changed
