"""Special tokens spelled in the text of messages: broken up, so that only the chat template opens and closes turns.

Messages are data: a log line or a policy that writes `<|im_end|>` and a turn of its own must not become one. Training
data and what a reward model scores pass through here alike.
"""

import re
from typing import Any

from verl_aiops.data.messages import Arguments

# reasoning that stands in an answer's text is its own to mark, also where a tokenizer calls the marks special
_REASONING = re.compile(r"[<\[]/?(?:think|thinking|thought|reasoning)[>\]]", re.IGNORECASE)


class ControlTokens:
    """The special tokens of one tokenizer, as text."""

    def __init__(self, tokenizer):
        spellings = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        spellings |= set(tokenizer.all_special_tokens)
        self.spellings = frozenset(spellings)
        long_first = sorted((s for s in spellings if len(s) > 1 and not _REASONING.fullmatch(s)), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, long_first)) or r"(?!)")

    def broken_up(self, value: Any) -> Any:
        """`value` with a space in every special token that its texts spell, at any depth."""
        if isinstance(value, str):
            return self._pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", value)
        if isinstance(value, dict):
            changed = {self.broken_up(key): self.broken_up(inner) for key, inner in value.items()}
            if isinstance(value, Arguments):
                changed = Arguments(changed, self.broken_up(value.text))
            return changed
        if isinstance(value, list):
            return [self.broken_up(inner) for inner in value]
        return value
