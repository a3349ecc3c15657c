"""An exported model to a hub of models."""

from __future__ import annotations

import os
from pathlib import Path

from verl_aiops.inputs.shown import UserError, one_line
from verl_aiops.models.folders import find_model

__all__ = ["PushError", "check_push", "push_model"]


_OFFLINE = "--push: HF_HUB_OFFLINE is set, so no hub is asked; unset it"
_LOG_IN = " Log in with `hf auth login`, or set HF_TOKEN."


class PushError(UserError):
    """The model cannot be pushed; the message says why and what to do."""


def check_push(repository: str) -> None:
    """Before a run whose model is to be pushed: what can be known of that without asking the hub.

    Raises:
        PushError: the name is none, no hub is asked (``HF_HUB_OFFLINE``), or nobody is logged in.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise _no_name(repository, error) from None
    if repository.count("/") != 1:
        raise _no_name(repository, "it has no owner")
    if constants.HF_HUB_OFFLINE:
        raise PushError(_OFFLINE)
    if not get_token():
        raise PushError(f"--push {repository}: nobody is logged in to the hub.{_LOG_IN}")


def push_model(folder: str | os.PathLike, repository: str, *, private: bool = True, message: str | None = None) -> str:
    """Upload a folder of transformers, with its card, into a repository of the hub that huggingface_hub talks to.

    The repository is made if it is not there. Of a checkpoint (``global_step_N``) give the exported ``huggingface``
    folder.

    Args:
        folder: as ``export_model`` writes it.
        repository: ``OWNER/NAME``.
        private: of a repository that is made; one that is there stays what it is.
        message: of the commit.

    Returns:
        the address of the commit.

    Raises:
        PushError: the hub is not to be reached, refuses, or is switched off (``HF_HUB_OFFLINE``).
        ModelFolderError: the folder holds no model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    model = find_model(str(folder), "folder")
    if model.shards is not None:
        raise PushError(f"{one_line(folder)}: is a checkpoint of verl; push the exported folder `huggingface`")
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        # what the merger left beside the weights is none of the model's
        made = api.upload_folder(
            repo_id=repository,
            folder_path=Path(folder),
            commit_message=message or "Model trained with verl-aiops",
            ignore_patterns=["checkpoint.json", "*.tmp", ".*"],
        )
    except HFValidationError as error:
        raise _no_name(repository, error) from None
    except OfflineModeIsEnabled:
        raise PushError(_OFFLINE) from None
    except HfHubHTTPError as error:
        hint = _LOG_IN if "401" in str(error) else ""
        raise PushError(f"--push {one_line(repository)}: the hub refuses: {one_line(error)}.{hint}") from None
    except Exception as error:  # of the HTTP library that this huggingface_hub has
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in ("httpx", "httpcore"):
            raise
        raise PushError(f"--push {one_line(repository)}: no hub is reached: {one_line(error)}") from None
    return str(made.commit_url)


def _no_name(repository: str, why: object) -> PushError:
    return PushError(f"--push {one_line(repository)}: expected OWNER/NAME; {one_line(why)}")
