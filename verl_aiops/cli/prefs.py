"""The command `verl-aiops build-prefs`: near misses of incidents, or a model's own answers, as preference data."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from verl_aiops.cli.data import add_output_options, add_prompt_options, build
from verl_aiops.cli.incident_source import add_source_options
from verl_aiops.inputs.shown import printable

__all__ = ["prefs_options", "run_build_prefs"]


def prefs_options(parser: argparse.ArgumentParser) -> None:
    add_output_options(parser)
    add_source_options(parser)
    add_prompt_options(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--groups",
        dest="form",
        action="store_const",
        const="groups",
        default="pairs",
        help="write ranked groups: all answers to a prompt in one row, each with its score (docs/data.md)",
    )
    form.add_argument(
        "--labels",
        dest="form",
        action="store_const",
        const="labels",
        default="pairs",
        help="write yes/no feedback: one answer a row, and whether it is right",
    )
    group = parser.add_argument_group("pairs")
    group.add_argument("--pairs-per-incident", type=int, default=2, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--kinds",
        metavar="K=S,K=S",
        help="shares of wrong_service, wrong_type, both, upstream (a service that only shows the effect; where the "
        "data do not say who calls whom, a wrong_service that the text names) and swapped (a red herring); default "
        "wrong_service=0.25,wrong_type=0.35,both=0.1,upstream=0.2,swapped=0.1",
    )
    group.add_argument(
        "--hard-share",
        type=float,
        default=0.7,
        metavar="S",
        help="how often a wrong service must be named in the incident's text (default %(default)s)",
    )
    group.add_argument(
        "--overlapping-names",
        action="store_true",
        help="also reject names that contain the right one or lie in it, as 'DNS' and 'DNS infrastructure' do, which "
        "without it are left out and counted; e.g. where they are different services for certain",
    )
    group.add_argument(
        "--analyses",
        nargs="+",
        metavar="EVAL",
        help="what stands before the verdict: the model's own analyses, of these folders of `verl-aiops eval --data "
        "RL.parquet ...`, in place of the reference that quotes the evidence; incidents without one are left out. "
        "--data and --trained-on go with it as below. E.g. --analyses eval/own eval/own_val",
    )
    group = parser.add_argument_group("pairs of a model's own answers, instead of near misses (docs/own_pairs.md)")
    group.add_argument(
        "--from-generations",
        nargs="+",
        metavar="EVAL",
        help="folders of `verl-aiops eval --data RL.parquet --n 8 ...`, or their generations.jsonl",
    )
    group.add_argument(
        "--data",
        nargs="+",
        metavar="RL",
        help="the files of build-rl that were asked, one for all or one each (default: as the folders say)",
    )
    group.add_argument(
        "--trained-on",
        nargs="+",
        metavar="SFT",
        help="what the answering models were trained on, one for all or one each: refused if it has these faults",
    )
    group.add_argument(
        "--chosen",
        metavar="auto|own|truth",
        help="own: a right answer of the model's; truth: the true verdict; auto (default): own where there is one",
    )
    group.add_argument(
        "--invalid-answers",
        choices=("keep", "skip"),
        help="whether answers that are no JSON verdict may be the rejected one (default keep)",
    )


# of `build-prefs`, what has a meaning with --from-generations
_OWN_ONLY = ("data", "trained_on", "chosen", "invalid_answers")
_OWN_TOO = ("out", "val_share", "test_share", "hold_out_source", "seed", "overwrite")
_OWN_TOO += ("pairs_per_incident", "from_generations", "form")


def _run_own_pairs(args: argparse.Namespace) -> None:
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.evaluation.on_policy.pairs import OwnPairOptions, build_own_pairs

    parser = argparse.ArgumentParser()
    prefs_options(parser)
    for name, default in vars(parser.parse_args(["--out", "FILE"])).items():
        if name not in (*_OWN_ONLY, *_OWN_TOO) and getattr(args, name) != default:
            raise EvaluationError(
                f"--{name.replace('_', '-')}: has no meaning with --from-generations, whose prompts were made by "
                "build-rl; leave it out"
            )
    if args.form != "pairs":
        for name, default in (("chosen", None), ("pairs_per_incident", 2)):
            if getattr(args, name) != default:
                raise EvaluationError(
                    f"--{name.replace('_', '-')}: has no meaning with --{args.form}, which takes all answers; leave it "
                    "out"
                )
    options = OwnPairOptions(
        chosen=args.chosen or "auto",
        pairs_per_incident=args.pairs_per_incident,
        invalid=args.invalid_answers != "skip",
        val_share=args.val_share,
        test_share=args.test_share,
        hold_out=tuple(args.hold_out_source),
        seed=args.seed,
        form=args.form,
    )
    files = {"data": args.data or (), "trained_on": args.trained_on or ()}
    from verl_aiops.evaluation.investigation.compare import of_investigations
    from verl_aiops.evaluation.investigation.pairs import build_investigation_pairs

    build_of: Callable[..., Any] = build_own_pairs
    if of_investigations(args.from_generations):
        build_of = build_investigation_pairs
    built = build_of(args.from_generations, args.out, **files, options=options, overwrite=args.overwrite)
    print(printable(built))


def run_build_prefs(args: argparse.Namespace) -> None:
    from verl_aiops.incidents import DEFAULT_KINDS, IncidentError, PairOptions, build_prefs, parse_kinds

    if args.from_generations is not None:
        return _run_own_pairs(args)
    for name in _OWN_ONLY:
        with_analyses = args.analyses is not None and name in ("data", "trained_on")
        if getattr(args, name) is not None and not with_analyses:
            mates = "--from-generations" + " or --analyses" * (name in ("data", "trained_on"))
            raise IncidentError(f"--{name.replace('_', '-')} goes with {mates}; give both or neither")
    if args.analyses is not None and args.style == "direct":
        raise IncidentError(
            "--analyses: has no meaning with --style direct, which asks for none; leave one of them out"
        )
    kinds = parse_kinds(args.kinds) if args.kinds is not None else DEFAULT_KINDS
    pairs = PairOptions(args.pairs_per_incident, kinds, args.hard_share, args.seed, args.overlapping_names)
    analyses = None
    if args.analyses is not None:
        from verl_aiops.evaluation.on_policy.analyses import own_analyses

        analyses = own_analyses(args.analyses, args.data or (), args.trained_on or ())
    print(printable(build(args, build_prefs, pairs=pairs, form=args.form, analyses=analyses)))
