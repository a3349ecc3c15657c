"""Two baselines without weights: the most frequent answer of the system, and a rule of thumb."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from verl_aiops.evaluation.baseline.asked import SELF, Asked, changes, pairs_of, words_of

__all__ = ["Answer", "Majority", "Rule", "words_about"]

Answer = tuple[str, str]
"""Service and incident type."""

# From least to most severe; a line has the severest it says.
_LEVELS = (
    re.compile(r"(?i)\b(?:warn(?:ing)?|degraded|retry)\b|警告|告警"),
    re.compile(r"(?i)\b(?:err(?:or)?|fail(?:ed|ure)?|exception|timeout|refused)\b|错误|失败|异常"),
    re.compile(r"(?i)\b(?:fatal|critical|crit|panic|emerg|severe|alert)\b|致命|严重"),
)
_SPAN = re.compile(r"^\s*span\b|->|→")
_BAD = re.compile(r"(?i)\b(?:error|fail(?:ed|ure)?|timeout|exception|5\d\d)\b|错误|失败|超时")
_DOUBLED_TWICE = 2
_LEAST_SEEN = 3


class Majority:
    """The most frequent pair of service and type of the source, of all sources where the source is new, among those
    that the row offers; of a row that offers none of them, each field's most frequent one, else its first."""

    def fit(self, asked: Sequence[Asked], truths: Sequence[Answer]) -> None:
        self._pairs: dict[str | None, Counter[Answer]] = {None: Counter()}
        for row, truth in zip(asked, truths):
            for source in {row.source, None}:
                self._pairs.setdefault(source, Counter())[truth] += 1
        self.size = sum(map(len, self._pairs.values()))

    def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        return [self._one(row) for row in asked]

    def _one(self, row: Asked) -> Answer:
        for source in (row.source, None):
            pairs = self._pairs.get(source, Counter())
            offered = [pair for pair in pairs if pair[0] in row.services and pair[1] in row.types]
            if offered:
                return max(offered, key=lambda pair: (pairs[pair], pair))
        counts = [Counter[str](), Counter[str]()]
        for pair, seen in self._pairs[None].items():
            for own, name in zip(counts, pair):
                own[name] += seen
        service, kind = (max(names, key=own.__getitem__) for own, names in zip(counts, (row.services, row.types)))
        return service, kind


class Rule:
    """Service: whom the last bad span of the trace calls; without one, the candidate that most of the severest lines
    name. Type: what the most telling word (or pair of words) of this service's lines goes with in training, of all
    lines where these say nothing. Where the rule has no answer, the majority's stands.

    A span is bad where it says that it failed, or took at least four times as long as usual.
    """

    def fit(self, asked: Sequence[Asked], truths: Sequence[Answer]) -> None:
        self._majority = Majority()
        self._majority.fit(asked, truths)
        seen: dict[str, Counter[str]] = {}
        for row, (service, kind) in zip(asked, truths):
            for word in words_about(row, service):
                seen.setdefault(word, Counter())[kind] += 1
        # Share of the rows with the word that have this type, a rare word held back by Laplace's rule.
        self._telling = {
            (word, kind): (count + 1) / (kinds.total() + 2)
            for word, kinds in seen.items()
            if kinds.total() >= _LEAST_SEEN
            for kind, count in kinds.items()
        }
        self.size = len(self._telling)

    def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        return [self._one(row, usual) for row, usual in zip(asked, self._majority.answer(asked))]

    def _one(self, row: Asked, usual: Answer) -> Answer:
        service = _last_bad_callee(row) or _most_severe(row) or usual[0]
        own = words_about(row, service)
        everything = {word for line in row.masked for word in _words(line)}
        return service, self._type(own, row.types) or self._type(everything, row.types) or usual[1]

    def _type(self, words: Iterable[str], types: Sequence[str]) -> str | None:
        found = [(self._telling[word, kind], kind) for word in words for kind in types if (word, kind) in self._telling]
        return max(found)[1] if found else None


def words_about(row: Asked, service: str) -> set[str]:
    """Words and pairs of words of the lines that name a candidate, names masked."""
    return {word for line in row.lines_of(service) for word in _words(line)}


def _words(line: str) -> list[str]:
    words = words_of(line)
    return words + [pair for pair in pairs_of(words) if SELF not in pair]


def _last_bad_callee(row: Asked) -> str | None:
    for line, names in zip(reversed(row.lines), reversed(row.named)):
        if names and _SPAN.search(line) and (_BAD.search(line) or any(k >= _DOUBLED_TWICE for _, k in changes(line))):
            return names[-1]
    return None


def _most_severe(row: Asked) -> str | None:
    for level in reversed(_LEVELS):
        said = Counter(name for line, names in zip(row.lines, row.named) if level.search(line) for name in set(names))
        if said:
            return max(said, key=lambda name: (said[name], -row.order[name]))
    return None
