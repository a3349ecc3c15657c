"""`verl-aiops eval --rm`: held-out answers under a reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_aiops.data import PreferenceDataset
from verl_aiops.data.dataset import group_of
from verl_aiops.data.fields import in_options_of_command, keys_of_option
from verl_aiops.data.scoring import conversation, scoring_ids, scoring_text
from verl_aiops.data.template import ChatTemplate
from verl_aiops.evaluation.errors import EvaluationError, check_out
from verl_aiops.evaluation.on_policy.sampled import Sampled, load
from verl_aiops.evaluation.reward_model.measures import best_of_n, rank_table, ranking
from verl_aiops.evaluation.reward_model.plot import plot_best_of_n
from verl_aiops.evaluation.reward_model.scoring import Scorer
from verl_aiops.evaluation.stats.calibration import Calibration, plot_calibration
from verl_aiops.files import replacing, write_atomically
from verl_aiops.inputs.shown import counted

__all__ = ["RewardModelAsked", "evaluate_reward_model"]

_FILES = ("ranked.jsonl", "answers.jsonl", "summary.json", "table.txt", "calibration.svg", "best_of_n.svg")


@dataclass(frozen=True)
class RewardModelAsked:
    """What is scored.

    Attributes:
        pairs: preference files, pairs or groups.
        answers: folders of `verl-aiops eval --n N`, whose answers have the rule's score.
        data: what those were asked, one file; None for what their settings name.
        columns: as ``--columns``.
        limit: examples, and questions, at most, chosen at random.
    """

    pairs: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    data: str | None = None
    columns: str | None = None
    limit: int | None = None
    seed: int = 0


def evaluate_reward_model(
    name: str, scorer: Scorer, tokenizer: Any, asked: RewardModelAsked, out: str, overwrite: bool = False
) -> tuple[str, list[str]]:
    """Score, and write what it comes to.

    Args:
        name: of the model, for titles.
        scorer: of token ids.
        tokenizer: the reward model's, in whose template conversations are rendered.

    Returns:
        The table, and the names of the files in ``out``.

    Raises:
        EvaluationError, PreferenceDataError: files that cannot be used, or no score.
    """
    folder = Path(out)
    check_out(folder)
    if not (asked.pairs or asked.answers):
        raise EvaluationError("--rm: give --pairs FILE (preference pairs or groups), --answers EVAL, or both")
    if not overwrite and any((folder / file).exists() for file in _FILES):
        raise EvaluationError(f"--out {out} holds an earlier evaluation; name another folder, or give --overwrite")
    # everything is read before anything is scored
    examples, read = _examples(tokenizer, asked) if asked.pairs else ([], "")
    questions, left_out = _questions(tokenizer, asked) if asked.answers else ([], 0)
    scores = iter(scorer([ids for one in (*examples, *questions) for ids in one["ids"]]).tolist())
    for one in (*examples, *questions):
        one["scores"] = [next(scores) for _ in one.pop("ids")]
    ranked = ranking(examples, asked.seed) if examples else None
    several = [{**one, "rm": one["scores"]} for one in questions]
    best = best_of_n(several, asked.seed) if several else None
    answers = sum(len(one["ranks"]) for one in examples)
    notes = [f"{counted(len(examples), 'prompt')} with {answers} answers; {read}"] * bool(examples)
    if questions:
        head = f"{counted(len(questions), 'question')} with {len(questions[0]['rule'])} answers each"
        notes.append(f"{head}; {left_out} left out: not all have a score")
    table = "\n".join([rank_table(ranked, best), "", *notes]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    made = [file for file, rows in (("ranked.jsonl", examples), ("answers.jsonl", questions)) if rows]
    for file, rows in zip(made, filter(None, (examples, questions))):
        _write_lines(folder / file, rows)
    made += ["summary.json", "table.txt"]
    about = {"rm": name, "asked": {key: getattr(asked, key) for key in asked.__dataclass_fields__}}
    about |= {"ranking": ranked, "best_of_n": best, "left_out": left_out, "read": read}
    write_atomically(folder / "summary.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "table.txt", table)
    try:
        plots = _plots(folder, name, ranked, best)
    except ImportError:
        return table + 'no plots: matplotlib is not installed (pip install "verl-aiops[plot]")\n', made
    return table, made + plots


def _plots(folder: Path, name: str, ranked: Mapping[str, Any] | None, best: Mapping[int, Any] | None) -> list[str]:
    made = []
    if ranked:
        told = ranked["calibration"]
        fields = {key: told[key] for key in Calibration.__dataclass_fields__ if key in told}
        plot_calibration(Calibration(accuracy=ranked["accuracy"]["value"], **fields), folder / "calibration.svg", name)
        made.append("calibration.svg")
    if best:
        plot_best_of_n(best, folder / "best_of_n.svg", name)
        made.append("best_of_n.svg")
    return made


def _examples(tokenizer: Any, asked: RewardModelAsked) -> tuple[list[dict[str, Any]], str]:
    """The answers to each prompt that are compared, as lists of token ids with their ranks."""
    with in_options_of_command():
        data = PreferenceDataset(
            list(asked.pairs),
            tokenizer,
            max_prompt_length=None,
            max_response_length=None,
            limit=asked.limit,
            seed=asked.seed,
            kinds=("list",),
            scored=True,
            **keys_of_option(asked.columns),
        )
    found = []
    for at in range(len(data)):
        item = data[at]
        prompt = item["prompt_ids"].tolist()
        found.append(
            {
                "id": item["id"],
                "group": group_of(item),
                "ranks": [float(rank) for rank in item["ranks"]],
                "ids": [prompt + ids.tolist() for ids in item["answers_ids"]],
            }
        )
    return found, str(data.report)


def _questions(tokenizer: Any, asked: RewardModelAsked) -> tuple[list[dict[str, Any]], int]:
    """Questions with all their answers, and how many were left out as an answer has no text or no rule's score."""
    template = ChatTemplate(tokenizer)
    found: list[dict[str, Any]] = []
    left_out = 0
    for path in asked.answers:
        sampled = load(Path(path), asked.data, "--answers")
        of_question: dict[str, list[Any]] = {}
        for line in sampled.lines:
            of_question.setdefault(line["id"], []).append(line)
        most = max(map(len, of_question.values()), default=0)
        if most < 2:
            raise EvaluationError(
                f"--answers {path}: one answer to a question; sample more: eval --n 8 --temperature 0.8"
            )
        asked_of = {question.id: question for question in sampled.questions}
        for name, lines in list(of_question.items())[: asked.limit]:
            if len(lines) < most or any(line["error"] is not None or line["score"] is None for line in lines):
                left_out += 1
                continue
            found.append(_question(tokenizer, template, sampled, asked_of[name], lines))
    if not found:
        raise EvaluationError(f"--answers {' '.join(asked.answers)}: no question whose answers all have a score")
    if len({len(one["rule"]) for one in found}) > 1:
        raise EvaluationError("--answers: evaluations with different --n; give those of one at a time")
    return found, left_out


def _question(tokenizer: Any, template: ChatTemplate, sampled: Sampled, question: Any, lines: Sequence[Any]) -> dict:
    dialogues = [conversation(question.messages, line["rounds"], question.rounds) for line in lines]
    texts = [scoring_text(tokenizer, messages, template) for messages in dialogues]
    return {
        "id": question.id,
        "group": question.group,
        "file": str(sampled.file),
        "rule": [float(line["score"]["score"]) for line in lines],
        "ids": [scoring_ids(tokenizer, text) for text in texts],
    }


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
