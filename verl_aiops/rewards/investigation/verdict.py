"""Reading the verdict of an investigation: the one JSON object that the last message holds.

    {"root_causes": [{"component": "cart", "reason": "cpu_saturation"}],
     "propagation": [{"from": "cart", "to": "frontend"}],
     "evidence": ["a quote of what a tool returned"]}
    {"root_causes": [], "verdict": "no_fault"}                nothing is wrong
    {"root_causes": [], "verdict": "not_enough_evidence"}     an abstention

Text may stand before the object, with no brace in it, and nothing may stand behind it: a text with two objects gives
no verdict. Everything in the object is text; numbers, other keys and keys that stand there twice are refused.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from verl_aiops.rewards.triage.answer import MAX_LABEL_CHARS, normalise_label

__all__ = ["ABSTAINED", "MAX_VERDICT_CHARS", "NO_FAULT", "Verdict", "parse_verdict"]

MAX_VERDICT_CHARS = 16_384
"""Longest last message that is looked at, the text before the object included."""

MAX_CAUSES, MAX_EDGES, MAX_ITEMS = 32, 256, 64
"""Most root causes, edges and pieces of evidence; whoever lists more is not choosing."""

NO_FAULT, ABSTAINED = "no_fault", "not_enough_evidence"

# `verdict` goes with an empty list of causes alone; the last two are for parts of a user's own
_KEYS = frozenset({"root_causes", "propagation", "evidence", "verdict", "severity", "team"})
_OPENED_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\r?\n[ \t]*\Z")


class Verdict(NamedTuple):
    """A verdict as read.

    Attributes:
        ok: whether the text holds exactly one verdict.
        causes: (component, reason) as compared (`answer.normalise_label`), without repeats; reason "" where none is
            given.
        edges: (from, to) as compared, without repeats.
        evidence: the quotes as written, trimmed, without repeats and empty ones.
        no_fault: the verdict is that nothing is wrong.
        abstained: the verdict is that it cannot be told.
        reason: why it is not ok, one of `not_text`, `too_long`, `no_object`, `text_behind`, `not_json`, `keys`,
            `kinds`, `too_many`, `contradiction`, `call`; "" when ok.
        given: the object as decoded; empty when not ok.
    """

    ok: bool
    causes: tuple[tuple[str, str], ...] = ()
    edges: tuple[tuple[str, str], ...] = ()
    evidence: tuple[str, ...] = ()
    no_fault: bool = False
    abstained: bool = False
    reason: str = ""
    given: dict[str, Any] = {}  # never changed


class _Refused(ValueError):
    """Its text is a `Verdict.reason`."""


def parse_verdict(text: object, *, allow_fence: bool = False) -> Verdict:
    """Read one last message strictly; never raises, and takes time in proportion to the text's length.

    Args:
        text: what the model wrote. Anything but a str is refused, not an error.
        allow_fence: also take an object that stands in a Markdown fence at the end of the text.
    """
    try:
        return _read(_object(text, allow_fence))
    except _Refused as refused:
        return Verdict(False, reason=str(refused))


def _object(text: object, allow_fence: bool) -> dict[str, Any]:
    if not isinstance(text, str):
        raise _Refused("not_text")
    if len(text) > MAX_VERDICT_CHARS:
        raise _Refused("too_long")
    start = text.find("{")
    if start < 0:
        raise _Refused("no_object")
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise _Refused(str(error) if isinstance(error, _Refused) else "not_json") from None
    behind = text[end:].strip(_JSON_SPACE)
    fenced = allow_fence and behind == "```" and _OPENED_FENCE.search(text, 0, start)
    if behind and not fenced:
        raise _Refused("text_behind")
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Refused("keys")
    return made


def _number(text: str) -> Any:
    raise _Refused("kinds")


# a form feed or a space of another script behind an object is none to a reader of JSON
_JSON_SPACE = " \t\r\n"
_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_number, parse_float=_number, parse_constant=_number, strict=True
)


def _read(given: dict[str, Any]) -> Verdict:
    if not given.keys() <= _KEYS or "root_causes" not in given:
        raise _Refused("keys")
    for key in ("severity", "team"):
        _text(given.get(key))
    causes = _listed(given["root_causes"], MAX_CAUSES, lambda item: _named(item, "component", "reason", needs=1))
    edges = _listed(given.get("propagation"), MAX_EDGES, lambda item: _named(item, "from", "to", needs=2))
    evidence = tuple(
        item for item in _listed(given.get("evidence"), MAX_ITEMS, lambda item: _text(item).strip()) if item
    )
    verdict = _text(given.get("verdict"))
    if bool(causes) == bool(verdict) or verdict and edges:
        # a cause and `no_fault`, neither of them, or a path that begins nowhere
        raise _Refused("contradiction")
    if verdict not in ("", NO_FAULT, ABSTAINED):
        raise _Refused("kinds")
    return Verdict(
        True,
        tuple(dict.fromkeys(causes)),
        tuple(dict.fromkeys(edges)),
        tuple(dict.fromkeys(evidence)),
        verdict == NO_FAULT,
        verdict == ABSTAINED,
        given=given,
    )


def _listed(value: Any, most: int, read: Callable[[Any], Any]) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _Refused("kinds")
    if len(value) > most:
        raise _Refused("too_many")
    return [read(item) for item in value]


def _named(item: Any, first: str, second: str, needs: int) -> tuple[str, str]:
    """Two labels of an object that has these keys alone; the first ``needs`` of them must say something."""
    if not isinstance(item, dict):
        raise _Refused("kinds")
    if not item.keys() <= {first, second}:
        raise _Refused("keys")
    one, other = _label(item.get(first)), _label(item.get(second))
    if not all((one, other)[:needs]):
        raise _Refused("kinds")
    return one, other


def _label(value: Any) -> str:
    text = _text(value)
    if len(text) > MAX_LABEL_CHARS:
        raise _Refused("kinds")
    return normalise_label(text)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Refused("kinds")
    return value
