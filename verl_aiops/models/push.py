"""An exported model to a hub of models."""

from __future__ import annotations

import os
from pathlib import Path

from verl_aiops.inputs.shown import UserError, one_line
from verl_aiops.models.folders import find_model

__all__ = ["PushError", "push_model"]


class PushError(UserError):
    """The model cannot be pushed; the message says why and what to do."""


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
        raise PushError(f"--push {one_line(repository)}: expected OWNER/NAME; {one_line(error)}") from None
    except OfflineModeIsEnabled:
        raise PushError("--push: HF_HUB_OFFLINE is set, so no hub is asked; unset it") from None
    except HfHubHTTPError as error:
        hint = " Log in with `hf auth login`, or set HF_TOKEN." if "401" in str(error) else ""
        raise PushError(f"--push {one_line(repository)}: the hub refuses: {one_line(error)}.{hint}") from None
    except Exception as error:  # of the HTTP library that this huggingface_hub has
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in ("httpx", "httpcore"):
            raise
        raise PushError(f"--push {one_line(repository)}: no hub is reached: {one_line(error)}") from None
    return str(made.commit_url)
