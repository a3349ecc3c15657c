"""The model that `verl-aiops eval` names, of either task: behind a server or in a folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from verl_aiops.cli.values import api_key

if TYPE_CHECKING:
    from verl_aiops.evaluation.run.openai_backend import EndpointOptions
    from verl_aiops.models.folders import ModelFolder

__all__ = ["endpoint_of", "folder_of"]


def endpoint_of(args: argparse.Namespace) -> EndpointOptions | None:
    """The server of ``--endpoint``; None where the model lies in a folder.

    Raises:
        EvaluationError: an option that belongs to the other of the two, or one that cannot work.
    """
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.evaluation.run.openai_backend import EndpointOptions

    if args.endpoint is None:
        for name in ("api_key_env", "schema"):
            if getattr(args, name):
                raise EvaluationError(
                    f"--{name.replace('_', '-')} goes with --endpoint; a local model has no use for it"
                )
        return None
    if args.dtype != "auto":
        raise EvaluationError("--dtype belongs to a local model; leave it out with --endpoint")
    return EndpointOptions(
        url=args.endpoint,
        model=args.model,
        api_key=api_key(args.api_key_env),
        concurrency=args.concurrency,
        timeout_s=args.timeout,
        deadline_s=args.deadline,
        attempts=args.attempts,
        schema=args.schema,
    )


def folder_of(args: argparse.Namespace) -> tuple[ModelFolder, dict[str, Any]]:
    """The folder of a local model, and the settings of the evaluation that name it."""
    from verl_aiops.models.folders import find_model

    model = find_model(args.model)
    return model, {"model": args.model, "model_files": model.fingerprint(), "dtype": args.dtype}
