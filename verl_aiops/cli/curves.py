"""The command that draws training curves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from verl_aiops.cli.command import Command, run_alone

__all__ = ["CURVES"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]METRICS", help="metrics.jsonl of each run")
    parser.add_argument(
        "--keys",
        metavar="K,K",
        help="metrics to draw (default: what a run of its kind logs of reward, loss, margins, accuracy and log-probs)",
    )
    parser.add_argument("--smooth", type=int, default=1, metavar="N", help="mean over the last N steps (default 1)")
    parser.add_argument("--x", choices=("step", "minutes"), default="step", help="what to draw them against")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="picture to write: .svg follows the reader's colours, .png"
    )


def _run(args: argparse.Namespace) -> None:
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.evaluation.training_curves import logged_keys, not_finite, over_optimised, plot_curves, read_metrics
    from verl_aiops.inputs.shown import one_line

    named = [run.rpartition("=") for run in args.runs]
    try:
        runs = {label or Path(path).parent.name or path: read_metrics(path) for label, _, path in named}
        keys = args.keys.split(",") if args.keys else logged_keys(runs)
        plot_curves(runs, {key: key for key in keys}, args.out, smooth=args.smooth, x=args.x)
    except ValueError as error:
        raise EvaluationError(error) from None
    except ImportError:
        raise EvaluationError('matplotlib is not installed (pip install "verl-aiops[plot]")') from None
    for label, rows in runs.items():
        for line in not_finite(rows, keys):
            print(f"curves: warning: {one_line(label, 80)}: {line}", file=sys.stderr)
        if line := over_optimised(rows):
            print(f"curves: warning: {one_line(label, 80)}: {line}", file=sys.stderr)
    print(args.out)


CURVES = Command(
    "draw training curves of one or more runs, from what verl's file logger wrote",
    "verl-aiops curves runs/dpo/metrics.jsonl --out runs/dpo/curves.svg\n"
    "verl-aiops curves runs/grpo/metrics.jsonl --out runs/grpo/curves.svg\n"
    "verl-aiops curves grpo=a/metrics.jsonl ppo=b/metrics.jsonl --keys reward/score,reward/json_ok \\\n"
    "    --smooth 5 --out both.png\n"
    "verl-aiops curves grpo=a/metrics.jsonl online=b/metrics.jsonl --x minutes --out both.svg",
    _options,
    _run,
)


if __name__ == "__main__":
    sys.exit(run_alone("curves", CURVES))
