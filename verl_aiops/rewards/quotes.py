"""Finding quotations in a model's text and telling verbatim ones from invented ones."""

from dataclasses import dataclass, field

from verl_aiops.rewards.answer import MAX_LABEL_CHARS, normalise_label

MAX_QUOTES = 64
"""Distinct quotations in one answer; whoever quotes more is not choosing."""

MAX_READ_CHARS = 32_768
"""Text that is searched for quotations and verdicts, all rounds before the last together."""

# Quotations inside a quotation, as log lines have them, are found by trying this many later closing marks.
_MAX_CLOSINGS = 16
_MAX_LOOKUPS = 512

_CLOSING = {'"': '"', "`": "`", "“": "”", "「": "」"}


@dataclass
class Quotations:
    """What a text quotes.

    Attributes:
        verbatim: distinct quotations that occur in the source, in the order of the text, each with where it first does.
        invented: distinct quotations that do not.
        rest: the text without its verbatim quotations, which are the source's words and not the model's.
        too_many: the text quotes more than can be a choice; what was found up to there stands.
    """

    verbatim: dict[str, int] = field(default_factory=dict)
    invented: dict[str, None] = field(default_factory=dict)
    rest: str = ""
    too_many: bool = False


def find_quotations(text: str, source: str, *, min_chars: int, names: frozenset[str] = frozenset()) -> Quotations:
    """Find the quotations of a text: between straight or curly double quotes, corner brackets or backticks.

    A quotation is trimmed and then compared with the source code point by code point. It runs to the last closing mark
    up to which it is still verbatim, so that a log line with quotation marks inside can be quoted whole. One that is
    not verbatim ends at its first closing mark, and each of its lines is judged alone. Quotations of fewer than
    `min_chars` characters, white space not counted, and bare labels are ignored: they are emphasis, not evidence.

    Args:
        text: what the model wrote, at most `MAX_READ_CHARS` long.
        source: the incident's own text.
        min_chars: the shortest quotation that counts.
        names: normalised labels.
    """
    found = Quotations()
    pieces, kept = [], 0
    lookups = 0
    # The next place of each opening mark; far faster than one regular expression for all of them.
    upcoming = {mark: at for mark in _CLOSING if (at := text.find(mark)) >= 0}
    while upcoming:
        mark = min(upcoming, key=upcoming.__getitem__)
        start = upcoming[mark] + len(mark)
        closer = _CLOSING[mark]
        if mark == "`":
            while text.startswith("`", start):
                start += 1
            closer = text[upcoming[mark] : start]
        end = text.find(closer, start)
        if end < 0:
            # No later mark of this kind can be closed either, except a shorter run of backticks.
            upcoming.pop(mark)
            if len(closer) > 1 and (at := text.find(mark, start)) >= 0:
                upcoming[mark] = at
            continue
        position = end + len(closer)
        if len(closer) > 2:
            start = _after_info_string(text, start, end)
        lookups += 1
        whole, last = source.find(text[start:end].strip()), end
        if whole >= 0 and closer in source:
            whole, last, tries = _extend(text, start, end, closer, source, whole)
            lookups += tries
        if whole >= 0:
            quoted, position = ((start, last),), last + len(closer)
        else:
            quoted = _lines(text, start, end)
            if closer[0] == mark:
                # A stray mark pairs with the opening mark of the next quotation, which must not be lost with it.
                lookups += 1
                after = text.find(closer, position)
                if after >= 0 and _counts(inner := text[position:after].strip(), min_chars) and inner in source:
                    position = end
        for low, high in quoted:
            quotation = text[low:high].strip()
            if not _counts(quotation, min_chars) or _is_name(quotation, names):
                continue
            at = whole
            if at < 0 and len(quoted) > 1:
                lookups += 1
                at = source.find(quotation)
            if at < 0:
                found.invented[quotation] = None
            else:
                found.verbatim[quotation] = at
                pieces.append(text[kept:low])
                kept = high
        if len(found.verbatim) + len(found.invented) > MAX_QUOTES or lookups > _MAX_LOOKUPS:
            found.too_many = True
            break
        _advance(upcoming, text, position)
    pieces.append(text[kept:])
    found.rest = " ".join(pieces)
    return found


def _advance(upcoming: dict[str, int], text: str, position: int) -> None:
    """Move every mark that lies before the position to its next place, dropping those that have none."""
    for mark, at in tuple(upcoming.items()):
        if at < position:
            at = text.find(mark, position)
            if at < 0:
                del upcoming[mark]
            else:
                upcoming[mark] = at


def _extend(text: str, start: int, end: int, closer: str, source: str, at: int) -> tuple[int, int, int]:
    """The last closing mark up to which a verbatim quotation stays verbatim: place in the source, mark, lookups."""
    for tries in range(1, _MAX_CLOSINGS):
        later = text.find(closer, end + len(closer))
        if later < 0:
            return at, end, tries
        found = source.find(text[start:later].strip())
        if found < 0:
            return at, end, tries
        at, end = found, later
    return at, end, _MAX_CLOSINGS


def _after_info_string(text: str, start: int, end: int) -> int:
    newline = text.find("\n", start, end)
    return newline + 1 if newline >= 0 and " " not in text[start:newline].strip() else start


def _lines(text: str, start: int, end: int) -> list[tuple[int, int]]:
    lines = []
    while 0 <= (newline := text.find("\n", start, end)):
        lines.append((start, newline))
        start = newline + 1
    lines.append((start, end))
    return lines


def _counts(quotation: str, min_chars: int) -> bool:
    if len(quotation) < min_chars:
        return False
    # Most quotations show within a few words that they are long enough.
    return len("".join(quotation[: 4 * min_chars].split())) >= min_chars or len("".join(quotation.split())) >= min_chars


def _is_name(quotation: str, names: frozenset[str]) -> bool:
    return len(quotation) <= MAX_LABEL_CHARS and normalise_label(quotation) in names
