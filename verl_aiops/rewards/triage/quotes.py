"""Finding quotations in a model's text and telling verbatim ones from invented ones."""

import string
from collections.abc import Callable, Iterator
from typing import NamedTuple

from verl_aiops.rewards.triage.answer import MAX_LABEL_CHARS, normalise_label

MAX_QUOTES = 64
"""Distinct quotations in one answer; whoever quotes more is not choosing."""

MAX_READ_CHARS = 32_768
"""Text that is searched for quotations and verdicts, all rounds before the last together."""

# A log line of JSON has some dozens of quotation marks inside.
_MAX_CLOSINGS = 64
_MAX_LOOKUPS = 512
# Places at which a line of a quotation is looked at.
_MAX_PLACES = 16
# Lookups in a very long source are rationed by the characters they may have to pass.
_MAX_PASSED = 20_000_000

_WORD = frozenset(string.ascii_letters + string.digits)
_STARTS = _WORD | frozenset("/\\{[(<$%#@&+=~^-_")
_CLOSING = {'"': '"', "`": "`", "“": "”", "「": "」"}


class Quotations(NamedTuple):
    """What a text quotes.

    Attributes:
        verbatim: distinct quotations that occur in the source, in the order of the text, each with where it first does.
        invented: distinct quotations that do not.
        rest: the text without its verbatim quotations, which are the source's words and not the model's.
        kept: `rest` with the quotations for which `keep` was true left in.
        too_many: the text quotes more than can be a choice; what was found up to there stands.
    """

    verbatim: dict[str, int]
    invented: set[str]
    rest: str
    too_many: bool
    kept: str


class _Source:
    """The text quoted from, with a limited number of lookups."""

    __slots__ = ("left", "text")

    def __init__(self, text: str):
        self.text = text
        self.left = min(_MAX_LOOKUPS, _MAX_PASSED // (len(text) + 1))

    def find(self, part: str) -> int:
        self.left -= 1
        return self.text.find(part)


def _none(quotation: str) -> bool:
    return False


def find_quotations(
    text: str,
    source: str,
    *,
    min_chars: int,
    names: frozenset[str] = frozenset(),
    keep: Callable[[str], bool] = _none,
) -> Quotations:
    """Find the quotations of a text: between straight or curly double quotes, corner brackets or backticks.

    A quotation is trimmed and then compared with the source code point by code point. Log lines have quotation marks of
    their own, so a verbatim quotation ends at the last mark up to which it is verbatim and its inner marks are paired.
    Where opening and closing marks look the same, none opens right after an ASCII letter or digit, and none closes
    right before what starts a word, a path or a bracket. A quotation that is not verbatim ends at the next mark, and
    each of its lines is judged alone: verbatim is one that does not break off where the source's line goes on, but for
    where the quotation begins and ends. Quotations of fewer than `min_chars` characters, white space not counted, and
    bare labels are ignored: they are emphasis, not evidence.

    Args:
        text: what the model wrote, at most `MAX_READ_CHARS` long.
        source: the incident's own text.
        min_chars: the shortest quotation that counts.
        names: normalised labels.
        keep: which verbatim quotations `kept` has.
    """
    found = _plain_quotations(text, source, min_chars, names, keep)
    return found or _any_quotations(text, source, min_chars, names, keep)


def _plain_quotations(
    text: str, source: str, min_chars: int, names: frozenset[str], keep: Callable[[str], bool] = _none
) -> Quotations | None:
    """The usual case in a third of the time: straight quotes only, none in the source, and what they hold counts and is
    verbatim. None where anything is otherwise."""
    if '"' in source or "“" in text or "「" in text or "`" in text:
        return None
    parts = text.split('"')
    if len(parts) % 2 == 0 or len(parts) > 2 * MAX_QUOTES:
        return None
    verbatim: dict[str, int] = {}
    for index in range(1, len(parts), 2):
        quotation = parts[index].strip()
        at = source.find(quotation)
        if at < 0 or not long_enough(quotation, min_chars) or _is_name(quotation, names):
            return None
        if parts[index - 1][-1:] in _WORD or parts[index + 1][:1] in _STARTS:
            return None
        verbatim[quotation] = at
    rest = '" "'.join(parts[::2])
    if not any(map(keep, verbatim)):
        return Quotations(verbatim, set(), rest, False, rest)
    parts[1::2] = [part if keep(part) else " " for part in parts[1::2]]
    return Quotations(verbatim, set(), rest, False, '"'.join(parts))


def _any_quotations(
    text: str, source: str, min_chars: int, names: frozenset[str], keep: Callable[[str], bool] = _none
) -> Quotations:
    verbatim: dict[str, int] = {}
    invented: set[str] = set()
    pieces, left_in, done = [], [], 0
    limited = _Source(source)
    for start, end, at in _quoted_spans(text, limited, min_chars):
        quotation = text[start:end].strip()
        if not long_enough(quotation, min_chars) or _is_name(quotation, names):
            continue
        if at < 0:
            invented.add(quotation)
        else:
            verbatim[quotation] = at
            pieces.append(text[done:start])
            left_in += [text[done:start], quotation if keep(quotation) else " "]
            done = end
        if len(verbatim) + len(invented) > MAX_QUOTES:
            break
    pieces.append(text[done:])
    too_many = limited.left < 0 or len(verbatim) + len(invented) > MAX_QUOTES
    return Quotations(verbatim, invented, " ".join(pieces), too_many, "".join([*left_in, text[done:]]))


def _quoted_spans(text: str, source: _Source, min_chars: int) -> Iterator[tuple[int, int, int]]:
    """Start and end in the text of whatever stands between marks, and its first place in the source or -1."""
    # The next place of each opening mark; far faster than one regular expression for all of them.
    upcoming = {mark: at for mark in _CLOSING if (at := text.find(mark)) >= 0}
    while upcoming and source.left >= 0:
        mark = min(upcoming, key=upcoming.__getitem__) if len(upcoming) > 1 else next(iter(upcoming))
        opening = upcoming[mark]
        start = opening + 1
        closer = _CLOSING[mark]
        if mark == "`":
            while text.startswith("`", start):
                start += 1
            closer = text[opening:start]
        twins = closer[0] == mark
        if twins and text[opening - 1 : opening] in _WORD:
            _advance(upcoming, text, start)
            continue
        end = text.find(closer, start)
        if end < 0:
            # Where one mark cannot be closed no later one can, except a shorter run of backticks.
            upcoming[mark] = text.find(mark, start) if len(closer) > 1 else -1
            if upcoming[mark] < 0:
                del upcoming[mark]
            continue
        if len(closer) > 2:
            start = _after_info_string(text, start, end)
        at, end = _verbatim_extent(text, start, end, mark, closer, source)
        position = end + len(closer)
        if at >= 0:
            yield start, end, at
        else:
            yield from _lines(text, start, end, source)
            # A stray mark pairs with the opening mark of the next quotation, which must not be lost with it.
            after = text.find(closer, position) if twins else -1
            if after >= 0 and _is_verbatim(text[position:after].strip(), source, min_chars):
                position = end
        _advance(upcoming, text, position)


def _advance(upcoming: dict[str, int], text: str, position: int) -> None:
    """Move every mark that lies before the position to its next place, dropping those that have none."""
    for mark, at in tuple(upcoming.items()):
        if at < position:
            at = text.find(mark, position)
            if at < 0:
                del upcoming[mark]
            else:
                upcoming[mark] = at


def _verbatim_extent(text: str, start: int, end: int, mark: str, closer: str, source: _Source) -> tuple[int, int]:
    """Where the quotation stands in the source, -1 if it is not verbatim, and its closing mark, given the next mark."""
    at = source.find(text[start:end].strip())
    if at < 0:
        return -1, end
    if closer not in source.text:
        return (at if _closes(text, end, mark, closer) else -1), end
    verbatim = []
    closing = end
    while at >= 0:
        verbatim.append((closing, at))
        closing = text.find(closer, closing + len(closer))
        if closing < 0 or len(verbatim) == _MAX_CLOSINGS:
            break
        at = source.find(text[start:closing].strip())
    for closing, at in reversed(verbatim):
        if _closes(text, closing, mark, closer) and _is_paired(text[start:closing], mark, closer):
            return at, closing
    # A line cut off in the source may hold an unpaired mark; then the last mark of its line must close it.
    closing, at = verbatim[-1]
    line_end = text.find("\n", closing)
    later = text.find(closer, closing + len(closer), len(text) if line_end < 0 else line_end)
    if later < 0 and _closes(text, closing, mark, closer):
        return at, closing
    return -1, end


def _closes(text: str, closing: int, mark: str, closer: str) -> bool:
    after = closing + len(closer)
    return closer[0] != mark or text[after : after + 1] not in _STARTS


def _is_paired(quotation: str, mark: str, closer: str) -> bool:
    if closer[0] != mark:
        return quotation.count(mark) == quotation.count(closer)
    return quotation.count(closer) % 2 == 0


def _after_info_string(text: str, start: int, end: int) -> int:
    newline = text.find("\n", start, end)
    return newline + 1 if newline >= 0 and " " not in text[start:newline].strip() else start


def _lines(text: str, start: int, end: int, source: _Source) -> Iterator[tuple[int, int, int]]:
    """The lines of a quotation that is not verbatim as a whole."""
    newline = text.find("\n", start, end)
    if newline < 0:
        yield start, end, -1
        return
    first = True
    while newline >= 0:
        yield start, newline, _whole_line(text[start:newline].strip(), source, first, False)
        start, first = newline + 1, False
        newline = text.find("\n", start, end)
    yield start, end, _whole_line(text[start:end].strip(), source, False, True)


def _whole_line(line: str, source: _Source, first: bool, last: bool) -> int:
    """Where a line stands in the source without being broken off: an altered quotation, whose spaces became line
    breaks, is in pieces that are all verbatim. The first may begin within a line, the last may end within one."""
    at = source.find(line)
    if not line:
        return at
    for _ in range(_MAX_PLACES):
        if at < 0:
            return -1
        if (first or _begins_line(source.text, at)) and (last or _ends_line(source.text, at + len(line))):
            return at
        source.left -= 1
        at = source.text.find(line, at + 1)
    return -1


def _begins_line(text: str, at: int) -> bool:
    return not text[text.rfind("\n", 0, at) + 1 : at].strip()


def _ends_line(text: str, at: int) -> bool:
    end = text.find("\n", at)
    return not text[at : len(text) if end < 0 else end].strip()


def _is_verbatim(quotation: str, source: _Source, min_chars: int) -> bool:
    return long_enough(quotation, min_chars) and source.find(quotation) >= 0


def long_enough(quotation: str, min_chars: int) -> bool:
    """Whether a quotation has so many characters that are no white space."""
    if len(quotation) < min_chars:
        return False
    if quotation.isprintable():  # the space is the only white space that is
        return len(quotation) - quotation.count(" ") >= min_chars
    return len("".join(quotation.split())) >= min_chars


def _is_name(quotation: str, names: frozenset[str]) -> bool:
    return len(quotation) <= MAX_LABEL_CHARS and normalise_label(quotation) in names
