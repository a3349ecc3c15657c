#!/usr/bin/env python3
"""Asks a served model to triage incidents, in the two rounds that it was trained for, and prints its verdicts.

    python examples/triage_client.py incidents.jsonl --endpoint http://host:8000/v1 --model NAME --taxonomy names.json
    python examples/triage_client.py incidents.jsonl --endpoint http://host:8000/v1 --model NAME --schema --id my-17

docs/12-serving.md shows how to start a server. One JSON object per incident: id, service, incident_type (null where the
model gave no usable verdict), and what it wrote in round 1 under analysis. Incidents need no answer of their own here:
`service` and `incident_type` may be left out. With a taxonomy (`verl-aiops simulate --taxonomy-out`) the prompt lists
names to choose from. The key, if the server wants one, is read from the environment variable OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from verl_aiops.cli.evaluate import api_key
from verl_aiops.cli.values import round_tokens
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.backend import Generation, Job, SamplingOptions
from verl_aiops.evaluation.run.openai_backend import EndpointBackend, EndpointOptions
from verl_aiops.evaluation.run.questions import Question
from verl_aiops.incidents import Incident, IncidentError, PromptOptions, System, Taxonomy, build_case
from verl_aiops.incidents.io.readers import READERS
from verl_aiops.reasoning import ANY, visible
from verl_aiops.rewards.triage.answer import parse_answer

NOT_KNOWN = "not-known"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("incidents", help="incidents, .jsonl, .csv or .parquet")
    parser.add_argument("--endpoint", required=True, metavar="URL", help="OpenAI-compatible server, up to /v1")
    parser.add_argument("--model", required=True, metavar="NAME", help="the name it serves the model by")
    parser.add_argument("--id", help="ask only about this incident")
    parser.add_argument("--taxonomy", metavar="FILE", help="services and types per system, JSON")
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
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds per request (default %(default)s)")
    args = parser.parse_args(argv)
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
        options = SamplingOptions(round_tokens=tokens)
        backend = EndpointBackend(endpoint, options)
        asked = PromptOptions(budget=args.max_chars, trim=args.trim, whole_evidence=True, max_candidates=0)
        questions = read_questions(args.incidents, args.taxonomy, asked, args.id)
        backend.check(questions)
    except (OSError, ValueError) as error:
        print(f"triage_client: error: {error}", file=sys.stderr)
        return 2
    answered, unconstrained = [], []

    def done(job: Job, made: Generation) -> None:
        # what a model thinks first, unless the server has taken it out, is neither its verdict nor its analysis
        shown = [visible(text, ANY, None).text for text in made.turns]
        answer = parse_answer(shown[-1]) if made.error is None else parse_answer(None)
        verdict = {"service": answer.service, "incident_type": answer.incident_type}
        line = {"id": job.question.id, **(verdict if answer.ok else dict.fromkeys(verdict))}
        line["analysis"] = "\n".join(shown[:-1]) if made.error is None else None
        line["error"] = made.error
        answered.append(answer.ok)
        if made.error is None and not answer.ok:
            unconstrained.append(job.question.id)
        print(json.dumps(line, ensure_ascii=False), flush=True)

    try:
        backend.generate([Job(question, 0, 0) for question in questions], done)
    except EvaluationError as error:
        print(f"triage_client: error: {error}", file=sys.stderr)
        return 2
    if args.schema and unconstrained:
        print(
            f"triage_client: {len(unconstrained)} answers are no verdict in spite of --schema, such as that to "
            f"{unconstrained[0]}: the server ignores response_format, or round 2 ran out of tokens (--round-tokens)",
            file=sys.stderr,
        )
    return 0 if all(answered) else 1


def read_questions(path: str, taxonomy: str | None, asked: PromptOptions, wanted: str | None) -> list[Question]:
    """What is asked about each incident of a file, in the words of `build_case`, as in training and evaluation."""
    systems = Taxonomy.load(taxonomy) if taxonomy else None
    reader = READERS.get(Path(path).suffix.lower())
    if reader is None:
        raise IncidentError(f"{path}: name the file by its format, one of {', '.join(READERS)}")
    questions = []
    for place, row in reader(Path(path)):
        try:
            if not isinstance(row, dict):
                raise IncidentError("expected an object")
            if wanted is None or row.get("id") == wanted:
                questions.append(_question(row, systems, asked))
        except IncidentError as error:
            raise IncidentError(f"{path}, {place}: {error}") from None
    if not questions:
        raise EvaluationError(f"{path}: no incident{f' with the id {wanted!r}' if wanted else ' in it'}")
    return questions


def _question(row: dict, systems: Taxonomy | None, asked: PromptOptions) -> Question:
    # the answer, if there is one, has no part in what is asked: all names of the system are listed
    system = _system_of(row.get("source") or "user", systems) if systems else System((NOT_KNOWN,), (NOT_KNOWN,))
    hidden = {"service": system.services[0], "incident_type": system.incident_types[0], "aliases": None, "decoys": None}
    evidence = row.get("evidence") if asked.trim == "evidence" else None
    incident = Incident.from_dict({**row, **hidden, "evidence": evidence})
    case = build_case(incident, system, replace(asked, show_candidates=systems is not None))
    return Question(
        id=incident.id,
        group=incident.id,
        source=incident.source,
        lang=incident.lang,
        difficulty=None,
        messages=tuple(case.opening),
        rounds=tuple(message["content"] for message in case.rounds[1:]),
        incident_text=case.text,
        ground_truth={"candidates": case.ground_truth["candidates"]},
    )


def _system_of(source: str, systems: Taxonomy) -> System:
    name = source
    while name not in systems.systems:
        if "/" not in name:
            raise IncidentError(f"source '{source}' is not in the taxonomy, which has: {', '.join(systems.systems)}")
        name = name.rpartition("/")[0]
    return systems.systems[name]


if __name__ == "__main__":
    sys.exit(main())
