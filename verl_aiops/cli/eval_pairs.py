"""The command that shows how a model ranks held-out preference pairs."""

from __future__ import annotations

import argparse
import sys

from verl_aiops.cli.command import Command, run_alone

__all__ = ["EVAL_PAIRS"]


def _options(parser: argparse.ArgumentParser) -> None:
    from verl_aiops.evaluation.pairs.settings import PairsAsked
    from verl_aiops.settings import add_options

    parser.add_argument("--model", required=True, metavar="DIR", help="model folder, or global_step_N of a run")
    parser.add_argument("--before", metavar="DIR", help="the model its training started from: adds the change")
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="FILE", help="held-out pairs, in any layout that DPO reads"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for log-probs, summary, table and plot")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation in it")
    add_options(parser, PairsAsked)


def _run(args: argparse.Namespace) -> None:
    from verl_aiops.evaluation.pairs.run import evaluate_pairs
    from verl_aiops.evaluation.pairs.settings import PairsAsked
    from verl_aiops.inputs.shown import one_line, printable
    from verl_aiops.settings import from_options

    asked = from_options(PairsAsked, args)
    table, files = evaluate_pairs(args.model, args.data, args.out, asked, before=args.before, overwrite=args.overwrite)
    print(printable(table))
    print(f"{one_line(args.out)}: {', '.join(files)}")


EVAL_PAIRS = Command(
    "show how a model ranks held-out preference pairs: accuracy, margin, log-probs, before and after training",
    "verl-aiops eval-pairs --model runs/dpo/huggingface --data prefs.val.parquet --out runs/dpo/pairs\n"
    "verl-aiops eval-pairs --before models/SmolLM2-135M-Instruct --model runs/dpo/huggingface \\\n"
    "    --data prefs.val.jsonl --columns prompt=question,chosen=better --text-pairs chat --out runs/dpo/pairs",
    _options,
    _run,
)


if __name__ == "__main__":
    sys.exit(run_alone("eval-pairs", EVAL_PAIRS))
