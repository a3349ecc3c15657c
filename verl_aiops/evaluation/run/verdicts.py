"""The file that `verl-aiops triage --out` writes: one line an incident, as they come, taken up where it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.json_lines import checked_lines
from verl_aiops.evaluation.run.questions import Question
from verl_aiops.evaluation.run.results import as_bytes
from verl_aiops.files import naming, replacing

__all__ = ["Verdicts"]

_BEGIN = b'{"id": '
_OTHER = "; the file is not of this command with these fields, choose another --out"


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
        self._there: Counter[str] = Counter()
        self.without_verdict = 0
        keys = {"id", *fields, "analysis", "error"}

        def fault_of(line: Any) -> str | None:
            if isinstance(line, dict) and set(line) == keys and isinstance(line["id"], str):
                return None
            return f"expected an object of {', '.join(sorted(keys))}"

        kept: list[Mapping[str, Any]] = []
        if self.path.exists():
            if not self.path.is_file():  # nor a device, which the next lines would replace
                raise EvaluationError(f"--out {self.path}: expected a file of lines, found a folder or the like")
            with self.path.open("rb") as file:
                begun = file.read(len(_BEGIN))
            if not _BEGIN.startswith(begun):  # what is one line without an end would be taken for a line that was cut
                raise EvaluationError(f"--out {self.path}: {fault_of(None)} a line{_OTHER}")
            for _, line, _ in checked_lines(self.path, fault_of, _OTHER, unfinished=True):
                if line["error"] is None:
                    kept.append(line)
                    self._there[line["id"]] += 1
                    self.without_verdict += line[fields[0]] is None
            with replacing(self.path) as temporary:
                temporary.write_bytes(b"".join(map(as_bytes, kept)))
        with naming(self.path, self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")

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
