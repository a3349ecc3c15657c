"""What was made of how many incidents, counted while it is written and printed at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from verl_aiops.incidents.build.case import Case
from verl_aiops.incidents.build.folds import Fold
from verl_aiops.incidents.build.label_pairs import LabelPairs
from verl_aiops.incidents.build.pairs import OTHER_SYSTEM, PairMaker
from verl_aiops.incidents.build.views import OTHER, RENAMED, SHUFFLED
from verl_aiops.incidents.io.sources import IncidentSource
from verl_aiops.incidents.marks import GIVEN_AWAY, REMEMBERED
from verl_aiops.inputs.shown import counted, one_line

_NAMES_SHOWN = 8
# A class this often on one side of a difference can be answered without reading.
_LOPSIDED = 0.75
_TRIMMED = {"evidence": "around their evidence", "blind": "blind, as a model is served"}


@dataclass
class Side:
    """Counts of one side of the split; `groups` is None where every incident is a fault of its own.

    `trim`: how its prompts are cut (`PromptOptions.trim`).
    """

    incidents: int = 0
    rows: int = 0
    groups: set[str] | None = field(default_factory=set)
    services: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    langs: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    answerable: Counter[str] = field(default_factory=Counter)
    trim: str = "evidence"
    prompt_chars: int = 0
    longest_prompt: int = 0
    trimmed: int = 0
    evidence_left_out: int = 0
    evidence_shortened: int = 0
    over_budget: int = 0
    without_evidence: int = 0
    without_analysis: int = 0
    # rows of further views by kind, and under "none" the copies that cannot be
    views: Counter[str] = field(default_factory=Counter)

    def add(self, case: Case, group: str, part: str, rows: int, prompt_chars: int) -> None:
        incident, trimmed = case.incident, case.trimmed
        self.incidents += 1
        self.rows += rows
        if self.groups is not None:
            self.groups.add(group)
        self.services[incident.service] += 1
        self.types[incident.incident_type] += 1
        self.langs[incident.lang] += 1
        self.parts[part] += 1
        self.answerable[case.answerable] += 1
        self.prompt_chars += prompt_chars
        self.longest_prompt = max(self.longest_prompt, prompt_chars)
        self.trimmed += trimmed.lines_left_out > 0
        self.evidence_left_out += trimmed.evidence_left_out
        self.evidence_shortened += trimmed.evidence_shortened
        self.over_budget += trimmed.over_budget
        self.without_evidence += not incident.evidence


@dataclass
class Part:
    """The part of the training side that a file has: a fold, or all but it. Counts what it leaves out."""

    fold: Fold
    inside: bool
    left_out: int = 0

    def keeps(self, group: str) -> bool:
        kept = self.fold.holds(group) == self.inside
        self.left_out += not kept
        return kept

    @property
    def note(self) -> str:
        return f"{'fold' if self.inside else 'all but fold'} {self.fold.number} of {self.fold.of} (from 0)"


@dataclass
class Summary:
    """Counts of a whole build; `str()` of it is the printed report. `makers` is empty where no pairs were made."""

    what: str
    source: IncidentSource
    sides: dict[str, Side]
    files: dict[str, str]
    makers: dict[str, PairMaker] = field(default_factory=dict)
    labellers: dict[str, LabelPairs] = field(default_factory=dict)
    part: Part | None = None

    @property
    def written(self) -> list[str]:
        """The files there are."""
        return list(self.files.values())

    def __str__(self) -> str:
        lines = [f"{self.what} from {self.source.name}: {counted(self.source.count, 'incident')}, {self.source.faults}"]
        lines += [f"  {line}" for line in noticed(self.source)]
        lines += [f"  {line}" for line in _labels_noticed(self.source)]
        for name, side in self.sides.items():
            lines += self._side(name, side)
            if name == "train" and self.part is not None:
                lines.append(f"    {self.part.note}; {counted(self.part.left_out, 'incident')} left out")
            if side.views:
                lines.append(_views_noted(side.views))
            if name in self.makers:
                lines += _pair_lines(self.makers[name])
            if name in self.labellers and self.labellers[name].kinds:
                lines.append(f"    pairs wrong in a further field alone: {_counted(self.labellers[name].kinds)}")
        return "\n".join(lines)

    def _side(self, name: str, side: Side) -> list[str]:
        mean_prompt = side.prompt_chars / side.incidents
        faults = side.incidents if side.groups is None else len(side.groups)
        langs = ", ".join(f"{lang} {count:,}" for lang, count in sorted(side.langs.items()))
        kept, gone, cut = _TRIMMED[side.trim], side.evidence_left_out, side.evidence_shortened
        given_away, remembered = side.answerable[GIVEN_AWAY], side.answerable[REMEMBERED]
        lines = [
            f"  {name}: {counted(side.rows, 'row')} of {counted(side.incidents, 'incident')} "
            f"({counted(faults, 'fault')}) in {self.files[name]}",
            f"    parts: {_counted(side.parts)}; answers: {given_away:,} given away (no other is listed), "
            f"{remembered:,} to be remembered (the text names no candidate service)",
            f"    classes: {counted(len(side.services), 'service')}, {counted(len(side.types), 'incident type')}; "
            f"languages: {langs}",
            f"    prompt: {mean_prompt:,.0f} characters on average, at most {side.longest_prompt:,}",
        ]
        if side.without_analysis:
            lines.append(
                f"    {counted(side.without_analysis, 'incident')} left out: no analysis, or other candidates asked"
            )
        if side.trimmed or side.without_evidence:
            lines.append(
                f"    trimmed {counted(side.trimmed, 'incident')} {kept} ({counted(gone, 'evidence line')} left out, "
                f"{cut:,} cut short); {side.without_evidence:,} without evidence"
            )
        if side.over_budget:
            why = "since their evidence stays whole" if side.trim == "evidence" else "which has no room for a line"
            verb = "exceeds" if side.over_budget == 1 else "exceed"
            lines.append(f"    {counted(side.over_budget, 'incident')} {verb} the budget, {why}")
        return lines


def _views_noted(views: Counter[str]) -> str:
    names = {OTHER: "in other views", RENAMED: "under other names", SHUFFLED: "with the names in another order"}
    made = ", ".join(f"{views[kind]:,} {name}" for kind, name in names.items() if views[kind])
    left = f"; {views['none']:,} copies under other names left out: no other name, or the data do not name the service"
    return f"    of these rows {made or 'none is another view'}{left if views['none'] else ''}"


def _labels_noticed(source: IncidentSource) -> list[str]:
    """What is to be said of each further field: its labels, and how many incidents do not say it."""
    lines = []
    for name in source.taxonomy.more_fields:
        labels = {label for system in source.taxonomy.systems.values() for label in system.labels_of(name)}
        without = source.notes.without[name]
        lines.append(
            f"answer field {name}: {counted(len(labels), 'label')}"
            + (f"; {without:,} without, which are not asked for it" if without else "")
            + ("; a single one gives itself away" if len(labels) == 1 else "")
        )
    return lines


def noticed(source: IncidentSource) -> list[str]:
    """What is to be said of how a file was read, a line each: nothing where every field was there, read and clear."""
    lines = []
    if source.notes.unknown:
        lines.append(f"fields that nothing reads: {_counted(source.notes.unknown)}")
    if source.notes.guessed:
        lines.append(f"languages guessed from the script, as no `lang` is given: {_counted(source.notes.guessed)}")
    if source.spellings:
        lines.append(str(source.spellings))
    if source.faults.contradicting:
        lines.append(
            f"{source.faults.contradicting:,} incidents whose very same data another one has with another answer: no "
            "model can be right about all of them; correct the answers, or what the data leave out"
        )
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    """`real 175, simulated 430`: names of files too, so on one line."""
    shown = sorted(counts.items(), key=lambda entry: -entry[1])[:_NAMES_SHOWN]
    more = f" and {len(counts) - len(shown):,} more" if len(counts) > len(shown) else ""
    return ", ".join(f"{one_line(name, 60)} {count:,}" for name, count in shown) + more


def _pair_lines(maker: PairMaker) -> list[str]:
    if not maker.pairs:
        return []
    total = sum(maker.options.kinds.values())
    asked = {kind: share / total for kind, share in maker.options.kinds.items() if share > 0}
    kinds = ", ".join(
        f"{kind} {maker.kinds[kind] / maker.pairs:.1%} (asked {share:.0%})" for kind, share in asked.items()
    )
    chosen, rejected = (length / maker.pairs for length in maker.lengths)
    lines = [
        f"    kinds: {kinds}",
        f"    answers: chosen {chosen:.1f} characters on average, rejected {rejected:.1f}; rejected longer in "
        f"{maker.rejected_longer / maker.pairs:.1%}, shorter in {maker.rejected_shorter / maker.pairs:.1%}",
    ]
    for name in ("service", "incident_type"):
        lines.append(f"    {name}s right / wrong: {_balance(maker, name)}")
    for kind, count in (+maker.instead).items():
        lines.append(f"    {count:,} asked as {kind} are a wrong_service that is named: no data on who calls whom")
    if maker.overlapping:
        done = "may be rejected" if maker.options.overlapping else "never rejected (--overlapping-names takes them)"
        lines.append(
            f"    names that contain the right one or lie in it, {done}: in {counted(maker.overlapping, 'incident')}"
        )
    if maker.kinds[OTHER_SYSTEM] or maker.short_incidents:
        lines.append(
            f"    fallbacks: {counted(maker.kinds[OTHER_SYSTEM], 'pair')} with names of other systems (their own has "
            f"only one answer), {counted(maker.short_incidents, 'incident')} with fewer pairs than asked for"
        )
    return lines


def _balance(maker: PairMaker, field_name: str) -> str:
    """How evenly names are the right and the wrong side of a difference; lists those that are mostly on one."""
    names = sorted({name for where, name in (*maker.right, *maker.wrong) if where == field_name})
    counts = {name: (maker.right[field_name, name], maker.wrong[field_name, name]) for name in names}
    uneven = {name: pair for name, pair in counts.items() if max(pair) > _LOPSIDED * sum(pair) and sum(pair) >= 10}
    text = f"{len(names) - len(uneven)} of {len(names)} within {1 - _LOPSIDED:.0%} to {_LOPSIDED:.0%}"
    if uneven:
        worst = sorted(uneven, key=lambda name: -abs(uneven[name][0] - uneven[name][1]))[:_NAMES_SHOWN]
        text += "; lopsided: " + ", ".join(f"{name} {uneven[name][0]}/{uneven[name][1]}" for name in worst)
        text += f" and {len(uneven) - len(worst)} more" if len(uneven) > len(worst) else ""
    return text
