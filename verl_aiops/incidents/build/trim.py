"""Cutting an incident down to a budget: around its evidence, or blind, by its text alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from verl_aiops.incidents.build.salience import by_salience
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.schema import Incident
from verl_aiops.incidents.text import layout, neutralise_incident

TRIMS = ("evidence", "blind")
# characters of a line that say anything at all
_LEAST = 20
# No measure counts fewer units than one in so many characters; what is beyond is not measured, however long a line is.
_MOST_CHARS = 8
_MARKERS = {"en": "… {} lines left out", "zh": "… 略去 {} 行"}


@dataclass(frozen=True)
class Trimmed:
    """A trimmed incident and what it cost.

    `incident.evidence` lists what is still there, so it can be quoted. `lines_left_out` counts log and trace lines,
    `evidence_left_out` the evidence strings that are gone; `evidence_shortened` is 1 if the only one kept was cut to a
    prefix, else 0. `over_budget`: what had to stay needs more than the budget.
    """

    incident: Incident
    lines_left_out: int = 0
    evidence_left_out: int = 0
    evidence_shortened: int = 0
    over_budget: bool = False


def trim_incident(
    incident: Incident,
    budget: int,
    *,
    measure: Callable[[str], int] = len,
    whole_evidence: bool = False,
    blind: bool = False,
) -> Trimmed:
    """Shorten `incident` until `measure(incident_text(incident)) <= budget`, keeping evidence and the lines near it.

    `budget` is in characters, or in whatever unit `measure` counts: pass a tokenizer's length to budget in tokens. Runs
    of dropped lines become one line that says how many. If the evidence alone is too long, as many whole evidence lines
    as fit are kept, in order; if not even the first fits, it is cut to the longest prefix that does. The incident that
    comes back is neutralised. Raises IncidentError if the budget leaves no room for any data.

    With `whole_evidence` all evidence stays, uncut: the rest of its lines and the symptom give way to it, then the
    budget does (`over_budget`), and nothing is raised.

    With `blind` the text is what an incident without evidence gives, whose lines are chosen by `by_salience`, those
    longer than the budget cut to half of it: what a model is served, where nobody knows the evidence yet. The evidence
    that happens to be left is listed; of `whole_evidence` it is left that the budget gives way where there is no room
    for any data.
    """
    incident = neutralise_incident(incident)
    gives_way = whole_evidence
    whole_evidence = whole_evidence and not blind
    if measure(layout(incident.lang, incident.symptom, incident.logs, incident.trace_lines)) <= budget:
        return Trimmed(incident)
    page = _Page(incident, incident.symptom)
    spans = {} if blind else {text: page.parts_of(text) for text in incident.evidence}
    said = [text for text, span in spans.items() if not span] if whole_evidence else []
    least = max([1, *(incident.symptom.index(text) + len(text) for text in said)])
    # At most half of the budget goes to the symptom, or a rambling one would leave nothing to triage.
    page.symptom = _beginning(incident.symptom, least, lambda symptom: measure(symptom) <= budget // 2)

    def fits(shown: Mapping[int, str], symptom: str | None = None) -> bool:
        return measure(layout(incident.lang, symptom or page.symptom, *page.sections(shown))) <= budget

    marks = list(dict.fromkeys(index for span in spans.values() for index in span))
    if not marks:
        page.shorten(budget, measure)
    order = page.by_distance(marks)
    if whole_evidence and incident.evidence:
        return _keep_evidence(page, page.marked(spans.values(), fits), order[len(marks) :], least, fits)
    count = _most(len(order), lambda n: fits({index: page.lines[index] for index in order[:n]}))
    shown = {index: page.lines[index] for index in order[:count]}
    if any(span and shown.keys() >= span.keys() for span in spans.values()) or (count and not marks):
        return page.trimmed(shown)

    text = next((text for text, span in spans.items() if span), page.lines[order[0]])
    index = min(spans[text]) if marks else order[0]
    length = _most(len(text), lambda n: fits({index: text[:n]}))
    if not text[:length].strip() and whole_evidence:
        return replace(page.trimmed({index: text}), over_budget=True)
    if not text[:length].strip() and gives_way:
        return replace(page.trimmed({index: text.lstrip()[:_LEAST]}), over_budget=True)
    if not text[:length].strip():
        least = measure(layout(incident.lang, page.symptom, *page.sections({index: ""}))) + _LEAST
        raise IncidentError(
            f"incident '{incident.id}': a budget of {budget} leaves no room for its data; give at least {least}"
        )
    return page.trimmed({index: text[:length]}, prefix=text[:length] if marks and length < len(text) else None)


def _keep_evidence(
    page: _Page, must: dict[int, str], others: list[int], least: int, fits: Callable[..., bool]
) -> Trimmed:
    """All of `must` and as many `others` as fit, with a symptom of `least` characters or more."""
    if not fits(must):
        shorter = _beginning(page.incident.symptom, least, lambda symptom: fits(must, symptom))
        if fits(must, shorter):
            page.symptom = shorter
    count = _most(len(others), lambda n: fits(must | {index: page.lines[index] for index in others[:n]}))
    shown = must | {index: page.lines[index] for index in others[:count]}
    return replace(page.trimmed(shown), over_budget=not fits(shown))


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest n in 1..limit for which `fits` holds, found by bisection; 0 if there is none."""
    return bisect_left(range(1, limit + 1), True, key=lambda n: not fits(n))


def _beginning(text: str, least: int, fits: Callable[[str], bool]) -> str:
    """`text`, or its longest beginning that fits with an ellipsis; never less than `least` characters of it."""
    if fits(text):
        return text
    length = max(least, _most(len(text), lambda n: fits(text[:n] + "…")))
    return text[:length] + "…" if length < len(text) else text


class _Page:
    """The single lines of an incident.

    Entries of several lines (stack traces) are cut line by line, not kept or lost as a whole.
    """

    def __init__(self, incident: Incident, symptom: str):
        self.incident = incident
        self.symptom = symptom
        self.logs = "\n".join(incident.logs).split("\n") if incident.logs else []
        self.trace = list(incident.trace_lines)
        self.lines = self.logs + self.trace

    def parts_of(self, text: str) -> dict[int, slice]:
        """The lines that `text` covers, and which part of each; empty if it is part of the symptom."""
        for first, section in ((0, self.logs), (len(self.logs), self.trace)):
            whole = "\n".join(section)
            start = whole.find(text)
            if start >= 0:
                first += whole.count("\n", 0, start)
                first_at = start - (whole.rfind("\n", 0, start) + 1)
                starts = [first_at, *[0] * text.count("\n")]
                return {
                    first + n: slice(at, at + len(part)) for n, (at, part) in enumerate(zip(starts, text.split("\n")))
                }
        return {}

    def shorten(self, budget: int, measure: Callable[[str], int]) -> None:
        """Cut every line that is longer than the budget to half of it: it would stand there alone, and in part."""

        def cut(line: str) -> str:
            start = line[: _MOST_CHARS * budget]
            size = measure(start) if len(line) > budget else 0
            if size <= budget and len(start) == len(line):
                return line
            return start[: max(_LEAST, len(start) * (budget // 2) // size)] + "…"

        self.logs, self.trace = [*map(cut, self.logs)], [*map(cut, self.trace)]
        self.lines = self.logs + self.trace

    def marked(self, spans: Iterable[Mapping[int, slice]], fits: Callable[[Mapping[int, str]], bool]) -> dict[int, str]:
        """The lines with evidence: whole if they fit, else each from its first to its last evidence."""
        parts: dict[int, list[slice]] = {}
        for span in spans:
            for index, part in span.items():
                parts.setdefault(index, []).append(part)
        whole = {index: self.lines[index] for index in parts}
        return whole if fits(whole) else {index: self._cut(index, parts[index]) for index in parts}

    def _cut(self, index: int, parts: list[slice]) -> str:
        line = self.lines[index]
        start, stop = min(part.start for part in parts), max(part.stop for part in parts)
        return f"{'…' if start else ''}{line[start:stop]}{'…' if stop < len(line) else ''}"

    def by_distance(self, marks: list[int]) -> list[int]:
        """All line indices: the marked ones, then the others from near to far."""
        if not marks:
            return by_salience(self.logs, self.trace)  # nothing says where to look
        others = sorted(set(range(len(self.lines))).difference(marks))
        return marks + sorted(others, key=lambda index: min(abs(index - mark) for mark in marks))

    def sections(self, shown: Mapping[int, str]) -> tuple[list[str], list[str]]:
        """Log and trace lines with `shown` in place and a marker for every run of lines that are not."""
        split = len(self.logs)
        return self._section(range(split), shown), self._section(range(split, len(self.lines)), shown)

    def _section(self, indices: Iterable[int], shown: Mapping[int, str]) -> list[str]:
        lines: list[str] = []
        gone = 0
        for index in indices:
            if index not in shown:
                gone += 1
                continue
            if gone:
                lines.append(_MARKERS[self.incident.lang].format(gone))
                gone = 0
            lines.append(shown[index])
        if gone:
            lines.append(_MARKERS[self.incident.lang].format(gone))
        return lines

    def trimmed(self, shown: Mapping[int, str], prefix: str | None = None) -> Trimmed:
        logs, trace = self.sections(shown)
        sections = (self.symptom, "\n".join(logs), "\n".join(trace))
        evidence = tuple(text for text in self.incident.evidence if any(text in section for section in sections))
        shortened = 0 if prefix is None else 1
        lost = len(self.incident.evidence) - len(evidence) - shortened
        evidence += () if prefix is None else (prefix,)
        incident = replace(
            self.incident, symptom=self.symptom, logs=tuple(logs), trace="\n".join(trace) or None, evidence=evidence
        )
        return Trimmed(incident, len(self.lines) - len(shown), lost, shortened)
