"""Data files from cases: conversations of the scripted investigator for SFT, prompts with ground truth for RL.

A row of RL names its case by file and id (`load_case`), so that a worker reads the telemetry of the cases it is given
and no other, and the rows stay small.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_aiops.incidents.build.rl_rows import rl_columns, rl_row
from verl_aiops.incidents.build.sides import TRAIN, UNSEEN_SIDE, Split, is_of
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.writers import Columns, RowWriter, row_writers
from verl_aiops.incidents.marks import part_of
from verl_aiops.inputs.shown import counted, one_line
from verl_aiops.investigation.case import Case
from verl_aiops.investigation.prompts import IN_PROMPT, AskOptions, listed_reasons, opening
from verl_aiops.investigation.reading import read_cases
from verl_aiops.investigation.scripted import scripted
from verl_aiops.investigation.transcript import as_text
from verl_aiops.split import split_side

__all__ = ["CALL_FORMS", "RL_COLUMNS", "SFT_COLUMNS", "BuildSummary", "build_rl", "build_sft"]

# What verl finds a row's reward and agent loop by.
REWARD_NAME, LOOP_NAME, ABILITY = "aiops_investigation", "aiops_tools", "aiops_investigation"
# How a conversation spells its calls: as text, or in OpenAI's field `tool_calls`.
AS_TEXT, AS_FIELD = CALL_FORMS = ("text", "field")
_OF_CASE: Columns = dict.fromkeys(("id", "group", "lang", "source", "part"), "string")
SFT_COLUMNS: Columns = {"messages": "messages", **_OF_CASE}
RL_COLUMNS: Columns = rl_columns(
    {
        "index": "int",
        **_OF_CASE,
        "case_file": "string",
        "tools": "string",
        "answer_chars": "int",
        "incident_text": "string",
    }
)
Row = dict[str, Any]


@dataclass
class _Side:
    """Counts of one side of the split."""

    rows: int = 0
    groups: set[str] = field(default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    longest: int = 0


@dataclass
class BuildSummary:
    """What was written of how many cases; `str()` of it is the printed report."""

    what: str
    cases: str
    sides: dict[str, _Side]
    files: dict[str, str]
    unknown: Counter[str]
    left_out: Counter[str]

    def __str__(self) -> str:
        total = sum(side.rows for side in self.sides.values())
        lines = [f"{self.what} from {one_line(self.cases)}: {counted(total, 'case')}"]
        if self.unknown:
            shown = ", ".join(f"{one_line(name, 60)} {count:,}" for name, count in self.unknown.most_common(8))
            lines.append(f"  fields that nothing reads: {shown}")
        lines += [f"  {count:,} left out: {why}" for why, count in self.left_out.items()]
        for name, side in self.sides.items():
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in side.kinds.most_common())
            lines.append(
                f"  {name}: {counted(side.rows, 'row')} ({counted(len(side.groups), 'fault')}) in "
                f"{one_line(self.files[name])}: {kinds}"
            )
            if side.calls:
                mean = side.calls / side.rows
                lines.append(f"    {mean:.1f} calls on average; longest conversation {side.longest:,} characters")
        return "\n".join(lines)


def build_sft(
    cases: str | Path,
    out: str | Path,
    *,
    split: Split | None = None,
    val_out: str | Path | None = None,
    options: AskOptions | None = None,
    calls: str = AS_TEXT,
    seed: int = 0,
    overwrite: bool = False,
) -> BuildSummary:
    """Write an investigation a case for verl's SFT trainer: calls, the tools' answers, the verdict with its quotes.

    Args:
        cases: JSONL file of cases; those of unknown truth, or with recorded answers and no path, are left out and
            counted.
        out: training file; the other sides of `split` stand beside it, as `Split.files` names them.
        calls: `text` spells calls as Hermes' and Qwen's templates do, in messages of role and content that every
            template can hold; `field` has them in `tool_calls`, in JSONL alone, since a table's columns cannot hold
            arguments of many names without inventing empty ones.
        seed: of the script's choices.

    Columns: `SFT_COLUMNS`. Raises IncidentError, also where a side would have no row.
    """
    options = options or AskOptions()
    if calls not in CALL_FORMS:
        raise IncidentError(f"calls '{calls}': expected one of {', '.join(CALL_FORMS)}")
    if calls == AS_FIELD and Path(out).suffix.lower() != ".jsonl":
        raise IncidentError(f"{out}: calls in a field of their own are written as JSONL; let the name end in .jsonl")
    if calls == AS_TEXT and options.tools != IN_PROMPT:
        raise IncidentError(
            f"tools '{options.tools}': conversations whose calls are text have the tools in the prompt; give tools "
            f"'{IN_PROMPT}', or calls '{AS_FIELD}'"
        )

    def row_of(case: Case, side: str, counts: _Side) -> Row | str:
        if not case.truth_known:
            return "nobody knows their truth"
        if case.recorded is not None and not case.recorded.paths:
            return "their tool answers are recorded without a path to the truth, so that there is no script"
        transcript = scripted(case, options, seed=seed)
        messages = transcript.messages()
        plain = as_text(messages)
        counts.calls += len(transcript.calls)
        counts.longest = max(counts.longest, sum(len(message["content"]) for message in plain))
        return {"messages": plain if calls == AS_TEXT else messages, **_of(case, side)}

    return _write("SFT investigations", cases, out, split, val_out, SFT_COLUMNS, row_of, overwrite)


def build_rl(
    cases: str | Path,
    out: str | Path,
    *,
    split: Split | None = None,
    val_out: str | Path | None = None,
    options: AskOptions | None = None,
    overwrite: bool = False,
) -> BuildSummary:
    """Write prompts for verl's RL trainers, one a case, for the agent loop `aiops_tools`.

    Columns: `RL_COLUMNS`. `reward_model.ground_truth` is the JSON text of `Case.ground_truth`, with the reasons that
    the prompt lists. `extra_info.case_file` (absolute) and `id` are what `load_case` takes; `tools` says where a model
    reads of the tools (`AskOptions`), `answer_chars` how long an answer may be, `incident_text` is the alert.

    Args and errors as for `build_sft`; cases with recorded answers are taken too.
    """
    options = options or AskOptions()
    file = str(Path(cases).absolute())
    numbers: Counter[str] = Counter()

    def row_of(case: Case, side: str, counts: _Side) -> Row | str:
        if not case.truth_known:
            return "nobody knows their truth"
        truth = case.ground_truth()
        if case.reasons:
            truth["reasons"] = list(listed_reasons(case, options))
        extra_info = {
            "index": numbers[side],
            **_of(case, side),
            "case_file": file,
            "tools": options.tools,
            "answer_chars": options.answer_chars,
            "incident_text": case.symptom,
        }
        numbers[side] += 1
        return rl_row(REWARD_NAME, opening(case, options), LOOP_NAME, ABILITY, truth, extra_info)

    return _write("RL investigations", cases, out, split, val_out, RL_COLUMNS, row_of, overwrite)


def _of(case: Case, side: str) -> dict[str, str]:
    return {
        "id": case.id,
        "group": case.split_group,
        "lang": case.lang,
        "source": case.source,
        "part": part_of(case.source, unseen=side == UNSEEN_SIDE),
    }


def _kind(case: Case) -> str:
    if not case.root_causes:
        return "no fault" if case.no_fault else "not to be told"
    return "one root cause" if len(case.root_causes) == 1 else "several root causes"


def _write(
    what: str,
    cases: str | Path,
    out: str | Path,
    split: Split | None,
    val_out: str | Path | None,
    columns: Columns,
    row_of: Callable[[Case, str, _Side], Row | str],
    overwrite: bool,
) -> BuildSummary:
    split = split or Split()
    files = split.files(out, val_out)
    held_out = _groups_held_out(cases, split.hold_out)
    sides: dict[str, _Side] = defaultdict(_Side)
    unknown: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    with row_writers(list(files.values()), columns, overwrite=overwrite) as writers:
        by_side = dict(zip(files, writers))
        for case in read_cases(cases, unknown):
            side = _side_of(case, split, held_out)
            row = row_of(case, side, sides[side])
            if isinstance(row, str):
                left_out[row] += 1
                continue
            by_side[side].write(row)
            sides[side].rows += 1
            sides[side].groups.add(case.split_group)
            sides[side].kinds[_kind(case)] += 1
        _check_sides(by_side, str(cases), left_out)
    return BuildSummary(what, str(cases), {name: sides[name] for name in files}, files, unknown, left_out)


def _check_sides(writers: Mapping[str, RowWriter], cases: str, left_out: Counter[str]) -> None:
    total = sum(writer.count for writer in writers.values())
    for side, writer in writers.items():
        if not writer.count:
            told = "".join(f"; {count:,} left out: {why}" for why, count in left_out.items())
            mend = "give more of them" if side == TRAIN else f"give more, another seed, or no {side} side (share 0)"
            raise IncidentError(
                f"{one_line(cases)}: nothing to write for {side} from {counted(total, 'case')}{told}; {mend}"
            )


def _side_of(case: Case, split: Split, held_out: set[str]) -> str:
    if case.split_group in held_out:
        return UNSEEN_SIDE
    return split_side(case.split_group, split.val_share, split.seed, split.test_share)


def _groups_held_out(cases: str | Path, names: Sequence[str]) -> set[str]:
    """The faults of sources that nothing is trained on; a fault that reaches into one is held out in all."""
    if not names:
        return set()
    groups, sources, left = set(), set(), set(names)
    for case in read_cases(cases):
        sources.add(case.source)
        of = {name for name in names if is_of(case.source, (name,))}
        if of:
            left -= of
            groups.add(case.split_group)
    if left:
        raise IncidentError(
            f"hold out source '{min(left)}': no case of {one_line(cases)} is of it; there are: "
            f"{', '.join(sorted(sources))}"
        )
    return groups
