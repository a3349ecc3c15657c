"""The command that evaluates baselines without a language model: its options, and what runs it."""

from __future__ import annotations

import argparse
from pathlib import Path

from verl_aiops.cli.command import Command
from verl_aiops.cli.incident_source import add_columns_option
from verl_aiops.cli.values import reward_settings

__all__ = ["BASELINE"]

# Options of build-rl, whose defaults are its own.
_BUILD = ("trim", "val_trim", "max_chars", "val_share")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="FILE", help="RL prompts of build-rl to learn from; goes with --val")
    parser.add_argument("--val", metavar="FILE", help="RL prompts to answer, of other faults")
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
    group = parser.add_argument_group("instead of --data and --val, both sides from incidents, as build-rl makes them")
    group.add_argument("--incidents", metavar="FILE", help="incidents; OUT/rl.* are the files made of them")
    add_columns_option(group)
    for name, what in (("trim", "the training side is cut"), ("val-trim", "what is asked is cut")):
        group.add_argument(f"--{name}", metavar="blind|evidence", help=f"how {what} (default: as build-rl)")
    group.add_argument("--max-chars", type=int, metavar="N", help="0: whole (default: as build-rl)")
    group.add_argument("--val-share", type=float, metavar="S", help="of the faults (default: as build-rl)")


def _files(args: argparse.Namespace) -> tuple[str, str]:
    """The two sides, made from `--incidents` where these are given."""
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.incidents import PromptOptions, build_rl, file_source
    from verl_aiops.incidents.io.columns import FieldColumns
    from verl_aiops.inputs.shown import printable

    given = {name: getattr(args, name) for name in _BUILD if getattr(args, name) is not None}
    if args.incidents is None:
        if given or args.columns is not None:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in [*given, *["columns"] * bool(args.columns)])
            raise EvaluationError(
                f"{names}: goes with --incidents; the rows of --data and --val are as build-rl cut them"
            )
        if args.data is None or args.val is None:
            raise EvaluationError("expected --data FILE and --val FILE, or --incidents FILE alone")
        return args.data, args.val
    if args.data is not None or args.val is not None:
        raise EvaluationError("--incidents stands instead of --data and --val; give one or the other")
    shown = {field: given.pop(name) for name, field in (("max_chars", "budget"), ("trim", "trim")) if name in given}
    out = Path(args.out) / "rl.parquet"
    summary = build_rl(
        file_source(args.incidents, None, FieldColumns() if args.columns is None else FieldColumns.parse(args.columns)),
        out,
        prompts=PromptOptions(**shown),
        overwrite=args.overwrite,
        **given,
    )
    print(printable(summary))
    return str(out), str(out.with_name("rl.val.parquet"))


def _names(methods: str) -> list[str]:
    return [name.strip() for name in methods.split(",") if name.strip()]


def _run(args: argparse.Namespace) -> None:
    from verl_aiops.evaluation.baseline import run
    from verl_aiops.evaluation.investigation import baseline as of_cases
    from verl_aiops.evaluation.investigation.questions import holds_investigations
    from verl_aiops.inputs.shown import one_line, printable

    if args.incidents is not None and args.methods is not None:
        # before files are written that a second try would find
        run.check_methods(_names(args.methods), run.METHODS)
    data, val = _files(args)
    cases = holds_investigations(data)
    known = of_cases.METHODS if cases else tuple(run.METHODS)
    given = ",".join(known) if args.methods is None else args.methods
    methods = _names(given)
    more = {"reward": reward_settings(args.reward), "seed": args.seed, "overwrite": args.overwrite}
    if cases:
        table = of_cases.baseline_investigations(data, val, args.out, methods, **more)
    else:
        table = run.baseline(data, val, args.out, methods, **more).table
    print(printable(table))
    print(f"{one_line(args.out)}: {', '.join(methods)} (each as a folder of eval), baseline.json, table.txt")


BASELINE = Command(
    "score yardsticks without a language model (majority, a rule, logistic regression) as eval scores one",
    "verl-aiops baseline --data rl.parquet --val rl.val.parquet --out eval/baseline\n"
    "verl-aiops baseline --data rl.parquet --val rl.val.parquet --methods majority,rule --out eval/simple\n"
    "verl-aiops baseline --incidents incidents.jsonl --trim blind --val-share 0.2 --out eval/blind\n"
    "verl-aiops baseline --data tools.parquet --val tools.val.parquet --out eval/cases    # investigations\n"
    "verl-aiops compare linear=eval/baseline/linear sft=eval/sft --out compare/sft",
    _options,
    _run,
)
