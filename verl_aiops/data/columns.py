"""Columns that usually carry a part of the prompt, beside the one that is read as the prompt."""

from collections.abc import Callable
from typing import Any

from verl_aiops.data.errors import RowFault
from verl_aiops.data.messages import check_text

SYSTEM = ("system", "system_prompt", "system_message")
PARTS = (
    "instruction",
    "input",
    "context",
    "history",
    "documents",
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
)
PROMPT_COLUMNS = (*SYSTEM, *PARTS)


def with_prompt_columns(
    prompt: str | list[dict],
    values: dict,
    key: str,
    named: set[str],
    note: Callable[[str], None],
    system: str = "",
) -> str | list[dict]:
    """`prompt`, after the system message that a column of its own holds.

    What stands in the prompt already is no loss. Raises RowFault for a part that has no place in it.

    Args:
        key: the column of the prompt.
        named: columns that are read as something else.
        system: the column of the system message, where the run names one.
    """
    of_system = tuple(dict.fromkeys([system, *SYSTEM])) if system else SYSTEM
    for name in dict.fromkeys([*of_system, *PARTS]):
        value = values.get(name)
        if (name in named and name != system) or value is None or _stands_in(value, prompt):
            continue
        if name in of_system and isinstance(value, str) and isinstance(prompt, list):
            if prompt[0]["role"] in ("system", "developer"):
                raise RowFault(
                    f"{name} is another text than the {prompt[0]['role']} message of the {key}: make them one, or "
                    "remove or rename the column"
                )
            check_text(value, name)
            prompt = [{"role": "system", "content": value}, *prompt]
            note("system_column")
            continue
        place = "its text must stand in it"
        if name in of_system and isinstance(prompt, str):
            place = (
                "plain texts have no system message: give the prompt as messages, set data.text_pairs=chat, or put it "
                "in front of the text"
            )
        elif name in of_system:
            place = f"a system message is one text, not a {type(value).__name__}"
        raise RowFault(
            f"{name} is not empty, and usually a part of the prompt, but {key!r} is all that is read: {place} (or "
            f"remove or rename the column to leave it out); found {_shown(value)}"
        )
    return prompt


def _stands_in(value: Any, prompt: str | list[dict]) -> bool:
    """Whether all texts in `value` occur in the prompt, whatever the white space."""
    if isinstance(value, str) and not value.strip():
        return True
    texts = list(_texts(value))
    if None in texts:
        return False
    whole = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
    if all(text.strip() in whole for text in texts):
        return True
    whole = "".join(whole.split())
    return all("".join(text.split()) in whole for text in texts)


def _texts(value):
    """All texts in a value, numbers too, and None for whatever is neither."""
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, (str, int, float)):
        yield str(value)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
    else:
        yield None


def _shown(value):
    text = value if isinstance(value, str) else repr(value) if isinstance(value, (list, dict)) else type(value).__name__
    return repr(text[:60]) + ("..." if len(text) > 60 else "")
