"""Where the incidents of a command come from, a file or the simulator: the options, and what reads them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verl_aiops.incidents import Simulator, Taxonomy
    from verl_aiops.incidents.io.columns import FieldColumns
    from verl_aiops.incidents.io.sources import IncidentSource
    from verl_aiops.incidents.wording import Wording

__all__ = [
    "add_asked_options",
    "add_columns_option",
    "add_simulator_options",
    "add_source_options",
    "check_served_alike",
    "columns_from",
    "incidents_from",
    "more_fields_from",
    "simulator_from",
    "source_from",
    "stream_settings",
    "wording_from",
]


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Where incidents come from; `source_from` reads these."""
    group = parser.add_argument_group("incidents (the simulator, unless a file is given)")
    group.add_argument("--incidents", metavar="FILE", help="incidents from a .jsonl, .csv, .xlsx or .parquet file")
    add_columns_option(group)
    group.add_argument(
        "--taxonomy", metavar="FILE", help="services and types per system, JSON (default: those in FILE)"
    )
    add_simulator_options(group)


def add_columns_option(group: argparse._ActionsContainer) -> None:
    """What a file of incidents calls their fields; `columns_from` reads it."""
    group.add_argument(
        "--columns",
        metavar="NAME=THEIRS,...",
        help="what the file calls the fields, as a ticket system exports them, e.g. --columns "
        "id=ticket_id,service=service,incident_type=category,symptom=summary,logs=log_excerpt,source=system",
    )


def add_simulator_options(group: argparse._ActionsContainer) -> None:
    """How incidents are simulated; `simulator_from` reads these."""
    group.add_argument("--num-incidents", type=int, metavar="N", help="how many to simulate (default 1000)")
    group.add_argument("--lang", metavar="en|zh|mix", help="language of simulated incidents (default en)")
    group.add_argument("--zh-share", type=float, metavar="S", help="share of Chinese with --lang mix (default 0.5)")
    group.add_argument("--difficulty", metavar="easy|medium|hard|mix", help="of simulated incidents (default medium)")
    group.add_argument("--topologies", metavar="A,B", help="of shop, bank, media, fleet (default all)")
    group.add_argument(
        "--hold-out-wordings",
        type=float,
        metavar="S",
        help="share of the simulator's wordings that no incident for training uses, as in 0.3; a tenth as many "
        "incidents more, in these wordings alone, go to OUT.unseen",
    )


def source_from(args: argparse.Namespace) -> IncidentSource:
    """The incident source that the options of `add_source_options` (and `--seed`) ask for."""
    from verl_aiops.incidents import IncidentError, simulator_source

    if args.incidents is None:
        if args.taxonomy is not None:
            raise IncidentError("--taxonomy goes with --incidents; the simulator brings its own")
        if args.columns is not None:
            raise IncidentError("--columns goes with --incidents, whose columns it names; give both or neither")
        if more_fields_from(args):
            raise IncidentError(
                f"--answer-fields {args.answer_fields}: goes with --incidents; simulated ones say service and "
                "incident_type alone"
            )
        return simulator_source(simulator_from(args), 1000 if args.num_incidents is None else args.num_incidents)
    for name in ("num_incidents", "lang", "zh_share", "difficulty", "topologies", "hold_out_wordings"):
        if getattr(args, name) is not None:
            raise IncidentError(f"--{name.replace('_', '-')} belongs to the simulator; leave it out with --incidents")
    return incidents_from(args)


def columns_from(args: argparse.Namespace) -> FieldColumns:
    """What `--columns` and `--answer-fields` say."""
    from verl_aiops.incidents.io.columns import FieldColumns

    more = more_fields_from(args)
    return FieldColumns(more=more) if args.columns is None else FieldColumns.parse(args.columns, more)


def add_asked_options(group: argparse._ActionsContainer) -> None:
    """What is asked for, and in which words; `more_fields_from` and `wording_from` read these."""
    group.add_argument(
        "--answer-fields",
        metavar="NAME,NAME",
        help="fields of the answer: service and incident_type (default), and more that the incidents say, e.g. "
        "--answer-fields service,incident_type,severity,team",
    )
    group.add_argument(
        "--prompts",
        metavar="FILE.yaml",
        help="ask in the words of this file; --prompts-out of build-* writes the built-in ones, to be changed. Give "
        "the same file where data are built, evaluated and served, e.g. --prompts prompts.yaml",
    )


def more_fields_from(args: argparse.Namespace) -> tuple[str, ...]:
    """The fields of `--answer-fields` beyond service and incident type."""
    from verl_aiops.incidents.answer_fields import further_fields

    return () if args.answer_fields is None else further_fields(args.answer_fields)


def wording_from(args: argparse.Namespace) -> Wording:
    """The words of `--prompts`, or the built-in ones."""
    from verl_aiops.incidents.wording import built_in, read_wording

    return built_in() if args.prompts is None else read_wording(args.prompts)


def check_served_alike(args: argparse.Namespace) -> Taxonomy | None:
    """Hold `--answer-fields` and `--prompts` to what the data were built with that `--taxonomy` was written beside.

    Returns the taxonomy, if there is one.

    Raises:
        IncidentError: a model would be asked otherwise than in training, which nobody has said is meant.
    """
    from verl_aiops.incidents import IncidentError, Taxonomy

    if args.taxonomy is None:
        return None
    taxonomy = Taxonomy.load(args.taxonomy)
    wording = wording_from(args).name
    if taxonomy.wording not in (None, wording):
        words = {"built-in": "the built-in prompts"}
        raise IncidentError(
            f"--taxonomy {args.taxonomy}: was written beside data in {words.get(taxonomy.wording, 'a --prompts file')} "
            f"({taxonomy.wording}), and {words.get(wording, f'--prompts {args.prompts}')} ({wording}) would be asked; "
            "give the prompts of the data, or the taxonomy of these prompts"
        )
    if args.answer_fields is None and taxonomy.more_fields:
        fields = ",".join(("service", "incident_type", *taxonomy.more_fields))
        raise IncidentError(
            f"--taxonomy {args.taxonomy}: lists labels of {', '.join(taxonomy.more_fields)}, for which nothing asks; "
            f"give --answer-fields {fields} as in training, or --answer-fields service,incident_type"
        )
    return taxonomy


def incidents_from(args: argparse.Namespace) -> IncidentSource:
    """The incidents of the file that `--incidents`, `--taxonomy` and `--columns` name."""
    from verl_aiops.incidents import Taxonomy, file_source

    columns = columns_from(args)
    return file_source(args.incidents, Taxonomy.load(args.taxonomy) if args.taxonomy else None, columns)


def simulator_from(args: argparse.Namespace) -> Simulator:
    """The simulator that the options of `add_simulator_options` (and `--seed`) ask for."""
    from verl_aiops.incidents import Simulator

    return Simulator(**stream_settings(args))


def stream_settings(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """What a simulator is told of those options; ``more``: others that it takes as they are."""
    from verl_aiops.incidents import Wordings

    names = ("seed", "lang", "zh_share", "difficulty", *more)
    given: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.topologies is not None:
        given["topologies"] = tuple(name.strip() for name in args.topologies.split(","))
    if args.hold_out_wordings is not None:
        given["wordings"] = Wordings(args.hold_out_wordings)
    return given
