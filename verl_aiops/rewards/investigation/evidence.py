"""Whether a verdict stands on what the tools returned: its quotes, and the components that it names.

Only what results say of the case counts, never what the model wrote: a tool's answer that it makes up stands in its
own text alone, and words of its question that a tool repeats are no facts.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from verl_aiops.rewards.investigation.ground_truth import InvestigationTruth
from verl_aiops.rewards.investigation.matching import Matched, names_of
from verl_aiops.rewards.investigation.transcript import Call
from verl_aiops.rewards.investigation.verdict import Verdict
from verl_aiops.rewards.triage.answer import MAX_LABEL_CHARS, normalise_label
from verl_aiops.rewards.triage.quotes import long_enough

__all__ = ["MAX_QUOTES", "Quoted", "judge_quotes", "unsupported"]

MAX_QUOTES = 16
"""Distinct quotes in one verdict; whoever quotes more is not choosing, and earns nothing by it."""

_FEW = 3
"""So many components, or half of all, may be named by an answer that still points at them."""

_PLACES = 16
"""Places of a quote that are looked at for the component."""

_REACH = 2000
"""Characters of a line before and behind a quote that may name the component: a recorded answer may be one line."""


class Quoted(NamedTuple):
    """The quotes of a verdict: distinct verbatim ones, distinct others, and what they are worth, from 0 to 1.

    ``quality`` is the share of verbatim ones times the share of the rightly named components that one of them speaks
    of, by its line or by what was asked for.
    """

    verbatim: int
    invented: int
    quality: float


def judge_quotes(
    verdict: Verdict,
    calls: Sequence[Call],
    truth: InvestigationTruth,
    matched: Matched,
    *,
    min_chars: int,
    max_chars: int,
) -> Quoted:
    """Look up a verdict's evidence in what the tools returned.

    Quotes of fewer than ``min_chars`` characters, white space not counted, bare names, and verbatim ones of more than
    ``max_chars`` neither earn nor cost; nor do the words in which a tool repeats the question.
    """
    answered = [call for call in calls if call.ok]
    verbatim: list[str] = []
    invented = 0
    for quote in verdict.evidence:
        if not long_enough(quote, min_chars):
            continue
        if len(quote) <= MAX_LABEL_CHARS and normalise_label(quote) in truth.names:
            continue
        if any(quote in call.facts for call in answered):
            if len(quote) <= max_chars:
                verbatim.append(quote)
        elif not any(quote in call.result for call in answered):
            invented += 1
    if not verbatim or len(verbatim) + invented > MAX_QUOTES:
        return Quoted(len(verbatim), invented, 0.0)
    covered = 1.0
    if truth.causes:
        spoken = [list(_spoken_of(quote, answered)) for quote in verbatim]
        right = [verdict.causes[at][0] for at in sorted(matched.right)]
        names = [names_of(component, truth.causes) for component in right]
        backed = sum(any(_names_any(text, of) for texts in spoken for text in texts) for of in names)
        covered = backed / len(right) if right else 0.0
    return Quoted(len(verbatim), invented, len(verbatim) / (len(verbatim) + invented) * covered)


def _spoken_of(quote: str, calls: Iterable[Call]) -> Iterable[str]:
    """For each place of a quote its lines, with what the call asked for."""
    for call in calls:
        asked = "\n".join(_asked_for(call.arguments))
        at = call.facts.find(quote)
        for _ in range(_PLACES):
            if at < 0:
                break
            begin, end = max(0, at - _REACH), at + len(quote) + _REACH
            line = (
                call.facts[begin:at].rpartition("\n")[2] + quote + call.facts[at + len(quote) : end].partition("\n")[0]
            )
            yield f"{line}\n{asked}".casefold()
            at = call.facts.find(quote, at + 1)


def _asked_for(arguments: str) -> list[str]:
    """What a call was about: its arguments, but for words of which any may be found (`a|b`), and others not."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        given = None
    values = given.values() if isinstance(given, dict) else ()
    return [value for value in values if isinstance(value, str) and "|" not in value]


def unsupported(verdict: Verdict, calls: Sequence[Call], truth: InvestigationTruth) -> float:
    """The share of a verdict's claims that nothing in the investigation points at.

    A component is pointed at by a call about it that was answered, or by an answer that names it among few: one that
    names more than half of the components, as a list of all services does, points at none. That nothing is wrong takes
    one answer.
    """
    answered = [call for call in calls if call.ok]
    if not verdict.causes:
        return float(verdict.no_fault and not answered)
    components = {component for component, _ in verdict.causes}
    texts = [f"{call.arguments}\n{call.facts}".casefold() for call in answered]
    missing = 0
    for component in components:
        names = names_of(component, truth.causes)
        missing += not any(_names_any(text, names) and not _overview(text, truth.components) for text in texts)
    return missing / len(components)


@lru_cache(maxsize=1024)
def _overview(text: str, components: frozenset[str]) -> bool:
    named = sum(_names_any(text, (component,)) for component in components)
    return named > max(_FEW, len(components) / 2)


def _names_any(text: str, names: Iterable[str]) -> bool:
    """Whether a casefolded text has one of the names as a word of its own: `cart` is not named by `cart-db`."""
    return any(name in text and _word(name).search(text) is not None for name in names)


@lru_cache(maxsize=4096)
def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
