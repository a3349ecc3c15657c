"""The commands of `verl-aiops` that train with TRL: their options, and the one function that each calls."""

from __future__ import annotations

import argparse
from dataclasses import fields

__all__ = ["dpo_options", "reward_model_options", "run_train_rm", "run_trl_dpo"]


def reward_model_options(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument("--data", nargs="+", required=True, metavar="FILE", help="preference pairs, parquet or JSONL")
    files.add_argument(
        "--val", nargs="+", default=[], metavar="FILE", help="held-out pairs (default: a share of --data)"
    )
    files.add_argument("--val-share", type=float, default=0.1, metavar="S", help="of the groups (default %(default)s)")
    files.add_argument("--model", required=True, help="folder or hub name of the model to start from")
    files.add_argument("--out", required=True, metavar="DIR", help="folder to write; a stopped run goes on in it")
    files.add_argument("--overwrite", action="store_true", help="remove an earlier run's files in it first")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=float, default=1.0, metavar="N", help="default %(default)s")
    training.add_argument("--lr", type=float, help="learning rate (default 1e-4 with LoRA, 1e-5 without)")
    training.add_argument("--batch-size", type=int, default=8, metavar="N", help="pairs (default %(default)s)")
    training.add_argument("--grad-accum", type=int, default=1, metavar="N", help="batches a step (default %(default)s)")
    training.add_argument(
        "--warmup", type=float, default=0.05, metavar="S", help="share of steps (default %(default)s)"
    )
    training.add_argument(
        "--max-length", type=int, default=2048, metavar="N", help="tokens of a conversation (default %(default)s)"
    )
    training.add_argument(
        "--max-too-long-share",
        type=float,
        default=0.1,
        metavar="S",
        help="of pairs that may be longer, which are left out and counted (default %(default)s)",
    )
    training.add_argument("--lora-rank", type=int, default=16, metavar="R", help="0: all weights (default %(default)s)")
    training.add_argument(
        "--no-lora", dest="lora_rank", action="store_const", const=0, help="train all weights, as --lora-rank 0"
    )
    training.add_argument("--lora-alpha", type=int, default=32, metavar="A", help="default %(default)s")
    training.add_argument(
        "--center-rewards",
        dest="center",
        type=float,
        default=0.01,
        metavar="C",
        help="coefficient of the term that keeps rewards around 0 (default %(default)s)",
    )
    training.add_argument(
        "--margin", type=float, default=0.0, metavar="M", help="lead of chosen; a column margin goes before it"
    )
    training.add_argument("--seed", type=int, default=0, help="default %(default)s")
    training.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default %(default)s")
    training.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default %(default)s")
    training.add_argument(
        "--save-steps", type=int, default=50, metavar="N", help="between checkpoints (default %(default)s)"
    )


def run_train_rm(args: argparse.Namespace) -> None:
    from verl_aiops.trl.reward import train_reward_model
    from verl_aiops.trl.reward_settings import RewardTraining

    values = {field.name: getattr(args, field.name) for field in fields(RewardTraining)}
    if args.lr is None:
        values["lr"] = 1e-4 if args.lora_rank else 1e-5
    values |= {"data": tuple(args.data), "val": tuple(args.val)}
    print(train_reward_model(RewardTraining(**values), args.out, overwrite=args.overwrite).summary())


def dpo_options(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument("--data", nargs="+", required=True, metavar="FILE", help="preference pairs, parquet or JSONL")
    files.add_argument("--val", nargs="+", default=[], metavar="FILE", help="held-out pairs (default: none)")
    files.add_argument("--model", required=True, help="folder or hub name of the model to start from")
    files.add_argument("--out", required=True, metavar="DIR", help="model folder to write; a stopped run goes on in it")
    files.add_argument("--overwrite", action="store_true", help="remove an earlier run's files in it first")
    files.add_argument(
        "--max-prompt-length", type=int, default=2048, metavar="N", help="tokens of a prompt (default %(default)s)"
    )
    files.add_argument(
        "--max-response-length", type=int, default=512, metavar="N", help="tokens of an answer (default %(default)s)"
    )
    files.add_argument(
        "--truncation",
        default="error",
        choices=("error", "left", "drop"),
        help="what becomes of longer pairs: refused, prompts cut (answers never), left out and counted "
        "(default %(default)s)",
    )
    loss = parser.add_argument_group("loss")
    loss.add_argument(
        "--beta", type=float, default=0.1, metavar="B", help="pull to the reference (default %(default)s)"
    )
    loss.add_argument(
        "--loss-type",
        nargs="+",
        default=["sigmoid"],
        metavar="NAME",
        help="one or several of sigmoid (the default), robust, hinge, ipo, exo_pair, nca_pair, bco_pair, sppo_hard, "
        "aot, aot_unpaired, apo_zero, apo_down, discopop, sigmoid_norm, sft",
    )
    loss.add_argument("--loss-weights", nargs="+", type=float, metavar="W", help="one a loss (default: 1 each)")
    loss.add_argument(
        "--label-smoothing",
        type=float,
        default=0.0,
        metavar="E",
        help="probability that a label is wrong, for robust, exo_pair, aot, aot_unpaired",
    )
    loss.add_argument(
        "--reference",
        default="cached",
        choices=("cached", "live"),
        help="score each pair once, before training, or in every step (default %(default)s)",
    )
    loss.add_argument("--reference-model", metavar="MODEL", help="default: the model that training starts from")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=float, default=1.0, metavar="N", help="default %(default)s")
    training.add_argument("--max-steps", type=int, metavar="N", help="optimizer steps, instead of --epochs")
    training.add_argument("--lr", type=float, help="learning rate (default 1e-5 with LoRA, 1e-6 without)")
    training.add_argument(
        "--schedule", default="constant", choices=("constant", "linear", "cosine"), help="default %(default)s"
    )
    training.add_argument("--warmup", type=float, default=0.0, metavar="S", help="share of steps (default %(default)s)")
    training.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="pairs an optimizer step (default %(default)s)"
    )
    training.add_argument(
        "--micro-batch", type=int, default=4, metavar="N", help="pairs a forward pass (default %(default)s)"
    )
    training.add_argument("--lora-rank", type=int, default=0, metavar="R", help="0: all weights (default %(default)s)")
    training.add_argument("--lora-alpha", type=int, default=32, metavar="A", help="default %(default)s")
    training.add_argument(
        "--gradient-checkpointing", action="store_true", help="recompute activations: less memory, more time"
    )
    training.add_argument("--seed", type=int, default=1, help="of the order of pairs and of LoRA (default %(default)s)")
    training.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default %(default)s")
    training.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default %(default)s")
    training.add_argument(
        "--save-steps", type=int, default=50, metavar="N", help="between checkpoints (default %(default)s)"
    )
    training.add_argument(
        "--eval-steps",
        type=int,
        default=0,
        metavar="N",
        help="between measurements on --val (default: before and after training only)",
    )


def run_trl_dpo(args: argparse.Namespace) -> None:
    from verl_aiops.trl.dpo import train_dpo
    from verl_aiops.trl.dpo_settings import DPOTraining

    values = {field.name: getattr(args, field.name) for field in fields(DPOTraining)}
    if args.lr is None:
        values["lr"] = 1e-5 if args.lora_rank else 1e-6
    for name in ("data", "val", "loss_type", "loss_weights"):
        values[name] = None if values[name] is None else tuple(values[name])
    print(train_dpo(DPOTraining(**values), args.out, overwrite=args.overwrite).summary())
