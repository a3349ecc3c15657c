"""The command that asks a served model about incidents."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from verl_aiops.cli.command import Command, run_alone
from verl_aiops.cli.incident_source import (
    add_asked_options,
    add_columns_option,
    check_served_alike,
    columns_from,
    more_fields_from,
    wording_from,
)
from verl_aiops.cli.values import api_key, round_tokens
from verl_aiops.inputs.shown import counted, printable

if TYPE_CHECKING:
    from verl_aiops.evaluation.run.openai_backend import EndpointBackend
    from verl_aiops.evaluation.run.questions import Question

__all__ = ["TRIAGE"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "incidents", help="incidents, .jsonl, .csv, .xlsx or .parquet; service and incident_type may be missing"
    )
    add_columns_option(parser)
    parser.add_argument("--endpoint", required=True, metavar="URL", help="OpenAI-compatible server, up to /v1")
    parser.add_argument("--model", required=True, metavar="NAME", help="the name it serves the model by")
    add_asked_options(parser)
    parser.add_argument("--id", help="ask only about this incident")
    parser.add_argument(
        "--taxonomy",
        metavar="FILE",
        help="services, types and labels of further fields per system, JSON: the names that the prompt lists, all of "
        "them; see --candidates-range of build-* for a model that is to be served so",
    )
    parser.add_argument(
        "--max-chars", type=int, default=1200, help="trim incident data (default %(default)s; 0: whole)"
    )
    parser.add_argument(
        "--trim",
        default="blind",
        choices=("blind", "evidence"),
        help="what is kept: blind, by the text alone (default), or evidence, what is around the incident's `evidence`, "
        "as in --trim evidence for incidents that were looked into already",
    )
    parser.add_argument("--round-tokens", default="320,64", help="tokens of each round (default %(default)s)")
    parser.add_argument(
        "--schema",
        action="store_true",
        help="constrain round 2 to the answer's JSON, and to the names that the prompt lists",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write the lines there instead, one as soon as it is made; what stands in it already is not asked again, "
        "e.g. --out verdicts.jsonl",
    )
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds per request (default %(default)s)")


def _run(args: argparse.Namespace) -> int:
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.evaluation.run.asked import read_questions
    from verl_aiops.evaluation.run.backend import SamplingOptions
    from verl_aiops.evaluation.run.openai_backend import EndpointBackend, EndpointOptions
    from verl_aiops.evaluation.run.verdicts import Verdicts
    from verl_aiops.incidents import PromptOptions

    try:
        tokens = round_tokens(args.round_tokens)
        endpoint = EndpointOptions(
            args.endpoint,
            args.model,
            api_key(None),
            timeout_s=args.timeout,
            deadline_s=3 * args.timeout,
            schema=args.schema,
        )
        backend = EndpointBackend(endpoint, SamplingOptions(round_tokens=tokens))
        taxonomy = check_served_alike(args)
        if taxonomy is not None and (longer := taxonomy.longer_lists()):
            print(f"triage: {printable(longer)}", file=sys.stderr)
        asked = PromptOptions(
            budget=args.max_chars,
            trim=args.trim,
            whole_evidence=True,
            max_candidates=0,
            more_fields=more_fields_from(args),
            wording=wording_from(args),
        )
        questions = read_questions(args.incidents, args.taxonomy, asked, args.id, columns_from(args))
        backend.check(questions)
    except ValueError as error:
        raise EvaluationError(error) from None
    if args.out is None:
        return _ask(args, backend, questions, lambda line: print(json.dumps(line, ensure_ascii=False), flush=True))
    verdicts = Verdicts(args.out, questions[0].fields)
    try:
        missing = verdicts.missing(questions)
        if len(missing) < len(questions):
            there = len(questions) - len(missing)
            print(f"triage: {there} of {counted(len(questions), 'incident')} answered in {args.out} before")
        code = _ask(args, backend, missing, verdicts.add)
        return code or int(verdicts.without_verdict > 0)
    finally:
        verdicts.close()


def _ask(
    args: argparse.Namespace,
    backend: EndpointBackend,
    questions: Sequence[Question],
    tell: Callable[[dict[str, Any]], None],
) -> int:
    """Ask, and have each line told as it comes; returns the exit code."""
    from verl_aiops.evaluation.run.backend import Generation, Job
    from verl_aiops.evaluation.run.server_watch import FailuresKept, ServerGone, require_server
    from verl_aiops.reasoning import ANY, visible
    from verl_aiops.rewards.triage.answer import parse_answer

    if not questions:
        return 0
    require_server(backend.endpoint)
    told: list[bool] = []
    unconstrained, failed = [], []

    def answered(of: tuple[Job, Generation]) -> None:
        job, made = of
        # what a model thinks first, unless the server has taken it out, is neither its verdict nor its analysis
        shown = [visible(text, ANY, None).text for text in made.turns]
        answer = parse_answer(shown[-1] if made.error is None else None, fields=job.question.fields)
        line = {"id": job.question.id, **(answer.fields if answer.ok else dict.fromkeys(job.question.fields))}
        line["analysis"] = "\n".join(shown[:-1]) if made.error is None else None
        line["error"] = made.error
        told.append(answer.ok)
        if made.error is not None:
            failed.append(f"{job.question.id}: {made.error}")
        elif not answer.ok:
            unconstrained.append(job.question.id)
        tell(line)

    failures, gone = FailuresKept(answered), None
    try:
        backend.generate(
            [Job(question, 0, 0) for question in questions],
            lambda job, made: failures.add((job, made), made.error, made.of_server),
        )
        failures.end()
    except ServerGone as error:
        gone = error
    if failed:
        # the lines of thousands of incidents say it too, each for itself
        asked = counted(len(told), "incident")
        print(f"triage: {len(failed):,} of {asked} got no answer, such as {printable(failed[0])}", file=sys.stderr)
    if args.schema and unconstrained:
        print(
            f"triage: {counted(len(unconstrained), 'answer')} with no verdict in spite of --schema, such as that to "
            f"{unconstrained[0]}: the server ignores response_format, or round 2 ran out of tokens (--round-tokens)",
            file=sys.stderr,
        )
    if gone:
        asked = counted(len(questions), "incident")
        more = "the same command asks for the rest" if args.out else "with --out FILE it could be taken up from there"
        print(
            printable(
                f"triage: the server at {args.endpoint} gave no answer any more, the last time: {gone}. "
                f"{len(told) - len(failed)} of {asked} answered, {len(questions) - len(told)} left; {more}"
            ),
            file=sys.stderr,
        )
    return 0 if all(told) and not gone else 1


TRIAGE = Command(
    "ask a served model to triage incidents, in the rounds that it was trained for, and print a verdict for each",
    "verl-aiops triage incidents.jsonl --endpoint http://host:8000/v1 --model triage --taxonomy names.json --schema\n"
    "verl-aiops triage incidents.csv --endpoint http://host:8000/v1 --model triage --id my-17\n"
    "verl-aiops triage incidents.csv --endpoint http://host:8000/v1 --model triage --out verdicts.jsonl\n"
    "verl-aiops triage incidents.csv --endpoint http://host:8000/v1 --model triage --taxonomy names.json \\\n"
    "  --answer-fields service,incident_type,severity,team --prompts prompts.yaml",
    _options,
    _run,
)


if __name__ == "__main__":
    sys.exit(run_alone("triage", TRIAGE))
