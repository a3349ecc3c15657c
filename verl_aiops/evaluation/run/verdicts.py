"""The file that `verl-aiops triage --out` writes: one line an incident, as they come, taken up where it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.questions import Question
from verl_aiops.evaluation.run.results import as_bytes
from verl_aiops.files import naming, replacing
from verl_aiops.inputs.json_text import JsonFault, read_json
from verl_aiops.inputs.shown import one_line
from verl_aiops.inputs.sniff import refusal

__all__ = ["Verdicts"]


class Verdicts:
    """The lines of one file. Those with an error are left out when it is opened: their incidents are asked again. So
    is the rest of a line that a killed run left.

    Args:
        path: of the file, which need not be there.
        fields: what each line answers.

    Attributes:
        without_verdict: lines from before whose answer was no verdict.

    Raises:
        EvaluationError: the file holds something else, or answers to other fields.
    """

    def __init__(self, path: str | Path, fields: Sequence[str]):
        self.path = Path(path)
        keys = {"id", *fields, "analysis", "error"}
        kept: list[bytes] = []
        self._there: Counter[str] = Counter()
        self.without_verdict = 0
        before = self._read() if self.path.exists() else []
        for number, text in enumerate(before, 1):
            try:
                line = read_json(text)
            except JsonFault as fault:
                if number == len(before) and not text.endswith(b"\n") and text.startswith(b'{"id": '):
                    break
                raise self._other(number, f"not JSON: {fault}") from None
            if not isinstance(line, dict) or set(line) != keys or not isinstance(line["id"], str):
                raise self._other(number, f"expected an object of {', '.join(sorted(keys))}")
            if line["error"] is None:
                kept.append(text.rstrip(b"\n") + b"\n")
                self._there[line["id"]] += 1
                self.without_verdict += line[fields[0]] is None
        if kept != before:
            with replacing(self.path) as temporary:
                temporary.write_bytes(b"".join(kept))
        with naming(self.path, self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")

    def _read(self) -> list[bytes]:
        if self.path.is_dir():
            raise EvaluationError(f"--out {self.path}: expected a file of lines, found a folder")
        if unfit := refusal(self.path, "json"):
            raise EvaluationError(f"--out {self.path} {unfit}")
        return self.path.read_bytes().splitlines(keepends=True)

    def _other(self, number: int, fault: str) -> EvaluationError:
        return EvaluationError(
            f"--out {self.path}, line {number}: {one_line(fault, 300)}; the file is not of this command with these "
            "fields, choose another --out"
        )

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        """Those that have no line, in order; of several with one id as many as lines are missing."""
        there, left = self._there.copy(), []
        for question in questions:
            if there[question.id]:
                there[question.id] -= 1
            else:
                left.append(question)
        return left

    def add(self, line: Mapping[str, Any]) -> None:
        with naming(self.path, self.path):
            self._file.write(as_bytes(line))
            self._file.flush()

    def close(self) -> None:
        self._file.close()
