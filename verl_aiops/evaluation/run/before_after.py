"""Before and after a DPO run: one table, one plot, the answers themselves.

    python -m verl_aiops.evaluation.run.before_after --before MODEL --after RUN/huggingface \
        --pairs pairs.val.parquet --metrics RUN/metrics.jsonl --out RUN/report

``--metrics`` is what verl's ``file`` logger wrote; pair accuracy and margin on held-out pairs stand in it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path

from verl_aiops.evaluation.run.answers import generate_answers, read_questions, score_answers, wilson_interval
from verl_aiops.evaluation.training_curves import not_finite, plot_curves, read_metrics
from verl_aiops.files import replacing, write_atomically

__all__ = ["main", "report_rows"]

_PANELS = {
    "actor/loss": "loss",
    "rewards/margins": "reward margin (chosen - rejected)",
    "logps/chosen": "log-prob of the chosen answer (nats)",
}


def _held_out(metrics: list[dict]) -> tuple[dict, dict]:
    rows = [m for m in metrics if "val/loss" in m]
    if len(rows) < 2:
        raise ValueError(
            f"the metrics hold {len(rows)} validation(s), two are needed: before training "
            "(trainer.val_before_train=True) and after the last step (trainer.test_freq > 0)."
        )
    return rows[0], rows[-1]


_NOT_FINITE = "not finite"


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else _NOT_FINITE


def _share(value: float, n: int) -> str:
    if not math.isfinite(value):
        return _NOT_FINITE
    low, high = wilson_interval(value * n, n)
    return f"{100 * value:5.1f} % [{100 * low:.0f}, {100 * high:.0f}]"


def report_rows(before: dict, after: dict, pairs: int, answers: tuple) -> list[tuple[str, str, str]]:
    """Lines (what, before, after) of the table; shares with 95 % Wilson intervals."""
    gap = [m["val/logps/chosen"] - m["val/logps/rejected"] for m in (before, after)]
    rows = [
        (
            f"pairs ranked right ({pairs} held out)",
            *(_share(m["val/logps/accuracies"], pairs) for m in (before, after)),
        ),
        ("log-prob gap chosen - rejected (nats)", *(_number(g, "+.2f") for g in gap)),
        ("DPO reward margin", *(_number(m["val/rewards/margins"], "+.3f") for m in (before, after))),
    ]
    names = {"json_ok": "valid JSON", "service_ok": "service right", "type_ok": "type right", "acc_main": "both right"}
    for key, name in names.items():
        rows.append((f"{name} ({answers[0].n} greedy answers)", *(_share(getattr(a, key), a.n) for a in answers)))
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m verl_aiops.evaluation.run.before_after",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--before", required=True, help="model folder the run started from")
    parser.add_argument("--after", required=True, help="model folder the run wrote")
    parser.add_argument("--pairs", required=True, help="held-out preference parquet from verl-aiops build-prefs")
    parser.add_argument("--metrics", required=True, help="JSON lines of verl's file logger")
    parser.add_argument("--out", required=True, help="folder for table, plot and answers")
    parser.add_argument("--questions", type=int, default=24, help="held-out incidents to answer (default 24)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args(argv)
    try:
        metrics = read_metrics(arguments.metrics)
        before, after = _held_out(metrics)
        pairs = int(after["val/pairs"])
        questions = read_questions(arguments.pairs, arguments.questions)
    except (OSError, ValueError) as error:
        print(f"before_after: error: {error}", file=sys.stderr)
        return 2
    texts = [
        generate_answers(folder, questions, max_new_tokens=arguments.max_new_tokens, description=name)
        for name, folder in (("before", arguments.before), ("after", arguments.after))
    ]
    scores = tuple(score_answers(questions, answers) for answers in texts)
    rows = report_rows(before, after, pairs, scores)
    said = not_finite(metrics)
    width = max(len(row[0]) for row in rows)
    table = "\n".join(f"{name:<{width}}  {old:>22}  {new:>22}" for name, old, new in [("", "before", "after"), *rows])
    table += "".join(f"\n{line}" for line in said)
    print(table)
    write_atomically(os.path.join(arguments.out, "table.txt"), table + "\n")
    answers = Path(arguments.out, "answers.jsonl")
    with replacing(answers) as temporary, temporary.open("x", encoding="utf-8") as file:
        for question, old, new in zip(questions, *texts, strict=True):
            row = {"id": question.get("id"), "ground_truth": question["ground_truth"], "before": old, "after": new}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    try:
        plot_curves({"training batch": metrics}, _PANELS, os.path.join(arguments.out, "curves.png"))
        print(f"plot: {os.path.join(arguments.out, 'curves.png')}")
    except ImportError:
        print('no plot: matplotlib is not installed (pip install "verl-aiops[plot]")')
    return 0


if __name__ == "__main__":
    sys.exit(main())
