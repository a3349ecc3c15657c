"""What stands under a name on a hub instead of in a file or folder: rows of a data set, files of a model.

Asked through the libraries that own the hub's protocol, caches and keys (datasets, huggingface_hub), whose variables
(`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`, ...) therefore count here too. What they have in their caches is found
without a network.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from verl_aiops.files import default_cache_dir, feed, move_into_place, replacing
from verl_aiops.inputs.shown import UserError, one_line

__all__ = ["HubError", "fetch_model", "fetch_rows", "may_be_on_a_hub"]

_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<split>[\w.-]+))?")
# of a file that is not there, rather than of a data set
_FILES = (
    ".parquet",
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".xlsx",
    ".txt",
    ".gz",
    ".zip",
    ".safetensors",
    ".bin",
    ".gguf",
)
_HELD_OUT = ("test", "validation", "dev", "eval", "val")
# weights in other formats, which nothing here reads
_NOT_READ = ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.pth", "*.ot", "original/*", "onnx/*"]


class HubError(UserError):
    """A name that no hub gives anything for; the message says why and what to do."""


def may_be_on_a_hub(name: str) -> bool:
    """Whether this is written as ``ORG/NAME`` or ``ORG/NAME:SPLIT`` and is no path into a folder that is there."""
    found = _NAME.fullmatch(name)
    if found is None or found["name"].lower().endswith(_FILES):
        return False
    return not os.path.isdir(found["name"].partition("/")[0])


def fetch_model(name: str, option: str) -> Path:
    """The folder that huggingface_hub keeps a model in, downloaded where it is not there yet. Raises HubError."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=_NOT_READ))
    except Exception as error:
        raise _refused(f"{option} {name}: no such folder, and as a model", error, "name a model's folder") from error


def fetch_rows(name: str, option: str, *, held_out: bool = False) -> Path:
    """A parquet file with the rows of a split.

    Args:
        name: ``ORG/NAME`` or ``ORG/NAME:SPLIT``. Without a split `train` is taken, and of held-out data the only one
            of `test`, `validation`, ...

    Raises:
        HubError: no hub is reached, it has no such data set or split, or which split is meant is not to be told.
    """
    import datasets

    found = _NAME.fullmatch(name)
    assert found is not None
    of, split = found["name"], found["split"]
    try:
        splits = [str(split) for split in datasets.get_dataset_split_names(of)]
        chosen = split or _split_of(splits, f"{option} {name}", of, held_out)
        if chosen not in splits:
            raise HubError(f"{option} {name}: it has no split {chosen!r}, but {', '.join(splits)}")
        rows = datasets.load_dataset(of, split=chosen)
    except HubError:
        raise
    except Exception as error:
        raise _refused(f"{option} {name}: no such file, and as a data set", error, "name a file") from error
    folder = Path(default_cache_dir("hub"), of.replace("/", "--"))
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{chosen}.parquet") as temporary:
        rows.to_parquet(str(temporary))
        digest = hashlib.sha256()
        feed(digest, temporary)
    # by its content: a run that goes on finds what it was trained on, and another revision does not take its place
    path = folder / f"{chosen}-{digest.hexdigest()[:12]}.parquet"
    move_into_place(folder / f"{chosen}.parquet", path)
    return path


def _split_of(splits: list[str], where: str, of: str, held_out: bool) -> str:
    fit = [split for split in splits if split.partition("_")[0] in (_HELD_OUT if held_out else ("train",))]
    if not held_out and "train" in splits:
        return "train"
    if len(fit) == 1:
        return fit[0]
    raise HubError(f"{where}: which of its splits is meant, {', '.join(splits)}? Say it: {of}:{(fit or splits)[0]}")


def _refused(what: str, error: Exception, way: str) -> HubError:
    offline = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_set(name)]
    why = f"; {offline[0]} is set, so no hub is asked: unset it, or {way}" if offline else f"; or {way}"
    return HubError(f"{what} on the hub it cannot be loaded: {one_line(error, 300)}{why}")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE")
