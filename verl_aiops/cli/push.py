"""The command that takes a trained model to a hub."""

from __future__ import annotations

import argparse

from verl_aiops.cli.command import Command

__all__ = ["PUSH"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="of the model, such as OUT/huggingface, with its card")
    parser.add_argument("repository", metavar="OWNER/NAME", help="on the hub; made where it is not there yet")
    parser.add_argument(
        "--public", action="store_true", help="make it public (default: private; one that is there stays)"
    )
    parser.add_argument("--message", metavar="TEXT", help="of the commit")


def _run(args: argparse.Namespace) -> None:
    from verl_aiops.models.push import check_push, push_model

    check_push(args.repository)
    print(push_model(args.folder, args.repository, private=not args.public, message=args.message))


PUSH = Command(
    "upload a trained model with its card to the hub of models",
    "verl-aiops push runs/dpo/huggingface OWNER/NAME\n"
    "verl-aiops push runs/dpo/huggingface OWNER/NAME --public --message 'beta 0.1'",
    _options,
    _run,
)
