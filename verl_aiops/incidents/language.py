"""The language of a text, by its script: which of the instructions' languages fits an incident that names none."""

from __future__ import annotations

import re

__all__ = ["guess_language"]

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA = re.compile("[\u3040-\u30ff]")
_LATIN = re.compile("[A-Za-z]")
# A Chinese character says about as much as three letters, and Chinese texts of engineers are full of Latin names.
_LETTERS_PER_HAN = 3


def guess_language(text: str) -> str:
    """`zh` where most of what `text` says is in Chinese characters, else `en`; Japanese is not Chinese."""
    han = len(_HAN.findall(text))
    if not han or len(_KANA.findall(text)) * _LETTERS_PER_HAN > han:
        return "en"
    return "zh" if han * _LETTERS_PER_HAN >= len(_LATIN.findall(text)) else "en"
