"""Finding quotations in a model's text and telling verbatim ones from invented ones."""

from typing import NamedTuple

from verl_aiops.rewards.answer import MAX_LABEL_CHARS, normalise_label

MAX_QUOTES = 64
"""Distinct quotations in one answer; whoever quotes more is not choosing."""

MAX_READ_CHARS = 32_768
"""Text that is searched for quotations and verdicts, all rounds before the last together."""

# A log line of JSON has some dozens of quotation marks inside.
_MAX_CLOSINGS = 64
_MAX_LOOKUPS = 512
# Lookups in a very long source are rationed by the characters they may have to pass.
_MAX_PASSED = 20_000_000

_CLOSING = {'"': '"', "`": "`", "“": "”", "「": "」"}


class Quotations(NamedTuple):
    """What a text quotes.

    Attributes:
        verbatim: distinct quotations that occur in the source, in the order of the text, each with where it first does.
        invented: distinct quotations that do not.
        rest: the text without its verbatim quotations, which are the source's words and not the model's.
        too_many: the text quotes more than can be a choice; what was found up to there stands.
    """

    verbatim: dict[str, int]
    invented: set[str]
    rest: str
    too_many: bool


def find_quotations(text: str, source: str, *, min_chars: int, names: frozenset[str] = frozenset()) -> Quotations:
    """Find the quotations of a text: between straight or curly double quotes, corner brackets or backticks.

    A quotation is trimmed and then compared with the source code point by code point. Log lines have quotation marks of
    their own, so a closing mark is one that no ASCII letter or digit follows, and a verbatim quotation ends at the last
    such mark up to which it is verbatim and its inner marks are paired. One that is not verbatim ends at its first
    closing mark, and each of its lines is judged alone. Quotations of fewer than `min_chars` characters, white space
    not counted, and bare labels are ignored: they are emphasis, not evidence.

    Args:
        text: what the model wrote, at most `MAX_READ_CHARS` long.
        source: the incident's own text.
        min_chars: the shortest quotation that counts.
        names: normalised labels.
    """
    verbatim: dict[str, int] = {}
    invented: set[str] = set()
    pieces, kept = [], 0
    lookups, most_lookups = 0, min(_MAX_LOOKUPS, _MAX_PASSED // (len(source) + 1))
    too_many = False
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
        if len(closer) > 2:
            start = _after_info_string(text, start, end)
        whole, last, tries = _extent(text, start, end, mark, closer, source)
        lookups += tries
        position = last + len(closer)
        if whole >= 0:
            quoted = ((start, last),)
        else:
            quoted = _lines(text, start, last)
            if closer[0] == mark:
                # A stray mark pairs with the opening mark of the next quotation, which must not be lost with it.
                lookups += 1
                after = text.find(closer, position)
                if after >= 0 and _counts(inner := text[position:after].strip(), min_chars) and inner in source:
                    position = last
        for low, high in quoted:
            quotation = text[low:high].strip()
            if not _counts(quotation, min_chars) or _is_name(quotation, names):
                continue
            at = whole
            if at < 0 and len(quoted) > 1:
                lookups += 1
                at = source.find(quotation)
            if at < 0:
                invented.add(quotation)
            else:
                verbatim[quotation] = at
                pieces.append(text[kept:low])
                kept = high
        if len(verbatim) + len(invented) > MAX_QUOTES or lookups > most_lookups:
            too_many = True
            break
        _advance(upcoming, text, position)
    pieces.append(text[kept:])
    return Quotations(verbatim, invented, " ".join(pieces), too_many)


def _advance(upcoming: dict[str, int], text: str, position: int) -> None:
    """Move every mark that lies before the position to its next place, dropping those that have none."""
    for mark, at in tuple(upcoming.items()):
        if at < position:
            at = text.find(mark, position)
            if at < 0:
                del upcoming[mark]
            else:
                upcoming[mark] = at


def _extent(text: str, start: int, end: int, mark: str, closer: str, source: str) -> tuple[int, int, int]:
    """Where a quotation that starts here ends, given its first closing mark.

    Returns:
        Its first place in the source, -1 if it is not verbatim; its closing mark; the number of lookups in the source.
    """
    verbatim = []
    closing = end
    while len(verbatim) < _MAX_CLOSINGS and closing >= 0:
        at = source.find(text[start:closing].strip())
        if at < 0:
            break
        verbatim.append((closing, at))
        closing = text.find(closer, closing + len(closer)) if closer in source else -1
    lookups = len(verbatim) + 1
    for closing, at in reversed(verbatim):
        if _closes(text, closing, mark, closer) and _is_paired(text[start:closing], mark, closer):
            return at, closing, lookups
    if verbatim:
        # A line cut off in the source may hold an unpaired mark; then the last mark of its line must close it.
        closing, at = verbatim[-1]
        line_end = text.find("\n", closing)
        later = text.find(closer, closing + len(closer), len(text) if line_end < 0 else line_end)
        if later < 0 and _closes(text, closing, mark, closer):
            return at, closing, lookups
    closing = end
    for _ in range(_MAX_CLOSINGS):
        if closing < 0:
            break
        if _closes(text, closing, mark, closer):
            return -1, closing, lookups
        closing = text.find(closer, closing + len(closer))
    return -1, end, lookups


def _closes(text: str, closing: int, mark: str, closer: str) -> bool:
    if closer[0] != mark:
        return True
    following = text[closing + len(closer) : closing + len(closer) + 1]
    return not (following.isascii() and following.isalnum())


def _is_paired(quotation: str, mark: str, closer: str) -> bool:
    if closer[0] != mark:
        return quotation.count(mark) == quotation.count(closer)
    return quotation.count(closer) % 2 == 0


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
