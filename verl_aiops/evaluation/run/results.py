"""The files of an evaluation: one line per answer, written as it comes (`answer_line.AnswerLine`), and the settings
that the lines belong to, ``settings.json``.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.errors import EvaluationError, check_out
from verl_aiops.evaluation.json_lines import BY_EVAL, checked_lines
from verl_aiops.evaluation.run.backend import NO_TEXT, Generation, Job
from verl_aiops.evaluation.run.result_checks import SCORES, content_fault
from verl_aiops.files import replacing, write_atomically
from verl_aiops.incidents.marks import part_of
from verl_aiops.inputs.json_text import JsonFault, read_object_file
from verl_aiops.inputs.shown import brief
from verl_aiops.rewards.aiops_mturn import compute_score, read_answer

__all__ = ["AnswerFile", "Folder", "as_bytes", "line_of", "read_lines", "without_text"]

_KINDS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "group": (str,),
    "source": (str, type(None)),
    "lang": (str, type(None)),
    "difficulty": (str, type(None)),
    "part": (str, type(None)),
    "answerable": (str, type(None)),
    "sample": (int,),
    "seed": (int,),
    "rounds": (list,),
    "cut": (list,),
    "tokens": (list, type(None)),
    "ground_truth": (dict,),
    "predicted": (dict, type(None)),
    "score": (dict, type(None)),
    "error": (str, type(None)),
}
_FILES = ("generations.jsonl", "renamed.jsonl", "settings.json", "summary.json", "table.txt")


def line_of(job: Job, made: Generation, reward: Mapping[str, Any]) -> AnswerLine:
    """The line of one conversation; ``reward`` are the reward's settings (`rewards.settings.RewardSettings`)."""
    question = job.question
    predicted = score = None
    if made.error is None:
        answer = read_answer(made.turns[-1], reward, question.ground_truth)
        if answer.ok:
            predicted = answer.fields
        extra_info = {"turns": made.turns, "incident_text": question.incident_text}
        score = compute_score("aiops_mturn", made.turns[-1], question.ground_truth, extra_info, **reward)
    return {
        "id": question.id,
        "group": question.group,
        "source": question.source,
        "lang": question.lang,
        "difficulty": question.difficulty,
        "part": question.part,
        "answerable": question.answerable,
        "sample": job.sample,
        "seed": job.seed,
        "rounds": made.turns,
        "cut": made.cut,
        "tokens": made.tokens,
        "ground_truth": question.ground_truth,
        "predicted": predicted,
        "score": score,
        "error": made.error,
    }


def without_text(lines: Iterable[AnswerLine]) -> dict[str, int]:
    """How many answers are missing because a reply had no text, by the sort of reply, the most frequent first."""
    errors = (line["error"] for line in lines if line["error"] is not None)
    sorts = (error.removeprefix(NO_TEXT).split(",")[0] for error in errors if error.startswith(NO_TEXT))
    return dict(Counter(sorts).most_common())


def read_lines(path: str | Path) -> list[AnswerLine]:
    """The lines of a ``generations.jsonl``, checked.

    Raises:
        EvaluationError: a line is not what an evaluation writes; names file and line.
    """
    return _read(Path(path), unfinished=False)[0]


def _read(path: Path, unfinished: bool) -> tuple[list[AnswerLine], int]:
    """The lines and how many bytes they take; an ``unfinished`` file may end within a line, which is left out."""
    lines: list[AnswerLine] = []
    size = 0
    for _, line, length in checked_lines(path, _fault_completed, BY_EVAL, unfinished):
        lines.append(line)
        size += length
    return lines, size


def _fault_completed(line: Any) -> str | None:
    """`_fault` of a line that has been given what lines of earlier evaluations do not have."""
    if isinstance(line, dict):
        source = line.get("source")
        line.setdefault("part", part_of(source) if isinstance(source, str) else None)
        line.setdefault("answerable", None)
    return _fault(line) or content_fault(line)


def _fault(line: Any) -> str | None:
    if not isinstance(line, dict):
        return "expected an object"
    for key, kinds in _KINDS.items():
        if key not in line:
            return f"{key}: missing"
        if not isinstance(line[key], kinds) or isinstance(line[key], bool):
            return f"{key}: expected {' or '.join(kind.__name__ for kind in kinds)}, found {brief(line[key], 40)!r}"
    if (line["score"] is None) != (line["error"] is not None):
        return "score, error: expected one of them"
    if line["score"] is not None and not all(isinstance(line["score"].get(key), int | float) for key in SCORES):
        return f"score: expected the numbers {', '.join(SCORES)}"
    return None


class AnswerFile:
    """The lines of one file, kept as they come.

    Args:
        path: of the file; what a killed run left in it is read, its failed lines left out: they are tried again.

    Raises:
        EvaluationError: the file is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lines: dict[tuple[str, int], AnswerLine] = {}
        if path.exists():
            found, size = _read(path, unfinished=True)
            self.lines = {(r["id"], r["sample"]): r for r in found if r["error"] is None}
            if len(self.lines) < len(found):
                _replace(path, self.lines.values())
            elif size < path.stat().st_size:
                os.truncate(path, size)
        self._file = path.open("ab")

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs without an answer, in order."""
        return [job for job in jobs if (job.question.id, job.sample) not in self.lines]

    def add(self, line: AnswerLine) -> None:
        self._file.write(as_bytes(line))
        self._file.flush()
        self.lines[line["id"], line["sample"]] = line

    def in_order(self, jobs: Iterable[Job]) -> list[AnswerLine]:
        """The lines that there are, in the order of the jobs; the file is put in that order too."""
        keys = [(job.question.id, job.sample) for job in jobs]
        lines = [self.lines[key] for key in keys if key in self.lines]
        self._file.close()
        _replace(self.path, lines)
        return lines

    def close(self) -> None:
        self._file.close()


def as_bytes(line: Mapping[str, Any]) -> bytes:
    """A line of a file of JSON lines."""
    try:
        return json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # an answer can spell a lone surrogate as \ud800, which UTF-8 cannot hold
        return json.dumps(line).encode("ascii") + b"\n"


def _replace(path: Path, lines: Iterable[AnswerLine]) -> None:
    with replacing(path) as temporary, temporary.open("xb") as file:
        for line in lines:
            file.write(as_bytes(line))


class Folder:
    """The folder of one evaluation, held by one process.

    Args:
        path: created where it is not there.
        settings: what the answers depend on; plain JSON values.
        overwrite: start anew where another evaluation is there.

    Raises:
        EvaluationError: the folder is in use, or holds answers that were made with other settings.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], overwrite: bool = False):
        self.path = Path(path)
        check_out(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise EvaluationError(f"--out {path}: another evaluation is writing to this folder") from None
        try:
            self._settle(json.loads(json.dumps(settings)), overwrite)
        except BaseException:
            self.close()
            raise

    def _settle(self, settings: dict[str, Any], overwrite: bool) -> None:
        if overwrite:
            for name in _FILES:
                (self.path / name).unlink(missing_ok=True)
        file = self.path / "settings.json"
        if file.exists():
            _check_same(file, settings)
            return
        left = [name for name in _FILES if (self.path / name).exists()]
        if left:
            raise EvaluationError(
                f"--out {self.path}: there is a {left[0]}, but no settings.json that says how it was made; choose "
                "another folder, or start anew with --overwrite"
            )
        write_atomically(file, json.dumps(settings, ensure_ascii=False, indent=1) + "\n")

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_same(file: Path, settings: Mapping[str, Any]) -> None:
    try:
        before = read_object_file(file)
    except JsonFault as error:
        raise EvaluationError(f"{file}: not as it was written ({error}); start anew with --overwrite") from None
    keys: Sequence[str] = [*settings, *(key for key in before if key not in settings)]
    changed = [
        f"{key} was {_shown(before.get(key))}, is {_shown(settings.get(key))}"
        for key in keys
        if before.get(key) != settings.get(key)
    ]
    if changed:
        raise EvaluationError(
            f"{file.parent} holds answers made with other settings: {'; '.join(changed)}. Restore them to go on, "
            "choose another --out, or start anew with --overwrite."
        )


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:120]
