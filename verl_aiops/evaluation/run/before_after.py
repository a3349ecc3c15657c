"""A model before and after a DPO run: held-out pairs as the run logged them, and both models' answers to their prompts.

The answers are those of `evaluate`: two evaluations, in the folders ``before`` and ``after``, which `verl-aiops
compare` reads like any others. Shares of answers have its intervals, over faults. Of the pairs only their
number and the share ranked right are known, so that interval (`shares.clopper_pearson`) takes them as independent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.backend import SamplingOptions
from verl_aiops.evaluation.run.evaluate import EvaluationPlan, evaluate
from verl_aiops.evaluation.run.questions import Question, fingerprint, read_pair_questions, sampled
from verl_aiops.evaluation.run.results import read_lines
from verl_aiops.evaluation.run.table import as_columns, share_text
from verl_aiops.evaluation.stats.metrics import FIELDS, MAIN, METRICS
from verl_aiops.evaluation.stats.shares import clopper_pearson
from verl_aiops.evaluation.training_curves import not_finite, plot_curves, read_metrics
from verl_aiops.files import replacing, write_atomically
from verl_aiops.models.folders import ModelFolder, find_model
from verl_aiops.rewards.aiops_mturn import shown
from verl_aiops.rewards.triage.settings import read_settings

__all__ = ["before_after", "held_out", "report_rows"]

_PANELS = {
    "actor/loss": "loss",
    "rewards/margins": "reward margin (chosen - rejected)",
    "logps/chosen": "log-prob of the chosen answer (nats)",
}
_ANSWERED = ("json_ok", *(right for _, right in FIELDS.values()), MAIN)
_BATCH = 8
_NOT_FINITE = "not finite"


def before_after(
    before: str, after: str, pairs: str, metrics: str, out: str, *, questions: int = 24, max_new_tokens: int = 64
) -> tuple[str, list[str]]:
    """Ask both models, and put their answers beside what the run logged of its held-out pairs.

    Args:
        before, after: model folders (`models.folders.find_model`).
        pairs: held-out preference pairs of `verl-aiops build-prefs`, whose prompts are asked.
        metrics: what verl's ``file`` logger wrote.
        out: folder for ``table.txt``, ``answers.jsonl``, ``curves.png`` and both evaluations; what an earlier call left
            there is replaced.
        questions: how many of the prompts are asked, chosen at random.
        max_new_tokens: of each answer, which is greedy.

    Returns:
        The table, and the names of the files in ``out``.

    Raises:
        EvaluationError, ModelFolderError: files, a model or a prompt that cannot be used; before any answer.
    """
    for name, value in (("--questions", questions), ("--max-new-tokens", max_new_tokens)):
        if value < 1:
            raise EvaluationError(f"{name} {value}: expected 1 or more")
    try:
        logged = read_metrics(metrics)
    except ValueError as error:
        raise EvaluationError(f"--metrics {error}") from None
    first, last = held_out(logged)
    asked = sampled(read_pair_questions(pairs), questions, seed=0)
    folder = Path(out)
    models = {"before": find_model(before, "--before"), "after": find_model(after, "--after")}
    options = SamplingOptions(max_response_length=max_new_tokens)
    summaries, lines = {}, {}
    for name, model in models.items():
        summaries[name], lines[name] = _answered(model, asked, options, folder / name, pairs)
    rows = report_rows(first, last, int(last["val/pairs"]), [summary["metrics"] for summary in summaries.values()])
    table = as_columns([("", *models), *rows]) + "".join(f"\n{line}" for line in not_finite(logged)) + "\n"
    write_atomically(folder / "table.txt", table)
    _write_answers(folder / "answers.jsonl", lines)
    files = ["table.txt", "answers.jsonl", *models]
    try:
        plot_curves({"training batch": logged}, _PANELS, folder / "curves.png")
    except ImportError:
        return table + 'no plot: matplotlib is not installed (pip install "verl-aiops[plot]")\n', files
    return table, [*files, "curves.png"]


def held_out(logged: Sequence[Mapping[str, float]]) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """The first and the last validation."""
    rows = [row for row in logged if "val/loss" in row]
    if len(rows) < 2:
        raise EvaluationError(
            f"the metrics hold {len(rows)} validation(s), two are needed: before training "
            "(trainer.val_before_train=True) and after the last step (trainer.test_freq > 0)."
        )
    return rows[0], rows[-1]


def _answered(
    model: ModelFolder, asked: Sequence[Question], options: SamplingOptions, out: Path, pairs: str
) -> tuple[dict[str, Any], list[AnswerLine]]:
    """One model's evaluation: its overall section, and the lines."""
    from verl_aiops.evaluation.run.hf_backend import LocalBackend

    backend = LocalBackend(model, options, _BATCH, "auto", out / ".merged")
    settings = {
        "model": model.path,
        "model_files": model.fingerprint(),
        "pairs": pairs,
        "questions": fingerprint(asked),
        **asdict(options),
        "reward": dict(backend.reasoning),
    }
    report = evaluate(asked, backend, out, EvaluationPlan(reward=backend.reasoning), settings, overwrite=True)
    return report.summary["overall"], read_lines(out / "generations.jsonl")


def _write_answers(path: Path, lines: Mapping[str, Sequence[AnswerLine]]) -> None:
    """What each model said to each prompt, without reasoning blocks."""
    rewards = {name: json.loads(path.with_name(name).joinpath("settings.json").read_text())["reward"] for name in lines}
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8") as file:
        for both in zip(*lines.values(), strict=True):
            said = {
                name: shown(line["rounds"][-1], read_settings(dict(rewards[name]))).text
                for name, line in zip(lines, both, strict=True)
            }
            row = {"id": both[0]["id"], "ground_truth": both[0]["ground_truth"], **said}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def report_rows(
    before: Mapping[str, float], after: Mapping[str, float], pairs: int, answers: Sequence[Mapping[str, Any]]
) -> list[tuple[str, ...]]:
    """Lines (what, before, after) of the table; ``answers`` are the metrics of both evaluations' summaries."""
    both = before, after
    gaps = [row["val/logps/chosen"] - row["val/logps/rejected"] for row in both]
    rows = [
        (f"pairs ranked right ({pairs} held out)", *(_ranked(row["val/logps/accuracies"], pairs) for row in both)),
        ("log-prob gap chosen - rejected (nats)", *(_number(gap, "+.2f") for gap in gaps)),
        ("DPO reward margin", *(_number(row["val/rewards/margins"], "+.3f") for row in both)),
    ]
    for name in _ANSWERED:
        what = f"{METRICS[name].title} ({answers[0][name]['n']} greedy answers)"
        rows.append((what, *(share_text(found[name]) for found in answers)))
    return rows


def _ranked(value: float, pairs: int) -> str:
    if not math.isfinite(value):
        return _NOT_FINITE
    low, high = clopper_pearson(value * pairs, pairs)
    return share_text({"value": value, "low": low, "high": high})


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else _NOT_FINITE
