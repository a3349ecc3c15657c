"""The command that evaluates baselines without a language model: its options, and what runs it."""

from __future__ import annotations

import argparse

from verl_aiops.cli.command import Command
from verl_aiops.cli.values import reward_settings

__all__ = ["BASELINE"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="FILE", help="RL prompts of build-rl to learn from")
    parser.add_argument("--val", required=True, metavar="FILE", help="RL prompts to answer, of other faults")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for a folder of each method, as eval writes it, and a table"
    )
    parser.add_argument(
        "--methods",
        metavar="M,M",
        help="majority: the source's most frequent answer; rule: last bad callee of the trace, else who is named on "
        "the severest lines; linear: logistic regression over the lines that name a candidate; linear_values: that and "
        "each number's ratio to its usual value and the order of names (default all). Of investigations: rule, along "
        "the call graph, and linear, over what a fixed script of calls returns",
    )
    parser.add_argument("--reward", metavar="K=V,K=V", help="settings of the reward, as of eval (default none)")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="start anew where other answers are in the folders")


def _run(args: argparse.Namespace) -> None:
    from verl_aiops.evaluation.baseline import run
    from verl_aiops.evaluation.investigation import baseline as of_cases
    from verl_aiops.evaluation.investigation.questions import holds_investigations
    from verl_aiops.inputs.shown import one_line, printable

    cases = holds_investigations(args.data)
    known = of_cases.METHODS if cases else tuple(run.METHODS)
    given = ",".join(known) if args.methods is None else args.methods
    methods = [name.strip() for name in given.split(",") if name.strip()]
    more = {"reward": reward_settings(args.reward), "seed": args.seed, "overwrite": args.overwrite}
    if cases:
        table = of_cases.baseline_investigations(args.data, args.val, args.out, methods, **more)
    else:
        table = run.baseline(args.data, args.val, args.out, methods, **more).table
    print(printable(table))
    print(f"{one_line(args.out)}: {', '.join(methods)} (each as a folder of eval), baseline.json, table.txt")


BASELINE = Command(
    "score yardsticks without a language model (majority, a rule, logistic regression) as eval scores one",
    "verl-aiops baseline --data rl.parquet --val rl.val.parquet --out eval/baseline\n"
    "verl-aiops baseline --data rl.parquet --val rl.val.parquet --methods majority,rule --out eval/simple\n"
    "verl-aiops baseline --data tools.parquet --val tools.val.parquet --out eval/cases    # investigations\n"
    "verl-aiops compare linear=eval/baseline/linear sft=eval/sft --out compare/sft",
    _options,
    _run,
)
