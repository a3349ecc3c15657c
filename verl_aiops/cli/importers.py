"""The command `verl-aiops import`: its options, and the one function that it calls."""

from __future__ import annotations

import argparse

__all__ = ["import_options", "run_import"]


def import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="incidents: loghub, nezha, petshop, openrca, auto; cases: house, rcaeval, cloudopsbench, openrca2",
    )
    parser.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="the data set's folder as its authors publish it. OpenRCA: record.csv and query.csv of a system name the "
        "answers; without the folder telemetry beside them (tens of gigabytes, not in the repository) nothing in an "
        "incident tells the answer, and the report counts such incidents",
    )
    parser.add_argument(
        "--out", metavar="FILE.jsonl", help="where the incidents go; FILE.jsonl.LICENCE.txt gets the terms"
    )
    parser.add_argument(
        "--mapping", metavar="FILE.yaml", help="your own mapping instead of the built-in one (see --list)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the choice of windows and background lines (default %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are already there")
    parser.add_argument("--list", action="store_true", help="show the sources, what they expect, licences and mappings")


def run_import(args: argparse.Namespace) -> None:
    from verl_aiops.incidents.errors import IncidentError
    from verl_aiops.incidents.importers import describe_sources, import_incidents
    from verl_aiops.inputs.shown import printable
    from verl_aiops.investigation.importers import CASE_SOURCES, describe_case_sources, import_cases

    if args.list:
        print(describe_sources())
        print(describe_case_sources())
        return
    for value, name in ((args.source, "SOURCE"), (args.path, "PATH"), (args.out, "--out FILE.jsonl")):
        if value is None:
            raise IncidentError(f"expected SOURCE PATH --out FILE.jsonl, found no {name}; --list shows the sources")
    if args.source in CASE_SOURCES:
        print(printable(import_cases(args.source, args.path, args.out, mapping=args.mapping, overwrite=args.overwrite)))
        return
    imported = import_incidents(
        args.source, args.path, args.out, mapping=args.mapping, seed=args.seed, overwrite=args.overwrite
    )
    # it quotes names out of the data set
    print(printable(imported))
