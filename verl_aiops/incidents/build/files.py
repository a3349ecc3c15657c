"""Data files from incidents: preference pairs, SFT conversations and RL prompts, with one and the same split.

What is trained on may be trimmed around the known evidence; what a model is asked for a figure (validation, test,
unseen systems) is trimmed as it is served, blind.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from tqdm import tqdm

from verl_aiops.incidents.build.case import Case, PromptOptions, assistant, build_case
from verl_aiops.incidents.build.folds import Fold
from verl_aiops.incidents.build.judged import FORMS, Rows
from verl_aiops.incidents.build.label_pairs import LabelPairs
from verl_aiops.incidents.build.pairs import PairMaker, PairOptions
from verl_aiops.incidents.build.rl_rows import rl_columns, rl_row
from verl_aiops.incidents.build.sides import SIDES, TRAIN, UNSEEN_SIDE, Split, Splitter
from verl_aiops.incidents.build.summary import Part, Side, Summary
from verl_aiops.incidents.build.views import Views
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.sources import IncidentSource
from verl_aiops.incidents.io.writers import Columns, row_writers
from verl_aiops.incidents.marks import part_of
from verl_aiops.incidents.prompts import Message, json_text
from verl_aiops.incidents.schema import Incident
from verl_aiops.inputs.shown import counted

PREFS_COLUMNS: Columns = FORMS["pairs"].columns
SFT_COLUMNS: Columns = {
    "messages": "messages",
    **dict.fromkeys(("id", "group", "lang", "source", "part", "answerable", "wording"), "string"),
}
# What verl finds a row's reward and agent loop by.
RL_NAME, RL_ABILITY = "aiops_mturn", "aiops_triage"
UNKNOWN_DIFFICULTY = "unknown"
RL_COLUMNS: Columns = rl_columns(
    {
        "index": "int",
        **dict.fromkeys(("id", "group", "lang", "source", "difficulty", "part", "answerable", "wording"), "string"),
        "incident_text": "string",
        "rounds": "strings",
        "answers": "strings",
    }
)


def iter_incidents(source: IncidentSource) -> Iterator[tuple[Incident, str]]:
    """Every incident of `source` with its split key, in order; a progress bar on a terminal's stderr."""
    incidents = tqdm(source.stream(), total=source.count, unit="incident", disable=None, file=sys.stderr, leave=False)
    for incident in incidents:
        yield incident, source.group_of(incident)


def iter_cases(source: IncidentSource, options: PromptOptions) -> Iterator[tuple[Case, str]]:
    """Every incident of `source` made ready, with its split key, in order."""
    for incident, group in iter_incidents(source):
        yield build_case(incident, source.taxonomy.system_of(incident), options), group


@dataclass(frozen=True)
class _Build:
    """What every build takes: where incidents come from and go to, and how they are asked."""

    source: IncidentSource
    out: str | Path
    split: Split
    prompts: PromptOptions
    val_trim: str
    val_out: str | Path | None = None
    overwrite: bool = False

    def asked(self, side: str) -> PromptOptions:
        """The prompt options of a side. Lists of many lengths are for training; a model is asked with the longest."""
        if side == TRAIN:
            return self.prompts
        most = self.prompts.most_listed
        return replace(self.prompts, trim=self.val_trim, max_candidates=most, candidates_range=None)


def build_prefs(
    source: IncidentSource,
    out: str | Path,
    *,
    val_out: str | Path | None = None,
    val_share: float = 0.1,
    test_share: float = 0.0,
    hold_out: Sequence[str] = (),
    seed: int = 0,
    prompts: PromptOptions | None = None,
    val_trim: str = "blind",
    pairs: PairOptions | None = None,
    form: str = "pairs",
    analyses: Callable[[Case], Case | None] | None = None,
    overwrite: bool = False,
) -> Summary:
    """Write preference data to `out` and, for `val_share` of the faults, to `val_out` (default: see `sibling`).

    `test_share` and `hold_out`: the other sides (`sides.Split`). `prompts.trim` is of the training side, `val_trim` of
    all others. `form`, a key of `FORMS`: an incident's right answer and its near misses as pairs (`PREFS_COLUMNS`), as
    one group of `completions`, each with its `score`, or as single answers, each a `completion` with its `label`. Of
    each further field that an incident says one more near miss is made, wrong in this field alone (`LabelPairs`).
    Prompts and answers are lists of {role, content}. `seed` rules the split, the candidate lists and the choice of near
    misses, so that all forms have the same ones. `analyses` puts another analysis into a case than the reference, such
    as a model's own, or leaves its incident out, which is counted. An IncidentError, or any other, leaves no
    half-written file; a side without a row is one.
    """
    if form not in FORMS:
        raise IncidentError(f"form '{form}': expected one of {', '.join(FORMS)}")
    prompts = replace(prompts or PromptOptions(), seed=seed)
    if analyses is not None:
        # they answer prompts of `build_rl`, whose text decides which candidates come first
        prompts = replace(prompts, whole_evidence=True)
    pairs = replace(pairs or PairOptions(), seed=seed)
    makers = {side: PairMaker(source.taxonomy, pairs) for side in SIDES}
    labellers = {side: LabelPairs(pairs.seed) for side in SIDES}

    def rows(case: Case, group: str, side: str) -> Rows:
        shared = {
            "prompt": case.prompt,
            "weight": 1.0,
            **_of(case, group, side),
            "ground_truth": json_text(case.ground_truth),
            "incident_text": case.text,
        }
        made = [*makers[side].make(case), *labellers[side].make(case)]
        return [{**shared, **row} for row in FORMS[form].rows_of(case, made)]

    what, columns, _ = FORMS[form]
    split = Split(val_share, test_share, seed, (*hold_out, *source.hold_out))
    build = _Build(source, out, split, prompts, val_trim, val_out, overwrite)
    summary = _write(build, what, columns, rows, analyses=analyses)
    summary.makers = {side: makers[side] for side in summary.sides}
    summary.labellers = {side: labellers[side] for side in summary.sides}
    return summary


def build_sft(
    source: IncidentSource,
    out: str | Path,
    *,
    val_out: str | Path | None = None,
    val_share: float = 0.1,
    test_share: float = 0.0,
    hold_out: Sequence[str] = (),
    seed: int = 0,
    prompts: PromptOptions | None = None,
    val_trim: str = "blind",
    fold: Fold | None = None,
    views: Views | None = None,
    overwrite: bool = False,
) -> Summary:
    """Write conversations for verl's SFT trainer, one per incident: the prompt of the pairs and the right answer.

    Columns: `SFT_COLUMNS`; `messages` is a list of {role, content}. The same source, seed and shares put the same
    incidents on the same side as in `build_prefs`, where the other arguments are told. With `fold`, its incidents are
    left out of the training file. `views`: what else the training file shows of its incidents.
    """

    def rows(case: Case, group: str, side: str) -> Rows:
        messages = [*case.prompt, assistant(case.answer)]
        return [{"messages": messages, "id": case.incident.id, **_of(case, group, side)}]

    prompts = replace(prompts or PromptOptions(), seed=seed)
    part = None if fold is None else Part(fold, inside=False)
    split = Split(val_share, test_share, seed, (*hold_out, *source.hold_out))
    build = _Build(source, out, split, prompts, val_trim, val_out, overwrite)
    return _write(build, "SFT conversations", SFT_COLUMNS, rows, part=part, views=views)


def build_rl(
    source: IncidentSource,
    out: str | Path,
    *,
    val_out: str | Path | None = None,
    val_share: float = 0.1,
    test_share: float = 0.0,
    hold_out: Sequence[str] = (),
    seed: int = 0,
    prompts: PromptOptions | None = None,
    val_trim: str = "blind",
    fold: Fold | None = None,
    views: Views | None = None,
    overwrite: bool = False,
) -> Summary:
    """Write prompts for verl's RL trainers, one per incident, with what the reward and the later rounds need.

    Columns: `RL_COLUMNS`. `prompt` holds the messages before the first answer, `extra_info.rounds` the user's texts of
    the rounds after it, `extra_info.answers` right answers to all of them (for self-play),
    `reward_model.ground_truth` is JSON text, and `extra_info.index` numbers a file's rows. Trimmed around the evidence,
    a prompt always has all of it (`PromptOptions.whole_evidence`), since the reward pays for quoting it; trimmed blind,
    the ground truth has what evidence is left. The same source, seed and shares put the same incidents on the same side
    as in `build_prefs`, where the other arguments are told. With `fold`, the training file has its incidents alone.
    `views`: what else it shows of them.
    """
    indices: dict[str, Iterator[int]] = defaultdict(count)

    def rows(case: Case, group: str, side: str) -> Rows:
        extra_info = {
            "index": next(indices[side]),
            "id": case.incident.id,
            **_of(case, group, side),
            "difficulty": case.incident.difficulty or UNKNOWN_DIFFICULTY,
            "incident_text": case.text,
            "rounds": [message["content"] for message in case.rounds[1:]],
            "answers": [case.analysis, case.answer][-len(case.rounds) :],
        }
        in_order = {key: extra_info[key] for key in RL_COLUMNS["extra_info"]}
        return [rl_row(RL_NAME, case.opening, RL_NAME, RL_ABILITY, case.ground_truth, in_order)]

    prompts = replace(prompts or PromptOptions(), seed=seed, whole_evidence=True)
    part = None if fold is None else Part(fold, inside=True)
    split = Split(val_share, test_share, seed, (*hold_out, *source.hold_out))
    build = _Build(source, out, split, prompts, val_trim, val_out, overwrite)
    return _write(build, "RL prompts", RL_COLUMNS, rows, lambda case: case.opening, part=part, views=views)


def _of(case: Case, group: str, side: str) -> dict[str, str]:
    """What rows of every kind say of their incident."""
    return {
        "group": group,
        "lang": case.incident.lang,
        "source": case.incident.source,
        "part": part_of(case.incident.source, unseen=side == UNSEEN_SIDE),
        "answerable": case.answerable,
        "wording": case.wording,
    }


def _write(
    build: _Build,
    what: str,
    columns: Columns,
    rows_of: Callable[[Case, str, str], Rows],
    prompt_of: Callable[[Case], list[Message]] = lambda case: case.prompt,
    part: Part | None = None,
    analyses: Callable[[Case], Case | None] | None = None,
    views: Views | None = None,
) -> Summary:
    source, split = build.source, build.split
    files = split.files(build.out, build.val_out)
    options = {side: build.asked(side) for side in files}
    splitter = Splitter(split, source)
    sides = {side: Side(groups=None if source.one_each else set(), trim=options[side].trim) for side in files}
    with row_writers(list(files.values()), columns, overwrite=build.overwrite) as writers:
        by_side = dict(zip(files, writers))
        for incident, group in iter_incidents(source):
            side = splitter.side_of(incident, group)
            if side == TRAIN and part is not None and not part.keeps(group):
                continue
            system = source.taxonomy.system_of(incident)
            made = build_case(incident, system, options[side])
            case = made if analyses is None else analyses(made)
            if case is None:
                sides[side].without_analysis += 1
                continue
            rows = rows_of(case, group, side)
            if views is not None and side == TRAIN:
                for kind, other in views.cases(incident, system, options[side]):
                    shown = [] if other is None else rows_of(other, group, side)
                    sides[side].views[kind if shown else "none"] += 1
                    rows += shown
            for row in rows:
                by_side[side].write(row)
            part_named = part_of(incident.source, unseen=side == UNSEEN_SIDE)
            chars = sum(len(message["content"]) for message in prompt_of(case))
            sides[side].add(case, group, part_named, len(rows), chars)
        for side, writer in by_side.items():
            if not writer.count:
                raise IncidentError(_nothing_written(source, side, split, sides[side], part))
    return Summary(what, source, sides, files, part=part)


_SIDE_NAMES = {"train": "training", "val": "validation", "test": "the test", "unseen": "unseen systems"}


def _nothing_written(source: IncidentSource, side: str, split: Split, counts: Side, part: Part | None) -> str:
    """Why a side has no row, and how to mend it."""
    where = f" in {part.note}" if part is not None and side == TRAIN else ""
    text = f"{source.name}: nothing to write for {_SIDE_NAMES[side]} from {counted(source.count, 'incident')}{where}"
    if counts.incidents:
        return f"{text}: the {counts.incidents:,} that fell on this side have only one possible answer each"
    if counts.without_analysis:
        return (
            f"{text}: none of the {counts.without_analysis:,} that fell on this side has an analysis to use; ask about "
            "this side's file of build-rl too, made with the same options, or make no such side"
        )
    share = {"val": split.val_share, "test": split.test_share}.get(side)
    if share is None:
        mend = "give more of them, more than one possible answer, or smaller shares of validation and test"
    else:
        mend = f"give more of them, another seed or a larger {side} share than {share:g}, or 0 for no such file"
    return f"{text}, which are {source.faults}; {mend}"
