"""The command `verl-aiops feedback`: its options, and the one function that it calls."""

from __future__ import annotations

import argparse

from verl_aiops.cli.command import Command

__all__ = ["FEEDBACK"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log",
        metavar="LOG",
        help="verdicts, .jsonl or .csv: verdict (accepted, corrected, refused), answer, correction (of corrected "
        "ones), and prompt, or id with --prompts; optionally group and weight (docs/data.md)",
    )
    parser.add_argument("--prompts", metavar="FILE", help="prompts by id: a file of build-rl or build-prefs")
    parser.add_argument("--out", required=True, metavar="FILE", help="training file, .jsonl or .parquet")
    parser.add_argument("--val-out", metavar="FILE", help="validation file (default: OUT with .val before its suffix)")
    parser.add_argument(
        "--val-share", type=float, default=0.0, metavar="S", help="share of groups held out (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are already there")


def _run(args: argparse.Namespace) -> None:
    from verl_aiops.incidents import build_feedback
    from verl_aiops.inputs.shown import printable

    files = {"prompts": args.prompts, "val_out": args.val_out}
    split = {"val_share": args.val_share, "seed": args.seed}
    print(printable(build_feedback(args.log, args.out, **files, **split, overwrite=args.overwrite)))


FEEDBACK = Command(
    "make training data of an operator's verdicts: corrections are pairs, acceptances a yes, refusals a no",
    "verl-aiops feedback verdicts.csv --out feedback.jsonl\n"
    "verl-aiops feedback verdicts.jsonl --prompts rl.parquet --out feedback.parquet --val-share 0.1",
    _options,
    _run,
)
