"""The command that evaluates a model: its options, and what runs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_aiops.cli.asked_model import endpoint_of, folder_of
from verl_aiops.cli.data import add_prompt_options, prompts_from
from verl_aiops.cli.eval_rm import RM_ALONE, add_rm_options, run_eval_rm
from verl_aiops.cli.incident_source import add_columns_option, check_served_alike, incidents_from
from verl_aiops.cli.investigation import eval_tool_options, investigates, run_eval_investigations
from verl_aiops.cli.values import API_KEY_ENV, json_object, reward_settings, round_tokens

if TYPE_CHECKING:
    from verl_aiops.evaluation.run.backend import Backend, SamplingOptions
    from verl_aiops.evaluation.run.questions import Question

# Options of the command by the name of the prompt option, where they differ.
_OPTIONS = {
    "budget": "max_chars",
    "show_candidates": "no_candidates",
    "seed": "prompt_seed",
    "more_fields": "answer_fields",
    "wording": "prompts",
}

EXAMPLES = (
    "verl-aiops eval --model runs/grpo/huggingface --data rl.val.parquet --out eval/grpo\n"
    "verl-aiops eval --model runs/grpo/global_step_40 --incidents incidents.jsonl --max-chars 600 --out eval/step40\n"
    "verl-aiops eval --model MODEL --incidents incidents.jsonl --trim evidence --out eval/evidence\n"
    "verl-aiops eval --model MODEL --data rl.val.parquet --n 8 --temperature 0.8 --round-tokens 320,64 --out eval/n8\n"
    "verl-aiops eval --model MODEL --data tools.val.parquet --tools max_calls=6,turn_tokens=240 --out eval/tools\n"
    "verl-aiops eval --model MODEL --data rl.val.parquet --rename 1 --out eval/renamed\n"
    "verl-aiops eval --endpoint http://host:8000/v1 --model NAME --data rl.val.parquet --out eval/name\n"
    "verl-aiops eval --rm runs/rm --pairs prefs.val.parquet --answers eval/n8 --out eval/rm\n"
    "verl-aiops eval --rm http://host:8000 --model runs/rm --pairs prefs.val.parquet --out eval/rm"
)


def eval_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="DIR|NAME",
        help="folder of transformers, or verl's global_step_N; with --endpoint, the name that it serves the model by "
        "(to be given, but for --rm)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for answers, summary and table")
    parser.add_argument("--overwrite", action="store_true", help="start anew; else a run that was ended goes on")
    data = parser.add_argument_group("data (one of them)")
    data.add_argument("--data", metavar="FILE", help="RL prompts of build-rl, .parquet or .jsonl")
    data.add_argument(
        "--incidents", metavar="FILE", help="incidents, .jsonl, .csv, .xlsx or .parquet; asked as build-rl would"
    )
    add_columns_option(data)
    data.add_argument("--taxonomy", metavar="FILE", help="services and types per system, JSON; goes with --incidents")
    data.add_argument("--prompt-seed", type=int, default=0, help="as --seed of build-rl (default %(default)s)")
    data.add_argument("--limit", type=int, metavar="N", help="ask N incidents, chosen at random (default all)")
    add_prompt_options(parser, asked_alone=True)
    _sampling_options(parser)
    _endpoint_options(parser)
    eval_tool_options(parser)
    add_rm_options(parser)
    judged = parser.add_argument_group("judgement")
    judged.add_argument(
        "--reward",
        metavar="K=V,K=V",
        help="settings of the reward, as reward_kwargs of the training (default none, and the model's own markers of "
        "reasoning; reasoning=none leaves what it thinks in the answer)",
    )
    judged.add_argument(
        "--rename",
        type=int,
        metavar="SEED",
        help="ask the incidents again with their labels swapped, and report what that costs",
    )
    judged.add_argument(
        "--rename-labels", default="both", choices=("both", "service", "type"), help="what it swaps (default both)"
    )


def _sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers")
    group.add_argument("--n", type=int, default=1, metavar="N", help="to each incident (default %(default)s)")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default %(default)s, greedy")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default %(default)s")
    group.add_argument("--seed", type=int, default=0, help="of sampling and intervals (default %(default)s)")
    group.add_argument(
        "--max-response-length",
        type=int,
        metavar="N",
        help="as data.max_response_length (default 512, or what --round-tokens need)",
    )
    group.add_argument(
        "--round-tokens", metavar="N,N", help="tokens of each round, as rollout.custom.aiops_mturn (default: divided)"
    )
    group.add_argument("--answer-tokens", type=int, default=64, metavar="N", help="of the last round (default 64)")
    group.add_argument(
        "--chat-template-kwargs",
        metavar="JSON",
        help="""as data.apply_chat_template_kwargs: '{"enable_thinking": false}'""",
    )
    group.add_argument(
        "--concurrency",
        type=int,
        default=16,
        metavar="N",
        help="conversations at a time: a batch, or requests in flight (default %(default)s)",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of a local model's weights; auto is float32 on CPU, else bfloat16",
    )


def _endpoint_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("OpenAI-compatible server")
    group.add_argument("--endpoint", metavar="URL", help="its address up to /v1; without it the model is a folder")
    group.add_argument(
        "--api-key-env", metavar="NAME", help=f"environment variable with the key (default {API_KEY_ENV}, if it is set)"
    )
    group.add_argument(
        "--schema",
        action="store_true",
        help="constrain the last round to the answer's JSON (response_format), and to the names that the prompt lists",
    )
    group.add_argument("--timeout", type=float, default=120.0, metavar="S", help="per request (default %(default)s)")
    group.add_argument(
        "--deadline", type=float, default=600.0, metavar="S", help="per answer with all retries (default %(default)s)"
    )
    group.add_argument("--attempts", type=int, default=5, metavar="N", help="per request (default %(default)s)")
    group.add_argument(
        "--max-failed-share",
        type=float,
        default=0.05,
        metavar="S",
        help="exit code 1 if more of the answers failed (default %(default)s)",
    )


def run_eval(args: argparse.Namespace) -> int:
    from verl_aiops.evaluation.errors import EvaluationError

    if args.rm is not None:
        parser = argparse.ArgumentParser()
        eval_options(parser)
        run_eval_rm(args, parser)
        return 0
    for name in RM_ALONE:
        if getattr(args, name) is not None:
            raise EvaluationError(f"--{name.replace('_', '-')} goes with --rm; leave it out, or name a reward model")
    if args.model is None:
        raise EvaluationError("--model: give a model's folder, or the name that --endpoint serves it by")
    if investigates(args):
        return run_eval_investigations(args)
    from verl_aiops.evaluation.run.backend import SamplingOptions
    from verl_aiops.evaluation.run.evaluate import EvaluationPlan, evaluate
    from verl_aiops.evaluation.run.questions import fingerprint
    from verl_aiops.inputs.shown import one_line, printable

    if args.n > 1 and args.temperature == 0:
        raise EvaluationError(
            f"--n {args.n} with --temperature 0: all answers would be the same; raise one, lower the other"
        )
    if args.concurrency < 1:
        raise EvaluationError(f"--concurrency {args.concurrency}: expected 1 or more")
    plan = EvaluationPlan(
        samples=args.n,
        seed=args.seed,
        reward=reward_settings(args.reward),
        max_failed_share=args.max_failed_share,
        rename=args.rename,
        rename_labels=args.rename_labels,
    )
    options = SamplingOptions(
        temperature=args.temperature,
        top_p=args.top_p,
        max_response_length=args.max_response_length,
        round_tokens=round_tokens(args.round_tokens),
        answer_tokens=args.answer_tokens,
        chat_template_kwargs=json_object("--chat-template-kwargs", args.chat_template_kwargs),
    )
    # what the user may have mistyped comes before reading files, files before the model
    model, make_backend = _backend(args, options)
    questions, data = _questions(args)
    backend = make_backend()
    if not {"reasoning", "reasoning_opened"} & plan.reward.keys():
        plan = replace(plan, reward={**plan.reward, **backend.reasoning})
    settings = {
        **model,
        **data,
        "questions": fingerprint(questions),
        "n": plan.samples,
        "seed": plan.seed,
        **asdict(options),
        "reward": dict(plan.reward),
        "rename": plan.rename,
        "rename_labels": plan.rename_labels,
    }
    report = evaluate(questions, backend, args.out, plan, settings, overwrite=args.overwrite)
    print(printable(report.table))
    files = f"generations.jsonl{', renamed.jsonl' if args.rename is not None else ''}, summary.json, table.txt"
    print(f"{one_line(args.out)}: {files}")
    if report.fault:
        print(f"verl-aiops: error: {printable(report.fault)}", file=sys.stderr)
        return 1
    return 0


def _backend(args: argparse.Namespace, options: SamplingOptions) -> tuple[dict[str, Any], Callable[[], Backend]]:
    """The settings that name the model, and what makes its backend."""
    endpoint = endpoint_of(args)
    if endpoint is not None:
        from verl_aiops.evaluation.run.openai_backend import EndpointBackend

        schema = "listed names" if args.schema else False
        settings = {"endpoint": endpoint.chat_url, "model": args.model, "schema": schema}
        return settings, lambda: EndpointBackend(endpoint, options)
    model, settings = folder_of(args)

    def make() -> Backend:
        from verl_aiops.evaluation.run.hf_backend import LocalBackend

        return LocalBackend(model, options, args.concurrency, args.dtype, Path(args.out) / ".merged")

    return settings, make


def _questions(args: argparse.Namespace) -> tuple[list[Question], dict[str, Any]]:
    """The questions, and the settings that say where they come from."""
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.evaluation.run.questions import incident_questions, read_rl_questions, sampled
    from verl_aiops.incidents import PromptOptions
    from verl_aiops.incidents.build.summary import noticed
    from verl_aiops.inputs.shown import printable

    if (args.data is None) == (args.incidents is None):
        raise EvaluationError("expected --data FILE or --incidents FILE, one of them")
    if args.limit is not None and args.limit < 1:
        raise EvaluationError(f"--limit {args.limit}: expected 1 or more")
    prompts = replace(prompts_from(args), seed=args.prompt_seed)
    if args.data is not None:
        default = replace(PromptOptions(), trim=prompts.trim)
        given = [_OPTIONS.get(name, name) for name, value in vars(prompts).items() if value != getattr(default, name)]
        given += [name for name in ("trim", "taxonomy", "columns") if getattr(args, name) is not None]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise EvaluationError(f"{flags}: goes with --incidents; {args.data} has its prompts already")
        return sampled(read_rl_questions(args.data), args.limit, args.seed), {"data": args.data, "limit": args.limit}
    check_served_alike(args)
    source = incidents_from(args)
    for line in noticed(source):
        print(printable(f"{args.incidents}: {line}"))
    left_out = ("measure", "candidates_range", "more_fields", "wording")
    options = {name: value for name, value in vars(prompts).items() if name not in left_out}
    if prompts.more_fields:
        options["more_fields"] = list(prompts.more_fields)
    if prompts.wording != PromptOptions().wording:
        options["wording"] = prompts.wording.name
    where = {"incidents": args.incidents, "taxonomy": args.taxonomy, "limit": args.limit, "prompts": options}
    if args.columns is not None:
        where["columns"] = args.columns
    return sampled(incident_questions(source, prompts), args.limit, args.seed), where
