"""A model's own sampled answers, as pairs are made of them: read, held to the data that were asked, and judged anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.on_policy.summary import OwnPairOptions
from verl_aiops.evaluation.run.questions import Question, fingerprint, read_rl_questions, sampled
from verl_aiops.evaluation.run.results import read_lines
from verl_aiops.incidents import split_side
from verl_aiops.incidents.build.sides import is_of
from verl_aiops.incidents.marks import UNSEEN
from verl_aiops.inputs.json_text import JsonFault, read_object_file
from verl_aiops.inputs.shown import brief
from verl_aiops.rewards.aiops_mturn import compute_score, read_answer
from verl_aiops.rewards.triage.answer import normalise_label
from verl_aiops.rewards.triage.settings import read_settings

__all__ = [
    "OwnAnswer",
    "Sampled",
    "answers_in",
    "asked_of",
    "check_held_out",
    "check_not_seen",
    "judged",
    "load",
    "one_each",
    "unusable",
]


# what is read of an evaluation's settings
_SETTINGS = (
    ("data", str, "a file's name"),
    ("limit", int, "a number"),
    ("seed", int, "a number"),
    ("questions", str, "text"),
    ("reward", dict, "an object"),
)


@dataclass(frozen=True)
class OwnAnswer:
    """One answer as judged here: the assistant's turns, its score from 0 to 1, whether both fields are right."""

    turns: tuple[str, ...]
    score: float
    right: bool
    # normalised names, or None where the last round is no verdict
    verdict: tuple[str, str] | None


class Asked(Protocol):
    """What the checks of a split need of a question of any task."""

    @property
    def id(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def source(self) -> str | None: ...
    @property
    def part(self) -> str | None: ...


_Asked = TypeVar("_Asked", bound=Asked)


@dataclass(frozen=True)
class Sampled:
    """An evaluation: what was asked, the lines of its file, and the settings of the reward it was made with."""

    file: Path
    questions: list[Question]
    lines: list[AnswerLine]
    reward: Mapping[str, Any]


def load(path: Path, data: str | Path | None, option: str = "--from-generations") -> Sampled:
    """Read an evaluation, which ``option`` names, and the prompts it was asked, ``data`` or what its settings name.

    Raises:
        EvaluationError: either is missing, damaged, or not the other's.
    """
    file = answers_in(path, option)
    lines = read_lines(file)
    data, questions, reward = asked_of(file, data, read_rl_questions, fingerprint, read_settings)
    known = {question.id: question for question in questions}
    for number, line in enumerate(lines, 1):
        question = known.get(line["id"])
        if question is None or question.ground_truth != line["ground_truth"]:
            what = "no such incident" if question is None else "another ground truth"
            raise EvaluationError(f"{file}, line {number}: {line['id']!r} has {what} in {data}; give its own --data")
        if line["error"] is None and len(line["rounds"]) != len(question.rounds) + 1:
            raise EvaluationError(
                f"{file}, line {number}: expected {len(question.rounds) + 1} rounds as in {data}, found "
                f"{len(line['rounds'])}; give its own --data"
            )
    return Sampled(file, questions, lines, reward)


def answers_in(path: Path, option: str = "--from-generations") -> Path:
    """The file of answers that ``option`` names.

    Raises:
        EvaluationError: there is none.
    """
    file = path / "generations.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise EvaluationError(f"{option} {path}: expected a folder of `verl-aiops eval`, or its generations.jsonl")
    return file


def asked_of(
    file: Path,
    data: str | Path | None,
    read: Callable[[str], list[_Asked]],
    fingerprint_of: Callable[[list[_Asked]], str],
    read_reward: Callable[[dict[str, Any]], Any],
) -> tuple[str | Path, list[_Asked], Mapping[str, Any]]:
    """What a file has answers to, in ``data`` or what the settings beside it name: that file, the questions, and the
    settings of the reward. ``read``, ``fingerprint_of`` and ``read_reward`` are those of the task.

    Raises:
        EvaluationError: either is missing, damaged, or not the other's.
    """
    settings = _settings(file.with_name("settings.json"), read_reward)
    if data is None:
        data = settings.get("data")
        if data is None:
            raise EvaluationError(
                f"{file}: which prompts were asked is not known; give the file of `build-rl` as --data"
            )
        if not os.path.isfile(data):
            raise EvaluationError(
                f"{file}: was asked from {data}, which is not there (paths count from where the evaluation ran); "
                "give it as --data"
            )
    questions = sampled(read(str(data)), settings.get("limit"), settings.get("seed") or 0)
    if settings.get("questions") not in (None, fingerprint_of(questions)):
        raise EvaluationError(f"{data}: is not the file that {file} has answers to, or has changed since")
    return data, questions, settings.get("reward") or {}


def _settings(file: Path, read_reward: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        settings = read_object_file(file)
    except JsonFault as error:
        raise EvaluationError(f"{file}: not as `verl-aiops eval` wrote it: {error}") from None
    for key, kinds, what in _SETTINGS:
        value = settings.get(key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise EvaluationError(f"{file}: {key}: expected {what}, found {brief(value)}")
    if settings.get("limit") is not None and settings["limit"] < 1:
        raise EvaluationError(f"{file}: limit: expected 1 or more, found {settings['limit']}")
    try:
        read_reward(settings.get("reward") or {})
    except ValueError as error:
        raise EvaluationError(f"{file}: reward: {error}") from None
    return settings


def one_each(option: str, files: Sequence[str | Path], generations: Sequence[str | Path]) -> list[str | Path]:
    """A file for each evaluation, of those that an option named: one for all, one each, or none.

    Raises:
        EvaluationError: another number of them.
    """
    if len(files) == 1:
        return list(files) * len(generations)
    if files and len(files) != len(generations):
        raise EvaluationError(
            f"{option}: expected one file, or one for each of the {len(generations)} of --from-generations; "
            f"found {len(files)}"
        )
    return list(files)


def check_held_out(file: Path, questions: Sequence[Asked], options: OwnPairOptions) -> None:
    """Raises EvaluationError if an incident is on the validation or test side of the split, or of an unseen system."""
    val, test, seed = options.val_share, options.test_share, options.seed
    held_out: dict[str, list[str]] = {}
    for question in questions:
        side = split_side(question.group, val, seed, test)
        if question.part == UNSEEN or is_of(question.source or "", options.hold_out):
            side = "unseen"
        held_out.setdefault(side, []).append(question.id)
    held_out.pop("train", None)
    for side, ids in held_out.items():
        share = f"--test-share {test:g}" if side == "test" else f"--val-share {val:g}"
        if side == "unseen":
            why, mend = "are of a system that nothing is trained on", ""
        else:
            why = f"are held out for {'validation' if side == 'val' else 'the test'} ({share} --seed {seed})"
            mend = (
                "; if it was split otherwise, give its --val-share, --test-share and --seed, or --val-share 0 where "
                "nothing is held out"
            )
        raise EvaluationError(
            f"{file}: {len(ids)} of {len(questions)} incidents, {ids[0]!r} first, {why} and must "
            f"not be trained on. Sample answers to the training file of build-rl{mend}."
        )


def check_not_seen(file: Path, questions: Sequence[Asked], trained_on: Path) -> None:
    """Raises EvaluationError if ``trained_on``, a file with a column ``group``, has a fault that was asked about."""
    import numpy as np

    from verl_aiops.data.reading import open_files

    groups: set[str] = set()
    (trained,) = open_files(str(trained_on))
    for record in trained.records(["group", "id"], np.arange(trained.rows)):
        group = record.values.get("group") if not record.fault else None
        if not isinstance(group, str):
            raise EvaluationError(
                f"--trained-on, {record.where}: expected the fault's name in group, as build-sft writes it"
            )
        groups.add(group)
    seen = [question for question in questions if question.group in groups]
    if seen:
        raise EvaluationError(
            f"{file}: {len(seen)} of {len(questions)} incidents, {seen[0].id!r} first, are of "
            f"faults in {trained_on}, so the model may answer them from memory. Cross-fit: train without a fold "
            "(build-sft --folds K --fold I), and sample answers to that fold (build-rl --folds K --fold I)."
        )


def unusable(line: AnswerLine) -> str | None:
    """Why a line can be in no pair (a key of `own_pairs`' counts), or None."""
    if line["error"] is not None:
        return "failed"
    if any(line["cut"]):
        # the end of turn that a pair would train was never written
        return "cut"
    if not all(isinstance(text, str) and text.strip() for text in line["rounds"]):
        return "empty"
    try:
        "".join(line["rounds"]).encode("utf-8")
    except UnicodeEncodeError:
        return "unicode"
    return None


def judged(line: AnswerLine, question: Question, reward: Mapping[str, Any]) -> OwnAnswer:
    """A usable line, scored anew."""
    turns = line["rounds"]
    extra_info = {"turns": turns, "incident_text": question.incident_text}
    score = compute_score("aiops_mturn", turns[-1], question.ground_truth, extra_info, **reward)
    parsed = read_answer(turns[-1], reward, question.ground_truth)
    # a label of any length may stand in a wrong answer, and normalising long ones is slow
    verdict = (
        (normalise_label(parsed.service[:256]), normalise_label(parsed.incident_type[:256])) if parsed.ok else None
    )
    return OwnAnswer(tuple(turns), score["score"], score["acc_main"] == 1, verdict)
