"""Files of ``torch.save`` that would do more than hold numbers when they are read.

verl reads its checkpoints, when it resumes and when it merges them, by Python's pickle without limits: whoever wrote
the file decides what runs. Here the file's instructions are looked through before, without following them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["TRUST", "ForeignCodeError", "foreign_code", "refuse_foreign_code"]

TRUST = "VERL_AIOPS_TRUST_CHECKPOINTS"
# what verl's own files hold beside torch's types: the random state of numpy
_NUMPY = {
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.ndarray",
    "numpy.dtype",
}


class ForeignCodeError(ValueError):
    """A checkpoint that asks for more than tensors and plain values; the message names file and what it asks for."""


def foreign_code(file: str | os.PathLike) -> str | None:
    """What a file would call when it is read, beyond what ``torch.load(weights_only=True)`` and numpy's arrays need;
    None for none, and where the user says that the file is theirs.
    """
    if os.environ.get(TRUST) == "1":
        return None
    import torch.distributed.tensor  # noqa: F401 - registers the types of sharded tensors as safe
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        names = get_unsafe_globals_in_checkpoint(os.fspath(file))
    except FileNotFoundError:
        raise
    except Exception as error:  # instructions that torch.save does not write, another format, a damaged file
        return f"no plain file of torch.save ({' '.join(str(error).split())[:100]})"
    calls = sorted(name for name in names if name not in _NUMPY and not name.startswith("numpy.dtypes."))
    return ", ".join(name[:80] for name in calls[:3]) + ", ..." * (len(calls) > 3) if calls else None


def refuse_foreign_code(files: Iterable[Path]) -> None:
    """Raises ForeignCodeError for the first file that would call something."""
    for file in files:
        calls = foreign_code(file)
        if calls:
            raise ForeignCodeError(
                f"{file}: reading it would run code that it names ({calls!r}), which no checkpoint of verl needs. If "
                f"you made it yourself and trust every line of it, set {TRUST}=1."
            )
