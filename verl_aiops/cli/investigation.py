"""What the commands do where the data are investigations: eval, compare, build-prefs --from-generations."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from verl_aiops.cli.asked_model import endpoint_of, folder_of
from verl_aiops.cli.values import json_object, reward_settings

__all__ = ["eval_tool_options", "investigates", "run_eval_investigations"]

# of `eval`, what is of triage alone
_OF_TRIAGE = ("incidents", "taxonomy", "columns", "answer_fields", "prompts", "rename", "round_tokens", "schema")


def eval_tool_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("investigations (docs/investigation.md)")
    group.add_argument(
        "--task",
        choices=("auto", "triage", "investigation"),
        default="auto",
        help="what the data are; auto (default) goes by their data_source. E.g. --task investigation --data "
        "tools.val.parquet",
    )
    group.add_argument(
        "--tools",
        metavar="K=V,K=V",
        help="settings of rollout.custom.aiops_tools, as in training: max_calls=6,turn_tokens=240,verdict_tokens=240",
    )
    group.add_argument(
        "--call-format",
        default="hermes",
        metavar="NAME",
        help="how a local model spells its calls, as rollout.multi_turn.format (default %(default)s)",
    )


def investigates(args: argparse.Namespace) -> bool:
    """Whether an evaluation is one of investigations."""
    if args.task != "auto":
        return args.task == "investigation"
    if args.data is None:
        return False
    from verl_aiops.evaluation.investigation.questions import holds_investigations

    return holds_investigations(args.data)


def _tool_settings(text: str | None) -> Any:
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.rollout.tools.settings import ToolSettings

    given = {}
    for part in (text or "").split(",") if text else []:
        name, _, value = part.partition("=")
        try:
            given[name.strip()] = int(value)
        except ValueError:
            raise EvaluationError(f"--tools {part}: expected name=number") from None
    try:
        return ToolSettings.from_section(given)
    except ValueError as error:
        raise EvaluationError(f"--tools: {error}") from None


def run_eval_investigations(args: argparse.Namespace) -> int:
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.evaluation.investigation.asking import EndpointInvestigator, LocalInvestigator, ToolOptions
    from verl_aiops.evaluation.investigation.evaluate import evaluate_investigations
    from verl_aiops.evaluation.investigation.questions import fingerprint, read_case_questions
    from verl_aiops.evaluation.run.backend import SamplingOptions
    from verl_aiops.evaluation.run.questions import sampled
    from verl_aiops.inputs.shown import one_line, printable
    from verl_aiops.rewards.investigation.settings import read_investigation_settings

    for name in _OF_TRIAGE:
        if getattr(args, name) not in (None, False):
            raise EvaluationError(f"--{name.replace('_', '-')}: has no meaning for investigations; leave it out")
    if args.data is None:
        raise EvaluationError("expected --data FILE, of verl-aiops build-rl --task investigation")
    if args.n < 1 or args.concurrency < 1 or args.n > 1 and args.temperature == 0:
        raise EvaluationError(
            f"--n {args.n}, --concurrency {args.concurrency}, --temperature {args.temperature:g}: "
            "expected 1 or more, and a temperature above 0 for several investigations of a case"
        )
    reward = reward_settings(args.reward, read_investigation_settings)
    tools = ToolOptions(
        _tool_settings(args.tools), args.call_format, args.max_response_length or ToolOptions.max_response_length
    )
    options = SamplingOptions(
        temperature=args.temperature,
        top_p=args.top_p,
        chat_template_kwargs=json_object("--chat-template-kwargs", args.chat_template_kwargs),
    )
    questions = sampled(read_case_questions(args.data), args.limit, args.seed)
    backend: Any
    endpoint = endpoint_of(args)
    if endpoint is not None:
        model: dict[str, Any] = {"endpoint": endpoint.chat_url, "model": args.model}
        backend = EndpointInvestigator(endpoint, options)
    else:
        found, model = folder_of(args)
        backend = LocalInvestigator(found, options, args.concurrency, args.dtype, Path(args.out) / ".merged")
    backend.prepare(tools, questions)
    if not {"reasoning", "reasoning_opened"} & reward.keys():
        reward = {**reward, **backend.reasoning}
    settings = {
        "task": "investigation",
        **model,
        "data": args.data,
        "limit": args.limit,
        "questions": fingerprint(questions),
        "n": args.n,
        "seed": args.seed,
        **asdict(replace(options, max_response_length=tools.max_response_length)),
        "tools": asdict(tools.settings),
        "call_format": tools.call_format,
        "reward": dict(reward),
    }
    table, fault = evaluate_investigations(
        questions,
        backend,
        args.out,
        settings,
        reward,
        samples=args.n,
        seed=args.seed,
        max_failed_share=args.max_failed_share,
        overwrite=args.overwrite,
    )
    print(printable(table))
    print(f"{one_line(args.out)}: generations.jsonl, summary.json, table.txt")
    if fault:
        print(f"verl-aiops: error: {printable(fault)}", file=sys.stderr)
        return 1
    return 0
