"""The files of an evaluation: one line per answer, written as it comes, and the settings that the lines belong to.

``generations.jsonl`` has one JSON object per line for each incident and sample, in the order of the data:

================  ====================================================================================================
key               value
================  ====================================================================================================
``id``            the incident's; with ``sample`` it names the line, and runs are paired by it
``group``         the fault that the incident belongs to; incidents of one group are not independent
``source``        the incident's system, ``lang`` its language, ``difficulty`` as the data give it; each may be null
``sample``        number of the answer, from 0
``seed``          that the answer was drawn with
``rounds``        the assistant's texts, the answer last
``cut``           for each round, whether it used up its budget without ending
``tokens``        for each round, how many were generated; null where the server does not say
``ground_truth``  as `rewards.aiops_mturn.compute_score` was given it, an object
``predicted``     ``{"service", "incident_type"}`` as the model wrote them; null where the answer is not the JSON
``score``         everything that `compute_score` returned; null where there is no answer
``error``         null, or why there is no answer; ``rounds`` then holds what was generated before. Begins with
                  ``no text: `` and the sort of reply (`without_text`) where a server's reply had none
================  ====================================================================================================

``renamed.jsonl`` has the same for the incidents with their labels renamed. ``settings.json`` is what both depend on.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.backend import NO_TEXT, Generation, Job
from verl_aiops.evaluation.run.result_checks import content_fault
from verl_aiops.files import replacing, write_atomically
from verl_aiops.inputs.json_text import JsonFault, read_json, read_object_file
from verl_aiops.inputs.shown import brief
from verl_aiops.inputs.sniff import refusal
from verl_aiops.rewards.aiops_mturn import compute_score, read_answer

__all__ = ["KEYS", "SCORES", "Folder", "Records", "read_records", "scored", "without_text"]

KEYS = ("id", "group", "source", "lang", "difficulty", "sample", "seed", "rounds", "cut", "tokens") + (
    "ground_truth",
    "predicted",
    "score",
    "error",
)
_KINDS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "group": (str,),
    "source": (str, type(None)),
    "lang": (str, type(None)),
    "difficulty": (str, type(None)),
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
SCORES = ("score", "acc", "acc_main", "json_ok", "service_ok", "type_ok", "evidence", "evidence_precision") + (
    "evidence_recall",
    "quotes",
    "invented",
    "early_verdict",
    "chars",
)
_FILES = ("generations.jsonl", "renamed.jsonl", "settings.json", "summary.json", "table.txt")

Record = dict[str, Any]


def scored(job: Job, made: Generation, reward: Mapping[str, Any]) -> Record:
    """The line of one conversation; ``reward`` are the reward's settings (`rewards.settings.RewardSettings`)."""
    question = job.question
    predicted = score = None
    if made.error is None:
        answer = read_answer(made.rounds[-1], reward)
        if answer.ok:
            predicted = {"service": answer.service, "incident_type": answer.incident_type}
        extra_info = {"turns": made.rounds, "incident_text": question.incident_text}
        score = compute_score("aiops_mturn", made.rounds[-1], question.ground_truth, extra_info, **reward)
    return {
        "id": question.id,
        "group": question.group,
        "source": question.source,
        "lang": question.lang,
        "difficulty": question.difficulty,
        "sample": job.sample,
        "seed": job.seed,
        "rounds": made.rounds,
        "cut": made.cut,
        "tokens": made.tokens,
        "ground_truth": question.ground_truth,
        "predicted": predicted,
        "score": score,
        "error": made.error,
    }


def without_text(records: Iterable[Record]) -> dict[str, int]:
    """How many answers are missing because a reply had no text, by the sort of reply, the most frequent first."""
    errors = (record["error"] for record in records if record["error"] is not None)
    sorts = (error.removeprefix(NO_TEXT).split(",")[0] for error in errors if error.startswith(NO_TEXT))
    return dict(Counter(sorts).most_common())


def read_records(path: str | Path) -> list[Record]:
    """The lines of a ``generations.jsonl``, checked.

    Raises:
        EvaluationError: a line is not what an evaluation writes; names file and line.
    """
    return _read(Path(path), unfinished=False)[0]


def _read(path: Path, unfinished: bool) -> tuple[list[Record], int]:
    """The lines and how many bytes they take; an ``unfinished`` file may end within a line, which is left out."""
    records: list[Record] = []
    size = 0
    unfit = refusal(path, "json")
    if unfit:
        raise EvaluationError(f"{path} {unfit}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if unfinished and not line.endswith(b"\n"):
                break
            try:
                record = read_json(line)
                fault = _fault(record) or content_fault(record, SCORES)
            except JsonFault as error:
                fault = f"not JSON: {error}"
            if fault:
                raise EvaluationError(f"{path}, line {number}: {fault}; the file is not as `verl-aiops eval` wrote it")
            records.append(record)
            size += len(line)
    return records, size


def _fault(record: Any) -> str | None:
    if not isinstance(record, dict):
        return "expected an object"
    for key, kinds in _KINDS.items():
        if key not in record:
            return f"{key}: missing"
        if not isinstance(record[key], kinds) or isinstance(record[key], bool):
            return f"{key}: expected {' or '.join(kind.__name__ for kind in kinds)}, found {brief(record[key], 40)!r}"
    if (record["score"] is None) != (record["error"] is not None):
        return "score, error: expected one of them"
    if record["score"] is not None and not all(isinstance(record["score"].get(key), int | float) for key in SCORES):
        return f"score: expected the numbers {', '.join(SCORES)}"
    return None


class Records:
    """The lines of one file, kept as they come.

    Args:
        path: of the file; what a killed run left in it is read, its failed lines left out: they are tried again.

    Raises:
        EvaluationError: the file is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lines: dict[tuple[str, int], Record] = {}
        if path.exists():
            records, size = _read(path, unfinished=True)
            self.lines = {(r["id"], r["sample"]): r for r in records if r["error"] is None}
            if len(self.lines) < len(records):
                _replace(path, self.lines.values())
            elif size < path.stat().st_size:
                os.truncate(path, size)
        self._file = path.open("ab")

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs without an answer, in order."""
        return [job for job in jobs if (job.question.id, job.sample) not in self.lines]

    def add(self, record: Record) -> None:
        self._file.write(_line(record))
        self._file.flush()
        self.lines[record["id"], record["sample"]] = record

    def in_order(self, jobs: Iterable[Job]) -> list[Record]:
        """The lines that there are, in the order of the jobs; the file is put in that order too."""
        keys = [(job.question.id, job.sample) for job in jobs]
        records = [self.lines[key] for key in keys if key in self.lines]
        self._file.close()
        _replace(self.path, records)
        return records

    def close(self) -> None:
        self._file.close()


def _line(record: Record) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # an answer can spell a lone surrogate as \ud800, which UTF-8 cannot hold
        return json.dumps(record).encode("ascii") + b"\n"


def _replace(path: Path, records: Iterable[Record]) -> None:
    with replacing(path) as temporary, temporary.open("xb") as file:
        for record in records:
            file.write(_line(record))


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
        if self.path.exists() and not self.path.is_dir():
            raise EvaluationError(f"--out {path}: expected a folder, found a file")
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
