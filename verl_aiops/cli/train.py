"""The commands of `verl-aiops` that train with TRL: their options, and the one function that each calls.

The options are the fields of the settings (`trl/dpo_settings.py`, `trl/reward_settings.py`). What is none of them is
for TRL's own parser (`trl/options.py`), which is asked only then: it costs the import of TRL and torch.
"""

from __future__ import annotations

import argparse
from typing import Any

from verl_aiops.settings import add_options, from_options
from verl_aiops.trl.dpo_settings import DPOTraining
from verl_aiops.trl.extra import TrainingError
from verl_aiops.trl.reward_settings import RewardTraining

__all__ = ["dpo_options", "reward_model_options", "run_train_rm", "run_trl_dpo"]


def _options(parser: argparse.ArgumentParser, owner: type, written: str, config: str) -> dict[str, Any]:
    groups = add_options(parser, owner)
    groups["files"].add_argument("--out", required=True, metavar="DIR", help=f"{written}; a stopped run goes on in it")
    groups["files"].add_argument("--overwrite", action="store_true", help="remove an earlier run's files in it first")
    parser.add_argument_group(
        "TRL's own",
        f"Every other field of trl.{config} is an option too, by its name there:\n"
        "--weight_decay 0.01 --max_grad_norm 0.5. One that an option above decides is refused.",
    )
    parser.set_defaults(takes_more=True)
    return groups


def reward_model_options(parser: argparse.ArgumentParser) -> None:
    training = _options(parser, RewardTraining, "folder to write", "RewardConfig")["training"]
    training.add_argument(
        "--backend",
        choices=("verl", "trl"),
        default="verl",
        help="what trains: verl's main_ppo, which computes a prompt once, or TRL's trainer (default %(default)s)",
    )
    training.add_argument("--print", action="store_true", dest="only_print", help="print verl's command line and stop")
    training.add_argument(
        "--no-lora", dest="lora_rank", action="store_const", const=0, help="train all weights, as --lora-rank 0"
    )


def run_train_rm(args: argparse.Namespace) -> int:
    settings = from_options(RewardTraining, args, trl=tuple(args.more))
    if args.backend == "verl":
        from verl_aiops.cli.fronts.train_rm import train_on_verl

        return train_on_verl(settings, args.out, overwrite=args.overwrite, only_print=args.only_print)
    if args.only_print:
        raise TrainingError("--print: with --backend verl alone, whose command line it shows")
    from verl_aiops.trl.reward import train_reward_model

    print(train_reward_model(settings, args.out, overwrite=args.overwrite).summary())
    return 0


def dpo_options(parser: argparse.ArgumentParser) -> None:
    _options(parser, DPOTraining, "model folder to write", "DPOConfig")


def run_trl_dpo(args: argparse.Namespace) -> None:
    from verl_aiops.trl.dpo import train_dpo

    settings = from_options(DPOTraining, args, trl=tuple(args.more))
    print(train_dpo(settings, args.out, overwrite=args.overwrite).summary())
