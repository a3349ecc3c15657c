"""The command that lets a served model investigate telemetry."""

from __future__ import annotations

import argparse
import json
import sys

from verl_aiops.cli.command import Command, run_alone
from verl_aiops.cli.values import api_key

__all__ = ["INVESTIGATE"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help="a folder of exports with a mapping file (docs/investigation.md), or a .jsonl file of cases, "
        "e.g. investigate ~/exports/2026-11",
    )
    parser.add_argument("--endpoint", required=True, metavar="URL", help="OpenAI-compatible server, up to /v1")
    parser.add_argument("--model", required=True, metavar="NAME", help="the name it serves the model by")
    parser.add_argument("--mapping", metavar="FILE.yaml", help="of a folder (default: cases.yaml in it)")
    parser.add_argument("--id", help="investigate only this case")
    parser.add_argument(
        "--tools",
        default="prompt",
        choices=("prompt", "template"),
        help="where the model reads of the tools, as in its training: in the prompt (default), or given to the server, "
        "which has to parse calls (--tool-call-parser)",
    )
    parser.add_argument("--answer-chars", type=int, default=1500, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--calls", type=int, default=12, metavar="N", help="calls that are answered (default %(default)s)"
    )
    parser.add_argument(
        "--max-response-length",
        type=int,
        default=4096,
        metavar="N",
        help="tokens in all (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON a case, with every answer of a tool")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds per request (default %(default)s)")


def _run(args: argparse.Namespace) -> int:
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.evaluation.investigation.asking import ToolOptions
    from verl_aiops.evaluation.investigation.client import Finding, cases_of, investigate, told
    from verl_aiops.evaluation.run.openai_backend import EndpointOptions
    from verl_aiops.inputs.shown import counted, printable
    from verl_aiops.investigation.prompts import AskOptions
    from verl_aiops.rollout.tools.settings import ToolSettings

    try:
        endpoint = EndpointOptions(
            args.endpoint, args.model, api_key(None), timeout_s=args.timeout, deadline_s=10 * args.timeout
        )
        asked = AskOptions(tools=args.tools, max_reasons=0, answer_chars=args.answer_chars)
        settings = ToolSettings.from_section({"max_calls": args.calls})
        tools = ToolOptions(settings, max_response_length=args.max_response_length)
    except ValueError as error:
        raise EvaluationError(error) from None
    cases = cases_of(args.source, args.mapping, args.id)
    answered = []

    def done(finding: Finding) -> None:
        answered.append(finding.verdict is not None)
        if args.json:
            line = json.dumps(finding.to_dict(), ensure_ascii=False)
            # what a model spelt as half of a surrogate pair is spelt so again
            print(line.encode("utf-8", "backslashreplace").decode(), flush=True)
        else:
            print(told(finding), flush=True)

    investigate(cases, endpoint, asked, tools, done)
    missing = len(answered) - sum(answered)
    if missing:
        print(printable(f"investigate: {missing} of {counted(len(answered), 'case')} got no verdict"), file=sys.stderr)
    return 0 if all(answered) else 1


INVESTIGATE = Command(
    "let a served model investigate telemetry with tools, and print cause, path, quotes and calls of each case",
    "verl-aiops investigate ~/exports/2026-11 --endpoint http://host:8000/v1 --model investigator\n"
    "verl-aiops investigate cases.jsonl --id abc123 --endpoint http://host:8000/v1 --model investigator --json",
    _options,
    _run,
)


if __name__ == "__main__":
    sys.exit(run_alone("investigate", INVESTIGATE))
