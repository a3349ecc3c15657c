"""The task `investigation` in the commands that make data files: its options, and what runs them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

from verl_aiops.cli.incident_source import stream_settings
from verl_aiops.inputs.shown import counted, printable

if TYPE_CHECKING:
    from verl_aiops.incidents.build.sides import Split
    from verl_aiops.investigation.prompts import AskOptions
    from verl_aiops.investigation.simulator import CaseSimulator

__all__ = [
    "TASKS",
    "add_case_options",
    "add_task_options",
    "build_investigation",
    "is_investigation",
    "refuse_case_options",
    "run_simulate_cases",
    "write_streams",
]

TRIAGE, INVESTIGATION = TASKS = ("triage", "investigation")
# What the simulator of cases has beside that of incidents: name, type, and what it means.
_CASE_SETTINGS = {
    "several": (float, "S", "share of cases with two or three root causes (default 0.15)"),
    "no_fault": (float, "S", "share of cases in which nothing is wrong (default: of the difficulty)"),
    "cannot_tell": (float, "S", "share of cases that cannot be told (default: of the difficulty)"),
    "before": (int, "MINUTES", "telemetry before the alert (default 30)"),
    "after": (int, "MINUTES", "telemetry after it (default 10)"),
    "log_rate": (float, "R", "background log lines a minute and service (default 0.2)"),
    "request_rate": (float, "R", "requests traced a minute (default 1)"),
    "metrics": (int, "N", "metrics of each service beside those of the story (default 3)"),
}
# Options of the triage task and what they are where nobody gave them.
_TRIAGE_ALONE: dict[str, Any] = {
    **dict.fromkeys(("incidents", "columns", "taxonomy", "taxonomy_out", "candidates_range"), None),
    **dict.fromkeys(("answer_fields", "prompts", "prompts_out"), None),
    **dict.fromkeys(("folds", "fold", "model", "max_prompt_length"), None),
    **{"style": "two_round", "max_chars": 1200, "trim": "evidence", "val_trim": "blind", "no_candidates": False},
    **{"max_candidates": 8, "max_quotes": 3, "quote_chars": 0, "view": [], "renamed": 0, "shuffled": 0},
}
_INVESTIGATION_ALONE = ("cases", "tools", "tool_calls", "max_reasons", "answer_chars", *_CASE_SETTINGS)


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """How cases are simulated, beside what incidents have too; `_simulator_from` reads these."""
    group = parser.add_argument_group("simulated cases (docs/investigation.md)")
    for name, (kind, metavar, text) in _CASE_SETTINGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)


def add_task_options(parser: argparse.ArgumentParser, *, conversations: bool) -> None:
    """`--task`, and what goes with `--task investigation`; `conversations`: whole ones are written, with calls."""
    group = parser.add_argument_group("task")
    group.add_argument(
        "--task",
        default=TRIAGE,
        choices=TASKS,
        help="triage of an incident's text, or investigation of a case with tools, e.g. --task investigation --cases "
        "cases.jsonl (default %(default)s)",
    )
    group.add_argument(
        "--cases", metavar="FILE.jsonl", help="cases to investigate (default: simulated ones, in OUT.cases.jsonl)"
    )
    group.add_argument(
        "--tools",
        metavar="prompt|template",
        help="where a model reads of the tools: in the prompt (default), or in what its chat template makes of them",
    )
    if conversations:
        group.add_argument(
            "--tool-calls",
            metavar="text|field",
            help="calls as text that every chat template can hold (default), or in tool_calls, in JSONL alone",
        )
    group.add_argument("--max-reasons", type=int, metavar="N", help="list at most N reasons; 0 lists all (default 8)")
    group.add_argument(
        "--answer-chars", type=int, metavar="N", help="characters of a tool's answer at most (default 1500)"
    )
    add_case_options(parser)


def is_investigation(args: argparse.Namespace) -> bool:
    """Whether the task is `investigation`. Raises IncidentError for options of the other task."""
    from verl_aiops.incidents import IncidentError

    if args.task == INVESTIGATION:
        wrong = [name for name, default in _TRIAGE_ALONE.items() if getattr(args, name, default) != default]
    else:
        wrong = [name for name in _INVESTIGATION_ALONE if getattr(args, name, None) is not None]
    if wrong:
        other = TRIAGE if args.task == INVESTIGATION else INVESTIGATION
        instead = {"incidents": "name the file by --cases", "cases": f"add --task {INVESTIGATION}"}
        raise IncidentError(
            f"--{wrong[0].replace('_', '-')} belongs to --task {other}, found --task {args.task}; "
            f"{instead.get(wrong[0], 'leave it out')}"
        )
    return args.task == INVESTIGATION


def build_investigation(args: argparse.Namespace, *, conversations: bool) -> None:
    """`build-sft` and `build-rl` of this task."""
    from verl_aiops.incidents import IncidentError
    from verl_aiops.investigation.build import build_rl, build_sft

    cases, more = args.cases, ()
    if cases is None:
        cases, more = _simulated(args)
    else:
        for name in (
            "num_incidents",
            "lang",
            "zh_share",
            "difficulty",
            "topologies",
            "hold_out_wordings",
            *_CASE_SETTINGS,
        ):
            if getattr(args, name) is not None:
                raise IncidentError(f"--{name.replace('_', '-')} belongs to the simulator; leave it out with --cases")
    where: dict[str, Any] = {
        "split": _split_from(args, more),
        "val_out": args.val_out,
        "options": _asked(args),
        "overwrite": args.overwrite,
    }
    if conversations:
        summary = build_sft(cases, args.out, calls=args.tool_calls or "text", seed=args.seed, **where)
    else:
        summary = build_rl(cases, args.out, **where)
    print(printable(summary))


def _asked(args: argparse.Namespace) -> AskOptions:
    from verl_aiops.investigation.prompts import AskOptions

    given = {name: getattr(args, name) for name in ("tools", "max_reasons", "answer_chars")}
    return AskOptions(seed=args.seed, **{name: value for name, value in given.items() if value is not None})


def _split_from(args: argparse.Namespace, more: tuple[str, ...]) -> Split:
    from verl_aiops.incidents.build.sides import Split

    return Split(args.val_share, args.test_share, args.seed, (*args.hold_out_source, *more))


def _simulator_from(args: argparse.Namespace) -> CaseSimulator:
    from verl_aiops.investigation.simulator import CaseSimulator

    return CaseSimulator(**stream_settings(args, *_CASE_SETTINGS))


def _counts(args: argparse.Namespace, simulator: CaseSimulator) -> tuple[int, int]:
    """How many cases, and how many more in held-out wordings."""
    from verl_aiops.incidents import IncidentError

    count = 1000 if args.num_incidents is None else args.num_incidents
    if count < 1:
        raise IncidentError(f"--num-incidents: expected at least 1, found {count}")
    return count, max(1, count // 10) if simulator.wordings.held_out_share else 0


def _simulated(args: argparse.Namespace) -> tuple[str, tuple[str, ...]]:
    """Simulated cases in a file beside the output; and the sources of those in held-out wordings."""
    from verl_aiops.incidents import sibling
    from verl_aiops.investigation import write_cases

    simulator = _simulator_from(args)
    count, more = _counts(args, simulator)
    held_out = [] if not more else list(simulator.held_out().stream(more, start=count))
    file = sibling(args.out, "cases").with_suffix(".jsonl")
    write_cases(chain(simulator.stream(count), held_out), file, overwrite=args.overwrite)
    print(printable(f"{count + more:,} simulated cases in {file}"))
    return str(file), tuple(sorted({case.source for case in held_out}))


def run_simulate_cases(args: argparse.Namespace) -> None:
    """`simulate --cases`."""
    from verl_aiops.incidents import IncidentError
    from verl_aiops.investigation import write_cases

    if args.taxonomy_out is not None:
        raise IncidentError("--taxonomy-out: a case lists its own reasons and services; leave it out with --cases")
    simulator = _simulator_from(args)
    write_streams(args, simulator, *_counts(args, simulator), write_cases, "case")


def write_streams(
    args: argparse.Namespace, simulator: Any, count: int, more: int, write: Callable[..., Any], what: str
) -> None:
    """``count`` of a simulator in ``--out``, and ``more`` after them in held-out wordings in a file beside it."""
    from verl_aiops.incidents import sibling

    write(simulator.stream(count), args.out, overwrite=args.overwrite)
    print(printable(f"{counted(count, what)} in {args.out}"))
    if more:
        unseen = sibling(args.out, "unseen")
        write(simulator.held_out().stream(more, start=count), unseen, overwrite=args.overwrite)
        print(printable(f"{more:,} in held-out wordings in {unseen}"))


def refuse_case_options(args: argparse.Namespace) -> None:
    """Raises IncidentError where incidents are simulated with settings that only cases have."""
    from verl_aiops.incidents import IncidentError

    for name in _CASE_SETTINGS:
        if getattr(args, name) is not None:
            raise IncidentError(f"--{name.replace('_', '-')} belongs to cases; give --cases too, or leave it out")
