"""The command that serves a reward model by itself."""

from __future__ import annotations

import argparse
import os

from verl_aiops.cli.command import Command

__all__ = ["SERVE_RM"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIR", help="folder of a reward model, as `rm` and `train-rm` write it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="default %(default)s")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights (default %(default)s)"
    )
    parser.add_argument(
        "--max-model-len", type=int, metavar="N", help="tokens at most (default: the model's positions)"
    )
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="environment variable with a key that clients send (default: none)",
    )


def _run(args: argparse.Namespace) -> None:
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.rollout.hf.score_server import serve

    key = None
    if args.api_key_env is not None and not (key := os.environ.get(args.api_key_env)):
        raise EvaluationError(f"--api-key-env {args.api_key_env}: this variable is not set")
    try:
        serve(args.model, args.host, args.port, dtype=args.dtype, max_model_len=args.max_model_len, key=key)
    except ValueError as error:
        raise EvaluationError(f"serve-rm: {error}") from None


SERVE_RM = Command(
    "serve a reward model for `eval --rm URL` and as a member of an ensemble, where neither vLLM nor SGLang is",
    "verl-aiops serve-rm runs/rm2 --port 8001\nverl-aiops serve-rm runs/rm2 --host 0.0.0.0 --api-key-env RM_KEY",
    _options,
    _run,
)
