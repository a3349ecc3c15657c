"""The command that compares evaluated runs: its options, and what runs it."""

from __future__ import annotations

import argparse

__all__ = ["EXAMPLES", "compare_options", "run_compare"]

EXAMPLES = (
    "verl-aiops compare before=eval/sft after=eval/dpo --out compare/dpo\n"
    "verl-aiops compare eval/sft eval/grpo eval/ppo --out compare/rl\n"
    "verl-aiops compare rule=eval/grpo rm=eval/grpo_rm --out compare/rm \\\n"
    "    --metrics rule=runs/grpo/metrics.jsonl rm=runs/grpo_rm/metrics.jsonl --smooth 5\n"
    "verl-aiops compare eval/n4 eval/n8 eval/n16 --over rollout.n=4,8,16 --out compare/n\n"
    "verl-aiops compare b01=runs/b01/pairs b05=runs/b05/pairs --out compare/beta\n"
    "verl-aiops compare first=runs/grpo/validation/0.jsonl last=runs/grpo/validation --out compare/steps"
)


def compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[LABEL=]RUN",
        help="folder of verl-aiops eval, or trainer.validation_data_dir (or a STEP.jsonl in it); the others are held "
        "to the first. LABEL=RUN,RUN,RUN pools runs of several seeds. Or folders of verl-aiops eval-pairs; of a single "
        "one, its model before and after",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for report, plots, table and JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier comparison in it")
    parser.add_argument("--seed", type=int, default=0, help="of resampling (default %(default)s)")
    report = parser.add_argument_group("report")
    report.add_argument(
        "--examples", type=int, default=5, metavar="N", help="incidents shown that got better, and worse (default 5)"
    )
    report.add_argument("--no-plots", action="store_true", help="without figures; needs no matplotlib")
    report.add_argument(
        "--over",
        metavar="NAME=V,V,..",
        help="a setting of the runs and its number in each, in their order: right answers, JSON and evidence are drawn "
        "against it",
    )
    training = parser.add_argument_group("training curves")
    training.add_argument(
        "--metrics", nargs="+", default=[], metavar="LABEL=FILE", help="what trainer.logger=[console,file] wrote"
    )
    training.add_argument(
        "--curves", metavar="K,K", help="metrics to draw (default: reward, loss and margins there are)"
    )
    training.add_argument("--smooth", type=int, default=1, metavar="N", help="mean over the last N steps (default 1)")


def run_compare(args: argparse.Namespace) -> None:
    from verl_aiops.evaluation.compare.command import Options, compare
    from verl_aiops.evaluation.investigation.compare import compare_investigations, of_investigations
    from verl_aiops.evaluation.pairs.results import of_pairs
    from verl_aiops.inputs.shown import one_line, printable

    if of_investigations(args.runs):
        table, files = compare_investigations(
            args.runs,
            args.out,
            seed=args.seed,
            overwrite=args.overwrite,
            plots=not args.no_plots,
            examples=args.examples,
        )
        print(printable(table))
        print(f"{one_line(args.out)}: {', '.join(files)}")
        return
    if of_pairs(args.runs):
        table, files = _of_pairs(args)
        print(printable(table))
        print(f"{one_line(args.out)}: {', '.join(files)}")
        return
    options = Options(
        metrics=args.metrics,
        curves=[key.strip() for key in args.curves.split(",")] if args.curves else (),
        smooth=args.smooth,
        over=args.over,
        examples=args.examples,
        seed=args.seed,
        plots=not args.no_plots,
    )
    table, files = compare(args.runs, args.out, options, overwrite=args.overwrite)
    print(printable(table))
    print(f"{one_line(args.out)}: {', '.join(files)}")


def _of_pairs(args: argparse.Namespace) -> tuple[str, list[str]]:
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.evaluation.pairs.compare import compare_pairs

    for name in ("over", "metrics", "curves"):
        if getattr(args, name):
            raise EvaluationError(f"--{name}: is of runs with answers; evaluations of pairs are compared without it")
    return compare_pairs(args.runs, args.out, seed=args.seed, plots=not args.no_plots, overwrite=args.overwrite)
