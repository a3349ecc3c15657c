"""Preference pairs of a model's own sampled answers: right against wrong, or truth against wrong.

What a model gets wrong by itself is what it believes; a made-up near miss is mostly something it knows to be wrong. The
answers must come from a model that was not trained on the incident, or they are right from memory: `incidents.Fold`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.on_policy.sampled import (
    OwnAnswer,
    Sampled,
    check_held_out,
    check_not_seen,
    judged,
    load,
    unusable,
)
from verl_aiops.evaluation.run.questions import Message, Question
from verl_aiops.incidents import PREFS_COLUMNS, answer_json, neutralise, row_writers

__all__ = ["CHOSEN", "OwnPairOptions", "OwnPairsSummary", "build_own_pairs"]

CHOSEN = ("auto", "own", "truth")
OWN, TRUTH = "own_vs_own", "truth_vs_own"

# Why an answer is in no pair.
_LEFT_OUT = {
    "failed": "have no answer (the evaluation's errors)",
    "cut": "used up their tokens",
    "empty": "have a round without text",
    "unicode": "hold characters that no file can",
    "control": "are right, but hold control tokens or invisible characters",
    "invalid": "are no JSON verdict (--invalid-answers skip)",
    "spare": "repeat a wrong verdict, or are beyond --pairs-per-incident",
}


@dataclass(frozen=True)
class OwnPairOptions:
    """``chosen``: ``own`` takes the model's own right answer and makes no pair where there is none, ``truth`` the true
    verdict after the wrong answer's own analysis, ``auto`` the first where it exists, else the second. ``invalid``:
    whether answers that are no verdict may be rejected ones. ``val_share`` and ``seed`` are those of the data's split.
    """

    chosen: str = "auto"
    pairs_per_incident: int = 2
    invalid: bool = True
    val_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.chosen not in CHOSEN:
            raise EvaluationError(f"--chosen {self.chosen}: expected one of {', '.join(CHOSEN)}")
        if self.pairs_per_incident < 1:
            raise EvaluationError(f"--pairs-per-incident {self.pairs_per_incident}: expected 1 or more")


@dataclass
class OwnPairsSummary:
    """Counts; ``str()`` of it is the printed report."""

    out: str
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

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.kinds.items()))
        lines = [
            f"pairs of own answers from {self.evaluations} evaluations: {self.incidents:,} incidents, "
            f"{self.answers:,} answers",
            f"  {self.pairs:,} pairs of {self.with_pair:,} incidents in {self.out}: {kinds}",
            f"  rejected: {self.rejected['verdict']:,} wrong verdicts, {self.rejected['invalid']:,} that are none",
        ]
        if self.unanswered:
            lines.append(
                f"  {self.unanswered:,} incidents were asked about and have no line (an unfinished evaluation)"
            )
        for why, count in sorted(self.without_pair.items()):
            lines.append(f"  {count:,} incidents without a pair: {why}")
        for why, count in sorted(self.left_out.items()):
            lines.append(f"  {count:,} answers left out: they {_LEFT_OUT[why]}")
        if self.neutralised:
            lines.append(f"  {self.neutralised:,} texts had control tokens or invisible characters made visible")
        if self.judged_otherwise:
            lines.append(f"  {self.judged_otherwise:,} answers are judged otherwise here than in their file")
        return "\n".join([*lines, f"  {self.checked}"])


def build_own_pairs(
    generations: Sequence[str | Path],
    out: str | Path,
    *,
    data: Sequence[str | Path] = (),
    trained_on: Sequence[str | Path] = (),
    options: OwnPairOptions | None = None,
    overwrite: bool = False,
) -> OwnPairsSummary:
    """Write pairs in the columns of `incidents.PREFS_COLUMNS`; ``kind`` is ``own_vs_own`` or ``truth_vs_own``.

    The prompt is the one that was asked. Where both answers share all rounds before the last, or the truth is chosen,
    prompt and rejected answer's own analysis precede the pair, and only the verdict is trained; two own answers with
    different analyses are whole conversations, in which every round of the assistant is trained.

    Wrong answers are taken verdict by verdict, the most frequent first. All answers are judged anew.

    Args:
        generations: folders of ``verl-aiops eval``, or their ``generations.jsonl``.
        data: the RL files that were asked, one for each or one for all; default: those that the folders' settings name.
        trained_on: SFT or preference files that the answering models were trained on, one for each or one for all.

    Raises:
        EvaluationError: a file that does not fit another; incidents that are held out, or that the model was trained
            on; no pair at all.
        PreferenceDataError, IncidentError: a file that cannot be read or written.
    """
    options = options or OwnPairOptions()
    each_data, each_trained = _one_each("--data", data, generations), _one_each("--trained-on", trained_on, generations)
    summary = OwnPairsSummary(str(out))
    asked: dict[str, Question] = {}
    answers: dict[str, list[OwnAnswer]] = {}
    for path, file, seen in zip_longest(generations, each_data, each_trained):
        evaluation = load(Path(path), file)
        check_held_out(evaluation, options.val_share, options.seed)
        if seen is not None:
            check_not_seen(evaluation, Path(seen))
        summary.evaluations += 1
        _take_in(evaluation, asked, answers, summary)
    summary.incidents = len(asked)
    names = ", ".join(dict.fromkeys(map(str, trained_on)))
    summary.checked = (
        f"none of these faults is in {names}"
        if trained_on
        else "not checked: whether the model was trained on these incidents (--trained-on FILE)"
    )
    with row_writers([out], PREFS_COLUMNS, overwrite=overwrite) as (writer,):
        for name, question in asked.items():
            for row in _pairs(question, answers[name], options, summary):
                writer.write(row)
        if not writer.count:
            raise EvaluationError(
                f"no pair can be made of {summary.answers:,} answers to {summary.incidents:,} incidents: "
                + "; ".join(f"{count:,} {why}" for why, count in sorted(summary.without_pair.items()))
                + ". Sample more answers at a higher temperature, or ask about incidents that the model has not seen."
            )
    return summary


def _one_each(option: str, files: Sequence[str | Path], generations: Sequence[str | Path]) -> list[str | Path]:
    if len(files) == 1:
        return list(files) * len(generations)
    if files and len(files) != len(generations):
        raise EvaluationError(
            f"{option}: expected one file, or one for each of the {len(generations)} of --from-generations; "
            f"found {len(files)}"
        )
    return list(files)


def _take_in(
    evaluation: Sampled, asked: dict[str, Question], answers: dict[str, list[OwnAnswer]], summary: OwnPairsSummary
) -> None:
    answered = {line["id"] for line in evaluation.lines}
    for question in evaluation.questions:
        if asked.setdefault(question.id, question) != question:
            raise EvaluationError(
                f"{evaluation.file}: {question.id!r} was asked with another prompt in an evaluation before it"
            )
        answers.setdefault(question.id, [])
        summary.unanswered += question.id not in answered
    for line in evaluation.lines:
        summary.answers += 1
        why = unusable(line)
        if why:
            summary.left_out[why] += 1
            continue
        answer = judged(line, asked[line["id"]], evaluation.reward)
        summary.judged_otherwise += answer.right != bool(line["score"]["acc_main"])
        answers[line["id"]].append(answer)


def _pairs(
    question: Question, answers: Sequence[OwnAnswer], options: OwnPairOptions, summary: OwnPairsSummary
) -> list[dict[str, Any]]:
    right, wrong = [], []
    for answer in answers:
        if answer.right:
            if any(neutralise(text) != text for text in answer.turns):
                summary.left_out["control"] += 1
            else:
                right.append(answer)
        elif answer.verdict is None and not options.invalid:
            summary.left_out["invalid"] += 1
        else:
            wrong.append(answer)
    right.sort(key=lambda answer: -answer.score)
    own = options.chosen != "truth" and bool(right)
    if not wrong or (options.chosen == "own" and not own):
        why = "no usable answer" if not (right or wrong) else "no wrong answer" if not wrong else "no right answer"
        summary.without_pair[why] += 1
        summary.left_out["spare"] += len(wrong)
        return []
    rows: list[dict[str, Any]] = []
    for answer in _by_verdict(wrong):
        prompt, chosen, rejected = (
            _own(question, right[len(rows) % len(right)], answer) if own else _truth(question, answer)
        )
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if len(rows) == options.pairs_per_incident or any(all(row[key] == other[key] for key in row) for other in rows):
            summary.left_out["spare"] += 1
            continue
        rows.append(
            {
                **{key: _clean(messages, summary) for key, messages in row.items()},
                "id": f"{question.id}#own{len(rows)}",
                "group": question.group,
                "weight": 1.0,
                "kind": OWN if own else TRUTH,
                "lang": question.lang or "",
                "source": question.source or "",
                "ground_truth": json.dumps(question.ground_truth, ensure_ascii=False),
                "incident_text": question.incident_text,
            }
        )
        summary.kinds[rows[-1]["kind"]] += 1
        summary.rejected["invalid" if answer.verdict is None else "verdict"] += 1
    summary.pairs += len(rows)
    summary.with_pair += 1
    return rows


def _by_verdict(wrong: Sequence[OwnAnswer]) -> list[OwnAnswer]:
    """One answer of each verdict, the most frequent verdict first; then each one's second answer, and so on."""
    verdicts: dict[tuple[str, str] | None, list[OwnAnswer]] = {}
    for answer in wrong:
        verdicts.setdefault(answer.verdict, []).append(answer)
    columns = sorted(verdicts.values(), key=lambda column: -len(column))
    return [answer for row in zip_longest(*columns) for answer in row if answer is not None]


def _truth(question: Question, wrong: OwnAnswer) -> tuple[list[Message], list[Message], list[Message]]:
    truth = answer_json(question.ground_truth["service"], question.ground_truth["incident_type"])
    prompt, rejected = _conversation(question, wrong.turns, len(question.rounds))
    return prompt, [{"role": "assistant", "content": truth}], rejected


def _own(question: Question, right: OwnAnswer, wrong: OwnAnswer) -> tuple[list[Message], list[Message], list[Message]]:
    shared = len(question.rounds) if right.turns[:-1] == wrong.turns[:-1] else 0
    prompt, rejected = _conversation(question, wrong.turns, shared)
    return prompt, _conversation(question, right.turns, shared)[1], rejected


def _conversation(question: Question, turns: Sequence[str], shared: int) -> tuple[list[Message], list[Message]]:
    """The messages up to the answer of round ``shared``, and from it on; ``turns`` are the assistant's."""
    messages = [dict(message) for message in question.messages]
    for number, text in enumerate(turns):
        messages.append({"role": "assistant", "content": text})
        if number < len(question.rounds):
            messages.append({"role": "user", "content": question.rounds[number]})
    at = len(question.messages) + 2 * shared
    return messages[:at], messages[at:]


def _clean(messages: Sequence[Message], summary: OwnPairsSummary) -> list[Message]:
    """The assistant's texts without what a chat template would take for its own."""
    cleaned = []
    for message in messages:
        content = neutralise(message["content"]) if message["role"] == "assistant" else message["content"]
        summary.neutralised += content != message["content"]
        cleaned.append({"role": message["role"], "content": content})
    return cleaned
