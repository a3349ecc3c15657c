"""An investigator that knows the truth: it asks what somebody would who reads the answers, then gives the verdict.

What it asks next follows from what it has read, as far as that can be: a model that is shown it has to be able to
choose so too. The truth decides which of the services that look ill it follows, and what it answers.
"""

from __future__ import annotations

import random
import re

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.investigation.case import Case, RootCause
from verl_aiops.investigation.prompts import AskOptions
from verl_aiops.investigation.recorded import Recorded
from verl_aiops.investigation.tools.index import LOOK_BACK_S, index_of
from verl_aiops.investigation.tools.traces import failed
from verl_aiops.investigation.transcript import Transcript
from verl_aiops.investigation.verdict import right_verdict, verdict_text

__all__ = ["scripted"]

_OPERATION = re.compile(r"[(（]([A-Z]+ \S+?)[)）]")
# Of each cause one line of a metric and one of a log: a longer verdict costs a small model its budget, and a quote is
# one more text that it has to copy without a fault.
_QUOTE_CHARS, _QUOTES = 100, 2
_LINES = 5
_END = re.compile(r"\nmore with offset=\d+ \(of \d+\), the end with offset=(\d+)\Z")
# How often it looks at a service that merely suffers, or is ill for another reason, before it goes on.
_DETOUR = 0.3


def scripted(case: Case, options: AskOptions | None = None, *, seed: int = 0) -> Transcript:
    """An investigation of a case whose truth is known. Deterministic for a case, the options and a seed.

    Raises:
        IncidentError: nobody knows the truth of the case, or its answers are recorded without a path to the truth.
    """
    if not case.truth_known:
        raise IncidentError(f"case '{case.id}': expected root_causes, no_fault or cannot_tell, found none of them")
    if case.recorded is not None:
        return _along_a_path(case, case.recorded, options or AskOptions(), seed)
    return _Script(case, options or AskOptions(), random.Random(f"script/{seed}/{case.id}")).run()


def _along_a_path(case: Case, recorded: Recorded, options: AskOptions, seed: int) -> Transcript:
    """Asks what somebody asked who found the cause; of an answer that goes on, its end too. Seeds 0, 1, ... take the
    paths in their order."""
    if not recorded.paths:
        raise IncidentError(f"case '{case.id}': there is no script for recorded tools without recorded.paths")
    transcript = Transcript(case, options)
    quotes: list[str] = []
    for call in recorded.paths[seed % len(recorded.paths)]:
        said = [transcript.ask(call.name, **call.arguments)]
        if more := _END.search(said[0].text):
            said.append(transcript.ask(call.name, **call.arguments, offset=int(more[1])))
        for one in said:
            named = (line for line in one.quotes if any(cause.component in line for cause in case.root_causes))
            quotes += [line[:_QUOTE_CHARS].strip() for line in named][:1]
    transcript.verdict = verdict_text(right_verdict(case, list(dict.fromkeys(quotes))[-_QUOTES:]))
    return transcript


class _Script:
    def __init__(self, case: Case, options: AskOptions, rng: random.Random):
        self.case, self.rng = case, rng
        self.transcript = Transcript(case, options)
        self.index = index_of(case)
        self.start = None if case.alert is None else self.index.clock.of(case.alert - LOOK_BACK_S)
        operation = _OPERATION.search(case.symptom)
        known = {span.operation for span in case.signals.spans}
        self.operation = operation[1] if operation and operation[1] in known else None
        self.quotes: list[str] = []

    def run(self) -> Transcript:
        case = self.case
        failing = self._requests()
        roots = case.root_causes
        if not roots:
            self._nothing_to_name()
        else:
            if not any(cause.component in failing for cause in roots):
                # nothing that was read so far names any of them
                self.transcript.ask("search_logs", level="WARN", start=self.start, limit=2 * _LINES)
            suspects = [name for name in failing if all(name != cause.component for cause in roots)]
            if suspects and self.rng.random() < _DETOUR:
                self._logs(self.rng.choice(suspects))
            for cause in sorted(roots, key=lambda cause: cause.time or 0.0):
                self._cause(cause)
        self.transcript.verdict = verdict_text(right_verdict(case, self.quotes))
        return self.transcript

    def _requests(self) -> list[str]:
        """Asks for the requests that fail; the services that fail in them, the outermost first."""
        if not self.case.signals.spans:
            self.transcript.ask("list_services", limit=20) if self.rng.random() < 0.5 else None
            return []
        self.transcript.ask("query_traces", operation=self.operation, status="error", start=self.start, limit=_LINES)
        since = self.index.since
        shown = [
            span
            for span in self.index.spans
            if failed(span)
            and (since is None or (span.time or 0.0) >= since)
            and self.operation in (None, span.operation)
        ]
        return list(dict.fromkeys(span.service for span in shown))

    def _cause(self, cause: RootCause) -> None:
        service = cause.component
        asks = [self._metrics, self._logs]
        if self.rng.random() < 0.3:
            asks.reverse()
        for ask in asks:
            ask(service, cause)
        near = [
            note for note in self.index.changes if note.service == service and self._brought_about(note.time, cause)
        ]
        # without one in the answer, too: nobody can know before asking
        if near or (self.index.changes and self.rng.random() < _DETOUR):
            said = self.transcript.ask("list_changes", service=service, limit=_LINES)
            self._quote(said.quotes[:1] if near else ())
        callers = {edge.target for edge in self.case.propagation if edge.source == service}
        if callers and not self.case.signals.spans:
            self.transcript.ask("get_topology", service=service)

    def _brought_about(self, time: float | None, cause: RootCause) -> bool:
        return time is not None and cause.time is not None and -300 <= time - cause.time <= 0

    def _metrics(self, service: str, cause: RootCause | None = None) -> None:
        if service not in self.index.metrics_of:
            return
        said = self.transcript.ask("query_metrics", service=service, limit=_LINES)
        moved = [line for line in said.quotes if re.search(r" (?:up|down)(?: since \S+(?: \S+)?)?$", line)]
        if cause:
            self._quote(moved[:1])

    def _logs(self, service: str, cause: RootCause | None = None) -> None:
        if service not in self.index.logs_of:
            return
        level = None if any(rank is None for rank in self._ranks(service)) else "WARN"
        said = self.transcript.ask("search_logs", service=service, level=level, start=self.start, limit=_LINES)
        if cause:
            self._quote(said.quotes[:1])

    def _ranks(self, service: str) -> list[int | None]:
        return [self.index.log_ranks[at] for at in self.index.logs_of[service]]

    def _nothing_to_name(self) -> None:
        """Looks where something would have to be seen, until it is plain that there is not."""
        entry = self._entry()
        if self.index.events:
            self.transcript.ask("list_events", start=self.start, limit=_LINES)
        if entry is not None:
            self._metrics(entry)
        self.transcript.ask("search_logs", level="ERROR", start=self.start, limit=_LINES)
        below = [edge.target for edge in self.case.topology if edge.source == entry]
        if below:
            self._metrics(self.rng.choice(below))

    def _entry(self) -> str | None:
        """Where the alert's requests come in, as far as it can be known."""
        for span in self.index.spans:
            if span.parent is None and self.operation in (None, span.operation):
                return span.service
        called = {edge.target for edge in self.case.topology}
        return next((edge.source for edge in self.case.topology if edge.source not in called), None)

    def _quote(self, lines: tuple[str, ...] | list[str]) -> None:
        for line in lines:
            if len(self.quotes) < _QUOTES * max(1, len(self.case.root_causes)):
                self.quotes.append(line[:_QUOTE_CHARS].rstrip())
