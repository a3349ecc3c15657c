"""Reading what is compared: folders of `verl-aiops eval`, and generations that verl's trainers dumped in validation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.compare.verl_dumps import dumped_steps, read_dump
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.result_checks import content_fault
from verl_aiops.evaluation.run.results import read_lines
from verl_aiops.evaluation.stats.metrics import MAIN, METRICS
from verl_aiops.inputs.json_text import JsonFault, read_json, read_object_file
from verl_aiops.inputs.sniff import refusal

__all__ = ["Run", "label_and_path", "read_run", "read_runs"]

MAX_LABEL = 40
# of an endpoint's address; a report is made to be passed on
_CREDENTIALS = re.compile(r'//[^/@"\s]+@')


@dataclass(frozen=True)
class Run:
    """The answers of one run.

    ``incidents`` has each incident's lines (`answer_line`) in the order of their samples, failed ones included;
    ``settings`` what they were made with, as far as the files say; ``notes`` what a reader must know of them;
    ``by_prompt`` where prompts stand for incidents (`verl_dumps`); ``starts`` the first sample number of each of the
    runs that it is made of, such as those of several seeds.
    """

    label: str
    path: str
    incidents: dict[str, list[AnswerLine]]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    by_prompt: bool = False
    starts: tuple[int, ...] = (0,)

    @property
    def pooled(self) -> int:
        """How many runs it is made of."""
        return len(self.starts)


def read_runs(specs: Sequence[str]) -> list[Run]:
    """Two or more runs, each ``FOLDER`` or ``LABEL=FOLDER``; the label is the folder's name where none is given.
    ``LABEL=FOLDER,FOLDER,...`` pools runs that differ in chance alone (seeds): see `pool`.

    Raises:
        EvaluationError: see `read_run`; too few runs, or two with one label.
    """
    if len(specs) < 2:
        raise EvaluationError(
            f"expected two runs or more, found {len(specs)}; the first is what the others are held to"
        )
    named = [label_and_path(spec) for spec in specs]
    paths: dict[str, str] = {}
    for label, path in named:
        if label in paths:
            raise EvaluationError(
                f"label {label!r}: {paths[label]} and {path} both have it; give each its own: LABEL={path}"
            )
        paths[label] = path
    return [_one_or_pooled(label, path) for label, path in named]


def _one_or_pooled(label: str, path: str) -> Run:
    parts = path.split(",")
    if len(parts) == 1 or Path(path).expanduser().exists():
        return read_run(label, path)
    if len(set(parts)) < len(parts):
        raise EvaluationError(f"{label}={path}: names a run twice; pooled runs are different ones")
    return pool([read_run(label, part) for part in parts])


def pool(runs: Sequence[Run]) -> Run:
    """Several runs as one: an incident has the answers of all of them.

    So its value is the mean over the runs, and an interval over incidents is one of that mean: it holds for these runs.
    What new ones would show is `seeds`' to say. Their own shares of right answers are noted.

    Raises:
        EvaluationError: their incidents, or the truth of one, are not the same.
    """
    first = runs[0]
    incidents: dict[str, list[AnswerLine]] = {name: [] for name in first.incidents}
    offset, starts = 0, []
    for run in runs:
        starts.append(offset)
        if run.incidents.keys() != incidents.keys():
            odd = sorted(run.incidents.keys() ^ incidents.keys())
            raise EvaluationError(
                f"{first.label}: {first.path} and {run.path} hold different incidents ({len(odd):,}, such as "
                f"{odd[0]!r}); runs that are pooled must be evaluated on the same file"
            )
        for name, lines in run.incidents.items():
            if _known(lines[0]) != _known(first.incidents[name][0]):
                raise EvaluationError(
                    f"{first.label}: {name!r} has another truth or group in {run.path} than in {first.path}; runs that "
                    "are pooled must be evaluated on the same file"
                )
            incidents[name] += [{**line, "sample": line["sample"] + offset} for line in lines]
        offset += 1 + max(line["sample"] for lines in run.incidents.values() for line in lines)
    shares = ", ".join(f"{share:.1%}" for share in map(_right, runs))
    notes = [f"{len(runs)} runs pooled; {METRICS[MAIN].title} in each: {shares}"]
    notes += [f"{run.path}: {note}" for run in runs for note in run.notes]
    same = {key: value for key, value in first.settings.items() if all(r.settings.get(key) == value for r in runs)}
    path = ", ".join(run.path for run in runs)
    return Run(first.label, path, incidents, same, tuple(notes), first.by_prompt, tuple(starts))


def _right(run: Run) -> float:
    scores = [line["score"][MAIN] for lines in run.incidents.values() for line in lines if line["score"]]
    return sum(scores) / len(scores) if scores else math.nan


def label_and_path(spec: str) -> tuple[str, str]:
    """Of ``LABEL=RUN`` or ``RUN``, whose name is its label then. Raises EvaluationError."""
    label, equals, path = spec.partition("=")
    if not equals or Path(spec).exists():
        path = spec
        place = Path(path).resolve()
        label = place.stem if place.is_file() else place.name
    if not path:
        raise EvaluationError(f"{spec!r}: expected FOLDER or LABEL=FOLDER, found no folder")
    if not (0 < len(label.strip()) <= MAX_LABEL and label.isprintable()):
        raise EvaluationError(f"{spec}: expected a label of 1 to {MAX_LABEL} printable characters, found {label!r}")
    return label.strip(), path


def read_run(label: str, path: str) -> Run:
    """The run in a folder of `verl-aiops eval` or of ``trainer.validation_data_dir`` (its last step), or in one of
    their JSONL files.

    Raises:
        EvaluationError: it is none of these, not finished, or damaged; names file, line and key.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        if (place / "generations.jsonl").is_file():
            return _evaluated(label, place / "generations.jsonl", whole=True)
        steps = dumped_steps(place)
        if steps:
            others = ", ".join(str(step) for step in steps[:-1])
            note = (f"step {steps[-1]}, the last that was dumped (there are also {others})",) if others else ()
            return _dumped(label, place / f"{steps[-1]}.jsonl", note)
        raise EvaluationError(f"{path}: {_what_it_is(place)}")
    if not place.is_file():
        raise EvaluationError(f"{path}: no such folder. Name the --out of a `verl-aiops eval`, or LABEL=FOLDER.")
    row = _first_line(place)
    if "gts" in row:
        return _dumped(label, place, ())
    if {"step", "data"} <= row.keys():
        raise EvaluationError(f"{path}: metrics of verl's file logger, no answers; they go to --metrics LABEL={path}")
    return _evaluated(label, place, whole=False)


def _what_it_is(folder: Path) -> str:
    hint = "Name the --out of a `verl-aiops eval`, or a trainer.validation_data_dir."
    if (folder / "config.json").is_file():
        return f"a model's folder; evaluate it first: verl-aiops eval --model {folder} --data FILE --out FOLDER"
    inner = sorted(entry.parent.name for entry in folder.glob("*/generations.jsonl"))
    if inner:
        return f"holds several evaluations; name one of them: {', '.join(inner[:5])}"
    dumps = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and dumped_steps(entry))
    if dumps:
        return f"no generations.jsonl in it, but dumps of verl in {', '.join(dumps[:5])}; name the one of validation"
    return f"no generations.jsonl in it. {hint}"


def _first_line(file: Path) -> Mapping[str, Any]:
    unfit = refusal(file, "json")
    if unfit:
        raise EvaluationError(f"{file} {unfit}")
    with file.open("rb") as stream:
        try:
            row = read_json(stream.readline().removeprefix(b"\xef\xbb\xbf"))
        except JsonFault:
            row = None
    if not isinstance(row, dict):
        raise EvaluationError(
            f"{file}, line 1: expected a JSON object of `verl-aiops eval` (generations.jsonl) or of verl's validation"
        )
    return row


def _evaluated(label: str, file: Path, whole: bool) -> Run:
    summary, settings = (_json_object(file.with_name(name)) for name in ("summary.json", "settings.json"))
    if settings is not None:
        settings = json.loads(_CREDENTIALS.sub("//***@", json.dumps(settings)))
    if whole and summary is None:
        raise EvaluationError(
            f"{file.parent}: no summary.json, so the evaluation has not ended; the same `verl-aiops eval` finishes it"
        )
    counts = (summary or {}).get("counts")
    missing = counts.get("missing") if isinstance(counts, dict) else None
    if not isinstance(missing, int | None):
        raise EvaluationError(f"{file.with_name('summary.json')}: counts.missing: expected a number")
    notes = (f"unfinished: {missing:,} of the answers that were asked for are missing",) if missing else ()
    path = str(file.parent if whole else file)
    return Run(label, path, _by_incident(file, read_lines(file)), settings or {}, notes)


def _json_object(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        return read_object_file(file)
    except JsonFault as error:
        raise EvaluationError(f"{file}: {error}") from None


def _dumped(label: str, file: Path, notes: tuple[str, ...]) -> Run:
    note = "verl's dump names no incidents, so prompts stand for them, each a fault of its own"
    return Run(label, str(file), _by_incident(file, read_dump(file)), {}, (*notes, note), by_prompt=True)


def _by_incident(file: Path, answers: Sequence[AnswerLine]) -> dict[str, list[AnswerLine]]:
    if not answers:
        raise EvaluationError(f"{file}: no answers in it")
    incidents: dict[str, list[AnswerLine]] = {}
    for number, line in enumerate(answers, 1):
        fault = content_fault(line)
        own = incidents.setdefault(line["id"], [])
        if not fault and any(other["sample"] == line["sample"] for other in own):
            fault = f"id {line['id']!r}, sample {line['sample']}: occurs twice; each answer must stand in it once"
        if not fault and own and _known(own[0]) != _known(line):
            fault = f"id {line['id']!r}: its samples have different groups or ground truths"
        if fault:
            raise EvaluationError(f"{file}, line {number}: {fault}")
        own.append(line)
    for own in incidents.values():
        own.sort(key=lambda line: line["sample"])
    return incidents


def _known(line: AnswerLine) -> tuple[Any, ...]:
    return line["group"], line["ground_truth"]
