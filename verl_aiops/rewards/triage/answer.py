"""Reading the final answer: exactly one JSON object with the string fields asked for, compared by equality.

The grammar below is narrower than JSON on purpose. An answer is a flat object of strings, so numbers, NaN, nesting and
arrays cannot occur in it; a regular expression that admits nothing else runs before the JSON decoder, and the decoder
therefore never meets 50,000 brackets or a 6,000-digit integer.
"""

import json
import re
import unicodedata
from typing import NamedTuple

FIELDS = ("service", "incident_type")

MAX_ANSWER_CHARS = 4096
"""Longest text that is looked at as an answer, white space and a fence included."""

MAX_LABEL_CHARS = 1024
"""Longest label that can match. Normalising takes quadratic time on runs of combining marks, so it needs a bound."""

_WS = r"[ \t\n\r]*"
_STRING = r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"'
_PAIR = f"{_STRING}{_WS}:{_WS}{_STRING}"
# Deterministic: after every character at most one branch can go on, so a failing match costs linear time.
_FLAT_OBJECT = re.compile(rf"{_WS}\{{{_WS}(?:{_PAIR}(?:{_WS},{_WS}{_PAIR})*{_WS})?\}}{_WS}")
_PLAIN = r'"([^"\\\x00-\x1f]*)"'
# The usual answer, two pairs without escapes, needs no decoding.
_TWO_PLAIN_PAIRS = re.compile(
    rf"{_WS}\{{{_WS}{_PLAIN}{_WS}:{_WS}{_PLAIN}{_WS},{_WS}{_PLAIN}{_WS}:{_WS}{_PLAIN}{_WS}\}}{_WS}"
)
_FENCE = re.compile(r"\s*```(?:json|JSON)?[ \t]*\r?\n(.*?)\r?\n?[ \t]*```\s*", re.DOTALL)

# The pairs, not a dict: a duplicate key, also one spelled with \u escapes, is only visible before the dict is made.
_decode_pairs = json.JSONDecoder(object_pairs_hook=list).decode


class ParsedAnswer(NamedTuple):
    """An answer as read.

    Attributes:
        ok: whether the text is exactly one JSON object with exactly the keys asked for, `service` and `incident_type`
            among them, each once, and string values.
        service: the service as written, "" when not ok.
        incident_type: the incident type as written, "" when not ok.
        reason: why it is not ok, one of `not_text`, `too_long`, `empty`, `fence`, `not_an_object`, `not_flat_strings`,
            `duplicate_key`, `keys`; "" when ok.
        more: the further fields that were asked for, as written, in the order of asking; () when not ok.
    """

    ok: bool
    service: str
    incident_type: str
    reason: str
    more: tuple[tuple[str, str], ...] = ()

    @property
    def fields(self) -> dict[str, str]:
        """All of them by name."""
        return {"service": self.service, "incident_type": self.incident_type, **dict(self.more)}


def _refused(reason: str) -> ParsedAnswer:
    return ParsedAnswer(False, "", "", reason)


def parse_answer(text: object, *, allow_fence: bool = False, fields: tuple[str, ...] = FIELDS) -> ParsedAnswer:
    """Read one answer strictly; never raises.

    Args:
        text: what the model wrote in its last round. Anything but a str is refused, not an error.
        allow_fence: also take the object inside one Markdown fence (plain or `json`) that is the whole text.
        fields: those that were asked for; `FIELDS` are among them.
    """
    if not isinstance(text, str):
        return _refused("not_text")
    if len(text) > MAX_ANSWER_CHARS:
        return _refused("too_long")
    if allow_fence and (fence := _FENCE.fullmatch(text)):
        text = fence.group(1)
    if plain := _TWO_PLAIN_PAIRS.fullmatch(text):
        first, one, second, two = plain.groups()
        pairs = ((first, one), (second, two))
    elif _FLAT_OBJECT.fullmatch(text):
        pairs = _decode_pairs(text)
    else:
        return _refused(_why_not_flat(text))
    if len(pairs) == 2 and len(fields) == 2:
        (first, one), (second, two) = pairs
        if first == "service" and second == "incident_type":
            return ParsedAnswer(True, one, two, "")
        if first == "incident_type" and second == "service":
            return ParsedAnswer(True, two, one, "")
    values = dict(pairs)
    if len(values) != len(pairs):
        return _refused("duplicate_key")
    if values.keys() != set(fields):
        return _refused("keys")
    more = tuple((field, values[field]) for field in fields if field not in FIELDS)
    return ParsedAnswer(True, values["service"], values["incident_type"], "", more)


def _why_not_flat(text: str) -> str:
    start = text.lstrip(" \t\n\r")[:3]
    if not start:
        return "empty"
    if start == "```":
        return "fence"
    return "not_flat_strings" if start[0] == "{" else "not_an_object"


def normalise_label(text: str) -> str:
    """The form in which labels are compared: NFKC, case folded, NFKC again (folding can undo it), trimmed.

    Nothing is removed from inside a label. Zero-width and bidirectional characters therefore make a different label,
    and a look-alike from another script stays a different letter; only characters that Unicode itself calls compatible
    (full-width letters, ligatures, mathematical alphabets) are equal to their plain forms.
    """
    if text.isascii():
        return text.strip().lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()


def match_label(value: object, accepted: frozenset[str]) -> bool:
    """Whether a value is one of the accepted labels, which are already normalised; never raises."""
    return isinstance(value, str) and len(value) <= MAX_LABEL_CHARS and normalise_label(value) in accepted
