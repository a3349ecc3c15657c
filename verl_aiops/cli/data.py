"""The commands that make data files of incidents: their options, and what runs them.

None of them needs torch or verl, except `build-rl --model`, which asks verl itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from verl_aiops.cli.cases import (
    add_case_options,
    add_task_options,
    build_investigation,
    is_investigation,
    refuse_case_options,
    run_simulate_cases,
    write_streams,
)
from verl_aiops.cli.incident_source import (
    add_asked_options,
    add_simulator_options,
    add_source_options,
    more_fields_from,
    simulator_from,
    source_from,
    wording_from,
)
from verl_aiops.inputs.shown import printable

if TYPE_CHECKING:
    from verl_aiops.incidents import Fold
    from verl_aiops.incidents.build.case import PromptOptions
    from verl_aiops.incidents.build.summary import Summary
    from verl_aiops.incidents.build.views import Views


def add_prompt_options(parser: argparse.ArgumentParser, asked_alone: bool = False) -> None:
    """How prompts are made; `prompts_from` reads these. `asked_alone`: a model is asked, and nothing is trained."""
    group = parser.add_argument_group("prompts")
    group.add_argument("--style", default="two_round", metavar="two_round|direct", help="default: %(default)s")
    group.add_argument(
        "--max-chars",
        type=int,
        default=1200,
        metavar="N",
        help="trim incident data to N characters; 0 keeps them whole (default %(default)s)",
    )
    blind = "by the text alone, as a model is served"
    if asked_alone:
        group.add_argument(
            "--trim",
            metavar="blind|evidence",
            help=f"what is kept: blind, {blind} (default), or evidence, what is around the known evidence",
        )
    else:
        group.add_argument(
            "--trim",
            default="evidence",
            metavar="evidence|blind",
            help=f"what is kept in the training file: what is around the known evidence (default), or blind: {blind}",
        )
        group.add_argument(
            "--val-trim",
            default="blind",
            metavar="blind|evidence",
            help="the same for the files that a model is asked from: validation, test, unseen (default %(default)s)",
        )
    group.add_argument("--no-candidates", action="store_true", help="do not list the system's services and types")
    group.add_argument(
        "--max-candidates",
        type=int,
        default=8,
        metavar="N",
        help="list at most N of each; 0 lists all (default %(default)s)",
    )
    if not asked_alone:
        group.add_argument(
            "--candidates-range",
            metavar="LOW-HIGH",
            help="instead of --max-candidates: list another number of each, LOW to HIGH, in every training prompt, and "
            "HIGH in the files that a model is asked from, e.g. --candidates-range 4-20; with HIGH no less than the "
            "names of the largest system, as `verl-aiops triage` lists them all",
        )
    add_asked_options(group)
    group.add_argument(
        "--max-quotes", type=int, default=3, metavar="N", help="quotes in the reference analysis (default %(default)s)"
    )
    group.add_argument(
        "--quote-chars",
        type=int,
        default=0,
        metavar="N",
        help="cut each to N characters, without the time and numbers that a line begins with; 0: whole",
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """What a data file is called and how it is split."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="FILE", help="training file, .parquet or .jsonl")
    group.add_argument("--val-out", metavar="FILE", help="validation file (default: OUT with .val before its suffix)")
    group.add_argument(
        "--val-share", type=float, default=0.1, metavar="S", help="share of faults held out (default %(default)s)"
    )
    group.add_argument(
        "--test-share",
        type=float,
        default=0.0,
        metavar="S",
        help="share of faults in a third file, OUT.test beside OUT.val, to be looked at once (default: no such file)",
    )
    group.add_argument(
        "--hold-out-source",
        action="append",
        default=[],
        metavar="NAME",
        help="a system that nothing is trained on, with all that begins with NAME/: its incidents go to OUT.unseen; "
        "can be repeated, as in --hold-out-source petshop --hold-out-source loghub/BGL",
    )
    group.add_argument(
        "--taxonomy-out",
        metavar="FILE.json",
        help="also write the services and types of each system, as `eval` and `triage` take them for --taxonomy, e.g. "
        "--taxonomy-out names.json",
    )
    group.add_argument(
        "--prompts-out",
        metavar="FILE.yaml",
        help="also write the words in which these data ask, to be changed and given as --prompts, e.g. --prompts-out "
        "prompts.yaml",
    )
    group.add_argument("--seed", type=int, default=0, help="of simulation, split and choices (default %(default)s)")
    group.add_argument("--overwrite", action="store_true", help="replace files that are already there")


def prompts_from(args: argparse.Namespace) -> PromptOptions:
    """The prompt options that `add_prompt_options` (and `--seed`) ask for."""
    from verl_aiops.incidents import IncidentError, PromptOptions

    lengths = getattr(args, "candidates_range", None)
    if lengths is not None and (args.no_candidates or args.max_candidates != PromptOptions.max_candidates):
        raise IncidentError("--candidates-range stands instead of --max-candidates and --no-candidates; give one")
    return PromptOptions(
        candidates_range=None if lengths is None else _range(lengths),
        style=args.style,
        budget=args.max_chars,
        trim=args.trim or "blind",
        show_candidates=not args.no_candidates,
        max_candidates=args.max_candidates,
        max_quotes=args.max_quotes,
        quote_chars=args.quote_chars,
        seed=args.seed,
        more_fields=more_fields_from(args),
        wording=wording_from(args),
    )


def _range(text: str) -> tuple[int, int]:
    from verl_aiops.incidents import IncidentError

    numbers = text.split("-")
    if len(numbers) != 2 or not all(number.strip().isdecimal() and len(number) < 10 for number in numbers):
        raise IncidentError(f"--candidates-range {text}: expected two numbers such as 4-20")
    return int(numbers[0]), int(numbers[1])


def simulate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="where the incidents go")
    parser.add_argument("--taxonomy-out", metavar="FILE.json", help="also write the services and types of each system")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are already there")
    parser.add_argument(
        "--cases",
        action="store_true",
        help="write cases: incidents with telemetry for tools to ask, e.g. --cases --num-incidents 500 --before 60",
    )
    add_simulator_options(parser)
    add_case_options(parser)


def run_simulate(args: argparse.Namespace) -> None:
    from verl_aiops.incidents import simulator_source, write_incidents, write_taxonomy

    if args.cases:
        return run_simulate_cases(args)
    refuse_case_options(args)

    simulator, count = simulator_from(args), 1000 if args.num_incidents is None else args.num_incidents
    source = simulator_source(simulator, count)
    more = source.count - count
    if args.taxonomy_out is not None:
        write_taxonomy(source.taxonomy, args.taxonomy_out, overwrite=args.overwrite)
    write_streams(args, simulator, count, more, write_incidents, "incident")


def build(args: argparse.Namespace, build_files: Callable[..., Summary], **more: Any) -> Summary:
    """Call a `build_...` with what the options say, and write the taxonomy where it is asked for."""
    from verl_aiops.incidents import refuse_taken, write_taxonomy, write_wording

    prompts = prompts_from(args)
    source = source_from(args)
    for file in (args.taxonomy_out, args.prompts_out):
        if file is not None:
            refuse_taken(file, overwrite=args.overwrite)
    summary = build_files(
        source=source,
        out=args.out,
        val_out=args.val_out,
        val_share=args.val_share,
        test_share=args.test_share,
        hold_out=args.hold_out_source,
        seed=args.seed,
        prompts=prompts,
        val_trim=args.val_trim,
        overwrite=args.overwrite,
        **more,
    )
    if args.taxonomy_out is not None:
        listed = prompts.most_listed if prompts.show_candidates else None
        asked = replace(source.taxonomy, wording=prompts.wording.name, most_candidates=listed)
        write_taxonomy(asked, args.taxonomy_out, overwrite=args.overwrite)
    if args.prompts_out is not None:
        write_wording(prompts.wording, args.prompts_out, overwrite=args.overwrite)
    return summary


def sft_options(parser: argparse.ArgumentParser) -> None:
    add_task_options(parser, conversations=True)
    _conversation_options(parser, "leave the incidents of fold I, 0 to K-1, out of the training file")


def _conversation_options(parser: argparse.ArgumentParser, fold: str) -> None:
    add_output_options(parser)
    add_source_options(parser)
    add_prompt_options(parser)
    group = parser.add_argument_group("further views of each training incident (docs/learning.md)")
    group.add_argument(
        "--view",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help="show it once more with another max-chars, trim, max-quotes, quote-chars or max-candidates; can be "
        "repeated, as in --trim blind --view trim=evidence --view max-chars=700",
    )
    group.add_argument(
        "--renamed",
        type=int,
        default=0,
        metavar="N",
        help="N more copies under swapped names of services, where its data name the culprit, e.g. --renamed 2",
    )
    group.add_argument(
        "--shuffled", type=int, default=0, metavar="N", help="N more with nothing but the order of names changed"
    )
    group = parser.add_argument_group("cross-fitting (docs/own_pairs.md)")
    group.add_argument("--folds", type=int, metavar="K", help="cut the training side into K folds, by fault")
    group.add_argument("--fold", type=int, metavar="I", help=fold)


def _fold_from(args: argparse.Namespace) -> Fold | None:
    from verl_aiops.incidents import Fold, IncidentError

    if (args.folds is None) != (args.fold is None):
        raise IncidentError("--folds K and --fold I go together; give both or neither")
    return None if args.folds is None else Fold(args.fold, args.folds, args.seed)


def _views_from(args: argparse.Namespace) -> Views | None:
    from verl_aiops.incidents.build.views import Views, parse_view

    if not (args.view or args.renamed or args.shuffled):
        return None
    return Views(tuple(map(parse_view, args.view)), args.renamed, args.shuffled, args.seed)


def run_build_sft(args: argparse.Namespace) -> None:
    from verl_aiops.incidents import build_sft

    if is_investigation(args):
        return build_investigation(args, conversations=True)
    print(printable(build(args, build_sft, fold=_fold_from(args), views=_views_from(args))))


def rl_options(parser: argparse.ArgumentParser) -> None:
    add_task_options(parser, conversations=False)
    _conversation_options(parser, "write the incidents of fold I, 0 to K-1, alone into the training file")
    group = parser.add_argument_group("check of the files written")
    group.add_argument(
        "--model",
        metavar="DIR",
        help="load them through verl's own data set too, and count prompts in tokens with this folder's tokenizer",
    )
    group.add_argument(
        "--max-prompt-length",
        type=int,
        metavar="N",
        help="data.max_prompt_length of the training, which drops longer prompts (default 1024; goes with --model)",
    )


def run_build_rl(args: argparse.Namespace) -> None:
    from verl_aiops.incidents import IncidentError, build_rl, check_rl_file

    if is_investigation(args):
        return build_investigation(args, conversations=False)
    if args.model is None and args.max_prompt_length is not None:
        raise IncidentError("--max-prompt-length goes with --model, whose tokenizer counts; give both or neither")
    verl_check = None
    if args.model is not None:
        from verl_aiops.trainers.rl.data_check import VerlCheck

        # Before the work, which a wrong folder would waste.
        verl_check = VerlCheck(args.model, args.max_prompt_length)
    summary = build(args, build_rl, fold=_fold_from(args), views=_views_from(args))
    print(printable(summary))
    for file in summary.written:
        print(printable(f"  checked {file}: {check_rl_file(file)}"))
    if verl_check is not None:
        for report in verl_check.reports(summary.written):
            print(printable(f"  checked {report}"))
