"""Whether a tokenizer gives back the text that it was given.

A folder whose configuration names another class than its tokenizer was made as may lose all white space, or every
letter that is not ASCII, and trains and answers without a word.
"""

import unicodedata
from collections.abc import Sequence

from verl_aiops.data.errors import PreferenceDataError

__all__ = ["check_keeps_text", "lost_text"]

_CHARS = 4000
_TEXTS = 32
# what data need not have in their first rows
_SAMPLE = 'Which service?\n{"service": "cart db", "incident_type": "x"}\n  - 100 % of 20 ms, Ünïcode, 服务'


def check_keeps_text(tokenizer, texts: Sequence[str]) -> None:
    """Raise PreferenceDataError if one of the first texts, or a sample of our own, does not survive the tokenizer."""
    for text in [*texts[:_TEXTS], _SAMPLE]:
        lost = lost_text(tokenizer, text[:_CHARS])
        if lost is not None:
            before, after = lost
            raise PreferenceDataError(
                f"the tokenizer ({type(tokenizer).__name__}) loses text: {before!r} comes back from its tokens as "
                f"{after!r}. Its folder most likely names another tokenizer_class in tokenizer_config.json than it was "
                'made with; for a tokenizer.json, "PreTrainedTokenizerFast" loads it as it is'
            )


def lost_text(tokenizer, text: str) -> tuple[str, str] | None:
    """Where a text and what its tokens are decoded to part, both from a little before that place; None where nowhere.

    Unicode normalisation, and white space at the ends, which some tokenizers add or take away, are no loss; nor is a
    character that the tokenizer does not know and says so by its unknown token.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if back == text:
        return None
    text, back = (unicodedata.normalize("NFKC", one).strip() for one in (text, back))
    if back == text or tokenizer.unk_token_id in ids and _in_order(back.split(str(tokenizer.unk_token)), text):
        return None
    same = next((at for at, (a, b) in enumerate(zip(text, back)) if a != b), min(len(text), len(back)))
    return text[max(0, same - 20) : same + 20], back[max(0, same - 20) : same + 20]


def _in_order(parts: Sequence[str], text: str) -> bool:
    at = 0
    for part in parts:
        found = text.find(part.strip(), at)
        if found < 0:
            return False
        at = found + len(part.strip())
    return True
