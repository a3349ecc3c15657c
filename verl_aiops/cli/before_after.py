"""The command that shows a model before and after a DPO run."""

from __future__ import annotations

import argparse
import sys

from verl_aiops.cli.command import Command, run_alone

__all__ = ["BEFORE_AFTER"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", required=True, metavar="DIR", help="model folder the run started from")
    parser.add_argument("--after", required=True, metavar="DIR", help="model folder the run wrote, or global_step_N")
    parser.add_argument("--pairs", required=True, metavar="FILE", help="held-out preference pairs of build-prefs")
    parser.add_argument("--metrics", required=True, metavar="FILE", help="JSON lines of verl's file logger")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for table, plot and answers")
    parser.add_argument(
        "--questions", type=int, default=24, metavar="N", help="held-out prompts to answer (default %(default)s)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="of each answer (default %(default)s)"
    )


def _run(args: argparse.Namespace) -> None:
    from verl_aiops.evaluation.run.before_after import before_after
    from verl_aiops.inputs.shown import one_line, printable

    table, files = before_after(
        args.before,
        args.after,
        args.pairs,
        args.metrics,
        args.out,
        questions=args.questions,
        max_new_tokens=args.max_new_tokens,
    )
    print(printable(table))
    print(f"{one_line(args.out)}: {', '.join(files)}")


BEFORE_AFTER = Command(
    "show a model before and after a DPO run: held-out pairs, answers, training curves",
    "verl-aiops before-after --before models/SmolLM2-135M-Instruct --after runs/dpo/huggingface \\\n"
    "    --pairs prefs.val.parquet --metrics runs/dpo/metrics.jsonl --out runs/dpo/report",
    _options,
    _run,
)


if __name__ == "__main__":
    sys.exit(run_alone("before-after", BEFORE_AFTER))
