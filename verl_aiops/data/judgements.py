"""What a row says of its answers: ranks and scores of a group, the label of one answer, the margin of a pair."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verl_aiops.data.errors import RowFault
from verl_aiops.data.fields import SCORES_OF_PAIR, Columns, listed

__all__ = ["completions_of", "label_of", "margin_of", "number_of"]

# what a completion's text or messages are called: ours and TRL's, OpenAI's, UltraFeedback's
CONTENTS = ("content", "text", "messages", "completion", "response")
# fields of a chat message, where a completion is one with a rank or score beside them
_OF_MESSAGE = ("role", "content", "tool_calls", "reasoning_content", "reasoning", "thinking", "name")


def completions_of(
    values: Mapping[str, Any], columns: Columns, note: Callable[[str], None]
) -> tuple[list[str], list[Any], list[float], list[float]]:
    """The answers of a group: what each is called in faults, its text or messages as they stand there, its rank, its
    score.

    Ranks are whole from 1, the best, without gaps, equal where answers are tied; scores are nan where the row has
    ranks alone. Raises RowFault.
    """
    key = columns.completions
    entries = values[key]
    if not isinstance(entries, list):
        raise RowFault(f"{key} is of type {type(entries).__name__}; a list of answers is expected")
    if not entries:
        raise RowFault(f"{key} is empty")
    keys = [f"{key}[{place}]" for place in range(len(entries))]
    contents: list[Any] = []
    found: dict[str, list[Any]] = {columns.rank: [], columns.score: []}
    unread: dict[str, None] = {}
    for name, entry in zip(keys, entries):
        content, judged = _entry(name, entry, columns, unread)
        contents.append(content)
        for field, numbers in found.items():
            numbers.append(judged.get(field))
    for field, column in ((columns.rank, columns.ranks), (columns.score, columns.scores)):
        beside = values.get(column)
        if beside is None:
            continue
        if any(number is not None for number in found[field]):
            raise RowFault(f"{key} have a {field} each, and there is a column {column} beside them: leave one out")
        if not isinstance(beside, list) or len(beside) != len(entries):
            what = f"{len(beside)} entries" if isinstance(beside, list) else f"the type {type(beside).__name__}"
            raise RowFault(f"{column} has {what}; a list of {len(entries)} numbers is expected, one for each of {key}")
        found[field] = beside
    if unread:
        note(f"unread: {', '.join(unread)}")
    ranks, scores = (_numbers(found[field], keys, field) for field in (columns.rank, columns.score))
    if ranks is None and scores is None:
        raise RowFault(
            f"{key} have neither {columns.rank} nor {columns.score}: give each a {columns.rank} (1 is the best) or a "
            f"{columns.score} (more is better), or the columns {columns.ranks} or {columns.scores} beside them"
            + (f"; found: {listed(tuple(unread))} (data.score_key names another field)" if unread else "")
        )
    return keys, contents, _dense(ranks, scores, keys), scores or [math.nan] * len(keys)


def _entry(name: str, entry: Any, columns: Columns, unread: dict[str, None]) -> tuple[Any, dict[str, Any]]:
    """A completion's content and what is said of it; adds fields that nothing reads to `unread`."""
    if entry is None:
        raise RowFault(f"{name} is null")
    if not isinstance(entry, dict):
        return entry, {}
    judged = {field: entry[field] for field in (columns.rank, columns.score) if entry.get(field) is not None}
    if entry.get("role") is not None:  # a chat message
        content = {field: value for field, value in entry.items() if field in _OF_MESSAGE}
        read = set(_OF_MESSAGE)
    else:
        named = [field for field in CONTENTS if entry.get(field) is not None]
        if len(named) != 1:
            raise RowFault(
                f"{name} has " + (" and ".join(named) if named else f"none of {', '.join(CONTENTS)}") + "; expected is "
                f"one of them, its text or messages; found: {listed([k for k in entry if entry[k] is not None])}"
            )
        content, read = entry[named[0]], {named[0]}
    unread |= dict.fromkeys(f for f in entry if entry[f] is not None and f not in read | {columns.rank, columns.score})
    return content, judged


def _numbers(values: Sequence[Any], keys: Sequence[str], field: str) -> list[float] | None:
    """All of them as numbers, or None where there is none."""
    lacking = [name for name, value in zip(keys, values) if value is None]
    if len(lacking) == len(keys):
        return None
    if lacking:
        raise RowFault(f"{lacking[0]} has no {field}, others have: give all answers of a row one, or leave it out")
    return [number_of(value, f"the {field} of {name}") for name, value in zip(keys, values)]


def number_of(value: Any, what: str) -> float:
    """A finite number. Raises RowFault."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowFault(f"{what} is of type {type(value).__name__}; a number is expected")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowFault(f"{what} is {number}; a finite number is expected")
    return number


def _dense(ranks: list[float] | None, scores: list[float] | None, keys: Sequence[str]) -> list[float]:
    if ranks is None:
        assert scores is not None
        ranks = [-score for score in scores]
    else:
        low = next((place for place, rank in enumerate(ranks) if rank < 1), None)
        if low is not None:
            raise RowFault(
                f"the rank of {keys[low]} is {ranks[low]:g}; ranks count from 1, the best (numbers of which more is "
                "better are scores)"
            )
        for better, worse in itertools.permutations(range(len(ranks)), 2):
            if scores and ranks[better] < ranks[worse] and scores[better] < scores[worse]:
                raise RowFault(
                    f"{keys[better]} has the better rank ({ranks[better]:g} before {ranks[worse]:g}) and the lower "
                    f"score ({scores[better]:g}, {scores[worse]:g}) than {keys[worse]}: leave one of the two out"
                )
    places = {rank: float(place) for place, rank in enumerate(sorted(set(ranks)), 1)}
    return [places[rank] for rank in ranks]


def label_of(values: Mapping[str, Any], columns: Columns) -> bool:
    """Yes or no, of true and false or the numbers 1 and 0. Raises RowFault."""
    value = values.get(columns.label)
    if value is None:
        raise RowFault(f"{columns.label} is null" if columns.label in values else f"{columns.label} is missing")
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    mend = ""
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "0", "1"):
        mend = "; write it without quotes"
    elif value == -1:
        mend = "; write false for a no"
    raise RowFault(f"{columns.label} is {str(value)[:40]!r}; true or false is expected, or 1 or 0{mend}")


def margin_of(values: Mapping[str, Any], columns: Columns, note: Callable[[str], None]) -> float:
    """By how much a pair's preferred answer is better, or nan where nothing says so.

    A value that is no such number is counted, not refused: for most runs the column has no meaning.
    """
    margin = values.get(columns.margin)
    if margin is None:
        scores = [values.get(name) for name in SCORES_OF_PAIR]
        if None in scores:
            return math.nan
        try:
            margin = number_of(scores[0], "score") - number_of(scores[1], "score")
        except RowFault:
            margin = math.nan
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < 1e300:
        note("margin_unread")
        return math.nan
    return float(margin)
