"""How rows are made of a model's own answers, and what became of these, counted while it is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.incidents import FORMS
from verl_aiops.inputs.shown import counted

__all__ = ["CHOSEN", "OwnPairOptions", "OwnPairsSummary"]

CHOSEN = ("auto", "own", "truth")

_WHAT = {"pairs": "pairs of own answers", "groups": "groups of own answers", "labels": "yes/no feedback of own answers"}
# Why an answer is in no pair.
LEFT_OUT = {
    "failed": "have no answer (the evaluation's errors)",
    "cut": "used up their tokens",
    "empty": "have a round without text",
    "unicode": "hold characters that no file can",
    "control": "are right, but hold control tokens or invisible characters",
    "invalid": "are no JSON verdict (--invalid-answers skip)",
    "repeated": "are the same as another answer to their prompt",
    "spare": "repeat a wrong verdict, or are beyond --pairs-per-incident",
}


@dataclass(frozen=True)
class OwnPairOptions:
    """``chosen``: ``own`` takes the model's own right answer and makes no pair where there is none, ``truth`` the true
    verdict after the wrong answer's own analysis, ``auto`` the first where it exists, else the second. ``invalid``:
    whether answers that are no verdict may be rejected ones. ``val_share``, ``test_share``, ``hold_out`` and ``seed``
    are those of the data's split (`incidents.build.sides.Split`). ``form``, a key of `incidents.FORMS`: pairs; or all
    answers, as a group with the reward's scores, or each with a label, a yes where both fields are right.
    """

    chosen: str = "auto"
    pairs_per_incident: int = 2
    invalid: bool = True
    val_share: float = 0.1
    test_share: float = 0.0
    hold_out: tuple[str, ...] = ()
    seed: int = 0
    form: str = "pairs"

    def __post_init__(self) -> None:
        if self.chosen not in CHOSEN:
            raise EvaluationError(f"--chosen {self.chosen}: expected one of {', '.join(CHOSEN)}")
        if self.form not in FORMS:
            raise EvaluationError(f"form {self.form}: expected one of {', '.join(FORMS)}")
        if self.pairs_per_incident < 1:
            raise EvaluationError(f"--pairs-per-incident {self.pairs_per_incident}: expected 1 or more")


@dataclass
class OwnPairsSummary:
    """Counts; ``str()`` of it is the printed report."""

    out: str
    form: str = "pairs"
    evaluations: int = 0
    incidents: int = 0
    unanswered: int = 0
    answers: int = 0
    pairs: int = 0
    with_pair: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    without_pair: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    judged_otherwise: int = 0
    neutralised: int = 0
    checked: str = ""

    @property
    def one(self) -> str:
        """What one row is called."""
        return {"pairs": "pair", "groups": "group", "labels": "row"}[self.form]

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.kinds.items()))
        lines = [
            f"{_WHAT[self.form]} from {counted(self.evaluations, 'evaluation')}: "
            f"{counted(self.incidents, 'incident')}, {counted(self.answers, 'answer')}",
            f"  {counted(self.pairs, self.one)} of {counted(self.with_pair, 'incident')} in {self.out}: {kinds}",
            f"  {'rejected' if self.form == 'pairs' else 'wrong'}: {self.rejected['verdict']:,} wrong verdicts, "
            f"{self.rejected['invalid']:,} that are none",
        ]
        if self.unanswered:
            lines.append(
                f"  {counted(self.unanswered, 'incident')} asked about and without a line (an unfinished evaluation)"
            )
        for why, count in sorted(self.without_pair.items()):
            lines.append(f"  {counted(count, 'incident')} without a {self.one}: {why}")
        for why, count in sorted(self.left_out.items()):
            lines.append(f"  {counted(count, 'answer')} left out: they {LEFT_OUT[why]}")
        if self.neutralised:
            lines.append(
                f"  {counted(self.neutralised, 'text')} had control tokens or invisible characters made visible"
            )
        if self.judged_otherwise:
            lines.append(f"  {counted(self.judged_otherwise, 'answer')} judged otherwise here than in the file")
        return "\n".join([*lines, f"  {self.checked}"])
