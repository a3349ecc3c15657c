"""Making foreign text harmless inside a prompt, visibly and in the same way everywhere.

Log lines are written by the systems that fail, and sometimes by whoever attacks them. Three things in them could change
how a prompt is read: our own delimiters, the control tokens of chat templates, and invisible characters. Each is
replaced by a visible look-alike: `<|im_end|>` becomes `‹|im_end|›`, `[INST]` becomes `⟦INST⟧`, and U+202E becomes the
six characters `\\u202e`. The replacement is idempotent, so text may pass through here more than once.
"""

from __future__ import annotations

import re

_TAG_NAMES = (
    "incident|s|bos|eos|pad|unk|mask|sep|cls|think|thinking|tool|tools|tool_call|tool_calls|tool_response|tool_result|function_calls|"
    "start_of_turn|end_of_turn|start_of_image|end_of_image|endoftext|sop|eop|gmask|image|video|audio|system|user|assistant|human|bot|sys"
)
_BRACKET_NAMES = (
    "INST|SYS|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|SYSTEM_PROMPT|IMG|IMG_BREAK|IMG_END|THINK|gMASK|MASK|SEP|CLS|PAD"
)

# Tab and newline stay: stack traces need them. Zero-width and bidirectional characters, line separators and the byte
# order mark go; so do halves of surrogate pairs, which JSON can spell and no tokenizer reads.
_INVISIBLE = (
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_UNSEEN = re.compile(rf"\r\n|{_INVISIBLE}")
# Flags inside the group: a pattern that starts with a plain character is searched many times faster.
_BRACKET = re.compile(rf"\[(?i:\s*/?\s*(?:{_BRACKET_NAMES})\s*\])")
_PATTERN = re.compile(
    r"(?P<bar><[|｜][^|｜<>\n]{0,80}[|｜]>)"
    r"|(?P<double><<\s*/?\s*SYS\s*>>)"
    rf"|(?P<tag>[<＜]\s*[/／]?\s*(?:{_TAG_NAMES})\s*[/／]?\s*[>＞])"
    rf"|(?P<bracket>{_BRACKET.pattern})"
    rf"|(?P<unseen>\r\n|{_INVISIBLE})",
    re.IGNORECASE,
)
_ANGLES = str.maketrans("<>＜＞", "‹›‹›")


def _escape(match: re.Match[str]) -> str:
    text = match.group()
    if text == "\r\n":
        return "\n"
    code = ord(text)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _visible(match: re.Match[str]) -> str:
    if match.lastgroup == "unseen":
        return _escape(match)
    text = match.group()
    text = f"⟦{text[1:-1]}⟧" if match.lastgroup == "bracket" else text.translate(_ANGLES)
    return _UNSEEN.sub(_escape, text)


def neutralise(text: str) -> str:
    """`text` with delimiters, chat-template tokens and invisible characters made visible and harmless; idempotent."""
    return text if _is_harmless(text) else _PATTERN.sub(_visible, text)


def _is_harmless(text: str) -> bool:
    """Whether the pattern surely matches nothing: much faster than trying it, since most text is harmless."""
    if "<" in text or "＜" in text or _BRACKET.search(text):
        return False
    if text.isascii():
        return text.replace("\n", "").replace("\t", "").isprintable()
    return not _UNSEEN.search(text)


def neutralise_part(part: str, whole: str) -> str:
    """What `part`, a substring of `whole`, reads like inside `neutralise(whole)`.

    A part that cuts a token in two is widened to the whole token, so the result always occurs in `neutralise(whole)`.
    """
    safe_whole, safe_part = neutralise(whole), neutralise(part)
    if safe_part in safe_whole:
        return safe_part
    start = whole.index(part)
    end = start + len(part)
    for match in _PATTERN.finditer(whole):
        if match.start() < start < match.end():
            start = match.start()
        if match.start() < end < match.end():
            end = match.end()
    return neutralise(whole[start:end])
