"""A model's own analyses in place of the reference, before the verdicts of near misses.

The reference analysis quotes the known evidence, so the verdict after it is mostly a copy of the one name in it. What
stands there when the model is asked is its own analysis, with what that missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.on_policy.conversations import cleaned
from verl_aiops.evaluation.on_policy.sampled import check_not_seen, load, unusable
from verl_aiops.evaluation.run.questions import Question
from verl_aiops.incidents import Case

__all__ = ["own_analyses"]


def own_analyses(
    generations: Sequence[str | Path], data: Sequence[str | Path] = (), trained_on: Sequence[str | Path] = ()
) -> Callable[[Case], Case | None]:
    """What `incidents.build_prefs` takes as ``analyses``: a case after the model's own analysis of it.

    That is the first usable answer's first round, after the prompt that was asked. None where the incident has none, or
    was asked with other candidates than the case has.

    Args:
        generations: folders of ``verl-aiops eval``, or their ``generations.jsonl``, of prompts in two rounds.
        data, trained_on: as in `pairs.build_own_pairs`, one for each or one for all.

    Raises:
        EvaluationError: a file that does not fit another, a fault that the model was trained on, prompts of one round.
    """
    found: dict[str, tuple[Question, str]] = {}
    for path, file, seen in zip_longest(generations, _each(data, generations), _each(trained_on, generations)):
        evaluation = load(Path(path), file, "--analyses")
        if seen is not None:
            check_not_seen(evaluation.file, evaluation.questions, Path(seen))
        asked = {question.id: question for question in evaluation.questions}
        for line in evaluation.lines:
            question = asked[line["id"]]
            if len(question.rounds) != 1:
                raise EvaluationError(
                    f"--analyses {path}: {line['id']!r} was asked in {len(question.rounds) + 1} round(s), and an "
                    "analysis is the first of two"
                )
            if unusable(line) is None:
                found.setdefault(line["id"], (question, line["rounds"][0]))

    def after_own(case: Case) -> Case | None:
        question, analysis = found.get(case.incident.id, (None, ""))
        if question is None or len(case.rounds) != 2 or question.rounds[0] != case.rounds[1]["content"]:
            return None
        ((said,), _) = cleaned([{"role": "assistant", "content": analysis}])
        return replace(
            case,
            text=question.incident_text,
            rounds=(dict(question.messages[-1]), case.rounds[1]),
            analysis=said["content"],
            ground_truth=question.ground_truth,
        )

    return after_own


def _each(files: Sequence[str | Path], generations: Sequence[str | Path]) -> list[str | Path]:
    if len(files) not in (0, 1, len(generations)):
        raise EvaluationError(f"expected one file, or one for each of the {len(generations)} folders of --analyses")
    return list(files) * len(generations) if len(files) == 1 else list(files)
