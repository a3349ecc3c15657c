"""`verl-aiops eval --rm`: the options for a reward model, and what runs it."""

from __future__ import annotations

import argparse

from verl_aiops.cli.values import api_key

__all__ = ["RM_ALONE", "add_rm_options", "run_eval_rm"]

RM_ALONE = ("pairs", "answers", "pair_columns", "rm_server", "rm_name")

# options of `eval` that have a meaning with --rm too
_ALSO = ("model", "out", "overwrite", "data", "limit", "seed", "dtype", "concurrency", "timeout", "deadline")
_ALSO += ("attempts", "api_key_env", "command", "more")


def add_rm_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a reward model, in place of a model that answers (docs/reward_model.md)")
    group.add_argument(
        "--rm",
        metavar="DIR|URL",
        help="reward model to evaluate: folder of `train-rm`, or http://HOST:PORT of a server that has it; --model DIR "
        "then is its folder, for the tokenizer",
    )
    group.add_argument(
        "--pairs", nargs="+", metavar="FILE", help="held-out preference pairs or groups: how it ranks them, calibration"
    )
    group.add_argument(
        "--answers",
        nargs="+",
        metavar="EVAL",
        help="folders of `eval --n N`: the rule's score of the answer that it picks; --data names what was asked where "
        "the folder does not",
    )
    group.add_argument(
        "--pair-columns", metavar="N=C,N=C", help="columns of --pairs by other names: prompt=question,chosen=better"
    )
    group.add_argument("--rm-server", choices=("vllm", "sglang", "hf"), help="what serves a URL (default vllm)")
    group.add_argument("--rm-name", metavar="NAME", help="that the server knows it by (default: --model)")


def run_eval_rm(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """``parser`` knows the defaults of the options that have no meaning here."""
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.evaluation.reward_model.run import RewardModelAsked, evaluate_reward_model
    from verl_aiops.evaluation.reward_model.scoring import LocalModel, Scorer, ServedModel, load_tokenizer
    from verl_aiops.inputs.shown import one_line, printable

    ours = {"rm", *RM_ALONE, *_ALSO}
    for name, value in vars(args).items():
        if name not in ours and value != parser.get_default(name):
            raise EvaluationError(f"--{name.replace('_', '-')}: has no meaning with --rm; leave it out")
    served = "://" in args.rm
    for name in ("rm_server", "rm_name", "model", "api_key_env"):
        if getattr(args, name) is not None and not served:
            flag = f"--{name.replace('_', '-')}"
            raise EvaluationError(f"{flag} goes with --rm http://HOST:PORT; --rm {args.rm} is a folder")
    if args.data is not None and not args.answers:
        raise EvaluationError("--data says what --answers were asked; preference pairs are given as --pairs")
    scorer: Scorer
    if served:
        if args.model is None:
            raise EvaluationError("--rm URL: give --model DIR, the reward model's folder, for the template")
        patience = {"timeout_s": args.timeout, "deadline_s": args.deadline, "attempts": args.attempts}
        patience["concurrency"] = args.concurrency
        name = args.rm_name or args.model
        scorer = ServedModel(args.rm, args.rm_server or "vllm", name, patience, api_key(args.api_key_env))
    else:
        scorer = LocalModel(args.rm, args.dtype)
    asked = RewardModelAsked(
        pairs=tuple(args.pairs or ()),
        answers=tuple(args.answers or ()),
        data=args.data,
        columns=args.pair_columns,
        limit=args.limit,
        seed=args.seed,
    )
    tokenizer = load_tokenizer(args.model if served else args.rm, "--model" if served else "--rm")
    table, files = evaluate_reward_model(args.rm, scorer, tokenizer, asked, args.out, args.overwrite)
    print(printable(table))
    print(f"{one_line(args.out)}: {', '.join(files)}")
