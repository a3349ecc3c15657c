"""Preference pairs of a model's own sampled answers: right against wrong, or truth against wrong.

What a model gets wrong by itself is what it believes; a made-up near miss is mostly something it knows to be wrong. The
answers must come from a model that was not trained on the incident, or they are right from memory: `incidents.Fold`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.on_policy.conversations import cleaned, conversation
from verl_aiops.evaluation.on_policy.sampled import (
    OwnAnswer,
    Sampled,
    check_held_out,
    check_not_seen,
    judged,
    load,
    one_each,
    unusable,
)
from verl_aiops.evaluation.on_policy.summary import CHOSEN, OwnPairOptions, OwnPairsSummary
from verl_aiops.evaluation.run.questions import Message, Question
from verl_aiops.incidents import FORMS, answer_json, neutralise, row_writers
from verl_aiops.rewards.triage.answer import FIELDS

__all__ = ["CHOSEN", "OwnPairOptions", "OwnPairsSummary", "build_own_pairs"]

OWN, TRUTH = "own_vs_own", "truth_vs_own"


def build_own_pairs(
    generations: Sequence[str | Path],
    out: str | Path,
    *,
    data: Sequence[str | Path] = (),
    trained_on: Sequence[str | Path] = (),
    options: OwnPairOptions | None = None,
    overwrite: bool = False,
) -> OwnPairsSummary:
    """Write pairs in the columns of `incidents.PREFS_COLUMNS`; ``kind`` is ``own_vs_own`` or ``truth_vs_own``. With
    another form, the columns of `incidents.FORMS`, and whole conversations after the prompt that was asked.

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
    each_data, each_trained = one_each("--data", data, generations), one_each("--trained-on", trained_on, generations)
    summary = OwnPairsSummary(str(out), options.form)
    asked: dict[str, Question] = {}
    answers: dict[str, list[OwnAnswer]] = {}
    for path, file, seen in zip_longest(generations, each_data, each_trained):
        evaluation = load(Path(path), file)
        check_held_out(evaluation.file, evaluation.questions, options)
        if seen is not None:
            check_not_seen(evaluation.file, evaluation.questions, Path(seen))
        summary.evaluations += 1
        _take_in(evaluation, asked, answers, summary)
    summary.incidents = len(asked)
    names = ", ".join(dict.fromkeys(map(str, trained_on)))
    summary.checked = (
        f"none of these faults is in {names}"
        if trained_on
        else "not checked: whether the model was trained on these incidents (--trained-on FILE)"
    )
    rows_of = _pairs if options.form == "pairs" else _judged
    with row_writers([out], FORMS[options.form].columns, overwrite=overwrite) as (writer,):
        for name, question in asked.items():
            for row in rows_of(question, answers[name], options, summary):
                writer.write(row)
        if not writer.count:
            raise EvaluationError(
                f"no {summary.one} can be made of {summary.answers:,} answers to {summary.incidents:,} incidents: "
                + "; ".join(f"{count:,} {why}" for why, count in sorted(summary.without_pair.items()))
                + ". Sample more answers at a higher temperature, or ask about incidents that the model has not seen."
            )
    return summary


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
        why = _left_out(answer, options)
        if why is not None:
            summary.left_out[why] += 1
        else:
            (right if answer.right else wrong).append(answer)
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
                **_common(question, f"{question.id}#own{len(rows)}", OWN if own else TRUTH),
            }
        )
        summary.kinds[rows[-1]["kind"]] += 1
        summary.rejected["invalid" if answer.verdict is None else "verdict"] += 1
    summary.pairs += len(rows)
    summary.with_pair += 1
    return rows


def _common(question: Question, name: str, kind: str) -> dict[str, Any]:
    """The columns that rows of every form have beside their answers."""
    return {
        "id": name,
        "group": question.group,
        "weight": 1.0,
        "kind": kind,
        "lang": question.lang or "",
        "source": question.source or "",
        "part": question.part or "",
        "answerable": question.answerable or "",
        "wording": question.wording or "",
        "ground_truth": json.dumps(question.ground_truth, ensure_ascii=False),
        "incident_text": question.incident_text,
    }


def _clean(messages: Sequence[Message], summary: OwnPairsSummary) -> list[Message]:
    clean, changed = cleaned(messages)
    summary.neutralised += changed
    return clean


def _judged(
    question: Question, answers: Sequence[OwnAnswer], options: OwnPairOptions, summary: OwnPairsSummary
) -> list[dict[str, Any]]:
    """The rows of an incident as a group or as single answers: whole conversations after the prompt that was asked."""
    prompt, kept = [dict(message) for message in question.messages], []
    for answer in answers:
        why = _left_out(answer, options)
        if why is None and any(answer.turns == other.turns for other in kept):
            why = "repeated"
        if why is None:
            kept.append(answer)
        else:
            summary.left_out[why] += 1
    tied = len({answer.score for answer in kept}) < 2
    if not kept or (options.form == "groups" and tied):
        summary.without_pair["no usable answer" if not kept else "all answers have the same score"] += 1
        return []
    texts = [_clean(conversation(question, answer.turns, 0)[1], summary) for answer in kept]
    summary.with_pair += 1
    summary.pairs += 1 if options.form == "groups" else len(kept)
    for answer in kept:
        summary.kinds["right" if answer.right else "wrong"] += 1
        if not answer.right:
            summary.rejected["invalid" if answer.verdict is None else "verdict"] += 1
    if options.form == "groups":
        completions = [{"messages": text, "score": answer.score} for text, answer in zip(texts, kept)]
        return [{"prompt": prompt, "completions": completions, **_common(question, f"{question.id}#own", "own")}]
    return [
        {
            "prompt": prompt,
            "completion": text,
            "label": answer.right,
            **_common(question, f"{question.id}#own{number}", "right" if answer.right else "wrong"),
        }
        for number, (text, answer) in enumerate(zip(texts, kept))
    ]


def _left_out(answer: OwnAnswer, options: OwnPairOptions) -> str | None:
    """Why an answer is not trained on, or None."""
    if answer.right:
        return "control" if any(neutralise(text) != text for text in answer.turns) else None
    return "invalid" if answer.verdict is None and not options.invalid else None


def _by_verdict(wrong: Sequence[OwnAnswer]) -> list[OwnAnswer]:
    """One answer of each verdict, the most frequent verdict first; then each one's second answer, and so on."""
    verdicts: dict[tuple[str, str] | None, list[OwnAnswer]] = {}
    for answer in wrong:
        verdicts.setdefault(answer.verdict, []).append(answer)
    columns = sorted(verdicts.values(), key=lambda column: -len(column))
    return [answer for row in zip_longest(*columns) for answer in row if answer is not None]


def _truth(question: Question, wrong: OwnAnswer) -> tuple[list[Message], list[Message], list[Message]]:
    known = question.ground_truth
    more = tuple((name, known[name]) for name in question.fields if name not in FIELDS and known.get(name) is not None)
    truth = answer_json(known["service"], known["incident_type"], more)
    prompt, rejected = conversation(question, wrong.turns, len(question.rounds))
    return prompt, [{"role": "assistant", "content": truth}], rejected


def _own(question: Question, right: OwnAnswer, wrong: OwnAnswer) -> tuple[list[Message], list[Message], list[Message]]:
    shared = len(question.rounds) if right.turns[:-1] == wrong.turns[:-1] else 0
    prompt, rejected = conversation(question, wrong.turns, shared)
    return prompt, conversation(question, right.turns, shared)[1], rejected
