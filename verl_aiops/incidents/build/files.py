"""Data files from incidents: preference pairs, SFT conversations and RL prompts, with one and the same split."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from tqdm import tqdm

from verl_aiops.incidents.build.case import Case, PromptOptions, assistant, build_case
from verl_aiops.incidents.build.folds import Fold
from verl_aiops.incidents.build.judged import FORMS, Rows
from verl_aiops.incidents.build.pairs import PairMaker, PairOptions
from verl_aiops.incidents.build.summary import Part, Side, Summary
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.sources import IncidentSource
from verl_aiops.incidents.io.writers import Columns, row_writers, sibling
from verl_aiops.incidents.prompts import Message, json_text
from verl_aiops.split import split_side

PREFS_COLUMNS: Columns = FORMS["pairs"].columns
SFT_COLUMNS: Columns = {"messages": "messages", "id": "string", "group": "string", "lang": "string", "source": "string"}
# What verl finds a row's reward and agent loop by.
RL_NAME, RL_ABILITY = "aiops_mturn", "aiops_triage"
UNKNOWN_DIFFICULTY = "unknown"
RL_COLUMNS: Columns = {
    "data_source": "string",
    "prompt": "messages",
    "agent_name": "string",
    "ability": "string",
    "reward_model": {"style": "string", "ground_truth": "string"},
    "extra_info": {
        "index": "int",
        "id": "string",
        "group": "string",
        "lang": "string",
        "source": "string",
        "difficulty": "string",
        "incident_text": "string",
        "rounds": "strings",
        "answers": "strings",
    },
}


def iter_cases(source: IncidentSource, options: PromptOptions) -> Iterator[tuple[Case, str]]:
    """Every incident of `source` made ready, with its split key, in order; a progress bar on a terminal's stderr."""
    incidents = tqdm(source.stream(), total=source.count, unit="incident", disable=None, file=sys.stderr, leave=False)
    for incident in incidents:
        yield build_case(incident, source.taxonomy.system_of(incident), options), source.group_of(incident)


def build_prefs(
    source: IncidentSource,
    out: str | Path,
    *,
    val_out: str | Path | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    prompts: PromptOptions | None = None,
    pairs: PairOptions | None = None,
    form: str = "pairs",
    overwrite: bool = False,
) -> Summary:
    """Write preference data to `out` and, for `val_share` of the faults, to `val_out` (default: see `sibling`).

    `form`, a key of `FORMS`: an incident's right answer and its near misses as pairs (`PREFS_COLUMNS`), as one group
    of `completions`, each with its `score`, or as single answers, each a `completion` with its `label`. Prompts and
    answers are lists of {role, content}. `seed` rules the split, the candidate lists and the choice of near misses, so
    that all forms have the same ones. An IncidentError, or any other, leaves no half-written file.
    """
    if form not in FORMS:
        raise IncidentError(f"form '{form}': expected one of {', '.join(FORMS)}")
    prompts = replace(prompts or PromptOptions(), seed=seed)
    pairs = replace(pairs or PairOptions(), seed=seed)
    makers = {side: PairMaker(source.taxonomy, pairs) for side in ("train", "val")}

    def rows(case: Case, group: str, side: str) -> Rows:
        shared = {
            "prompt": case.prompt,
            "group": group,
            "weight": 1.0,
            "lang": case.incident.lang,
            "source": case.incident.source,
            "ground_truth": json_text(case.ground_truth),
            "incident_text": case.text,
        }
        return [{**shared, **row} for row in FORMS[form].rows_of(case, makers[side].make(case))]

    what, columns, _ = FORMS[form]
    summary = _build(what, source, out, val_out, val_share, seed, prompts, columns, rows, overwrite)
    summary.makers = makers
    return summary


def build_sft(
    source: IncidentSource,
    out: str | Path,
    *,
    val_out: str | Path | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    prompts: PromptOptions | None = None,
    fold: Fold | None = None,
    overwrite: bool = False,
) -> Summary:
    """Write conversations for verl's SFT trainer, one per incident: the prompt of the pairs and the right answer.

    Columns: `SFT_COLUMNS`; `messages` is a list of {role, content}. The same source, seed and share put the same
    incidents on the same side as in `build_prefs`. With `fold`, its incidents are left out of the training file.
    """

    def rows(case: Case, group: str, side: str) -> Rows:
        messages = [*case.prompt, assistant(case.answer)]
        incident = case.incident
        return [
            {"messages": messages, "id": incident.id, "group": group, "lang": incident.lang, "source": incident.source}
        ]

    prompts = replace(prompts or PromptOptions(), seed=seed)
    part = None if fold is None else Part(fold, inside=False)
    return _build(
        "SFT conversations", source, out, val_out, val_share, seed, prompts, SFT_COLUMNS, rows, overwrite, part=part
    )


def build_rl(
    source: IncidentSource,
    out: str | Path,
    *,
    val_out: str | Path | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    prompts: PromptOptions | None = None,
    fold: Fold | None = None,
    overwrite: bool = False,
) -> Summary:
    """Write prompts for verl's RL trainers, one per incident, with what the reward and the later rounds need.

    Columns: `RL_COLUMNS`. `prompt` holds the messages before the first answer, `extra_info.rounds` the user's texts of
    the rounds after it, `extra_info.answers` right answers to all of them (for self-play),
    `reward_model.ground_truth` is JSON text, and `extra_info.index` numbers a file's rows. The evidence always stays in
    the prompt whole (`PromptOptions.whole_evidence`), since the reward pays for quoting it. The same source, seed and
    share put the same incidents on the same side as in `build_prefs`. With `fold`, the training file has its incidents
    alone.
    """
    indices = {side: count() for side in ("train", "val")}

    def rows(case: Case, group: str, side: str) -> Rows:
        incident = case.incident
        extra_info = {
            "index": next(indices[side]),
            "id": incident.id,
            "group": group,
            "lang": incident.lang,
            "source": incident.source,
            "difficulty": incident.difficulty or UNKNOWN_DIFFICULTY,
            "incident_text": case.text,
            "rounds": [message["content"] for message in case.rounds[1:]],
            "answers": [case.analysis, case.answer][-len(case.rounds) :],
        }
        return [
            {
                "data_source": RL_NAME,
                "prompt": case.opening,
                "agent_name": RL_NAME,
                "ability": RL_ABILITY,
                "reward_model": {"style": "rule", "ground_truth": json_text(case.ground_truth)},
                "extra_info": extra_info,
            }
        ]

    prompts = replace(prompts or PromptOptions(), seed=seed, whole_evidence=True)
    part = None if fold is None else Part(fold, inside=True)
    return _build(
        *("RL prompts", source, out, val_out, val_share, seed, prompts, RL_COLUMNS, rows, overwrite),
        prompt_of=lambda case: case.opening,
        part=part,
    )


def _build(
    what: str,
    source: IncidentSource,
    out: str | Path,
    val_out: str | Path | None,
    val_share: float,
    seed: int,
    prompts: PromptOptions,
    columns: Columns,
    rows_of: Callable[[Case, str, str], Rows],
    overwrite: bool,
    prompt_of: Callable[[Case], list[Message]] = lambda case: case.prompt,
    part: Part | None = None,
) -> Summary:
    if not 0 <= val_share < 1:
        raise IncidentError(f"val share: expected a share from 0 to below 1, found {val_share}")
    if val_out is not None and val_share == 0:
        raise IncidentError(
            f"{val_out}: a validation share of 0 leaves nothing for it; raise the share or drop the name"
        )
    files = {"train": str(out)}
    if val_share > 0:
        files["val"] = str(val_out or sibling(out, "val"))
    sides = {side: Side(groups=None if source.one_each else set()) for side in files}
    with row_writers(list(files.values()), columns, overwrite=overwrite) as writers:
        by_side = dict(zip(files, writers))
        for case, group in iter_cases(source, prompts):
            side = split_side(group, val_share, seed)
            if side == "train" and part is not None and not part.keeps(group):
                continue
            rows = rows_of(case, group, side)
            for row in rows:
                by_side[side].write(row)
            sides[side].add(case, group, len(rows), sum(len(message["content"]) for message in prompt_of(case)))
        if not by_side["train"].count:
            where = f" in {part.note}" if part is not None else ""
            raise IncidentError(
                f"{source.name}: nothing to write for training from {source.count} incidents{where}; give more of "
                "them, more than one possible answer, or a smaller validation share"
            )
    return Summary(what, source.name, sides, files, part=part)
