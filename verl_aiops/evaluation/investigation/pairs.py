"""Preference data of a model's own investigations: whole conversations, right against wrong on the same case."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.investigation.evaluate import Line, read_investigations
from verl_aiops.evaluation.investigation.questions import CaseQuestion, fingerprint, read_case_questions
from verl_aiops.evaluation.on_policy.sampled import answers_in, asked_of, check_held_out, check_not_seen, one_each
from verl_aiops.evaluation.on_policy.summary import OwnPairOptions
from verl_aiops.incidents import FORMS, neutralise, row_writers
from verl_aiops.inputs.shown import counted
from verl_aiops.rewards.aiops_investigation import compute_score
from verl_aiops.rewards.investigation.settings import read_investigation_settings
from verl_aiops.rewards.investigation.transcript import messages_of

__all__ = ["build_investigation_pairs"]

RIGHT, SHORTER = "right_vs_wrong", "shorter"
_TAGS = ("<tool_call>", "</tool_call>")
# a right investigation is the longer one of a pair where it has so many times the characters of the shorter one
_LONGER = 1.5


@dataclass
class _Summary:
    out: str
    form: str
    cases: int = 0
    answers: int = 0
    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.kinds.items()))
        lines = [
            f"{self.form} of own investigations: {counted(self.cases, 'case')}, "
            f"{counted(self.answers, 'investigation')}",
            f"  {counted(self.rows, 'row')} in {self.out}: {kinds}",
        ]
        lines += [f"  {counted(count, 'case')} without one: {why}" for why, count in sorted(self.without.items())]
        lines += [
            f"  {counted(count, 'investigation')} left out: {why}" for why, count in sorted(self.left_out.items())
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Own:
    """One usable investigation: its messages, its score anew, whether the set is exact, its length."""

    messages: list[dict[str, str]]
    score: float
    right: bool
    verdict: str
    chars: int


def build_investigation_pairs(
    generations: Sequence[str | Path],
    out: str | Path,
    *,
    data: Sequence[str | Path] = (),
    trained_on: Sequence[str | Path] = (),
    options: OwnPairOptions | None = None,
    overwrite: bool = False,
) -> _Summary:
    """Write whole conversations after the prompt that was asked, in the columns of `incidents.FORMS`.

    Pairs: the right investigation with the highest score, the shorter among equals, against wrong ones with different
    verdicts; of a case with right ones alone, the shortest against the longest, where that is half as long again.
    Groups and labels: all of them, with their scores, or whether they are right. Calls stand in the assistant's texts
    as it wrote them, and what it was told in messages of the role tool, which are not trained.

    Args and errors as `on_policy.pairs.build_own_pairs`.
    """
    options = options or OwnPairOptions()
    if options.chosen == "truth":
        raise EvaluationError("--chosen truth: an investigation that ends in the truth is one that was never made")
    summary = _Summary(str(out), options.form)
    asked: dict[str, CaseQuestion] = {}
    answers: dict[str, list[_Own]] = {}
    each_data, each_trained = one_each("--data", data, generations), one_each("--trained-on", trained_on, generations)
    for given, of, seen in zip_longest(generations, each_data, each_trained):
        file = answers_in(Path(given))
        _, questions, reward = asked_of(file, of, read_case_questions, fingerprint, read_investigation_settings)
        check_held_out(file, questions, options)
        if seen is not None:
            check_not_seen(file, questions, Path(seen))
        for question in questions:
            asked.setdefault(question.id, question)
        for line in read_investigations(file):
            summary.answers += 1
            if line["id"] not in asked:
                raise EvaluationError(f"{file}: {line['id']!r} is no case of the data that were asked; give --data")
            made = _usable(line, asked[line["id"]], reward)
            if isinstance(made, str):
                summary.left_out[made] += 1
            else:
                answers.setdefault(line["id"], []).append(made)
    summary.cases = len(asked)
    with row_writers([out], FORMS[options.form].columns, overwrite=overwrite) as (writer,):
        for name, question in asked.items():
            for row in _rows(question, answers.get(name, []), options, summary):
                writer.write(row)
                summary.rows += 1
        if not writer.count:
            told = "; ".join(f"{count:,} {why}" for why, count in sorted(summary.without.items()))
            raise EvaluationError(
                f"no row can be made of {summary.answers:,} investigations of {summary.cases:,} cases: {told}. Sample "
                "more of them at a higher temperature"
            )
    return summary


def _usable(line: Line, question: CaseQuestion, reward: Mapping[str, Any]) -> _Own | str:
    if line["error"] is not None:
        return "they have no answer"
    if any(line["cut"]):
        return "a message used up its tokens"
    texts = line["rounds"]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "a message is empty"
    if any(_control(text) for text in texts):
        return "they hold control tokens or invisible characters"
    extra = {"turns": texts, "tool_calls": line["tool_calls"], "turn_calls": line["turn_calls"]}
    score = compute_score("", texts[-1], question.ground_truth, extra, **reward)
    messages = messages_of(texts, line["tool_calls"])
    verdict = json.dumps(line["predicted"], sort_keys=True)
    return _Own(messages, score["score"], score["acc_main"] == 1, verdict, sum(len(m["content"]) for m in messages))


def _control(text: str) -> bool:
    for tag in _TAGS:
        text = text.replace(tag, "")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return neutralise(text) != text


def _rows(
    question: CaseQuestion, answers: Sequence[_Own], options: OwnPairOptions, summary: _Summary
) -> list[dict[str, Any]]:
    kept: list[_Own] = []
    for answer in answers:
        if any(answer.messages == other.messages for other in kept):
            summary.left_out["they are the same as another of their case"] += 1
        else:
            kept.append(answer)
    if options.form == "pairs":
        return _pairs(question, kept, options, summary)
    prompt = [dict(message) for message in question.messages]
    if not kept or options.form == "groups" and len({answer.score for answer in kept}) < 2:
        summary.without["all investigations have the same score" if kept else "no usable investigation"] += 1
        return []
    for answer in kept:
        summary.kinds["right" if answer.right else "wrong"] += 1
    if options.form == "groups":
        completions = [{"messages": answer.messages, "score": answer.score} for answer in kept]
        return [{"prompt": prompt, "completions": completions, **_common(question, f"{question.id}#own", "own")}]
    return [
        {
            "prompt": prompt,
            "completion": answer.messages,
            "label": answer.right,
            **_common(question, f"{question.id}#own{at}", "right" if answer.right else "wrong"),
        }
        for at, answer in enumerate(kept)
    ]


def _pairs(
    question: CaseQuestion, kept: Sequence[_Own], options: OwnPairOptions, summary: _Summary
) -> list[dict[str, Any]]:
    right = sorted((answer for answer in kept if answer.right), key=lambda answer: (-answer.score, answer.chars))
    wrong = list({answer.verdict: answer for answer in kept if not answer.right}.values())
    kind, couples = RIGHT, [(right[0], other) for other in wrong[: options.pairs_per_incident]] if right else []
    if right and not wrong:
        short, *_, long = sorted([right[0], *right], key=lambda answer: answer.chars)
        kind, couples = SHORTER, [(short, long)] if long.chars >= _LONGER * short.chars else []
    if not couples:
        why = "no right investigation" if not right else "right ones alone, as long as each other"
        summary.without[why if kept else "no usable investigation"] += 1
        return []
    summary.kinds[kind] += len(couples)
    prompt = [dict(message) for message in question.messages]
    return [
        {
            "prompt": prompt,
            "chosen": chosen.messages,
            "rejected": rejected.messages,
            **_common(question, f"{question.id}#own{at}", kind),
        }
        for at, (chosen, rejected) in enumerate(couples)
    ]


def _common(question: CaseQuestion, name: str, kind: str) -> dict[str, Any]:
    return {
        "id": name,
        "group": question.group,
        "weight": 1.0,
        "kind": kind,
        "lang": question.lang or "",
        "source": question.source or "",
        "part": question.part or "",
        "answerable": "",
        "wording": str(question.info.get("wording") or ""),
        "ground_truth": json.dumps(question.ground_truth, ensure_ascii=False),
        "incident_text": str(question.info.get("incident_text") or ""),
    }
